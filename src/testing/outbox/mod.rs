//! The contract that every outbox must keep, to be tried on one.

mod lanes;

use std::fmt;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crate::outbox::{Claim, Entry, EntryState, Outbox, OutboxError, PushOptions, Settlement};

/// The contract of [`Outbox`](crate::outbox::Outbox), to be tried on a storage of your own.
///
/// # Examples
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::Mutex;
/// use mllp_client::outbox::MemoryOutbox;
/// use mllp_client::testing::OutboxSuite;
///
/// let storage = Mutex::new(HashMap::new());
/// let open = |destination: &str| {
///     let mut storage = storage.lock().unwrap();
///     storage.entry(destination.to_owned()).or_insert_with(|| MemoryOutbox::new(1_000, 1_000_000)).clone()
/// };
/// OutboxSuite::new(open).volatile().run()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct OutboxSuite<F> {
    open: F,
    volatile: bool,
}

/// The parts of the contract that an outbox breaks, from [`OutboxSuite::run`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokenContract {
    /// The checks that failed, a line each: the name, and the expectation that was not met.
    pub findings: Vec<String>,
}

impl fmt::Display for BrokenContract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the outbox breaks its contract; what was expected: {}", self.findings.join("; "))
    }
}

impl std::error::Error for BrokenContract {}

/// By then another can claim what the holder of a claim has left behind.
const LONG: Duration = Duration::from_secs(5);

/// By then a lease has ended.
const LEASE: Duration = Duration::from_millis(1_200);

type Finding = Result<(), String>;

impl<O: Outbox, F: Fn(&str) -> O> OutboxSuite<F> {
    /// The suite for the outboxes that `open` opens, by the name of their destination. Each call of
    /// `open` has to open a handle of its own on the same storage, as another process would. Where
    /// claims are leases, set one of at most a second. What is said about lanes is tried only where
    /// the handles are opened for several ([`Outbox::lanes`]). The suite uses destinations whose
    /// names begin with `suite-`, which have to be empty.
    pub fn new(open: F) -> Self {
        OutboxSuite { open, volatile: false }
    }

    /// For an outbox whose handles share their claim and keep its content alive, as in memory:
    /// where another is dropped and opened again, as by another process, its claim is released.
    pub fn volatile(self) -> Self {
        OutboxSuite { volatile: true, ..self }
    }

    /// Tries all of it. It takes a few seconds. What the outbox does not support is not tried.
    ///
    /// # Errors
    ///
    /// The expectation that was not met.
    pub fn run(self) -> Result<(), BrokenContract> {
        let checks: [(&str, fn(&Self) -> Finding); 28] = [
            ("order", Self::order),
            ("entry", Self::entry),
            ("invalid", Self::invalid),
            ("oldest", Self::oldest),
            ("one-claim", Self::one_claim),
            ("taken-over", Self::taken_over),
            ("released", Self::released),
            ("survives", Self::survives),
            ("claimed-survives", Self::claimed_survives),
            ("retry", Self::retry),
            ("unknown", Self::unknown),
            ("dead", Self::dead),
            ("requeued", Self::requeued),
            ("held", Self::held),
            ("begun", Self::begun),
            ("discarded", Self::discarded),
            ("listed", Self::listed),
            ("hold", Self::hold),
            ("paused", Self::paused),
            ("keyed", Self::keyed),
            ("settled-once", Self::settled_once),
            ("destinations", Self::destinations),
            ("threads", Self::threads),
            ("lanes", Self::lanes),
            ("lanes-bound", Self::lanes_bound),
            ("lane-blocked", Self::lane_blocked),
            ("barrier", Self::barrier),
            ("lanes-taken-over", Self::lanes_taken_over),
        ];
        let findings =
            checks.iter().filter_map(|(name, check)| check(&self).err().map(|found| format!("{name}: {found}")));
        let findings: Vec<String> = findings.collect();
        if findings.is_empty() { Ok(()) } else { Err(BrokenContract { findings }) }
    }

    fn open(&self, check: &str) -> O {
        (self.open)(&format!("suite-{check}"))
    }

    /// Opens the outbox as another process finds it after the one with this handle has ended.
    fn reopen(&self, handle: O, check: &str) -> O {
        if self.volatile {
            handle.release();
            return handle;
        }
        drop(handle);
        self.open(check)
    }

