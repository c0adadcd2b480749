//! Messages in a file, by SQLite. This folder alone names `rusqlite`.

mod changes;
mod claim_lock;
mod failure;
mod files;
mod group;
mod lanes;
mod reserve;
mod schema;
mod slots;
mod storage;
mod turns;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, named_params};

use super::identity::unique;
use super::lane::{LaneChoice, LaneKey};
use super::local_claim::LocalClaims;
use super::wake_up::WakeUp;
use super::{Claim, Entry, EntryState, Outbox, OutboxError, Pending, PushOptions, Settlement, Summary, unix_millis};
use crate::deadline::Deadline;
use crate::locks::lock;
use changes::{Change, Claimed, Expired, NewEntry, Order, WEEK, milliseconds};
use failure::Failure;
use group::Kind;
use slots::{Slots, TakenSlot};
use storage::{Storage, TIMEOUT};

/// How soon an entry that another process has pushed is noticed, at first and after long silence.
const POLL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(1));

/// The time between two searches for delivered entries that are old enough to be removed.
const PURGE: Duration = Duration::from_secs(60);

/// How long giving up claims may take.
const GIVING_UP: Duration = Duration::from_millis(100);

/// The largest message in bytes: SQLite's own limit, less what surrounds it in a row.
const LARGEST: usize = 999_999_000;

/// An [`Outbox`] in a file, by SQLite (feature `sqlite`).
///
/// *What it promises to survive*: the end of the process and of the machine, from the moment when
/// `push` returns: the file is written with a write-ahead log, and the disk is asked to have it. It
/// lies on a local disk; network file systems lack the locks. What it promises under each failure:
/// [`guide::storages`](crate::guide::storages).
///
/// A file has several destinations, and several processes may push to each while one forwards, or
/// several where it has [lanes](SqliteOutbox::lanes): the right to claim is a lock on a file beside
/// it, which the system takes back when its holder ends, however it ends. Processes that push take
/// turns, and leave time for delivering while much waits. The handles of a process share the
/// connections, clones the claim as well, and the changes of threads at the same time share one
/// write to the disk. On Unix the file is made readable by its owner alone, since it holds
/// patients' data.
///
/// A process that forks opens its outboxes after the fork: SQLite's connections do not survive it.
///
/// Delivered entries are kept for 7 days, with their messages, unless
/// [`keep_delivered`](SqliteOutbox::keep_delivered) says otherwise. They are removed by whoever
/// forwards, a few at a time. The keys of pushes are known for 7 days.
///
/// # Reading it
///
/// Any `sqlite3` shell reads it, also while it is in use:
///
/// ```sql
/// SELECT * FROM show_waiting;   -- what is waiting: destination, control ID, attempts, last failure, since when, lane
/// SELECT * FROM show_dead;      -- what died, when and why
/// SELECT * FROM show_delivered; -- what was delivered, and when
/// SELECT name, paused FROM destination;
/// SELECT content FROM message WHERE id = 7;
/// ```
///
/// # Examples
///
/// ```
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("outbox.db");
/// use mllp_client::outbox::{Outbox, SqliteOutbox};
///
/// let outbox = SqliteOutbox::open(path, "ehr")?;
/// outbox.push(b"MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|MSG1|P|2.5\r")?;
/// assert_eq!(outbox.pending()?.waiting, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct SqliteOutbox {
    shared: Arc<SqliteShared>,
    keep: Option<Duration>,
    max_bytes: Option<u64>,
    timeout: Duration,
    lane_key: Option<LaneKey>,
    lanes: usize,
}

struct SqliteShared {
    storage: Arc<Storage>,
    destination: i64,
    name: Arc<str>,
    /// The name of this handle, different from that of all others.
    holder: String,
    slots: Slots,
    holding: Mutex<Holding>,
    wake_up: Arc<WakeUp>,
}

/// What this handle has claimed, and what else its threads share.
struct Holding {
    local_claims: LocalClaims,
    /// When the next entry that rests in a lane is to be tried.
    next_rest_ends: Option<Deadline>,
    next_purge: Option<Deadline>,
    /// How long delivered entries are kept, as the database knows it.
    kept: Option<Option<Duration>>,
    /// How long to wait for what another process pushes.
    poll: Duration,
}

