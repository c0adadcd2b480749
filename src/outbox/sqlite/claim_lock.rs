//! The right to claim an entry of a destination, one of as many as it has lanes: a lock on a file
//! beside the database, which the system takes back when its holder ends, however it ends.
//!
//! A file can be removed while it is locked, and another made in its place can be locked as well.
//! So the database knows who holds the claim, and by which file. Who finds that its file is not
//! the one in place any more locks that one; who gets a lock by another file than the database
//! names waits for a while, in which a holder that lives would have noticed. Where the database
//! itself is a copy, its former holder works on the other one.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::files::{FileId, companion, id, id_at, open_beside, try_lock, unusable};
use super::group::Kind;
use super::lanes;
use super::storage::Storage;
use crate::deadline::Deadline;
use crate::outbox::OutboxError;

/// How long a holder that lives may take to notice that its file is not in place any more: it looks
/// after each exchange, which has a limit of 30 seconds if nothing else is said.
const NOTICING: Duration = Duration::from_secs(60);

pub(super) struct ClaimLock {
    storage: Arc<Storage>,
    destination: i64,
    /// Which of the destination's claims it is for, from 0.
    slot: usize,
    path: PathBuf,
    /// The name of this handle, different from that of all others.
    holder: String,
    file: Option<File>,
    /// The holder that another file belongs to, and how long it has to notice.
    noticing: Option<(String, Deadline)>,
}

impl ClaimLock {
    pub(super) fn new(storage: &Arc<Storage>, destination: i64, slot: usize, holder: String) -> ClaimLock {
        let of_slot = if slot == 0 { String::new() } else { format!("-{slot}") };
        let path = companion(storage.path(), &format!("-claim-{destination}{of_slot}"));
        ClaimLock { storage: Arc::clone(storage), destination, slot, path, holder, file: None, noticing: None }
    }

    /// Which of the destination's claims it is for.
    pub(super) fn slot(&self) -> i64 {
        self.slot as i64
    }

    /// Whether it was got, and not lost as far as is known.
    pub(super) fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// Whether this handle may claim: it holds the lock, or gets it.
    ///
    /// # Errors
    ///
    /// If the lock's file or the database cannot be used.
    pub(super) fn is_held(&mut self, deadline: &Deadline) -> Result<bool, OutboxError> {
        self.storage.check_place()?;
        let unusable = |error| unusable(&self.path.to_string_lossy(), error);
        if let Some(file) = &self.file {
            let own = id(&file.metadata().map_err(unusable)?);
            if id_at(&self.path).is_ok_and(|there| there == own) {
                return Ok(true);
            }
            log::warn!("{}: this file was removed or replaced while it was locked", self.path.display());
        }
        let options = |options: &mut OpenOptions| {
            options.write(true).create(true).truncate(false);
        };
        let file = open_beside(self.storage.path(), &self.path, options).map_err(unusable)?;
        match try_lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                self.file = None;
                return Ok(false);
            }
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
        let number = |id: FileId| id.map(|(_, number)| number as i64);
        let files = (number(self.storage.id()), number(id(&file.metadata().map_err(unusable)?)));
        let (destination, slot) = (self.destination, self.slot());
        if self.file.is_none() && !self.may_take_over(files)? {
            return Ok(false);
        }
        let holder = self.holder.clone();
        self.storage.change(Kind::Claim, deadline, move |writer| {
            let sql =
                "INSERT OR REPLACE INTO claim (destination, slot, holder, file, lock_file) VALUES (?1, ?2, ?3, ?4, ?5)";
            Ok(writer.prepare_cached(sql)?.execute((destination, slot, &holder, files.0, files.1))? as i64)
        })?;
        (self.file, self.noticing) = (Some(file), None);
        Ok(true)
    }

    /// Whether the claim that the database knows of was made by this lock's file, or on another
    /// copy of the database, so that its holder is none any more; or its holder has had the
    /// time to notice. `files`: the numbers of the database and the lock's file.
    fn may_take_over(&mut self, files: (Option<i64>, Option<i64>)) -> Result<bool, OutboxError> {
        let find =
            "SELECT holder, file, lock_file FROM claim WHERE destination = ?1 AND slot = ?2 AND holder IS NOT NULL";
        let claim = self.storage.read(|reader| {
            let mut rows = reader.prepare_cached(find)?;
            let mut rows =
                rows.query_map([self.destination, self.slot()], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?;
            rows.next().transpose()
        })?;
        let Some((holder, made_by)) = claim else { return Ok(true) };
        let made_by: (Option<i64>, Option<i64>) = made_by;
        if made_by.0 != files.0 || made_by.1 == files.1 {
            return Ok(true);
        }
        match &self.noticing {
            Some((noticing, until)) if *noticing == holder => Ok(until.remaining().is_none()),
            _ => {
                log::warn!(
                    "{}: its former holder locked another file of this name, which was removed; if it still runs, it goes on, \
                     otherwise delivering goes on here in {NOTICING:?}",
                    self.path.display()
                );
                self.noticing = Some((holder, Deadline::after(NOTICING)));
                Ok(false)
            }
        }
    }

    /// Gives the right up, so that another can have it at once.
    pub(super) fn release(&mut self, deadline: &Deadline) {
        if self.file.is_some() {
            let (destination, slot, holder) = (self.destination, self.slot(), self.holder.clone());
            // Where it cannot be recorded, the next one sees by the lock that it is free.
            let _ = self.storage.change(Kind::Settlement, deadline, move |writer| {
                let sql = "UPDATE claim SET holder = NULL WHERE destination = ?1 AND slot = ?2 AND holder = ?3";
                let given_up = writer.prepare_cached(sql)?.execute((destination, slot, &holder))?;
                if given_up > 0 { lanes::free(writer, destination, slot) } else { Ok(0) }
            });
        }
        self.file = None;
    }

    /// Leaves it to somebody else, who may hold it already: by the database, whatever this handle
    /// has locked.
    pub(super) fn lose(&mut self) {
        self.file = None;
    }
}
