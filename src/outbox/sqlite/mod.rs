//! Messages in a file, by SQLite. This folder alone names `rusqlite`.

mod failure;
mod group;
mod schema;

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, ToSql, named_params, params};

use super::contract::AfterSettlement;
use super::local_claim::LocalClaim;
use super::wake_up::WakeUp;
use super::{Claim, Entry, EntryState, Outbox, OutboxError, Pending, Settlement, unix_millis};
use crate::deadline::Deadline;
use crate::locks::lock;
use failure::{BUSY, failure, full, read_only};
use group::Group;

/// The longest time until an entry that another process has pushed is noticed.
const POLL: Duration = Duration::from_millis(50);

/// The time between two searches for delivered entries that are old enough to be removed.
const PURGE: Duration = Duration::from_secs(60);

/// The largest number of entries that are removed in one transaction.
const PURGE_AT_ONCE: i64 = 256;

/// How long delivered entries are kept, if nothing else is said.
const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// An [`Outbox`] in a file, by SQLite (feature `sqlite`).
///
/// *What it promises to survive*: the end of the process and of the machine, from the moment when
/// `push` returns: the file is written with a write-ahead log and `synchronous=FULL`, and the disk
/// is asked to have it. It lies on a local disk; network file systems lack the locks.
///
/// A file has several destinations, and several processes may push to each while one forwards: the
/// right to claim is a lock on a file beside it, which the system takes back when its holder ends,
/// however it ends. Clones share the connections and the claim, and the changes of threads that
/// push at the same time share one write to the disk. On Unix the file is made readable by its
/// owner alone, since it holds patients' data.
///
/// Delivered entries are kept for 7 days, with their messages, unless
/// [`keep_delivered`](SqliteOutbox::keep_delivered) says otherwise. They are removed by the one who
/// forwards, a few at a time.
///
/// # Reading it
///
/// Any `sqlite3` shell reads it, also while it is in use:
///
/// ```sql
/// SELECT * FROM show_waiting;   -- what is waiting: destination, control ID, attempts, last failure, since when
/// SELECT * FROM show_dead;      -- what died, when and why
/// SELECT * FROM show_delivered; -- what was delivered, and when
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
}

/// The part that all handles of one file share.
struct Storage {
    /// Its path as it was given, for errors.
    path: String,
    canonical: PathBuf,
    group: Group,
    reader: Mutex<Connection>,
}

struct SqliteShared {
    storage: Arc<Storage>,
    destination: i64,
    name: String,
    holding: Mutex<Holding>,
    wake_up: WakeUp,
}

/// This handle's part in the holding: the lock while it may claim, and what it has claimed.
#[derive(Default)]
struct Holding {
    lock: Option<File>,
    local_claim: LocalClaim,
    next_purge: Option<Deadline>,
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
        let path = path.as_ref();
        let shown = path.display().to_string();
        // The lock has to be the same whatever the file is called, and wherever the program goes.
        let path = create(path).and_then(|()| path.canonicalize()).map_err(|error| unusable(&shown, error))?;
        let connect = || connect(&path).map_err(|error| failure(&shown, error));
        let mut writer = connect()?;
        schema::prepare(&mut writer).map_err(|error| error.of_file(&shown))?;
        let reader = Mutex::new(connect()?);
        let storage = Storage { path: shown, canonical: path, group: Group::new(writer), reader };
        SqliteOutbox::of(Arc::new(storage), destination)
    }

    /// Another destination in the same file, over the same connections.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or written.
    pub fn for_destination(&self, destination: &str) -> Result<SqliteOutbox, OutboxError> {
        let outbox = SqliteOutbox::of(Arc::clone(&self.shared.storage), destination)?;
        Ok(SqliteOutbox { keep: self.keep, ..outbox })
    }

    /// How long this handle keeps what it has delivered; `None` for not at all. Defaults to 7 days.
    pub fn keep_delivered(self, time: Option<Duration>) -> SqliteOutbox {
        SqliteOutbox { keep: time, ..self }
    }

    /// The destination.
    pub fn destination(&self) -> &str {
        &self.shared.name
    }

    fn of(storage: Arc<Storage>, name: &str) -> Result<SqliteOutbox, OutboxError> {
        let find = "SELECT id FROM destination WHERE name = ?1";
        let found = storage.read(|reader| reader.query_row(find, [name], |row| row.get(0)).optional())?;
        let destination = match found {
            Some(id) => id,
            None => {
                let name = name.to_owned();
                storage.change(move |writer| {
                    writer.execute("INSERT OR IGNORE INTO destination (name) VALUES (?1)", [&name])?;
                    writer.query_row(find, [&name], |row| row.get(0))
                })?
            }
        };
        let (holding, wake_up) = Default::default();
        let shared = SqliteShared { storage, destination, name: name.to_owned(), holding, wake_up };
        Ok(SqliteOutbox { shared: Arc::new(shared), keep: Some(WEEK) })
    }

    /// Changes the stopped entry of this number; `false` if there is none.
    fn change_stopped(&self, id: u64, change: StoppedChange) -> Result<bool, OutboxError> {
        let Ok(number) = i64::try_from(id) else { return Ok(false) };
        let key = (self.shared.destination, number);
        let changed = self.shared.storage.change(move |writer| change.make(writer, key))?;
        self.shared.lock().local_claim.end_rest(id);
        self.shared.wake_up.notify();
        Ok(changed > 0)
    }
}

