//! The part of the contract that is about lanes. It is tried where a handle can have several claims
//! at a time.

use std::time::{Duration, Instant};

use super::{Finding, OutboxSuite, claim, expect, is_unsupported, message, nothing, push, said, waiting};
use crate::outbox::{Claim, EntryState, Lane, Outbox, OutboxError, PushOptions, Settlement};

/// Two lanes that have a key.
fn lanes() -> [Lane; 2] {
    [Lane::key("the first of two"), Lane::key("the second of two")]
}

fn push_into(outbox: &impl Outbox, number: usize, lane: &Lane) -> Result<u64, String> {
    said(outbox.push_with(&message(number), &PushOptions::new().lane(lane)))
}

/// The next claim, which has to be on this message.
fn claim_of(outbox: &impl Outbox, number: usize, what: &str) -> Result<Claim, String> {
    let claim = claim(outbox)?;
    expect(claim.entry.message == message(number), what)?;
    Ok(claim)
}

fn deliver(outbox: &impl Outbox, claim: &Claim) -> Finding {
    said(outbox.settle(claim, Settlement::Delivered))
}

impl<O: Outbox, F: Fn(&str) -> O> OutboxSuite<F> {
    /// A handle with several lanes, if the outbox has them.
    fn open_with_lanes(&self, check: &str) -> Result<Option<O>, String> {
        let outbox = self.open(check);
        if outbox.lanes() < 2 {
            return Ok(None);
        }
        let pushed = outbox.push_with(&message(0), &PushOptions::new().lane(&lanes()[0]));
        if is_unsupported(&pushed) {
            return Ok(None);
        }
        deliver(&outbox, &claim(&outbox)?)?;
        Ok(Some(outbox))
    }

    /// Each lane keeps its order, and has one claim; different lanes have claims at the same time.
    pub(super) fn lanes(&self) -> Finding {
        let Some(outbox) = self.open_with_lanes("lanes")? else { return Ok(()) };
        let [one, other] = lanes();
        for (number, lane) in [(0, &one), (1, &one), (2, &other), (3, &other)] {
            push_into(&outbox, number, lane)?;
        }
        let first = claim_of(&outbox, 0, "the oldest of all lanes is claimed first")?;
        expect(!first.is_alone, "a claim is not alone while another lane can be claimed")?;
        let second = claim_of(&outbox, 2, "while an entry is claimed, the head of another lane is claimed next")?;
        nothing(&outbox, "a lane has one claim at a time")?;
        nothing(&self.open("lanes"), "a lane has one claim at a time, over all handles")?;
        waiting(&outbox, 4)?;
        deliver(&outbox, &second)?;
        let second = claim_of(&outbox, 3, "a lane goes on while another is busy")?;
        deliver(&outbox, &first)?;
        let first = claim_of(&outbox, 1, "each lane keeps its order")?;
        for claim in [first, second] {
            deliver(&outbox, &claim)?;
            let again = outbox.settle(&claim, Settlement::Delivered);
            expect(again.is_err(), "what is settled is not settled again")?;
        }
        waiting(&outbox, 0)?;
        // What has no key is one lane among the others.
        push(&outbox, 4)?;
        push_into(&outbox, 5, &one)?;
        push(&outbox, 6)?;
        const NO_KEY: &str = "what has no key is a lane beside the others";
        let first = claim_of(&outbox, 4, NO_KEY)?;
        let beside = claim_of(&outbox, 5, NO_KEY)?;
        nothing(&outbox, "what has no key keeps its order")?;
        said(outbox.settle(&first, Settlement::Held { why: "an invented silence" }))?;
        nothing(&outbox, "what has no key keeps its order")?;
        deliver(&outbox, &beside)?;
        push_into(&outbox, 7, &other)?;
        deliver(&outbox, &claim_of(&outbox, 7, NO_KEY)?)?;
        expect(said(outbox.requeue(first.entry.id))?, "what is held can be queued again")?;
        for number in [4, 6] {
            deliver(&outbox, &claim_of(&outbox, number, "what has no key keeps its order")?)?;
        }
        outbox.release();
        Ok(())
    }

    /// No more are claimed at a time than the handle says, however many lanes there are.
    pub(super) fn lanes_bound(&self) -> Finding {
        let Some(outbox) = self.open_with_lanes("lanes-bound")? else { return Ok(()) };
        let most = outbox.lanes();
        for number in 0..=most {
            push_into(&outbox, number, &Lane::key(number.to_string()))?;
        }
        let claims = (0..most).map(|_| claim(&outbox)).collect::<Result<Vec<Claim>, String>>()?;
        nothing(&outbox, "no more entries are claimed than lanes() says")?;
        nothing(&self.open("lanes-bound"), "no more entries are claimed than lanes() says, over all handles")?;
        for claim in &claims {
            deliver(&outbox, claim)?;
        }
        deliver(&outbox, &claim_of(&outbox, most, "when a claim has ended, there can be another")?)?;
        outbox.release();
        Ok(())
    }

