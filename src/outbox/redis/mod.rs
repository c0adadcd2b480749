//! Messages in Redis, for several machines. This folder alone names `redis`.

mod lineage;
mod scripts;
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use redis::sentinel::SentinelClient;
use redis::{Client, Connection, FromRedisValue, IntoConnectionInfo, RedisError, Script, ScriptInvocation};

use super::entry::AfterSettlement;
use super::identity::unique;
use super::lane::{LaneChoice, LaneKey, by_patient};
use super::local_claim::LocalClaims;
use super::wake_up::WakeUp;
use super::{Claim, Entry, EntryState, Outbox, OutboxError, Pending, PushOptions, Settlement, Summary, unix_millis};
use crate::deadline::Deadline;
use crate::locks::lock;
use lineage::{Lineage, Shown};
use scripts::Scripts;
use server::{Borrowed, Server, Source, is_of_connection, says};

/// The limit of a call, if nothing else is said.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long a claim lasts, if nothing else is said: longer than the limit of an exchange.
const LEASE: Duration = Duration::from_secs(45);

/// What all keys begin with, if nothing else is said.
const PREFIX: &str = "mllp-outbox";

/// How long the head that was claimed along with a settlement may wait before it is sent. After
/// that it is claimed anew, since somebody may have held it.
const FRESH: Duration = Duration::from_millis(2);

/// How long ending a wait may take, and giving a claim up.
const SHORT: Duration = Duration::from_millis(100);

/// How long to wait where the server cannot be asked to wait.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a key under which a message was pushed is known, in seconds.
const KEYS_KNOWN: u64 = 7 * 24 * 60 * 60;

/// The largest message in bytes: Redis takes no larger value.
const LARGEST: usize = 512 * 1024 * 1024;

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
/// Each destination has keys of its own, of the form `mllp-outbox:{ehr}:…`, with its name in the
/// braces. Many handles
/// may push; one at a time may claim, by a lease that it renews with each claim. A holder that has
/// ended, or is cut off, loses the lease when its time is over, and another takes over, with a
/// higher fencing token: what the former holder settles after that is refused
/// ([`OutboxError::ClaimLost`]), as is what it settles after a replica took over that gave the
/// entry's number to another message, and since [`Claim::until`] is the limit of its exchange, it
/// does not send any more either. With [lanes](RedisOutbox::lanes) each claim has a lease of its
/// own, and several handles share the lanes. The holder's clock for this is its machine's monotonic
/// one, the server's is the time of day there: where that is set forward by more than a lease, or a
/// machine is suspended as a whole, two may send for a moment.
///
/// A call over a connection that turns out to be broken is repeated once over a new one; a push
/// without the message being stored twice. If that fails too, the message may be stored or not; to
/// push it again is safe where the receiver recognises a repeated control ID, or under a
/// [key](super::PushOptions::key). Keys are known for 7 days.
///
/// *A server that comes back* empty, older, or as a replica without the last messages is noticed
/// when it is connected to, by what this handle has pushed and seen: pushing, claiming and looking
/// end in [`OutboxError::StorageReplaced`] until somebody says to [go on](Outbox::go_on), or the
/// outbox is opened again. A push that has waited for replicas
/// ([`wait_for_replicas`](RedisOutbox::wait_for_replicas)) is not lost with the primary.
///
/// After a delivery the next message is claimed in the same step, and sent at once or claimed anew:
/// what an operator asks for in between (2 milliseconds at most) comes as if it was being sent
/// already.
///
/// The server is a single primary, with replicas as one likes; not a cluster. Delivered entries
/// are removed. Clones share up to 16 connections, so that threads that push do not wait for each
/// other, and the claim. While nothing waits, a forwarder asks for less than two commands a second.
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
    timeout: Duration,
    replicas: u32,
    lane_key: Option<LaneKey>,
    lanes: usize,
}

struct RedisShared {
    server: Server,
    prefix: String,
    /// The beginning of all keys of the destination.
    base: String,
    destination: Arc<str>,
    /// The name of this handle, different from that of all others.
    holder: String,
    scripts: Scripts,
    lineage: Lineage,
    holding: Mutex<Holding>,
    /// The connection that waits for messages.
    waiter: Mutex<Option<Connection>>,
    is_waiting: AtomicBool,
    wake_up: WakeUp,
    /// Whether the destinations were found to give lanes by the patient.
    goes_by_patient: AtomicBool,
}

/// This handle's part in the holding.
#[derive(Default)]
struct Holding {
    local_claims: LocalClaims,
    /// The token of each claim and which of this handle's it is, by its entry.
    tokens: BTreeMap<u64, (u64, usize)>,
    /// Which of the claims threads are about to make.
    claiming: BTreeSet<usize>,
    /// When something that has a lane may be there to claim.
    next_look: Option<Deadline>,
    /// What was claimed along with the last settlement, and when.
    next: Option<(Instant, ClaimReply)>,
    /// When the lease of another holder ends.
    taken_until: Option<Deadline>,
}

