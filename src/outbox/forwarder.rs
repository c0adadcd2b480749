//! The threads that drain an outbox through a client.
//!
//! Each is in one of three states. The *lookout*, one at most, looks for an entry to claim, and
//! waits for the outbox while there is none. Once it has one it is *busy*, and a spare thread, or a
//! new one, is the lookout. Who has delivered looks for the next entry, and where there is none, is
//! the lookout or *spare*.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::forward_event::ForwardEvent;
use super::policy::{AtLimit, OnUnknown, Policy, in_words};
use super::status::{Answer, Counters, Figures, Status};
use super::{Claim, Entry, EntryState, Outbox, OutboxError, Settlement, Summary};
use crate::client::Client;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::hl7::ack::Ack;
use crate::locks::lock;

/// While nothing can be claimed, an outbox whose wait cannot be ended is asked so often.
const IDLE: Duration = Duration::from_millis(100);

/// The same for an outbox whose wait can be ended. It renews a lease, too.
const LONG_IDLE: Duration = Duration::from_secs(5);

/// How much longer than a limit a call may take, while something hangs.
const GRACE: Duration = Duration::from_millis(200);

/// Drains an [`Outbox`] through a [`Client`], in order, on a thread of its own, or on several where
/// it has several [lanes](ForwarderBuilder::lanes).
///
/// One message of a lane is under way at a time, and without lanes one altogether. What follows an
/// attempt:
///
/// | outcome | what is done |
/// |---|---|
/// | accepted (AA, CA), or committed | delivered |
/// | not sent | tried again, for ever, after delays from 1 to 30 seconds |
/// | unknown | the same bytes are sent again, for ever or up to a limit of [attempts](ForwarderBuilder::unknown_attempts) or [age](ForwarderBuilder::max_age), or the message is held: [`unknown`](ForwarderBuilder::unknown) |
/// | refused by AE or CE, or not stored (MLLP release 2) | tried again, 3 times, then dead: [`refusals`](ForwarderBuilder::refusals) |
/// | refused by AR or CR | likewise: [`rejections`](ForwarderBuilder::rejections) |
/// | it cannot be sent as it is | dead at once |
///
/// A message that is tried again keeps its place, and those behind it in its lane wait. One that is
/// dead is kept in the outbox ([`Outbox::stopped`]), and the others go on, unless
/// [`pause_on_dead`](ForwarderBuilder::pause_on_dead) is asked for.
///
/// A handle has one forwarder at a time, its clones included: stop one before you start another on
/// a clone, since stopping gives up the claims that clones share. Forwarders on handles of their
/// own, in one process or several, stand by for each other; where the outbox has lanes, they work
/// at the same time.
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
}

/// Settings of a [`Forwarder`], from [`Forwarder::builder`].
#[must_use = "settings do nothing until `start`"]
pub struct ForwarderBuilder {
    outbox: Arc<dyn Outbox>,
    client: Client,
    lanes: usize,
    policy: Policy,
    pause_on_dead: bool,
    observer: Option<Observer>,
}