impl SqliteOutbox {
    /// Opens the outbox in a file, for one destination; makes both where they are not there yet.
    ///
    /// # Errors
    ///
    /// [`OutboxError::Config`] if the file is of another kind, or of a later version;
    /// [`OutboxError::Damaged`], [`OutboxError::Full`] or [`OutboxError::Storage`] if it cannot
    /// be read and written.
    pub fn open(path: impl AsRef<Path>, destination: &str) -> Result<SqliteOutbox, OutboxError> {
        let shared = SqliteShared::new(Storage::open(path.as_ref())?, destination, TIMEOUT)?;
        let (keep, max_bytes, timeout, lane_key, lanes) = (Some(WEEK), None, TIMEOUT, None, 1);
        Ok(SqliteOutbox { shared: Arc::new(shared), keep, max_bytes, timeout, lane_key, lanes })
    }

    /// Another destination in the same file, over the same connections and with the same settings,
    /// but for the rule for lanes.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or written.
    pub fn for_destination(&self, destination: &str) -> Result<SqliteOutbox, OutboxError> {
        let shared = SqliteShared::new(Arc::clone(&self.shared.storage), destination, self.timeout)?;
        Ok(SqliteOutbox { shared: Arc::new(shared), lane_key: None, ..self.clone() })
    }

    /// How long what is delivered to this destination is kept; `None` for not at all. The one who
    /// forwards decides. Defaults to 7 days.
    ///
    /// Where the file has reached its bound or the disk is full, what is kept gives way to what is
    /// pushed, of each destination the oldest first.
    pub fn keep_delivered(self, time: Option<Duration>) -> SqliteOutbox {
        SqliteOutbox { keep: time, ..self }
    }

    /// This handle's pushes are refused ([`OutboxError::Full`]) where the content of the file would
    /// take more bytes, all its destinations together. Defaults to no bound but the disk's, of
    /// which up to 2 MiB are left for what makes room.
    pub fn max_bytes(self, bytes: u64) -> SqliteOutbox {
        SqliteOutbox { max_bytes: Some(bytes), ..self }
    }

    /// The limit of each call of this handle while the file is in use by others. Opening has its
    /// own, of 10 seconds, which is also what this defaults to.
    pub fn timeout(self, limit: Duration) -> SqliteOutbox {
        SqliteOutbox { timeout: limit, ..self }
    }

    /// The rule that gives the messages of this destination their lanes. The file stores the rule's
    /// name, and it applies to every process. A handle that is opened without a rule follows
    /// [`LaneKey::Destination`] and [`LaneKey::PatientId`] by itself; it cannot follow one from
    /// [`LaneKey::by`], so that its pushes fail. Defaults to the rule that the file has,
    /// `Destination` for a new destination.
    ///
    /// # Errors
    ///
    /// [`OutboxError::Config`] if messages wait, or are held, that were given their lanes by
    /// another rule: have them delivered first. Messages that were pushed before the
    /// destination had lanes do not count; they are sent first. Any failure to read or write
    /// the file.
    pub fn lane_key(self, rule: LaneKey) -> Result<SqliteOutbox, OutboxError> {
        let (name, destination) = (rule.name().into_owned(), self.shared.destination);
        let change = move |writer: &Connection| lanes::change_rule(writer, destination, &name);
        if self.shared.storage.change(Kind::Settlement, &self.deadline(), change)? > 0 {
            log::info!("{}: messages are given lanes by the rule {rule:?} from now on", self.shared.name);
        }
        Ok(SqliteOutbox { lane_key: Some(rule), ..self })
    }

    /// The most entries of the destination that may be claimed at the same time, over all handles:
    /// open all with the same number, since one with a smaller number may get no claim while others
    /// are busy. Each claim has a file beside the database, as its lock. Defaults to 1; 0 is
    /// treated as 1.
    pub fn lanes(self, count: usize) -> SqliteOutbox {
        SqliteOutbox { lanes: count.max(1), ..self }
    }

    /// Pushes a message to several destinations of the file in one step: to all, or, where it
    /// fails, to none. Returns the numbers in their order. Destinations that are not there yet are
    /// made.
    ///
    /// # Errors
    ///
    /// As [`push`](Outbox::push).
    pub fn push_to(&self, destinations: &[&str], message: &[u8]) -> Result<Vec<u64>, OutboxError> {
        let new = self.new_entry(message, &PushOptions::new())?;
        let storage = &self.shared.storage;
        let deadline = self.deadline();
        let ids = destinations.iter().map(|name| number_of(storage, name, &deadline));
        let ids = ids.collect::<Result<Vec<i64>, OutboxError>>()?;
        let identities = ids.iter().map(|_| unique()).collect::<Result<Vec<String>, OutboxError>>()?;
        let pushed = Arc::new(Mutex::new(Vec::new()));
        let (concerned, stored, highest) = (ids.clone(), Arc::clone(&pushed), storage.highest());
        self.making_room(message.len() * destinations.len(), &deadline, || {
            let (ids, identities, new, stored) = (ids.clone(), identities.clone(), new.clone(), Arc::clone(&stored));
            storage.push(message.len() * destinations.len(), &deadline, move |writer| {
                let mut pushed = Vec::new();
                for (destination, identity) in ids.iter().zip(&identities) {
                    let new = NewEntry { identity: identity.clone(), ..new.clone() };
                    pushed.push(new.store(writer, *destination, highest)?);
                }
                let last = pushed.last().copied().unwrap_or(0);
                *lock(&stored) = pushed;
                Ok(last)
            })
        })?;
        storage.wake(&concerned);
        let pushed = lock(&pushed).iter().map(|id| *id as u64).collect();
        Ok(pushed)
    }

