//! The tables, their version, and how a file of an older version becomes one of this.

use rusqlite::{Connection, TransactionBehavior};

use super::failure::failure;
use crate::outbox::OutboxError;

/// `MLLP`, by which `file` and this crate know an outbox.
const APPLICATION_ID: i64 = 0x4D4C_4C50;

/// The tables that each version adds to the one before it. A file's version is how many of them it
/// has.
///
/// An entry's message is written once and not touched when its state changes; the entry itself
/// moves from `waiting` to `delivered` or `dead`, so that what waits is as quickly found among a
/// million delivered as alone. The types are such that old `sqlite3` shells read them.
const VERSIONS: [&str; 4] = [
    "
    CREATE TABLE destination (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE
    );
    CREATE TABLE message (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        checksum INTEGER NOT NULL,          -- CRC-32 of the content
        content BLOB NOT NULL
    );
    CREATE TABLE waiting (
        destination INTEGER NOT NULL,
        id INTEGER NOT NULL,                -- of the message
        control_id TEXT NOT NULL,
        pushed_at INTEGER NOT NULL,         -- milliseconds since 1970, UTC; likewise the other times
        state TEXT NOT NULL,                -- waiting, sending, held
        attempts INTEGER NOT NULL,
        refusals INTEGER NOT NULL,
        retry_at INTEGER,
        last_failure TEXT,
        PRIMARY KEY (destination, id)
    ) WITHOUT ROWID;
    CREATE TABLE dead (
        destination INTEGER NOT NULL,
        id INTEGER NOT NULL,
        control_id TEXT NOT NULL,
        pushed_at INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        refusals INTEGER NOT NULL,
        died_at INTEGER NOT NULL,
        last_failure TEXT,
        PRIMARY KEY (destination, id)
    ) WITHOUT ROWID;
    CREATE TABLE delivered (
        destination INTEGER NOT NULL,
        delivered_at INTEGER NOT NULL,
        id INTEGER NOT NULL,
        control_id TEXT NOT NULL,
        pushed_at INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        PRIMARY KEY (destination, delivered_at, id)
    ) WITHOUT ROWID;
    ",
    "
    CREATE VIEW show_waiting AS
        SELECT d.name AS destination, w.id, w.control_id, w.state, w.attempts, w.last_failure,
               strftime('%Y-%m-%dT%H:%M:%SZ', w.pushed_at / 1000, 'unixepoch') AS pushed,
               strftime('%Y-%m-%dT%H:%M:%SZ', w.retry_at / 1000, 'unixepoch') AS retry
        FROM waiting w JOIN destination d ON d.id = w.destination ORDER BY w.destination, w.id;
    CREATE VIEW show_dead AS
        SELECT d.name AS destination, x.id, x.control_id, x.attempts, x.last_failure,
               strftime('%Y-%m-%dT%H:%M:%SZ', x.pushed_at / 1000, 'unixepoch') AS pushed,
               strftime('%Y-%m-%dT%H:%M:%SZ', x.died_at / 1000, 'unixepoch') AS died
        FROM dead x JOIN destination d ON d.id = x.destination ORDER BY x.destination, x.id;
    CREATE VIEW show_delivered AS
        SELECT d.name AS destination, x.id, x.control_id, x.attempts,
               strftime('%Y-%m-%dT%H:%M:%SZ', x.pushed_at / 1000, 'unixepoch') AS pushed,
               strftime('%Y-%m-%dT%H:%M:%SZ', x.delivered_at / 1000, 'unixepoch') AS delivered
        FROM delivered x JOIN destination d ON d.id = x.destination ORDER BY x.destination, x.delivered_at, x.id;
    ",
    "
    ALTER TABLE destination ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE destination ADD COLUMN keep INTEGER;  -- how long delivered entries are kept; NULL: a week
    ALTER TABLE waiting ADD COLUMN unknowns INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE waiting ADD COLUMN identity TEXT NOT NULL DEFAULT '';
    ALTER TABLE dead ADD COLUMN unknowns INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE dead ADD COLUMN identity TEXT NOT NULL DEFAULT '';
    CREATE INDEX held ON waiting (destination, id) WHERE state = 'held';
    CREATE TABLE claim (
        destination INTEGER PRIMARY KEY,
        holder TEXT,                        -- NULL once it has given the claim up
        file INTEGER,                       -- by which number the system knows this file, and the one that it has locked
        lock_file INTEGER
    );
    CREATE TABLE pushed_key (
        destination INTEGER NOT NULL,
        key TEXT NOT NULL,
        id INTEGER NOT NULL,
        pushed_at INTEGER NOT NULL,
        UNIQUE (destination, key)
    );
    CREATE INDEX pushed_key_by_age ON pushed_key (pushed_at);
    ALTER TABLE waiting ADD COLUMN begun INTEGER NOT NULL DEFAULT 0;  -- it was being sent when it was held
    CREATE TABLE pusher (                   -- processes, by which they notice that an older copy took the file's place
        name TEXT PRIMARY KEY,
        pushes INTEGER NOT NULL,
        pushed_at INTEGER NOT NULL
    ) WITHOUT ROWID;
    ",
    "
    ALTER TABLE destination ADD COLUMN lane_rule TEXT NOT NULL DEFAULT 'destination';
    ALTER TABLE destination ADD COLUMN lanes_from INTEGER;  -- the entries from this number on have lanes; NULL: none has
    ALTER TABLE waiting ADD COLUMN lane TEXT;    -- a digest of its key; '.': the destination's own lane; '!': a barrier
    ALTER TABLE waiting ADD COLUMN ready INTEGER NOT NULL DEFAULT 0;  -- it can be claimed, unless a barrier is before it
    ALTER TABLE waiting ADD COLUMN rested_at INTEGER;                 -- since when it rests, in a lane
    ALTER TABLE dead ADD COLUMN lane TEXT;
    ALTER TABLE delivered ADD COLUMN lane TEXT;
    CREATE INDEX lane ON waiting (destination, lane, id) WHERE lane IS NOT NULL;
    CREATE INDEX ready ON waiting (destination, id) WHERE ready = 1;
    CREATE TABLE flight (                   -- the claims of entries that have lanes
        destination INTEGER NOT NULL,
        slot INTEGER NOT NULL,
        lane TEXT NOT NULL,
        id INTEGER NOT NULL,                -- of the entry, which may have been discarded meanwhile
        PRIMARY KEY (destination, slot)
    ) WITHOUT ROWID;
    CREATE INDEX rest_ends ON waiting (destination, retry_at) WHERE retry_at IS NOT NULL AND lane IS NOT NULL;
    CREATE INDEX rest_begins ON waiting (destination, rested_at) WHERE rested_at IS NOT NULL;
    ALTER TABLE claim RENAME TO claim_of_one;
    CREATE TABLE claim (
        destination INTEGER NOT NULL,
        slot INTEGER NOT NULL,              -- of several claims of a destination, which it is
        holder TEXT,                        -- NULL once it has given the claim up
        file INTEGER,                       -- by which number the system knows this file, and the one that it has locked
        lock_file INTEGER,
        PRIMARY KEY (destination, slot)
    ) WITHOUT ROWID;
    INSERT INTO claim SELECT destination, 0, holder, file, lock_file FROM claim_of_one;
    DROP TABLE claim_of_one;
    DROP VIEW show_waiting;
    CREATE VIEW show_waiting AS
        SELECT d.name AS destination, w.id, w.control_id, w.state, w.attempts, w.last_failure,
               strftime('%Y-%m-%dT%H:%M:%SZ', w.pushed_at / 1000, 'unixepoch') AS pushed,
               strftime('%Y-%m-%dT%H:%M:%SZ', w.retry_at / 1000, 'unixepoch') AS retry,
               CASE w.lane WHEN '!' THEN 'barrier' WHEN '.' THEN 'no key' ELSE w.lane END AS lane
        FROM waiting w JOIN destination d ON d.id = w.destination ORDER BY w.destination, w.id;
    ",
];

