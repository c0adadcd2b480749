//! The thread that drains an outbox through a client.

use std::fmt;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use super::policy::{OnUnknown, Policy, in_words};
use super::{Claim, Entry, Outbox, OutboxError, Settlement};
use crate::client::Client;
use crate::deadline::Deadline;
use crate::error::{Advice, Error};
use crate::hl7::ack::Ack;
use crate::locks::lock;

/// While nothing can be claimed, the outbox is asked at least so often.
const IDLE: Duration = Duration::from_millis(100);

/// Drains an [`Outbox`] through a [`Client`], in order, on a thread of its own.
///
/// One message is under way at a time. What follows an attempt:
///
/// | outcome | what is done |
/// |---|---|
/// | accepted (AA, CA), or committed | delivered |
/// | not sent | tried again, for ever, after delays from 1 to 30 seconds |
/// | unknown | the same bytes are sent again, for ever or [up to a limit](ForwarderBuilder::unknown_attempts), or the message is held: [`unknown`](ForwarderBuilder::unknown) |
/// | refused by AE or CE, or not stored (MLLP release 2) | tried again, 3 times, then dead: [`refusals`](ForwarderBuilder::refusals) |
/// | refused by AR or CR | likewise: [`rejections`](ForwarderBuilder::rejections) |
/// | it cannot be sent as it is | dead at once |
///
/// A message that is tried again keeps its place, and those behind it wait. One that is dead is
/// kept in the outbox ([`Outbox::stopped`]), and the others go on, unless
/// [`pause_on_dead`](ForwarderBuilder::pause_on_dead) is asked for.
///
/// An outbox has one forwarder at a time, its clones included: stop one before you start another on
/// a clone, since stopping gives up the claim that clones share. Handles of their own, in one
/// process or several, stand by for each other.
///
/// It has the client to itself: where [`stop`](Forwarder::stop) or dropping it must end an
/// exchange, they close the client.
///
/// # Examples
///
/// ```
/// # use mllp_client::testing::Receiver;
/// # let receiver = Receiver::accepting()?;
/// # let endpoint = receiver.endpoint();
/// use std::time::Duration;
/// use mllp_client::Client;
/// use mllp_client::outbox::{Forwarder, MemoryOutbox, Outbox};
///
/// let outbox = MemoryOutbox::new(1_000, 64 * 1024 * 1024);
/// let forwarder = Forwarder::builder(outbox.clone(), Client::new(&endpoint)?).start()?;
/// outbox.push(b"MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|MSG1|P|2.5\r")?;
/// assert!(forwarder.drain(Duration::from_secs(10))?);
/// forwarder.stop(Duration::from_secs(10));
/// # assert_eq!(receiver.received().len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Forwarder {
    shared: Arc<ForwarderShared>,
    thread: Option<JoinHandle<()>>,
}

/// Settings of a [`Forwarder`], from [`Forwarder::builder`].
#[must_use = "settings do nothing until `start`"]
pub struct ForwarderBuilder {
    outbox: Box<dyn Outbox>,
    client: Client,
    policy: Policy,
    pause_on_dead: bool,
    observer: Option<Observer>,
}

type Observer = Box<dyn Fn(&ForwardEvent<'_>) + Send + Sync>;

/// Something that happened to a message on its way, for an observer set with
/// [`on_event`](ForwarderBuilder::on_event).
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
    /// It is not known whether the receiver has it, and it is not sent again before somebody has
    /// decided; those behind it wait.
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
    /// The result of a message was not recorded, since another holder has taken over: it will send
    /// the message again, unless it is dead or held there.
    ClaimLost {
        /// The entry.
        entry: &'a Entry,
    },
    /// The outbox failed; it is asked again after a delay. A message that was sent before it failed
    /// is not sent again for that, as long as this forwarder lives.
    OutboxFailed {
        /// Why.
        error: &'a OutboxError,
    },
}

/// How a forwarder is doing, from [`Forwarder::status`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// How many entries are not delivered yet, those in flight or held among them.
    pub waiting: u64,
    /// How long ago the oldest of them was pushed.
    pub oldest_age: Option<Duration>,
    /// How many are dead.
    pub dead: u64,
    /// The control ID of the message that is being sent.
    pub in_flight: Option<String>,
    /// How many messages this forwarder has delivered.
    pub delivered: u64,
    /// The last failure since a message was delivered, in words without content.
    pub last_failure: Option<String>,
    /// Whether it is paused.
    pub paused: bool,
    /// Whether its thread runs. One that has not been stopped and does not run has panicked, in an
    /// outbox of your own.
    pub running: bool,
}