    /// The names of the destinations in the file, in the order in which they were made.
    ///
    /// # Errors
    ///
    /// If the file cannot be read.
    pub fn destinations(&self) -> Result<Vec<String>, OutboxError> {
        self.shared.storage.read(|reader| {
            let mut query = reader.prepare_cached("SELECT name FROM destination ORDER BY id")?;
            query.query_map([], |row| row.get(0))?.collect()
        })
    }

    /// Removes this destination, with what it has delivered: `false` if it has entries that wait,
    /// are held or are dead, and then nothing is removed. Its handles push nothing any more
    /// ([`OutboxError::Config`]); opened again, it is made anew.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or written.
    pub fn remove_destination(&self) -> Result<bool, OutboxError> {
        let destination = self.shared.destination;
        let remove = move |writer: &Connection| changes::remove_destination(writer, destination);
        Ok(self.shared.storage.change(Kind::Settlement, &self.deadline(), remove)? > 0)
    }

    /// Makes the file as small as its content, which a file does not become by itself. It takes as
    /// much room beside it for a while, and nothing else is written meanwhile.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or written, or is in use by others.
    pub fn compact(&self) -> Result<(), OutboxError> {
        self.shared.storage.compact(&self.deadline())
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.timeout)
    }

    /// A message as it is stored, if it can be sent.
    fn new_entry(&self, message: &[u8], options: &PushOptions<'_>) -> Result<NewEntry, OutboxError> {
        let limit = self.max_bytes.map_or(LARGEST, |most| LARGEST.min(usize::try_from(most).unwrap_or(LARGEST)));
        Ok(NewEntry {
            control_id: Entry::control_id_within(limit, message).map_err(OutboxError::InvalidMessage)?,
            message: message.to_vec(),
            identity: unique()?,
            lanes: LaneChoice::of(message, options.lane, self.lane_key.as_ref()),
            key: options.key.map(str::to_owned),
            max_bytes: self.max_bytes,
            backlog: self.shared.storage.backlog(),
        })
    }

    /// Pushes a message of this size; while there is no room, delivered entries give way, but no
    /// more than it takes.
    fn making_room(
        &self,
        size: usize,
        deadline: &Deadline,
        push: impl Fn() -> Result<i64, OutboxError>,
    ) -> Result<i64, OutboxError> {
        let mut rounds = 2 + size / changes::PURGE_BYTES as usize;
        loop {
            match push() {
                Err(full @ OutboxError::Full { .. }) => {
                    if rounds == 0 || self.purge(Expired::Oldest, deadline).unwrap_or(0) == 0 {
                        return Err(full);
                    }
                    rounds -= 1;
                }
                pushed => return pushed,
            }
        }
    }

    /// Removes delivered entries, a few at a time; returns how many.
    fn purge(&self, which: Expired, deadline: &Deadline) -> Result<i64, OutboxError> {
        self.shared.storage.change(Kind::Settlement, deadline, move |writer| changes::purge(writer, which))
    }

    /// Does to an entry what an operator has asked for; `false` if there is none that it concerns.
    fn change(&self, id: u64, order: Order) -> Result<bool, OutboxError> {
        let shared = &self.shared;
        let Ok(number) = i64::try_from(id) else { return Ok(false) };
        let key = (shared.destination, number);
        let changed =
            shared.storage.change(Kind::Settlement, &self.deadline(), move |writer| order.make(writer, key))?;
        shared.storage.wake(&[shared.destination]);
        match order {
            _ if changed == 0 => {}
            Order::TryNow | Order::SetPaused(_) => log::info!("{}: {order:?}", shared.name),
            _ => log::info!("{}: {order:?} entry {id}", shared.name),
        }
        Ok(changed > 0)
    }

    /// Changes the claimed entry, or finds that it is not this handle's any more. Says whether
    /// entries of other lanes may have become claimable.
    fn change_claimed(&self, claim: &Claim, change: Change) -> Result<bool, OutboxError> {
        let shared = &self.shared;
        let is_there = shared.lock().local_claims.is(claim);
        let slot = shared.slots.of_entry(claim.entry.id).filter(|_| is_there).ok_or(OutboxError::ClaimLost)?;
        let changed = self.change_entry(&self.deadline(), claim.entry.id, &claim.identity, slot, change)?;
        if changed == 0 {
            // It was discarded, as by a shell, or another holds the claim; this handle finds out by its next
            // one.
            shared.end_if(claim, None);
            shared.storage.wake(&[shared.destination]);
            return Err(OutboxError::ClaimLost);
        }
        Ok(changed > 1)
    }

    /// Changes an entry of the queue as the holder of a claim; returns how many there were.
    fn change_entry(
        &self,
        deadline: &Deadline,
        id: u64,
        identity: &str,
        slot: usize,
        change: Change,
    ) -> Result<i64, OutboxError> {
        let shared = &self.shared;
        let key = (shared.destination, id as i64);
        let claimed = Claimed { identity: identity.to_owned(), holder: shared.holder.clone(), slot: slot as i64 };
        shared.storage.change(Kind::Settlement, deadline, move |writer| change.make(writer, key, &claimed))
    }

    /// Claims an entry that has a lane, by a slot that is held.
    fn claim_in_lanes(&self, mut taken: TakenSlot<'_>, deadline: &Deadline) -> Result<Option<Claim>, OutboxError> {
        let shared = &*self.shared;
        let (storage, destination, slot) = (&shared.storage, shared.destination, taken.number());
        let found = storage.read(|reader| lanes::look(reader, destination))?;
        if shared.slots.free_ended(&found.slots, slot, deadline)? {
            shared.wake_up.notify();
        }
        // What a former holder of this slot has left is freed by the claim.
        if !found.something && !found.slots.contains(&slot) {
            shared.lock().next_rest_ends = found.next_rest_ends.map(Deadline::after);
            return Ok(None);
        }
        let holder = shared.holder.clone();
        let claim = move |writer: &Connection| lanes::claim(writer, destination, slot as i64, &holder);
        let id = match storage.change(Kind::Claim, deadline, claim)? {
            ..0 => {
                taken.lose();
                return Ok(None);
            }
            0 => return Ok(None),
            id => id as u64,
        };
        let Some(found) = shared.claimed(id)? else {
            // It was discarded at this moment, and there may be others.
            shared.wake_up.notify();
            return Ok(None);
        };
        self.hand_out(&mut taken, found, deadline)
    }

    /// Hands out an entry that was found to be the next, or stops it.
    fn hand_out(
        &self,
        taken: &mut TakenSlot<'_>,
        Found { entry, is_intact, identity }: Found,
        deadline: &Deadline,
    ) -> Result<Option<Claim>, OutboxError> {
        let shared = &*self.shared;
        let (stopped, change) = match entry.state {
            EntryState::Waiting if is_intact => {
                let mut holding = shared.lock();
                let token = holding.local_claims.begin(entry.id);
                holding.poll = POLL.0;
                taken.claims(entry.id);
                return Ok(Some(Claim { identity, serial: token, token, ..Claim::new(entry) }));
            }
            EntryState::Waiting => {
                // Here nobody can mend it, and those behind it are to go on.
                let why = format!("the stored message {:?} (number {}) is damaged", entry.control_id, entry.id);
                let Entry { attempts, refusals, unknowns, .. } = entry;
                let change = Change::Bury { attempts, refusals, unknowns, why: why.clone() };
                (Summary { state: EntryState::Dead, last_failure: Some(why), ..entry.summary() }, change)
            }
            EntryState::Sending => {
                let mut held = entry.clone();
                held.apply(&entry.orphaned());
                (held.summary(), Change::settlement(entry.orphaned(), self.keep.is_some()))
            }
            EntryState::Held | EntryState::Dead => return Ok(None),
        };
        self.change_entry(deadline, entry.id, &identity, taken.number(), change)?;
        Err(OutboxError::Stopped { entry: Box::new(stopped) })
    }

    /// Lets the database know how long this destination's entries are kept, for whoever purges.
    fn tell_how_long_to_keep(&self, deadline: &Deadline) -> Result<(), OutboxError> {
        let destination = self.shared.destination;
        let keep = milliseconds(self.keep.unwrap_or_default());
        self.shared.storage.change(Kind::Settlement, deadline, move |writer| {
            let sql = "UPDATE destination SET keep = ?2 WHERE id = ?1 AND keep IS NOT ?2";
            Ok(writer.prepare_cached(sql)?.execute([destination, keep])? as i64)
        })?;
        self.shared.lock().kept = Some(self.keep);
        Ok(())
    }

    /// Removes what was delivered long enough ago, now and then.
    fn tidy(&self, deadline: &Deadline) {
        let due = {
            let holding = self.shared.lock();
            let due = holding.next_purge.is_none_or(|next| next.remaining().is_none());
            due.then(|| holding.kept != Some(self.keep))
        };
        let Some(is_new) = due else { return };
        let told = if is_new { self.tell_how_long_to_keep(deadline) } else { Ok(()) };
        // The rest is removed the next time. Damage among delivered entries does not concern those that
        // wait.
        let purged = told.and_then(|()| self.purge(Expired::ByAge, deadline));
        let left_over = purged.as_ref().is_ok_and(|removed| changes::is_left_over(*removed));
        self.shared.lock().next_purge = (!left_over).then(|| Deadline::after(PURGE));
        if let Err(error) = purged {
            log::warn!("what was delivered long ago cannot be removed: {error}");
        }
    }
}