/// Makes a new file an outbox, and one of an older version one of this.
pub(super) fn prepare(connection: &mut Connection) -> Result<(), PrepareError> {
    if version(connection)? == VERSIONS.len() {
        return Ok(());
    }
    bring_up_to(connection, VERSIONS.len())
}

/// The version of an outbox, 0 for an empty file.
fn version(connection: &Connection) -> Result<usize, PrepareError> {
    let number = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match (number("application_id")?, number("user_version")?, tables) {
        (0, 0, 0) => Ok(0),
        (APPLICATION_ID, version, _) => match usize::try_from(version) {
            Ok(known @ 1..) if known <= VERSIONS.len() => Ok(known),
            _ => Err(PrepareError::Newer(version)),
        },
        _ => Err(PrepareError::Foreign),
    }
}

fn bring_up_to(connection: &mut Connection, wanted: usize) -> Result<(), PrepareError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been faster.
    for step in &VERSIONS[version(&transaction)?..wanted] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", wanted as i64)?;
    Ok(transaction.commit()?)
}

pub(super) enum PrepareError {
    /// Made by a later version of this crate.
    Newer(i64),
    /// A database, and no outbox.
    Foreign,
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for PrepareError {
    fn from(error: rusqlite::Error) -> Self {
        PrepareError::Sqlite(error)
    }
}

impl PrepareError {
    pub(super) fn of_file(self, path: &str) -> OutboxError {
        match self {
            PrepareError::Newer(version) => OutboxError::Config(format!(
                "{path} is an outbox of version {version}; this program knows versions up to {}",
                VERSIONS.len()
            )),
            PrepareError::Foreign => {
                OutboxError::Config(format!("{path} is a database of another kind, not an outbox"))
            }
            PrepareError::Sqlite(error) => failure(path, error.into()),
        }
    }
}