struct ForwarderShared {
    outbox: Box<dyn Outbox>,
    client: Client,
    policy: Policy,
    pause_on_dead: bool,
    observer: Option<Observer>,
    state: Mutex<ForwarderState>,
    changed: Condvar,
}

#[derive(Default)]
struct ForwarderState {
    stopping: bool,
    paused: bool,
    ended: bool,
    in_flight: Option<String>,
    delivered: u64,
    last_failure: Option<String>,
    /// How often nothing could be claimed.
    idle: u64,
}

impl Forwarder {
    /// Settings, to begin with what is drained and through what.
    pub fn builder(outbox: impl Outbox + 'static, client: Client) -> ForwarderBuilder {
        ForwarderBuilder {
            outbox: Box::new(outbox),
            client,
            policy: Policy::default(),
            pause_on_dead: false,
            observer: None,
        }
    }

    /// Begins no further exchange before [`resume`](Forwarder::resume). One under way is finished.
    pub fn pause(&self) {
        self.shared.lock().paused = true;
    }

    /// Goes on after a pause.
    pub fn resume(&self) {
        self.shared.lock().paused = false;
        self.shared.changed.notify_all();
    }

    /// Waits until nothing waits any more, at most for so long; `false` if something still does.
    /// What is dead does not count; what is held, or waits while it is paused, does.
    ///
    /// # Errors
    ///
    /// If the outbox fails to say how much waits.
    pub fn drain(&self, limit: Duration) -> Result<bool, OutboxError> {
        let deadline = Deadline::after(limit);
        let mut seen = None;
        loop {
            // Counting may be slow where much waits, and is of no use before there is nothing to claim.
            let state = self.shared.lock();
            let idle = state.idle;
            if state.ended || (seen != Some(idle) && state.in_flight.is_none()) {
                drop(state);
                if self.shared.outbox.pending()?.waiting == 0 {
                    return Ok(true);
                }
                seen = Some(idle);
            } else {
                let Some(left) = deadline.remaining() else { return Ok(false) };
                let unchanged = |state: &mut ForwarderState| state.idle == idle && !state.ended;
                drop(self.shared.changed.wait_timeout_while(state, left, unchanged));
            }
            if deadline.remaining().is_none() || self.shared.lock().ended {
                return Ok(self.shared.outbox.pending()?.waiting == 0);
            }
        }
    }

    /// How it is doing. Where very much waits, counting it takes a moment.
    ///
    /// # Errors
    ///
    /// If the outbox fails to say how much waits.
    pub fn status(&self) -> Result<Status, OutboxError> {
        let pending = self.shared.outbox.pending()?;
        let state = self.shared.lock();
        Ok(Status {
            waiting: pending.waiting,
            oldest_age: pending.oldest.map(|oldest| SystemTime::now().duration_since(oldest).unwrap_or_default()),
            dead: pending.dead,
            in_flight: state.in_flight.clone(),
            delivered: state.delivered,
            last_failure: state.last_failure.clone(),
            paused: state.paused,
            running: !state.ended,
        })
    }

    /// Stops: finishes the exchange under way, at most for so long; one that takes longer is ended,
    /// and its message waits on. Gives up the claim, so that another can take over at once.
    /// `true` if nothing had to be cut short.
    pub fn stop(mut self, limit: Duration) -> bool {
        self.end(limit)
    }

    fn end(&mut self, limit: Duration) -> bool {
        let Some(thread) = self.thread.take() else { return true };
        let mut state = self.shared.lock();
        state.stopping = true;
        self.shared.changed.notify_all();
        let running = |state: &mut ForwarderState| !state.ended;
        state = self.shared.changed.wait_timeout_while(state, limit, running).unwrap_or_else(PoisonError::into_inner).0;
        let in_time = state.ended;
        drop(state);
        if !in_time {
            self.shared.client.close();
        }
        // A panic there has been printed already.
        let _ = thread.join();
        in_time
    }
}

/// Stops at once, as [`stop`](Forwarder::stop) without a limit to wait for.
impl Drop for Forwarder {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

impl ForwarderBuilder {
    /// Sets the treatment of a message of which it is not known whether the receiver has it.
    /// Defaults to [`OnUnknown::Resend`].
    pub fn unknown(mut self, choice: OnUnknown) -> Self {
        self.policy.unknown = choice;
        self
    }