/// The number of a destination, which is made if it is not there.
fn number_of(storage: &Storage, name: &str, deadline: &Deadline) -> Result<i64, OutboxError> {
    let find = "SELECT id FROM destination WHERE name = ?1";
    let found = storage.read(|reader| reader.query_row(find, [name], |row| row.get(0)).optional())?;
    if let Some(id) = found {
        return Ok(id);
    }
    let name = name.to_owned();
    storage.change(Kind::Push(0), deadline, move |writer| changes::make_destination(writer, &name))
}

impl SqliteShared {
    fn new(storage: Arc<Storage>, name: &str, timeout: Duration) -> Result<SqliteShared, OutboxError> {
        let destination = number_of(&storage, name, &Deadline::after(timeout))?;
        let holder = unique()?;
        let slots = Slots::new(&storage, destination, holder.clone());
        let (local_claims, next_rest_ends, next_purge, kept) = Default::default();
        let holding = Holding { local_claims, next_rest_ends, next_purge, kept, poll: POLL.0 };
        let wake_up = Arc::<WakeUp>::default();
        storage.wakes(destination, &wake_up);
        let (name, holding) = (name.into(), Mutex::new(holding));
        Ok(SqliteShared { storage, destination, name, holder, slots, holding, wake_up })
    }

    fn lock(&self) -> MutexGuard<'_, Holding> {
        lock(&self.holding)
    }

    /// This claim has ended, if it is one; its entry is to rest for so long, if it is to be tried
    /// again.
    fn end_if(&self, claim: &Claim, rest: Option<Duration>) {
        let mut holding = self.lock();
        if holding.local_claims.is(claim) {
            self.slots.end(claim.entry.id);
        }
        holding.local_claims.end_if(claim, rest);
    }

    /// Whether the destination is there still.
    fn check_destination(&self) -> Result<(), OutboxError> {
        let find = "SELECT 1 FROM destination WHERE id = ?1";
        let is_there = self.storage.read(|reader| reader.prepare_cached(find)?.exists([self.destination]))?;
        if is_there { Ok(()) } else { Err(self.storage.failure(Failure::Removed)) }
    }

    /// The oldest entry, and what else a claim has to know. The message is left out if it is that
    /// of the entry that rests, or has a lane.
    fn head(&self, resting: Option<u64>) -> Result<Option<Head>, OutboxError> {
        let resting = resting.map(|id| id as i64);
        self.storage.read(|reader| {
            let mut query = reader.prepare_cached(
                "SELECT w.id, w.control_id, w.pushed_at, w.state, w.attempts, w.refusals, w.unknowns, w.last_failure,
                     w.identity, w.retry_at, w.lane IS NOT NULL AS has_lane, m.content, m.checksum,
                     (SELECT paused FROM destination WHERE id = ?1) AS paused,
                     EXISTS (SELECT 1 FROM flight WHERE destination = ?1) AS is_beside,
                     (SELECT holder FROM claim WHERE destination = ?1 AND slot = 0) AS holder
                 FROM waiting w LEFT JOIN message m
                     ON m.id = w.id AND w.lane IS NULL AND (w.id IS NOT ?2 OR w.retry_at IS NULL)
                 WHERE w.destination = ?1 ORDER BY w.id LIMIT 1",
            )?;
            let head = |row: &Row<'_>| {
                let found = self.found(row)?;
                let rests = resting == Some(found.entry.id as i64) && row.get::<_, Option<i64>>("retry_at")?.is_some();
                Ok(Head {
                    found,
                    rests,
                    has_lane: row.get("has_lane")?,
                    is_beside: row.get("is_beside")?,
                    is_paused: row.get::<_, Option<bool>>("paused")?.unwrap_or(false),
                    holder: row.get("holder")?,
                })
            };
            query.query_row((self.destination, resting), head).optional()
        })
    }

    /// The entry that was claimed in its lane.
    fn claimed(&self, id: u64) -> Result<Option<Found>, OutboxError> {
        self.storage.read(|reader| {
            let mut query = reader.prepare_cached(
                "SELECT w.id, control_id, pushed_at, state, attempts, refusals, unknowns, last_failure, identity, content, checksum
                 FROM waiting w LEFT JOIN message m ON m.id = w.id WHERE destination = ?1 AND w.id = ?2",
            )?;
            query.query_row((self.destination, id as i64), |row| self.found(row)).optional()
        })
    }

    fn found(&self, row: &Row<'_>) -> rusqlite::Result<Found> {
        let (entry, is_intact) = self.entry(row)?;
        Ok(Found { entry, is_intact, identity: row.get("identity")? })
    }

    /// An entry, and whether its message is as it was written.
    fn entry(&self, row: &Row<'_>) -> rusqlite::Result<(Entry, bool)> {
        // Text is what a shell makes of it.
        let message = row.get_ref("content")?.as_bytes_or_null().unwrap_or_default().map(<[u8]>::to_vec);
        let checksum: Option<u32> = row.get("checksum")?;
        let is_intact = message.as_deref().map(crc32fast::hash) == checksum && checksum.is_some();
        let Summary {
            id, destination, control_id, pushed_at, state, attempts, refusals, unknowns, last_failure, ..
        } = self.summary(row, 0)?;
        let message = message.unwrap_or_default();
        let entry = Entry {
            id,
            destination,
            control_id,
            message,
            pushed_at,
            state,
            attempts,
            refusals,
            unknowns,
            last_failure,
        };
        Ok((entry, is_intact))
    }

    fn summary(&self, row: &Row<'_>, size: u64) -> rusqlite::Result<Summary> {
        let state: String = row.get("state")?;
        Ok(Summary {
            id: row.get::<_, i64>("id")? as u64,
            destination: Arc::clone(&self.name),
            control_id: row.get("control_id")?,
            size,
            pushed_at: unix_millis::time(row.get("pushed_at")?),
            // A state that this version never wrote: hold the entry, never send it without being asked to.
            state: EntryState::from_word(&state).unwrap_or(EntryState::Held),
            attempts: row.get("attempts")?,
            refusals: row.get("refusals")?,
            unknowns: row.get("unknowns")?,
            last_failure: row.get("last_failure")?,
        })
    }
}