/// An entry without its message as the scripts return it: control ID, time, state, attempts,
/// refusals, unknown results, last failure, identity.
type Fields = (
    Option<String>,
    Option<i64>,
    Option<String>,
    Option<u32>,
    Option<u32>,
    Option<u32>,
    Option<String>,
    Option<String>,
);

/// A claim as the scripts return it: the fencing token, empty if another holds the lease; the
/// number of the head, or the milliseconds that the other's lease lasts; the head; its message;
/// where entries have lanes, the milliseconds after which there may be something to claim, negative
/// if that is not known.
type ClaimReply = (String, u64, Option<Fields>, Option<Vec<u8>>, Option<i64>);

impl RedisOutbox {
    /// The outbox of a destination on a server, such as `redis://host:6379/0`, or `rediss://` for
    /// TLS (with the feature `tls`). Connects, to learn early that the server is there.
    ///
    /// # Errors
    ///
    /// [`OutboxError::Config`] if the address is not one of Redis, if the server is a node of a
    /// cluster, or if it throws keys away when its memory is full (`maxmemory` is set, and
    /// `maxmemory-policy` is not `noeviction`); [`OutboxError::Storage`] if the server cannot be
    /// reached. A server that has no append-only file, or does not let this program look (`INFO`),
    /// is warned about in the log.
    pub fn open(url: &str, destination: &str) -> Result<RedisOutbox, OutboxError> {
        // The library's text may repeat the address, with its password.
        let no_address = |_| OutboxError::Config("not a Redis URL, or `rediss://` without the feature `tls`".into());
        let info = url.into_connection_info().map_err(no_address)?;
        // The server need not know by which library it is asked.
        let settings = info.redis_settings().clone().set_skip_set_lib_name();
        let client = Client::open(info.set_redis_settings(settings)).map_err(no_address)?;
        RedisOutbox::with_client(client, destination)
    }

    /// The same over a client of your own making, for TLS with a private certificate authority for
    /// instance. Its type is that of the crate `redis`, version 1.
    ///
    /// # Errors
    ///
    /// As [`open`](RedisOutbox::open).
    pub fn with_client(client: Client, destination: &str) -> Result<RedisOutbox, OutboxError> {
        RedisOutbox::with_key_prefix(client, PREFIX, destination)
    }

    /// The same with keys that begin with another prefix than `mllp-outbox`, for a server that
    /// several programs share: what is stored under one prefix is not seen under another.
    ///
    /// # Errors
    ///
    /// As [`open`](RedisOutbox::open).
    pub fn with_key_prefix(client: Client, prefix: &str, destination: &str) -> Result<RedisOutbox, OutboxError> {
        RedisOutbox::of(Source::Client(Box::new(client)), prefix, destination)
    }

    /// The same on the primary that sentinels name, asked anew for each connection: after a
    /// fail-over the next call goes to the new primary. Build the client for
    /// `SentinelServerType::Master`; how long asking a sentinel may take is set there.
    ///
    /// # Errors
    ///
    /// As [`open`](RedisOutbox::open).
    pub fn with_sentinel(client: SentinelClient, destination: &str) -> Result<RedisOutbox, OutboxError> {
        RedisOutbox::of(Source::Sentinel(Box::new(Mutex::new(client))), PREFIX, destination)
    }

    fn of(source: Source, prefix: &str, destination: &str) -> Result<RedisOutbox, OutboxError> {
        let shared = RedisShared::new(source, prefix, destination)?;
        let (lease, timeout, replicas, lane_key, lanes) = (LEASE, TIMEOUT, 0, None, 1);
        let outbox = RedisOutbox { shared: Arc::new(shared), lease, timeout, replicas, lane_key, lanes };
        let deadline = outbox.deadline();
        let server = &outbox.shared.server;
        let mut line = server.borrow(&deadline)?;
        let mut connection = server.connect(&deadline)?;
        server.check(&mut connection, &deadline)?;
        outbox.shared.greet(&mut connection, &deadline)?;
        line.line().connection = Some(connection);
        drop(line);
        Ok(outbox)
    }

    /// How long a claim of this handle lasts unless it claims again: after this time another handle
    /// takes over from one that has ended. Nine tenths of it have to be more than the limit of an
    /// exchange, with that of the application's acknowledgment where it has one of its own; a
    /// forwarder does not start otherwise. Defaults to 45 seconds; less than a millisecond counts
    /// as one.
    pub fn lease(self, time: Duration) -> RedisOutbox {
        RedisOutbox { lease: time, ..self }
    }

    /// The limit of each call of this handle. Opening has its own, of 5 seconds, which is also what
    /// this defaults to.
    pub fn timeout(self, limit: Duration) -> RedisOutbox {
        RedisOutbox { timeout: limit, ..self }
    }

