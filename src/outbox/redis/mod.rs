//! Messages in Redis, for several machines. This folder alone names `redis`.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use redis::{Client, Connection, ErrorKind, FromRedisValue, RedisError, RedisResult, Script, ScriptInvocation};

use super::contract::AfterSettlement;
use super::local_claim::LocalClaim;
use super::wake_up::WakeUp;
use super::{Claim, Entry, EntryState, Outbox, OutboxError, Pending, Settlement, unix_millis};
use crate::locks::lock;

/// The limit of one attempt to reach the server, and of one answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest time until an entry that another process has pushed is noticed.
const POLL: Duration = Duration::from_millis(50);

/// How long a claim lasts, if nothing else is said: longer than the limit of an exchange.
const LEASE: Duration = Duration::from_secs(45);

/// An [`Outbox`] in Redis, for several machines (feature `redis`; Redis 7 or later, or Valkey).
///
/// *What it promises to survive* is what the server does. With `appendonly yes` and `appendfsync
/// always`, a message whose `push` has returned survives the end of the server and of its machine.
/// With `appendfsync everysec`, which is Redis's own default, it survives the end of the
/// server, and what was pushed or settled in about the last second before its *machine* ends may be
/// lost or sent again. Without `appendonly`, all since the last snapshot. A replica that takes over
/// may lack what had not reached it. `maxmemory-policy` has to be `noeviction`, lest Redis throws
/// messages away.
///
/// Each destination has keys of its own, beginning with `mllp-outbox:{destination}:`. Many handles
/// may push; one at a time may claim, by a lease that it renews with each claim. A holder that has
/// ended, or is cut off, loses the lease when its time is over, and another takes over, with a
/// higher fencing token: what the former holder settles after that is refused
/// ([`OutboxError::ClaimLost`]), as is what it settles after a replica took over that gave the
/// entry's number to another message, and since [`Claim::until`] is the limit of its exchange, it
/// does not send any more either. The holder's clock for this is its machine's monotonic one, the
/// server's is the time of day there: where that is set forward by more than a lease, or a machine
/// is suspended as a whole, two may send for a moment.
///
/// A push whose answer is lost is repeated once over a new connection, without the message being
/// stored twice. If that fails too, the message may be stored or not; to push it again is safe
/// where the receiver recognises a repeated control ID.
///
/// Delivered entries are removed. Clones share the connection and the claim.
///
/// # Examples
///
/// ```no_run
/// use mllp_client::outbox::{Outbox, RedisOutbox};
///
/// let outbox = RedisOutbox::open("redis://queue.example.org:6379/", "ehr")?;
/// outbox.push(b"MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|MSG1|P|2.5\r")?;
/// # Ok::<(), mllp_client::outbox::OutboxError>(())
/// ```
#[derive(Clone)]
pub struct RedisOutbox {
    shared: Arc<RedisShared>,
    lease: Duration,
}

struct RedisShared {
    client: Client,
    /// Where it is, without a password.
    server: String,
    /// The beginning of all keys of the destination.
    base: String,
    destination: String,
    /// The name of this handle, different from that of all others.
    holder: String,
    scripts: Scripts,
    wire: Mutex<Wire>,
    local_claim: Mutex<LocalClaim>,
    wake_up: WakeUp,
}

#[derive(Default)]
struct Wire {
    connection: Option<Connection>,
    pushes: u64,
}

struct Scripts {
    push: Script,
    claim: Script,
    settle: Script,
    stopped: Script,
    requeue: Script,
    discard: Script,
    pending: Script,
    release: Script,
}

/// An entry as the scripts return it: control ID, time, state, attempts, refusals, last failure,
/// message, identity.
type Fields = (
    Option<String>,
    Option<i64>,
    Option<String>,
    Option<u32>,
    Option<u32>,
    Option<String>,
    Option<Vec<u8>>,
    Option<String>,
);