    fn order(&self) -> Finding {
        let outbox = self.open("order");
        let ids = (0..20).map(|number| push(&outbox, number)).collect::<Result<Vec<u64>, String>>()?;
        expect(ids.is_sorted_by(|one, next| one < next), "numbers grow")?;
        for (number, id) in ids.iter().enumerate() {
            let claim = claim(&outbox)?;
            expect(claim.entry.message == message(number), "entries are claimed in the order of their push")?;
            expect(claim.entry.id == *id, "an entry has the number that push returned")?;
            said(outbox.settle(&claim, Settlement::Delivered))?;
        }
        nothing(&outbox, "what was delivered is not claimed again")?;
        waiting(&outbox, 0)
    }

    fn entry(&self) -> Finding {
        let outbox = self.open("entry");
        // Two bytes are MLLP's own. It is longer than what some storages take without being told, if this
        // one takes as much at all.
        let bytes = (0..=u8::MAX).filter(|byte| !matches!(byte, 0x0B | 0x1C)).cycle();
        let mut message = message(1);
        let short = message.len() + 100_000;
        message.extend(bytes.take(3_000_000));
        if let Err(OutboxError::InvalidMessage(_) | OutboxError::Full { .. }) = outbox.push(&message) {
            message.truncate(short);
            said(outbox.push(&message))?;
        }
        let claim = claim(&outbox)?;
        expect(claim.entry.message == message, "a message of any bytes and length comes back as it was")?;
        expect(claim.entry.control_id == "M1", "an entry has its message's control ID")?;
        let Entry { attempts, refusals, ref last_failure, .. } = claim.entry;
        expect((attempts, refusals, last_failure) == (0, 0, &None), "a new entry has no history")?;
        let shown = format!("{claim:?} {:?}", claim.entry);
        expect(!shown.contains("PROBE"), "Debug shows no content")?;
        said(outbox.settle(&claim, Settlement::Delivered))
    }

    fn invalid(&self) -> Finding {
        let outbox = self.open("invalid");
        let framed = b"MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|M1|P|2.5\rOBX|\x1C\r";
        for message in [&b""[..], b"PID|1\r", b"MSH|^~\\&|LAB\r", framed] {
            let refused = matches!(outbox.push(message), Err(OutboxError::InvalidMessage(_)));
            expect(refused, "a message that could never be delivered is refused")?;
        }
        waiting(&outbox, 0)
    }

    fn oldest(&self) -> Finding {
        let outbox = self.open("oldest");
        push(&outbox, 0)?;
        let oldest = || said(outbox.pending()).map(|pending| pending.oldest);
        let first = oldest()?;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(50) {
            let_time_pass(&outbox);
        }
        push(&outbox, 1)?;
        expect(oldest()? == first, "the oldest entry's time is that of its push")?;
        for _ in 0..2 {
            said(outbox.settle(&claim(&outbox)?, Settlement::Delivered))?;
        }
        Ok(())
    }

    /// A handle that lives, and does nothing, keeps its claim; or it was told until when it has it.
    fn taken_over(&self) -> Finding {
        if self.volatile {
            return Ok(());
        }
        let (late, next) = (self.open("taken-over"), self.open("taken-over"));
        (0..2).try_for_each(|number| push(&late, number).map(drop))?;
        let lost = claim(&late)?;
        let begun = Instant::now();
        let taken = loop {
            match said(next.claim())? {
                Some(taken) => break taken,
                None if begun.elapsed() > LEASE => {
                    said(late.settle(&lost, Settlement::Delivered))?;
                    late.release();
                    return said(next.settle(&claim(&next)?, Settlement::Delivered));
                }
                None => let_time_pass(&next),
            }
        };
        expect(
            lost.until.is_some_and(|until| until <= Instant::now()),
            "a claim that can be lost says until when it lasts",
        )?;
        expect(taken.entry == lost.entry, "who takes over has the same head")?;
        let is_lost = |settled| matches!(settled, Err(OutboxError::ClaimLost));
        expect(is_lost(late.begin(&lost)), "what another has taken over is not begun")?;
        expect(is_lost(late.settle(&lost, Settlement::Delivered)), "what another has taken over is not settled")?;
        waiting(&next, 2)?;
        for taken in [Some(taken), None] {
            let taken = taken.map_or_else(|| claim(&next), Ok)?;
            said(next.settle(&taken, Settlement::Delivered))?;
        }
        next.release();
        Ok(())
    }