    /// A push of this handle returns when so many replicas have the message (Redis's `WAIT`).
    /// Where they do not have it within the limit of the call, it is [`OutboxError::Storage`], and
    /// the message is stored on the primary: to push it again ought to be under the same
    /// [key](super::PushOptions::key). Defaults to 0.
    pub fn wait_for_replicas(self, count: u32) -> RedisOutbox {
        RedisOutbox { replicas: count, ..self }
    }

    /// The rule that gives the messages of this destination their lanes. The server stores the
    /// rule's name, and it applies to every program. A handle that is opened without a rule
    /// follows [`LaneKey::Destination`] and [`LaneKey::PatientId`] by itself; it cannot follow
    /// one from [`LaneKey::by`], so that its pushes fail. Defaults to the rule that the server
    /// has, `Destination` for a new destination.
    ///
    /// # Errors
    ///
    /// [`OutboxError::Config`] if messages wait, or are held, that were given their lanes by
    /// another rule: have them delivered first. Messages that were pushed before the
    /// destination had lanes do not count; they are sent first. Any failure of the server.
    pub fn lane_key(self, rule: LaneKey) -> Result<RedisOutbox, OutboxError> {
        let shared = &*self.shared;
        let known: String = shared.run(&self.deadline(), &shared.scripts.rule, Check::Lineage, |call| {
            call.arg(&*rule.name());
        })?;
        if known != rule.name() {
            let (server, destination) = (shared.server.shown(), &shared.destination);
            return Err(OutboxError::Config(format!(
                "the lane rule of {destination:?} on Redis at {server} cannot change from {known:?} to {:?} while messages wait \
                 or are held that were given their lanes by it: open it without lane_key, deliver or discard them, then \
                 open it with the new rule",
                rule.name()
            )));
        }
        Ok(RedisOutbox { lane_key: Some(rule), ..self })
    }

    /// The most entries of the destination that may be claimed at the same time, over all handles:
    /// open all with the same number, since one with a smaller number gets no claim while as many
    /// are claimed by others. Defaults to 1; 0 is treated as 1.
    pub fn lanes(self, count: usize) -> RedisOutbox {
        RedisOutbox { lanes: count.max(1), ..self }
    }

    /// Pushes a message to several destinations in one step: to all, or, where it fails, to none.
    /// Returns the numbers in their order. Destinations that are not there yet are made, and a name
    /// that stands twice gets two entries.
    ///
    /// # Errors
    ///
    /// As [`push`](Outbox::push).
    pub fn push_to(&self, destinations: &[&str], message: &[u8]) -> Result<Vec<u64>, OutboxError> {
        self.push_by_script(destinations, message, &PushOptions::new())
    }

    fn push_by_script(
        &self,
        destinations: &[&str],
        message: &[u8],
        options: &PushOptions<'_>,
    ) -> Result<Vec<u64>, OutboxError> {
        let shared = &*self.shared;
        let (control_id, now) = (Entry::control_id_within(LARGEST, message), unix_millis::now());
        let control_id = control_id.map_err(OutboxError::InvalidMessage)?;
        let new = destinations.iter().map(|name| Ok((*name, unique()?, unique()?)));
        let new = new.collect::<Result<Vec<_>, OutboxError>>()?;
        let LaneChoice { given, own } = LaneChoice::of(message, options.lane, self.lane_key.as_ref());
        let may_go_by_patient = given.is_none() && own.is_none();
        let (own_rule, own_lane) = own.unwrap_or_default();
        let goes_by_patient = may_go_by_patient && shared.goes_by_patient.load(Ordering::Relaxed);
        let mut patient = if goes_by_patient { by_patient(message) } else { String::new() };
        let deadline = self.deadline();
        let mut line = shared.server.borrow(&deadline)?;
        let (pusher, push, known_push) = line.begin_push();
        let call = |(generation, highest): (String, u64), patient: &str| {
            let mut call = shared.scripts.push.key(&shared.base);
            for name in destinations {
                call.key(base(&shared.prefix, name));
            }
            call.arg(generation).arg(highest).arg(&pusher).arg(push).arg(known_push).arg(message).arg(&control_id);
            call.arg(now).arg(options.key.unwrap_or_default()).arg(KEYS_KNOWN).arg(shared.names_key());
            call.arg(given.as_deref().unwrap_or_default()).arg(&own_rule).arg(&own_lane).arg(patient);
            for (name, generation, identity) in &new {
                call.arg(*name).arg(generation).arg(identity);
            }
            call
        };
        let mut pushed = shared.run_on(&mut line, &deadline, Check::Lineage, |known| call(known, &patient));
        if may_go_by_patient && patient.is_empty() && matches!(pushed, Err(OutboxError::Config(_))) {
            // The destination may have the rule that goes by the patient.
            patient = by_patient(message);
            pushed = shared.run_on(&mut line, &deadline, Check::Lineage, |known| call(known, &patient));
            shared.goes_by_patient.store(pushed.is_ok(), Ordering::Relaxed);
        }
        let ids: Vec<u64> = pushed?;
        line.push_is_answered();
        let own = destinations.iter().zip(&ids).filter(|(name, _)| ***name == *shared.destination);
        own.for_each(|(_, id)| shared.lineage.has_seen(*id));
        self.replicate(&mut line, &deadline)?;
        Ok(ids)
    }