impl Storage {
    fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, OutboxError> {
        let connection = self.group.idle_writer();
        let connection = connection.unwrap_or_else(|| lock(&self.reader));
        query(&connection).map_err(|error| failure(&self.path, error))
    }

    fn change(
        &self,
        work: impl FnMut(&Connection) -> rusqlite::Result<i64> + Send + 'static,
    ) -> Result<i64, OutboxError> {
        self.group.change(work).map_err(|error| failure(&self.path, error))
    }
}

impl SqliteShared {
    fn lock(&self) -> MutexGuard<'_, Holding> {
        lock(&self.holding)
    }

    /// Whether this handle may claim: it holds the lock, or gets it.
    fn may_claim(&self, holding: &mut Holding) -> Result<bool, OutboxError> {
        if holding.lock.is_none() {
            let mut path = self.storage.canonical.clone().into_os_string();
            path.push(format!("-claim-{}", self.destination));
            let unusable = |error| unusable(&path.to_string_lossy(), error);
            let file =
                private(OpenOptions::new().write(true).create(true).truncate(false)).open(&path).map_err(unusable)?;
            match try_lock(&file) {
                Ok(()) => holding.lock = Some(file),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(unusable(error)),
            }
        }
        Ok(holding.lock.is_some())
    }

    /// The head, and whether it is as it was written. The message is left out if it is that of the
    /// entry that rests.
    fn head(&self, resting: Option<u64>) -> Result<Option<(Entry, bool)>, OutboxError> {
        let resting = resting.map(|id| id as i64);
        self.storage.read(|reader| {
            let mut query = reader.prepare_cached(
                "SELECT w.id, w.control_id, w.pushed_at, w.state, w.attempts, w.refusals, w.last_failure, m.content, m.checksum
                 FROM waiting w LEFT JOIN message m ON m.id = w.id AND w.id IS NOT ?2
                 WHERE w.destination = ?1 ORDER BY w.id LIMIT 1",
            )?;
            query.query_row((self.destination, resting), entry).optional()
        })
    }

    /// Changes the claimed entry, or finds that it is not there any more.
    fn change_claimed(&self, claim: &Claim, change: Change) -> Result<(), OutboxError> {
        if self.lock().local_claim.claimed() != Some(claim.entry.id) {
            return Err(OutboxError::ClaimLost);
        }
        if self.change(claim.entry.id, change)? == 0 {
            // Somebody has removed it, as with a shell; the holding goes on.
            self.lock().local_claim.end(None);
            return Err(OutboxError::ClaimLost);
        }
        Ok(())
    }

    /// Changes an entry that waits; says how many there were.
    fn change(&self, id: u64, change: Change) -> Result<i64, OutboxError> {
        let key = (self.destination, id as i64);
        self.storage.change(move |writer| change.make(writer, key))
    }

    /// Removes what was delivered too long ago, a little at a time; says how many.
    fn purge(&self, keep: Duration) -> Result<i64, OutboxError> {
        let (destination, before) = (self.destination, unix_millis::now().saturating_sub(milliseconds(keep)));
        self.storage.change(move |writer| purge(writer, destination, before))
    }
}

/// A change of an entry that waits.
enum Change {
    Begin,
    Deliver { attempts: u32, keep: bool },
    Stay { state: EntryState, attempts: u32, refusals: u32, retry_at: Option<i64>, why: String },
    Bury { attempts: u32, refusals: u32, why: String },
}

impl Change {
    fn settlement(settled: AfterSettlement<'_>, keep: bool) -> Change {
        let why = settled.last_failure.unwrap_or_default().to_owned();
        let AfterSettlement { state, attempts, refusals, rest, .. } = settled;
        match state {
            None => Change::Deliver { attempts, keep },
            Some(EntryState::Dead) => Change::Bury { attempts, refusals, why },
            Some(state) => {
                let retry_at = rest.map(|rest| unix_millis::now().saturating_add(milliseconds(rest)));
                Change::Stay { state, attempts, refusals, retry_at, why }
            }
        }
    }

