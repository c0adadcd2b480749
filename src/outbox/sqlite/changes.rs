//! The changes of entries, in SQL. An entry is known by its destination and its number; one that
//! is claimed by its identity as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, ToSql, params};

use super::failure::Failure;
use super::lanes::{self, Laned, NewInLane};
use crate::outbox::entry::AfterSettlement;
use crate::outbox::lane::LaneChoice;
use crate::outbox::{EntryState, LaneKey, unix_millis};

/// The largest number of delivered entries that are removed in one transaction.
const PURGE_AT_ONCE: usize = 256;

/// The size of delivered messages after which no more are removed in one transaction, in bytes.
pub(super) const PURGE_BYTES: i64 = 8 * 1024 * 1024;

/// How long delivered entries and keys are kept, if nothing else is said.
pub(super) const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A destination and the number of an entry.
pub(super) type Key = (i64, i64);

/// A message to be stored.
#[derive(Clone)]
pub(super) struct NewEntry {
    pub(super) message: Vec<u8>,
    pub(super) control_id: String,
    pub(super) identity: String,
    pub(super) lanes: LaneChoice,
    /// The key under which it is pushed, if there is one.
    pub(super) key: Option<String>,
    /// The bound of the file in bytes.
    pub(super) max_bytes: Option<u64>,
    /// Where it notes how many messages wait, about.
    pub(super) backlog: Arc<AtomicU64>,
}

impl NewEntry {
    /// Stores it for a destination; returns its number, or that of the entry that was pushed under
    /// its key before. `highest`: that of the entries that were seen in this file.
    pub(super) fn store(&self, writer: &Connection, destination: i64, highest: i64) -> Result<i64, Failure> {
        let laned = Laned::of(writer, destination)?;
        let lane = laned.lane(&self.lanes, &self.message)?;
        if let Some(key) = &self.key {
            let find = "SELECT id FROM pushed_key WHERE destination = ?1 AND key = ?2";
            let known = writer.prepare_cached(find)?.query_row(params![destination, key], |row| row.get(0));
            if let Some(id) = known.optional()? {
                return Ok(id);
            }
        }
        if let Some(most) = self.max_bytes
            && bytes_in_use(writer)? + self.message.len() as u64 > most
        {
            return Err(Failure::Bound(most));
        }
        let mut content = writer.prepare_cached("INSERT INTO message (checksum, content) VALUES (?1, ?2)")?;
        let id = content.insert(params![crc32fast::hash(&self.message), self.message])?;
        if id <= highest {
            return Err(Failure::Older);
        }
        let now = unix_millis::now();
        let new = NewInLane { id, control_id: &self.control_id, identity: &self.identity, lane: &lane };
        new.enter(writer, destination, laned.lanes_from, now)?;
        let head = "SELECT min(id) FROM waiting WHERE destination = ?1";
        let head: i64 = writer.prepare_cached(head)?.query_row([destination], |row| row.get(0))?;
        self.backlog.store((id - head) as u64, Ordering::Relaxed);
        if let Some(key) = &self.key {
            let keep = "INSERT INTO pushed_key (destination, key, id, pushed_at) VALUES (?1, ?2, ?3, ?4)";
            writer.prepare_cached(keep)?.execute(params![destination, key, id, now])?;
        }
        Ok(id)
    }
}

/// The bytes that the file's content takes.
fn bytes_in_use(writer: &Connection) -> rusqlite::Result<u64> {
    let number = |pragma: &str| writer.prepare_cached(pragma)?.query_row([], |row| row.get::<_, i64>(0));
    let pages = number("PRAGMA page_count")? - number("PRAGMA freelist_count")?;
    Ok((pages * number("PRAGMA page_size")?) as u64)
}

/// A change of an entry that this handle has claimed.
pub(super) enum Change {
    Begin,
    Deliver { attempts: u32, keep: bool },
    Stay { state: EntryState, attempts: u32, refusals: u32, unknowns: u32, rest: Option<Duration>, why: String },
    Bury { attempts: u32, refusals: u32, unknowns: u32, why: String },
}

impl Change {
    pub(super) fn settlement(settled: AfterSettlement<'_>, keep: bool) -> Change {
        let why = settled.last_failure.unwrap_or_default().to_owned();
        let AfterSettlement { state, attempts, refusals, unknowns, rest, .. } = settled;
        match state {
            None => Change::Deliver { attempts, keep },
            Some(EntryState::Dead) => Change::Bury { attempts, refusals, unknowns, why },
            Some(state) => Change::Stay { state, attempts, refusals, unknowns, rest, why },
        }
    }

