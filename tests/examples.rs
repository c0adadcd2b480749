//! The examples, run as a user would: their lines, their exit status.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use common::dead_endpoint;
use mllp_client::AckCode;
use mllp_client::testing::{Receiver, Step};

/// An example that `cargo test` has built beside this test.
fn example(name: &str) -> Command {
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    Command::new(path.join("examples").join(name))
}

fn send(arguments: &[&str], input: &[u8]) -> Output {
    let mut process = example("send")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have ended without reading.
    let _ = process.stdin.take().unwrap().write_all(input);
    process.wait_with_output().unwrap()
}

fn told(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn without_arguments_it_sends_to_itself() {
    let (status, line, _) = told(&send(&[], b""));
    assert_eq!((status, &*line), (0, "AA MSG00001\n"));
}

#[test]
fn every_end_has_its_status() {
    let invented = "MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|X1|P|2.5\nPID|1||42\r\n\nOBX|1\n";
    let committed = || Step::acknowledge(AckCode::CommitAccept).close();
    let refused = || Step::refuse(AckCode::ApplicationError, "no such ward");
    for (name, step, arguments, expected, line) in [
        ("accepted", Step::accept(), &["-"][..], 0, "AA X1\n"),
        ("a sample", Step::accept(), &["--sample", "oru-r01"], 0, "AA MSG00002\n"),
        ("another sample", Step::accept(), &["--sample", "orm-o01"], 0, "AA MSG00003\n"),
        ("refused", refused(), &["-"], 1, "AE X1\n"),
        ("unknown", Step::silence().close(), &["-"], 4, ""),
        ("late", Step::silence(), &["-", "--timeout", "0.2"], 4, ""),
        ("committed", committed(), &["-"], 5, ""),
        ("no such file", Step::accept(), &["/nowhere/to/be/found"], 2, ""),
        ("no message", Step::accept(), &[], 2, ""),
        ("no such sample", Step::accept(), &["--sample", "x"], 2, ""),
        ("no time", Step::accept(), &["-", "--timeout", "0"], 2, ""),
        ("negative time", Step::accept(), &["-", "--timeout=-1"], 2, ""),
    ] {
        let receiver = Receiver::scripted([step]).unwrap();
        let endpoint = receiver.endpoint();
        let output = send(&[&["--to", &endpoint], arguments].concat(), invented.as_bytes());
        let (status, printed, explained) = told(&output);
        assert_eq!((status, &*printed), (expected, line), "{name}: {explained}");
        assert_eq!(explained.is_empty(), expected == 0, "{name}: {explained}");
        if name == "refused" {
            assert!(explained.contains("no such ward") && explained.contains("207"), "{explained}");
        }
        if name == "accepted" {
            let sent = "MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|X1|P|2.5\rPID|1||42\rOBX|1\r";
            assert_eq!(receiver.received(), [sent.as_bytes()]);
        }
    }
    for (endpoint, input, expected) in
        [(dead_endpoint(), invented, 3), ("http://x".to_owned(), invented, 2), (dead_endpoint(), "hello", 2)]
    {
        let (status, printed, _) = told(&send(&["--to", &endpoint, "-"], input.as_bytes()));
        assert_eq!((status, &*printed), (expected, ""), "{endpoint}");
    }
}

#[test]
fn a_file_of_many_is_sent_in_order_up_to_the_first_failure() {
    let one = |id: &str| format!("MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|{id}|P|2.5\nPID|1||42\n");
    let file = format!("\u{FEFF}BHS|^~\\&|LAB\n{}\x0B{}\x1C\r\n{}BTS|3\n", one("X1"), one("X2"), one("X3"));
    let receiver = Receiver::accepting().unwrap();
    let (status, printed, explained) = told(&send(&["--to", &receiver.endpoint(), "-"], file.as_bytes()));
    assert_eq!((status, &*printed, &*explained), (0, "AA X1\nAA X2\nAA X3\n", ""));
    assert_eq!((receiver.connections(), receiver.received().len()), (1, 3));

    let receiver = Receiver::scripted([Step::accept(), Step::refuse(AckCode::ApplicationError, "no")]).unwrap();
    let (status, printed, explained) = told(&send(&["--to", &receiver.endpoint(), "-"], file.as_bytes()));
    assert_eq!((status, &*printed), (1, "AA X1\nAE X2\n"));
    assert!(explained.contains("message 2 of 3"), "{explained}");
    assert_eq!(receiver.received().len(), 2);
    assert_eq!(told(&send(&["--to", &receiver.endpoint(), "-"], b"\n\n")).0, 2);
}

#[test]
fn both_acknowledgments_are_printed_as_they_come() {
    let (status, printed, explained) = told(&example("enhanced").output().unwrap());
    let codes: Vec<_> = printed.lines().map(|line| &line[..7]).collect();
    assert_eq!((status, codes), (0, vec!["CA MSG1", "AA MSG1"]), "{explained}");
    let receiver = Receiver::answering(|_| Step::acknowledge(AckCode::CommitAccept).close()).unwrap();
    let (status, printed, explained) =
        told(&example("enhanced").args(["--to", &receiver.endpoint()]).output().unwrap());
    assert!(status == 1 && printed.starts_with("CA") && explained.contains("do not send it again"), "{explained}");
}

#[test]
fn a_batch_is_acknowledged_by_message() {
    let (status, printed, explained) = told(&example("batch").output().unwrap());
    assert_eq!((status, &*printed), (0, "AA MSG00001\nAA MSG00002\nAA MSG00003\n"), "{explained}");
    let receiver = Receiver::answering(|_| Step::bytes(common::acknowledgment("AR", "B7"))).unwrap();
    let arguments = ["--to", &receiver.endpoint(), "--control-id", "B7"].map(str::to_owned);
    let (status, printed, explained) = told(&example("batch").args(arguments).output().unwrap());
    assert_eq!((status, &*printed, explained.lines().count()), (1, "", 3), "{explained}");
}

#[test]
#[cfg(feature = "charset")]
fn a_site_of_its_own_is_understood() {
    let (status, printed, explained) = told(&example("legacy_site").output().unwrap());
    assert_eq!((status, &*printed), (0, "AA MSG1\nGr\u{fc}\u{df} Gott, J\u{d6}RG\n"), "{explained}");
}

#[test]
fn receive_prints_what_send_sends() {
    let mut receiver =
        example("receive").arg("127.0.0.1:0").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(receiver.stderr.take().unwrap()).read_line(&mut said).unwrap();
    let endpoint = said.split_whitespace().find_map(|word| word.strip_prefix("mllp://")).unwrap().trim_end_matches(';');
    let (status, line, _) = told(&send(&["--to", &format!("mllp://{endpoint}"), "--sample", "oru-r01"], b""));
    let mut printed = String::new();
    BufReader::new(receiver.stdout.take().unwrap()).read_line(&mut printed).unwrap();
    receiver.kill().unwrap();
    receiver.wait().unwrap();
    assert_eq!((status, &*line), (0, "AA MSG00002\n"));
    assert!(printed.starts_with("MSH|^~\\&|LAB|NORTH|"), "{printed}");
}

#[test]
fn a_directory_goes_through_a_pool() {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..20 {
        let message = format!("MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|X{number}|P|2.5\nPID|1||42\n");
        std::fs::write(directory.path().join(format!("{number}.hl7")), message).unwrap();
    }
    std::fs::write(directory.path().join("readme.txt"), "no message").unwrap();
    let refuses_one = |message: &[u8]| match String::from_utf8_lossy(message).contains("|X7|") {
        true => Step::refuse(AckCode::ApplicationReject, "on purpose"),
        false => Step::accept(),
    };
    let receiver = Receiver::answering(refuses_one).unwrap();
    let arguments = ["--to", &receiver.endpoint(), directory.path().to_str().unwrap()].map(str::to_owned);
    let (status, printed, explained) = told(&example("rayon_pool").args(arguments).output().unwrap());
    assert_eq!((status, printed.lines().count()), (1, 19), "{explained}");
    assert!(
        printed.lines().all(|line| line.starts_with("AA X")) && explained.contains("7.hl7: the receiver answered AR")
    );
    assert!(explained.contains("19 of 20") && receiver.received().len() == 20 && receiver.connections() <= 4);
}

#[test]
fn threads_share_one_connection() {
    let receiver = Receiver::accepting().unwrap();
    let (status, printed, explained) = told(&example("threads").args(["--to", &receiver.endpoint()]).output().unwrap());
    assert_eq!(status, 0, "{explained}");
    assert!(printed.ends_with("20 messages, 1 connection(s)\n"), "{printed}");
    for device in 1..=4 {
        let own = printed.lines().filter_map(|line| line.strip_prefix(&format!("AA DEVICE{device}-")));
        assert_eq!(own.collect::<Vec<_>>(), ["1", "2", "3", "4", "5"]);
    }
    assert_eq!((receiver.connections(), receiver.received().len()), (1, 20));
}

#[test]
fn observing_counts_what_happens() {
    let (status, printed, explained) = told(&example("observe").args(["--messages", "400"]).output().unwrap());
    assert_eq!(status, 0, "{explained}");
    assert!(printed.starts_with("accepted 392, refused 8, failed 0\n"), "{printed}");
    let slowest: u64 = printed.split_whitespace().last().unwrap().parse().unwrap();
    assert!(slowest >= 20_000, "the receiver lets some wait for 20 ms: {printed}");
}

#[test]
#[cfg(feature = "tls")]
fn send_speaks_tls_as_it_is_told() {
    use common::certificates::{Authority, NAME, Validity};

    let authority = Authority::new("Authority");
    let server = authority.issue(&[NAME], Validity::Now);
    let client = authority.issue(&["client.test"], Validity::Now);
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = files.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (ca, cert, key) = (file("ca", &authority.pem()), file("cert", &client.chain), file("key", &client.key));
    let tls = server.server().require_client_certificate(authority.pem().as_bytes()).unwrap();
    let receiver = Receiver::builder().tls(tls.only_tls12()).answering(|_| Step::accept()).unwrap();
    let endpoint = receiver.endpoint();
    let usual = ["--to", &endpoint, "--sample", "adt-a01"];
    let identity = ["--cert", &cert, "--key", &key];
    #[cfg(target_os = "linux")]
    {
        use openssl::{pkcs12::Pkcs12, pkey::PKey, x509::X509};
        let archive = Pkcs12::builder()
            .pkey(&PKey::private_key_from_pem(client.key.as_bytes()).unwrap())
            .cert(&X509::from_pem(client.chain.as_bytes()).unwrap())
            .build2("open sesame")
            .unwrap();
        let path = files.path().join("p12");
        std::fs::write(&path, archive.to_der().unwrap()).unwrap();
        for (passphrase, expected) in [("open sesame", 0), ("open simsim", 2)] {
            let output = example("send")
                .args(usual)
                .args(["--ca", &ca, "--server-name", NAME, "--pkcs12", path.to_str().unwrap()])
                .env("MLLP_PKCS12_PASSPHRASE", passphrase)
                .output()
                .unwrap();
            assert_eq!(told(&output).0, expected, "{output:?}");
        }
    }
    for (name, arguments, expected) in [
        ("all", [&["--ca", &ca, "--server-name", NAME], &identity[..]].concat(), 0),
        ("insecure", [&["--insecure"], &identity[..]].concat(), 0),
        ("no authority", [&["--server-name", NAME], &identity[..]].concat(), 3),
        ("no name", [&["--ca", &ca], &identity[..]].concat(), 3),
        ("no identity", vec!["--ca", &ca, "--server-name", NAME], 3),
        ("half an identity", vec!["--cert", &cert], 2),
        ("no such file", vec!["--ca", "/nowhere/to/be/found"], 2),
        ("a key as authority", vec!["--ca", &key], 2),
        ("a key as PKCS#12", vec!["--pkcs12", &key], 2),
    ] {
        let (status, printed, explained) = told(&send(&[&usual, &arguments[..]].concat(), b""));
        assert_eq!(
            (status, &*printed),
            (expected, if expected == 0 { "AA MSG00001\n" } else { "" }),
            "{name}: {explained}"
        );
    }
}

/// Pushes two files of messages and forwards them to a receiver that refuses one, with an example
/// and the arguments that name its storage.
#[cfg(any(feature = "sqlite", feature = "redis"))]
fn stores_and_forwards(name: &str, storage: &[&str]) {
    let receiver = Receiver::answering(|message| match String::from_utf8_lossy(message).contains("|X2|") {
        true => Step::refuse(AckCode::ApplicationReject, "on purpose"),
        false => Step::accept(),
    })
    .unwrap();
    let to = receiver.endpoint();
    let files = tempfile::tempdir().unwrap();
    let message = |id: &str| format!("MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|{id}|P|2.5\rPID|1||42\r");
    let paths = [["X1", "X2"], ["X3", "X4"]].map(|[first, second]| {
        let path = files.path().join(first);
        std::fs::write(&path, message(first) + &message(second)).unwrap();
        path.to_str().unwrap().to_owned()
    });
    let run =
        |arguments: &[&str]| told(&example(name).args(storage).args(["--to", &to]).args(arguments).output().unwrap());
    let (status, printed, explained) = run(&["push", &paths[0], &paths[1]]);
    assert_eq!((status, &*printed), (0, "pushed X1\npushed X2\npushed X3\npushed X4\n"), "{explained}");
    let (status, printed, explained) = run(&["forward", "--rejections", "0"]);
    assert_eq!((status, &*printed), (0, "delivered X1\ndead X2 AR\ndelivered X3\ndelivered X4\n"), "{explained}");
    assert_eq!(receiver.received(), ["X1", "X2", "X3", "X4"].map(|id| message(id).into_bytes()));
    let (status, printed, explained) = run(&["push", "/nowhere/to/be/found"]);
    assert_eq!((status, &*printed, explained.lines().count()), (2, "", 1), "{explained}");
    // Nothing waits.
    assert_eq!(run(&["forward"]).0, 0);
}

#[test]
#[cfg(feature = "sqlite")]
fn a_file_stores_and_forwards() {
    let directory = tempfile::tempdir().unwrap();
    stores_and_forwards("store_and_forward", &["--db", directory.path().join("outbox.db").to_str().unwrap()]);
}

#[test]
fn an_audit_trail_has_a_line_for_each_message() {
    let (status, printed, explained) = told(&example("audit").output().unwrap());
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!((status, lines.len()), (0, 4), "{explained}");
    for (number, line) in lines.iter().enumerate() {
        let message = format!("\"message\":\"MSG{}\"", number + 1);
        let end = if number == 2 { "\"delivery\":\"Refused\",\"advice\":\"SeeRefusal\"}" } else { "\"ack\":\"AA\"}" };
        assert!(line.starts_with("{\"receiver\":\"mllp://127.0.0.1:") && line.contains(&message), "{line}");
        assert!(line.ends_with(end) && !line.contains("EXAMPLE"), "{line}");
    }
}

#[test]
#[cfg(feature = "redis")]
fn redis_stores_and_forwards() {
    let Some(redis) = common::redis::Redis::start() else { return };
    stores_and_forwards("redis_outbox", &["--redis", &redis.url(), "--destination", "ehr"]);
}
