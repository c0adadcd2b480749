//! Sends to a site with habits of its own: frames between STX and ETX, without a Carriage Return
//! behind, and text in Latin-1.
//!
//! Standard output has one line for the message, as `AA MSG1`, and the receiver's text, read in the
//! site's character set.

#[path = "common/ended.rs"]
mod ended;

use std::process::ExitCode;

use clap::Parser;
use mllp_client::Client;
use mllp_client::frame::Framing;
use mllp_client::testing::{Receiver, Step};

const STX: u8 = 0x02;
const ETX: u8 = 0x03;

/// Sends a message in frames of STX and ETX, and in Latin-1.
#[derive(Parser)]
struct Arguments {
    /// The receiver, as mllp://host:2575; without it, one that is started here
    #[arg(long, value_name = "URL")]
    to: Option<String>,
}

fn main() -> ExitCode {
    ended::exit_status(run(&Arguments::parse()).map(|()| true))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let framing = Framing::custom(&[STX], &[ETX])?;
    let own = Receiver::builder().framing(framing.clone()).answering(welcome)?;
    let endpoint = arguments.to.clone().unwrap_or_else(|| own.endpoint());
    // The site's messages leave MSH-18 empty, and so do its answers.
    let client = Client::builder(&endpoint).framing(framing).charset("8859/1").build()?;
    let ack = client.send_text(
        "MSH|^~\\&|LAB|NORTH|HIS|OLD|20260101120000||ADT^A04|MSG1|P|2.2\r\
         PID|1||4711||BEISPIEL^J\u{d6}RG\r",
    )?;
    println!("{} {}", ack.code(), ack.control_id());
    println!("{}", ack.text().unwrap_or_default());
    Ok(())
}

/// Accepts in Latin-1 what came in Latin-1.
fn welcome(message: &[u8]) -> Step {
    let name = message.split(|&byte| byte == b'^').next_back().unwrap_or_default();
    Step::frame([b"MSH|^~\\&|HIS|OLD|LAB|NORTH|20260101||ACK|1|P|2.2\rMSA|AA|MSG1|Gr\xFC\xDF Gott, ", name].concat())
}