    /// Makes the change; returns the number of entries that were changed: none if another has the
    /// number, or another holder the claim; more than one if others may be claimed for it that are
    /// not in its lane.
    pub(super) fn make(&self, writer: &Connection, key: Key, claimed: &Claimed) -> Result<i64, Failure> {
        let ((destination, id), Claimed { identity, holder, slot }) = (key, claimed);
        if !lanes::is_holder(writer, destination, *slot, holder)? {
            return Ok(0);
        }
        let in_flight = "SELECT lane FROM flight WHERE destination = ?1 AND slot = ?2 AND id = ?3";
        let lane =
            writer.prepare_cached(in_flight)?.query_row([destination, *slot, id], |row| row.get(0)).optional()?;
        let lane: Option<String> = lane;
        let is_there = "SELECT 1 FROM waiting WHERE destination = ?1 AND id = ?2 AND identity = ?3 AND lane IS ?4";
        let is_there = writer.prepare_cached(is_there)?.exists(params![destination, id, identity, lane])?;
        let changed = if is_there { self.make_found(writer, key)? } else { 0 };
        match lane {
            Some(lane) if changed == 0 || !matches!(self, Change::Begin) => {
                lanes::free(writer, destination, *slot)?;
                let concerns_others = lanes::concerns_others(writer, destination, &lane)?;
                Ok(if changed > 0 { changed + i64::from(concerns_others) } else { 0 })
            }
            _ => Ok(changed),
        }
    }

    fn make_found(&self, writer: &Connection, (destination, id): Key) -> Result<i64, Failure> {
        let execute = |sql: &str, parameters: &[&dyn ToSql]| execute(writer, sql, parameters);
        const LEAVE: &str = "DELETE FROM waiting WHERE destination = ?1 AND id = ?2";
        match self {
            // One that was held meanwhile is not sent.
            Change::Begin => execute(
                "UPDATE waiting SET state = 'sending', begun = 1 WHERE destination = ?1 AND id = ?2 AND state <> 'held'",
                &[&destination, &id],
            ),
            Change::Deliver { keep: false, .. } => {
                let there = execute(LEAVE, &[&destination, &id])?;
                execute("DELETE FROM message WHERE id = ?1", &[&id])?;
                Ok(there)
            }
            Change::Deliver { keep: true, attempts } => {
                execute(
                    "INSERT INTO delivered (destination, delivered_at, id, control_id, pushed_at, attempts, lane)
                     SELECT destination, ?3, id, control_id, pushed_at, ?4, lane FROM waiting WHERE destination = ?1 AND id = ?2",
                    &[&destination, &id, &unix_millis::now(), attempts],
                )?;
                execute(LEAVE, &[&destination, &id])
            }
            // What was held while it was sent stays so.
            Change::Stay { state, attempts, refusals, unknowns, rest, why } => {
                let now = unix_millis::now();
                let retry_at = rest.map(|rest| now.saturating_add(milliseconds(rest)));
                execute(
                    "UPDATE waiting SET state = CASE WHEN state = 'held' THEN 'held' ELSE ?3 END,
                         begun = 0, attempts = ?4, refusals = ?5, unknowns = ?6, retry_at = ?7, last_failure = ?8,
                         rested_at = iif(lane IS NULL OR ?7 IS NULL, NULL, ?9)
                     WHERE destination = ?1 AND id = ?2",
                    &[&destination, &id, &state.as_str(), attempts, refusals, unknowns, &retry_at, why, &now],
                )
            }
            Change::Bury { attempts, refusals, unknowns, why } => {
                execute(
                    "INSERT INTO dead
                        (destination, id, control_id, pushed_at, attempts, refusals, unknowns, died_at, last_failure, identity,
                         lane)
                     SELECT destination, id, control_id, pushed_at, ?3, ?4, ?5, ?6, ?7, identity, lane
                     FROM waiting WHERE destination = ?1 AND id = ?2",
                    &[&destination, &id, attempts, refusals, unknowns, &unix_millis::now(), why],
                )?;
                execute(LEAVE, &[&destination, &id])
            }
        }
    }
}

/// By what an entry is known to be claimed.
#[derive(Clone)]
pub(super) struct Claimed {
    pub(super) identity: String,
    pub(super) holder: String,
    pub(super) slot: i64,
}

/// What an operator does to an entry, or to all heads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    Requeue,
    Discard,
    Hold,
    Unhold,
    TryNow,
    SetPaused(bool),
}

impl Order {
    /// Makes the change; returns the number of rows that were changed.
    pub(super) fn make(self, writer: &Connection, key: Key) -> Result<i64, Failure> {
        let (destination, id) = key;
        let before = lanes::lane_of(writer, destination, id)?;
        let changed = self.make_alone(writer, key)?;
        if let Some(lane) = before.or(lanes::lane_of(writer, destination, id)?) {
            lanes::refresh(writer, destination, &lane)?;
        }
        Ok(changed)
    }