    /// With [`OnUnknown::Resend`]: after this many attempts whose result is not known, a message is
    /// dead and those behind it go on, such as one on which the receiver closes without an answer.
    /// They are counted since this forwarder began with the message. Defaults to no limit.
    pub fn unknown_attempts(mut self, most: NonZeroU32) -> Self {
        self.policy.unknown_attempts = Some(most.get());
        self
    }

    /// How often a message that the receiver refused by AE or CE is tried again before it is dead.
    /// Defaults to 3.
    pub fn refusals(mut self, times: u32) -> Self {
        self.policy.refusals = times;
        self
    }

    /// The same for AR or CR. A rejection may be about the message, for good, or about a system
    /// that is down and will take the same message later (HL7 v2.5, chapter 2.9.2.2): 0 for a
    /// receiver that means the former, more for one that means the latter. Defaults to 3.
    pub fn rejections(mut self, times: u32) -> Self {
        self.policy.rejections = times;
        self
    }

    /// The delay before a message is tried again, and before the outbox is asked again where it
    /// failed; each further one is twice as long. Defaults to 1 second.
    pub fn initial_delay(mut self, delay: Duration) -> Self {
        self.policy.initial_delay = delay;
        self
    }

    /// No delay is longer than this. Defaults to 30 seconds.
    pub fn max_delay(mut self, delay: Duration) -> Self {
        self.policy.max_delay = delay;
        self
    }

    /// Pauses as soon as a message is dead, until [`Forwarder::resume`]. Defaults to going on with
    /// the others.
    pub fn pause_on_dead(self, pause: bool) -> Self {
        ForwarderBuilder { pause_on_dead: pause, ..self }
    }

