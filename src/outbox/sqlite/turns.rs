//! Turns between the processes that write to one file.
//!
//! SQLite lets one process write at a time and says nothing about whose turn it is: who asks most
//! often gets most. Here those that push queue for a lock on a file beside the database, so that
//! one at a time competes with the one that forwards; and while messages are delivered, it leaves
//! time for that before it writes. A settlement does not queue: what is delivered makes room.
//!
//! The turn is a courtesy. Who does not get it in time writes without, and SQLite's own lock keeps
//! the file whole.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::files::{companion, read_at, try_lock, write_at};
use crate::deadline::Deadline;

/// How long to wait before the lock is asked for again, at first and later on.
const POLL: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(3));

/// Who has waited so long goes on without a turn: whoever has it was stopped.
const PATIENCE: Duration = Duration::from_millis(500);

/// The longest time that is left for delivering.
const LONGEST_GAP: Duration = Duration::from_millis(20);

/// How many times as long as a push takes is left for delivering.
const GAP: u32 = 2;

/// While no more than so many messages wait, delivering keeps up, and no time is left for it.
const BACKLOG: u64 = 64;

/// The file of the turns. It begins with two numbers of eight bytes: how many settlements there
/// were, and whether somebody waits for the turn (not zero).
pub(super) struct Turns {
    file: Option<File>,
    /// How many settlements there were when this process had its last turn.
    settlements: u64,
}

/// A turn, until it is dropped.
pub(super) struct Turn<'a>(Option<&'a File>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.0 {
            let _ = super::files::unlock(file);
        }
    }
}

const SETTLEMENTS: u64 = 0;
const SOMEBODY_WAITS: u64 = 8;

impl Turns {
    /// The turns at a database. Without its file there are none.
    pub(super) fn at(database: &Path) -> Turns {
        let path = companion(database, "-turn");
        let options = |options: &mut OpenOptions| {
            options.read(true).write(true).create(true).truncate(false);
        };
        let file = super::files::open_beside(database, &path, options).ok();
        Turns { file, settlements: 0 }
    }

    /// Waits for the turn to push. `took` is how long a transaction takes, `backlog` how many
    /// messages waited at the last one.
    pub(super) fn wait_to_push(&mut self, took: Duration, backlog: u64, deadline: &Deadline) -> Turn<'_> {
        let Some(file) = &self.file else { return Turn(None) };
        if number(file, SOMEBODY_WAITS) != 0 {
            // Whoever has just had the turn would be the first to ask again, and get it each time.
            thread::park_timeout(2 * POLL.0);
        }
        let patience = deadline.or_within(PATIENCE);
        let mut poll = POLL.0;
        let has_turn = loop {
            match try_lock(file) {
                Ok(()) => break true,
                Err(TryLockError::WouldBlock) if patience.remaining().is_some() => {
                    set_number(file, SOMEBODY_WAITS, 1);
                    thread::park_timeout(poll);
                    poll = (poll * 3 / 2).min(POLL.1);
                }
                Err(_) => break false,
            }
        };
        if has_turn {
            set_number(file, SOMEBODY_WAITS, 0);
        }
        let settlements = number(file, SETTLEMENTS);
        if settlements != self.settlements {
            self.settlements = settlements;
            if backlog > BACKLOG {
                let gap = (took * GAP).min(LONGEST_GAP).min(deadline.remaining().unwrap_or_default());
                thread::park_timeout(gap);
            }
        }
        Turn(has_turn.then_some(file))
    }

    /// A settlement is written now: those that push are to leave time for more.
    pub(super) fn settles(&mut self) {
        if let Some(file) = &self.file {
            let settlements = number(file, SETTLEMENTS).wrapping_add(1);
            set_number(file, SETTLEMENTS, settlements);
            // Pushes of this process share its transactions.
            self.settlements = settlements;
        }
    }
}

/// One of the numbers; 0 if there is none yet.
fn number(file: &File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    match read_at(file, &mut bytes, at) {
        Ok(8) => u64::from_le_bytes(bytes),
        _ => 0,
    }
}

/// Nothing depends on whether it is written.
fn set_number(file: &File, at: u64, number: u64) {
    let _ = write_at(file, &number.to_le_bytes(), at);
}