    /// What is held, or rests, blocks its own lane.
    pub(super) fn lane_blocked(&self) -> Finding {
        let Some(outbox) = self.open_with_lanes("lane-blocked")? else { return Ok(()) };
        let [one, other] = lanes();
        const OWN_ONLY: &str = "what is held or rests blocks its own lane and no other";
        for (number, lane) in [(0, &one), (1, &one), (2, &other), (3, &other)] {
            push_into(&outbox, number, lane)?;
        }
        let rest = Duration::from_millis(300);
        let begun = Instant::now();
        let first = claim(&outbox)?;
        said(outbox.settle(&first, Settlement::Retry { after: rest, refused: false, why: "an invented failure" }))?;
        expect(said(outbox.pending())?.blocked == 1, "a lane whose head rests is counted as blocked")?;
        let second = claim_of(&outbox, 2, OWN_ONLY)?;
        expect(begun.elapsed() >= rest || said(outbox.claim())?.is_none(), "a head that rests is not overtaken")?;
        let again = claim_of(&outbox, 0, "a head that has rested is claimed again, and not overtaken")?;
        expect(begun.elapsed() >= rest, "what is to be tried later is not claimed before")?;
        said(outbox.settle(&again, Settlement::Held { why: "an invented silence" }))?;
        expect(said(outbox.pending())?.blocked == 1, "a lane whose head is held is counted as blocked")?;
        deliver(&outbox, &second)?;
        deliver(&outbox, &claim_of(&outbox, 3, OWN_ONLY)?)?;
        nothing(&outbox, "what is held holds up those behind it in its lane")?;
        let outbox = self.reopen(outbox, "lane-blocked");
        nothing(&outbox, "what is held holds up those behind it in its lane")?;
        expect(said(outbox.requeue(again.entry.id))?, "what is held can be queued again")?;
        let last = claim_of(&outbox, 0, "what was held goes first in its lane")?;
        nothing(&outbox, "a lane has one claim at a time")?;
        said(outbox.settle(&last, Settlement::Dead { why: "an invented refusal" }))?;
        let last = claim_of(&outbox, 1, "those behind what is dead go on")?;
        expect(said(outbox.requeue(again.entry.id))?, "what is dead can be queued again")?;
        nothing(&outbox, "what is queued again waits while its lane is busy")?;
        deliver(&outbox, &last)?;
        deliver(&outbox, &claim_of(&outbox, 0, "what is queued again is claimed when its lane is free")?)?;
        expect(said(outbox.pending())?.blocked == 0, "a lane without entries is not blocked")?;
        // What is discarded while it is being sent may be under way still.
        let ids = [push_into(&outbox, 4, &one)?, push_into(&outbox, 5, &one)?];
        let discarded = claim_of(&outbox, 4, "what comes later is claimed")?;
        expect(said(outbox.discard(ids[0]))?, "what is being sent can be discarded")?;
        nothing(&outbox, "a lane is busy until the claim of what was discarded has ended")?;
        nothing(&self.open("lane-blocked"), "a lane is busy until the claim of what was discarded has ended")?;
        let settled = outbox.settle(&discarded, Settlement::Delivered);
        expect(matches!(settled, Err(OutboxError::ClaimLost)), "what was discarded meanwhile is not settled")?;
        let last = claim_of(&outbox, 5, "those behind what was discarded go on")?;
        expect(last.entry.id == ids[1], "those behind what was discarded go on")?;
        // One that rests may be asked for in vain, and is tried again all the same.
        said(outbox.settle(&last, Settlement::Retry { after: rest / 3, refused: false, why: "an invented failure" }))?;
        expect(!said(outbox.requeue(ids[1]))?, "what waits is not queued again")?;
        deliver(&outbox, &claim_of(&outbox, 5, "a head that has rested is claimed again, and not overtaken")?)?;
        waiting(&outbox, 0)?;
        outbox.release();
        Ok(())
    }

