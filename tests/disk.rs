//! What a disk does to an outbox in a file: power that fails, a disk that is full, one that may not
//! be written.
//!
//! *Power.* A child pushes and settles under `strace`, whose record has every write, every
//! synchronisation and every answer of the outbox in their order. From it the files are made as a
//! power failure at some moment leaves them: what was synchronised is there, and of what was
//! not, any choice of sectors. At 200 such moments the outbox has to open, with everything that it
//! had answered for.
//!
//! *Full and read-only.* On a small file system of its own, in a namespace for mounts that this
//! program makes by starting itself again under `unshare`. Where a tool or the right to use it is
//! missing, a scene says that it was skipped, unless `MLLP_DISK_REQUIRED` is set.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::{self, Command, Stdio};
use std::time::Duration;
use std::{env, str};

use common::hang::{LIMIT, every_call_ends};
use common::{LONG, Seeded, message};
use mllp_client::outbox::{Outbox, OutboxError, Settlement, SqliteOutbox};
use rusqlite::Connection;

const SECTOR: usize = 512;
const CUTS: usize = 200;
const PUSHES: usize = 800;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["child", path] => child(path),
        ["play", "full"] => full(),
        ["play", "drained"] => drained(),
        ["play", "read-only"] => read_only(),
        // So that test runners which ask for a list get one.
        [.., "--list"] | ["--list", ..] => println!("power: test\nfull: test\ndrained: test\nread-only: test"),
        // Whatever else the test runner was given concerns the tests of other programs.
        _ => {
            let played = [
                power(),
                in_a_space_of_its_own("full"),
                in_a_space_of_its_own("drained"),
                in_a_space_of_its_own("read-only"),
            ];
            println!("{} passed, 0 failed", played.into_iter().filter(|played| *played).count());
        }
    }
}

fn skip(name: &str, why: &str) -> bool {
    assert!(env::var_os("MLLP_DISK_REQUIRED").is_none(), "{name}: {why}");
    println!("{name} ... skipped: {why}");
    false
}

/// Pushes, and delivers every second message, a line for each when it is safe. It ends without
/// closing the file.
fn child(path: &str) {
    let outbox = SqliteOutbox::open(path, "power").unwrap();
    let mut answers = io::stdout().lock();
    for number in 0..PUSHES {
        outbox.push(numbered(number).as_bytes()).unwrap();
        answers.write_all(b"p").unwrap();
        answers.flush().unwrap();
        if number % 2 == 1 {
            let claim = outbox.claim().unwrap().unwrap();
            outbox.settle(&claim, Settlement::Delivered).unwrap();
            answers.write_all(b"d").unwrap();
            answers.flush().unwrap();
        }
    }
    process::exit(0);
}

fn numbered(number: usize) -> String {
    message(&format!("N{number}"))
}

/// What the record has.
enum Step {
    Write { file: String, at: usize, bytes: Vec<u8> },
    Truncate { file: String, size: usize },
    Sync { file: String },
    Pushed,
    Delivered,
}

