//! Lanes, in SQL: which entries can be claimed, by several holders at a time.
//!
//! A destination that never had another lane than its own needs none in the table: the oldest entry
//! is the head, and the holder of the first slot claims it without writing. Once it has a rule that
//! gives lanes, or an entry that was given one, each new entry has its lane (`lanes_from`). Those
//! that were there before are sent first, so that the two never meet.
//!
//! The head of a lane is marked as `ready` unless it is held, rests, or its lane has an entry in
//! flight; a barrier before it is not considered. Whoever changes an entry marks its lane anew. The
//! claims of a destination are numbered slots, and each is a lock of its own; the table `flight`
//! has the entry of each, until its holder has settled it.

use std::borrow::Cow;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::failure::Failure;
use crate::outbox::lane::LaneChoice;
use crate::outbox::{LaneKey, unix_millis};

/// The most rests that are ended in one transaction.
const RESTS_AT_ONCE: i64 = 64;

/// The destination's own lane.
const OWN: &str = ".";

/// The lane of the barriers.
const BARRIER: &str = "!";

// SQLite would go through all entries of a destination rather than use an index of a few, unless it
// is told to.
const ALL: &str = "WHERE destination = ?1";
const BARRIERS: &str = "INDEXED BY lane WHERE destination = ?1 AND lane = '!'";
const READY: &str = "INDEXED BY ready WHERE destination = ?1 AND ready = 1";

/// A message's place among the others of its destination.
pub(super) struct NewInLane<'m> {
    pub(super) id: i64,
    pub(super) control_id: &'m str,
    pub(super) identity: &'m str,
    pub(super) lane: &'m str,
}

impl NewInLane<'_> {
    /// Puts a message that has just been stored at the end of its lane. `lanes_from` is the
    /// destination's.
    pub(super) fn enter(
        &self,
        writer: &Connection,
        destination: i64,
        lanes_from: Option<i64>,
        now: i64,
    ) -> Result<(), Failure> {
        let NewInLane { id, control_id, identity, lane } = self;
        if lanes_from.is_none() && *lane != OWN {
            begin_at(writer, destination, Some(*id))?;
        }
        let lane = (lanes_from.is_some() || *lane != OWN).then_some(lane);
        let mut waiting = writer.prepare_cached(
            "INSERT INTO waiting
                (destination, id, control_id, pushed_at, state, attempts, refusals, identity, lane, ready)
             VALUES (?1, ?2, ?3, ?4, 'waiting', 0, 0, ?5, ?6,
                ?6 IS NOT NULL AND NOT EXISTS (SELECT 1 FROM waiting WHERE destination = ?1 AND lane = ?6))",
        )?;
        waiting.execute(params![destination, id, control_id, now, identity, lane])?;
        Ok(())
    }
}

/// From this number on the entries of a destination have lanes; with `None`, no more.
fn begin_at(writer: &Connection, destination: i64, from: Option<i64>) -> rusqlite::Result<()> {
    let sql = "UPDATE destination SET lanes_from = ?2 WHERE id = ?1";
    writer.prepare_cached(sql)?.execute(params![destination, from]).map(drop)
}

/// The lane of an entry of the queue, if it has one.
pub(super) fn lane_of(reader: &Connection, destination: i64, id: i64) -> rusqlite::Result<Option<String>> {
    let find = "SELECT lane FROM waiting WHERE destination = ?1 AND id = ?2";
    let lane = reader.prepare_cached(find)?.query_row([destination, id], |row| row.get(0)).optional()?;
    Ok(lane.flatten())
}

/// Marks a lane anew, of which an entry has changed. If one that is queued again comes first now,
/// the former head is none any more.
pub(super) fn refresh(writer: &Connection, destination: i64, lane: &str) -> rusqlite::Result<()> {
    let mut mark = writer.prepare_cached(
        "UPDATE waiting SET ready =
             id = (SELECT min(id) FROM waiting WHERE destination = ?1 AND lane = ?2)
             AND state IN ('waiting', 'sending') AND retry_at IS NULL
             AND NOT EXISTS (SELECT 1 FROM flight WHERE destination = ?1 AND lane = ?2)
         WHERE destination = ?1
             AND id IN (SELECT id FROM waiting WHERE destination = ?1 AND lane = ?2 ORDER BY id LIMIT 2)",
    )?;
    mark.execute(params![destination, lane]).map(drop)
}

/// Whether entries of other lanes may have become claimable, after one has left this lane: a
/// barrier has left, or waits.
pub(super) fn concerns_others(reader: &Connection, destination: i64, lane: &str) -> rusqlite::Result<bool> {
    let has_lane = oldest_has_lane(reader, destination)?.unwrap_or(true);
    Ok(lane == BARRIER || !has_lane || oldest(reader, destination, BARRIERS)?.is_some())
}