type Observer = Box<dyn Fn(&ForwardEvent<'_>) + Send + Sync>;

struct ForwarderShared {
    outbox: Arc<dyn Outbox>,
    client: Client,
    /// The most threads, of which each has one message under way.
    lanes: usize,
    /// The longest wait for the outbox.
    longest_wait: Duration,
    policy: Policy,
    pause_on_dead: bool,
    observer: Option<Observer>,
    state: Mutex<ForwarderState>,
    changed: Condvar,
    /// Notified when there is no lookout any more, for a spare thread.
    looked_for: Condvar,
    figures: Arc<Figures>,
}

#[derive(Default)]
struct ForwarderState {
    stopping: bool,
    /// Paused here alone: the outbox does not keep it, or cannot now.
    paused: bool,
    /// Pauses (`true`) and their ends that were asked for, to be reported by one of the
    /// forwarder's threads.
    asked_to_pause: Vec<bool>,
    threads: Vec<JoinHandle<()>>,
    /// How many of the threads run.
    running: usize,
    ended: bool,
    /// Whether one of the threads looks for something to claim, or is about to.
    has_lookout: bool,
    /// How many have nothing to do while another is the lookout.
    spare: usize,
    /// The control IDs of the messages that are being sent, by their numbers.
    in_flight: BTreeMap<u64, String>,
    delivered: u64,
    counters: Counters,
    last_failure: Option<String>,
    /// When the next of the entries that rest is tried again, and its number.
    next_try: Option<(u64, Deadline)>,
    /// How often nothing could be claimed.
    idle: u64,
}

/// No more pauses than this are kept to be reported, while the forwarder's threads are busy for
/// long.
const MOST_PAUSES: usize = 100;

impl ForwarderState {
    fn asks_to_pause(&mut self, pause: bool) {
        if self.asked_to_pause.len() < MOST_PAUSES {
            self.asked_to_pause.push(pause);
        }
    }
}

impl Forwarder {
    /// Settings, to begin with what is drained and through what.
    pub fn builder(outbox: impl Outbox + 'static, client: Client) -> ForwarderBuilder {
        ForwarderBuilder {
            outbox: Arc::new(outbox),
            client,
            lanes: 1,
            policy: Policy::default(),
            pause_on_dead: false,
            observer: None,
        }
    }

    /// Begins no further exchange before [`resume`](Forwarder::resume); one under way is finished.
    /// An outbox that can keeps the pause in its storage ([`Outbox::set_paused`]), so that it holds
    /// for every instance and over a restart.
    ///
    /// # Errors
    ///
    /// If the outbox fails to keep it. This forwarder is paused all the same.
    pub fn pause(&self) -> Result<(), OutboxError> {
        let shared = &self.shared;
        shared.lock().paused = true;
        let kept = shared.outbox.set_paused(true);
        let mut state = shared.lock();
        state.asks_to_pause(true);
        state.paused &= kept.is_err();
        drop(state);
        shared.wake();
        supported(kept)
    }

    /// Goes on after a pause, this forwarder and all others of its destination.
    ///
    /// # Errors
    ///
    /// If the outbox fails to record it: then the destination stays paused if its storage had kept
    /// the pause.
    pub fn resume(&self) -> Result<(), OutboxError> {
        let resumed = self.shared.resume();
        self.shared.wake();
        resumed
    }

    /// Waits until nothing waits any more, at most for so long; `false` if something still does, or
    /// the outbox has not answered by then. What is dead does not count; what is held, or waits
    /// while it is paused, does.
    ///
    /// # Errors
    ///
    /// The failure of an outbox that cannot say how much waits; [`OutboxError::Storage`] also if
    /// the system has no thread to give for asking it.
    pub fn drain(&self, limit: Duration) -> Result<bool, OutboxError> {
        let deadline = Deadline::after(limit);
        let mut seen = None;
        loop {
            // Counting may be slow where much waits, and is of no use before there is nothing to claim.
            let state = self.shared.lock();
            let idle = state.idle;
            if state.ended || (seen != Some(idle) && state.in_flight.is_empty()) {
                drop(state);
                if self.nothing_waits(deadline.remaining().unwrap_or_default())? {
                    return Ok(true);
                }
                seen = Some(idle);
            } else {
                let Some(left) = deadline.remaining() else { return Ok(false) };
                let unchanged = |state: &mut ForwarderState| state.idle == idle && !state.ended;
                drop(self.shared.changed.wait_timeout_while(state, left, unchanged));
            }
            if deadline.remaining().is_none() || self.shared.lock().ended {
                return self.nothing_waits(GRACE);
            }
        }
    }

    fn nothing_waits(&self, limit: Duration) -> Result<bool, OutboxError> {
        match self.shared.figures.ask(&self.shared.outbox, limit)? {
            Answer::Counted(pending) => Ok(pending.waiting == 0),
            Answer::Late => Ok(false),
            Answer::Failed(error) => Err(error),
        }
    }

    /// How it is doing. The outbox is asked, for a fifth of a second at most: where it does not
    /// answer by then, or fails, its last figures are told, with their age
    /// ([`Status::counted`]) and for how long it has failed ([`Status::storage_down`]).
    ///
    /// # Errors
    ///
    /// [`OutboxError::Storage`] if the system has no thread to give for asking it.
    pub fn status(&self) -> Result<Status, OutboxError> {
        self.shared.figures.ask(&self.shared.outbox, GRACE)?;
        let state = self.shared.lock();
        let mut status = Status {
            waiting: 0,
            held: 0,
            oldest_age: None,
            dead: 0,
            counted: None,
            storage_down: None,
            head: None,
            blocked: 0,
            next_try: state.until_next_try(),
            in_flight: state.in_flight.values().cloned().collect(),
            delivered: state.delivered,
            counters: state.counters,
            last_failure: state.last_failure.clone(),
            paused: state.paused,
            running: !state.ended,
        };
        drop(state);
        self.shared.figures.fill_in(&mut status);
        Ok(status)
    }

    /// Stops: finishes the exchanges under way, at most for so long. One that takes longer is
    /// ended: as after any attempt its message waits on, or, if the receiver may have it, is
    /// treated as [`unknown`](ForwarderBuilder::unknown) says. Gives up the claims, so that
    /// another can take over at once. `true` if nothing had to be cut short.
    ///
    /// Where the storage hangs, it returns `false` a little after the limit, and the forwarder's
    /// thread ends as soon as the storage answers or gives up. Called by an observer, it returns
    /// `false` at once, and the forwarder stops after the event.
    pub fn stop(&self, limit: Duration) -> bool {
        let mut state = self.shared.lock();
        state.stopping = true;
        let own = thread::current().id();
        let is_own = state.threads.iter().any(|thread| thread.thread().id() == own);
        drop(state);
        self.shared.changed.notify_all();
        self.shared.looked_for.notify_all();
        if is_own {
            return false;
        }
        // What it waits for, it need not wait for any longer.
        self.shared.outbox.wake();
        let ended_within = |limit| {
            let running = |state: &mut ForwarderState| !state.ended;
            let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), limit, running);
            waited.unwrap_or_else(PoisonError::into_inner).0.ended
        };
        let in_time = ended_within(limit);
        if !in_time {
            self.shared.client.close();
        }
        let has_ended = in_time || ended_within(GRACE);
        if has_ended {
            let threads = std::mem::take(&mut self.shared.lock().threads);
            // A panic there has been printed already.
            threads.into_iter().for_each(|thread| drop(thread.join()));
        }
        in_time
    }
}