    /// A barrier waits for all before it, and all after it wait for it.
    pub(super) fn barrier(&self) -> Finding {
        let Some(outbox) = self.open_with_lanes("barrier")? else { return Ok(()) };
        let [one, other] = lanes();
        const WAITS: &str = "a barrier waits for all before it";
        const HOLDS: &str = "what comes after a barrier waits for it";
        for (number, lane) in [(0, &one), (1, &other), (2, &Lane::Barrier), (3, &one), (4, &Lane::Barrier)] {
            push_into(&outbox, number, lane)?;
        }
        push(&outbox, 5)?;
        let (first, second) = (
            claim_of(&outbox, 0, "what is before a barrier goes on")?,
            claim_of(&outbox, 1, "what is before a barrier goes on")?,
        );
        nothing(&outbox, WAITS)?;
        said(outbox.settle(&first, Settlement::Held { why: "an invented silence" }))?;
        deliver(&outbox, &second)?;
        nothing(&outbox, WAITS)?;
        expect(said(outbox.requeue(first.entry.id))?, "what is held can be queued again")?;
        deliver(&outbox, &claim_of(&outbox, 0, WAITS)?)?;
        claim_of(&outbox, 2, "a barrier is claimed when it is the oldest entry")?;
        nothing(&outbox, HOLDS)?;
        let outbox = self.reopen(outbox, "barrier");
        let barrier = claim_of(&outbox, 2, "a barrier whose holder has ended goes again")?;
        nothing(&outbox, HOLDS)?;
        let refused =
            Settlement::Retry { after: Duration::from_millis(200), refused: true, why: "an invented refusal" };
        said(outbox.settle(&barrier, refused))?;
        nothing(&outbox, HOLDS)?;
        deliver(&outbox, &claim_of(&outbox, 2, HOLDS)?)?;
        let between = claim_of(&outbox, 3, "what comes after a barrier goes on when it is delivered")?;
        nothing(&outbox, WAITS)?;
        said(outbox.settle(&between, Settlement::Dead { why: "an invented refusal" }))?;
        let barrier = claim_of(&outbox, 4, "a barrier does not wait for what is dead")?;
        nothing(&outbox, HOLDS)?;
        // One that is dead holds nothing.
        said(outbox.settle(&barrier, Settlement::Dead { why: "an invented refusal" }))?;
        deliver(&outbox, &claim_of(&outbox, 5, "what is dead holds nothing up")?)?;
        for dead in said(outbox.stopped(0, 10))? {
            expect(said(outbox.discard(dead.id))?, "a dead entry can be discarded")?;
        }
        waiting(&outbox, 0)?;
        outbox.release();
        Ok(())
    }

    /// The claims of a holder that has ended, or has given them up, can be had again, each lane by
    /// itself; what was being sent is held, and blocks its own lane.
    pub(super) fn lanes_taken_over(&self) -> Finding {
        let Some(outbox) = self.open_with_lanes("lanes-taken-over")? else { return Ok(()) };
        let [one, other] = lanes();
        for (number, lane) in [(0, &one), (1, &other), (2, &one), (3, &other)] {
            push_into(&outbox, number, lane)?;
        }
        let (first, second) = (claim(&outbox)?, claim(&outbox)?);
        let outbox = self.reopen(outbox, "lanes-taken-over");
        waiting(&outbox, 4)?;
        let (again, begun) = (claim(&outbox)?, claim(&outbox)?);
        let is_same = (again.entry.id, begun.entry.id) == (first.entry.id, second.entry.id);
        expect(is_same, "an entry whose holder has ended is the head of its lane still")?;
        nothing(&outbox, "a lane has one claim at a time")?;
        said(outbox.begin(&begun))?;
        let outbox = self.reopen(outbox, "lanes-taken-over");
        let (mut goes_on, started) = (None, Instant::now());
        let held = loop {
            match outbox.claim() {
                Ok(Some(claim)) => goes_on = goes_on.or(Some(claim)),
                Ok(None) => outbox.wait(Duration::from_millis(20)),
                Err(OutboxError::Stopped { .. }) => {}
                Err(error) => return Err(format!("an unexpected error: {error}")),
            }
            let held = said(outbox.stopped(0, 10))?;
            if held.len() == 1 && goes_on.is_some() || started.elapsed() > super::LONG {
                break held;
            }
        };
        let is_it = held.len() == 1 && held[0].id == begun.entry.id && held[0].state == EntryState::Held;
        expect(is_it, "what was being sent when its holder ended is held")?;
        let Some(goes_on) = goes_on else { return Err("the other lanes go on".into()) };
        expect(goes_on.entry.id == first.entry.id, "the other lanes go on")?;
        deliver(&outbox, &goes_on)?;
        deliver(&outbox, &claim_of(&outbox, 2, "the other lanes go on")?)?;
        nothing(&outbox, "what is held holds up those behind it in its lane")?;
        expect(said(outbox.discard(begun.entry.id))?, "what is held can be discarded")?;
        deliver(&outbox, &claim_of(&outbox, 3, "those behind what was discarded go on")?)?;
        outbox.release();
        Ok(())
    }
}
