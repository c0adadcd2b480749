//! How a forwarder is doing, which is to be had at once, whether its storage answers or not.
//!
//! The storage is asked on a thread of its own, by one question at a time. A caller waits for the
//! answer no longer than its own limit.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::{Outbox, OutboxError, Pending, Summary};
use crate::deadline::Deadline;
use crate::locks::lock;

/// How a forwarder is doing, from [`Forwarder::status`](super::Forwarder::status).
///
/// What waits, is held or is dead was counted so long ago as [`counted`](Status::counted) says: a
/// moment ago where the storage answers, and longer where it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// How many entries are not delivered yet, those in flight or held among them.
    pub waiting: u64,
    /// How many of them are held.
    pub held: u64,
    /// How many lanes have a first entry that is held or rests before it is tried again. Lanes that
    /// wait for a barrier are not counted: one blocked entry may stop the whole destination.
    pub blocked: u64,
    /// How long ago the oldest entry that waits was pushed. Once it is known, it grows by a clock
    /// that cannot be set.
    pub oldest_age: Option<Duration>,
    /// How many are dead.
    pub dead: u64,
    /// How long ago these were counted; `None`, and then they are 0, if the storage has not
    /// answered since this forwarder was started.
    pub counted: Option<Duration>,
    /// For how long the storage has failed, and how, if it fails.
    pub storage_down: Option<StorageDown>,
    /// The oldest entry that waits, with its attempts and its last failure; `None` if none does, or
    /// the outbox cannot list.
    pub head: Option<Summary>,
    /// In what time an entry is tried again that rests after an attempt of this forwarder: of
    /// several the first.
    pub next_try: Option<Duration>,
    /// The control IDs of the messages that this forwarder is sending at this moment, at most as
    /// many as it has lanes.
    pub in_flight: Vec<String>,
    /// How many messages this forwarder has delivered.
    pub delivered: u64,
    /// What else this forwarder has counted.
    pub counters: Counters,
    /// The last failure since a message was delivered, in words without content.
    pub last_failure: Option<String>,
    /// Whether it is paused: this forwarder, or its destination in the storage.
    pub paused: bool,
    /// Whether one of its threads runs. One that has not been stopped and does not run has
    /// panicked, in an outbox of your own.
    pub running: bool,
}

/// What a forwarder has seen since it was started, in [`Status`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Attempts that failed and are followed by another.
    pub retries: u64,
    /// Messages that it has held, or found held since their holder had ended.
    pub held: u64,
    /// Messages that are dead since then, damaged ones among them.
    pub dead: u64,
    /// Results that were not recorded, since the claim was lost.
    pub claims_lost: u64,
    /// Failed calls of the storage.
    pub storage_failures: u64,
}

/// A storage that fails, in [`Status`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StorageDown {
    /// How long ago the first of the calls failed of which none has succeeded since. One that hangs
    /// fails once its limit has passed.
    pub since: Duration,
    /// How the last one failed, in words without content.
    pub failure: String,
}

/// The figures of a storage, and how it does.
#[derive(Default)]
pub(super) struct Figures {
    state: Mutex<FiguresState>,
    answered: Condvar,
}

#[derive(Default)]
struct FiguresState {
    /// Whether a thread asks now.
    asking: bool,
    /// How often it has been asked, and has answered or failed.
    answers: u64,
    counted: Option<(Instant, Pending, Option<Summary>)>,
    /// The time of the oldest entry, and how old it was at some moment.
    oldest: Option<(SystemTime, Duration, Instant)>,
    /// When the storage began to fail, and how it does.
    down: Option<(Instant, OutboxError)>,
}

/// The answer of a storage that was asked how much waits.
pub(super) enum Answer {
    Counted(Pending),
    Failed(OutboxError),
    Late,
}

impl Figures {
    /// The storage works.
    pub(super) fn works(&self) {
        lock(&self.state).down = None;
    }

    /// The storage has failed.
    pub(super) fn fails(&self, error: &OutboxError) {
        let mut state = lock(&self.state);
        let since = state.down.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        state.down = Some((since, error.retold()));
    }

    /// Asks the storage anew, and waits for its answer, at most for so long.
    ///
    /// # Errors
    ///
    /// If the system has no thread to give.
    pub(super) fn ask(self: &Arc<Self>, outbox: &Arc<dyn Outbox>, limit: Duration) -> Result<Answer, OutboxError> {
        let deadline = Deadline::after(limit);
        let mut state = lock(&self.state);
        // An answer to who asked before may be older than this question.
        let mut wanted = state.answers + 1 + u64::from(state.asking);
        loop {
            if !state.asking && state.answers < wanted {
                state.asking = true;
                wanted = state.answers + 1;
                let (figures, outbox) = (Arc::clone(self), Arc::clone(outbox));
                let count = move || figures.count(&*outbox);
                let asking = thread::Builder::new().name("mllp-outbox-status".into()).spawn(count);
                if let Err(error) = asking {
                    state.asking = false;
                    let what = "the thread that asks the outbox cannot be started".to_owned();
                    return Err(OutboxError::Storage { what, source: Some(error.into()) });
                }
            }
            if state.answers >= wanted {
                return Ok(match (&state.down, &state.counted) {
                    (Some((_, failure)), _) => Answer::Failed(failure.retold()),
                    (None, Some((_, pending, _))) => Answer::Counted(*pending),
                    (None, None) => Answer::Late,
                });
            }
            let Some(left) = deadline.remaining() else { return Ok(Answer::Late) };
            state = self.answered.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn count(&self, outbox: &dyn Outbox) {
        let _asked = Asked(self);
        let counted = outbox.pending().and_then(|pending| {
            let head = match outbox.list(None, 0, 1) {
                Ok(mut first) => first.pop().filter(|_| pending.waiting > 0),
                Err(OutboxError::Unsupported(_)) => None,
                Err(error) => return Err(error),
            };
            Ok((pending, head))
        });
        match counted {
            Ok((pending, head)) => {
                self.works();
                let mut state = lock(&self.state);
                if state.oldest.map(|(pushed, ..)| pushed) != pending.oldest {
                    let age = |pushed| SystemTime::now().duration_since(pushed).unwrap_or_default();
                    state.oldest = pending.oldest.map(|pushed| (pushed, age(pushed), Instant::now()));
                }
                state.counted = Some((Instant::now(), pending, head));
            }
            Err(error) => self.fails(&error),
        }
    }

    /// Fills in what is known of the storage.
    pub(super) fn fill_in(&self, status: &mut Status) {
        let state = lock(&self.state);
        if let Some((when, pending, head)) = &state.counted {
            status.waiting = pending.waiting;
            status.held = pending.held;
            status.blocked = pending.blocked;
            status.dead = pending.dead;
            status.paused |= pending.paused;
            status.counted = Some(when.elapsed());
            status.head.clone_from(head);
        }
        status.oldest_age = state.oldest.map(|(_, age, since)| age + since.elapsed());
        status.storage_down = state
            .down
            .as_ref()
            .map(|(since, failure)| StorageDown { since: since.elapsed(), failure: failure.to_string() });
    }
}

/// Ends a question, however the outbox answers it: a panic in one of your own as well.
struct Asked<'a>(&'a Figures);

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.asking = false;
        state.answers += 1;
        drop(state);
        self.0.answered.notify_all();
    }
}
