//! Group commit: changes that threads ask for at the same time share a transaction, and so the
//! disk's time.
//!
//! There is no thread for it. The first to come leads: it makes the transaction for all who have
//! asked by then; those who come meanwhile are the next group. Threads that change one thing after
//! another would fall into two groups that take turns, so a leader waits a little for those
//! who were there the last time; where there was nobody else, it does not wait.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::failure::Failure;
use super::files::{companion, id, id_at};
use super::reserve::Reserve;
use super::turns::Turns;
use crate::deadline::Deadline;
use crate::locks::lock;

/// The result of a change: the number of a new row, or how many rows it concerned.
type ChangeResult = Result<i64, Failure>;

/// A log that is larger is cut as soon as nobody reads an older state from it, in bytes.
const LARGE_LOG: u64 = 16 * 1024 * 1024;

/// The size to which the log is cut when it begins anew, in bytes.
const LOG_SIZE: i64 = 4 * 1024 * 1024;

/// The size of a page of the database, in bytes.
const PAGE: u64 = 4096;

/// How many pages the log has before they are taken over into the database, where there is no
/// reserve.
const PAGES_IN_LOG: u64 = 256;

/// So many transactions pass between two looks at the log.
const LOOK_AT_LOG: u32 = 64;

/// The longest wait for those who were there the last time.
const LONGEST_PATIENCE: Duration = Duration::from_millis(5);

/// The longest pause between two attempts to get the lock of the database.
const LONGEST_PAUSE: Duration = Duration::from_millis(1);

/// What a change is for. Pushes wait their turn, and leave the reserve alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Of so many bytes.
    Push(u64),
    /// A settlement, or what an operator does: it helps to make room.
    Settlement,
    /// A claim: likewise, but it need not outlast the machine, which its holder does not either.
    Claim,
}

pub(super) struct Group {
    queue: Mutex<GroupQueue>,
    done: Condvar,
    joined: Condvar,
    writer: Mutex<Connection>,
    lead: Mutex<Lead>,
    log: LogFile,
    /// About how many messages wait behind the head of the destination that was pushed to last.
    backlog: Arc<AtomicU64>,
}

#[derive(Default)]
struct GroupQueue {
    waiting: Vec<PendingChange>,
    /// Whether somebody makes a transaction now.
    led: bool,
    /// How many to expect: those of the last group, and those who came while it was written.
    expected: usize,
    /// How long the last transaction took.
    took: Duration,
}

/// What the one who leads has to do with.
struct Lead {
    turns: Turns,
    reserve: Reserve,
    /// How many transactions there were since the log was looked at.
    since_look: u32,
    /// Whether the disk has failed to confirm that it has the log: what is written after that
    /// stands on what may not be there, until the database has taken all of it over.
    is_suspect: bool,
}

/// The write-ahead log. SQLite writes it, and this crate asks the disk to have it: after the lock
/// of the database was given back, so that processes write while another waits for the disk.
struct LogFile {
    path: PathBuf,
    file: OnceLock<File>,
}

impl LogFile {
    /// Returns when what was committed is on the disk, in the file by which it is found again.
    fn synchronise(&self) -> Result<(), Failure> {
        let file = match self.file.get() {
            Some(file) => file,
            None => {
                let opened = OpenOptions::new().read(true).write(true).open(&self.path);
                let opened = opened.map_err(Failure::from_disk)?;
                self.file.get_or_init(|| opened)
            }
        };
        file.sync_data().map_err(Failure::from_disk)?;
        // SQLite writes on to one that was removed, and nobody reads it any more.
        let own = file.metadata().map(|metadata| id(&metadata)).map_err(Failure::from_disk)?;
        if id_at(&self.path).is_ok_and(|there| there == own) { Ok(()) } else { Err(Failure::Moved) }
    }
}

struct PendingChange {
    kind: Kind,
    deadline: Deadline,
    work: Box<dyn FnMut(&Connection) -> ChangeResult + Send>,
    answer: Arc<Mutex<Option<ChangeResult>>>,
}

