//! Stores messages in a file and forwards them: what was pushed is delivered, whoever is killed in
//! between. Run `push` as often as you like, also while `forward` runs; kill either and start it
//! again.

#[path = "common/ended.rs"]
mod ended;
#[path = "common/forwarding.rs"]
mod forwarding;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mllp_client::Endpoint;
use mllp_client::outbox::SqliteOutbox;

/// Keeps messages in an SQLite file until the receiver has acknowledged them.
#[derive(Parser)]
struct Arguments {
    /// The file, made if it is not there
    #[arg(long, global = true, value_name = "FILE", default_value = "outbox.db")]
    db: PathBuf,
    /// The receiver, as mllp://host:2575: the destination in the file
    #[arg(long, global = true, value_name = "URL", default_value = "mllp://127.0.0.1:2575")]
    to: String,
    #[command(subcommand)]
    task: forwarding::Task,
}

fn main() -> ExitCode {
    ended::exit_status(run(&Arguments::parse()).map(|()| true))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let to: Endpoint = arguments.to.parse()?;
    let outbox = SqliteOutbox::open(&arguments.db, &to.to_string())?;
    forwarding::run(&arguments.task, outbox, &to.to_string())
}
