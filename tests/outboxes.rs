//! The outboxes: the contract, tried on each and on some that break it, and what each promises
//! beyond it.

mod common;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use common::{LONG, SHORT, Tidy, limited, message};
use mllp_client::MessageError;
use mllp_client::outbox::{
    Claim, Entry, EntryState, MemoryOutbox, Outbox, OutboxError, Pending, PushOptions, Settlement, Summary,
};
use mllp_client::testing::OutboxSuite;

/// Memory that outlives its handles, as another process would find it.
#[derive(Default)]
struct Storage(Mutex<HashMap<String, MemoryOutbox>>);

impl Storage {
    fn open(&self, destination: &str) -> MemoryOutbox {
        let mut outboxes = self.0.lock().unwrap();
        let new = || MemoryOutbox::new(1_000, 10_000_000);
        outboxes.entry(destination.to_owned()).or_insert_with(new).clone()
    }
}

#[test]
fn memory_keeps_the_contract() {
    let _tidy = Tidy::up();
    let storage = Storage::default();
    OutboxSuite::new(|destination: &str| storage.open(destination)).volatile().run().unwrap();
    let storage = Storage::default();
    OutboxSuite::new(|destination: &str| storage.open(destination).lanes(4)).volatile().run().unwrap();
}

/// A way to break the contract.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    LosesOnCrash,
    Reorders,
    RemovesAtClaim,
    MixesDestinations,
}

/// An outbox in memory with a fault. Each opening is a handle of its own.
struct Faulty {
    fault: Fault,
    inner: MemoryOutbox,
    /// Pushed, and not yet where another would find it.
    unwritten: Mutex<Vec<Vec<u8>>>,
}

impl Faulty {
    fn write(&self) {
        for message in self.unwritten.lock().unwrap().drain(..) {
            self.inner.push(&message).unwrap();
        }
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        // Its process ends, and with it its claim.
        self.inner.release();
    }
}

impl Outbox for Faulty {
    fn push(&self, message: &[u8]) -> Result<u64, OutboxError> {
        match self.fault {
            Fault::LosesOnCrash => {
                let id = Entry::new(0, message).map_err(OutboxError::InvalidMessage)?.id;
                self.unwritten.lock().unwrap().push(message.to_vec());
                Ok(id + 1 + self.inner.pending()?.waiting + self.unwritten.lock().unwrap().len() as u64)
            }
            Fault::Reorders => {
                // What comes later is put before what waits.
                let id = self.inner.push(message)?;
                let mut before = Vec::new();
                while let Some(claim) = self.inner.claim()? {
                    let last = claim.entry.id == id;
                    if !last {
                        before.push(claim.entry.message.clone());
                    }
                    self.inner.settle(&claim, Settlement::Delivered)?;
                }
                let id = self.inner.push(message)?;
                before.iter().try_for_each(|message| self.inner.push(message).map(drop))?;
                Ok(id)
            }
            Fault::RemovesAtClaim | Fault::MixesDestinations => self.inner.push(message),
        }
    }

    fn claim(&self) -> Result<Option<Claim>, OutboxError> {
        self.write();
        let claimed = self.inner.claim()?;
        if let (Fault::RemovesAtClaim, Some(claim)) = (self.fault, &claimed) {
            self.inner.settle(claim, Settlement::Delivered)?;
        }
        Ok(claimed)
    }

    fn begin(&self, claim: &Claim) -> Result<(), OutboxError> {
        self.inner.begin(claim)
    }

    fn settle(&self, claim: &Claim, outcome: Settlement<'_>) -> Result<(), OutboxError> {
        match self.fault {
            Fault::RemovesAtClaim => Ok(()),
            _ => self.inner.settle(claim, outcome),
        }
    }

    fn release(&self) {
        self.inner.release();
    }

    fn pending(&self) -> Result<Pending, OutboxError> {
        let pending = self.inner.pending()?;
        let unwritten = self.unwritten.lock().unwrap().len() as u64;
        let oldest = pending.oldest.or((unwritten > 0).then(std::time::SystemTime::now));
        Ok(Pending::new(pending.waiting + unwritten, oldest, pending.dead))
    }

    fn stopped(&self, after: u64, limit: usize) -> Result<Vec<Entry>, OutboxError> {
        self.inner.stopped(after, limit)
    }

    fn requeue(&self, id: u64) -> Result<bool, OutboxError> {
        self.inner.requeue(id)
    }

    fn discard(&self, id: u64) -> Result<bool, OutboxError> {
        self.inner.discard(id)
    }

    fn wait(&self, limit: Duration) {
        self.inner.wait(limit);
    }
}

#[test]
fn what_breaks_the_contract_is_found_out() {
    let rows = [
        (Fault::LosesOnCrash, "survives: what waits is counted"),
        (Fault::Reorders, "order: entries are claimed in the order of their push"),
        (Fault::RemovesAtClaim, "claimed-survives: what waits is counted"),
        (Fault::MixesDestinations, "destinations: what waits is counted"),
    ];
    let find_out = |(fault, finding): (Fault, &str)| {
        let storage = Storage::default();
        let open = |destination: &str| {
            let destination = if fault == Fault::MixesDestinations && destination == "suite-other" {
                "suite-one"
            } else {
                destination
            };
            Faulty { fault, inner: storage.open(destination), unwritten: Mutex::default() }
        };
        let broken = OutboxSuite::new(open).run().unwrap_err();
        assert!(broken.findings.iter().any(|found| found == finding), "{fault:?}: {broken}");
        assert!(broken.to_string().contains(finding));
    };
    thread::scope(|scope| {
        for row in rows {
            scope.spawn(move || find_out(row));
        }
    });
}

/// A right that lasts for a time, on an outbox in memory that several handles share: whoever has it
/// may claim. It keeps the contract, but for its fault.
#[derive(Clone, Copy, Debug, PartialEq)]
enum LeaseFault {
    None,
    CutsLongMessages,
    OldestIsAlwaysNew,
    SaysNotUntilWhen,
    LetsTheLateSettle,
    KeepsWhatIsReleased,
    KeepsRefusals,
    DiscardsNothingThatWaits,
    ForgetsUnknowns,
    ForgetsHolds,
    ForgetsPauses,
    IgnoresKeys,
    ListsTheDeadAmongTheWaiting,
}

struct LeaseStorage {
    entries: MemoryOutbox,
    /// Who has the lease, and until when.
    holder: Option<(usize, Instant)>,
    handles: usize,
    /// Entries whose unknown results are forgotten.
    paused_by: Option<usize>,
}

struct Leased {
    fault: LeaseFault,
    number: usize,
    storage: Arc<Mutex<LeaseStorage>>,
    claimed: Mutex<Option<u64>>,
}

impl Leased {
    const LEASE: Duration = Duration::from_millis(400);

    fn open(fault: LeaseFault, storage: &Arc<Mutex<LeaseStorage>>) -> Leased {
        let mut shared = storage.lock().unwrap();
        shared.handles += 1;
        Leased { fault, number: shared.handles, storage: Arc::clone(storage), claimed: Mutex::default() }
    }

    /// The entries, if this handle has the lease or gets it.
    fn hold(&self) -> Option<MemoryOutbox> {
        let mut storage = self.storage.lock().unwrap();
        match storage.holder {
            Some((holder, until)) if holder != self.number && until > Instant::now() => return None,
            // What another has left behind ends.
            Some((holder, _)) if holder != self.number => storage.entries.release(),
            _ => {}
        }
        storage.holder = Some((self.number, Instant::now() + Leased::LEASE));
        Some(storage.entries.clone())
    }

    fn entries(&self) -> MemoryOutbox {
        self.storage.lock().unwrap().entries.clone()
    }

    fn still_holds(&self, claim: &Claim) -> Result<MemoryOutbox, OutboxError> {
        let storage = self.storage.lock().unwrap();
        let holds = storage.holder.is_some_and(|(holder, _)| holder == self.number);
        let claimed = *self.claimed.lock().unwrap() == Some(claim.entry.id);
        if claimed && holds { Ok(storage.entries.clone()) } else { Err(OutboxError::ClaimLost) }
    }
}

