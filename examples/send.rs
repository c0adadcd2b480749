//! Sends a message and prints the acknowledgment's code and control ID.
//!
//! Without arguments it starts a receiver of its own and sends a sample to it. Standard output has one line for the message,
//! as `AA MSG00001`; everything else goes to standard error.

use std::error::Error as _;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use mllp_client::testing::Receiver;
use mllp_client::{Ack, Client, Delivery, ErrorKind};

/// Sends one HL7 v2 message over MLLP.
#[derive(Parser)]
#[command(after_help = "Exit status: 0 accepted, 1 refused, 2 usage, configuration or invalid message, \
                        3 not sent, 4 unknown, 5 committed")]
struct Arguments {
    /// The receiver, as mllp://host:2575; without it, one that is started here
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// A bundled message with invented people
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    sample: Option<Sample>,
    /// The limit of the whole call
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    timeout: Duration,
    /// A file with the message, or - for standard input; its lines are sent as segments
    file: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Sample {
    AdtA01,
    OruR01,
    OrmO01,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let message = match read(&arguments) {
        Ok(message) => message,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::from(2);
        }
    };
    let Some(endpoint) = &arguments.to else {
        return match Receiver::accepting() {
            Ok(receiver) => {
                eprintln!("sending to a receiver started here, {}", receiver.endpoint());
                send(&receiver.endpoint(), arguments.timeout, &message)
            }
            Err(error) => {
                eprintln!("no receiver can be started here: {error}");
                ExitCode::from(3)
            }
        };
    };
    send(endpoint, arguments.timeout, &message)
}

fn send(endpoint: &str, timeout: Duration, message: &[u8]) -> ExitCode {
    let result = Client::builder(endpoint).timeout(timeout).build().and_then(|client| client.send(message));
    let error = match result {
        Ok(ack) => {
            report(&ack);
            return ExitCode::SUCCESS;
        }
        Err(error) => error,
    };
    if let Some(nak) = error.nak() {
        report(nak);
    }
    eprintln!("{error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
    ExitCode::from(match (error.kind(), error.delivery()) {
        (ErrorKind::Config(_) | ErrorKind::InvalidMessage(_), _) => 2,
        (_, Delivery::Refused) => 1,
        (_, Delivery::NotSent) => 3,
        (_, Delivery::Unknown) => 4,
        (_, Delivery::Committed) => 5,
    })
}

/// The message, its segments ended by Carriage Returns.
fn read(arguments: &Arguments) -> Result<Vec<u8>, String> {
    let sample = match (arguments.sample, &arguments.to) {
        (None, None) => Some(Sample::AdtA01),
        (sample, _) => sample,
    };
    let text = match (&arguments.file, sample) {
        (Some(file), _) if file.as_os_str() == "-" => {
            let mut text = Vec::new();
            std::io::stdin().read_to_end(&mut text).map_err(|error| format!("standard input: {error}"))?;
            text
        }
        (Some(file), _) => std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?,
        (None, Some(Sample::AdtA01)) => include_bytes!("samples/adt-a01.hl7").to_vec(),
        (None, Some(Sample::OruR01)) => include_bytes!("samples/oru-r01.hl7").to_vec(),
        (None, Some(Sample::OrmO01)) => include_bytes!("samples/orm-o01.hl7").to_vec(),
        (None, None) => return Err("what is to be sent? Give a file, - or --sample; see --help".into()),
    };
    Ok(text
        .split(|byte| matches!(byte, b'\r' | b'\n'))
        .filter(|segment| !segment.is_empty())
        .flat_map(|segment| segment.iter().chain(b"\r"))
        .copied()
        .collect())
}

/// The line for standard output; what the receiver found wrong goes to standard error.
fn report(ack: &Ack) {
    println!("{} {}", ack.code(), ack.control_id());
    if let Some(text) = ack.text() {
        eprintln!("{}: {}", ack.code(), text.escape_debug());
    }
    for detail in ack.errors() {
        let parts = [
            ("error", detail.code()),
            ("severity", detail.severity()),
            ("at", detail.location()),
            ("text", detail.text()),
        ];
        for (name, part) in parts {
            if let Some(part) = part {
                eprintln!("  {name}: {}", part.escape_debug());
            }
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