/// An entry that may be handed out.
struct Found {
    entry: Entry,
    is_intact: bool,
    identity: String,
}

/// The entry at the head, and what a claim has to know beside it.
struct Head {
    found: Found,
    /// Whether it rests before it is tried again, and nobody has said otherwise.
    rests: bool,
    has_lane: bool,
    /// Whether an entry that has a lane is in flight.
    is_beside: bool,
    is_paused: bool,
    holder: Option<String>,
}

impl Outbox for SqliteOutbox {
    fn destination(&self) -> &str {
        &self.shared.name
    }

    fn push(&self, message: &[u8]) -> Result<u64, OutboxError> {
        self.push_with(message, &PushOptions::new())
    }

    fn push_with(&self, message: &[u8], options: &PushOptions<'_>) -> Result<u64, OutboxError> {
        let shared = &*self.shared;
        let (destination, storage) = (shared.destination, &shared.storage);
        let new = self.new_entry(message, options)?;
        let deadline = self.deadline();
        let id = self.making_room(message.len(), &deadline, || {
            let (new, highest) = (new.clone(), storage.highest());
            storage.push(message.len(), &deadline, move |writer| new.store(writer, destination, highest))
        })?;
        storage.wake(&[destination]);
        Ok(id as u64)
    }

    fn claim(&self) -> Result<Option<Claim>, OutboxError> {
        let (shared, deadline) = (&*self.shared, self.deadline());
        let Some(mut taken) = shared.slots.take_free(self.lanes, &deadline)? else { return Ok(None) };
        let resting = shared.lock().local_claims.resting();
        self.tidy(&deadline);
        shared.storage.check_content()?;
        let Some(head) = shared.head(resting)? else { return shared.check_destination().map(|()| None) };
        let Head { found, rests, has_lane, is_beside, is_paused, holder } = head;
        if has_lane && !is_paused {
            let claimed = self.claim_in_lanes(taken, &deadline)?;
            if claimed.is_none() {
                shared.slots.leave_to_others();
            }
            return Ok(claimed.map(|claim| Claim { is_alone: self.lanes == 1, ..claim }));
        }
        if taken.number() == 0 && holder.as_deref() != Some(&*shared.holder) {
            taken.lose();
            return Ok(None);
        }
        // One without a lane is queued again beside those that have some, and waits for what is in flight.
        if taken.number() > 0 || is_beside || is_paused || rests || shared.lock().local_claims.count() > 0 {
            return Ok(None);
        }
        self.hand_out(&mut taken, found, &deadline)
    }

