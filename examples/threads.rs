//! Sends from several threads over one connection.
//!
//! Most receivers take one connection from a sender. The threads share it by taking turns, in order
//! of arrival: each thread's own messages arrive in its order, those of different threads in
//! between each other. Standard output has one line for each message; the last line counts.

#[path = "common/ended.rs"]
mod ended;

use std::process::ExitCode;
use std::thread;

use clap::Parser;
use mllp_client::testing::Receiver;
use mllp_client::{Client, Error};

/// Sends results of invented people from several threads over one connection.
#[derive(Parser)]
struct Arguments {
    /// The receiver, as mllp://host:2575; without it, one that is started here
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// How many threads send
    #[arg(long, default_value_t = 4)]
    threads: usize,
    /// How many messages each of them sends
    #[arg(long, default_value_t = 5)]
    messages: usize,
}

fn main() -> ExitCode {
    ended::exit_status(run(&Arguments::parse()).map(|()| true))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let own = Receiver::accepting()?;
    let endpoint = arguments.to.clone().unwrap_or_else(|| own.endpoint());
    let client = Client::new(&endpoint)?;
    let devices: Vec<Result<(), Error>> = thread::scope(|scope| {
        let devices: Vec<_> = (1..=arguments.threads)
            .map(|device| {
                let client = &client;
                scope.spawn(move || measure(client, device, arguments.messages))
            })
            .collect();
        devices.into_iter().map(|device| device.join().expect("a device does not panic")).collect()
    });
    devices.into_iter().collect::<Result<Vec<()>, Error>>()?;
    let stats = client.stats();
    println!("{} messages, {} connection(s)", stats.acknowledged, stats.connections_opened);
    Ok(())
}

/// What one device has to say, in its order. It stops at the first failure.
fn measure(client: &Client, device: usize, messages: usize) -> Result<(), Error> {
    for number in 1..=messages {
        let id = format!("DEVICE{device}-{number}");
        let ack = client.send(format!(
            "MSH|^~\\&|DEVICE{device}|WARD|EHR|NORTH|20260101120000||ORU^R01^ORU_R01|{id}|P|2.5.1\r\
             PID|1||4711^^^NORTH||EXAMPLE^ELLA\r\
             OBX|1|NM|8867-4^Heart rate^LN||{}|/min\r",
            60 + number
        ))?;
        println!("{} {}", ack.code(), ack.control_id());
    }
    Ok(())
}
