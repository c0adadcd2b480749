//! The server: connections to it, a few of which the threads of a program share, and what its
//! errors mean.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::sentinel::SentinelClient;
use redis::{Client, Connection, ErrorKind, RedisError, RedisResult};

use crate::deadline::Deadline;
use crate::locks::lock;
use crate::outbox::OutboxError;
use crate::outbox::identity::unique;

/// The most connections of one handle and its clones, beside the one that waits for messages.
const LINES: usize = 16;

/// How long ago a push may have been answered for the server to be asked whether it still knows of
/// it: half of the time for which it does.
const KNOWN: Duration = Duration::from_secs(12 * 60 * 60);

/// What leads to a server.
pub(super) enum Source {
    Client(Box<Client>),
    /// The sentinels, who know which server is the primary.
    Sentinel(Box<Mutex<SentinelClient>>),
}

pub(super) struct Server {
    source: Source,
    /// Where it is, without a password.
    shown: String,
    lines: Mutex<Lines>,
    freed: Condvar,
}

#[derive(Default)]
struct Lines {
    idle: Vec<Line>,
    /// How many there are, those in use among them.
    count: usize,
    /// The last push of each line that was answered, and when.
    answered: Vec<(String, u64, Instant)>,
    /// How often what is known of the server was forgotten.
    epoch: u64,
}

/// One connection, for one thread at a time, and what was pushed over it.
pub(super) struct Line {
    pub(super) connection: Option<Connection>,
    /// Its name, by which the server knows its pushes.
    pusher: String,
    pushes: u64,
    /// Which of the pushes was the last to be answered.
    answered: u64,
    answered_at: Option<Instant>,
    /// When, among the times that all was forgotten, this line was used last.
    epoch: u64,
}

impl Line {
    fn new(epoch: u64) -> Result<Line, OutboxError> {
        Ok(Line { connection: None, pusher: unique()?, pushes: 0, answered: 0, answered_at: None, epoch })
    }

    /// Which push the server has to know of.
    fn known(&self) -> u64 {
        if self.answered_at.is_some_and(|at| at.elapsed() < KNOWN) { self.answered } else { 0 }
    }
}

/// A line in use. It goes back when it is dropped.
pub(super) struct Borrowed<'s> {
    server: &'s Server,
    line: Option<Line>,
}

impl Borrowed<'_> {
    pub(super) fn line(&mut self) -> &mut Line {
        self.line.as_mut().unwrap_or_else(|| unreachable!("it has its line until it is dropped"))
    }

    /// Begins a push: the pusher's name, which of its pushes it is, and which the server has to
    /// know of.
    pub(super) fn begin_push(&mut self) -> (String, u64, u64) {
        let line = self.line();
        line.pushes += 1;
        (line.pusher.clone(), line.pushes, line.known())
    }

    /// The last push was answered.
    pub(super) fn push_is_answered(&mut self) {
        let line = self.line();
        line.answered = line.pushes;
        let now = Instant::now();
        line.answered_at = Some(now);
        let (pusher, answered, epoch) = (line.pusher.clone(), line.answered, line.epoch);
        let mut lines = lock(&self.server.lines);
        if lines.epoch != epoch {
            return;
        }
        match lines.answered.iter_mut().find(|(known, ..)| *known == pusher) {
            Some(known) => *known = (pusher, answered, now),
            None => lines.answered.push((pusher, answered, now)),
        }
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if let Some(line) = self.line.take() {
            lock(&self.server.lines).idle.push(line);
            self.server.freed.notify_one();
        }
    }
}

