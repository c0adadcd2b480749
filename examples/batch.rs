//! Sends a file of messages as one batch, and prints what became of each.
//!
//! Standard output has one line for each message, as `AA MSG00001`; everything else goes to
//! standard error.

#[path = "common/ended.rs"]
mod ended;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mllp_client::testing::{Receiver, Step};
use mllp_client::{Batch, Client, messages};

/// Sends the messages of a file between BHS and BTS, in one frame.
#[derive(Parser)]
struct Arguments {
    /// The receiver, as mllp://host:2575; without it, one that is started here
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// The Batch Control ID (BHS-11)
    #[arg(long, default_value = "BATCH1")]
    control_id: String,
    /// A file with messages, in whatever shape; without it, three samples
    file: Option<PathBuf>,
}

fn main() -> ExitCode {
    ended::exit_status(run(&Arguments::parse()))
}

/// Whether every message was accepted.
fn run(arguments: &Arguments) -> Result<bool, Box<dyn std::error::Error>> {
    let own = Receiver::answering(one_for_each)?;
    let endpoint = arguments.to.clone().unwrap_or_else(|| own.endpoint());
    let text = match &arguments.file {
        Some(file) => std::fs::read(file)?,
        None => [
            &include_bytes!("samples/adt-a01.hl7")[..],
            include_bytes!("samples/oru-r01.hl7"),
            include_bytes!("samples/orm-o01.hl7"),
        ]
        .concat(),
    };
    let mut batch = Batch::new(&arguments.control_id)?;
    for message in messages::split(&text) {
        batch.push(message)?;
    }
    let results = Client::new(&endpoint)?.send_batch(&batch)?;
    for (index, result) in results.iter().enumerate() {
        match result {
            Ok(ack) => println!("{} {}", ack.code(), ack.control_id()),
            Err(error) => eprintln!("message {}: {error}", index + 1),
        }
    }
    Ok(results.iter().all(Result::is_ok))
}

/// Answers a batch with an acknowledgment for each of its messages, together in a batch.
fn one_for_each(batch: &[u8]) -> Step {
    let acknowledgments: String = messages::split(batch)
        .map(|message| {
            let text = String::from_utf8_lossy(&message);
            let control_id = text.split('|').nth(9).unwrap_or_default();
            format!("MSH|^~\\&|EHR|NORTH|LAB|NORTH|20260101||ACK|{control_id}|P|2.5\rMSA|AA|{control_id}\r")
        })
        .collect();
    Step::frame(format!("BHS|^~\\&|EHR|NORTH|LAB|NORTH|20260101\r{acknowledgments}BTS\r"))
}
