//! A storage that hangs or is gone: each call ends within its limit, and when the storage is back,
//! all goes on. (A full disk: `tests/disk.rs`.)

#![cfg(all(unix, any(feature = "redis", feature = "sqlite")))]

mod common;

use common::hang::{LIMIT, every_call_ends};

/// The calls that are to succeed while the storage is away, and no others.
fn succeed(name: &str, outcome: &[(&str, bool)], expected: &[&str]) {
    let succeeded: Vec<&str> = outcome.iter().filter(|(_, success)| *success).map(|(call, _)| *call).collect();
    assert_eq!(succeeded, expected, "{name}");
}

#[cfg(feature = "redis")]
mod redis {
    use super::*;
    use crate::common::hang::EXCHANGE;
    use crate::common::redis::Redis;
    use mllp_client::outbox::RedisOutbox;

    #[test]
    fn a_server_that_is_stopped() {
        let Some(redis) = Redis::start() else { return };
        let open = || RedisOutbox::open(&redis.url(), "ehr").unwrap().timeout(LIMIT).lease(EXCHANGE * 3 / 2);
        let outcome = every_call_ends("stopped", open, || redis.signal("STOP"), || redis.signal("CONT"));
        succeed(
            "stopped",
            &outcome,
            &["wait", "wake", "release", "status", "drain", "stop", "stop again", "drop", "drop what was stopped"],
        );
    }
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use std::fs;

    use super::*;
    use mllp_client::outbox::SqliteOutbox;
    use rusqlite::Connection;

    #[test]
    fn a_file_that_is_locked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("outbox.db");
        let open = || SqliteOutbox::open(&path, "ehr").unwrap().timeout(LIMIT);
        drop(open());
        let shell = Connection::open(&path).unwrap();
        let outcome = every_call_ends(
            "locked",
            open,
            || shell.execute_batch("BEGIN IMMEDIATE").unwrap(),
            || shell.execute_batch("ROLLBACK").unwrap(),
        );
        // It can be read all the same.
        let reading = ["claim", "pending", "list", "show", "stopped", "wait", "wake", "release", "status", "drain"];
        succeed("locked", &outcome, &[&reading[..], &["stop", "stop again", "drop", "drop what was stopped"]].concat());
    }

    #[test]
    fn a_file_that_is_moved_away() {
        let directory = tempfile::tempdir().unwrap();
        let [path, away] = ["outbox.db", "away.db"].map(|name| directory.path().join(name));
        let open = || SqliteOutbox::open(&path, "ehr").unwrap().timeout(LIMIT);
        let moves = |from: &std::path::Path, to: &std::path::Path| {
            for ending in ["", "-wal", "-shm"] {
                let ended = |path: &std::path::Path| format!("{}{ending}", path.display());
                fs::rename(ended(from), ended(to)).unwrap();
            }
        };
        let outcome = every_call_ends("moved", open, || moves(&path, &away), || moves(&away, &path));
        succeed(
            "moved",
            &outcome,
            &["wait", "wake", "release", "status", "stop", "stop again", "drop", "drop what was stopped"],
        );
    }
}
