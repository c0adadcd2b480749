//! Waits for both acknowledgments of the enhanced mode: the commit, that the receiving system has
//! the message safely, and then the application's verdict, which has a limit of its own.
//!
//! Standard output has one line for each acknowledgment, as `CA MSG1 after 3 ms`.

#[path = "common/ended.rs"]
mod ended;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use mllp_client::testing::{Receiver, Step};
use mllp_client::{AckCode, Client, Delivery};

/// Sends a message that asks for a commit and an application acknowledgment (MSH-15 and MSH-16 are
/// AL).
#[derive(Parser)]
struct Arguments {
    /// The receiver, as mllp://host:2575; without it, one that is started here and takes its time
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// How long the application may take after the commit
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    application_timeout: u64,
}

fn main() -> ExitCode {
    ended::exit_status(run(&Arguments::parse()))
}

/// Whether both acknowledgments came, and accept.
fn run(arguments: &Arguments) -> Result<bool, Box<dyn std::error::Error>> {
    let own = Receiver::answering(|_| {
        Step::acknowledge(AckCode::CommitAccept).then(Step::accept().after(Duration::from_millis(200)))
    })?;
    let endpoint = arguments.to.clone().unwrap_or_else(|| own.endpoint());
    let client = Client::builder(&endpoint)
        .timeout(Duration::from_secs(10))
        .application_timeout(Duration::from_secs(arguments.application_timeout))
        .build()?;

    let message = "MSH|^~\\&|LAB|NORTH|EHR|NORTH|20260101120000||ORU^R01^ORU_R01|MSG1|P|2.5.1|||AL|AL\r\
                   PID|1||4711^^^NORTH||EXAMPLE^ERNA\r\
                   OBX|1|NM|718-7^Hemoglobin^LN||13.5|g/dL\r";
    let begun = Instant::now();
    for ack in client.request(message).acks()? {
        match ack {
            Ok(ack) => println!("{} {} after {} ms", ack.code(), ack.control_id(), begun.elapsed().as_millis()),
            Err(error) => {
                eprintln!("{error:#}");
                if error.delivery() == Delivery::Committed {
                    eprintln!("the receiver has the message, do not send it again; ask for the application's verdict");
                }
                return Ok(false);
            }
        }
    }
    Ok(true)
}
