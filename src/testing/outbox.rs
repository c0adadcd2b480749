//! The contract that every outbox must keep, to be tried on one.

use std::fmt;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crate::outbox::{Claim, Entry, EntryState, Outbox, OutboxError, Settlement};

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
        write!(f, "the outbox breaks its contract: {}", self.findings.join("; "))
    }
}

impl std::error::Error for BrokenContract {}

/// By then another can claim what the holder of a claim has left behind.
const LONG: Duration = Duration::from_secs(5);

type Finding = Result<(), String>;

impl<O: Outbox, F: Fn(&str) -> O> OutboxSuite<F> {
    /// The suite for the outboxes that `open` opens, by the name of their destination. Each call of
    /// `open` has to open a handle of its own on the same storage, as another process would. Where
    /// claims are leases, set one of at most a second. The suite uses destinations whose names
    /// begin with `suite-`, which have to be empty.
    pub fn new(open: F) -> Self {
        OutboxSuite { open, volatile: false }
    }

    /// For an outbox that survives only as long as its handles, which share their claim: the handle
    /// is released where others are dropped.
    pub fn volatile(self) -> Self {
        OutboxSuite { volatile: true, ..self }
    }

    /// Tries all of it. It takes a few seconds.
    ///
    /// # Errors
    ///
    /// The expectation that was not met.
    pub fn run(self) -> Result<(), BrokenContract> {
        let checks: [(&str, fn(&Self) -> Finding); 13] = [
            ("order", Self::order),
            ("entry", Self::entry),
            ("invalid", Self::invalid),
            ("one-claim", Self::one_claim),
            ("survives", Self::survives),
            ("claimed-survives", Self::claimed_survives),
            ("retry", Self::retry),
            ("dead", Self::dead),
            ("held", Self::held),
            ("begun", Self::begun),
            ("settled-once", Self::settled_once),
            ("destinations", Self::destinations),
            ("threads", Self::threads),
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
        let mut message = message(1);
        message.extend((0..=u8::MAX).cycle().take(100_000));
        said(outbox.push(&message))?;
        let claim = claim(&outbox)?;
        expect(claim.entry.message == message, "a message of any bytes comes back as it was")?;
        expect(claim.entry.control_id == "M1", "an entry has its message's control ID")?;
        let Entry { attempts, refusals, ref last_failure, .. } = claim.entry;
        expect((attempts, refusals, last_failure) == (0, 0, &None), "a new entry has no history")?;
        let shown = format!("{claim:?} {:?}", claim.entry);
        expect(!shown.contains("PROBE"), "Debug shows no content")?;
        said(outbox.settle(&claim, Settlement::Delivered))
    }

    fn invalid(&self) -> Finding {
        let outbox = self.open("invalid");
        for message in [&b""[..], b"PID|1\r", b"MSH|^~\\&|LAB\r"] {
            let refused = matches!(outbox.push(message), Err(OutboxError::InvalidMessage(_)));
            expect(refused, "a message that could never be acknowledged is refused")?;
        }
        waiting(&outbox, 0)
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
            nothing(&outbox, "what was being sent when its holder ended is not sent again")?;
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
        said(outbox.settle(&claim(&outbox)?, Settlement::Delivered))
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
        expect(
            !said(other.discard(first.entry.id))? || said(one.stopped(0, 10))?.len() == 1,
            "a destination has its own dead",
        )?;
        said(other.settle(&second, Settlement::Delivered))?;
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

fn waiting(outbox: &impl Outbox, count: u64) -> Finding {
    let pending = said(outbox.pending())?;
    expect(pending.waiting == count && pending.oldest.is_some() == (count > 0), "what waits is counted")
}
