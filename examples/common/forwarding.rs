//! What the two examples of store and forward share: pushing files, and forwarding what waits, with
//! any outbox.

use std::error::Error;
use std::fs;
use std::io::{self, Read, Write};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use mllp_client::outbox::{ForwardEvent, Forwarder, ForwarderBuilder, Outbox};
use mllp_client::{Client, Delivery, messages};

#[derive(Subcommand)]
pub enum Task {
    /// Stores messages; prints `pushed CONTROL_ID` once each is safe
    Push {
        /// Files of messages, in whatever shape; `-` is standard input
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Sends what is stored, in order; prints `delivered CONTROL_ID` or `dead CONTROL_ID CODE` (a
    /// code of the receiver, UNKNOWN or INVALID)
    Forward {
        /// Go on for ever, instead of until nothing waits
        #[arg(long)]
        stay: bool,
        /// How often a message that is rejected (AR, CR) is tried again before it is dead
        #[arg(long, value_name = "TIMES", default_value_t = 3)]
        rejections: u32,
        /// After how many attempts without an answer a message is dead; without it, never
        #[arg(long, value_name = "TIMES")]
        unknown_attempts: Option<NonZeroU32>,
    },
}

pub fn run(task: &Task, outbox: impl Outbox + Clone + 'static, to: &str) -> Result<(), Box<dyn Error>> {
    match task {
        Task::Push { files } => files.iter().try_for_each(|file| push(&outbox, file)),
        Task::Forward { stay, rejections, unknown_attempts } => {
            let mut builder = Forwarder::builder(outbox, Client::new(to)?).rejections(*rejections);
            if let Some(most) = unknown_attempts {
                builder = builder.unknown_attempts(*most);
            }
            forward(builder.max_delay(Duration::from_secs(5)), *stay)
        }
    }
}

fn push(outbox: &impl Outbox, file: &PathBuf) -> Result<(), Box<dyn Error>> {
    let named = |problem: io::Error| format!("{}: {problem}", file.display());
    let mut content = Vec::new();
    match file.to_str() {
        Some("-") => io::stdin().read_to_end(&mut content).map_err(named)?,
        _ => fs::File::open(file).and_then(|mut file| file.read_to_end(&mut content)).map_err(named)?,
    };
    let mut count = 0;
    for found in messages::locate(&content) {
        let failed =
            |line: usize, problem: &dyn Error| format!("{}: line {line}: {}", file.display(), explained(problem));
        if let Some(problem) = found.problem {
            return Err(failed(problem.line, &problem.error).into());
        }
        let failed = |problem: &dyn Error| failed(found.line, problem);
        let entry = mllp_client::outbox::Entry::new(0, found.message.as_ref()).map_err(|problem| failed(&problem))?;
        outbox.push(&entry.message).map_err(|problem| failed(&problem))?;
        say(&format!("pushed {}", entry.control_id))?;
        count += 1;
    }
    if count == 0 { Err(format!("{}: no message in it", file.display()).into()) } else { Ok(()) }
}

fn forward(builder: ForwarderBuilder, stay: bool) -> Result<(), Box<dyn Error>> {
    let forwarder = builder.on_event(tell).start()?;
    loop {
        match forwarder.drain(Duration::from_secs(60)) {
            Ok(true) if !stay => break,
            Ok(true) => std::thread::park_timeout(Duration::from_secs(60)),
            Ok(false) => {}
            // The forwarder has told; it goes on once the storage does.
            Err(_) => std::thread::park_timeout(Duration::from_secs(1)),
        }
    }
    forwarder.stop(Duration::from_secs(10));
    Ok(())
}

fn tell(event: &ForwardEvent<'_>) {
    // Where nobody reads any more, the messages are sent all the same.
    let _ = match event {
        ForwardEvent::Delivered { entry, .. } => say(&format!("delivered {}", entry.control_id)),
        ForwardEvent::Dead { entry, error } => {
            eprintln!("{}: {}", entry.control_id, explained(error));
            let code = match error.delivery() {
                Delivery::Unknown => "UNKNOWN",
                _ => error.nak().map_or("INVALID", |nak| nak.code().as_str()),
            };
            say(&format!("dead {} {code}", entry.control_id))
        }
        ForwardEvent::Retrying { entry, error, retry_in } => {
            eprintln!("{}: {}; again in {retry_in:?}", entry.control_id, explained(error));
            Ok(())
        }
        ForwardEvent::OutboxFailed { error } => {
            eprintln!("{}", explained(error));
            Ok(())
        }
        _ => Ok(()),
    };
}

/// A line that is out when this returns.
fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

fn explained(problem: &dyn Error) -> String {
    let mut words = problem.to_string();
    let mut cause = problem.source();
    while let Some(beneath) = cause {
        words.push_str(": ");
        words.push_str(&beneath.to_string());
        cause = beneath.source();
    }
    words
}