    /// The names of all destinations on this server, under this prefix, in no order.
    ///
    /// # Errors
    ///
    /// If the server cannot be asked.
    pub fn destinations(&self) -> Result<Vec<String>, OutboxError> {
        let shared = &*self.shared;
        let deadline = self.deadline();
        let mut line = shared.server.borrow(&deadline)?;
        shared.connected(&mut line, &deadline, Check::Lineage)?;
        let Some(connection) = &mut line.line().connection else { return Ok(Vec::new()) };
        let names = redis::cmd("SMEMBERS").arg(shared.names_key()).query(connection);
        names.map_err(|error| shared.server.failure(error, &deadline))
    }

    /// Removes this destination: `false` if it has entries that wait, are held or are dead, and
    /// then nothing is removed. To its handles it is [`OutboxError::StorageReplaced`] from then on.
    ///
    /// # Errors
    ///
    /// If the server cannot be asked.
    pub fn remove_destination(&self) -> Result<bool, OutboxError> {
        let shared = &*self.shared;
        let removed: i64 = shared.run(&self.deadline(), &shared.scripts.remove, Check::Lineage, |call| {
            call.arg(shared.names_key()).arg(&*shared.destination);
        })?;
        Ok(removed > 0)
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.timeout)
    }

    fn lease_in_millis(&self) -> u64 {
        u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX).clamp(1, u64::from(u32::MAX))
    }

    /// For how long this handle may send after it has claimed: a tenth less than the lease, since
    /// clocks do not go equally fast.
    fn lasts(&self) -> Duration {
        Duration::from_millis(self.lease_in_millis()) * 9 / 10
    }

    /// Waits until as many replicas have the last push as are asked for.
    fn replicate(&self, line: &mut Borrowed<'_>, deadline: &Deadline) -> Result<(), OutboxError> {
        let server = &self.shared.server;
        if self.replicas == 0 {
            return Ok(());
        }
        let left = deadline.remaining().unwrap_or_default();
        // The answer is to come within the limit, too, and the server counts in tenths of a second.
        let wait = left.saturating_sub((left / 2).min(Duration::from_millis(250)));
        let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
        let line = line.line();
        let Some(connection) = &mut line.connection else { return Ok(()) };
        server.limit(connection, deadline)?;
        let have: Result<u32, RedisError> = redis::cmd("WAIT").arg(self.replicas).arg(wait).query(connection);
        let why = match have {
            Ok(have) if have >= self.replicas => return Ok(()),
            Ok(have) => format!("{have} of {} replicas have it", self.replicas),
            Err(error) => {
                line.connection = None;
                let failure = server.failure(error, deadline);
                format!("it is not known whether replicas have it ({failure})")
            }
        };
        let what = format!(
            "the message is stored on Redis at {}, but {why} after {wait} ms; pushed again without a key it is stored twice",
            server.shown()
        );
        Err(OutboxError::Storage { what, source: None })
    }

    /// Does to an entry what an operator has asked for.
    fn order(&self, order: &str, id: u64) -> Result<bool, OutboxError> {
        let shared = &*self.shared;
        let changed: i64 = shared.run(&self.deadline(), &shared.scripts.order, Check::Lineage, |call| {
            call.arg(order).arg(id);
        })?;
        // It may be about what was claimed along with the last settlement.
        shared.holding().next = None;
        shared.wake_up.notify();
        match id {
            _ if changed == 0 => {}
            0 => log::info!("{}: {order}", shared.destination),
            id => log::info!("{}: {order} entry {id}", shared.destination),
        }
        Ok(changed > 0)
    }

    fn entries(&self, which: &str, after: u64, limit: usize, whole: bool) -> Result<Vec<ListedFields>, OutboxError> {
        let shared = &*self.shared;
        // Lua has no whole numbers of 64 bits.
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        shared.run(&self.deadline(), &shared.scripts.list, Check::Lineage, |call| {
            call.arg(which).arg(after).arg(limit).arg(u8::from(whole));
        })
    }

    /// Changes the entry of a claim, unless another has taken over since. After what is delivered
    /// the next is claimed.
    fn change(&self, claim: &Claim, settled: &AfterSettlement<'_>) -> Result<Option<ClaimReply>, OutboxError> {
        let shared = &*self.shared;
        let (state, lease) = match settled.state {
            None => ("delivered", self.lease_in_millis().to_string()),
            Some(state) => (state.as_str(), String::new()),
        };
        let (changed, next): (i64, redis::Value) =
            shared.run(&self.deadline(), &shared.scripts.settle, Check::Nothing, |call| {
                call.arg(claim.token).arg(claim.entry.id).arg(state).arg(settled.attempts).arg(settled.refusals);
                call.arg(settled.unknowns).arg(settled.last_failure.unwrap_or_default());
                call.arg(settled.rest.map_or(String::new(), |rest| rest.as_millis().to_string()))
                    .arg(&shared.holder)
                    .arg(&claim.identity)
                    .arg(&lease);
            })?;
        // A next one that cannot be read is for its own claim to report.
        if changed == 0 { Err(OutboxError::ClaimLost) } else { Ok(ClaimReply::from_redis_value(next).ok()) }
    }

    /// Changes the entry of a claim as [`change`](RedisOutbox::change) does, if this handle still
    /// holds the claim.
    fn change_claimed(&self, claim: &Claim, settled: &AfterSettlement<'_>) -> Result<Option<ClaimReply>, OutboxError> {
        if !self.shared.holding().local_claims.is(claim) {
            return Err(OutboxError::ClaimLost);
        }
        let changed = self.change(claim, settled);
        if let Err(OutboxError::ClaimLost) = changed {
            // Another has it, it was discarded, or it was settled by a call whose answer was lost.
            self.shared.holding().end_if(claim, None);
        }
        changed
    }
}