    fn released(&self) -> Finding {
        let (one, other) = (self.open("released"), self.open("released"));
        push(&one, 0)?;
        claim(&one)?;
        one.release();
        let Some(again) = said(other.claim())? else { return Err("what was given up can be claimed at once".into()) };
        said(other.begin(&again))?;
        other.release();
        stopped_or_nothing(&one, "what was given up while it was being sent is not sent again")?;
        let held = said(one.stopped(0, 10))?;
        expect(
            held.len() == 1 && held[0].state == EntryState::Held,
            "what was given up while it was being sent is held",
        )?;
        expect(said(one.discard(held[0].id))?, "what is held can be discarded")?;
        one.release();
        Ok(())
    }

    fn unknown(&self) -> Finding {
        let outbox = self.open("unknown");
        push(&outbox, 0)?;
        let rest = Duration::from_millis(100);
        let begun = Instant::now();
        let unknown = Settlement::Unknown { after: rest, why: "an invented silence" };
        said(outbox.settle(&claim(&outbox)?, unknown))?;
        let again = claim(&outbox)?;
        expect(begun.elapsed() >= rest, "what is to be tried later is not claimed before")?;
        let Entry { attempts, refusals, unknowns, .. } = again.entry;
        expect((attempts, refusals, unknowns) == (1, 0, 1), "unknown results are counted")?;
        said(outbox.settle(&again, Settlement::Delivered))
    }

    fn requeued(&self) -> Finding {
        let outbox = self.open("requeued");
        push(&outbox, 0)?;
        let refused = Settlement::Retry { after: Duration::ZERO, refused: true, why: "an invented refusal" };
        said(outbox.settle(&claim(&outbox)?, refused))?;
        let again = claim(&outbox)?;
        said(outbox.settle(&again, Settlement::Dead { why: "an invented refusal" }))?;
        expect(said(outbox.requeue(again.entry.id))?, "a dead entry can be queued again")?;
        let anew = claim(&outbox)?;
        let Entry { attempts, refusals, unknowns, .. } = anew.entry;
        expect((attempts, refusals, unknowns) == (0, 0, 0), "what is queued again begins anew")?;
        said(outbox.settle(&anew, Settlement::Delivered))
    }

    fn discarded(&self) -> Finding {
        let outbox = self.open("discarded");
        let ids = (0..3).map(|number| push(&outbox, number)).collect::<Result<Vec<u64>, String>>()?;
        expect(said(outbox.discard(ids[1]))?, "what waits can be discarded")?;
        waiting(&outbox, 2)?;
        let first = claim(&outbox)?;
        expect(said(outbox.discard(ids[0]))?, "what is being sent can be discarded")?;
        let settled = outbox.settle(&first, Settlement::Delivered);
        expect(matches!(settled, Err(OutboxError::ClaimLost)), "what was discarded meanwhile is not settled")?;
        let last = claim(&outbox)?;
        expect(last.entry.id == ids[2], "those behind what was discarded go on")?;
        said(outbox.settle(&last, Settlement::Delivered))
    }

    fn listed(&self) -> Finding {
        let outbox = self.open("listed");
        if is_unsupported(&outbox.list(None, 0, 1)) {
            return Ok(());
        }
        let ids = (0..5).map(|number| push(&outbox, number)).collect::<Result<Vec<u64>, String>>()?;
        said(outbox.settle(&claim(&outbox)?, Settlement::Dead { why: "an invented refusal" }))?;
        said(outbox.settle(&claim(&outbox)?, Settlement::Held { why: "an invented silence" }))?;
        let listed = |state, after, limit| {
            let list = said(outbox.list(state, after, limit))?;
            Ok::<Vec<u64>, String>(list.iter().map(|entry| entry.id).collect())
        };
        expect(listed(None, 0, 10)? == ids[1..], "the queue is listed in its order")?;
        expect(listed(None, ids[1], 2)? == ids[2..4], "a list has as many as were asked for, after a number")?;
        expect(listed(Some(EntryState::Held), 0, 10)? == ids[1..2], "the held are listed")?;
        expect(listed(Some(EntryState::Waiting), 0, 10)? == ids[2..], "the waiting are listed")?;
        expect(listed(Some(EntryState::Dead), 0, 10)? == ids[..1], "the dead are listed")?;
        let dead = said(outbox.list(Some(EntryState::Dead), 0, 1))?.remove(0);
        expect(dead.size == message(0).len() as u64 && dead.control_id == "M0", "a list says what an entry is")?;
        expect(dead.last_failure.as_deref() == Some("an invented refusal"), "a list says how it failed")?;
        if !is_unsupported(&outbox.show(0)) {
            for (number, id) in ids.iter().enumerate() {
                let shown = said(outbox.show(*id))?;
                expect(shown.is_some_and(|entry| entry.message == message(number)), "each entry can be shown")?;
            }
            expect(said(outbox.show(ids[4] + 1))?.is_none(), "what is not there is not shown")?;
        }
        let discarded = said(outbox.discard_all(None, &|entry| entry.control_id != "M3"))?;
        expect(discarded == 3 && listed(None, 0, 10)? == ids[3..4], "all that match are discarded")?;
        [ids[0], ids[3]].iter().try_for_each(|id| said(outbox.discard(*id)).map(drop))
    }