    fn begin(&self, claim: &Claim) -> Result<(), OutboxError> {
        self.change_claimed(claim, Change::Begin).map(drop)
    }

    fn settle(&self, claim: &Claim, outcome: Settlement<'_>) -> Result<(), OutboxError> {
        let settled = claim.entry.settled(outcome, false);
        let rest = settled.rest;
        let concerns_others = self.change_claimed(claim, Change::settlement(settled, self.keep.is_some()))?;
        self.shared.end_if(claim, rest);
        if concerns_others {
            self.shared.storage.wake(&[self.shared.destination]);
        }
        Ok(())
    }

    fn release(&self) {
        self.shared.lock().local_claims.end_all();
        self.shared.slots.release(&Deadline::after(GIVING_UP));
        self.shared.storage.wake(&[self.shared.destination]);
    }

    fn pending(&self) -> Result<Pending, OutboxError> {
        let shared = &*self.shared;
        let destination = [shared.destination];
        let pending = shared.storage.read(|reader| {
            let number = |sql: &str| reader.prepare_cached(sql)?.query_row(destination, |row| row.get::<_, i64>(0));
            let oldest =
                number("SELECT pushed_at FROM waiting WHERE destination = ?1 ORDER BY id LIMIT 1").optional()?;
            let waiting = number("SELECT count(*) FROM waiting WHERE destination = ?1")?;
            let held =
                number("SELECT count(*) FROM waiting INDEXED BY held WHERE destination = ?1 AND state = 'held'")?;
            let dead = number("SELECT count(*) FROM dead WHERE destination = ?1")?;
            let paused = number("SELECT paused FROM destination WHERE id = ?1").optional()?;
            let pending = Pending::new(waiting as u64, oldest.map(unix_millis::time), dead as u64);
            let blocked = lanes::blocked(reader, shared.destination)? as u64;
            Ok(Pending { held: held as u64, blocked, paused: paused.is_some_and(|paused| paused != 0), ..pending })
        })?;
        shared.storage.check_content()?;
        if pending.waiting == 0 {
            shared.check_destination()?;
        }
        Ok(pending)
    }