    fn make_alone(self, writer: &Connection, (destination, id): Key) -> Result<i64, Failure> {
        let execute = |sql: &str| execute(writer, sql, &[&destination, &id]);
        const REMOVE_DEAD: &str = "DELETE FROM dead WHERE destination = ?1 AND id = ?2";
        match self {
            Order::Requeue => {
                let held = execute(
                    "UPDATE waiting
                     SET state = 'waiting', begun = 0, attempts = 0, refusals = 0, unknowns = 0, retry_at = NULL,
                         rested_at = NULL
                     WHERE destination = ?1 AND id = ?2 AND state = 'held'",
                )?;
                let dead = execute(
                    "INSERT INTO waiting
                        (destination, id, control_id, pushed_at, state, attempts, refusals, last_failure, identity, lane)
                     SELECT destination, id, control_id, pushed_at, 'waiting', 0, 0, last_failure, identity,
                         (SELECT iif(lanes_from <= ?2, coalesce(dead.lane, '.'), NULL) FROM destination WHERE id = ?1)
                     FROM dead WHERE destination = ?1 AND id = ?2",
                )?;
                execute(REMOVE_DEAD)?;
                Ok(held + dead)
            }
            Order::Discard => {
                let removed =
                    execute("DELETE FROM waiting WHERE destination = ?1 AND id = ?2")? + execute(REMOVE_DEAD)?;
                if removed > 0 {
                    // The number is unique in the file, and this destination's.
                    writer.prepare_cached("DELETE FROM message WHERE id = ?1")?.execute([id])?;
                }
                Ok(removed)
            }
            Order::Hold => execute(
                "UPDATE waiting SET state = 'held' WHERE destination = ?1 AND id = ?2 AND state IN ('waiting', 'sending')",
            ),
            Order::Unhold => execute(
                // What was being sent when it was held may be so still.
                "UPDATE waiting SET state = CASE WHEN begun THEN 'sending' ELSE 'waiting' END, retry_at = NULL,
                     rested_at = NULL
                 WHERE destination = ?1 AND id = ?2 AND state = 'held'",
            ),
            Order::TryNow => {
                let head = "UPDATE waiting SET retry_at = NULL WHERE destination = ?1 AND lane IS NULL
                            AND id = (SELECT min(id) FROM waiting WHERE destination = ?1)";
                // Whoever claims next ends these rests.
                let lanes = "UPDATE waiting INDEXED BY rest_ends SET retry_at = 0 WHERE destination = ?1
                             AND retry_at IS NOT NULL AND lane IS NOT NULL";
                let changed = [head, lanes].map(|sql| Ok(writer.prepare_cached(sql)?.execute([destination])? as i64));
                changed.into_iter().sum()
            }
            Order::SetPaused(paused) => {
                let sql = "UPDATE destination SET paused = ?2 WHERE id = ?1";
                Ok(writer.prepare_cached(sql)?.execute((destination, paused))? as i64)
            }
        }
    }
}

/// Pushes a delivered message once more; returns its new number, 0 if there is none. It has the
/// lane that it had, unless the rule has changed since; `own`: the rule of this handle.
pub(super) fn resend(
    writer: &Connection,
    (destination, id): Key,
    identity: &str,
    highest: i64,
    own: Option<&LaneKey>,
) -> Result<i64, Failure> {
    let find = "SELECT control_id, lane FROM delivered WHERE destination = ?1 AND id = ?2";
    let found = writer.prepare_cached(find)?.query_row((destination, id), |row| Ok((row.get(0)?, row.get(1)?)));
    let Some((control_id, lane)): Option<(String, Option<String>)> = found.optional()? else { return Ok(0) };
    let laned = Laned::of(writer, destination)?;
    let copy = "INSERT INTO message (checksum, content) SELECT checksum, content FROM message WHERE id = ?1";
    let new = writer.prepare_cached(copy)?.insert([id])?;
    if new <= highest {
        return Err(Failure::Older);
    }
    let lane = match lane.filter(|_| laned.lanes_from.is_some_and(|from| from <= id)) {
        Some(lane) => lane,
        None => {
            let read = "SELECT content FROM message WHERE id = ?1";
            let message: Vec<u8> = writer.prepare_cached(read)?.query_row([new], |row| row.get(0))?;
            laned.lane(&LaneChoice::of(&message, None, own), &message)?.into_owned()
        }
    };
    let again = NewInLane { id: new, control_id: &control_id, identity, lane: &lane };
    again.enter(writer, destination, laned.lanes_from, unix_millis::now())?;
    Ok(new)
}