impl Outbox for Leased {
    fn push(&self, message: &[u8]) -> Result<u64, OutboxError> {
        let cut = if self.fault == LeaseFault::CutsLongMessages { 1_000_000 } else { message.len() };
        self.entries().push(&message[..cut.min(message.len())])
    }
    fn push_with(&self, message: &[u8], options: &PushOptions<'_>) -> Result<u64, OutboxError> {
        let none = PushOptions::new();
        self.entries().push_with(message, if self.fault == LeaseFault::IgnoresKeys { &none } else { options })
    }
    fn claim(&self) -> Result<Option<Claim>, OutboxError> {
        let Some(entries) = self.hold() else { return Ok(None) };
        let claim = entries.claim()?;
        if claim.is_some() {
            *self.claimed.lock().unwrap() = claim.as_ref().map(|claim| claim.entry.id);
        }
        let says = self.fault != LeaseFault::SaysNotUntilWhen;
        let until = says.then(|| Instant::now() + Leased::LEASE * 9 / 10);
        Ok(claim.map(|mut claim| {
            claim.until = until;
            claim
        }))
    }
    fn begin(&self, claim: &Claim) -> Result<(), OutboxError> {
        self.still_holds(claim)?.begin(claim)
    }
    fn settle(&self, claim: &Claim, outcome: Settlement<'_>) -> Result<(), OutboxError> {
        let outcome = match outcome {
            Settlement::Unknown { after, why } if self.fault == LeaseFault::ForgetsUnknowns => {
                Settlement::Retry { after, refused: false, why }
            }
            outcome => outcome,
        };
        let entries = match self.still_holds(claim) {
            Err(OutboxError::ClaimLost) if self.fault == LeaseFault::LetsTheLateSettle => {
                // As if the claim of another were its own.
                let entries = self.entries();
                entries.release();
                let Some(claim) = entries.claim()? else { return Err(OutboxError::ClaimLost) };
                return entries.settle(&claim, outcome);
            }
            entries => entries?,
        };
        if self.fault == LeaseFault::ForgetsHolds {
            entries.unhold(claim.entry.id)?;
        }
        entries.settle(claim, outcome)
    }
    fn release(&self) {
        if self.fault == LeaseFault::KeepsWhatIsReleased {
            return;
        }
        let mut storage = self.storage.lock().unwrap();
        if storage.holder.is_some_and(|(holder, _)| holder == self.number) {
            storage.entries.release();
            storage.holder = None;
        }
    }
    fn pending(&self) -> Result<Pending, OutboxError> {
        let pending = self.entries().pending()?;
        let mut told = pending;
        if self.fault == LeaseFault::OldestIsAlwaysNew {
            told.oldest = pending.oldest.map(|_| SystemTime::now());
        }
        Ok(told)
    }
    fn stopped(&self, after: u64, limit: usize) -> Result<Vec<Entry>, OutboxError> {
        self.entries().stopped(after, limit)
    }
    fn requeue(&self, id: u64) -> Result<bool, OutboxError> {
        let entries = self.entries();
        if self.fault == LeaseFault::KeepsRefusals && entries.list(Some(EntryState::Dead), id - 1, 1)?.len() == 1 {
            entries.requeue(id)?;
            let claim = entries.claim()?.unwrap();
            let refused = Settlement::Retry { after: Duration::ZERO, refused: true, why: "x" };
            return entries.settle(&claim, refused).map(|()| true);
        }
        entries.requeue(id)
    }
    fn discard(&self, id: u64) -> Result<bool, OutboxError> {
        let entries = self.entries();
        let waits =
            entries.list(Some(EntryState::Waiting), id.saturating_sub(1), 1)?.iter().any(|entry| entry.id == id);
        if waits && self.fault == LeaseFault::DiscardsNothingThatWaits { Ok(false) } else { entries.discard(id) }
    }
    fn wait(&self, limit: Duration) {
        common::pass(limit.min(Duration::from_millis(5)));
    }
    fn list(&self, state: Option<EntryState>, after: u64, limit: usize) -> Result<Vec<Summary>, OutboxError> {
        let entries = self.entries();
        let mut listed = entries.list(state, after, limit)?;
        if self.fault == LeaseFault::ListsTheDeadAmongTheWaiting && state.is_none() {
            listed.extend(entries.list(Some(EntryState::Dead), after, limit)?);
        }
        Ok(listed)
    }
    fn show(&self, id: u64) -> Result<Option<Entry>, OutboxError> {
        self.entries().show(id)
    }
    fn hold(&self, id: u64) -> Result<bool, OutboxError> {
        self.entries().hold(id)
    }
    fn unhold(&self, id: u64) -> Result<bool, OutboxError> {
        self.entries().unhold(id)
    }
    fn try_now(&self) -> Result<(), OutboxError> {
        self.entries().try_now()
    }
    fn set_paused(&self, paused: bool) -> Result<(), OutboxError> {
        self.storage.lock().unwrap().paused_by = paused.then_some(self.number);
        self.entries().set_paused(paused)
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        let storage = self.storage.lock().unwrap();
        if self.fault == LeaseFault::ForgetsPauses && storage.paused_by == Some(self.number) {
            storage.entries.set_paused(false).unwrap();
        }
    }
}

#[test]
fn each_rule_that_a_lease_can_break_is_found_out() {
    let found = |fault: LeaseFault| {
        let storages = Mutex::new(HashMap::<String, Arc<Mutex<LeaseStorage>>>::new());
        let open = |destination: &str| {
            let mut storages = storages.lock().unwrap();
            let new = || {
                let entries = MemoryOutbox::new(1_000, 100_000_000);
                Arc::new(Mutex::new(LeaseStorage { entries, holder: None, handles: 0, paused_by: None }))
            };
            Leased::open(fault, storages.entry(destination.to_owned()).or_insert_with(new))
        };
        OutboxSuite::new(open).run().map_err(|broken| broken.findings)
    };
    let rows = [
        (LeaseFault::CutsLongMessages, "entry: a message of any bytes and length comes back as it was"),
        (LeaseFault::OldestIsAlwaysNew, "oldest: the oldest entry's time is that of its push"),
        (LeaseFault::SaysNotUntilWhen, "taken-over: a claim that can be lost says until when it lasts"),
        (LeaseFault::LetsTheLateSettle, "taken-over: what another has taken over is not settled"),
        (LeaseFault::KeepsWhatIsReleased, "released: what was given up can be claimed at once"),
        (LeaseFault::KeepsRefusals, "requeued: what is queued again begins anew"),
        (LeaseFault::DiscardsNothingThatWaits, "discarded: what waits can be discarded"),
        (LeaseFault::ForgetsUnknowns, "unknown: unknown results are counted"),
        (LeaseFault::ForgetsHolds, "hold: what was held while it was being sent stays held"),
        (LeaseFault::ForgetsPauses, "paused: a destination that is paused hands out nothing"),
        (LeaseFault::IgnoresKeys, "keyed: a push that is repeated under its key is one entry"),
        (LeaseFault::ListsTheDeadAmongTheWaiting, "listed: the queue is listed in its order"),
    ];
    thread::scope(|scope| {
        let right = scope.spawn(|| found(LeaseFault::None));
        let wrong = rows.map(|(fault, finding)| (fault, finding, scope.spawn(move || found(fault))));
        assert_eq!(right.join().unwrap(), Ok(()));
        for (fault, finding, found) in wrong {
            let findings = found.join().unwrap().unwrap_err();
            assert!(findings.iter().any(|found| found == finding), "{fault:?}: {findings:?}");
        }
    });
}

/// Of many threads that claim over clones of one handle, each entry has one at a time, and no entry
/// comes again once it is delivered.
fn one_of_many_threads_has_a_claim<O: Outbox + Clone>(name: &str, outbox: &O) {
    const ENTRIES: usize = 300;
    for number in 0..ENTRIES {
        outbox.push(message(&number.to_string()).as_bytes()).unwrap();
    }
    let held = Mutex::new(());
    let next = Mutex::new(0);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let outbox = outbox.clone();
                while *next.lock().unwrap() < ENTRIES {
                    let Some(claim) = outbox.claim().unwrap() else { continue };
                    let alone = held.try_lock().unwrap_or_else(|_| panic!("{name}: two claims at a time"));
                    let mut next = next.lock().unwrap();
                    assert_eq!(claim.entry.control_id, next.to_string(), "{name}");
                    *next += 1;
                    drop(next);
                    drop(alone);
                    outbox.settle(&claim, Settlement::Delivered).unwrap();
                }
            });
        }
    });
}