impl RedisOutbox {
    /// The outbox of a destination on a server, such as `redis://host:6379/0`, or `rediss://` for
    /// TLS (with the feature `tls`). Connects, to learn early that the server is there.
    ///
    /// # Errors
    ///
    /// [`OutboxError::Config`] if the address is none, or if the server throws keys away when its
    /// memory is full (`maxmemory-policy` other than `noeviction`); [`OutboxError::Storage`] if
    /// the server cannot be reached. A server that has no append-only file is warned about in
    /// the log.
    pub fn open(url: &str, destination: &str) -> Result<RedisOutbox, OutboxError> {
        // The library's text may repeat the address, with its password.
        let client = Client::open(url)
            .map_err(|_| OutboxError::Config("not a Redis URL, or `rediss://` without the feature `tls`".into()))?;
        let server = client.get_connection_info().addr().to_string();
        let shared = RedisShared {
            server,
            base: format!("mllp-outbox:{{{destination}}}"),
            destination: destination.to_owned(),
            holder: unique()?,
            scripts: Scripts::new(),
            wire: Mutex::default(),
            local_claim: Mutex::default(),
            wake_up: WakeUp::default(),
            client,
        };
        let outbox = RedisOutbox { shared: Arc::new(shared), lease: LEASE };
        outbox.pending()?;
        outbox.shared.check_server()?;
        Ok(outbox)
    }

    /// How long a claim of this handle lasts unless it claims again: after this time another handle
    /// takes over from one that has ended. No exchange lasts longer, so it ought to be more
    /// than the limit of an exchange, with that of the application's acknowledgment where it has
    /// one of its own. Defaults to 45 seconds; less than a millisecond counts as one.
    pub fn lease(self, time: Duration) -> RedisOutbox {
        RedisOutbox { lease: time, ..self }
    }

    /// The destination.
    pub fn destination(&self) -> &str {
        &self.shared.destination
    }
}

/// Whether a failure is of the connection at hand, so that another may lead to a server that does:
/// the connection is broken, or its server is no primary in service (any more).
fn is_of_connection(error: &RedisError) -> bool {
    const OUT_OF_SERVICE: [&str; 5] = ["READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS"];
    error.is_unrecoverable_error() || error.is_timeout() || OUT_OF_SERVICE.iter().any(|word| says(error, word))
}

/// Whether a server's error has this code; one inside a script has it in its text.
fn says(error: &RedisError, code: &str) -> bool {
    error.code() == Some(code) || error.detail().is_some_and(|detail| detail.contains(code))
}

/// 128 bits of the system's randomness, which nobody else has.
fn unique() -> Result<String, OutboxError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| OutboxError::Storage {
        what: "the system has no randomness to give".to_owned(),
        source: Some(error.into()),
    })?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

impl Scripts {
    fn new() -> Scripts {
        Scripts {
            push: Script::new(include_str!("push.lua")),
            claim: Script::new(include_str!("claim.lua")),
            settle: Script::new(include_str!("settle.lua")),
            stopped: Script::new(include_str!("stopped.lua")),
            requeue: Script::new(include_str!("requeue.lua")),
            discard: Script::new(include_str!("discard.lua")),
            pending: Script::new(include_str!("pending.lua")),
            release: Script::new(include_str!("release.lua")),
        }
    }
}