fn power() -> bool {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("outbox.db");
    let trace = directory.path().join("trace");
    drop(SqliteOutbox::open(&path, "power").unwrap());
    let before = fs::read(&path).unwrap();
    let traced = Command::new("strace")
        .args(["-y", "-xx", "-s", "10000000", "-e", "trace=write,pwrite64,ftruncate,fsync,fdatasync", "-o"])
        .arg(&trace)
        .arg(env::current_exe().unwrap())
        .args(["child", path.to_str().unwrap()])
        .stdout(Stdio::null())
        .status();
    if !traced.is_ok_and(|status| status.success()) {
        return skip("power", "it takes `strace` and the right to use it");
    }
    let steps: Vec<Step> = fs::read_to_string(&trace).unwrap().lines().filter_map(step).collect();
    let answers = steps.iter().filter(|step| matches!(step, Step::Pushed | Step::Delivered)).count();
    assert_eq!(answers, PUSHES + PUSHES / 2, "the record is whole");
    let mut chance = Seeded(1);
    let mut synchronised = BTreeMap::from([("outbox.db".to_owned(), before)]);
    let mut pending: Vec<&Step> = Vec::new();
    let (mut pushed, mut delivered) = (0, 0);
    let mut cuts: Vec<usize> = (0..CUTS).map(|_| chance.below(steps.len())).collect();
    cuts.sort_unstable();
    let mut done = 0;
    for (place, step) in steps.iter().enumerate() {
        match step {
            Step::Write { .. } | Step::Truncate { .. } => pending.push(step),
            Step::Sync { file: synced } => pending.retain(|step| match step {
                Step::Write { file, at, bytes } if file == synced => {
                    write(synchronised.entry(file.clone()).or_default(), *at, bytes);
                    false
                }
                Step::Truncate { file, size } if file == synced => {
                    synchronised.entry(file.clone()).or_default().resize(*size, 0);
                    false
                }
                _ => true,
            }),
            Step::Pushed => pushed += 1,
            Step::Delivered => delivered += 1,
        }
        while cuts.get(done) == Some(&place) {
            let mut files = synchronised.clone();
            for step in &pending {
                match step {
                    Step::Write { file, at, bytes } => {
                        for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                            if chance.below(2) == 0 {
                                write(files.entry(file.clone()).or_default(), at + index * SECTOR, sector);
                            }
                        }
                    }
                    Step::Truncate { file, size } if chance.below(2) == 0 => {
                        files.entry(file.clone()).or_default().resize(*size, 0);
                    }
                    _ => {}
                }
            }
            look(&files, pushed, delivered, place);
            done += 1;
        }
    }
    println!("power ... ok: {done} cuts among {} writes and synchronisations", steps.len() - answers);
    true
}

fn write(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if file.len() < at + bytes.len() {
        file.resize(at + bytes.len(), 0);
    }
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Opens what a power failure has left, and looks for everything that was answered for.
fn look(files: &BTreeMap<String, Vec<u8>>, pushed: usize, delivered: usize, place: usize) {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(directory.path().join(name), content).unwrap();
    }
    let path = directory.path().join("outbox.db");
    let outbox = SqliteOutbox::open(&path, "power").unwrap_or_else(|error| panic!("at {place}: {error:?}"));
    let reader = Connection::open(&path).unwrap();
    let mut query =
        reader.prepare("SELECT m.content FROM waiting w JOIN message m ON m.id = w.id ORDER BY w.id").unwrap();
    let waiting: Vec<Vec<u8>> = query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    // What was under way may have been done without having been answered for.
    let first =
        (delivered..=delivered + 1).find(|number| waiting.first().is_none_or(|it| *it == numbered(*number).as_bytes()));
    let first = first.unwrap_or_else(|| panic!("at {place}: {delivered} were delivered, and the head is another"));
    for (number, message) in (first..).zip(&waiting) {
        assert!(*message == numbered(number).as_bytes(), "at {place}: message {number} is another");
    }
    let last = first + waiting.len();
    assert!(last == pushed || last == pushed + 1, "at {place}: {pushed} were pushed, and there are {last}");
    let head = outbox.claim().unwrap();
    assert_eq!(head.map(|claim| claim.entry.message), waiting.first().cloned(), "at {place}");
}

/// A line of the record, if it concerns the outbox: `pwrite64(6</path/outbox.db-wal>, "\x37…", 24,
/// 8272) = 24`.
fn step(line: &str) -> Option<Step> {
    let (call, rest) = line.split_once('(')?;
    let (descriptor, rest) = rest.split_once('>')?;
    let (number, path) = descriptor.split_once('<')?;
    let arguments = rest.rsplit_once(") = ").map_or(rest, |(arguments, _)| arguments).trim_start_matches(", ");
    if call == "write" && number == "1" {
        return match &*bytes(arguments.split('"').nth(1)?) {
            b"p" => Some(Step::Pushed),
            b"d" => Some(Step::Delivered),
            _ => None,
        };
    }
    let path = String::from_utf8(if path.starts_with("\\x") { bytes(path) } else { path.into() }).ok()?;
    let file = Path::new(&path).file_name()?.to_str()?.to_owned();
    if !["outbox.db", "outbox.db-wal"].contains(&&*file) {
        return None;
    }
    match call {
        "pwrite64" => {
            let mut parts = arguments.rsplitn(3, ", ");
            let (at, _) = (parts.next()?.parse().ok()?, parts.next()?);
            Some(Step::Write { file, at, bytes: bytes(parts.next()?.trim_matches('"')) })
        }
        "ftruncate" => Some(Step::Truncate { file, size: arguments.trim().parse().ok()? }),
        "fsync" | "fdatasync" => Some(Step::Sync { file }),
        _ => None,
    }
}