#[test]
fn one_of_many_threads_claims_in_memory() {
    one_of_many_threads_has_a_claim("memory", &MemoryOutbox::new(1_000, 10_000_000));
}

#[test]
fn memory_is_bounded() {
    let size = message("1").len();
    let full = |result| matches!(result, Err(OutboxError::Full { .. }));
    let by_count = MemoryOutbox::new(2, usize::MAX);
    let by_bytes = MemoryOutbox::new(usize::MAX, 2 * size);
    for (outbox, by_bytes) in [(by_count, false), (by_bytes, true)] {
        outbox.push(message("1").as_bytes()).unwrap();
        outbox.push(message("2").as_bytes()).unwrap();
        assert!(full(outbox.push(message("3").as_bytes())));
        let waiting = outbox.clone().wait_when_full(SHORT);
        assert!(full(limited(SHORT, || waiting.push(message("3").as_bytes()))));
        // What is dead takes its room, too.
        let claim = outbox.claim().unwrap().unwrap();
        outbox.settle(&claim, Settlement::Dead { why: "x" }).unwrap();
        assert!(full(outbox.push(message("3").as_bytes())));
        let dead = claim.entry.id;
        thread::scope(|scope| {
            let pusher = scope.spawn(|| outbox.clone().wait_when_full(LONG).push(message("3").as_bytes()));
            assert!(outbox.discard(dead).unwrap());
            pusher.join().unwrap().unwrap();
        });
        assert_eq!((outbox.pending().unwrap().waiting, outbox.dropped()), (2, 0));
        // The oldest that may be thrown away is not the one being sent.
        let claim = outbox.claim().unwrap().unwrap();
        assert_eq!(claim.entry.control_id, "2");
        outbox.clone().drop_oldest_when_full().push(message("4").as_bytes()).unwrap();
        assert_eq!((outbox.pending().unwrap().waiting, outbox.dropped()), (2, 1));
        outbox.settle(&claim, Settlement::Delivered).unwrap();
        let claim = outbox.claim().unwrap().unwrap();
        assert_eq!(claim.entry.control_id, "4");
        // For what would not fit all the same, nothing is thrown away.
        outbox.settle(&claim, Settlement::Dead { why: "x" }).unwrap();
        outbox.push(message("5").as_bytes()).unwrap();
        let large = common::message_of("6", 2 * size);
        let pushed = outbox.clone().drop_oldest_when_full().push(&large);
        assert_eq!((full(pushed), outbox.dropped()), if by_bytes { (true, 1) } else { (false, 2) });
    }
    let small = MemoryOutbox::new(10, size - 1);
    let refused = small.push(message("1").as_bytes()).unwrap_err();
    assert!(matches!(refused, OutboxError::InvalidMessage(MessageError::TooLarge { .. })), "{refused:?}");
    assert!(!format!("{small:?} {refused} {refused:?}").contains("PROBE"));
}

#[test]
fn an_outbox_may_be_shared_as_any_other_value() {
    let outbox: Arc<dyn Outbox> = Arc::new(MemoryOutbox::new(10, 1_000));
    let id = outbox.push(message("1").as_bytes()).unwrap();
    let claim = outbox.claim().unwrap().unwrap();
    assert_eq!((claim.entry.id, claim.until), (id, None));
    outbox.settle(&claim, Settlement::Delivered).unwrap();
    assert_eq!(outbox.pending().unwrap(), Pending::new(0, None, 0));
}

/// Leaves a message of this size at the head, tried once, and not to be tried again for long.
#[cfg(any(feature = "redis", feature = "sqlite"))]
fn let_rest(outbox: &impl Outbox, size: usize) {
    outbox.push(&common::message_of("1", size)).unwrap();
    let claim = outbox.claim().unwrap().unwrap();
    outbox.settle(&claim, Settlement::Retry { after: LONG * 10, refused: false, why: "x" }).unwrap();
}

#[cfg(feature = "redis")]
mod redis {
    use super::*;
    use common::redis::Redis;
    use mllp_client::outbox::RedisOutbox;

    #[test]
    fn redis_keeps_the_contract() {
        let Some(redis) = Redis::start() else { return };
        let open =
            |destination: &str| RedisOutbox::open(&redis.url(), destination).unwrap().lease(Duration::from_millis(500));
        OutboxSuite::new(open).run().unwrap();
        let redis = Redis::start().unwrap();
        let open = |destination: &str| {
            let outbox = RedisOutbox::open(&redis.url(), destination).unwrap();
            outbox.lease(Duration::from_millis(500)).lanes(4)
        };
        OutboxSuite::new(open).run().unwrap();
    }

    #[test]
    fn who_comes_back_too_late_has_lost_its_claim() {
        let Some(redis) = Redis::start() else { return };
        let lease = Duration::from_millis(300);
        let [late, next] = [0, 1].map(|_| RedisOutbox::open(&redis.url(), "ehr").unwrap().lease(lease));
        late.push(message("1").as_bytes()).unwrap();
        let begun = Instant::now();
        let lost = late.claim().unwrap().unwrap();
        assert!(lost.until.unwrap() <= begun + lease);
        let taken = loop {
            match next.claim().unwrap() {
                Some(claim) => break claim,
                None => next.wait(LONG),
            }
        };
        assert!(begun.elapsed() >= lease && taken.token > lost.token && taken.entry == lost.entry);
        assert!(matches!(late.settle(&lost, Settlement::Delivered), Err(OutboxError::ClaimLost)));
        next.settle(&taken, Settlement::Delivered).unwrap();
        // Given up, it is another's at once, without waiting for the lease.
        next.push(message("2").as_bytes()).unwrap();
        let patient = RedisOutbox::open(&redis.url(), "other").unwrap();
        patient.push(message("3").as_bytes()).unwrap();
        let claim = patient.claim().unwrap().unwrap();
        patient.release();
        let other = RedisOutbox::open(&redis.url(), "other").unwrap();
        assert_eq!(other.claim().unwrap().unwrap().entry, claim.entry);
    }

    #[test]
    fn a_number_that_is_given_out_twice_settles_its_own_entry_alone() {
        let Some(redis) = Redis::start() else { return };
        let [holder, pusher] = [0, 1].map(|_| RedisOutbox::open(&redis.url(), "ehr").unwrap());
        for settlement in [
            Settlement::Delivered,
            Settlement::Dead { why: "x" },
            Settlement::Retry { after: Duration::ZERO, refused: false, why: "x" },
        ] {
            let id = holder.push(message("1").as_bytes()).unwrap();
            let claim = holder.claim().unwrap().unwrap();
            // As a replica has it that takes over and lacks the last push.
            redis.command(&format!("DEL mllp-outbox:{{ehr}}:entry:{id}"));
            redis.command(&format!("ZREM mllp-outbox:{{ehr}}:waiting {id}"));
            redis.command(&format!("SET mllp-outbox:{{ehr}}:last {}", id - 1));
            assert_eq!(pusher.push(message("2").as_bytes()).unwrap(), id);
            assert!(matches!(holder.begin(&claim), Err(OutboxError::ClaimLost)));
            assert!(matches!(holder.settle(&claim, settlement), Err(OutboxError::ClaimLost)));
            let other = holder.claim().unwrap().unwrap();
            assert_eq!((other.entry.id, &*other.entry.control_id, other.entry.attempts), (id, "2", 0));
            holder.settle(&other, Settlement::Delivered).unwrap();
            assert_eq!(holder.pending().unwrap().waiting, 0);
        }
    }

    fn is_replaced<T: std::fmt::Debug>(result: Result<T, OutboxError>) {
        assert!(matches!(result, Err(OutboxError::StorageReplaced { .. })), "{result:?}");
    }