/// The oldest entry of which this is true, by an index.
fn oldest(reader: &Connection, destination: i64, by: &str) -> rusqlite::Result<Option<i64>> {
    let sql = format!("SELECT min(id) FROM waiting {by}");
    reader.prepare_cached(&sql)?.query_row([destination], |row| row.get(0))
}

fn oldest_has_lane(reader: &Connection, destination: i64) -> rusqlite::Result<Option<bool>> {
    let has_lane = "SELECT lane IS NOT NULL FROM waiting WHERE destination = ?1 ORDER BY id LIMIT 1";
    reader.prepare_cached(has_lane)?.query_row([destination], |row| row.get(0)).optional()
}

/// The oldest entry that can be claimed.
fn next(reader: &Connection, destination: i64) -> rusqlite::Result<Option<i64>> {
    let in_flight = |which: &str| {
        let sql = format!("SELECT 1 FROM flight WHERE destination = ?1 {which} LIMIT 1");
        reader.prepare_cached(&sql)?.exists([destination])
    };
    if oldest_has_lane(reader, destination)? != Some(true) {
        return Ok(None);
    }
    let Some(ready) = oldest(reader, destination, READY)? else { return Ok(None) };
    let can_be_claimed = match oldest(reader, destination, BARRIERS)? {
        None => true,
        Some(barrier) if barrier == ready => !in_flight("")? && oldest(reader, destination, ALL)? == Some(ready),
        Some(barrier) => ready < barrier && !in_flight("AND lane = '!'")?,
    };
    Ok(can_be_claimed.then_some(ready))
}

/// What a look at the lanes has found.
pub(super) struct Found {
    /// Whether something may be there to claim.
    pub(super) something: bool,
    /// The time until the next resting entry may be tried.
    pub(super) next_rest_ends: Option<Duration>,
    /// The slots that have an entry in flight.
    pub(super) slots: Vec<usize>,
}

/// Looks whether something can be claimed, without writing.
pub(super) fn look(reader: &Connection, destination: i64) -> rusqlite::Result<Found> {
    let now = unix_millis::now();
    let ends = "SELECT min(retry_at) FROM waiting INDEXED BY rest_ends
                WHERE destination = ?1 AND retry_at IS NOT NULL AND lane IS NOT NULL";
    let ends: Option<i64> = reader.prepare_cached(ends)?.query_row([destination], |row| row.get(0))?;
    let slots = "SELECT slot FROM flight WHERE destination = ?1";
    let mut slots = reader.prepare_cached(slots)?;
    let slots = slots.query_map([destination], |row| row.get::<_, i64>(0))?;
    let left = |ends: i64| Duration::from_millis(u64::try_from(ends.saturating_sub(now)).unwrap_or(0));
    Ok(Found {
        something: ends.is_some_and(|ends| ends <= now)
            || last_rest_begun(reader, destination)?.is_some_and(|begun| begun > now)
            || next(reader, destination)?.is_some(),
        next_rest_ends: ends.map(left),
        slots: slots.map(|slot| Ok(slot? as usize)).collect::<rusqlite::Result<_>>()?,
    })
}

fn last_rest_begun(reader: &Connection, destination: i64) -> rusqlite::Result<Option<i64>> {
    let begun =
        "SELECT max(rested_at) FROM waiting INDEXED BY rest_begins WHERE destination = ?1 AND rested_at IS NOT NULL";
    reader.prepare_cached(begun)?.query_row([destination], |row| row.get(0))
}

/// Whether a slot is this holder's still.
pub(super) fn is_holder(reader: &Connection, destination: i64, slot: i64, holder: &str) -> rusqlite::Result<bool> {
    let own = "SELECT 1 FROM claim WHERE destination = ?1 AND slot = ?2 AND holder = ?3";
    reader.prepare_cached(own)?.exists(params![destination, slot, holder])
}

/// Claims the oldest entry that can be claimed, for a slot; returns its number, 0 if there is none,
/// and a negative number if another holds the slot.
pub(super) fn claim(writer: &Connection, destination: i64, slot: i64, holder: &str) -> Result<i64, Failure> {
    if !is_holder(writer, destination, slot, holder)? {
        return Ok(-1);
    }
    free(writer, destination, slot)?;
    let paused = "SELECT paused FROM destination WHERE id = ?1";
    if writer.prepare_cached(paused)?.query_row([destination], |row| row.get(0)).optional()?.unwrap_or(false) {
        return Ok(0);
    }
    end_rests(writer, destination)?;
    let Some(id) = next(writer, destination)? else { return Ok(0) };
    let take = "INSERT INTO flight (destination, slot, lane, id)
                SELECT destination, ?3, lane, id FROM waiting WHERE destination = ?1 AND id = ?2";
    writer.prepare_cached(take)?.execute([destination, id, slot])?;
    let mark = "UPDATE waiting SET ready = 0 WHERE destination = ?1 AND id = ?2";
    writer.prepare_cached(mark)?.execute([destination, id])?;
    Ok(id)
}