    fn make(&self, writer: &Connection, (destination, id): (i64, i64)) -> rusqlite::Result<i64> {
        let execute = |sql: &str, parameters: &[&dyn ToSql]| execute(writer, sql, parameters);
        const LEAVE: &str = "DELETE FROM waiting WHERE destination = ?1 AND id = ?2";
        match self {
            Change::Begin => execute(
                "UPDATE waiting SET state = ?3 WHERE destination = ?1 AND id = ?2",
                &[&destination, &id, &EntryState::Sending.as_str()],
            ),
            Change::Deliver { keep: false, .. } => {
                let there = execute(LEAVE, &[&destination, &id])?;
                if there > 0 {
                    execute("DELETE FROM message WHERE id = ?1", &[&id])?;
                }
                Ok(there)
            }
            Change::Deliver { keep: true, attempts } => {
                execute(
                    "INSERT INTO delivered (destination, delivered_at, id, control_id, pushed_at, attempts)
                     SELECT destination, ?3, id, control_id, pushed_at, ?4 FROM waiting WHERE destination = ?1 AND id = ?2",
                    &[&destination, &id, &unix_millis::now(), attempts],
                )?;
                execute(LEAVE, &[&destination, &id])
            }
            Change::Stay { state, attempts, refusals, retry_at, why } => execute(
                "UPDATE waiting SET state = ?3, attempts = ?4, refusals = ?5, retry_at = ?6, last_failure = ?7
                 WHERE destination = ?1 AND id = ?2",
                &[&destination, &id, &state.as_str(), attempts, refusals, retry_at, why],
            ),
            Change::Bury { attempts, refusals, why } => {
                execute(
                    "INSERT INTO dead (destination, id, control_id, pushed_at, attempts, refusals, died_at, last_failure)
                     SELECT destination, id, control_id, pushed_at, ?3, ?4, ?5, ?6
                     FROM waiting WHERE destination = ?1 AND id = ?2",
                    &[&destination, &id, attempts, refusals, &unix_millis::now(), why],
                )?;
                execute(LEAVE, &[&destination, &id])
            }
        }
    }
}

/// A change of an entry that is held or dead.
#[derive(Clone, Copy)]
enum StoppedChange {
    /// It waits again.
    Requeue,
    /// It is removed, with its message.
    Discard,
}

impl StoppedChange {
    /// Makes the change; returns the number of entries that were changed.
    fn make(self, writer: &Connection, (destination, id): (i64, i64)) -> rusqlite::Result<i64> {
        let execute = |sql: &str| execute(writer, sql, &[&destination, &id]);
        const REMOVE_DEAD: &str = "DELETE FROM dead WHERE destination = ?1 AND id = ?2";
        match self {
            StoppedChange::Requeue => {
                let held = execute(
                    "UPDATE waiting SET state = 'waiting', refusals = 0, retry_at = NULL
                     WHERE destination = ?1 AND id = ?2 AND state = 'held'",
                )?;
                let dead = execute(
                    "INSERT INTO waiting (destination, id, control_id, pushed_at, state, attempts, refusals, last_failure)
                     SELECT destination, id, control_id, pushed_at, 'waiting', attempts, 0, last_failure
                     FROM dead WHERE destination = ?1 AND id = ?2",
                )?;
                execute(REMOVE_DEAD)?;
                Ok(held + dead)
            }
            StoppedChange::Discard => {
                let held = execute("DELETE FROM waiting WHERE destination = ?1 AND id = ?2 AND state = 'held'")?;
                let removed = held + execute(REMOVE_DEAD)?;
                if removed > 0 {
                    // The number is unique in the file, and this destination's.
                    writer.prepare_cached("DELETE FROM message WHERE id = ?1")?.execute([id])?;
                }
                Ok(removed)
            }
        }
    }
}

/// Runs a statement; returns the number of rows that it changed.
fn execute(writer: &Connection, sql: &str, parameters: &[&dyn ToSql]) -> rusqlite::Result<i64> {
    Ok(writer.prepare_cached(sql)?.execute(parameters)? as i64)
}