    fn stopped(&self, after: u64, limit: usize) -> Result<Vec<Entry>, OutboxError> {
        let parameters = named_params! {
            ":destination": self.shared.destination,
            ":after": i64::try_from(after).unwrap_or(i64::MAX),
            ":limit": i64::try_from(limit).unwrap_or(i64::MAX),
        };
        self.shared.storage.read(|reader| {
            let mut query = reader.prepare_cached(
                "SELECT w.id, control_id, pushed_at, state, attempts, refusals, unknowns, last_failure, content, checksum
                 FROM waiting w INDEXED BY held LEFT JOIN message m ON m.id = w.id
                 WHERE destination = :destination AND w.id > :after AND state = 'held'
                 UNION ALL
                 SELECT x.id, control_id, pushed_at, 'dead', attempts, refusals, unknowns, last_failure, content, checksum
                 FROM dead x LEFT JOIN message m ON m.id = x.id
                 WHERE destination = :destination AND x.id > :after
                 ORDER BY 1 LIMIT :limit",
            )?;
            query.query_map(parameters, |row| Ok(self.shared.entry(row)?.0))?.collect()
        })
    }

    fn requeue(&self, id: u64) -> Result<bool, OutboxError> {
        self.change(id, Order::Requeue)
    }

    fn discard(&self, id: u64) -> Result<bool, OutboxError> {
        self.change(id, Order::Discard)
    }

