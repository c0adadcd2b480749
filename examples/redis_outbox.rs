//! Stores messages in Redis and forwards them, from several machines: run `forward` twice, side by
//! side, and one forwards while the other stands by, to take over when the first has ended.

#[path = "common/ended.rs"]
mod ended;
#[path = "common/forwarding.rs"]
mod forwarding;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use mllp_client::Endpoint;
use mllp_client::outbox::RedisOutbox;

/// Keeps messages in Redis until the receiver has acknowledged them.
#[derive(Parser)]
struct Arguments {
    /// The server
    #[arg(long, global = true, value_name = "URL", default_value = "redis://127.0.0.1:6379/")]
    redis: String,
    /// The queue's name there
    #[arg(long, global = true, value_name = "NAME", default_value = "receiver")]
    destination: String,
    /// The receiver, as mllp://host:2575
    #[arg(long, global = true, value_name = "URL", default_value = "mllp://127.0.0.1:2575")]
    to: String,
    /// After how many seconds the other takes over; no exchange lasts longer
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 45.0)]
    lease: f64,
    #[command(subcommand)]
    task: forwarding::Task,
}

fn main() -> ExitCode {
    ended::exit_status(run(&Arguments::parse()).map(|()| true))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let to: Endpoint = arguments.to.parse()?;
    let lease = Duration::try_from_secs_f64(arguments.lease)?;
    let outbox = RedisOutbox::open(&arguments.redis, &arguments.destination)?.lease(lease);
    forwarding::run(&arguments.task, outbox, &to.to_string())
}
