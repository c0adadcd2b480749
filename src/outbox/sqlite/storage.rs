//! One file and its connections, which all handles of this process share.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::failure::{Failure, failure};
use super::files::{self, FileId, unusable};
use super::group::{Group, Kind};
use super::schema;
use crate::deadline::Deadline;
use crate::locks::lock;
use crate::outbox::identity::unique;
use crate::outbox::wake_up::WakeUp;
use crate::outbox::{OutboxError, unix_millis};

/// How long opening a file may take, and a handle's calls unless it says otherwise.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// How long a query waits for the few things that lock out readers.
const READ_TIMEOUT: Duration = Duration::from_millis(200);

/// The files that this process has open, by process and path: a child that was forked must not use
/// its parent's connections.
static OPEN: Mutex<Option<HashMap<(u32, PathBuf), Slot>>> = Mutex::new(None);

/// The place of one file, locked while it is being opened.
type Slot = Arc<Mutex<Weak<Storage>>>;

/// How long ago a push may have been made for the file to have to know of it. Rows of pushers that
/// have not pushed for much longer are removed.
const KNOWN: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) struct Storage {
    /// Its path as it was given, for errors.
    shown: String,
    /// The same, wherever the program goes.
    given: PathBuf,
    canonical: PathBuf,
    id: FileId,
    /// The name by which the file knows the pushes of this process.
    pusher: String,
    /// How many of them were answered, and when the last one was.
    answered: Mutex<(i64, Option<Instant>)>,
    group: Group,
    reader: Mutex<Connection>,
    /// The highest number of an entry that was seen in this file.
    highest: AtomicI64,
    /// Who waits for entries, by destination.
    waiting: Mutex<Vec<(i64, Weak<WakeUp>)>>,
}

impl Storage {
    /// The outbox in a file, which it makes if it is not there.
    pub(super) fn open(path: &Path) -> Result<Arc<Storage>, OutboxError> {
        let shown = path.display().to_string();
        // The lock has to be the same whatever the file is called, and wherever the program goes.
        let (given, canonical) = files::create(path)
            .and_then(|()| Ok((std::path::absolute(path)?, path.canonicalize()?)))
            .map_err(|error| unusable(&shown, error))?;
        let slot = {
            let mut open = lock(&OPEN);
            let open = open.get_or_insert_default();
            open.retain(|_, slot| Arc::strong_count(slot) > 1 || lock(slot).strong_count() > 0);
            Arc::clone(open.entry((process::id(), canonical.clone())).or_default())
        };
        let mut slot = lock(&slot);
        // One that was replaced, or came back older, is opened anew; those who have it open are told still.
        let is_as_left =
            |storage: &Arc<Storage>| !matches!(storage.check_content(), Err(OutboxError::StorageReplaced { .. }));
        if let Some(storage) = slot.upgrade().filter(is_as_left) {
            return Ok(storage);
        }
        let connect = || connect(&canonical).map_err(|error| failure(&shown, error.into()));
        let mut writer = connect()?;
        schema::prepare(&mut writer).map_err(|error| error.of_file(&shown))?;
        let reader = connect()?;
        reader.busy_timeout(READ_TIMEOUT).map_err(|error| failure(&shown, error.into()))?;
        let storage = Arc::new(Storage {
            id: files::id_at(&canonical).map_err(|error| unusable(&shown, error))?,
            group: Group::new(writer, &canonical).map_err(|error| failure(&shown, error))?,
            reader: Mutex::new(reader),
            highest: AtomicI64::new(0),
            pusher: unique()?,
            answered: Mutex::default(),
            waiting: Mutex::default(),
            shown,
            given,
            canonical,
        });
        storage.accept()?;
        *slot = Arc::downgrade(&storage);
        Ok(storage)
    }

    /// Its path, whatever it was called by.
    pub(super) fn path(&self) -> &Path {
        &self.canonical
    }

    /// What the system knows the file by.
    pub(super) fn id(&self) -> FileId {
        self.id
    }

