//! Watches a client through its events: how long exchanges take, and what goes wrong.
//!
//! The observer is called on the sending threads, in the middle of their calls, so it does no more
//! than count; it is all that a program needs to feed its own metrics. What it is told is metadata,
//! never content.

#[path = "common/ended.rs"]
mod ended;

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use clap::Parser;
use hdrhistogram::Histogram;
use mllp_client::testing::{Receiver, Step};
use mllp_client::{AckCode, Client, Event};

/// Sends messages of invented people, and prints how long they took and what failed.
#[derive(Parser)]
struct Arguments {
    /// The receiver, as mllp://host:2575; without it, one that is started here, which refuses some
    /// and lets some wait
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// How many messages are sent, over four connections
    #[arg(long, default_value_t = 1000)]
    messages: u32,
}

/// What has been seen so far.
struct Seen {
    /// Microseconds from the beginning of a call to its acceptance, up to a minute, to three
    /// digits.
    latency: Histogram<u64>,
    connects: u32,
    connect_failures: u32,
    disconnects: u32,
    bytes: usize,
}

fn main() -> ExitCode {
    ended::exit_status(run(&Arguments::parse()).map(|()| true))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let own = moody()?;
    let endpoint = arguments.to.clone().unwrap_or_else(|| own.endpoint());
    let seen = Arc::new(Mutex::new(Seen {
        latency: Histogram::new_with_bounds(1, 60_000_000, 3)?,
        connects: 0,
        connect_failures: 0,
        disconnects: 0,
        bytes: 0,
    }));
    let client = Client::builder(&endpoint)
        .max_connections(4)
        .on_event({
            let seen = Arc::clone(&seen);
            move |event| {
                let mut seen = seen.lock().expect("counting does not panic");
                match event {
                    Event::Connected { .. } => seen.connects += 1,
                    Event::ConnectFailed { error, attempt, retry_in, .. } => {
                        seen.connect_failures += 1;
                        eprintln!("attempt {attempt}: {error}; next in {retry_in:?}");
                    }
                    Event::Disconnected { .. } => seen.disconnects += 1,
                    Event::Sent { bytes, .. } => seen.bytes += bytes,
                    Event::Acknowledged { elapsed, .. } => {
                        seen.latency.saturating_record(elapsed.as_micros().try_into().unwrap_or(u64::MAX));
                    }
                    // Events may be added; an observer passes over what it does not know.
                    _ => {}
                }
            }
        })
        .build()?;
    thread::scope(|scope| {
        for first in 0..4 {
            let client = &client;
            scope.spawn(move || {
                for number in (first..arguments.messages).step_by(4) {
                    // What fails is told to the observer, and counted.
                    let _ = client.send(format!(
                        "MSH|^~\\&|LAB|NORTH|EHR|NORTH|20260101120000||ORU^R01|M{number}|P|2.5\r\
                         PID|1||4711^^^NORTH||EXAMPLE^EMIL\r"
                    ));
                }
            });
        }
    });
    print(&client, &seen.lock().expect("counting does not panic"));
    Ok(())
}

fn print(client: &Client, seen: &Seen) {
    let stats = client.stats();
    println!("accepted {}, refused {}, failed {}", stats.acknowledged, stats.refused, stats.failed);
    println!("{} bytes sent over {} connections", seen.bytes, seen.connects);
    println!("{} failures to connect, {} connections ended", seen.connect_failures, seen.disconnects);
    println!("time to acceptance, in microseconds:");
    for quantile in [0.5, 0.9, 0.99, 0.999, 1.0] {
        println!("{:>8.1} % {:>8}", quantile * 100.0, seen.latency.value_at_quantile(quantile));
    }
}

/// A receiver that lets every hundredth message wait and refuses every fiftieth.
fn moody() -> std::io::Result<Receiver> {
    Receiver::answering(|message| {
        let id = String::from_utf8_lossy(message).split('|').nth(9).unwrap_or_default().to_owned();
        match id.trim_start_matches('M').parse::<u32>().unwrap_or_default() % 100 {
            49 | 99 => Step::refuse(AckCode::ApplicationError, "on purpose"),
            50 => Step::accept().after(Duration::from_millis(20)),
            _ => Step::accept(),
        }
    })
}