    fn hold(&self) -> Finding {
        let outbox = self.open("hold");
        if is_unsupported(&outbox.hold(0)) || is_unsupported(&outbox.unhold(0)) {
            return Ok(());
        }
        let ids = (0..2).map(|number| push(&outbox, number)).collect::<Result<Vec<u64>, String>>()?;
        expect(said(outbox.hold(ids[0]))?, "what waits can be held")?;
        expect(!said(outbox.hold(ids[0]))?, "what is held cannot be held again")?;
        nothing(&outbox, "what is held holds up those behind it")?;
        expect(said(outbox.pending())?.held == 1, "the held are counted")?;
        expect(said(outbox.unhold(ids[0]))?, "what is held can go on")?;
        let first = claim(&outbox)?;
        expect(first.entry.id == ids[0] && first.entry.attempts == 0, "what was held goes on as it was")?;
        expect(said(outbox.hold(ids[0]))?, "what is being sent can be held")?;
        let failed = Settlement::Retry { after: Duration::ZERO, refused: false, why: "an invented failure" };
        said(outbox.settle(&first, failed))?;
        nothing(&outbox, "what was held while it was being sent stays held")?;
        expect(said(outbox.unhold(ids[0]))?, "what is held can go on")?;
        let again = claim(&outbox)?;
        expect(again.entry.attempts == 1, "what goes on is as it was")?;
        if is_unsupported(&outbox.try_now()) {
            return said(outbox.settle(&again, Settlement::Delivered))
                .and_then(|()| said(outbox.settle(&claim(&outbox)?, Settlement::Delivered)));
        }
        // Its rest ends when somebody says so.
        let rest = Settlement::Retry { after: LONG * 10, refused: false, why: "an invented failure" };
        said(outbox.settle(&again, rest))?;
        nothing(&outbox, "what is to be tried later is not claimed before")?;
        said(self.open("hold").try_now())?;
        let again = claim(&outbox)?;
        expect(said(outbox.hold(ids[0]))?, "what is being sent can be held")?;
        said(outbox.settle(&again, Settlement::Delivered))?;
        let last = claim(&outbox)?;
        expect(last.entry.id == ids[1], "what is delivered is not held")?;
        // What may have left is not sent again because somebody held it meanwhile.
        said(outbox.begin(&last))?;
        expect(said(outbox.hold(ids[1]))? && said(outbox.unhold(ids[1]))?, "what is being sent can be held")?;
        outbox.release();
        stopped_or_nothing(&outbox, "what was being sent when it was held is not sent again")?;
        expect(said(outbox.discard(ids[1]))?, "what is held can be discarded")
    }

    fn paused(&self) -> Finding {
        let outbox = self.open("paused");
        if is_unsupported(&outbox.set_paused(false)) {
            return Ok(());
        }
        push(&outbox, 0)?;
        said(self.open("paused").set_paused(true))?;
        nothing(&outbox, "a destination that is paused hands out nothing")?;
        let outbox = self.reopen(outbox, "paused");
        nothing(&outbox, "a pause outlasts the handle that asked for it")?;
        expect(said(outbox.pending())?.paused, "a pause is told")?;
        said(outbox.set_paused(false))?;
        said(outbox.settle(&claim(&outbox)?, Settlement::Delivered))
    }