/// Frees the lane of the entry that a slot has in flight, once it is settled or its holder has
/// ended.
pub(super) fn free(writer: &Connection, destination: i64, slot: i64) -> Result<i64, Failure> {
    let free = "DELETE FROM flight WHERE destination = ?1 AND slot = ?2 RETURNING lane";
    let freed = writer.prepare_cached(free)?.query_row([destination, slot], |row| row.get::<_, String>(0));
    let Some(lane) = freed.optional()? else { return Ok(0) };
    refresh(writer, destination, &lane)?;
    Ok(1)
}

/// Ends rests whose time has come, by the clock of the system. Where that was set back, those end
/// too that have begun later than now.
fn end_rests(writer: &Connection, destination: i64) -> rusqlite::Result<()> {
    for due in [
        "INDEXED BY rest_ends WHERE destination = ?1 AND retry_at <= ?2 AND lane IS NOT NULL",
        "INDEXED BY rest_begins WHERE destination = ?1 AND rested_at > ?2",
    ] {
        let sql = format!("SELECT id, lane FROM waiting {due} LIMIT {RESTS_AT_ONCE}");
        let mut find = writer.prepare_cached(&sql)?;
        let rests = find.query_map([destination, unix_millis::now()], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        })?;
        for (id, lane) in rests.collect::<rusqlite::Result<Vec<_>>>()? {
            let end = "UPDATE waiting SET retry_at = NULL, rested_at = NULL WHERE destination = ?1 AND id = ?2";
            writer.prepare_cached(end)?.execute([destination, id])?;
            refresh(writer, destination, &lane)?;
        }
    }
    Ok(())
}

/// How many lanes wait for their head, which is held or rests.
pub(super) fn blocked(reader: &Connection, destination: i64) -> rusqlite::Result<i64> {
    let sql = "SELECT count(*) FROM (
            SELECT id, lane FROM waiting INDEXED BY held WHERE destination = ?1 AND state = 'held'
            UNION SELECT id, lane FROM waiting INDEXED BY rest_ends
                WHERE destination = ?1 AND retry_at IS NOT NULL AND lane IS NOT NULL
            UNION SELECT id, lane FROM
                (SELECT id, lane, retry_at FROM waiting WHERE destination = ?1 ORDER BY id LIMIT 1)
                WHERE lane IS NULL AND retry_at IS NOT NULL
        ) AS stopped
        WHERE id = CASE WHEN lane IS NULL THEN (SELECT min(id) FROM waiting WHERE destination = ?1)
            ELSE (SELECT min(id) FROM waiting WHERE destination = ?1 AND lane = stopped.lane) END";
    reader.prepare_cached(sql)?.query_row([destination], |row| row.get(0))
}

/// Gives the destination this rule for lanes.
pub(super) fn change_rule(writer: &Connection, destination: i64, rule: &str) -> Result<i64, Failure> {
    let Laned { name, rule: known, .. } = Laned::of(writer, destination)?;
    if known == rule {
        return Ok(0);
    }
    let waits = "SELECT 1 FROM waiting WHERE destination = ?1 AND lane IS NOT NULL LIMIT 1";
    if writer.prepare_cached(waits)?.exists([destination])? {
        return Err(Failure::OtherRule { destination: name, known, wanted: Some(rule.to_owned()) });
    }
    let next = "SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name = 'message'";
    let next: i64 = writer.prepare_cached(next)?.query_row([], |row| row.get(0))?;
    begin_at(writer, destination, (rule != LaneKey::Destination.name()).then_some(next))?;
    let change = "UPDATE destination SET lane_rule = ?2 WHERE id = ?1";
    Ok(writer.prepare_cached(change)?.execute(params![destination, rule])? as i64)
}

/// A destination, by what gives its messages their lanes.
pub(super) struct Laned {
    name: String,
    rule: String,
    /// The number from which on entries have lanes; `None` if none has.
    pub(super) lanes_from: Option<i64>,
}

impl Laned {
    pub(super) fn of(reader: &Connection, destination: i64) -> Result<Laned, Failure> {
        let find = "SELECT name, lane_rule, lanes_from FROM destination WHERE id = ?1";
        let fields = |row: &Row<'_>| {
            Ok(Laned { name: row.get("name")?, rule: row.get("lane_rule")?, lanes_from: row.get("lanes_from")? })
        };
        reader.prepare_cached(find)?.query_row([destination], fields).optional()?.ok_or(Failure::Removed)
    }

    /// The lane of a message here.
    pub(super) fn lane<'c>(&self, choice: &'c LaneChoice, message: &[u8]) -> Result<Cow<'c, str>, Failure> {
        let (destination, known) = (&self.name, &self.rule);
        let other = || Failure::OtherRule { destination: destination.clone(), known: known.clone(), wanted: None };
        choice.by(known, message).ok_or_else(other)
    }
}
