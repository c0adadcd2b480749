//! Whether the server that answers is the one that was written to: one that came back empty, or a
//! replica that took over without the last messages, is not.

use std::sync::Mutex;

use crate::locks::lock;
use crate::outbox::OutboxError;

/// The destination and its server, for errors.
#[derive(Clone, Copy)]
pub(super) struct Shown<'a> {
    pub(super) server: &'a str,
    pub(super) destination: &'a str,
}

#[derive(Default)]
pub(super) struct Lineage(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// The generation of the destination's keys, once it was seen.
    generation: Option<String>,
    /// The highest number of an entry that was seen.
    highest: u64,
    /// What was found to be missing.
    broken: Option<String>,
}

impl Lineage {
    /// The generation, and the highest number that was seen, for the scripts to compare.
    ///
    /// # Errors
    ///
    /// If the server was found to be another one, and nobody has said since to go on.
    pub(super) fn known(&self) -> Result<(String, u64), OutboxError> {
        let known = lock(&self.0);
        match &known.broken {
            Some(what) => Err(OutboxError::StorageReplaced { what: what.clone() }),
            None => Ok((known.generation.clone().unwrap_or_default(), known.highest)),
        }
    }

    /// An entry of this number was seen.
    pub(super) fn has_seen(&self, id: u64) {
        let mut known = lock(&self.0);
        known.highest = known.highest.max(id);
    }

    /// Compares what a server says on a new connection with what was known before it was asked
    /// (`highest`): its generation, the last number that it has given out, and how many pushes of
    /// this handle are not there.
    pub(super) fn compare(
        &self,
        highest: u64,
        (generation, last, lost): (String, u64, u64),
        server: Shown<'_>,
    ) -> Result<(), OutboxError> {
        let mut known = lock(&self.0);
        let missing = match &known.generation {
            Some(own) if *own != generation => Some("all that was stored there".to_owned()),
            Some(_) if lost > 0 => Some(format!("at least {lost} of the messages that this program has pushed")),
            Some(_) if last < highest => Some("the last messages".to_owned()),
            _ => None,
        };
        match missing {
            Some(missing) => {
                let what = broken(server, &missing);
                known.broken = Some(what.clone());
                Err(OutboxError::StorageReplaced { what })
            }
            None => {
                known.generation = Some(generation);
                Ok(())
            }
        }
    }

    /// A script has found that the server is another one.
    pub(super) fn break_off(&self, server: Shown<'_>) -> OutboxError {
        let what = broken(server, "the last messages, or all");
        lock(&self.0).broken = Some(what.clone());
        OutboxError::StorageReplaced { what }
    }

    /// Takes the server as it is.
    pub(super) fn forget(&self) {
        *lock(&self.0) = Known::default();
    }
}

fn broken(Shown { server, destination }: Shown<'_>, missing: &str) -> String {
    format!(
        "Redis at {server} came back without what it had stored for {destination:?}: {missing} (it was restarted without \
         its data, a replica has taken over that lacked it, or the destination was removed); push again what is missing, then \
         open the outbox again or tell it to go on"
    )
}