    fn wait(&self, limit: Duration) {
        let poll = {
            let mut holding = self.shared.lock();
            let poll = holding.poll;
            holding.poll = (poll * 3 / 2).min(POLL.1);
            let rest = holding.next_rest_ends.take().map(|ends| ends.remaining().unwrap_or_default());
            poll.min(rest.unwrap_or(poll))
        };
        if self.shared.wake_up.wait(limit.min(poll)) {
            self.shared.lock().poll = POLL.0;
        }
    }

    fn wake(&self) -> bool {
        self.shared.wake_up.notify();
        true
    }

    fn lanes(&self) -> usize {
        self.lanes
    }

    fn list(&self, state: Option<EntryState>, after: u64, limit: usize) -> Result<Vec<Summary>, OutboxError> {
        const QUEUE: &str = "SELECT w.id, control_id, pushed_at, state, attempts, refusals, unknowns, last_failure,
                coalesce(length(content), 0) AS size
            FROM waiting w LEFT JOIN message m ON m.id = w.id WHERE destination = ?1 AND w.id > ?2";
        let sql = match state {
            Some(EntryState::Dead) => {
                "SELECT x.id, control_id, pushed_at, 'dead' AS state, attempts, refusals, unknowns, last_failure,
                     coalesce(length(content), 0) AS size
                 FROM dead x LEFT JOIN message m ON m.id = x.id WHERE destination = ?1 AND x.id > ?2
                 ORDER BY x.id LIMIT ?3"
            }
            .to_owned(),
            None => format!("{QUEUE} ORDER BY w.id LIMIT ?3"),
            Some(EntryState::Held) => {
                QUEUE.replace("waiting w", "waiting w INDEXED BY held") + " AND state = 'held' ORDER BY w.id LIMIT ?3"
            }
            Some(state) => format!("{QUEUE} AND state = '{}' ORDER BY w.id LIMIT ?3", state.as_str()),
        };
        let [after, limit] = [after, limit as u64].map(|number| i64::try_from(number).unwrap_or(i64::MAX));
        self.shared.storage.read(|reader| {
            let mut query = reader.prepare_cached(&sql)?;
            let summary = |row: &Row<'_>| self.shared.summary(row, row.get::<_, i64>("size")? as u64);
            query.query_map([self.shared.destination, after, limit], summary)?.collect()
        })
    }

    fn show(&self, id: u64) -> Result<Option<Entry>, OutboxError> {
        let Ok(id) = i64::try_from(id) else { return Ok(None) };
        self.shared.storage.read(|reader| {
            let mut query = reader.prepare_cached(
                "SELECT w.id, control_id, pushed_at, state, attempts, refusals, unknowns, last_failure, content, checksum
                 FROM waiting w LEFT JOIN message m ON m.id = w.id WHERE destination = ?1 AND w.id = ?2
                 UNION ALL
                 SELECT x.id, control_id, pushed_at, 'dead', attempts, refusals, unknowns, last_failure, content, checksum
                 FROM dead x LEFT JOIN message m ON m.id = x.id WHERE destination = ?1 AND x.id = ?2",
            )?;
            query.query_row([self.shared.destination, id], |row| Ok(self.shared.entry(row)?.0)).optional()
        })
    }

    fn hold(&self, id: u64) -> Result<bool, OutboxError> {
        self.change(id, Order::Hold)
    }

    fn unhold(&self, id: u64) -> Result<bool, OutboxError> {
        self.change(id, Order::Unhold)
    }

    fn try_now(&self) -> Result<(), OutboxError> {
        self.change(0, Order::TryNow).map(drop)
    }

    fn resend(&self, id: u64) -> Result<Option<u64>, OutboxError> {
        let Ok(id) = i64::try_from(id) else { return Ok(None) };
        let (key, identity) = ((self.shared.destination, id), unique()?);
        let storage = &self.shared.storage;
        let highest = storage.highest();
        let own = self.lane_key.clone();
        let resend = move |writer: &Connection| changes::resend(writer, key, &identity, highest, own.as_ref());
        let new = storage.push(0, &self.deadline(), resend)?;
        storage.wake(&[self.shared.destination]);
        Ok((new > 0).then_some(new as u64))
    }

    fn set_paused(&self, paused: bool) -> Result<(), OutboxError> {
        self.change(0, Order::SetPaused(paused)).map(drop)
    }

    fn go_on(&self) -> Result<(), OutboxError> {
        self.shared.storage.accept()
    }
}

impl fmt::Debug for SqliteOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteOutbox")
            .field("path", &self.shared.storage.shown())
            .field("destination", &self.shared.name)
            .field("keep_delivered", &self.keep)
            .finish_non_exhaustive()
    }
}