    #[test]
    fn a_server_that_came_back_empty_or_older_is_noticed() {
        let Some(mut redis) = Redis::start() else { return };
        for state in ["emptied", "restarted empty", "restarted older"] {
            redis.command("FLUSHALL");
            let [pusher, looker] = [0, 1].map(|_| RedisOutbox::open(&redis.url(), "ehr").unwrap());
            pusher.push(message("1").as_bytes()).unwrap();
            let claim = pusher.claim().unwrap().unwrap();
            let saved = redis.save();
            pusher.push(message("2").as_bytes()).unwrap();
            match state {
                "emptied" => drop(redis.command("FLUSHALL")),
                "restarted empty" => {
                    redis.command("FLUSHALL");
                    redis.kill();
                    redis.restart().unwrap();
                }
                _ => {
                    redis.kill();
                    redis.put_back(&saved);
                    redis.restart().unwrap();
                }
            }
            redis.command("PING");
            is_replaced(pusher.push(message("3").as_bytes()));
            is_replaced(pusher.claim());
            is_replaced(pusher.pending());
            is_replaced(pusher.push(message("3").as_bytes()));
            // What is in flight is settled by its identity, as far as it is there.
            let settled = pusher.settle(&claim, Settlement::Delivered);
            assert_eq!(settled.is_ok(), state == "restarted older", "{state}: {settled:?}");
            if state != "restarted older" {
                is_replaced(looker.pending());
            }
            pusher.go_on().unwrap();
            let id = pusher.push(message("3").as_bytes()).unwrap();
            let claim = pusher.claim().unwrap().unwrap();
            assert_eq!((claim.entry.id, &*claim.entry.control_id), (id, "3"), "{state}");
            pusher.settle(&claim, Settlement::Delivered).unwrap();
            // A handle that is opened then takes it as it is.
            RedisOutbox::open(&redis.url(), "ehr").unwrap().push(message("4").as_bytes()).unwrap();
        }
    }

    #[test]
    fn forwarding_takes_one_script_a_message_and_idling_next_to_nothing() {
        let Some(redis) = Redis::start() else { return };
        let receiver = mllp_client::testing::Receiver::accepting().unwrap();
        let outboxes = ["1", "2", "3", "4"].map(|name| RedisOutbox::open(&redis.url(), name).unwrap());
        const MESSAGES: u64 = 200;
        for number in 0..MESSAGES {
            outboxes[0].push(message(&number.to_string()).as_bytes()).unwrap();
        }
        let calls = || redis.command_calls("evalsha");
        let before = calls();
        let forwarders = outboxes.each_ref().map(|outbox| {
            let client = common::client(&receiver.endpoint(), Duration::from_secs(10));
            mllp_client::outbox::Forwarder::builder(outbox.clone(), client).start().unwrap()
        });
        assert!(receiver.wait_for(MESSAGES as usize, LONG));
        let scripts = calls() - before;
        assert!(scripts <= MESSAGES + 40, "{scripts} scripts for {MESSAGES} messages");
        assert!(forwarders[0].drain(LONG).unwrap());
        let commands = || redis.stat("total_commands_processed");
        common::pass(SHORT);
        let (before, seconds) = (commands(), 3);
        common::pass(Duration::from_secs(seconds));
        let each = (commands() - before) / outboxes.len() as u64;
        assert!(each <= 2 * seconds + 8, "{each} commands for each idle destination in {seconds} s");
        // Idle or not, what is pushed elsewhere is sent at once.
        let begun = Instant::now();
        RedisOutbox::open(&redis.url(), "3").unwrap().push(message("last").as_bytes()).unwrap();
        assert!(receiver.wait_for(MESSAGES as usize + 1, LONG) && begun.elapsed() < Duration::from_secs(2));
        assert!(forwarders.iter().all(|forwarder| common::prompt(|| forwarder.stop(LONG))));
    }

    #[test]
    fn a_push_waits_for_replicas_if_it_is_to() {
        let Some(redis) = Redis::start() else { return };
        let outbox =
            RedisOutbox::open(&redis.url(), "ehr").unwrap().timeout(Duration::from_secs(2)).wait_for_replicas(1);
        let alone = outbox.push(message("1").as_bytes()).unwrap_err();
        assert!(alone.to_string().contains("0 of 1 replicas"), "{alone}");
        assert_eq!(outbox.pending().unwrap().waiting, 1, "it is stored");
    }

    #[test]
    fn a_sentinel_leads_to_the_new_primary() {
        let (Some(mut primary), Some(replica)) = (Redis::start(), Redis::start()) else { return };
        replica.follow(&primary);
        let sentinel = primary.watched();
        common::eventually("the sentinel knows the replica", || {
            sentinel.command("SENTINEL replicas primary").contains(&replica.port().to_string())
        });
        let client = ::redis::sentinel::SentinelClient::build(
            vec![sentinel.url()],
            "primary".to_owned(),
            None,
            ::redis::sentinel::SentinelServerType::Master,
        );
        let outbox = RedisOutbox::with_sentinel(client.unwrap(), "ehr").unwrap().wait_for_replicas(1);
        outbox.push(message("1").as_bytes()).unwrap();
        primary.kill();
        let outbox = outbox.wait_for_replicas(0);
        let mut pushed = None;
        common::eventually("the replica is promoted", || {
            pushed = outbox.push(message("2").as_bytes()).ok();
            pushed.is_some()
        });
        for id in ["1", "2"] {
            let claim = outbox.claim().unwrap().unwrap();
            assert_eq!(claim.entry.control_id, id);
            outbox.settle(&claim, Settlement::Delivered).unwrap();
        }
    }

    #[test]
    fn destinations_are_listed_removed_and_pushed_to_in_one_step() {
        let Some(redis) = Redis::start() else { return };
        let client = ::redis::Client::open(redis.url()).unwrap();
        let open = |name: &str| RedisOutbox::with_client(client.clone(), name).unwrap();
        let [one, other] = ["one", "other"].map(open);
        let ids = one.push_to(&["one", "other", "third"], message("1").as_bytes()).unwrap();
        assert_eq!(ids, [1, 1, 1]);
        for outbox in [&one, &other, &open("third")] {
            let claim = outbox.claim().unwrap().unwrap();
            assert_eq!((claim.entry.control_id.as_str(), &*claim.entry.destination), ("1", outbox.destination()));
            assert!(!outbox.remove_destination().unwrap(), "it has an entry");
            outbox.settle(&claim, Settlement::Delivered).unwrap();
        }
        let mut names = one.destinations().unwrap();
        names.sort();
        assert_eq!(names, ["one", "other", "third"]);
        assert!(other.remove_destination().unwrap());
        assert_eq!(one.destinations().unwrap().len(), 2);
        // Under another prefix there is another outbox.
        let prefixed = RedisOutbox::with_key_prefix(client.clone(), "hospital", "one").unwrap();
        prefixed.push(message("2").as_bytes()).unwrap();
        assert_eq!((one.pending().unwrap().waiting, prefixed.pending().unwrap().waiting), (0, 1));
        assert_eq!(prefixed.destinations().unwrap(), ["one"]);
    }

    #[test]
    fn a_message_that_rests_is_not_sent_over_again() {
        let Some(redis) = Redis::start() else { return };
        let outbox = RedisOutbox::open(&redis.url(), "ehr").unwrap();
        let_rest(&outbox, 1_000_000);
        let sent = || redis.stat("total_net_output_bytes");
        let before = sent();
        for _ in 0..20 {
            assert_eq!(outbox.claim().unwrap(), None);
        }
        assert!(sent() - before < 200_000);
    }