/// An entry as it is listed: its number, the size of its message, its fields, its message if that
/// was asked for.
type ListedFields = (u64, u64, Fields, Option<Vec<u8>>);

/// What a script is to compare before it does anything.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    /// Whether the server is the one that this handle knows.
    Lineage,
    /// Nothing: an entry is known by its identity.
    Nothing,
}

/// The answer of a script that was not as it has to be.
fn unexpected() -> RedisError {
    (redis::ErrorKind::UnexpectedReturnType, "not an answer of this version").into()
}

fn base(prefix: &str, destination: &str) -> String {
    format!("{prefix}:{{{destination}}}")
}

impl RedisShared {
    fn new(source: Source, prefix: &str, destination: &str) -> Result<RedisShared, OutboxError> {
        let (lineage, holding, waiter, is_waiting, wake_up, goes_by_patient) = Default::default();
        Ok(RedisShared {
            server: Server::new(source),
            prefix: prefix.to_owned(),
            base: base(prefix, destination),
            destination: destination.into(),
            holder: unique()?,
            scripts: Scripts::new(),
            lineage,
            holding,
            waiter,
            is_waiting,
            wake_up,
            goes_by_patient,
        })
    }

    fn holding(&self) -> MutexGuard<'_, Holding> {
        lock(&self.holding)
    }

    fn shown(&self) -> Shown<'_> {
        Shown { server: self.server.shown(), destination: &self.destination }
    }

    /// The key of the names of all destinations.
    fn names_key(&self) -> String {
        format!("{}:destinations", self.prefix)
    }

    /// Runs a script on a line of its own.
    fn run<T: FromRedisValue>(
        &self,
        deadline: &Deadline,
        script: &Script,
        check: Check,
        arguments: impl Fn(&mut ScriptInvocation<'_>),
    ) -> Result<T, OutboxError> {
        let mut line = self.server.borrow(deadline)?;
        self.run_on(&mut line, deadline, check, |(generation, highest)| {
            let mut call = script.key(&self.base);
            call.arg(generation).arg(highest);
            arguments(&mut call);
            call
        })
    }

    /// Runs a script, once more over a new connection if the one at hand fails: every script may be
    /// run twice. The call is made for the generation and the number that are to be compared.
    fn run_on<'c, T: FromRedisValue>(
        &self,
        line: &mut Borrowed<'_>,
        deadline: &Deadline,
        check: Check,
        call: impl Fn((String, u64)) -> ScriptInvocation<'c>,
    ) -> Result<T, OutboxError> {
        let mut was_there = line.line().connection.is_some();
        loop {
            self.connected(line, deadline, check)?;
            let known = match check {
                Check::Lineage => self.lineage.known()?,
                Check::Nothing => Default::default(),
            };
            let line = line.line();
            let Some(mut connection) = line.connection.take() else { continue };
            self.server.limit(&connection, deadline)?;
            match call(known).invoke(&mut connection) {
                Err(error) if is_of_connection(&error) => {
                    if !std::mem::take(&mut was_there) || deadline.remaining().is_none() {
                        return Err(self.server.failure(error, deadline));
                    }
                }
                result => {
                    line.connection = Some(connection);
                    return result.map_err(|error| {
                        if says(&error, "REPLACED") {
                            self.lineage.break_off(self.shown())
                        } else if says(&error, "RULE") {
                            OutboxError::Config(format!(
                                "the message is not stored: a destination that it is for, on Redis at {}, gives lanes by a \
                                 rule that this handle was not opened with; open it with that rule (lane_key), and push again",
                                self.server.shown()
                            ))
                        } else {
                            self.server.failure(error, deadline)
                        }
                    });
                }
            }
        }
    }

    /// Sees to it that a line has its connection, to a server that is the one that was written to.
    fn connected(&self, line: &mut Borrowed<'_>, deadline: &Deadline, check: Check) -> Result<(), OutboxError> {
        let passes = |compared: Result<(), OutboxError>| match compared {
            Err(OutboxError::StorageReplaced { .. }) if check == Check::Nothing => Ok(()),
            compared => compared,
        };
        passes(self.lineage.known().map(drop))?;
        let line = line.line();
        if line.connection.is_none() {
            let mut connection = self.server.connect(deadline)?;
            passes(self.greet(&mut connection, deadline))?;
            line.connection = Some(connection);
        }
        Ok(())
    }

    /// Compares the server on a new connection with the one that is known.
    fn greet(&self, connection: &mut Connection, deadline: &Deadline) -> Result<(), OutboxError> {
        let (_, highest) = self.lineage.known()?;
        let mut call = self.scripts.greet.key(&self.base);
        call.arg("").arg(0).arg(unique()?).arg(self.names_key()).arg(&*self.destination);
        for (pusher, push) in self.server.answered() {
            call.arg(pusher).arg(push);
        }
        let said = call.invoke(connection).map_err(|error| self.server.failure(error, deadline))?;
        self.lineage.compare(highest, said, self.shown())
    }

    fn entry(&self, id: u64, fields: Fields, message: Option<Vec<u8>>) -> (Entry, String) {
        let (control_id, pushed_at, state, attempts, refusals, unknowns, last_failure, identity) = fields;
        let entry = Entry {
            id,
            destination: Arc::clone(&self.destination),
            control_id: control_id.unwrap_or_default(),
            message: message.unwrap_or_default(),
            pushed_at: unix_millis::time(pushed_at.unwrap_or(0)),
            // A state that this version never wrote: hold the entry, never send it without being asked to.
            state: state.map_or(EntryState::Waiting, |word| EntryState::from_word(&word).unwrap_or(EntryState::Held)),
            attempts: attempts.unwrap_or(0),
            refusals: refusals.unwrap_or(0),
            unknowns: unknowns.unwrap_or(0),
            last_failure,
        };
        (entry, identity.unwrap_or_default())
    }

    /// Waits at the server for a bell, over a connection of its own.
    fn wait_at_server(&self, bell: &str, limit: Duration, waiter: &mut Option<Connection>) -> Result<(), OutboxError> {
        let deadline = Deadline::after(limit);
        let mut connection = match waiter.take() {
            Some(connection) => connection,
            None => self.server.connect(&deadline)?,
        };
        let left = deadline.remaining().unwrap_or_default().max(Duration::from_millis(10));
        self.server.limit(&connection, &Deadline::after(left + SHORT))?;
        let mut wait = redis::cmd("BLPOP");
        wait.arg(format!("{}{bell}", self.base)).arg(self.own_bell()).arg(left.as_secs_f64());
        let rung: Result<redis::Value, RedisError> = wait.query(&mut connection);
        rung.map_err(|error| self.server.failure(error, &deadline))?;
        *waiter = Some(connection);
        Ok(())
    }

    /// The bell that ends a wait of this handle.
    fn own_bell(&self) -> String {
        format!("{}:wake:{}", self.base, self.holder)
    }
}