impl Group {
    /// The changes of a database, by this connection.
    ///
    /// # Errors
    ///
    /// If the connection cannot be set up.
    pub(super) fn new(writer: Connection, path: &Path) -> Result<Group, Failure> {
        let reserve = Reserve::beside(path);
        // Between two checkpoints the log takes half of the reserve; the database takes the other.
        let pages = if reserve.size() > 0 { reserve.size() / 2 / PAGE } else { PAGES_IN_LOG };
        writer.pragma_update(None, "wal_autocheckpoint", pages as i64)?;
        writer.pragma_update(None, "journal_size_limit", LOG_SIZE)?;
        writer.busy_timeout(Duration::ZERO)?;
        let lead = Lead { turns: Turns::at(path), reserve, since_look: 0, is_suspect: false };
        let (queue, done, joined) = Default::default();
        let log = LogFile { path: companion(path, "-wal"), file: OnceLock::new() };
        let (writer, lead, backlog) = (Mutex::new(writer), Mutex::new(lead), Arc::default());
        Ok(Group { queue, done, joined, writer, lead, log, backlog })
    }

    /// Where a push notes how many messages wait.
    pub(super) fn backlog(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.backlog)
    }

    /// The connection that writes, if nobody uses it: what it has written, it need not read again.
    pub(super) fn idle_writer(&self) -> Option<MutexGuard<'_, Connection>> {
        match self.writer.try_lock() {
            Ok(writer) => Some(writer),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Makes a change, together with those of other threads. When it returns without an error, the
    /// change is durable. The work may be done more than once, of which one counts.
    pub(super) fn change(
        &self,
        kind: Kind,
        deadline: &Deadline,
        work: impl FnMut(&Connection) -> ChangeResult + Send + 'static,
    ) -> ChangeResult {
        let answer = Arc::new(Mutex::new(None));
        let mut queue = lock(&self.queue);
        let work = Box::new(work);
        queue.waiting.push(PendingChange { kind, deadline: *deadline, work, answer: Arc::clone(&answer) });
        if queue.waiting.len() == queue.expected {
            self.joined.notify_one();
        }
        loop {
            if let Some(answer) = lock(&answer).take() {
                return answer;
            }
            if queue.led {
                let Some(left) = deadline.remaining() else {
                    let before = queue.waiting.len();
                    queue.waiting.retain(|change| !Arc::ptr_eq(&change.answer, &answer));
                    if queue.waiting.len() < before {
                        return Err(Failure::Locked(deadline.limit()));
                    }
                    // It is being written, by whom it does not keep waiting: the group has its limit.
                    queue = self.done.wait(queue).unwrap_or_else(PoisonError::into_inner);
                    continue;
                };
                queue = self.done.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            if deadline.remaining().is_none() {
                queue.waiting.retain(|change| !Arc::ptr_eq(&change.answer, &answer));
                return Err(Failure::Locked(deadline.limit()));
            }
            queue.led = true;
            // Longer than half of what writing takes would cost more than it gains.
            let patience = (queue.took / 2).min(LONGEST_PATIENCE);
            let too_few = |queue: &mut GroupQueue| queue.waiting.len() < queue.expected;
            let waited = self.joined.wait_timeout_while(queue, patience, too_few);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
            let group = std::mem::take(&mut queue.waiting);
            let took = queue.took;
            drop(queue);
            let size = group.len();
            let (took, left_over) = self.commit(group, took);
            queue = lock(&self.queue);
            queue.led = false;
            queue.took = took;
            queue.expected = size + queue.waiting.len();
            // The group had the limit of the first whose limit comes; the others have their own.
            queue.waiting.extend(left_over);
            self.done.notify_all();
        }
    }

    /// Makes the file as small as its content. Whoever changes something waits for it, each as long
    /// as he may.
    pub(super) fn compact(&self, deadline: &Deadline) -> Result<(), Failure> {
        let mut queue = lock(&self.queue);
        while queue.led {
            let Some(left) = deadline.remaining() else { return Err(Failure::Locked(deadline.limit())) };
            queue = self.done.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.led = true;
        drop(queue);
        let compacted = {
            let mut lead = lock(&self.lead);
            let writer = lock(&self.writer);
            let _turn = lead.turns.wait_to_push(Duration::ZERO, 0, deadline);
            let compact = || writer.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)").map_err(Failure::from);
            patiently(deadline, compact)
        };
        lock(&self.queue).led = false;
        self.done.notify_all();
        compacted
    }

    /// Writes a group; returns how long that took, and what could not be written within the limit
    /// that comes first.
    fn commit(&self, mut group: Vec<PendingChange>, took: Duration) -> (Duration, Vec<PendingChange>) {
        let mut lead = lock(&self.lead);
        let first = group
            .iter()
            .map(|change| change.deadline)
            .reduce(|one, other| if other.precedes(&one) { other } else { one });
        let Some(deadline) = first else { return (took, group) };
        let Lead { turns, reserve, is_suspect, .. } = &mut *lead;
        let settles = group.iter().any(|change| change.kind == Kind::Settlement);
        // Pushes have their room only while the reserve has its own.
        let is_push = |change: &PendingChange| matches!(change.kind, Kind::Push(_));
        let size: u64 = group.iter().map(|change| if let Kind::Push(size) = change.kind { size } else { 0 }).sum();
        let writer = lock(&self.writer);
        if *is_suspect {
            *is_suspect = !cut_log(&writer);
        }
        if *is_suspect {
            let failure = Failure::from_disk(io::Error::other("the log could not be taken over since the disk failed"));
            group.iter().for_each(|change| change.answer(Err(failure.clone())));
            return (took, Vec::new());
        }
        if group.iter().any(is_push)
            && let Err(error) = reserve.has_room_beside(size, || shrink(&writer))
        {
            let failure = Failure::Reserve(Arc::new(error));
            group.retain(|change| {
                if is_push(change) {
                    change.answer(Err(failure.clone()));
                }
                !is_push(change)
            });
        }
        if group.is_empty() {
            return (took, group);
        }
        let pushes = group.iter().any(is_push);
        let turn =
            (pushes && !settles).then(|| turns.wait_to_push(took, self.backlog.load(Ordering::Relaxed), &deadline));
        let mut begun = Instant::now();
        let written = transact(&writer, &mut group, &deadline, &mut begun);
        drop(turn);
        if settles && written.is_ok() {
            turns.settles();
            reserve.try_again();
        }
        let synchronise = |kind: Kind| if kind == Kind::Claim { Ok(()) } else { self.log.synchronise() };
        let lasting = group.iter().find(|change| change.kind != Kind::Claim).map_or(Kind::Claim, |change| change.kind);
        let written = written.and_then(|answers| synchronise(lasting).map(|()| answers));
        let took = begun.elapsed();
        match written {
            Err(failure @ (Failure::Disk(_) | Failure::Moved)) => {
                *is_suspect = true;
                group.iter().for_each(|change| change.answer(Err(failure.clone())));
            }
            Ok(answers) => group.iter().zip(answers).for_each(|(change, answer)| change.answer(Ok(answer))),
            Err(Failure::Locked(_)) => {
                group.retain(|change| {
                    let is_late = change.deadline.remaining().is_none();
                    if is_late {
                        change.answer(Err(Failure::Locked(change.deadline.limit())));
                    }
                    !is_late
                });
                return (took, group);
            }
            // Each change is made alone: where one message is too large for what is left of the disk, others may
            // fit; and what makes room may use the reserve.
            Err(_) => {
                let mut left_over = Vec::new();
                for mut change in group {
                    let made = alone(&writer, &mut change, reserve);
                    match made.and_then(|made| synchronise(change.kind).map(|()| made)) {
                        Err(Failure::Locked(_)) if change.deadline.remaining().is_some() => left_over.push(change),
                        answer => {
                            *is_suspect |= matches!(answer, Err(Failure::Disk(_) | Failure::Moved));
                            change.answer(answer);
                        }
                    }
                }
                return (took, left_over);
            }
        }
        lead.look_at_log(&self.log, &writer);
        (took, Vec::new())
    }
}

/// Makes one change. One that is no push, and for which the disk is full, has the room of the
/// reserve.
fn alone(writer: &Connection, change: &mut PendingChange, reserve: &mut Reserve) -> ChangeResult {
    let (deadline, mut has_cut) = (change.deadline, false);
    loop {
        let made = transact(writer, std::slice::from_mut(change), &deadline, &mut Instant::now());
        match made.map(|answers| answers[0]) {
            Err(failure) if failure.is_disk_full() && !matches!(change.kind, Kind::Push(_)) => {
                if !reserve.release() {
                    // Whoever read an older state from the log may be gone by now.
                    if std::mem::replace(&mut has_cut, true) || !cut_log(writer) {
                        return Err(failure);
                    }
                    continue;
                }
                log::warn!(
                    "{}: the disk is full: what is delivered uses the reserve, and pushes are refused",
                    reserve.path().display()
                );
            }
            Ok(made) => {
                if !reserve.is_whole() {
                    // The log goes on in the room that it has.
                    cut_log(writer);
                }
                return Ok(made);
            }
            made => return made,
        }
    }
}

impl Lead {
    /// Cuts a log that has grown large, as beside a shell that reads for long, once it can be cut.
    fn look_at_log(&mut self, log: &LogFile, writer: &Connection) {
        self.since_look += 1;
        if self.since_look < LOOK_AT_LOG {
            return;
        }
        self.since_look = 0;
        if fs::metadata(&log.path).is_ok_and(|log| log.len() > LARGE_LOG) {
            cut_log(writer);
        }
    }
}

/// Gives pages at the end of the database that are not used back to the disk, a few at a time;
/// returns whether there were any.
fn shrink(writer: &Connection) -> bool {
    let pages = || writer.pragma_query_value(None, "page_count", |row| row.get::<_, i64>(0));
    let before = pages();
    // It is a query of a row for each page.
    let shrunk = writer.execute_batch("PRAGMA incremental_vacuum(16)");
    cut_log(writer);
    match (before, shrunk, pages()) {
        (Ok(before), Ok(()), Ok(after)) => after < before,
        _ => false,
    }
}

/// Takes the log over into the database and cuts it; returns whether that was possible. While
/// somebody reads from it, it is not.
fn cut_log(writer: &Connection) -> bool {
    let cut = writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
    if let Err(error) = &cut {
        log::debug!("the write-ahead log of an outbox cannot be cut now: {error}");
    }
    cut.is_ok_and(|busy| busy == 0)
}

impl PendingChange {
    fn answer(&self, answer: ChangeResult) {
        *lock(&self.answer) = Some(answer);
    }
}

/// Makes all changes in one transaction, or none; `begun` is when it had the lock.
fn transact(
    writer: &Connection,
    group: &mut [PendingChange],
    deadline: &Deadline,
    begun: &mut Instant,
) -> Result<Vec<i64>, Failure> {
    let begin = || Transaction::new_unchecked(writer, TransactionBehavior::Immediate).map_err(Failure::from);
    let transaction = patiently(deadline, begin)?;
    *begun = Instant::now();
    let answers = group.iter_mut().map(|change| (change.work)(&transaction)).collect::<Result<Vec<i64>, Failure>>()?;
    transaction.commit()?;
    Ok(answers)
}

/// Does what needs the lock of the database, as soon as it is to be had.
fn patiently<T>(deadline: &Deadline, mut work: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let mut pause = Duration::from_micros(20);
    loop {
        match work() {
            Err(failure) if failure.is_busy() => {
                if deadline.remaining().is_none() {
                    return Err(Failure::Locked(deadline.limit()));
                }
                thread::park_timeout(pause);
                pause = (pause * 3 / 2).min(LONGEST_PAUSE);
            }
            result => return result,
        }
    }
}
