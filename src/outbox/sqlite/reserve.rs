//! Room on the disk that pushes leave alone, so that a full disk can be drained.
//!
//! It is a file beside the database. When the disk is full, a settlement empties it, and has its
//! room; nothing is pushed before it is whole again.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::files::{companion, open_beside};
use crate::deadline::Deadline;

/// The size of the reserve: what the write-ahead log takes between two checkpoints, and the same
/// once more for the database that takes it over.
const SIZE: u64 = 2 * 1024 * 1024;

/// How long to wait before the reserve is tried to be restored again.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Reserve {
    database: PathBuf,
    path: PathBuf,
    next_try: Option<Deadline>,
}

impl Reserve {
    pub(super) fn beside(database: &Path) -> Reserve {
        Reserve { database: database.to_owned(), path: companion(database, "-reserve"), next_try: None }
    }

    /// Whether it is whole, or can be made so now.
    ///
    /// # Errors
    ///
    /// If it cannot; where a moment ago it could not, without another try.
    pub(super) fn restore(&mut self) -> io::Result<()> {
        if self.is_whole() {
            return Ok(());
        }
        if self.next_try.is_some_and(|next| next.remaining().is_some()) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let restored = self.fill();
        if restored.is_err() {
            self.release();
            self.next_try = Some(Deadline::after(PAUSE));
        }
        restored
    }

    pub(super) fn is_whole(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|metadata| metadata.len() >= SIZE)
    }

    /// Gives its room back to the disk; says whether there was any.
    pub(super) fn release(&mut self) -> bool {
        let Ok(file) = OpenOptions::new().write(true).open(&self.path) else { return false };
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        size > 0 && file.set_len(0).is_ok()
    }

    fn fill(&self) -> io::Result<()> {
        let options = |options: &mut OpenOptions| {
            options.write(true).create(true).truncate(true);
        };
        let mut file = open_beside(&self.database, &self.path, options)?;
        // Not zeros, for which some file systems take no room.
        let block: Vec<u8> = (0..64 * 1024_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let mut left = SIZE;
        while left > 0 {
            let size = left.min(block.len() as u64);
            file.write_all(&block[..size as usize])?;
            left -= size;
        }
        file.sync_data()
    }
}