impl RedisShared {
    fn local_claim(&self) -> MutexGuard<'_, LocalClaim> {
        lock(&self.local_claim)
    }

    fn wire(&self) -> MutexGuard<'_, Wire> {
        lock(&self.wire)
    }

    fn call<'s>(&self, script: &'s Script) -> ScriptInvocation<'s> {
        script.key(&self.base)
    }

    /// Runs a script, once more over a new connection if the one at hand fails: every script may be
    /// run twice.
    fn run<T: FromRedisValue>(&self, call: &ScriptInvocation<'_>) -> Result<T, OutboxError> {
        self.run_on(&mut self.wire(), call)
    }

    fn run_on<T: FromRedisValue>(&self, wire: &mut Wire, call: &ScriptInvocation<'_>) -> Result<T, OutboxError> {
        if let Some(mut connection) = wire.connection.take() {
            match call.invoke(&mut connection) {
                Err(error) if is_of_connection(&error) => {}
                result => {
                    wire.connection = Some(connection);
                    return result.map_err(|error| self.failure(error));
                }
            }
        }
        let mut connection = self.connect().map_err(|error| self.failure(error))?;
        let result = call.invoke(&mut connection);
        if !matches!(&result, Err(error) if is_of_connection(error)) {
            wire.connection = Some(connection);
        }
        result.map_err(|error| self.failure(error))
    }

    /// Looks whether the server keeps what it is given. One that does not let this program look is
    /// warned about.
    fn check_server(&self) -> Result<(), OutboxError> {
        let server = &self.server;
        let mut wire = self.wire();
        let Some(connection) = &mut wire.connection else { return Ok(()) };
        let info: String = match redis::cmd("INFO").query(connection) {
            Ok(info) => info,
            Err(error) => {
                log::warn!("Redis at {server} does not say whether it keeps what it is given: {error}");
                return Ok(());
            }
        };
        let value = |name: &str| {
            let mut lines = info.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(own, _)| *own == name).map(|(_, value)| value.trim())
        };
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

    fn connect(&self) -> RedisResult<Connection> {
        let connection = self.client.get_connection_with_timeout(PATIENCE)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.set_write_timeout(Some(PATIENCE))?;
        Ok(connection)
    }

    fn failure(&self, error: RedisError) -> OutboxError {
        let server = &self.server;
        if matches!(error.kind(), ErrorKind::Parse | ErrorKind::UnexpectedReturnType) {
            // The library's text repeats the answer, which may be a message.
            let what = format!("what Redis at {server} holds for this destination is no outbox of this version");
            return OutboxError::Damaged { what, source: None };
        }
        let said = |word: &str| says(&error, word);
        let what = if said("OOM") {
            let what = format!(
                "Redis at {server} is out of memory; what is in it is untouched, and it goes on once there is room"
            );
            return OutboxError::Full { what, source: Some(error.into()) };
        } else if said("NOAUTH") || said("WRONGPASS") || error.kind() == ErrorKind::AuthenticationFailed {
            format!("Redis at {server} does not let this program in")
        } else if said("READONLY") {
            format!("Redis at {server} is a replica, which takes no messages; its address has to lead to the primary")
        } else if error.is_io_error() || error.is_unrecoverable_error() {
            format!("Redis at {server} cannot be reached")
        } else {
            format!("Redis at {server} refuses")
        };
        OutboxError::Storage { what, source: Some(error.into()) }
    }

    /// Changes the entry of a claim, unless another has taken over since.
    fn change(&self, claim: &Claim, state: &str, attempts: u32, refusals: u32, why: &str) -> Result<(), OutboxError> {
        let mut call = self.call(&self.scripts.settle);
        call.arg(claim.token).arg(claim.entry.id).arg(state).arg(attempts).arg(refusals).arg(why);
        call.arg(&self.holder).arg(&claim.identity);
        match self.run::<i64>(&call)? {
            0 => Err(OutboxError::ClaimLost),
            _ => Ok(()),
        }
    }

    /// Changes the entry of a claim as [`change`](RedisShared::change) does, if this handle still
    /// holds the claim.
    fn change_claimed(
        &self,
        claim: &Claim,
        state: &str,
        attempts: u32,
        refusals: u32,
        why: &str,
    ) -> Result<(), OutboxError> {
        if self.local_claim().claimed() != Some(claim.entry.id) {
            return Err(OutboxError::ClaimLost);
        }
        let changed = self.change(claim, state, attempts, refusals, why);
        if let Err(OutboxError::ClaimLost) = changed {
            // Another has it, or it was settled by a call whose answer was lost.
            self.local_claim().end(None);
        }
        changed
    }

    /// Runs a script about a stopped entry.
    fn change_stopped(&self, script: &Script, id: u64) -> Result<bool, OutboxError> {
        let changed: i64 = self.run(self.call(script).arg(id))?;
        self.local_claim().end_rest(id);
        self.wake_up.notify();
        Ok(changed > 0)
    }
}

/// An entry, whether its message is there, and its identity: empty for those of a version without.
fn entry(id: u64, fields: Fields) -> (Entry, bool, String) {
    let (control_id, pushed_at, state, attempts, refusals, last_failure, message, identity) = fields;
    let whole = message.is_some();
    let entry = Entry {
        id,
        control_id: control_id.unwrap_or_default(),
        message: message.unwrap_or_default(),
        pushed_at: unix_millis::time(pushed_at.unwrap_or(0)),
        // A state that this version never wrote: hold the entry, never send it without being asked to.
        state: state.map_or(EntryState::Waiting, |word| EntryState::from_word(&word).unwrap_or(EntryState::Held)),
        attempts: attempts.unwrap_or(0),
        refusals: refusals.unwrap_or(0),
        last_failure,
    };
    (entry, whole, identity.unwrap_or_default())
}

impl Outbox for RedisOutbox {
    fn push(&self, message: &[u8]) -> Result<u64, OutboxError> {
        let shared = &*self.shared;
        let control_id = Entry::control_id_of(message).map_err(OutboxError::InvalidMessage)?;
        let identity = unique()?;
        let mut wire = shared.wire();
        wire.pushes += 1;
        let mut call = shared.call(&shared.scripts.push);
        call.arg(&shared.holder).arg(wire.pushes).arg(message).arg(control_id).arg(unix_millis::now()).arg(identity);
        let id = shared.run_on(&mut wire, &call)?;
        shared.wake_up.notify();
        Ok(id)
    }