    fn keyed(&self) -> Finding {
        let outbox = self.open("keyed");
        let push = |number: usize, key| outbox.push_with(&message(number), &PushOptions::new().key(key));
        let first = push(0, "first");
        if is_unsupported(&first) {
            return Ok(());
        }
        let first = said(first)?;
        let second = said(push(1, "second"))?;
        expect(said(push(0, "first"))? == first, "a push that is repeated under its key is one entry")?;
        expect(said(push(1, "second"))? == second, "a push that is repeated under its key is one entry")?;
        waiting(&outbox, 2)?;
        for id in [first, second] {
            let claim = claim(&outbox)?;
            expect(claim.entry.id == id, "a push that is repeated under its key is one entry")?;
            said(outbox.settle(&claim, Settlement::Delivered))?;
        }
        Ok(())
    }

    fn one_claim(&self) -> Finding {
        let outbox = self.open("one-claim");
        (0..3).try_for_each(|number| push(&outbox, number).map(drop))?;
        let first = claim(&outbox)?;
        nothing(&outbox, "while an entry is claimed, no other is")?;
        nothing(&self.open("one-claim"), "while an entry is claimed, another handle gets none")?;
        waiting(&outbox, 3)?;
        outbox.release();
        let again = claim(&outbox)?;
        expect(again.entry == first.entry, "an entry whose claim was given up is the head still")?;
        said(outbox.settle(&again, Settlement::Delivered))?;
        waiting(&outbox, 2)
    }

    fn survives(&self) -> Finding {
        let mut outbox = self.open("survives");
        for number in 0..5 {
            push(&outbox, number)?;
            outbox = self.reopen(outbox, "survives");
        }
        waiting(&outbox, 5)?;
        for number in 0..5 {
            let claim = claim(&outbox)?;
            expect(claim.entry.message == message(number), "what was pushed is there after its pusher has ended")?;
            said(outbox.settle(&claim, Settlement::Delivered))?;
            outbox = self.reopen(outbox, "survives");
        }
        nothing(&outbox, "what was settled stays settled")
    }

    fn claimed_survives(&self) -> Finding {
        let outbox = self.open("claimed-survives");
        (0..2).try_for_each(|number| push(&outbox, number).map(drop))?;
        let first = claim(&outbox)?;
        let outbox = self.reopen(outbox, "claimed-survives");
        waiting(&outbox, 2)?;
        let again = claim(&outbox)?;
        expect(again.entry.id == first.entry.id, "an entry whose holder has ended is the head still")?;
        said(outbox.settle(&again, Settlement::Delivered))
    }

    fn retry(&self) -> Finding {
        let outbox = self.open("retry");
        (0..2).try_for_each(|number| push(&outbox, number).map(drop))?;
        let first = claim(&outbox)?;
        let rest = Duration::from_millis(300);
        let begun = Instant::now();
        said(outbox.settle(&first, Settlement::Retry { after: rest, refused: true, why: "an invented failure" }))?;
        let again = claim(&outbox)?;
        expect(begun.elapsed() >= rest, "what is to be tried later is not claimed before")?;
        expect(again.entry.id == first.entry.id, "what is to be tried later is not overtaken")?;
        let Entry { attempts, refusals, ref last_failure, .. } = again.entry;
        expect((attempts, refusals) == (1, 1), "attempts and refusals are counted")?;
        expect(last_failure.as_deref() == Some("an invented failure"), "the failure is kept")?;
        said(outbox.settle(&again, Settlement::Delivered))
    }

    fn dead(&self) -> Finding {
        let outbox = self.open("dead");
        (0..3).try_for_each(|number| push(&outbox, number).map(drop))?;
        for _ in 0..2 {
            said(outbox.settle(&claim(&outbox)?, Settlement::Dead { why: "an invented refusal" }))?;
        }
        let outbox = self.reopen(outbox, "dead");
        waiting(&outbox, 1)?;
        expect(said(outbox.pending())?.dead == 2, "the dead are counted")?;
        let dead = said(outbox.stopped(0, 10))?;
        expect(dead.len() == 2, "the dead are listed")?;
        let first = &dead[0];
        expect(first.message == message(0) && first.attempts == 1, "a dead entry is as it was")?;
        expect(first.state == EntryState::Dead, "a dead entry says so")?;
        expect(first.last_failure.as_deref() == Some("an invented refusal"), "a dead entry says why")?;
        expect(said(outbox.stopped(0, 1))?.len() == 1, "a list has as many as were asked for")?;
        expect(said(outbox.stopped(first.id, 10))?.len() == 1, "a list goes on after a number")?;
        expect(said(outbox.requeue(dead[1].id))?, "a dead entry can be queued again")?;
        expect(said(outbox.discard(first.id))?, "a dead entry can be discarded")?;
        expect(!said(outbox.discard(first.id))?, "what is not there cannot be discarded")?;
        expect(!said(outbox.requeue(first.id))?, "what is not there cannot be queued")?;
        expect(said(outbox.stopped(0, 10))?.is_empty(), "what was queued or discarded is not dead")?;
        for number in [1, 2] {
            let claim = claim(&outbox)?;
            expect(claim.entry.message == message(number), "what is queued again takes its old place")?;
            said(outbox.settle(&claim, Settlement::Delivered))?;
        }
        waiting(&outbox, 0)
    }