impl Outbox for RedisOutbox {
    fn destination(&self) -> &str {
        &self.shared.destination
    }

    fn push(&self, message: &[u8]) -> Result<u64, OutboxError> {
        self.push_with(message, &PushOptions::new())
    }

    fn push_with(&self, message: &[u8], options: &PushOptions<'_>) -> Result<u64, OutboxError> {
        let ids = self.push_by_script(&[&*self.shared.destination], message, options)?;
        ids.first().copied().ok_or_else(|| self.shared.server.failure(unexpected(), &self.deadline()))
    }

    fn claim(&self) -> Result<Option<Claim>, OutboxError> {
        let shared = &*self.shared;
        shared.lineage.known()?;
        let (resting, next, serial, which) = {
            let mut holding = shared.holding();
            let Some(which) = (0..self.lanes).find(|which| !holding.is_in_use(*which)) else { return Ok(None) };
            holding.claiming.insert(which);
            let next = holding.next.take().filter(|(begun, _)| begun.elapsed() < FRESH);
            (holding.local_claims.resting(), next, holding.local_claims.serial(), which)
        };
        let _claiming = Claiming(shared, which);
        let (begun, reply) = match next {
            Some(next) => next,
            None => {
                let begun = Instant::now();
                let reply: ClaimReply =
                    shared.run(&self.deadline(), &shared.scripts.claim, Check::Lineage, |call| {
                        call.arg(&shared.holder).arg(self.lease_in_millis());
                        // A message that rests is not sent over again and again.
                        call.arg(resting.map_or(String::new(), |id| id.to_string())).arg(self.lanes).arg(which);
                    })?;
                (begun, reply)
            }
        };
        let (token, id, fields, message, in_lanes) = reply;
        let mut holding = shared.holding();
        holding.taken_until = token.is_empty().then(|| Deadline::after(Duration::from_millis(id)));
        let wait = in_lanes.and_then(|wait| u64::try_from(wait).ok());
        holding.next_look = wait.map(|wait| Deadline::after(Duration::from_millis(wait)));
        let (Some(fields), Ok(token)) = (fields, token.parse()) else { return Ok(None) };
        let has_lane = in_lanes.is_some();
        // Without lanes the head may have been claimed by another thread of this handle, and be settled.
        if !has_lane && (holding.local_claims.serial() != serial || holding.local_claims.count() > 0) {
            return Ok(None);
        }
        let is_whole = message.is_some();
        let (entry, identity) = shared.entry(id, fields, message);
        shared.lineage.has_seen(id);
        let until = Some(begun + self.lasts());
        let is_alone = !has_lane || self.lanes == 1;
        let claim = Claim { entry, until, token, is_alone, identity, serial: 0 };
        match claim.entry.state {
            EntryState::Waiting if is_whole => {
                let serial = holding.local_claims.begin(id);
                holding.tokens.insert(id, (token, which));
                Ok(Some(Claim { serial, ..claim }))
            }
            EntryState::Waiting => {
                // Here nobody can mend it, and those behind it are to go on.
                drop(holding);
                let Entry { control_id, attempts, refusals, unknowns, .. } = &claim.entry;
                let why = format!("the stored message {control_id:?} (number {id}) is gone");
                let (attempts, refusals, unknowns) = (*attempts, *refusals, *unknowns);
                let (state, last_failure) = (Some(EntryState::Dead), Some(why.as_str()));
                let buried = AfterSettlement { state, attempts, refusals, unknowns, last_failure, rest: None };
                self.stop(claim, &buried)
            }
            EntryState::Sending => {
                drop(holding);
                let held = claim.entry.orphaned();
                self.stop(claim, &held)
            }
            EntryState::Held | EntryState::Dead => Ok(None),
        }
    }

