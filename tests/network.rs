//! What takes a network of its own: a firewall that forgets a connection without a word, a name
//! that moves to another address, a wire that loses, delays, overtakes and repeats packets.
//!
//! Each scene is played in a network namespace (and one for mounts) that this program makes by
//! starting itself again under `unshare`, with a user namespace besides where it takes that. Where
//! that is not permitted, or `ip`, `nft`, `python3` or a tun device is missing, the scenes say that
//! they were skipped, unless `MLLP_NETWORK_REQUIRED` is set.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use std::{env, fs, io, thread};

use common::{LONG, SHORT, eventually, limited, message, message_of};
use mllp_client::testing::{Receiver, Step};
use mllp_client::{Client, ClientBuilder, Delivery, ErrorKind, Event, Phase, Reconnect};

const SCENES: [(&str, fn()); 4] = [
    ("keepalive_finds_a_cut", keepalive_finds_a_cut),
    ("the_limit_ends_a_call_over_a_cut", the_limit_ends_a_call_over_a_cut),
    ("a_name_is_resolved_anew_for_each_attempt", a_name_is_resolved_anew_for_each_attempt),
    ("a_bad_wire_costs_time_only", a_bad_wire_costs_time_only),
];

fn main() {
    let arguments: Vec<String> = env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[1..] {
        ["play", wanted] => {
            run("ip", &["link", "set", "lo", "up"]).expect("the namespace has a loopback device");
            SCENES.iter().filter(|(name, _)| *name == wanted).for_each(|(_, play)| play());
        }
        // So that test runners which ask for a list get one.
        [.., "--list"] | ["--list", ..] => SCENES.iter().for_each(|(name, _)| println!("{name}: test")),
        // Whatever else the test runner was given concerns the tests of other programs.
        _ => play_all(),
    }
}

fn play_all() {
    let rehearsal =
        ["sh", "-c", "ip link set lo up && nft list ruleset && ip tuntap add wire mode tun && python3 --version"];
    let spaces = [&["--net", "--mount"][..], &["--map-root-user", "--net", "--mount"]];
    let Some(spaces) = spaces.iter().find(|spaces| run("unshare", &[spaces, &rehearsal[..]].concat()).is_ok()) else {
        assert!(env::var_os("MLLP_NETWORK_REQUIRED").is_none(), "no network of its own can be made here");
        println!(
            "skipped: no network of its own can be made here (it takes `unshare`, `ip`, `nft`, `python3`, a tun device and the right to use them)"
        );
        return;
    };
    let program = env::current_exe().unwrap();
    for (name, _) in SCENES {
        let played = run("unshare", &[spaces, &[program.to_str().unwrap(), "play", name][..]].concat());
        played.unwrap_or_else(|problem| panic!("{name}: {problem}"));
        println!("{name} ... ok");
    }
    println!("{} passed, 0 failed", SCENES.len());
}

fn run(program: &str, arguments: &[&str]) -> io::Result<()> {
    let status: ExitStatus = Command::new(program).args(arguments).stdout(io::stderr()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{program}: {status}"))) }
}

/// Lets no packet of the one connection to the receiver pass any more, in either direction.
fn cut(receiver: &Receiver) {
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next().unwrap(), 16).unwrap();
    let wanted: u16 = receiver.endpoint().rsplit(':').next().unwrap().parse().unwrap();
    let sockets = fs::read_to_string("/proc/net/tcp").unwrap();
    let own = sockets.lines().skip(1).find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        (port(fields[2]) == wanted && fields[3] == "01").then(|| port(fields[1]))
    });
    let own = own.expect("the client is connected");
    let rules = format!(
        "table inet cut {{ chain input {{ type filter hook input priority 0; tcp sport {own} drop; tcp dport {own} drop; }}\n}}"
    );
    run("nft", &[&rules]).unwrap();
}

fn client(builder: ClientBuilder) -> Client {
    builder.timeout(LONG).build().unwrap()
}

fn keepalive_finds_a_cut() {
    let receiver = Receiver::accepting().unwrap();
    let client = client(Client::builder(&receiver.endpoint()).keepalive(Some(Duration::from_secs(1))));
    client.send(message("1")).unwrap();
    cut(&receiver);
    assert!(client.is_connected(), "nothing shows at once");
    // After a second a question each second, four without an answer.
    eventually("keepalive has found out", || !client.is_connected());
    assert_eq!(client.send(message("2")).unwrap().control_id(), "2");
    assert_eq!((receiver.connections(), client.stats().failed), (2, 0));
}