    /// Sets a function that gets each event, on the forwarder's thread, which waits for it.
    /// Defaults to none.
    pub fn on_event(self, observer: impl Fn(&ForwardEvent<'_>) + Send + Sync + 'static) -> Self {
        ForwarderBuilder { observer: Some(Box::new(observer)), ..self }
    }

    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// [`OutboxError::Storage`] if the system has no thread to give.
    pub fn start(self) -> Result<Forwarder, OutboxError> {
        let ForwarderBuilder { outbox, client, policy, pause_on_dead, observer } = self;
        let (state, changed) = Default::default();
        let shared = Arc::new(ForwarderShared { outbox, client, policy, pause_on_dead, observer, state, changed });
        let running = Running(Arc::clone(&shared));
        let thread = thread::Builder::new().name("mllp-forwarder".into()).spawn(move || running.0.run());
        match thread {
            Ok(thread) => Ok(Forwarder { shared, thread: Some(thread) }),
            Err(error) => {
                let what = "the thread of the forwarder cannot be started".to_owned();
                Err(OutboxError::Storage { what, source: Some(error.into()) })
            }
        }
    }
}

/// The attempts on the entry that is tried now.
#[derive(Default)]
struct HeadHistory {
    id: u64,
    /// The number of attempts whose result is not known.
    unknown: u32,
}

/// Tells, however the thread ends, that it has.
struct Running(Arc<ForwarderShared>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

impl ForwarderShared {
    fn lock(&self) -> MutexGuard<'_, ForwarderState> {
        lock(&self.state)
    }

    fn run(&self) {
        let mut failures = 0;
        let mut head = HeadHistory::default();
        while self.may_go_on() {
            match self.outbox.claim() {
                Ok(Some(claim)) => {
                    failures = 0;
                    self.lock().in_flight = Some(claim.entry.control_id.clone());
                    self.forward(&claim, &mut head);
                    self.lock().in_flight = None;
                }
                Ok(None) => {
                    failures = 0;
                    self.lock().idle += 1;
                    self.changed.notify_all();
                    self.outbox.wait(IDLE);
                }
                Err(error) => self.rest_after(&error, &mut failures),
            }
        }
        self.outbox.release();
    }

    /// Waits while the forwarder is paused. Returns `false` once it is to stop.
    fn may_go_on(&self) -> bool {
        let paused = |state: &mut ForwarderState| state.paused && !state.stopping;
        !self.changed.wait_while(self.lock(), paused).unwrap_or_else(PoisonError::into_inner).stopping
    }

    /// Makes one attempt to deliver an entry, and records what became of it.
    fn forward(&self, claim: &Claim, head: &mut HeadHistory) {
        let entry = &claim.entry;
        if head.id != entry.id {
            *head = HeadHistory { id: entry.id, unknown: 0 };
        }
        if self.policy.unknown == OnUnknown::Hold && !self.record(entry, || self.outbox.begin(claim)) {
            return;
        }
        let request = self.client.request(&entry.message);
        // Once the claim has ended, another may have taken over: the limit is asked before each write.
        let sent = match claim.until {
            Some(until) => request.until(until).send(),
            None => request.send(),
        };
        let why = sent.as_ref().err().map(in_words).unwrap_or_default();
        let settlement = self.policy.judge(entry, head.unknown, &sent, &why);
        head.unknown += u32::from(sent.as_ref().is_err_and(|error| error.advice() == Advice::FindOut));
        if matches!(settlement, Settlement::Dead { .. }) {
            // Queued again, it begins anew.
            *head = HeadHistory::default();
        }
        if self.record(entry, || self.outbox.settle(claim, settlement)) {
            self.conclude(entry, settlement, &sent);
        }
    }

    /// Records something about a claimed entry, as often as it takes: what was sent must not be
    /// forgotten because a disk was full for a while. `false` if the claim is lost, or it is to
    /// stop.
    fn record(&self, entry: &Entry, record: impl Fn() -> Result<(), OutboxError>) -> bool {
        let mut failures = 0;
        loop {
            match record() {
                Ok(()) => return true,
                Err(OutboxError::ClaimLost) => {
                    self.emit(&ForwardEvent::ClaimLost { entry });
                    return false;
                }
                Err(error) => self.rest_after(&error, &mut failures),
            }
            if self.lock().stopping {
                return false;
            }
        }
    }

    fn conclude(&self, entry: &Entry, settlement: Settlement<'_>, sent: &Result<Ack, Error>) {
        let mut state = self.lock();
        state.delivered += u64::from(settlement == Settlement::Delivered);
        state.last_failure = settlement.why().map(str::to_owned);
        state.paused |= matches!(settlement, Settlement::Dead { .. }) && self.pause_on_dead;
        drop(state);
        match (settlement, sent) {
            (Settlement::Delivered, Ok(ack)) => self.emit(&ForwardEvent::Delivered { entry, ack: Some(ack) }),
            (Settlement::Delivered, Err(error)) => self.emit(&ForwardEvent::Delivered { entry, ack: error.commit() }),
            (Settlement::Retry { after, .. }, Err(error)) => {
                self.emit(&ForwardEvent::Retrying { entry, error, retry_in: after });
            }
            (Settlement::Held { .. }, Err(error)) => self.emit(&ForwardEvent::Held { entry, error }),
            (Settlement::Dead { .. }, Err(error)) => self.emit(&ForwardEvent::Dead { entry, error }),
            // A message that succeeded is delivered.
            (_, Ok(_)) => {}
        }
    }

    /// Tells that the outbox failed, and lets time pass, unless it is to stop.
    fn rest_after(&self, error: &OutboxError, failures: &mut u32) {
        self.lock().last_failure = Some(error.to_string());
        self.emit(&ForwardEvent::OutboxFailed { error });
        let delay = self.policy.delay_after(*failures);
        *failures = failures.saturating_add(1);
        let going_on = |state: &mut ForwarderState| !state.stopping;
        drop(self.changed.wait_timeout_while(self.lock(), delay, going_on));
    }

    fn emit(&self, event: &ForwardEvent<'_>) {
        write_log(event);
        if let Some(observer) = &self.observer {
            // A panic of the observer must not change what becomes of a message.
            if catch_unwind(AssertUnwindSafe(|| observer(event))).is_err() {
                log::error!("the observer of a forwarder panicked; it goes on");
            }
        }
    }
}

fn write_log(event: &ForwardEvent<'_>) {
    match event {
        ForwardEvent::Delivered { entry, .. } => log::trace!("delivered {:?}", entry.control_id),
        ForwardEvent::Retrying { entry, error, retry_in } => {
            log::debug!("{:?} is tried again in {retry_in:?}: {error}", entry.control_id);
        }
        ForwardEvent::Held { entry, error } => log::warn!("{:?} is held: {error}", entry.control_id),
        ForwardEvent::Dead { entry, error } => log::warn!("{:?} is dead: {error}", entry.control_id),
        ForwardEvent::ClaimLost { entry } => log::warn!("the claim on {:?} is lost", entry.control_id),
        ForwardEvent::OutboxFailed { error } => log::warn!("an outbox failed: {error}"),
    }
}

impl fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        f.debug_struct("Forwarder")
            .field("endpoint", self.shared.client.endpoint())
            .field("in_flight", &state.in_flight)
            .field("delivered", &state.delivered)
            .field("paused", &state.paused)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ForwarderBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwarderBuilder")
            .field("endpoint", self.client.endpoint())
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}