/// Bytes as `strace -xx` writes them.
fn bytes(hexadecimal: &str) -> Vec<u8> {
    let digits = hexadecimal.as_bytes().chunks_exact(4);
    digits.map(|byte| u8::from_str_radix(str::from_utf8(&byte[2..]).unwrap(), 16).unwrap()).collect()
}

fn in_a_space_of_its_own(scene: &str) -> bool {
    let mount = ["sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"];
    let spaces = [&["--mount"][..], &["--map-root-user", "--mount"]];
    let Some(spaces) = spaces.iter().find(|spaces| run("unshare", &[spaces, &mount[..]].concat())) else {
        return skip(scene, "no file system of its own can be mounted here");
    };
    let program = env::current_exe().unwrap();
    assert!(run("unshare", &[spaces, &[program.to_str().unwrap(), "play", scene][..]].concat()), "{scene}");
    println!("{scene} ... ok");
    true
}

fn run(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).stdout(io::stderr()).status().is_ok_and(|status| status.success())
}

fn mounted(options: &str) {
    assert!(run("mount", &["-t", "tmpfs", "-o", options, "tmpfs", "/mnt"]));
}

fn remounted(options: &str) {
    assert!(run("mount", &["-o", &format!("remount,{options}"), "/mnt"]));
}

/// Every entry that was answered for is delivered, in order.
fn all_are_there(outbox: &SqliteOutbox, count: usize) {
    for number in 0..count {
        let claim = outbox.claim().unwrap().unwrap();
        assert_eq!(claim.entry.message, numbered(number).as_bytes());
        outbox.settle(&claim, Settlement::Delivered).unwrap();
    }
    assert_eq!(outbox.claim().unwrap(), None);
}

fn full() {
    mounted("size=1m");
    let outbox = SqliteOutbox::open("/mnt/outbox.db", "full").unwrap();
    let mut pushed = 0;
    let error = loop {
        match outbox.push(numbered(pushed).as_bytes()) {
            Ok(_) => pushed += 1,
            Err(error) => break error,
        }
    };
    assert!(pushed > 50 && matches!(error, OutboxError::Full { .. }), "{pushed}: {error:?}");
    assert!(error.to_string().contains("full"), "{error}");
    assert_eq!(outbox.pending().unwrap().waiting, pushed as u64, "what was there is there");
    // Another one, too, finds it so.
    let other = SqliteOutbox::open("/mnt/outbox.db", "full").unwrap();
    assert!(matches!(other.push(numbered(pushed).as_bytes()), Err(OutboxError::Full { .. })));
    assert!(matches!(
        SqliteOutbox::open("/mnt/another.db", "full"),
        Err(OutboxError::Full { .. } | OutboxError::Storage { .. })
    ));
    remounted("size=16m");
    outbox.push(numbered(pushed).as_bytes()).unwrap();
    all_are_there(&outbox, pushed + 1);
}