fn the_limit_ends_a_call_over_a_cut() {
    let receiver = Receiver::accepting().unwrap();
    let client = client(Client::builder(&receiver.endpoint()));
    client.send(message("1")).unwrap();
    cut(&receiver);
    let error = limited(SHORT, || client.request(&message("2")).timeout(SHORT).send()).unwrap_err();
    let kind = error.kind();
    assert!(matches!(kind, ErrorKind::Timeout { phase: Phase::ApplicationAck, .. }), "{error:?}");
    assert_eq!(error.delivery(), Delivery::Unknown);
    assert_eq!(client.send(message("3")).unwrap().control_id(), "3");
    assert_eq!((receiver.connections(), receiver.received().len()), (2, 2));
}

fn a_name_is_resolved_anew_for_each_attempt() {
    let hosts = tempfile::NamedTempFile::new().unwrap();
    let moves_to = |address: &str| fs::write(hosts.path(), format!("{address} receiver.test\n")).unwrap();
    run("mount", &["--bind", hosts.path().to_str().unwrap(), "/etc/hosts"]).unwrap();
    moves_to("127.0.0.2");
    let first = Receiver::builder().address("127.0.0.2:0").unwrap().answering(|_| Step::accept()).unwrap();
    let port = first.endpoint().rsplit(':').next().unwrap().to_owned();
    let (tell, failed) = mpsc::channel();
    let policy = Reconnect::default().initial_delay(Duration::from_millis(20));
    let builder = Client::builder(&format!("mllp://receiver.test:{port}")).reconnect(policy);
    let client = client(builder.on_event(move |event| {
        if matches!(event, Event::ConnectFailed { .. }) {
            // Nobody listens after the first.
            let _ = tell.send(());
        }
    }));
    client.send(message("1")).unwrap();
    drop(first);
    let second = thread::scope(|scope| {
        let call = scope.spawn(|| client.send(message("2")).unwrap());
        failed.recv().unwrap();
        let address = format!("127.0.0.3:{port}");
        let second = Receiver::builder().address(address).unwrap().answering(|_| Step::accept()).unwrap();
        moves_to("127.0.0.3");
        call.join().unwrap();
        second
    });
    assert_eq!(second.received(), [message("2").into_bytes()]);
}

/// A wire of its own between a client and its receiver.
struct Wire {
    process: Child,
}

impl Wire {
    fn new(character: &str) -> Wire {
        let mut process = Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/network/wire.py"))
            .args(character.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n");
        Wire { process }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        self.process.wait().unwrap();
    }
}

fn a_bad_wire_costs_time_only() {
    // Delay and jitter (ms), loss and repetition (parts), rate (bytes a second), the largest packet.
    for (name, character, count, size) in [
        ("far away", "40 0 0 0 0 1500", 10, 20_000),
        ("overtaking", "5 20 0 0 0 1500", 30, 20_000),
        ("losing", "2 2 0.05 0 0 1500", 30, 20_000),
        ("repeating", "2 5 0 0.3 0 1500", 30, 20_000),
        ("slow", "1 0 0 0 50000 1500", 3, 20_000),
        ("in small pieces", "1 1 0 0 0 140", 10, 20_000),
        ("all of it", "5 10 0.02 0.1 200000 576", 20, 5_000),
    ] {
        let _wire = Wire::new(character);
        let receiver = Receiver::builder().address("10.99.0.1:0").unwrap().answering(|_| Step::accept()).unwrap();
        let endpoint = receiver.endpoint().replace("10.99.0.1", "10.99.0.2");
        let client = client(Client::builder(&endpoint));
        for number in 0..count {
            let id = format!("M{number}");
            let sent = if number % 3 == 0 { message_of(&id, size) } else { message(&id).into_bytes() };
            assert_eq!(client.send(&sent).unwrap().control_id(), id, "{name}");
            assert_eq!(receiver.received().last(), Some(&sent), "{name}");
        }
        assert_eq!((receiver.connections(), receiver.received().len()), (1, count), "{name}");
        // What takes longer than it may ends in time, over this wire too, and its answer is nobody else's.
        let hasty = Duration::from_millis(20);
        let large = message_of("HASTY", 100 * size);
        let error = limited(hasty, || client.request(&large).timeout(hasty).send()).unwrap_err();
        assert!(error.is_timeout(), "{name}: {error:?}");
        assert_eq!(client.send(message("NEXT")).unwrap().control_id(), "NEXT", "{name}");
        let came = receiver.received().contains(&large);
        assert!(!came || error.delivery() == Delivery::Unknown, "{name}: {error:?}, and it came");
    }
}
