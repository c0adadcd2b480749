//! Sends a directory of messages from a pool of threads over four connections.
//!
//! One client for all: each thread takes a connection for its message and puts it back. Which
//! message arrives first is not said; for messages whose order matters, one connection and one
//! thread are the way (see `threads`). Standard output has one line for each message that was
//! accepted; a summary goes to standard error.

#[path = "common/ended.rs"]
mod ended;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use mllp_client::testing::Receiver;
use mllp_client::{Ack, Client, Delivery};
use rayon::prelude::*;

/// Sends every .hl7 file of a directory over MLLP, four at a time.
#[derive(Parser)]
struct Arguments {
    /// The receiver, as mllp://host:2575; without it, one that is started here
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// The directory; each file has one message, its lines are sent as segments
    #[arg(default_value = "examples/samples")]
    directory: PathBuf,
}

fn main() -> ExitCode {
    ended::exit_status(run(&Arguments::parse()))
}

/// Whether every message was accepted.
fn run(arguments: &Arguments) -> Result<bool, Box<dyn std::error::Error>> {
    let own = Receiver::accepting()?;
    let endpoint = arguments.to.clone().unwrap_or_else(|| own.endpoint());
    let client = Client::builder(&endpoint).max_connections(4).build()?;

    let mut files: Vec<PathBuf> =
        fs::read_dir(&arguments.directory)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "hl7"));
    // As many threads as connections: more would only wait for one.
    let threads = rayon::ThreadPoolBuilder::new().num_threads(4).build()?;
    let accepted = threads.install(|| files.par_iter().filter(|file| sent(&client, file)).count());

    let stats = client.stats();
    eprintln!("{accepted} of {} messages accepted, over {} connections", files.len(), stats.connections_opened);
    Ok(accepted == files.len())
}

fn sent(client: &Client, file: &Path) -> bool {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("{}: {error}", file.display());
            return false;
        }
    };
    let message: String = text.lines().flat_map(|segment| [segment, "\r"]).collect();
    match client.send(&message) {
        Ok(ack) => {
            report(file, &ack);
            true
        }
        Err(error) => {
            let advice = match error.delivery() {
                Delivery::NotSent => "send it again",
                Delivery::Unknown => "ask whether it arrived",
                Delivery::Committed => "it arrived; do not send it again",
                Delivery::Refused => "mend it first",
            };
            eprintln!("{}: {error} ({advice})", file.display());
            false
        }
    }
}

fn report(file: &Path, ack: &Ack) {
    println!("{} {} {}", ack.code(), ack.control_id(), file.display());
}