    fn held(&self) -> Finding {
        let outbox = self.open("held");
        (0..3).try_for_each(|number| push(&outbox, number).map(drop))?;
        let first = claim(&outbox)?;
        said(outbox.settle(&first, Settlement::Held { why: "an invented silence" }))?;
        let outbox = self.reopen(outbox, "held");
        nothing(&outbox, "what is held holds up those behind it")?;
        waiting(&outbox, 3)?;
        let held = said(outbox.stopped(0, 10))?;
        expect(held.len() == 1 && held[0].state == EntryState::Held, "what is held is listed")?;
        expect(said(outbox.requeue(first.entry.id))?, "what is held can be queued again")?;
        let again = claim(&outbox)?;
        expect(again.entry.id == first.entry.id, "what was held goes next")?;
        said(outbox.settle(&again, Settlement::Held { why: "an invented silence" }))?;
        expect(said(outbox.discard(first.entry.id))?, "what is held can be discarded")?;
        for number in [1, 2] {
            let claim = claim(&outbox)?;
            expect(claim.entry.message == message(number), "what was behind it goes on")?;
            said(outbox.settle(&claim, Settlement::Delivered))?;
        }
        Ok(())
    }

    fn begun(&self) -> Finding {
        let outbox = self.open("begun");
        (0..2).try_for_each(|number| push(&outbox, number).map(drop))?;
        let first = claim(&outbox)?;
        said(outbox.begin(&first))?;
        expect(!said(outbox.requeue(first.entry.id))?, "what is being sent is not stopped")?;
        said(outbox.settle(&first, Settlement::Delivered))?;
        let second = claim(&outbox)?;
        said(outbox.begin(&second))?;
        let outbox = self.reopen(outbox, "begun");
        let begun = Instant::now();
        let held = loop {
            stopped_or_nothing(&outbox, "what was being sent when its holder ended is not sent again")?;
            let held = said(outbox.stopped(0, 10))?;
            if !held.is_empty() || begun.elapsed() > LONG {
                break held;
            }
            outbox.wait(Duration::from_millis(20));
        };
        let is_it = held.len() == 1 && held[0].id == second.entry.id && held[0].state == EntryState::Held;
        expect(is_it, "what was being sent when its holder ended is held")?;
        expect(held[0].last_failure.is_some(), "what is held says why")?;
        expect(said(outbox.discard(second.entry.id))?, "what is held can be discarded")
    }

    fn settled_once(&self) -> Finding {
        let outbox = self.open("settled-once");
        push(&outbox, 0)?;
        let first = claim(&outbox)?;
        said(outbox.settle(&first, Settlement::Delivered))?;
        push(&outbox, 1)?;
        let lost = |settled| matches!(settled, Err(OutboxError::ClaimLost));
        expect(lost(outbox.settle(&first, Settlement::Delivered)), "what is settled is not settled again")?;
        let second = claim(&outbox)?;
        outbox.release();
        expect(lost(outbox.settle(&second, Settlement::Delivered)), "what was given up is not settled")?;
        expect(lost(outbox.begin(&second)), "what was given up is not begun")?;
        waiting(&outbox, 1)?;
        let third = claim(&outbox)?;
        expect(lost(outbox.settle(&second, Settlement::Delivered)), "an earlier claim settles nothing")?;
        let again = Settlement::Retry { after: Duration::ZERO, refused: false, why: "an invented failure" };
        said(outbox.settle(&third, again))?;
        let fourth = claim(&outbox)?;
        expect(lost(outbox.settle(&third, Settlement::Delivered)), "an earlier claim settles nothing")?;
        said(outbox.settle(&fourth, Settlement::Delivered))
    }

