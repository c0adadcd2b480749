//! The rules for a message after an attempt to deliver it: no I/O.

use std::time::{Duration, SystemTime};

use super::{Entry, Settlement};
use crate::backoff::doubled;
use crate::error::{Advice, Error};
use crate::hl7::ack::Ack;
use crate::hl7::ack::AckCode::{ApplicationReject, CommitReject};

/// The treatment, by a [`Forwarder`](super::Forwarder), of a message of which it is not known
/// whether the receiver has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnUnknown {
    /// It sends the same bytes with the same control ID again, until it knows, or up to a limit:
    /// [`unknown_attempts`](super::ForwarderBuilder::unknown_attempts),
    /// [`max_age`](super::ForwarderBuilder::max_age). A receiver recognises the repeated control
    /// ID, as HL7 asks of it.
    #[default]
    Resend,
    /// It holds the message, and those behind it, until somebody has found out and says what to do:
    /// [`Outbox::requeue`](super::Outbox::requeue) to send it again,
    /// [`Outbox::discard`](super::Outbox::discard) if the receiver has it. So no message is sent
    /// twice, even if the forwarder is killed: it is recorded as being sent before it is, which
    /// costs a second write for each message.
    Hold,
}

/// What a [`Forwarder`](super::Forwarder) makes of a message that was refused, or whose result is
/// not known, too often or for too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AtLimit {
    /// It is dead, and those behind it go on.
    #[default]
    Dead,
    /// It is held, and those behind it wait until somebody has decided.
    Hold,
}

/// When to try again and when to give up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub(super) unknown: OnUnknown,
    /// The most attempts with an unknown result; `None` for no limit.
    pub(super) unknown_attempts: Option<u32>,
    pub(super) refusals: u32,
    pub(super) rejections: u32,
    /// The age from which on no attempt follows one that was refused, or whose result is unknown.
    pub(super) max_age: Option<Duration>,
    pub(super) at_limit: AtLimit,
    pub(super) initial_delay: Duration,
    pub(super) max_delay: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            unknown: OnUnknown::default(),
            unknown_attempts: None,
            refusals: 3,
            rejections: 3,
            max_age: None,
            at_limit: AtLimit::default(),
            initial_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(30),
        }
    }
}

impl Policy {
    /// The settlement of an entry after this attempt, for which `why` has the words of a failure.
    pub(super) fn judge<'w>(&self, entry: &Entry, sent: &Result<Ack, Error>, why: &'w str) -> Settlement<'w> {
        let Err(error) = sent else { return Settlement::Delivered };
        let after = self.delay_after(entry.attempts);
        // A clock that was set back makes nothing old.
        let age = SystemTime::now().duration_since(entry.pushed_at).unwrap_or_default();
        let is_old = self.max_age.is_some_and(|most| age >= most);
        match error.advice() {
            Advice::DoNotResend => Settlement::Delivered,
            Advice::FixMessage => Settlement::Dead { why },
            Advice::SeeRefusal => {
                let is_rejection =
                    error.nak().is_some_and(|nak| matches!(nak.code(), ApplicationReject | CommitReject));
                let retries = if is_rejection { self.rejections } else { self.refusals };
                if entry.refusals >= retries || is_old {
                    self.give_up(why)
                } else {
                    Settlement::Retry { after, refused: true, why }
                }
            }
            Advice::FindOut if self.unknown == OnUnknown::Hold => Settlement::Held { why },
            Advice::FindOut => {
                let is_last = self.unknown_attempts.is_some_and(|most| entry.unknowns.saturating_add(1) >= most);
                if is_last || is_old { self.give_up(why) } else { Settlement::Unknown { after, why } }
            }
            Advice::Retry | Advice::FixSetup => Settlement::Retry { after, refused: false, why },
        }
    }

    fn give_up<'w>(&self, why: &'w str) -> Settlement<'w> {
        match self.at_limit {
            AtLimit::Dead => Settlement::Dead { why },
            AtLimit::Hold => Settlement::Held { why },
        }
    }

    /// How long to wait after a failure, where so many have come before it.
    pub(super) fn delay_after(&self, failures: u32) -> Duration {
        doubled(self.initial_delay, failures, self.max_delay)
    }
}

/// A failure in words: what is known of it and of its causes, and the error codes of a refusal that
/// are numbers (HL7 Table 0357).
pub(super) fn in_words(error: &Error) -> String {
    let mut words = error.with_causes();
    let details = error.nak().into_iter().flat_map(Ack::errors);
    let is_code = |code: &str| (1..=3).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_digit());
    for code in details.filter_map(|detail| detail.code().filter(|code| is_code(code)).map(|code| code.into_owned())) {
        words.push_str(", error ");
        words.push_str(&code);
    }
    words
}