/// Stops as [`stop`](Forwarder::stop) does with a limit of zero: an exchange under way is ended.
impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

impl ForwarderBuilder {
    /// The most messages of different [lanes](super::Lane) that are under way at the same time,
    /// each over a connection of its own, on a thread of its own that is started when it is
    /// needed. The outbox has to be opened for as many, and the client has to have
    /// [as many connections](crate::ClientBuilder::max_connections). Defaults to 1.
    ///
    /// Several forwarders of one destination together have at most as many under way as the outbox
    /// was opened for. Two messages of one lane may use different connections, the second after the
    /// first is acknowledged: not for receivers that process each connection by itself after they
    /// have acknowledged. See [`guide::lanes`](crate::guide::lanes).
    pub fn lanes(self, count: usize) -> Self {
        ForwarderBuilder { lanes: count, ..self }
    }

    /// Sets the treatment of a message of which it is not known whether the receiver has it.
    /// Defaults to [`OnUnknown::Resend`].
    pub fn unknown(mut self, choice: OnUnknown) -> Self {
        self.policy.unknown = choice;
        self
    }

    /// With [`OnUnknown::Resend`]: after this many attempts whose result is not known, a message is
    /// given up ([`at_limit`](ForwarderBuilder::at_limit)), such as one on which the receiver
    /// closes without an answer. The outbox counts them, over restarts, until the message is
    /// queued again. Defaults to no limit.
    pub fn unknown_attempts(mut self, most: NonZeroU32) -> Self {
        self.policy.unknown_attempts = Some(most.get());
        self
    }

