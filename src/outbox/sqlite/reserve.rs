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

/// The sizes that the reserve may have, the largest that fits twice on the disk: once for what the
/// write-ahead log takes between two checkpoints and the database that takes it over, and as much
/// for messages.
const SIZES: [u64; 3] = [2 * 1024 * 1024, 512 * 1024, 128 * 1024];

/// How long to wait before the reserve is tried to be restored again.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Reserve {
    database: PathBuf,
    path: PathBuf,
    /// Its size when it is whole; 0 where the disk has no room for one.
    size: u64,
    next_try: Option<Deadline>,
}

impl Reserve {
    /// The reserve of a database, which is made if it is not there and there is room.
    pub(super) fn beside(database: &Path) -> Reserve {
        let path = companion(database, "-reserve");
        let mut reserve = Reserve { database: database.to_owned(), path, size: 0, next_try: None };
        // Where the disk has no room for one, it is tried again before something is pushed.
        let _ = reserve.choose_size();
        reserve
    }

    /// Takes the largest size that there is room for.
    fn choose_size(&mut self) -> io::Result<()> {
        let there = self.length();
        let mut result = Ok(());
        for size in SIZES {
            result = if size <= there { Ok(()) } else { self.fill(2 * size) };
            self.cut(if result.is_ok() { size.max(there) } else { there });
            if result.is_ok() {
                self.size = size;
                break;
            }
        }
        result
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes when it is whole.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Whether it is whole, or can be made so now, and there is room beside it for a message of
    /// this size, in the log and in the database. `shrink` makes the database smaller, if it
    /// can be.
    ///
    /// # Errors
    ///
    /// If there is none; where a moment ago there was none, without another try.
    pub(super) fn has_room_beside(&mut self, message: u64, mut shrink: impl FnMut() -> bool) -> io::Result<()> {
        let is_large = message > self.size.max(SIZES[SIZES.len() - 1]) / 2;
        let was_whole = self.size > 0 && self.is_whole();
        if was_whole && !is_large {
            return Ok(());
        }
        if self.next_try.is_some_and(|next| next.remaining().is_some()) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.size == 0 {
            let chosen = self.choose_size();
            if chosen.is_err() {
                self.next_try = Some(Deadline::after(PAUSE));
            }
            return chosen;
        }
        let room = if is_large { 2 * message } else { 0 };
        let mut filled = self.fill(self.size + room);
        while filled.is_err() && !was_whole && self.cut(0) && shrink() {
            filled = self.fill(self.size + room);
        }
        // One that was whole stays so, also where there is no room for a large message.
        self.cut(if filled.is_ok() || was_whole { self.size } else { 0 });
        if filled.is_err() && !is_large {
            self.next_try = Some(Deadline::after(PAUSE));
        }
        filled
    }

    /// Something has made room: it is worth another try.
    pub(super) fn try_again(&mut self) {
        self.next_try = None;
    }

    pub(super) fn is_whole(&self) -> bool {
        self.length() >= self.size
    }

    /// Gives its room back to the disk; returns whether there was any.
    pub(super) fn release(&mut self) -> bool {
        self.length() > 0 && self.cut(0)
    }

    fn length(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |metadata| metadata.len())
    }

    /// Cuts it to a size; returns whether it has it then.
    fn cut(&self, size: u64) -> bool {
        OpenOptions::new().write(true).open(&self.path).and_then(|file| file.set_len(size)).is_ok()
    }

    /// Makes it so large, by writing what it lacks.
    fn fill(&self, size: u64) -> io::Result<()> {
        let options = |options: &mut OpenOptions| {
            options.append(true).create(true);
        };
        let mut file = open_beside(&self.database, &self.path, options)?;
        // Not zeros, for which some file systems take no room.
        let block: Vec<u8> = (0..64 * 1024_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let mut left = size.saturating_sub(self.length());
        while left > 0 {
            let size = left.min(block.len() as u64);
            file.write_all(&block[..size as usize])?;
            left -= size;
        }
        Ok(())
    }
}