    /// Its path as it was given.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    pub(super) fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, OutboxError> {
        self.check_place()?;
        let connection = self.group.idle_writer();
        let connection = connection.unwrap_or_else(|| lock(&self.reader));
        query(&connection).map_err(|error| self.failure(error.into()))
    }

    /// Makes a change, and returns when it is durable.
    pub(super) fn change(
        &self,
        kind: Kind,
        deadline: &Deadline,
        work: impl FnMut(&Connection) -> Result<i64, Failure> + Send + 'static,
    ) -> Result<i64, OutboxError> {
        self.check_place()?;
        let changed = self.group.change(kind, deadline, work).map_err(|error| self.failure(error))?;
        // What was written to a file that has left its place is lost to whoever opens it again.
        self.check_place()?;
        Ok(changed)
    }

    /// Stores an entry of this size, by work that returns its number.
    pub(super) fn push(
        &self,
        size: usize,
        deadline: &Deadline,
        work: impl FnMut(&Connection) -> Result<i64, Failure> + Send + 'static,
    ) -> Result<i64, OutboxError> {
        let known = self.known_pushes();
        let (pusher, pushes) = (self.pusher.clone(), Arc::new(AtomicI64::new(0)));
        let (counted, mut work) = (Arc::clone(&pushes), work);
        let id = self.change(Kind::Push(size as u64), deadline, move |writer| {
            let count = "INSERT INTO pusher (name, pushes, pushed_at) VALUES (?1, 1, ?2)
                         ON CONFLICT (name) DO UPDATE SET pushes = pushes + 1, pushed_at = ?2 RETURNING pushes";
            let count: i64 =
                writer.prepare_cached(count)?.query_row((&pusher, unix_millis::now()), |row| row.get(0))?;
            if count <= known {
                return Err(Failure::Older);
            }
            counted.store(count, Ordering::Relaxed);
            work(writer)
        })?;
        self.highest.fetch_max(id, Ordering::Relaxed);
        let mut answered = lock(&self.answered);
        *answered = (answered.0.max(pushes.load(Ordering::Relaxed)), Some(Instant::now()));
        Ok(id)
    }

    /// How many pushes of this process the file has to know of.
    fn known_pushes(&self) -> i64 {
        let (answered, at) = *lock(&self.answered);
        if at.is_some_and(|at| at.elapsed() < KNOWN) { answered } else { 0 }
    }

    /// Where a push notes how many messages wait.
    pub(super) fn backlog(&self) -> Arc<AtomicU64> {
        self.group.backlog()
    }

    /// The highest number of an entry that was seen: one that is pushed has a higher one.
    pub(super) fn highest(&self) -> i64 {
        self.highest.load(Ordering::Relaxed)
    }

    /// Whether the file has all entries that were seen, and all that were pushed: one that came
    /// back from a copy has not.
    ///
    /// # Errors
    ///
    /// [`OutboxError::StorageReplaced`] if it has not.
    pub(super) fn check_content(&self) -> Result<(), OutboxError> {
        let (before, known) = (self.highest(), self.known_pushes());
        let (now, pushes) = self.read(|reader| {
            let pushes = "SELECT coalesce(max(pushes), 0) FROM pusher WHERE name = ?1";
            let pushes: i64 = reader.prepare_cached(pushes)?.query_row([&self.pusher], |row| row.get(0))?;
            Ok((last_number(reader)?, pushes))
        })?;
        if now < before || pushes < known {
            return Err(self.failure(Failure::Older));
        }
        self.highest.fetch_max(now, Ordering::Relaxed);
        Ok(())
    }

    /// Takes the file as it is.
    pub(super) fn accept(&self) -> Result<(), OutboxError> {
        self.highest.store(self.read(last_number)?, Ordering::Relaxed);
        *lock(&self.answered) = (0, None);
        Ok(())
    }

    /// Makes the file as small as its content, and the log as well.
    pub(super) fn compact(&self, deadline: &Deadline) -> Result<(), OutboxError> {
        self.check_place()?;
        self.group.compact(deadline).map_err(|error| self.failure(error))
    }

    fn is_in_place(&self) -> bool {
        files::id_at(&self.given).is_ok_and(|there| there == self.id)
    }

    /// Whether the file is still where it was opened.
    ///
    /// # Errors
    ///
    /// [`OutboxError::StorageReplaced`] if it is not.
    pub(super) fn check_place(&self) -> Result<(), OutboxError> {
        if self.is_in_place() { Ok(()) } else { Err(self.failure(Failure::Moved)) }
    }

    pub(super) fn failure(&self, failure: Failure) -> OutboxError {
        super::failure::failure(&self.shown, failure)
    }

    /// Wakes this one from now on when something may be there to claim.
    pub(super) fn wakes(&self, destination: i64, wake_up: &Arc<WakeUp>) {
        let mut waiting = lock(&self.waiting);
        waiting.retain(|(_, wake_up)| wake_up.strong_count() > 0);
        waiting.push((destination, Arc::downgrade(wake_up)));
    }

    /// Something may be there to claim for these destinations.
    pub(super) fn wake(&self, destinations: &[i64]) {
        let waiting = lock(&self.waiting);
        let concerned = waiting.iter().filter(|(destination, _)| destinations.contains(destination));
        concerned.filter_map(|(_, wake_up)| wake_up.upgrade()).for_each(|wake_up| wake_up.notify());
    }
}

fn last_number(reader: &Connection) -> rusqlite::Result<i64> {
    let sql = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'message'";
    reader.prepare_cached(sql)?.query_row([], |row| row.get(0))
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(TIMEOUT)?;
    // Otherwise each use of a statement plans it anew for its parameters, where SQLite is built with
    // STAT4 as here.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    // In a new file; so the database can be made smaller a little at a time.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    write_ahead(&connection)?;
    // What was committed is synchronised beside SQLite, see `group.rs`; it sees to the order of the
    // rest.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    Ok(connection)
}

/// Changes the file to a write-ahead log. For this SQLite does not wait for others, as it does
/// elsewhere.
fn write_ahead(connection: &Connection) -> rusqlite::Result<()> {
    let deadline = Deadline::after(TIMEOUT);
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