    /// How often a message that the receiver refused by AE or CE is tried again before it is given
    /// up. Defaults to 3.
    pub fn refusals(mut self, times: u32) -> Self {
        self.policy.refusals = times;
        self
    }

    /// The same for AR or CR; refusals of both kinds are counted together. A rejection may be about
    /// the message, for good, or about a system that is down and will take the same message
    /// later (HL7 v2.5, chapter 2.9.2.2): 0 for a receiver that means the former, more for one
    /// that means the latter. Defaults to 3.
    pub fn rejections(mut self, times: u32) -> Self {
        self.policy.rejections = times;
        self
    }

    /// A message that was pushed longer ago than this is given up as soon as an attempt is refused
    /// or its result is not known. One that nobody has received is tried for ever, whatever its
    /// age. The age is by the system's clock. Defaults to no limit.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.policy.max_age = Some(age);
        self
    }

    /// What becomes of a message that is given up, by one of the limits above. Defaults to
    /// [`AtLimit::Dead`].
    pub fn at_limit(mut self, choice: AtLimit) -> Self {
        self.policy.at_limit = choice;
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

    /// Pauses the destination as soon as a message is dead, a damaged one as well, until
    /// [`Forwarder::resume`]. Defaults to going on with the others.
    pub fn pause_on_dead(self, pause: bool) -> Self {
        ForwarderBuilder { pause_on_dead: pause, ..self }
    }

    /// Sets a function that gets each event, on the thread that sends the message, which waits for
    /// it; with several lanes it is called by several threads at the same time. A panic of it is
    /// caught and logged. Defaults to none.
    pub fn on_event(self, observer: impl Fn(&ForwardEvent<'_>) + Send + Sync + 'static) -> Self {
        ForwarderBuilder { observer: Some(Box::new(observer)), ..self }
    }

    /// Starts the thread, or the first of several.
    ///
    /// # Errors
    ///
    /// [`OutboxError::Config`] if a claim of the outbox does not last longer than an exchange may
    /// take, so that each would be cut short: give the client a shorter limit or the outbox a
    /// longer lease; or if [`lanes`](ForwarderBuilder::lanes) is 0, or larger than the client's
    /// `max_connections` or the outbox's lanes. [`OutboxError::Storage`] if the system has no
    /// thread to give.
    pub fn start(self) -> Result<Forwarder, OutboxError> {
        let ForwarderBuilder { outbox, client, lanes, policy, pause_on_dead, observer } = self;
        let longest = client.longest_call();
        if let Some(lease) = outbox.claim_lasts().filter(|lease| *lease <= longest) {
            return Err(OutboxError::Config(format!(
                "a claim lasts {lease:?} (nine tenths of a lease) and an exchange may take {longest:?}, so that it would \
                 be cut short: give the \
                 client a shorter timeout or the outbox a longer lease"
            )));
        }
        let (connections, claims) = (client.max_connections(), outbox.lanes());
        let needs = match lanes {
            0 => Some("a forwarder needs at least one lane".to_owned()),
            _ if lanes > connections => Some(format!(
                "{lanes} lanes need as many connections, and the client has {connections}: set max_connections({lanes})"
            )),
            _ if lanes > claims => {
                Some(format!("{lanes} lanes, and the outbox was opened for {claims}: open it with lanes({lanes})"))
            }
            _ => None,
        };
        if let Some(needs) = needs {
            return Err(OutboxError::Config(needs));
        }
        let longest_wait = if outbox.wake() { LONG_IDLE } else { IDLE };
        let (state, changed, looked_for, figures) = Default::default();
        let shared = Arc::new(ForwarderShared {
            outbox,
            client,
            lanes,
            longest_wait,
            policy,
            pause_on_dead,
            observer,
            state,
            changed,
            looked_for,
            figures,
        });
        shared.start_thread(&mut shared.lock()).map_err(|error| {
            let what = "the thread of the forwarder cannot be started".to_owned();
            OutboxError::Storage { what, source: Some(error.into()) }
        })?;
        Ok(Forwarder { shared })
    }
}

/// An outbox that cannot keep a pause has not failed: it holds for the forwarder alone.
fn supported(kept: Result<(), OutboxError>) -> Result<(), OutboxError> {
    match kept {
        Err(OutboxError::Unsupported(_)) => Ok(()),
        kept => kept,
    }
}

/// Sees to it, however a thread ends, that this is known, and that the last one gives up the
/// claims.
struct Running(Arc<ForwarderShared>);

impl Drop for Running {
    fn drop(&mut self) {
        let shared = &self.0;
        let mut state = shared.lock();
        state.running -= 1;
        let is_last = state.running == 0;
        drop(state);
        if is_last && !thread::panicking() {
            shared.outbox.release();
        }
        shared.lock().ended |= is_last;
        shared.changed.notify_all();
    }
}

/// The one thread that looks for something to claim, until it has found something or ends. The
/// others deliver, or are spare.
struct Lookout<'s>(&'s ForwarderShared);