    fn claim(&self) -> Result<Option<Claim>, OutboxError> {
        let shared = &*self.shared;
        let mut local_claim = shared.local_claim();
        if local_claim.claimed().is_some() {
            return Ok(None);
        }
        let begun = Instant::now();
        let lease = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX).clamp(1, u64::from(u32::MAX));
        let mut call = shared.call(&shared.scripts.claim);
        // A message that rests is not sent over again and again.
        call.arg(&shared.holder).arg(lease).arg(local_claim.resting().map_or(String::new(), |id| id.to_string()));
        let Some((token, id, fields)) = shared.run::<Option<(u64, u64, Fields)>>(&call)? else { return Ok(None) };
        let (entry, whole, identity) = entry(id, fields);
        // A tenth less: clocks do not go equally fast.
        let until = Some(begun + Duration::from_millis(lease) * 9 / 10);
        let claim = Claim { entry, until, token, identity };
        let Entry { attempts, refusals, state, ref control_id, .. } = claim.entry;
        match state {
            EntryState::Waiting if !whole => {
                // Here nobody can mend it, and those behind it are to go on.
                let what = format!("the stored message {control_id:?} (number {id}) is gone");
                shared.change(&claim, EntryState::Dead.as_str(), attempts, refusals, &what)?;
                let what = format!("Redis at {}: {what}; it is among the dead now", shared.server);
                Err(OutboxError::Damaged { what, source: None })
            }
            EntryState::Waiting => {
                local_claim.begin(id);
                Ok(Some(claim))
            }
            EntryState::Sending => {
                let settled = claim.entry.orphaned();
                shared
                    .change(
                        &claim,
                        word(&settled),
                        settled.attempts,
                        settled.refusals,
                        settled.last_failure.unwrap_or_default(),
                    )
                    .map(|()| None)
            }
            EntryState::Held | EntryState::Dead => Ok(None),
        }
    }

    fn begin(&self, claim: &Claim) -> Result<(), OutboxError> {
        let Entry { attempts, refusals, last_failure, .. } = &claim.entry;
        let why = last_failure.as_deref().unwrap_or_default();
        self.shared.change_claimed(claim, EntryState::Sending.as_str(), *attempts, *refusals, why)
    }

    fn settle(&self, claim: &Claim, outcome: Settlement<'_>) -> Result<(), OutboxError> {
        let shared = &*self.shared;
        let settled = claim.entry.settled(outcome);
        shared.change_claimed(
            claim,
            word(&settled),
            settled.attempts,
            settled.refusals,
            settled.last_failure.unwrap_or_default(),
        )?;
        shared.local_claim().end(settled.rest);
        Ok(())
    }

    fn release(&self) {
        let shared = &*self.shared;
        shared.local_claim().end(None);
        // A server that cannot be reached takes the lease back by itself.
        let _ = shared.run::<i64>(shared.call(&shared.scripts.release).arg(&shared.holder));
        shared.wake_up.notify();
    }

    fn pending(&self) -> Result<Pending, OutboxError> {
        let call = self.shared.call(&self.shared.scripts.pending);
        let (waiting, dead, oldest): (u64, u64, Option<i64>) = self.shared.run(&call)?;
        Ok(Pending::new(waiting, oldest.map(unix_millis::time), dead))
    }

    fn stopped(&self, after: u64, limit: usize) -> Result<Vec<Entry>, OutboxError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut call = self.shared.call(&self.shared.scripts.stopped);
        let entries: Vec<(u64, Fields)> = self.shared.run(call.arg(after).arg(limit))?;
        Ok(entries.into_iter().map(|(id, fields)| entry(id, fields).0).collect())
    }

    fn requeue(&self, id: u64) -> Result<bool, OutboxError> {
        self.shared.change_stopped(&self.shared.scripts.requeue, id)
    }

    fn discard(&self, id: u64) -> Result<bool, OutboxError> {
        self.shared.change_stopped(&self.shared.scripts.discard, id)
    }

    fn wait(&self, limit: Duration) {
        self.shared.wake_up.wait(limit.min(POLL));
    }
}

/// The state after a settlement, as the scripts know it.
fn word(settled: &AfterSettlement<'_>) -> &'static str {
    settled.state.map_or("delivered", EntryState::as_str)
}

impl fmt::Debug for RedisOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOutbox")
            .field("server", &self.shared.server)
            .field("destination", &self.shared.destination)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}