    fn destinations(&self) -> Finding {
        let (one, other) = (self.open("one"), self.open("other"));
        push(&one, 1)?;
        push(&other, 2)?;
        push(&one, 3)?;
        waiting(&one, 2)?;
        waiting(&other, 1)?;
        let (first, second) = (claim(&one)?, claim(&other)?);
        expect(first.entry.message == message(1), "a destination has its own messages")?;
        expect(second.entry.message == message(2), "a destination has its own messages")?;
        said(one.settle(&first, Settlement::Dead { why: "an invented refusal" }))?;
        expect(said(other.stopped(0, 10))?.is_empty(), "a destination has its own dead")?;
        said(other.settle(&second, Settlement::Delivered))?;
        said(other.discard(first.entry.id))?;
        expect(said(one.stopped(0, 10))?.len() == 1, "a destination has its own dead")?;
        nothing(&other, "a destination has its own messages")?;
        said(one.settle(&claim(&one)?, Settlement::Delivered))
    }

    fn threads(&self) -> Finding {
        const THREADS: usize = 4;
        const EACH: usize = 25;
        let outbox = self.open("threads");
        let failed = Mutex::new(Ok(()));
        let mut last = [None; THREADS];
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (outbox, failed) = (&outbox, &failed);
                scope.spawn(move || {
                    let pushed = (0..EACH).try_for_each(|number| push(outbox, thread * EACH + number).map(drop));
                    if let (Err(finding), Ok(mut failed)) = (pushed, failed.lock()) {
                        *failed = Err(finding);
                    }
                });
            }
            for _ in 0..THREADS * EACH {
                let claim = claim(&outbox)?;
                let number: usize = claim.entry.control_id[1..].parse().map_err(|_| "a control ID is not changed")?;
                let (thread, number) = (number / EACH, number % EACH);
                expect(last[thread].is_none_or(|last| last + 1 == number), "each thread's messages keep their order")?;
                expect(last[thread].is_some() || number == 0, "each thread's messages are there from the first")?;
                last[thread] = Some(number);
                said(outbox.settle(&claim, Settlement::Delivered))?;
            }
            Ok::<(), String>(())
        })?;
        failed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())?;
        nothing(&outbox, "each message is delivered once")
    }
}

impl<F> fmt::Debug for OutboxSuite<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboxSuite").field("volatile", &self.volatile).finish_non_exhaustive()
    }
}

fn message(number: usize) -> Vec<u8> {
    format!("MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|M{number}|P|2.5\rPID|1||42||PROBE^TESTA\r").into_bytes()
}

fn expect(holds: bool, what: &str) -> Finding {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

fn said<T>(result: Result<T, OutboxError>) -> Result<T, String> {
    result.map_err(|error| format!("an unexpected error: {error}"))
}

fn push(outbox: &impl Outbox, number: usize) -> Result<u64, String> {
    said(outbox.push(&message(number)))
}

/// The head, once it can be had.
fn claim(outbox: &impl Outbox) -> Result<Claim, String> {
    let begun = Instant::now();
    loop {
        match said(outbox.claim())? {
            Some(claim) => return Ok(claim),
            None if begun.elapsed() > LONG => return Err("what waits can be claimed".into()),
            None => outbox.wait(Duration::from_millis(20)),
        }
    }
}

fn nothing(outbox: &impl Outbox, what: &str) -> Finding {
    expect(said(outbox.claim())?.is_none(), what)
}

/// As `nothing`; the outbox may also say that it has stopped the head.
fn stopped_or_nothing(outbox: &impl Outbox, what: &str) -> Finding {
    match outbox.claim() {
        Err(OutboxError::Stopped { entry }) => expect(entry.state == EntryState::Held, what),
        claimed => expect(said(claimed)?.is_none(), what),
    }
}

/// Lets a little time pass.
fn let_time_pass(outbox: &impl Outbox) {
    outbox.wait(Duration::from_millis(20));
}

fn is_unsupported<T>(result: &Result<T, OutboxError>) -> bool {
    matches!(result, Err(OutboxError::Unsupported(_)))
}

fn waiting(outbox: &impl Outbox, count: u64) -> Finding {
    let pending = said(outbox.pending())?;
    expect(pending.waiting == count && pending.oldest.is_some() == (count > 0), "what waits is counted")
}