/// The number of a destination, which is made if it is not there. None has had it before.
pub(super) fn make_destination(writer: &Connection, name: &str) -> Result<i64, Failure> {
    let make = "INSERT OR IGNORE INTO destination (id, name)
                SELECT 1 + max((SELECT coalesce(max(id), 0) FROM destination),
                               (SELECT coalesce(max(destination), 0) FROM claim)), ?1";
    writer.execute(make, [name])?;
    Ok(writer.query_row("SELECT id FROM destination WHERE name = ?1", [name], |row| row.get(0))?)
}

/// Removes a destination and what it has delivered; returns 0 if it has entries that wait, are held
/// or are dead.
pub(super) fn remove_destination(writer: &Connection, destination: i64) -> Result<i64, Failure> {
    let entries = "SELECT EXISTS (SELECT 1 FROM waiting WHERE destination = ?1)
                   OR EXISTS (SELECT 1 FROM dead WHERE destination = ?1)";
    if writer.query_row(entries, [destination], |row| row.get(0))? {
        return Ok(0);
    }
    for sql in [
        "DELETE FROM message WHERE id IN (SELECT id FROM delivered WHERE destination = ?1)",
        "DELETE FROM delivered WHERE destination = ?1",
        "DELETE FROM pushed_key WHERE destination = ?1",
        // It keeps the number from being given to another.
        "INSERT OR REPLACE INTO claim (destination, slot) VALUES (?1, 0)",
        "DELETE FROM destination WHERE id = ?1",
    ] {
        writer.execute(sql, [destination])?;
    }
    Ok(1)
}

/// Which delivered entries are to be removed.
#[derive(Clone, Copy)]
pub(super) enum Expired {
    /// Those that have been kept for the time that their destination says.
    ByAge,
    /// The oldest, since there is no room.
    Oldest,
}

/// Removes delivered entries of all destinations, a few at a time; returns how many. Where there
/// are more, it returns as many as it removes at most, or more.
pub(super) fn purge(writer: &Connection, which: Expired) -> Result<i64, Failure> {
    let now = unix_millis::now();
    let mut destinations = writer.prepare_cached("SELECT id, keep FROM destination")?;
    let destinations = destinations.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let destinations = destinations.collect::<rusqlite::Result<Vec<(i64, Option<i64>)>>>()?;
    let (mut removed, mut bytes) = (0, 0);
    for (destination, keep) in destinations {
        let before = match which {
            Expired::ByAge => now.saturating_sub(keep.unwrap_or(milliseconds(WEEK))),
            Expired::Oldest => i64::MAX,
        };
        let mut expired = writer.prepare_cached(
            "SELECT d.id, d.delivered_at, coalesce(length(m.content), 0) FROM delivered d LEFT JOIN message m ON m.id = d.id
             WHERE d.destination = ?1 AND d.delivered_at < ?2 ORDER BY d.delivered_at, d.id",
        )?;
        let mut rows = expired.query([destination, before])?;
        while let Some(row) = rows.next()? {
            let (id, delivered_at, size): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let sql = "DELETE FROM delivered WHERE destination = ?1 AND delivered_at = ?2 AND id = ?3";
            writer.prepare_cached(sql)?.execute([destination, delivered_at, id])?;
            writer.prepare_cached("DELETE FROM message WHERE id = ?1")?.execute([id])?;
            removed += 1;
            bytes += size;
            if removed >= PURGE_AT_ONCE as i64 || bytes >= PURGE_BYTES {
                return Ok(PURGE_AT_ONCE as i64);
            }
        }
    }
    let old = "DELETE FROM pushed_key WHERE rowid IN
               (SELECT rowid FROM pushed_key WHERE pushed_at < ?1 ORDER BY pushed_at LIMIT ?2)";
    let before = now.saturating_sub(milliseconds(WEEK));
    removed += writer.prepare_cached(old)?.execute([before, PURGE_AT_ONCE as i64])? as i64;
    let before = now.saturating_sub(milliseconds(5 * WEEK));
    writer.prepare_cached("DELETE FROM pusher WHERE pushed_at < ?1")?.execute([before])?;
    Ok(removed)
}

/// Whether a purge that returned this has left something to remove.
pub(super) fn is_left_over(removed: i64) -> bool {
    removed >= PURGE_AT_ONCE as i64
}

/// Runs a statement; returns the number of rows that it changed.
fn execute(writer: &Connection, sql: &str, parameters: &[&dyn ToSql]) -> Result<i64, Failure> {
    Ok(writer.prepare_cached(sql)?.execute(parameters)? as i64)
}

pub(super) fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