    fn begin(&self, claim: &Claim) -> Result<(), OutboxError> {
        let Entry { attempts, refusals, unknowns, ref last_failure, .. } = claim.entry;
        let (state, last_failure) = (Some(EntryState::Sending), last_failure.as_deref());
        let begun = AfterSettlement { state, attempts, refusals, unknowns, last_failure, rest: None };
        self.change_claimed(claim, &begun).map(drop)
    }

    fn settle(&self, claim: &Claim, outcome: Settlement<'_>) -> Result<(), OutboxError> {
        let settled = claim.entry.settled(outcome, false);
        let begun = Instant::now();
        let next = self.change_claimed(claim, &settled)?;
        let mut holding = self.shared.holding();
        holding.end_if(claim, settled.rest);
        // Where nothing waited, something may by now.
        holding.next = next.filter(|(_, _, head, ..)| head.is_some()).map(|next| (begun, next));
        Ok(())
    }

    fn release(&self) {
        let shared = &*self.shared;
        let tokens = {
            let mut holding = shared.holding();
            holding.local_claims.end_all();
            (holding.next, holding.taken_until) = (None, None);
            std::mem::take(&mut holding.tokens)
        };
        // A server that cannot be reached takes the leases back by itself.
        let _: Result<i64, OutboxError> =
            shared.run(&Deadline::after(SHORT), &shared.scripts.release, Check::Nothing, |call| {
                call.arg(&shared.holder);
                for (id, (token, _)) in &tokens {
                    call.arg(id).arg(token);
                }
            });
        shared.wake_up.notify();
    }

    fn pending(&self) -> Result<Pending, OutboxError> {
        let shared = &*self.shared;
        let (waiting, held, dead, paused, blocked, oldest): (u64, u64, u64, i64, u64, Option<i64>) =
            shared.run(&self.deadline(), &shared.scripts.pending, Check::Lineage, |_| {})?;
        let pending = Pending::new(waiting, oldest.map(unix_millis::time), dead);
        Ok(Pending { held, blocked, paused: paused > 0, ..pending })
    }

    fn stopped(&self, after: u64, limit: usize) -> Result<Vec<Entry>, OutboxError> {
        let entries = self.entries("stopped", after, limit, true)?.into_iter();
        Ok(entries.map(|(id, _, fields, message)| self.shared.entry(id, fields, message).0).collect())
    }

    fn requeue(&self, id: u64) -> Result<bool, OutboxError> {
        self.order("requeue", id)
    }

    fn discard(&self, id: u64) -> Result<bool, OutboxError> {
        self.order("discard", id)
    }