fn purge(writer: &Connection, destination: i64, before: i64) -> rusqlite::Result<i64> {
    let expired = "SELECT id, delivered_at FROM delivered WHERE destination = ?1 AND delivered_at < ?2
                   ORDER BY delivered_at, id LIMIT ?3";
    let mut expired = writer.prepare_cached(expired)?;
    let expired = expired.query_map([destination, before, PURGE_AT_ONCE], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let expired = expired.collect::<rusqlite::Result<Vec<(i64, i64)>>>()?;
    for (id, delivered_at) in &expired {
        let mut delivered =
            writer.prepare_cached("DELETE FROM delivered WHERE destination = ?1 AND delivered_at = ?2 AND id = ?3")?;
        delivered.execute([destination, *delivered_at, *id])?;
        writer.prepare_cached("DELETE FROM message WHERE id = ?1")?.execute([id])?;
    }
    Ok(expired.len() as i64)
}

/// An entry, and whether its message is as it was written.
fn entry(row: &Row<'_>) -> rusqlite::Result<(Entry, bool)> {
    // Text is what a shell makes of it.
    let message = row.get_ref("content")?.as_bytes_or_null().unwrap_or_default().map(<[u8]>::to_vec);
    let checksum: Option<u32> = row.get("checksum")?;
    let intact = message.as_deref().map(crc32fast::hash) == checksum && checksum.is_some();
    let state: String = row.get("state")?;
    let entry = Entry {
        id: row.get::<_, i64>("id")? as u64,
        control_id: row.get("control_id")?,
        message: message.unwrap_or_default(),
        pushed_at: unix_millis::time(row.get("pushed_at")?),
        // A state that this version never wrote: hold the entry, never send it without being asked to.
        state: EntryState::from_word(&state).unwrap_or(EntryState::Held),
        attempts: row.get("attempts")?,
        refusals: row.get("refusals")?,
        last_failure: row.get("last_failure")?,
    };
    Ok((entry, intact))
}

impl Outbox for SqliteOutbox {
    fn push(&self, message: &[u8]) -> Result<u64, OutboxError> {
        let control_id = Entry::control_id_of(message).map_err(OutboxError::InvalidMessage)?;
        let message = message.to_vec();
        let destination = self.shared.destination;
        let id = self.shared.storage.change(move |writer| {
            let mut content = writer.prepare_cached("INSERT INTO message (checksum, content) VALUES (?1, ?2)")?;
            let id = content.insert(params![crc32fast::hash(&message), message])?;
            let mut waiting = writer.prepare_cached(
                "INSERT INTO waiting (destination, id, control_id, pushed_at, state, attempts, refusals)
                 VALUES (?1, ?2, ?3, ?4, ?5, 0, 0)",
            )?;
            waiting.execute(params![destination, id, control_id, unix_millis::now(), EntryState::Waiting.as_str()])?;
            Ok(id)
        })?;
        self.shared.wake_up.notify();
        Ok(id as u64)
    }

    fn claim(&self) -> Result<Option<Claim>, OutboxError> {
        let mut holding = self.shared.lock();
        if holding.local_claim.claimed().is_some() || !self.shared.may_claim(&mut holding)? {
            return Ok(None);
        }
        if holding.next_purge.is_none_or(|next| next.remaining().is_none()) {
            // The rest is removed the next time. Damage among delivered entries does not concern those that
            // wait.
            let purged = self.shared.purge(self.keep.unwrap_or_default());
            let left_over = matches!(purged, Ok(PURGE_AT_ONCE));
            holding.next_purge = (!left_over).then(|| Deadline::after(PURGE));
            if let Err(error) = purged {
                log::warn!("what was delivered long ago cannot be removed: {error}");
            }
        }
        let resting = holding.local_claim.resting();
        let Some((head, intact)) = self.shared.head(resting)? else {
            return Ok(None);
        };
        let id = head.id;
        match head.state {
            EntryState::Waiting if resting == Some(id) => Ok(None),
            EntryState::Waiting if !intact => {
                // Here nobody can mend it, and those behind it are to go on.
                let what = format!("the stored message {:?} (number {id}) is damaged", head.control_id);
                let bury = Change::Bury { attempts: head.attempts, refusals: head.refusals, why: what.clone() };
                self.shared.change(id, bury)?;
                let what = format!("{}: {what}; it is among the dead now", self.shared.storage.path);
                Err(OutboxError::Damaged { what, source: None })
            }
            EntryState::Waiting => {
                holding.local_claim.begin(id);
                Ok(Some(Claim::new(head)))
            }
            EntryState::Sending => {
                let hold = Change::settlement(head.orphaned(), self.keep.is_some());
                self.shared.change(id, hold).map(|_| None)
            }
            EntryState::Held | EntryState::Dead => Ok(None),
        }
    }

    fn begin(&self, claim: &Claim) -> Result<(), OutboxError> {
        self.shared.change_claimed(claim, Change::Begin)
    }

    fn settle(&self, claim: &Claim, outcome: Settlement<'_>) -> Result<(), OutboxError> {
        let settled = claim.entry.settled(outcome);
        let rest = settled.rest;
        self.shared.change_claimed(claim, Change::settlement(settled, self.keep.is_some()))?;
        self.shared.lock().local_claim.end(rest);
        Ok(())
    }

    fn release(&self) {
        let mut holding = self.shared.lock();
        holding.local_claim.end(None);
        holding.lock = None;
        self.shared.wake_up.notify();
    }

    fn pending(&self) -> Result<Pending, OutboxError> {
        let destination = [self.shared.destination];
        self.shared.storage.read(|reader| {
            let count = |sql: &str| reader.prepare_cached(sql)?.query_row(destination, |row| row.get::<_, i64>(0));
            let oldest =
                count("SELECT pushed_at FROM waiting WHERE destination = ?1 ORDER BY id LIMIT 1").optional()?;
            let waiting = count("SELECT count(*) FROM waiting WHERE destination = ?1")?;
            let dead = count("SELECT count(*) FROM dead WHERE destination = ?1")?;
            Ok(Pending::new(waiting as u64, oldest.map(unix_millis::time), dead as u64))
        })
    }

    fn stopped(&self, after: u64, limit: usize) -> Result<Vec<Entry>, OutboxError> {
        let parameters = named_params! {
            ":destination": self.shared.destination,
            ":after": i64::try_from(after).unwrap_or(i64::MAX),
            ":limit": i64::try_from(limit).unwrap_or(i64::MAX),
            ":held": EntryState::Held.as_str(),
            ":dead": EntryState::Dead.as_str(),
        };
        self.shared.storage.read(|reader| {
            let mut query = reader.prepare_cached(
                "SELECT w.id, control_id, pushed_at, state, attempts, refusals, last_failure, content, checksum
                 FROM waiting w LEFT JOIN message m ON m.id = w.id
                 WHERE destination = :destination AND w.id > :after AND state = :held
                 UNION ALL
                 SELECT x.id, control_id, pushed_at, :dead, attempts, refusals, last_failure, content, checksum
                 FROM dead x LEFT JOIN message m ON m.id = x.id
                 WHERE destination = :destination AND x.id > :after
                 ORDER BY 1 LIMIT :limit",
            )?;
            query.query_map(parameters, |row| Ok(entry(row)?.0))?.collect()
        })
    }

    fn requeue(&self, id: u64) -> Result<bool, OutboxError> {
        self.change_stopped(id, StoppedChange::Requeue)
    }

    fn discard(&self, id: u64) -> Result<bool, OutboxError> {
        self.change_stopped(id, StoppedChange::Discard)
    }

    fn wait(&self, limit: Duration) {
        self.shared.wake_up.wait(limit.min(POLL));
    }
}

impl fmt::Debug for SqliteOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteOutbox")
            .field("path", &self.shared.storage.path)
            .field("destination", &self.shared.name)
            .field("keep_delivered", &self.keep)
            .finish_non_exhaustive()
    }
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Makes the file if it is not there, for its owner alone: SQLite gives its other files the same
/// rights.
fn create(path: &Path) -> io::Result<()> {
    private(OpenOptions::new().read(true).append(true).create(true)).open(path).map(drop)
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

#[expect(clippy::incompatible_msrv, reason = "rusqlite takes a later version of Rust than this")]
fn try_lock(file: &File) -> Result<(), TryLockError> {
    file.try_lock()
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    // Otherwise each use of a statement plans it anew for its parameters, where SQLite is built with
    // STAT4 as here.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    write_ahead(&connection)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // The room that a burst has taken in the write-ahead log is given back.
    connection.pragma_update(None, "journal_size_limit", 64 * 1024 * 1024)?;
    Ok(connection)
}

/// Changes the file to a write-ahead log. For this SQLite does not wait for others, as it does
/// elsewhere.
fn write_ahead(connection: &Connection) -> rusqlite::Result<()> {
    let deadline = Deadline::after(BUSY);
    loop {
        match connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0)) {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && deadline.remaining().is_some() =>
            {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            result => return result.map(drop),
        }
    }
}

fn unusable(path: &str, error: io::Error) -> OutboxError {
    let what = match error.kind() {
        io::ErrorKind::StorageFull => return OutboxError::Full { what: full(path), source: Some(error.into()) },
        io::ErrorKind::NotFound => format!("the directory of {path} is not there"),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => read_only(path),
        _ => format!("{path} cannot be used"),
    };
    OutboxError::Storage { what, source: Some(error.into()) }
}