/// A disk that stays full is drained, whether what is delivered is kept or not, and takes as much
/// again after it. The rest of it is taken by somebody else.
fn drained() {
    for (size, keep) in [("1m", None), ("1m", Some(Duration::from_secs(600_000))), ("8m", None), ("8m", Some(LONG))] {
        mounted(&format!("size={size}"));
        let outbox = SqliteOutbox::open("/mnt/outbox.db", "drained").unwrap().keep_delivered(keep);
        let mut first = 0;
        for round in 0..2 {
            let mut pushed = first;
            let error = loop {
                match outbox.push(numbered(pushed).as_bytes()) {
                    Ok(_) => pushed += 1,
                    Err(error) => break error,
                }
            };
            assert!(pushed > first + 50 && matches!(error, OutboxError::Full { .. }), "{size} {round}: {error:?}");
            // Others fill what is left.
            let mut rest = fs::OpenOptions::new().append(true).create(true).open("/mnt/rest").unwrap();
            while rest.write_all(&[1; 512]).is_ok() {}
            for number in first..pushed {
                let claim = outbox.claim().unwrap().unwrap();
                assert_eq!(claim.entry.message, numbered(number).as_bytes());
                if number == first {
                    // Tried once more, dead, and discarded: all of it makes no more than a little room.
                    outbox
                        .settle(&claim, Settlement::Retry { after: Duration::ZERO, refused: true, why: "x" })
                        .unwrap();
                    let claim = outbox.claim().unwrap().unwrap();
                    outbox.settle(&claim, Settlement::Dead { why: "x" }).unwrap();
                    assert!(outbox.discard(claim.entry.id).unwrap());
                } else {
                    outbox.settle(&claim, Settlement::Delivered).unwrap();
                }
            }
            assert_eq!((outbox.claim().unwrap(), outbox.pending().unwrap().waiting), (None, 0));
            first = pushed;
            rest.set_len(0).unwrap();
            common::eventually("it goes on", || outbox.push(numbered(first).as_bytes()).is_ok());
            first += 1;
            let claim = outbox.claim().unwrap().unwrap();
            outbox.settle(&claim, Settlement::Delivered).unwrap();
        }
        drop(outbox);
        assert!(run("umount", &["/mnt"]));
    }
    // A reader of an older state, a large message that is refused, another start: none of it takes the
    // reserve.
    mounted("size=12m");
    let outbox = SqliteOutbox::open("/mnt/outbox.db", "drained").unwrap();
    let mut pushed = 0;
    while outbox.push(&common::message_of(&format!("N{pushed}"), 20_000)).is_ok() {
        pushed += 1;
    }
    let large = outbox.push(&common::message_of("large", 9_000_000));
    assert!(matches!(large, Err(OutboxError::Full { .. })), "{large:?}");
    let mut rest = fs::File::create("/mnt/rest").unwrap();
    while rest.write_all(&[1; 512]).is_ok() {}
    let reader = Connection::open("/mnt/outbox.db").unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM waiting").unwrap();
    let settle = |outbox: &SqliteOutbox| {
        let claim = outbox.claim().unwrap().unwrap();
        outbox.settle(&claim, Settlement::Delivered).inspect_err(|_| outbox.release())
    };
    let mut settled = 0;
    while settled < pushed && settle(&outbox).is_ok() {
        settled += 1;
    }
    drop(reader);
    drop(outbox);
    let outbox = SqliteOutbox::open("/mnt/outbox.db", "drained").unwrap();
    for number in settled..pushed {
        settle(&outbox).unwrap_or_else(|error| panic!("{number} of {pushed}: {error:?}"));
    }
    assert_eq!(outbox.pending().unwrap().waiting, 0);
    drop((outbox, rest));
    assert!(run("umount", &["/mnt"]));
    // Every call ends, and afterwards all goes on.
    mounted("size=4m");
    let open = || SqliteOutbox::open("/mnt/outbox.db", "drained").unwrap().timeout(LIMIT);
    let fill = || {
        let mut rest = fs::File::create("/mnt/rest").unwrap();
        while rest.write_all(&[1; 512]).is_ok() {}
    };
    let outcome = every_call_ends("full", open, fill, || fs::remove_file("/mnt/rest").unwrap());
    for call in ["claim", "pending", "hold", "unhold", "try_now", "resume"] {
        assert!(outcome.contains(&(call, true)), "{call}: {outcome:?}");
    }
}

fn read_only() {
    mounted("size=16m");
    let outbox = SqliteOutbox::open("/mnt/outbox.db", "read-only").unwrap();
    outbox.push(numbered(0).as_bytes()).unwrap();
    drop(outbox);
    remounted("ro");
    for path in ["/mnt/outbox.db", "/mnt/new.db"] {
        let error = SqliteOutbox::open(path, "read-only").unwrap_err();
        assert!(matches!(error, OutboxError::Storage { .. }), "{error:?}");
        assert!(error.to_string().contains("cannot be written"), "{error}");
    }
    remounted("rw");
    let outbox = SqliteOutbox::open("/mnt/outbox.db", "read-only").unwrap();
    outbox.push(numbered(1).as_bytes()).unwrap();
    all_are_there(&outbox, 2);
}
