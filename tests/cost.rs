//! What an exchange costs the system: calls, counted by `strace`, and resident memory, read from
//! `/proc`.
//!
//! Both are measured in a process of their own, which is this program started again. Where `strace`
//! or `/proc` is missing the measurement says that it was skipped, unless `MLLP_COST_REQUIRED` is
//! set.

mod common;

use std::process::Command;
use std::{env, fs};

use common::{LONG, client, connection, message_of};
use mllp_client::testing::Receiver;

const EXCHANGES: u64 = 1000;
const CALLS_EACH: u64 = 3;
const CALLS_BESIDES: u64 = 100;

/// How often the calls are counted, if there were too many.
const TRIES: usize = 3;
const LARGE: usize = 10_000_000;
const MEMORY_BESIDES: usize = 2 * 1024 * 1024;

fn main() {
    let arguments: Vec<String> = env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[1..] {
        ["exchange", endpoint, count] => exchange(endpoint, count.parse().unwrap()),
        ["send", endpoint, count] => send(endpoint, count.parse().unwrap()),
        ["memory", endpoint] => memory(endpoint),
        // So that test runners which ask for a list get one.
        [.., "--list"] | ["--list", ..] => println!("cost: test"),
        // Whatever else the test runner was given concerns the tests of other programs.
        _ => {
            system_calls();
            resident_memory();
            println!("2 passed, 0 failed");
        }
    }
}

fn exchange(endpoint: &str, count: u64) {
    let mut connection = connection(endpoint, LONG);
    let message = message_of("1", 1000);
    for _ in 0..count {
        connection.exchange(&message).unwrap();
    }
}

fn send(endpoint: &str, count: u64) {
    let client = client(endpoint, LONG);
    let message = message_of("1", 1000);
    client.connect().unwrap();
    for number in 0..count {
        client.send(with_control_id(&message, number)).unwrap();
    }
}

/// The message, with a control ID of its own.
fn with_control_id(message: &[u8], number: u64) -> Vec<u8> {
    let text = String::from_utf8(message.to_vec()).unwrap();
    text.replacen("|1|P|", &format!("|{number}|P|"), 1).into_bytes()
}

/// Prints the peak of an idle client, and that after a large message.
fn memory(endpoint: &str) {
    let client = client(endpoint, LONG);
    client.send(message_of("1", 1000)).unwrap();
    let idle = peak();
    let message = message_of("2", LARGE);
    client.send(&message).unwrap();
    println!("{idle} {} {}", peak(), message.len());
}

/// The largest resident size so far, in bytes.
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

fn missing(what: &str) {
    assert!(env::var_os("MLLP_COST_REQUIRED").is_none(), "{what}");
    println!("skipped: {what}");
}

fn system_calls() {
    if !Command::new("strace").arg("-V").output().is_ok_and(|output| output.status.success()) {
        return missing("no strace on this machine");
    }
    for kind in ["exchange", "send"] {
        let receiver = Receiver::accepting().unwrap();
        let calls = |count: u64| {
            let (endpoint, count) = (receiver.endpoint(), count.to_string());
            // The client is on the main thread, the only one that strace then follows.
            let output = Command::new("strace")
                .arg("-c")
                .arg(env::current_exe().unwrap())
                .args([kind, &endpoint, &count])
                .output()
                .unwrap();
            let report = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success(), "{report}");
            let total = report.lines().find(|line| line.ends_with(" total")).unwrap();
            total.split_whitespace().nth(3).unwrap().parse::<u64>().unwrap()
        };
        let most = EXCHANGES * CALLS_EACH + CALLS_BESIDES;
        let mut warm = u64::MAX;
        // A busy machine adds some: an answer comes in two pieces, a wait is broken off.
        for _ in 0..TRIES {
            warm = warm.min(calls(EXCHANGES + 1) - calls(1));
            if warm <= most {
                break;
            }
        }
        println!("{kind}: {warm} system calls for {EXCHANGES} warm exchanges of 1 KB");
        assert!((EXCHANGES * CALLS_EACH..=most).contains(&warm), "{kind}: {warm}");
    }
}

fn resident_memory() {
    if !fs::exists("/proc/self/status").unwrap_or(false) {
        return missing("no /proc on this machine");
    }
    let receiver = Receiver::accepting().unwrap();
    let output = Command::new(env::current_exe().unwrap()).args(["memory", &receiver.endpoint()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    let [idle, peak, message] =
        printed.split_whitespace().map(|number| number.parse().unwrap()).collect::<Vec<usize>>()[..]
    else {
        panic!("{printed}")
    };
    println!("a message of {message} bytes raised the peak of {idle} by {}", peak - idle);
    assert!(peak - idle <= message + MEMORY_BESIDES, "{printed}");
}