impl Server {
    pub(super) fn new(source: Source) -> Server {
        let shown = match &source {
            Source::Client(client) => client.get_connection_info().addr().to_string(),
            Source::Sentinel(_) => "the primary of its sentinels".to_owned(),
        };
        Server { source, shown, lines: Mutex::default(), freed: Condvar::new() }
    }

    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// A line for one call, once one is free.
    pub(super) fn borrow(&self, deadline: &Deadline) -> Result<Borrowed<'_>, OutboxError> {
        let mut lines = lock(&self.lines);
        loop {
            if let Some(mut line) = lines.idle.pop() {
                if line.epoch != lines.epoch {
                    line = Line { connection: None, answered_at: None, epoch: lines.epoch, ..line };
                }
                return Ok(Borrowed { server: self, line: Some(line) });
            }
            if lines.count < LINES {
                let line = Line::new(lines.epoch)?;
                lines.count += 1;
                return Ok(Borrowed { server: self, line: Some(line) });
            }
            let Some(left) = deadline.remaining() else {
                let what = format!(
                    "all {LINES} connections to Redis at {} were in use for {:?}",
                    self.shown,
                    deadline.limit()
                );
                return Err(OutboxError::Storage { what, source: None });
            };
            lines = self.freed.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What the server has to know of: pushers, and which of their pushes was the last to be
    /// answered.
    pub(super) fn answered(&self) -> Vec<(String, u64)> {
        let lines = lock(&self.lines);
        let known = lines.answered.iter().filter(|(.., at)| at.elapsed() < KNOWN);
        known.map(|(pusher, push, _)| (pusher.clone(), *push)).collect()
    }

    /// The server need know nothing of what was pushed before; connections are made anew.
    pub(super) fn forget(&self) {
        let mut lines = lock(&self.lines);
        lines.answered.clear();
        lines.epoch += 1;
    }

    /// A new connection, whose calls end by the deadline.
    pub(super) fn connect(&self, deadline: &Deadline) -> Result<Connection, OutboxError> {
        // The library takes it for each step of its own, of which there may be three.
        let Some(left) = deadline.remaining().map(|left| left / 3) else { return Err(self.late(deadline)) };
        let connection = match &self.source {
            Source::Client(client) => client.get_connection_with_timeout(left),
            Source::Sentinel(sentinel) => {
                lock(sentinel).get_client().and_then(|client| client.get_connection_with_timeout(left))
            }
        };
        let connection = connection.map_err(|error| self.failure(error, deadline))?;
        self.limit(&connection, deadline)?;
        Ok(connection)
    }

    /// Lets the next call on a connection end by the deadline.
    pub(super) fn limit(&self, connection: &Connection, deadline: &Deadline) -> Result<(), OutboxError> {
        let Some(left) = deadline.remaining() else { return Err(self.late(deadline)) };
        let set = |left| -> RedisResult<()> {
            connection.set_read_timeout(Some(left))?;
            connection.set_write_timeout(Some(left))
        };
        set(left).map_err(|error| self.failure(error, deadline))
    }

    fn late(&self, deadline: &Deadline) -> OutboxError {
        let what = format!("Redis at {} did not answer within {:?}", self.shown, deadline.limit());
        OutboxError::Storage { what, source: None }
    }

    /// Looks whether the server keeps what it is given. One that does not let this program look is
    /// warned about.
    ///
    /// # Errors
    ///
    /// If it throws keys away when its memory is full, or is a node of a cluster.
    pub(super) fn check(&self, connection: &mut Connection, deadline: &Deadline) -> Result<(), OutboxError> {
        let server = &self.shown;
        let info: String = match redis::cmd("INFO").query(connection) {
            Ok(info) => info,
            Err(error) if is_of_connection(&error) => return Err(self.failure(error, deadline)),
            Err(error) => {
                log::warn!("Redis at {server} does not say whether it keeps what it is given: {error}");
                return Ok(());
            }
        };
        let value = |name: &str| {
            let mut lines = info.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(own, _)| *own == name).map(|(_, value)| value.trim())
        };
        if value("cluster_enabled") == Some("1") {
            return Err(OutboxError::Config(format!(
                "Redis at {server} is a node of a cluster, which this outbox does not support: use a single primary \
                 with replicas, by Sentinel for instance"
            )));
        }
        let policy = value("maxmemory_policy").unwrap_or("noeviction");
        if policy != "noeviction" && value("maxmemory") != Some("0") {
            return Err(OutboxError::Config(format!(
                "Redis at {server} throws messages away when its memory is full: set its maxmemory-policy to noeviction \
                 (it is {policy})"
            )));
        }
        if policy != "noeviction" {
            log::warn!(
                "Redis at {server}: maxmemory-policy has to be noeviction once maxmemory is set (it is {policy})"
            );
        }
        if value("aof_enabled") == Some("0") {
            log::warn!("Redis at {server} has no append-only file: what is pushed may be lost with the server");
        }
        Ok(())
    }

    /// The outbox's error for one of Redis.
    pub(super) fn failure(&self, error: RedisError, deadline: &Deadline) -> OutboxError {
        let server = &self.shown;
        if matches!(error.kind(), ErrorKind::Parse | ErrorKind::UnexpectedReturnType) {
            // The library's text repeats the answer, which may be a message.
            let what = format!("what Redis at {server} holds for this destination is no outbox of this version");
            return OutboxError::Damaged { what, source: None };
        }
        if error.is_timeout() {
            return self.late(deadline);
        }
        let said = |word: &str| says(&error, word);
        let what = if said("OOM") {
            let what = format!(
                "Redis at {server} is out of memory; what is in it is untouched, and it goes on once there is room"
            );
            return OutboxError::Full { what, source: Some(error.into()) };
        } else if said("NOAUTH") || said("WRONGPASS") || error.kind() == ErrorKind::AuthenticationFailed {
            format!("Redis at {server} does not let this program in: check its user and password")
        } else if said("READONLY") {
            format!("Redis at {server} is a replica, which takes no messages; its address has to lead to the primary")
        } else if error.is_io_error() || error.is_unrecoverable_error() {
            format!("Redis at {server} cannot be reached")
        } else {
            format!("Redis at {server} refuses the call")
        };
        OutboxError::Storage { what, source: Some(error.into()) }
    }
}

/// Whether a failure is of the connection at hand, so that another may lead to a server that does:
/// the connection is broken, or its server is no primary in service (any more).
pub(super) fn is_of_connection(error: &RedisError) -> bool {
    const OUT_OF_SERVICE: [&str; 6] = ["READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "UNBLOCKED"];
    error.is_io_error()
        || error.is_unrecoverable_error()
        || error.is_timeout()
        || OUT_OF_SERVICE.iter().any(|word| says(error, word))
}

/// Whether a server's error has this code; one inside a script has it in its text.
pub(super) fn says(error: &RedisError, code: &str) -> bool {
    error.code() == Some(code) || error.detail().is_some_and(|detail| detail.contains(code))
}
