//! A receiver for trying things out: prints what it gets and accepts it.

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;

use clap::Parser;
use mllp_client::testing::{Receiver, Step};

/// Accepts HL7 v2 messages over MLLP and prints them; not for real patients' data.
#[derive(Parser)]
struct Arguments {
    /// The address to listen on
    #[arg(default_value = "127.0.0.1:2575")]
    address: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let receiver = Receiver::builder().address(&*arguments.address).and_then(|builder| builder.answering(accept));
    match receiver {
        Ok(receiver) => {
            eprintln!("listening on {}; end with Ctrl-C", receiver.endpoint());
            loop {
                thread::park();
            }
        }
        Err(error) => {
            eprintln!("{}: {error}", arguments.address);
            ExitCode::FAILURE
        }
    }
}

fn accept(message: &[u8]) -> Step {
    let lines = String::from_utf8_lossy(message).replace('\r', "\n");
    match writeln!(io::stdout().lock(), "{lines}") {
        Ok(()) => Step::accept(),
        // Who accepts has to have it.
        Err(error) => Step::refuse(mllp_client::AckCode::ApplicationError, &error.to_string()),
    }
}