    #[test]
    fn a_server_that_throws_messages_away_is_refused() {
        let Some(redis) = Redis::start() else { return };
        for (memory, policy, is_taken) in [
            ("100mb", "noeviction", true),
            ("100mb", "allkeys-lru", false),
            ("100mb", "volatile-ttl", false),
            ("0", "allkeys-lru", true),
        ] {
            redis.command(&format!("CONFIG SET maxmemory {memory}"));
            redis.command(&format!("CONFIG SET maxmemory-policy {policy}"));
            match RedisOutbox::open(&redis.url(), "ehr") {
                Ok(_) => assert!(is_taken, "{memory} {policy}"),
                Err(OutboxError::Config(said)) => assert!(!is_taken && said.contains(policy), "{said}"),
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[test]
    fn one_of_many_threads_claims() {
        let Some(redis) = Redis::start() else { return };
        one_of_many_threads_has_a_claim("redis", &RedisOutbox::open(&redis.url(), "ehr").unwrap());
    }

    #[test]
    fn what_was_claimed_ahead_is_held_discarded_and_paused() {
        let Some(redis) = Redis::start() else { return };
        for order in ["hold", "discard", "pause"] {
            let outbox = RedisOutbox::open(&redis.url(), order).unwrap();
            let ids = ["1", "2", "3"].map(|id| outbox.push(message(id).as_bytes()).unwrap());
            outbox.settle(&outbox.claim().unwrap().unwrap(), Settlement::Delivered).unwrap();
            match order {
                "hold" => assert!(outbox.hold(ids[1]).unwrap()),
                "discard" => assert!(outbox.discard(ids[1]).unwrap()),
                _ => outbox.set_paused(true).unwrap(),
            }
            let claimed = outbox.claim().unwrap().map(|claim| claim.entry.id);
            assert_eq!(claimed, (order == "discard").then_some(ids[2]), "{order}");
        }
        let outbox = RedisOutbox::open(&redis.url(), "lists").unwrap();
        outbox.push(message("1").as_bytes()).unwrap();
        assert_eq!(outbox.list(None, 0, usize::MAX).unwrap().len(), 1);
        assert!(outbox.stopped(0, usize::MAX).unwrap().is_empty());
        let claim = outbox.claim().unwrap().unwrap();
        outbox.begin(&claim).unwrap();
        assert_eq!(outbox.list(Some(EntryState::Sending), 0, 10).unwrap()[0].id, claim.entry.id);
    }

    #[test]
    fn an_idle_forwarder_whose_connections_were_closed_stops_at_once() {
        let Some(redis) = Redis::start() else { return };
        let receiver = mllp_client::testing::Receiver::accepting().unwrap();
        let outbox = RedisOutbox::open(&redis.url(), "ehr").unwrap();
        let client = common::client(&receiver.endpoint(), Duration::from_secs(10));
        let forwarder = mllp_client::outbox::Forwarder::builder(outbox.clone(), client).start().unwrap();
        assert!(forwarder.drain(LONG).unwrap());
        outbox.push(message("1").as_bytes()).unwrap();
        assert!(forwarder.drain(LONG).unwrap());
        // But for the one that waits.
        redis.command("CLIENT NO-EVICT ON");
        common::eventually("it waits", || redis.command("CLIENT LIST").contains("cmd=blpop"));
        let list = redis.command("CLIENT LIST");
        for line in list.lines().filter(|line| line.contains("cmd=evalsha")) {
            let id = line.split("id=").nth(1).unwrap().split(' ').next().unwrap();
            redis.command(&format!("CLIENT KILL ID {id}"));
        }
        let begun = Instant::now();
        assert!(forwarder.stop(LONG) && begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_cluster_is_refused() {
        let Some(redis) = Redis::start_as(&["--cluster-enabled", "yes"]) else { return };
        let refused = RedisOutbox::open(&redis.url(), "ehr").unwrap_err();
        assert!(matches!(&refused, OutboxError::Config(said) if said.contains("cluster")), "{refused:?}");
    }

    #[test]
    fn a_demoted_server_is_asked_over_new_connections() {
        let Some(redis) = Redis::start() else { return };
        let outbox = RedisOutbox::open(&redis.url(), "ehr").unwrap();
        let first = outbox.push(message("1").as_bytes()).unwrap();
        let connections = || redis.stat("total_connections_received");
        redis.command("REPLICAOF 127.0.0.1 1");
        let refused = |result: Result<(), OutboxError>| {
            let error = result.unwrap_err();
            assert!(error.to_string().contains("is a replica"), "{error}");
        };
        for _ in 0..3 {
            // Its name or address may lead to another server by now.
            let before = connections();
            refused(outbox.push(message("2").as_bytes()).map(drop));
            assert!(connections() >= before + 2, "one for the question, one for the push");
        }
        refused(outbox.claim().map(drop));
        refused(outbox.pending().map(drop));
        refused(outbox.stopped(0, 10).map(drop));
        redis.command("REPLICAOF NO ONE");
        assert_eq!(outbox.claim().unwrap().unwrap().entry.id, first);
        outbox.push(message("2").as_bytes()).unwrap();
        assert_eq!(outbox.pending().unwrap().waiting, 2);
    }

    #[test]
    fn a_server_that_is_away_is_said_to_be_and_found_again() {
        let Some(mut redis) = Redis::start() else { return };
        let outbox = RedisOutbox::open(&redis.url(), "ehr").unwrap();
        let first = outbox.push(message("1").as_bytes()).unwrap();
        redis.kill();
        let away = outbox.push(message("2").as_bytes()).unwrap_err();
        assert!(
            matches!(away, OutboxError::Storage { .. }) && away.to_string().contains("cannot be reached"),
            "{away}"
        );
        assert!(matches!(RedisOutbox::open(&redis.url(), "ehr"), Err(OutboxError::Storage { .. })));
        redis.restart().unwrap();
        let claim = loop {
            // It reads its log before it answers.
            match outbox.claim() {
                Ok(Some(claim)) => break claim,
                Ok(None) | Err(OutboxError::Storage { .. }) => {}
                Err(error) => panic!("{error:?}"),
            }
        };
        assert_eq!((claim.entry.id, outbox.pending().unwrap().waiting), (first, 1));
    }

    #[test]
    fn a_full_server_is_drained() {
        let Some(redis) = Redis::start() else { return };
        let mut server = ::redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
        let mut limit = |bytes: &str| {
            ::redis::cmd("CONFIG").arg(&["SET", "maxmemory", bytes]).exec(&mut server).unwrap();
        };
        let outbox = RedisOutbox::open(&redis.url(), "ehr").unwrap().lease(Duration::from_millis(200));
        for id in ["1", "2"] {
            outbox.push(message(id).as_bytes()).unwrap();
        }
        limit("1");
        let full = outbox.push(message("3").as_bytes()).unwrap_err();
        assert!(matches!(full, OutboxError::Full { .. }), "{full:?}");
        // A holder that has just come, too, gets what is there and says what became of it.
        let other = RedisOutbox::open(&redis.url(), "ehr").unwrap();
        let claim = other.claim().unwrap().unwrap();
        other.begin(&claim).unwrap();
        other.settle(&claim, Settlement::Retry { after: Duration::ZERO, refused: false, why: "x" }).unwrap();
        let claim = other.claim().unwrap().unwrap();
        other.settle(&claim, Settlement::Dead { why: "x" }).unwrap();
        assert!(other.requeue(claim.entry.id).unwrap());
        for id in ["1", "2"] {
            let claim = other.claim().unwrap().unwrap();
            assert_eq!(claim.entry.control_id, id);
            other.settle(&claim, Settlement::Delivered).unwrap();
        }
        limit("0");
        outbox.push(message("3").as_bytes()).unwrap();
    }

    #[test]
    fn a_password_is_not_told() {
        let refused = RedisOutbox::open("redis://:opensesame@127.0.0.1:1/", "ehr").unwrap_err();
        let no_address = RedisOutbox::open("nonsense://:opensesame@x", "ehr").unwrap_err();
        assert!(matches!(no_address, OutboxError::Config(_)));
        assert!(!format!("{refused} {refused:?} {no_address} {no_address:?}").contains("opensesame"));
    }

    #[test]
    fn what_the_server_has_thrown_away_is_told_and_passed_over() {
        let Some(redis) = Redis::start() else { return };
        let outbox = RedisOutbox::open(&redis.url(), "ehr").unwrap();
        let id = outbox.push(message("1").as_bytes()).unwrap();
        outbox.push(message("2").as_bytes()).unwrap();
        let mut server = ::redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
        ::redis::cmd("DEL").arg(format!("mllp-outbox:{{ehr}}:entry:{id}")).exec(&mut server).unwrap();
        assert!(matches!(outbox.claim(), Err(OutboxError::Stopped { .. })));
        assert_eq!(outbox.claim().unwrap().unwrap().entry.control_id, "2");
        assert_eq!(outbox.pending().unwrap().dead, 1);
    }
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;
    use common::eventually;
    use mllp_client::outbox::SqliteOutbox;
    use rusqlite::Connection;

    #[test]
    fn sqlite_keeps_the_contract() {
        let _tidy = Tidy::up();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("outbox.db");
        OutboxSuite::new(|destination: &str| SqliteOutbox::open(&path, destination).unwrap()).run().unwrap();
        // And with one connection for all destinations.
        let path = directory.path().join("another.db");
        let outbox = SqliteOutbox::open(&path, "first").unwrap().keep_delivered(None);
        OutboxSuite::new(|destination: &str| outbox.for_destination(destination).unwrap()).run().unwrap();
        let path = directory.path().join("lanes.db");
        let open = |destination: &str| SqliteOutbox::open(&path, destination).unwrap().lanes(4);
        OutboxSuite::new(open).run().unwrap();
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_message_that_rests_is_not_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let outbox = SqliteOutbox::open(directory.path().join("outbox.db"), "ehr").unwrap();
        let_rest(&outbox, 10_000_000);
        let read = || {
            // Of this thread alone: other tests read too.
            let counters = std::fs::read_to_string("/proc/thread-self/io").unwrap();
            counters.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse::<u64>().unwrap()
        };
        let before = read();
        for _ in 0..20 {
            assert_eq!(outbox.claim().unwrap(), None);
        }
        assert!(read() - before < 10_000_000);
    }

    #[test]
    fn a_shell_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("outbox.db");
        let outbox = SqliteOutbox::open(&path, "ehr").unwrap();
        for id in ["1", "2", "3"] {
            outbox.push(message(id).as_bytes()).unwrap();
        }
        outbox.settle(&outbox.claim().unwrap().unwrap(), Settlement::Delivered).unwrap();
        outbox.settle(&outbox.claim().unwrap().unwrap(), Settlement::Dead { why: "an invented refusal" }).unwrap();
        let read = Connection::open(&path).unwrap();
        let ids = |view: &str| -> Vec<(String, String, Option<String>)> {
            let failure = if view == "show_delivered" { "NULL" } else { "last_failure" };
            let mut query = read.prepare(&format!("SELECT destination, control_id, {failure} FROM {view}")).unwrap();
            let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
            rows.map(Result::unwrap).collect()
        };
        let row = |id: &str, why: Option<&str>| vec![("ehr".to_owned(), id.to_owned(), why.map(str::to_owned))];
        assert_eq!(ids("show_delivered"), row("1", None));
        assert_eq!(ids("show_dead"), row("2", Some("an invented refusal")));
        assert_eq!(ids("show_waiting"), row("3", None));
        // The shell itself, where there is one.
        if let Ok(output) = Command::new("sqlite3").arg(&path).arg("SELECT control_id FROM show_dead").output() {
            assert_eq!(String::from_utf8(output.stdout).unwrap(), "2\n");
        }
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "its owner's alone");
    }

    #[test]
    fn delivered_entries_are_kept_for_their_time() {
        let directory = tempfile::tempdir().unwrap();
        for (name, keep, left) in
            [("not", None, 0), ("a week", Some(Duration::from_secs(604_800)), 3), ("no time", Some(Duration::ZERO), 0)]
        {
            let path = directory.path().join(name);
            let outbox = SqliteOutbox::open(&path, "ehr").unwrap().keep_delivered(keep);
            for id in ["1", "2", "3"] {
                outbox.push(message(id).as_bytes()).unwrap();
                outbox.settle(&outbox.claim().unwrap().unwrap(), Settlement::Delivered).unwrap();
            }
            drop(outbox);
            let outbox = SqliteOutbox::open(&path, "ehr").unwrap().keep_delivered(keep);
            // The clock counts in milliseconds.
            common::pass(Duration::from_millis(2));
            assert_eq!(outbox.claim().unwrap(), None);
            let count = |table| {
                let read = Connection::open(&path).unwrap();
                read.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, i64>(0)).unwrap()
            };
            assert_eq!((count("delivered"), count("message")), (left, left), "{name}");
        }
    }

    #[test]
    fn a_file_of_the_first_version_becomes_one_of_this() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("outbox.db");
        let outbox = SqliteOutbox::open(&path, "ehr").unwrap();
        outbox.push(message("1").as_bytes()).unwrap();
        drop(outbox);
        let file = Connection::open(&path).unwrap();
        // What the later versions have added.
        file.execute_batch(
            "DROP VIEW show_waiting; DROP VIEW show_dead; DROP VIEW show_delivered; PRAGMA user_version = 1;
             DROP INDEX lane; DROP INDEX ready; DROP TABLE flight; DROP INDEX rest_ends; DROP INDEX rest_begins;
             ALTER TABLE destination DROP COLUMN lane_rule; ALTER TABLE destination DROP COLUMN lanes_from;
             ALTER TABLE waiting DROP COLUMN lane; ALTER TABLE waiting DROP COLUMN ready;
             ALTER TABLE waiting DROP COLUMN rested_at;
             ALTER TABLE dead DROP COLUMN lane; ALTER TABLE delivered DROP COLUMN lane;
             DROP INDEX held; DROP TABLE claim; DROP TABLE pushed_key; DROP TABLE pusher;
             ALTER TABLE waiting DROP COLUMN begun;
             ALTER TABLE destination DROP COLUMN paused; ALTER TABLE destination DROP COLUMN keep;
             ALTER TABLE waiting DROP COLUMN unknowns; ALTER TABLE waiting DROP COLUMN identity;
             ALTER TABLE dead DROP COLUMN unknowns; ALTER TABLE dead DROP COLUMN identity",
        )
        .unwrap();
        drop(file);
        let outbox = SqliteOutbox::open(&path, "ehr").unwrap();
        assert_eq!(outbox.claim().unwrap().unwrap().entry.message, message("1").as_bytes());
        let file = Connection::open(&path).unwrap();
        let waiting: i64 = file.query_row("SELECT count(*) FROM show_waiting", [], |row| row.get(0)).unwrap();
        let version: i64 = file.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
        assert_eq!((waiting, version), (1, 4));
    }

    #[test]
    fn what_is_no_outbox_of_this_version_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        drop(SqliteOutbox::open(path("newer"), "ehr").unwrap());
        Connection::open(path("newer")).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
        Connection::open(path("foreign")).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
        fs::write(
            path("text"),
            "This is a text, and no database, of some length; longer than a header of a hundred bytes has to be.",
        )
        .unwrap();
        for (name, said) in
            [("newer", "version 99"), ("foreign", "another kind"), ("text", "damaged"), ("not/there", "is not there")]
        {
            let before = fs::read(path(name)).ok();
            let error = SqliteOutbox::open(path(name), "ehr").unwrap_err();
            assert!(error.to_string().contains(said), "{name}: {error}");
            assert_eq!(before.is_none(), fs::read(path(name)).is_err(), "{name}");
        }
        assert!(matches!(SqliteOutbox::open(directory.path(), "ehr"), Err(OutboxError::Storage { .. })));
    }