    /// Where the server can be asked to wait, it is; otherwise this waits here.
    fn wait(&self, limit: Duration) {
        let shared = &*self.shared;
        let mut waiter = match shared.waiter.try_lock() {
            Ok(waiter) => waiter,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                shared.wake_up.wait(limit.min(PAUSE));
                return;
            }
        };
        let (bell, until) = {
            let mut holding = shared.holding();
            match holding.taken_until {
                Some(until) => (":free", Some(until.remaining().unwrap_or(SHORT))),
                None => (":bell", holding.next_look.take().map(|next| next.remaining().unwrap_or_default())),
            }
        };
        let limit = until.unwrap_or(limit).min(limit);
        shared.is_waiting.store(true, Ordering::SeqCst);
        if !shared.wake_up.wait(Duration::ZERO) {
            let begun = Instant::now();
            if shared.wait_at_server(bell, limit, &mut waiter).is_err() {
                shared.wake_up.wait(limit.min(PAUSE).saturating_sub(begun.elapsed()));
            }
        }
        shared.is_waiting.store(false, Ordering::SeqCst);
    }

    fn wake(&self) -> bool {
        let shared = &*self.shared;
        shared.wake_up.notify();
        if shared.is_waiting.load(Ordering::SeqCst) {
            let deadline = Deadline::after(SHORT);
            let ring = |anew: bool| {
                let mut line = shared.server.borrow(&deadline)?;
                let at_hand = line.line().connection.take().filter(|_| !anew);
                let mut connection = at_hand.map_or_else(|| shared.server.connect(&deadline), Ok)?;
                shared.server.limit(&connection, &deadline)?;
                let mut ring = redis::pipe();
                ring.rpush(shared.own_bell(), 1).ignore().expire(shared.own_bell(), 60).ignore();
                ring.exec(&mut connection).map_err(|error| shared.server.failure(error, &deadline))
            };
            // Otherwise the wait ends by its own limit.
            let _ = ring(false).or_else(|_| ring(true));
        }
        true
    }

    fn claim_lasts(&self) -> Option<Duration> {
        Some(self.lasts())
    }

    fn lanes(&self) -> usize {
        self.lanes
    }

    fn list(&self, state: Option<EntryState>, after: u64, limit: usize) -> Result<Vec<Summary>, OutboxError> {
        let entries = self.entries(state.map_or("queue", EntryState::as_str), after, limit, false)?.into_iter();
        Ok(entries
            .map(|(id, size, fields, _)| Summary { size, ..self.shared.entry(id, fields, None).0.summary() })
            .collect())
    }

    fn show(&self, id: u64) -> Result<Option<Entry>, OutboxError> {
        let found = self.entries("one", id, 1, true)?.pop();
        Ok(found.map(|(id, _, fields, message)| self.shared.entry(id, fields, message).0))
    }

    fn hold(&self, id: u64) -> Result<bool, OutboxError> {
        self.order("hold", id)
    }

    fn unhold(&self, id: u64) -> Result<bool, OutboxError> {
        self.order("unhold", id)
    }

    fn try_now(&self) -> Result<(), OutboxError> {
        self.order("try_now", 0).map(drop)
    }

    fn set_paused(&self, paused: bool) -> Result<(), OutboxError> {
        self.order(if paused { "pause" } else { "resume" }, 0).map(drop)
    }

    fn go_on(&self) -> Result<(), OutboxError> {
        self.shared.server.forget();
        self.shared.lineage.forget();
        self.pending().map(drop)
    }
}

/// A thread that makes one of the claims, until it is dropped.
struct Claiming<'s>(&'s RedisShared, usize);

impl Drop for Claiming<'_> {
    fn drop(&mut self) {
        self.0.holding().claiming.remove(&self.1);
    }
}

impl Holding {
    /// Whether this one of the claims is made already, or about to be.
    fn is_in_use(&self, which: usize) -> bool {
        self.claiming.contains(&which) || self.tokens.values().any(|(_, in_use)| *in_use == which)
    }

    /// This claim has ended, if it is one; its entry is to rest for so long, if it is to be tried
    /// again.
    fn end_if(&mut self, claim: &Claim, rest: Option<Duration>) {
        if self.local_claims.is(claim) {
            self.tokens.remove(&claim.entry.id);
        }
        self.local_claims.end_if(claim, rest);
    }
}

impl RedisOutbox {
    /// Stops the head instead of handing it out, and says so.
    fn stop(&self, claim: Claim, settled: &AfterSettlement<'_>) -> Result<Option<Claim>, OutboxError> {
        self.change(&claim, settled)?;
        let mut entry = claim.entry;
        entry.apply(settled);
        Err(OutboxError::Stopped { entry: Box::new(entry.summary()) })
    }
}

impl fmt::Debug for RedisOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOutbox")
            .field("server", &self.shared.server.shown())
            .field("destination", &self.shared.destination)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}
