//! What happens to a message on its way: the event for an observer, and its line in the log.

use std::fmt::Display;
use std::time::Duration;

use super::{Entry, OutboxError, Summary};
use crate::error::Error;
use crate::hl7::ack::Ack;

/// Something that happened to a message on its way, or to its destination, for an observer set with
/// [`on_event`](super::ForwarderBuilder::on_event). The entry of an event names its destination.
#[derive(Debug)]
#[non_exhaustive]
pub enum ForwardEvent<'a> {
    /// The receiver has accepted the message (AA or CA), and the outbox has recorded that.
    Delivered {
        /// The entry.
        entry: &'a Entry,
        /// Its acknowledgment: of a message that was committed, and whose application
        /// acknowledgment failed to come, the commit accept. Without one in MLLP release 2
        /// alone, where a commit block is all that came.
        ack: Option<&'a Ack>,
    },
    /// An attempt failed, and there will be another.
    Retrying {
        /// The entry, as it was before this attempt.
        entry: &'a Entry,
        /// Why it failed.
        error: &'a Error,
        /// In what time it is tried again.
        retry_in: Duration,
    },
    /// It is not sent again before somebody has decided, since it is not known whether the receiver
    /// has it, or a limit is reached at which it is to be held; those behind it wait.
    Held {
        /// The entry, as it was before this attempt.
        entry: &'a Entry,
        /// Why it failed.
        error: &'a Error,
    },
    /// It is not sent again; those behind it go on.
    Dead {
        /// The entry, as it was before this attempt.
        entry: &'a Entry,
        /// Why it failed.
        error: &'a Error,
    },
    /// The outbox has stopped the entry at the head: it is held, since the holder that was sending
    /// it has ended, or dead, since its message is damaged.
    Stopped {
        /// The entry, as it is now.
        entry: &'a Summary,
    },
    /// The destination is paused, by this forwarder: by [`pause`](super::Forwarder::pause), or
    /// because a message is dead.
    #[non_exhaustive]
    Paused {
        /// Its name.
        destination: &'a str,
    },
    /// This forwarder was told to go on.
    #[non_exhaustive]
    Resumed {
        /// The name of the destination.
        destination: &'a str,
    },
    /// The result of a message was not recorded: another holder has taken over, which will send
    /// the message again unless it is dead or held there; or somebody has discarded it meanwhile,
    /// or held it before it was sent.
    ClaimLost {
        /// The entry.
        entry: &'a Entry,
    },
    /// The outbox failed; it is asked again after a delay. A message that was sent before it failed
    /// is not sent again for that, as long as this forwarder lives and has its claim.
    OutboxFailed {
        /// Why.
        error: &'a OutboxError,
    },
}

impl ForwardEvent<'_> {
    /// Writes it to the log, under the name of the destination.
    pub(super) fn log(&self, destination: &dyn Display) {
        match self {
            ForwardEvent::Delivered { entry, .. } => log::trace!("{destination}: delivered {:?}", entry.control_id),
            ForwardEvent::Retrying { entry, error, retry_in } => {
                log::debug!("{destination}: {:?} is tried again in {retry_in:?}: {error}", entry.control_id);
            }
            ForwardEvent::Held { entry, error } => {
                log::warn!("{destination}: {:?} is held: {error}", entry.control_id);
            }
            ForwardEvent::Dead { entry, error } => {
                log::warn!("{destination}: {:?} is dead: {error}", entry.control_id);
            }
            ForwardEvent::Stopped { entry } => {
                let why = entry.last_failure.as_deref().unwrap_or_default();
                log::warn!("{destination}: {:?} is {}: {why}", entry.control_id, entry.state.as_str());
            }
            ForwardEvent::Paused { .. } => log::warn!("{destination}: paused"),
            ForwardEvent::Resumed { .. } => log::info!("{destination}: goes on"),
            ForwardEvent::ClaimLost { entry } => {
                log::warn!("{destination}: the claim on {:?} is lost", entry.control_id);
            }
            ForwardEvent::OutboxFailed { error } => log::warn!("{destination}: the outbox failed: {error}"),
        }
    }
}