    #[test]
    fn a_file_that_was_replaced_or_came_back_older_is_noticed() {
        let is_replaced = |result: Result<(), OutboxError>| {
            assert!(matches!(result, Err(OutboxError::StorageReplaced { .. })), "{result:?}");
        };
        for state in ["removed", "replaced", "older"] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("outbox.db");
            let outbox = SqliteOutbox::open(&path, "ehr").unwrap();
            let first = outbox.push(message("1").as_bytes()).unwrap();
            let files = ["", "-wal", "-shm"].map(|ending| format!("{}{ending}", path.display()));
            match state {
                "older" => {
                    // As a shell restores it.
                    outbox.push(message("2").as_bytes()).unwrap();
                    let shell = Connection::open(&path).unwrap();
                    shell.execute_batch("DELETE FROM waiting; UPDATE sqlite_sequence SET seq = 0").unwrap();
                    shell.execute_batch("DELETE FROM message").unwrap();
                }
                _ => files.iter().for_each(|file| fs::remove_file(file).unwrap()),
            }
            let mut new = None;
            if state == "replaced" {
                let other = SqliteOutbox::open(&path, "ehr").unwrap();
                assert_eq!(other.push(message("3").as_bytes()).unwrap(), first, "a new file, with numbers of its own");
                new = Some(other);
            }
            is_replaced(outbox.claim().map(drop));
            is_replaced(outbox.push(message("4").as_bytes()).map(drop));
            is_replaced(outbox.pending().map(drop));
            if state == "older" {
                outbox.go_on().unwrap();
                assert_eq!(outbox.push(message("4").as_bytes()).unwrap(), 1);
            } else {
                is_replaced(outbox.go_on());
                let again = new.unwrap_or_else(|| SqliteOutbox::open(&path, "ehr").unwrap());
                again.push(message("4").as_bytes()).unwrap();
                assert_eq!(again.pending().unwrap().waiting, if state == "replaced" { 2 } else { 1 });
            }
        }
    }

    #[test]
    fn a_clock_that_was_set_back_makes_nothing_old() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("outbox.db");
        let outbox = SqliteOutbox::open(&path, "ehr").unwrap();
        outbox.push(message("1").as_bytes()).unwrap();
        // As if it had been pushed tomorrow.
        Connection::open(&path).unwrap().execute("UPDATE waiting SET pushed_at = pushed_at + 86400000", []).unwrap();
        let refuse = mllp_client::testing::Step::refuse(mllp_client::AckCode::ApplicationError, "no");
        let receiver = mllp_client::testing::Receiver::scripted([refuse]).unwrap();
        outbox.set_paused(true).unwrap();
        let forwarder = mllp_client::outbox::Forwarder::builder(outbox, common::client(&receiver.endpoint(), LONG))
            .initial_delay(Duration::from_millis(1))
            .max_age(Duration::from_secs(3600))
            .start()
            .unwrap();
        assert!(forwarder.status().unwrap().oldest_age.unwrap() < Duration::from_secs(3600));
        forwarder.resume().unwrap();
        assert!(forwarder.drain(LONG).unwrap());
        let status = forwarder.status().unwrap();
        assert_eq!((status.delivered, status.dead, status.counters.retries), (1, 0, 1));
    }

    #[test]
    fn one_of_many_threads_claims() {
        let directory = tempfile::tempdir().unwrap();
        let outbox = SqliteOutbox::open(directory.path().join("outbox.db"), "ehr").unwrap();
        one_of_many_threads_has_a_claim("sqlite", &outbox);
    }

    #[test]
    fn an_older_copy_a_lost_log_and_a_link_that_leads_elsewhere_are_noticed() {
        for state in ["older, pushed to since", "log", "link"] {
            let directory = tempfile::tempdir().unwrap();
            let [path, link, other] = ["outbox.db", "link.db", "other.db"].map(|name| directory.path().join(name));
            fs::write(&path, "").unwrap();
            std::os::unix::fs::symlink(&path, &link).unwrap();
            let outbox = SqliteOutbox::open(&link, "ehr").unwrap();
            for id in ["1", "2"] {
                outbox.push(message(id).as_bytes()).unwrap();
            }
            match state {
                "log" => fs::remove_file(format!("{}-wal", path.display())).unwrap(),
                "link" => {
                    fs::remove_file(&link).unwrap();
                    std::os::unix::fs::symlink(&other, &link).unwrap();
                    drop(SqliteOutbox::open(&other, "ehr").unwrap());
                }
                _ => {
                    // An older copy, in which others have given out more numbers.
                    let shell = Connection::open(&path).unwrap();
                    shell.execute_batch("UPDATE pusher SET pushes = 1; UPDATE sqlite_sequence SET seq = 99").unwrap();
                }
            }
            for _ in 0..2 {
                let pushed = outbox.push(message("3").as_bytes());
                let is_told = matches!(pushed, Err(OutboxError::StorageReplaced { .. } | OutboxError::Storage { .. }));
                assert!(is_told, "{state}: {pushed:?}");
            }
            if state != "log" {
                assert!(matches!(outbox.claim(), Err(OutboxError::StorageReplaced { .. })), "{state}");
            }
        }
    }

    #[test]
    fn a_call_keeps_its_own_limit_whoever_else_waits() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("outbox.db");
        let open = |limit| SqliteOutbox::open(&path, "ehr").unwrap().timeout(limit);
        let (patient, hasty) = (open(Duration::from_secs(2)), open(SHORT));
        patient.push(message("1").as_bytes()).unwrap();
        let shell = Connection::open(&path).unwrap();
        shell.execute_batch("BEGIN IMMEDIATE").unwrap();
        thread::scope(|scope| {
            scope.spawn(|| assert!(patient.push(message("2").as_bytes()).is_err()));
            scope.spawn(|| assert!(patient.claim().is_err()));
            for _ in 0..4 {
                limited(SHORT, || assert!(hasty.push(message("3").as_bytes()).is_err()));
                let begun = Instant::now();
                patient.wait(Duration::from_millis(10));
                assert!(begun.elapsed() < Duration::from_secs(1), "waiting is not for the lock");
                let elsewhere = directory.path().join("elsewhere.db");
                drop(SqliteOutbox::open(elsewhere, "ehr").unwrap());
                assert!(begun.elapsed() < Duration::from_secs(1), "nor is opening another file");
            }
        });
        shell.execute_batch("ROLLBACK").unwrap();
        // What took long once is not waited for again.
        let begun = Instant::now();
        open(LONG).push(message("3").as_bytes()).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        assert_eq!(hasty.pending().unwrap().waiting, 2);
    }

    #[test]
    fn what_can_never_fit_wipes_no_history() {
        let directory = tempfile::tempdir().unwrap();
        let outbox = SqliteOutbox::open(directory.path().join("outbox.db"), "ehr").unwrap().max_bytes(1_000_000);
        let id = outbox.push(message("1").as_bytes()).unwrap();
        outbox.settle(&outbox.claim().unwrap().unwrap(), Settlement::Delivered).unwrap();
        let refused = outbox.push(&common::message_of("2", 1_000_001));
        assert!(matches!(refused, Err(OutboxError::InvalidMessage(MessageError::TooLarge { .. }))), "{refused:?}");
        assert!(outbox.resend(id).unwrap().is_some(), "what was delivered is kept");
    }

    #[test]
    fn a_claim_outlasts_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("outbox.db");
        let [holder, other] = [0, 1].map(|_| SqliteOutbox::open(&path, "ehr").unwrap());
        for id in ["1", "2"] {
            holder.push(message(id).as_bytes()).unwrap();
        }
        let claim = holder.claim().unwrap().unwrap();
        fs::remove_file(directory.path().join("outbox.db-claim-1")).unwrap();
        assert_eq!(other.claim().unwrap(), None, "its holder lives");
        holder.settle(&claim, Settlement::Delivered).unwrap();
        let claim = holder.claim().unwrap().unwrap();
        assert_eq!((claim.entry.control_id.as_str(), other.claim().unwrap()), ("2", None));
        holder.settle(&claim, Settlement::Delivered).unwrap();
        holder.push(message("3").as_bytes()).unwrap();
        holder.release();
        assert_eq!(other.claim().unwrap().unwrap().entry.control_id, "3");
    }

    #[test]
    fn it_is_bounded_and_what_was_delivered_gives_way() {
        let directory = tempfile::tempdir().unwrap();
        let outbox = SqliteOutbox::open(directory.path().join("outbox.db"), "ehr").unwrap().max_bytes(2_000_000);
        let large = |id: usize| common::message_of(&id.to_string(), 100_000);
        let mut count = 0;
        let full = loop {
            match outbox.push(&large(count)) {
                Ok(_) => count += 1,
                Err(error) => break error,
            }
        };
        assert!((15..20).contains(&count) && matches!(full, OutboxError::Full { .. }), "{count}: {full}");
        assert!(full.to_string().contains("2000000 bytes"), "{full}");
        for _ in 0..count {
            outbox.settle(&outbox.claim().unwrap().unwrap(), Settlement::Delivered).unwrap();
        }
        // What is kept of them makes room for others.
        for number in 0..count {
            outbox.push(&large(number)).unwrap();
        }
        assert!(matches!(outbox.push(&large(0)), Err(OutboxError::Full { .. })));
    }

    #[test]
    fn destinations_are_listed_removed_and_pushed_to_in_one_step() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("outbox.db");
        let one = SqliteOutbox::open(&path, "one").unwrap();
        let other = one.for_destination("other").unwrap();
        let ids = one.push_to(&["one", "other", "third"], message("1").as_bytes()).unwrap();
        assert!(ids.is_sorted() && ids.len() == 3);
        assert_eq!(one.destinations().unwrap(), ["one", "other", "third"]);
        assert!(one.push_to(&["one", "fourth"], b"nonsense").is_err());
        for outbox in [&one, &other, &SqliteOutbox::open(&path, "third").unwrap()] {
            let claim = outbox.claim().unwrap().unwrap();
            assert_eq!((claim.entry.control_id.as_str(), &*claim.entry.destination), ("1", outbox.destination()));
            assert!(!outbox.remove_destination().unwrap(), "it has an entry");
            outbox.settle(&claim, Settlement::Delivered).unwrap();
            assert_eq!(outbox.claim().unwrap(), None);
        }
        assert!(other.remove_destination().unwrap());
        assert_eq!(one.destinations().unwrap(), ["one", "third"]);
        // Nothing goes to who comes after it.
        assert!(matches!(other.push(message("2").as_bytes()), Err(OutboxError::Config(_))));
        assert!(matches!(other.pending(), Err(OutboxError::Config(_))));
        let fourth = SqliteOutbox::open(&path, "fourth").unwrap();
        let again = SqliteOutbox::open(&path, "other").unwrap();
        again.push(message("3").as_bytes()).unwrap();
        assert_eq!((fourth.pending().unwrap().waiting, again.pending().unwrap().waiting), (0, 1));
    }

    #[test]
    fn what_was_delivered_is_sent_again_and_the_file_made_small() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("outbox.db");
        let outbox = SqliteOutbox::open(&path, "ehr").unwrap();
        let ids: Vec<u64> =
            (0..20).map(|id| outbox.push(&common::message_of(&id.to_string(), 100_000)).unwrap()).collect();
        for _ in &ids {
            outbox.settle(&outbox.claim().unwrap().unwrap(), Settlement::Delivered).unwrap();
        }
        let again = outbox.resend(ids[3]).unwrap().unwrap();
        assert_eq!(outbox.resend(again).unwrap(), None, "it waits");
        let claim = outbox.claim().unwrap().unwrap();
        assert_eq!((claim.entry.id, claim.entry.message), (again, common::message_of("3", 100_000)));
        drop(outbox);
        let outbox = SqliteOutbox::open(&path, "ehr").unwrap().keep_delivered(None);
        common::pass(Duration::from_millis(2));
        let size = || fs::metadata(&path).unwrap().len();
        outbox.claim().unwrap().unwrap();
        assert!(size() > 1_000_000);
        outbox.compact().unwrap();
        assert!(size() < 500_000, "{}", size());
    }

    #[test]
    fn a_file_of_two_names_has_one_claim() {
        let directory = tempfile::tempdir().unwrap();
        let [path, other] = ["outbox.db", "other.db"].map(|name| directory.path().join(name));
        let outbox = SqliteOutbox::open(&path, "ehr").unwrap();
        std::os::unix::fs::symlink(&path, &other).unwrap();
        outbox.push(message("1").as_bytes()).unwrap();
        let claim = outbox.claim().unwrap();
        assert!(claim.is_some());
        assert_eq!(SqliteOutbox::open(&other, "ehr").unwrap().claim().unwrap(), None);
    }

    #[test]
    fn its_files_are_their_owners_alone() {
        use std::os::unix::fs::PermissionsExt;

        let directory = tempfile::tempdir().unwrap();
        let outbox = SqliteOutbox::open(directory.path().join("outbox.db"), "ehr").unwrap();
        outbox.push(message("1").as_bytes()).unwrap();
        outbox.claim().unwrap().unwrap();
        let files: Vec<_> = fs::read_dir(directory.path()).unwrap().map(Result::unwrap).collect();
        assert!(files.len() >= 3, "the outbox, its log, its claim: {files:?}");
        for file in files {
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
        }
    }

    #[test]
    fn what_a_shell_removes_does_not_stop_the_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("outbox.db");
        let outbox = SqliteOutbox::open(&path, "ehr").unwrap();
        for id in ["1", "2"] {
            outbox.push(message(id).as_bytes()).unwrap();
        }
        let claim = outbox.claim().unwrap().unwrap();
        Connection::open(&path).unwrap().execute("DELETE FROM waiting WHERE control_id = '1'", []).unwrap();
        assert!(matches!(outbox.settle(&claim, Settlement::Delivered), Err(OutboxError::ClaimLost)));
        assert_eq!(outbox.claim().unwrap().unwrap().entry.control_id, "2");
    }

    #[test]
    fn a_damaged_message_is_set_aside_and_not_sent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("outbox.db");
        let outbox = SqliteOutbox::open(&path, "ehr").unwrap();
        for id in ["1", "2"] {
            outbox.push(message(id).as_bytes()).unwrap();
        }
        Connection::open(&path)
            .unwrap()
            .execute("UPDATE message SET content = replace(content, '13.5', '18.5') WHERE id = 1", [])
            .unwrap();
        let damaged = outbox.claim().unwrap_err();
        assert!(matches!(damaged, OutboxError::Stopped { .. }) && !damaged.to_string().contains("18.5"), "{damaged}");
        assert_eq!(outbox.claim().unwrap().unwrap().entry.control_id, "2");
        assert!(outbox.stopped(0, 10).unwrap()[0].last_failure.as_deref().unwrap().contains("damaged"));
    }

    #[test]
    fn a_damaged_page_is_an_error_and_the_others_are_there() {
        const PAGE: usize = 4096;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("outbox.db");
        let outbox = SqliteOutbox::open(&path, "ehr").unwrap();
        for id in 0..100 {
            outbox.push(message(&id.to_string()).as_bytes()).unwrap();
        }
        drop(outbox);
        let whole = fs::read(&path).unwrap();
        let (mut at_open, mut later) = (0, 0);
        for page in 0..whole.len() / PAGE {
            let mut damaged = whole.clone();
            damaged[page * PAGE..][..PAGE].fill(0xA5);
            fs::write(&path, &damaged).unwrap();
            let outbox = match SqliteOutbox::open(&path, "ehr") {
                Ok(outbox) => outbox,
                Err(error) => {
                    assert!(matches!(error, OutboxError::Damaged { .. }), "{page}: {error}");
                    at_open += 1;
                    continue;
                }
            };
            // As far as it can be read, each is right; what cannot is an error and stays.
            let mut delivered = 0;
            while let Some(claim) = match outbox.claim() {
                Ok(claim) => claim,
                Err(error) => {
                    assert!(matches!(error, OutboxError::Damaged { .. }), "{page}: {error}");
                    later += 1;
                    None
                }
            } {
                assert_eq!(claim.entry.message, message(&delivered.to_string()).as_bytes(), "{page}");
                delivered += 1;
                match outbox.settle(&claim, Settlement::Delivered) {
                    Ok(()) => {}
                    Err(OutboxError::Damaged { .. }) => break,
                    Err(error) => panic!("{page}: {error}"),
                }
            }
        }
        assert!(at_open > 0 && later > 0, "{at_open} {later}");
    }

    #[test]
    fn handles_of_their_own_push_while_one_forwards() {
        let _tidy = Tidy::up();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("outbox.db");
        // All make the file at once.
        thread::scope(|scope| {
            for pusher in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    let outbox = SqliteOutbox::open(path, "ehr").unwrap();
                    for number in 0..50 {
                        outbox.push(message(&format!("{pusher}-{number}")).as_bytes()).unwrap();
                    }
                });
            }
            scope.spawn(|| {
                let outbox = SqliteOutbox::open(&path, "ehr").unwrap();
                let mut next = [0; 4];
                eventually("all are there", || {
                    match outbox.claim().unwrap() {
                        Some(claim) => {
                            let (pusher, number) = claim.entry.control_id.split_once('-').unwrap();
                            let next = &mut next[pusher.parse::<usize>().unwrap()];
                            assert_eq!(number, next.to_string());
                            *next += 1;
                            outbox.settle(&claim, Settlement::Delivered).unwrap();
                        }
                        None => outbox.wait(SHORT),
                    }
                    next == [50; 4]
                });
            });
        });
    }
}