impl Drop for Lookout<'_> {
    fn drop(&mut self) {
        self.0.lock().has_lookout = false;
        self.0.looked_for.notify_one();
    }
}

impl ForwarderState {
    fn until_next_try(&self) -> Option<Duration> {
        self.next_try.and_then(|(_, next)| next.remaining())
    }
}

impl ForwarderShared {
    fn lock(&self) -> MutexGuard<'_, ForwarderState> {
        lock(&self.state)
    }

    /// Lets the forwarder's threads look at what has changed.
    fn wake(&self) {
        self.changed.notify_all();
        self.outbox.wake();
    }

    /// Starts a thread, as the one that looks for something to claim.
    fn start_thread(self: &Arc<Self>, state: &mut ForwarderState) -> io::Result<()> {
        let shared = Arc::clone(self);
        let thread = thread::Builder::new().name("mllp-forwarder".into());
        let thread = thread.spawn(move || Running(shared).0.run())?;
        state.threads.push(thread);
        state.running += 1;
        state.has_lookout = true;
        Ok(())
    }

    /// Delivers what can be claimed, until it is to stop.
    fn run(self: &Arc<Self>) {
        let mut failures = 0;
        let mut lookout = Some(Lookout(self));
        while self.may_go_on() {
            self.report_pause();
            match self.outbox.claim() {
                Ok(Some(claim)) => {
                    self.storage_works(&mut failures);
                    lookout = None;
                    self.begins(&claim);
                    self.forward(&claim);
                    self.lock().in_flight.remove(&claim.entry.id);
                }
                Ok(None) => {
                    self.storage_works(&mut failures);
                    lookout = self.idle(lookout);
                }
                Err(OutboxError::Stopped { entry }) => {
                    self.storage_works(&mut failures);
                    self.report_stopped(&entry);
                }
                Err(error) => self.rest_after(&error, &mut failures),
            }
        }
        drop(lookout);
    }

    /// This thread is about to send an entry, so another must look for the next: a spare one is
    /// woken, or a new one started.
    fn begins(self: &Arc<Self>, claim: &Claim) {
        let mut state = self.lock();
        let id = claim.entry.id;
        state.in_flight.insert(id, claim.entry.control_id.clone());
        state.next_try.take_if(|(resting, _)| *resting == id);
        if state.has_lookout || state.stopping {
            return;
        }
        if state.spare > 0 {
            self.looked_for.notify_one();
        } else if !claim.is_alone
            && state.running < self.lanes
            && let Err(error) = self.start_thread(&mut state)
        {
            log::warn!("{}: no thread for another lane can be started: {error}", self.client.endpoint());
        }
    }

    /// Nothing can be claimed. If no other thread is the lookout, this one becomes it, and waits
    /// until that may have changed; otherwise it is spare until there is no lookout.
    fn idle<'s>(&'s self, lookout: Option<Lookout<'s>>) -> Option<Lookout<'s>> {
        let mut state = self.lock();
        state.idle += 1;
        self.changed.notify_all();
        if lookout.is_none() && state.has_lookout {
            state.spare += 1;
            let is_spare = |state: &mut ForwarderState| state.has_lookout && !state.stopping;
            state = self.looked_for.wait_while(state, is_spare).unwrap_or_else(PoisonError::into_inner);
            state.spare -= 1;
            return None;
        }
        state.has_lookout = true;
        let lookout = lookout.unwrap_or_else(|| Lookout(self));
        let until_next_try = state.until_next_try();
        drop(state);
        self.outbox.wait(until_next_try.unwrap_or(self.longest_wait).min(self.longest_wait));
        Some(lookout)
    }

    fn storage_works(&self, failures: &mut u32) {
        *failures = 0;
        self.figures.works();
    }

    /// Waits while the forwarder is paused. Returns `false` once it is to stop.
    fn may_go_on(&self) -> bool {
        let paused = |state: &mut ForwarderState| state.paused && !state.stopping && state.asked_to_pause.is_empty();
        !self.changed.wait_while(self.lock(), paused).unwrap_or_else(PoisonError::into_inner).stopping
    }

    /// Reports a pause or its end that was asked for.
    fn report_pause(&self) {
        let asked = std::mem::take(&mut self.lock().asked_to_pause);
        let destination = self.outbox.destination();
        for is_pause in asked {
            if is_pause {
                self.emit(&ForwardEvent::Paused { destination });
            } else {
                self.emit(&ForwardEvent::Resumed { destination });
            }
        }
    }

    /// The outbox has stopped the head.
    fn report_stopped(&self, entry: &Summary) {
        let is_dead = entry.state == EntryState::Dead;
        let mut state = self.lock();
        let counter = if is_dead { &mut state.counters.dead } else { &mut state.counters.held };
        *counter += 1;
        state.last_failure.clone_from(&entry.last_failure);
        drop(state);
        self.emit(&ForwardEvent::Stopped { entry });
        if is_dead && self.pause_on_dead {
            self.insist(|| self.pause());
        }
    }

    /// Pauses the destination since a message is dead; this forwarder alone, where the outbox
    /// cannot keep it.
    fn pause(&self) -> Result<(), OutboxError> {
        let kept = self.outbox.set_paused(true);
        let mut state = self.lock();
        state.paused |= matches!(kept, Err(OutboxError::Unsupported(_)));
        state.asks_to_pause(true);
        drop(state);
        supported(kept)
    }

    /// Ends a pause of the destination.
    fn resume(&self) -> Result<(), OutboxError> {
        let kept = self.outbox.set_paused(false);
        let mut state = self.lock();
        state.paused = false;
        state.asks_to_pause(false);
        drop(state);
        supported(kept)
    }

    /// Makes one attempt to deliver an entry, and records what became of it.
    fn forward(&self, claim: &Claim) {
        let entry = &claim.entry;
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
        let settlement = self.policy.judge(entry, &sent, &why);
        // The pause comes first, so that whoever takes over after a crash between the two does not go on.
        let pauses = self.pause_on_dead && matches!(settlement, Settlement::Dead { .. });
        let was_paused = pauses && self.outbox.pending().map_or(true, |pending| pending.paused);
        if pauses && !self.record(entry, || self.pause()) {
            return;
        }
        if self.record(entry, || self.outbox.settle(claim, settlement)) {
            self.conclude(entry, settlement, &sent);
        } else if pauses && !was_paused && !self.lock().stopping {
            // It was discarded meanwhile: nothing is dead.
            self.insist(|| self.resume());
        }
    }

    /// Records something about a claimed entry, as often as it takes: what was sent must not be
    /// forgotten because a disk was full for a while. `false` if the claim is lost, or it is to
    /// stop.
    fn record(&self, entry: &Entry, record: impl Fn() -> Result<(), OutboxError>) -> bool {
        match self.insist(record) {
            Some(true) => true,
            Some(false) => {
                self.lock().counters.claims_lost += 1;
                self.emit(&ForwardEvent::ClaimLost { entry });
                false
            }
            None => false,
        }
    }

    /// Asks the outbox for something until it succeeds: `true`, or `false` if the claim is lost.
    /// `None` if it is to stop meanwhile.
    fn insist(&self, call: impl Fn() -> Result<(), OutboxError>) -> Option<bool> {
        let mut failures = 0;
        loop {
            match call() {
                Ok(()) => {
                    self.figures.works();
                    return Some(true);
                }
                Err(OutboxError::ClaimLost) => return Some(false),
                Err(error) => self.rest_after(&error, &mut failures),
            }
            if self.lock().stopping {
                return None;
            }
        }
    }

    fn conclude(&self, entry: &Entry, settlement: Settlement<'_>, sent: &Result<Ack, Error>) {
        let mut is_late = false;
        let mut state = self.lock();
        state.last_failure = settlement.why().map(str::to_owned);
        match settlement {
            Settlement::Delivered => state.delivered += 1,
            Settlement::Retry { after, .. } | Settlement::Unknown { after, .. } => {
                state.counters.retries += 1;
                let next = Deadline::after(after);
                let is_next = |(_, sooner): (u64, Deadline)| sooner.remaining().is_none() || next.precedes(&sooner);
                if state.next_try.is_none_or(is_next) {
                    state.next_try = Some((entry.id, next));
                    is_late = state.has_lookout;
                }
            }
            Settlement::Held { .. } => state.counters.held += 1,
            Settlement::Dead { .. } => state.counters.dead += 1,
        }
        drop(state);
        if is_late {
            // The lookout waits for longer than that.
            self.outbox.wake();
        }
        match (settlement, sent) {
            (Settlement::Delivered, Ok(ack)) => self.emit(&ForwardEvent::Delivered { entry, ack: Some(ack) }),
            (Settlement::Delivered, Err(error)) => self.emit(&ForwardEvent::Delivered { entry, ack: error.commit() }),
            (Settlement::Retry { after, .. } | Settlement::Unknown { after, .. }, Err(error)) => {
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
        self.figures.fails(error);
        let mut state = self.lock();
        state.last_failure = Some(error.to_string());
        state.counters.storage_failures += 1;
        drop(state);
        self.emit(&ForwardEvent::OutboxFailed { error });
        let delay = self.policy.delay_after(*failures);
        *failures = failures.saturating_add(1);
        let going_on = |state: &mut ForwarderState| !state.stopping;
        drop(self.changed.wait_timeout_while(self.lock(), delay, going_on));
    }

    fn emit(&self, event: &ForwardEvent<'_>) {
        match self.outbox.destination() {
            "" => event.log(self.client.endpoint()),
            destination => event.log(&destination),
        }
        if let Some(observer) = &self.observer {
            // A panic of the observer must not change what becomes of a message.
            if catch_unwind(AssertUnwindSafe(|| observer(event))).is_err() {
                log::error!("{}: the observer panicked; the forwarder goes on", self.client.endpoint());
            }
        }
    }
}

impl fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        f.debug_struct("Forwarder")
            .field("endpoint", self.shared.client.endpoint())
            .field("in_flight", &state.in_flight.values())
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
