//! Every setting, its meaning and its default, once.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::client::Client;
use crate::connection::Connection;
use crate::deadline::Deadline;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind};
use crate::event::{Event, Monitor};
use crate::frame::Framing;
use crate::hl7::ack::AckMode;
use crate::hl7::charset::Charset;
use crate::net::{ShutdownHandle, SocketOptions, StreamOptions};
use crate::pool::{PoolOptions, Reconnect};
use crate::settings::{AckPolicy, Settings};
use crate::tls_config::TlsConfig;

/// The longest idle time that systems let TCP keepalive have.
const MAX_KEEPALIVE: Duration = Duration::from_secs(32_767);

/// The settings of a [`Client`] or a [`Connection`], from [`Client::builder`].
///
/// Nothing is checked before [`build`](ClientBuilder::build) or
/// [`connect`](ClientBuilder::connect).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use mllp_client::Client;
///
/// let client = Client::builder("mllp://127.0.0.1:2575").timeout(Duration::from_secs(10)).build()?;
/// # Ok::<(), mllp_client::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "settings do nothing until `build` or `connect`"]
pub struct ClientBuilder {
    endpoint: String,
    timeout: Duration,
    connect_timeout: Duration,
    socket: SocketOptions,
    tls: Option<TlsConfig>,
    max_ack_size: usize,
    max_message_size: usize,
    verify_control_id: bool,
    allow_repeated_control_ids: bool,
    charset: Result<Charset, Error>,
    framing: Framing,
    release2: bool,
    ack_policy: AckPolicy,
    pool: PoolOptions,
    monitor: Monitor,
}

impl ClientBuilder {
    pub(crate) fn new(endpoint: &str) -> Self {
        ClientBuilder {
            endpoint: endpoint.to_owned(),
            timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            socket: SocketOptions { keepalive: Some(Duration::from_secs(60)), local_address: None },
            tls: None,
            max_ack_size: 10 * 1024 * 1024,
            max_message_size: usize::MAX,
            verify_control_id: true,
            allow_repeated_control_ids: false,
            charset: Ok(Charset::UTF_8),
            framing: Framing::default(),
            release2: false,
            ack_policy: AckPolicy::default(),
            pool: PoolOptions {
                max_connections: 1,
                idle_timeout: None,
                max_connection_age: None,
                messages_per_connection: None,
                reconnect: Reconnect::default(),
            },
            monitor: Monitor::default(),
        }
    }

    /// The limit of a whole call: waiting for a connection, connecting, sending and waiting for the
    /// acknowledgment. A peer that sends byte by byte does not extend it. Only the system's
    /// name resolver, which knows no limit, can. Defaults to 30 seconds; zero is refused.
    pub fn timeout(self, limit: Duration) -> Self {
        ClientBuilder { timeout: limit, ..self }
    }

    /// The limit of one attempt to connect, over all addresses of the host, which share it, TLS
    /// handshake included. Within [`timeout`](ClientBuilder::timeout) in any case. Defaults to
    /// 10 seconds; zero is refused.
    pub fn connect_timeout(self, limit: Duration) -> Self {
        ClientBuilder { connect_timeout: limit, ..self }
    }

    /// The largest acknowledgment or reply, in bytes of content. Defaults to 10 485 760 (10 MiB);
    /// zero is refused.
    pub fn max_ack_size(self, bytes: usize) -> Self {
        ClientBuilder { max_ack_size: bytes, ..self }
    }

    /// The largest message that is sent, in bytes; a larger one is refused before anything is
    /// opened. Defaults to no limit; zero is refused.
    pub fn max_message_size(self, bytes: usize) -> Self {
        ClientBuilder { max_message_size: bytes, ..self }
    }

    /// Whether an acknowledgment must carry the message's control ID (MSA-2 against MSH-10). Switch
    /// it off only for a receiver that does not copy the ID, since nothing else ties an
    /// acknowledgment to its message, and late acknowledgments cannot be recognised then.
    /// Defaults to `true`.
    pub fn verify_control_id(self, verify: bool) -> Self {
        ClientBuilder { verify_control_id: verify, ..self }
    }

    /// Whether a message may go over a connection that has carried the same control ID (MSH-10)
    /// before. Set it only for senders that give every message the same control ID: a late or
    /// second acknowledgment of the earlier message is then taken for the later one's. If it is
    /// `false`, a [`Client`] sends such a message over another connection, and a [`Connection`]
    /// refuses it ([`MessageError::ControlIdInUse`](crate::MessageError::ControlIdInUse)). The
    /// same happens with `true` while the application acknowledgment of the earlier message may
    /// still come. A batch in which a control ID stands twice is always refused. Defaults to
    /// `false`.
    pub fn allow_repeated_control_ids(self, allow: bool) -> Self {
        ClientBuilder { allow_repeated_control_ids: allow, ..self }
    }

    /// Which acknowledgment ends an exchange. Defaults to [`AckMode::FromHeader`]: what MSH-15 and
    /// MSH-16 of each message ask for.
    pub fn ack_mode(mut self, mode: AckMode) -> Self {
        self.ack_policy.mode = mode;
        self
    }

    /// The limit of waiting for the application acknowledgment, counted from the commit accept (CA)
    /// before it, in place of what is left of [`timeout`](ClientBuilder::timeout): the time
    /// that an application takes to process a message is often another than the one a
    /// system takes to store it. Defaults to none, `timeout` covering both; zero is refused.
    pub fn application_timeout(mut self, limit: Duration) -> Self {
        self.ack_policy.application_timeout = Some(limit);
        self
    }

    /// The character set of what names none in its MSH-18: of messages sent by
    /// [`Client::send_text`], and of acknowledgments, whose views it is for. By its name in HL7
    /// Table 0211, or another that is in use, as `windows-1252`. Defaults to `UNICODE UTF-8`.
    #[cfg(feature = "charset")]
    #[cfg_attr(docsrs, doc(cfg(feature = "charset")))]
    pub fn charset(self, name: &str) -> Self {
        let refused = |error| Error::before_sending(ErrorKind::Config(format!("charset {name:?}: {error}")));
        ClientBuilder { charset: Charset::named(name).map_err(refused), ..self }
    }

    /// How frames look, for sites with habits of their own. Defaults to MLLP, strictly.
    pub fn framing(self, framing: Framing) -> Self {
        ClientBuilder { framing, ..self }
    }

    /// Whether to speak MLLP release 2 (HL7 version 3 transport specification, MLLP release 2):
    /// after each message the receiver's commit block is awaited (`0x0B 0x06 0x1C 0x0D`), then
    /// the HL7 acknowledgment, which is answered with a commit block in turn. A message that
    /// the receiver says it could not store (`0x0B 0x15 0x1C 0x0D`) is sent again after half a
    /// second, at most three times in all ([`ErrorKind::NotStored`]). Nothing is sent again
    /// where no commit block comes, since one does not say what it is for. Both ends
    /// have to speak it. Defaults to `false`.
    pub fn release2(self, on: bool) -> Self {
        ClientBuilder { release2: on, ..self }
    }

    /// The most connections that a [`Client`] has at a time, those that are being opened included.
    /// One is opened when a call finds none free; calls beyond that wait in order of arrival
    /// ([`Phase::Checkout`](crate::Phase::Checkout)). Messages keep their order only
    /// over one connection. Defaults to 1, since many receivers take one; zero is refused.
    pub fn max_connections(mut self, count: usize) -> Self {
        self.pool.max_connections = count;
        self
    }

    /// A connection of a [`Client`] that has been idle for so long is not used again but replaced,
    /// for receivers and firewalls that forget idle connections without a word. It is closed
    /// when a call finds it so, not before: there is no thread for it. Defaults to
    /// none, an idle connection being kept; zero is refused.
    pub fn idle_timeout(mut self, limit: Duration) -> Self {
        self.pool.idle_timeout = Some(limit);
        self
    }

    /// A connection of a [`Client`] that is so old is replaced between two messages, for receivers
    /// behind a load balancer, which spreads connections, not messages. Defaults to none; zero
    /// is refused.
    pub fn max_connection_age(mut self, limit: Duration) -> Self {
        self.pool.max_connection_age = Some(limit);
        self
    }

    /// How many messages a connection of a [`Client`] carries before it is closed and the next
    /// message gets another. Set `1` for receivers that close the connection after each answer:
    /// otherwise the next message may be written just as the receiver closes, and its delivery
    /// is [`Unknown`](crate::Delivery::Unknown). A batch counts as one message. Defaults to no
    /// limit; zero is refused.
    pub fn messages_per_connection(mut self, n: u32) -> Self {
        self.pool.messages_per_connection = Some(n);
        self
    }

    /// How a [`Client`] that has reached its receiver before tries to reach it again. Defaults to
    /// 10 attempts, at once and then after delays of 1 to 30 seconds, inside the limit of the
    /// call.
    pub fn reconnect(mut self, policy: Reconnect) -> Self {
        self.pool.reconnect = policy;
        self
    }

    /// Idle time after which TCP asks whether the peer is still there, so that a dead one is
    /// noticed and firewalls keep the connection in mind; `None` switches it off. Where the
    /// system lets that be set, a peer that leaves four questions in about the same time
    /// again without an answer is given up, and the connection replaced before the next message.
    /// Counted in whole seconds, rounded up. Defaults to 60 seconds; zero, and more than 32 767
    /// seconds, which systems cannot count, are refused.
    pub fn keepalive(mut self, idle: Option<Duration>) -> Self {
        let whole =
            |idle: Duration| Duration::from_secs(idle.as_secs().saturating_add(u64::from(idle.subsec_nanos() > 0)));
        self.socket.keepalive = idle.map(whole);
        self
    }

    /// The address of this machine to connect from; only addresses of its family are then tried.
    /// Defaults to the system's choice.
    pub fn local_address(mut self, address: IpAddr) -> Self {
        self.socket.local_address = Some(address);
        self
    }

    /// Whom to trust and who to be, on an `mllps://` endpoint. Defaults to the system's trust store
    /// and no client certificate.
    #[cfg(feature = "tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    pub fn tls(self, config: TlsConfig) -> Self {
        ClientBuilder { tls: Some(config), ..self }
    }

    /// Calls this for every [`Event`], on the thread on which it happens, in the middle of the
    /// call: keep it short, and do not send, connect or reconnect through the same client from
    /// it, which may wait for itself. A panic in it is caught and logged. Defaults to none.
    pub fn on_event(self, observer: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        ClientBuilder { monitor: Monitor::observed_by(observer), ..self }
    }

    /// Makes the client. Nothing is opened before its first message, or [`Client::connect`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] for an endpoint or a setting that cannot be.
    pub fn build(self) -> Result<Client, Error> {
        let (settings, options) = self.settings()?;
        Ok(Client::with_settings(settings, options))
    }

    /// Opens one connection, now, inside both limits and by one attempt.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`], [`ErrorKind::Connect`], [`ErrorKind::Tls`], or [`ErrorKind::Timeout`]
    /// with the phase in which it happened.
    pub fn connect(self) -> Result<Connection, Error> {
        let (settings, _) = self.settings()?;
        let deadline = Deadline::after(settings.timeout);
        let opened = Connection::open(&settings, &deadline, ShutdownHandle::new());
        match &opened {
            Ok(connection) => connection.emit_connected(),
            Err(error) => {
                let endpoint = &settings.endpoint;
                settings.monitor.emit(&Event::ConnectFailed { endpoint, error, attempt: 1, retry_in: None });
            }
        }
        settings.conclude(opened, None, &deadline)
    }

    fn settings(self) -> Result<(Arc<Settings>, PoolOptions), Error> {
        let refuse = |problem: String| Err(Error::before_sending(ErrorKind::Config(problem)));
        let endpoint: Endpoint = self.endpoint.parse()?;
        for (name, limit) in [
            ("timeout", Some(self.timeout)),
            ("connect_timeout", Some(self.connect_timeout)),
            ("application_timeout", self.ack_policy.application_timeout),
            ("keepalive", self.socket.keepalive),
            ("idle_timeout", self.pool.idle_timeout),
            ("max_connection_age", self.pool.max_connection_age),
        ] {
            if limit == Some(Duration::ZERO) {
                return refuse(format!("{name} must be longer than zero"));
            }
        }
        if self.pool.max_connections == 0 {
            return refuse("max_connections must be at least one".to_owned());
        }
        if self.pool.messages_per_connection == Some(0) {
            return refuse("messages_per_connection must be at least one".to_owned());
        }
        if self.socket.keepalive.is_some_and(|idle| idle > MAX_KEEPALIVE) {
            return refuse(format!("keepalive must be at most {MAX_KEEPALIVE:?}"));
        }
        for (name, size) in [("max_ack_size", self.max_ack_size), ("max_message_size", self.max_message_size)] {
            if size == 0 {
                return refuse(format!("{name} must be at least one byte"));
            }
        }
        let tls = match (endpoint.is_tls(), self.tls) {
            (true, config) => Some(TlsConfig::connector_or_default(config, endpoint.name())?),
            (false, Some(_)) => return refuse(format!("{endpoint}: TLS is set, and the scheme is not mllps")),
            (false, None) => None,
        };
        let settings = Settings {
            endpoint,
            stream: StreamOptions { connect_timeout: self.connect_timeout, socket: self.socket, tls },
            timeout: self.timeout,
            framing: self.framing,
            max_ack_size: self.max_ack_size,
            max_message_size: self.max_message_size,
            verify_control_id: self.verify_control_id,
            allow_repeated_control_ids: self.allow_repeated_control_ids,
            charset: self.charset?,
            release2: self.release2,
            ack_policy: self.ack_policy,
            monitor: self.monitor,
            has_warned: AtomicBool::new(false),
        };
        Ok((Arc::new(settings), self.pool))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults() {
        let (settings, pool) = Client::builder("mllp://127.0.0.1:2575").settings().unwrap();
        assert_eq!(settings.timeout, Duration::from_secs(30));
        assert_eq!(settings.stream.connect_timeout, Duration::from_secs(10));
        assert_eq!(settings.stream.socket.keepalive, Some(Duration::from_secs(60)));
        assert_eq!(settings.stream.socket.local_address, None);
        assert_eq!((settings.max_ack_size, settings.max_message_size), (10_485_760, usize::MAX));
        assert_eq!(settings.framing, Framing::default());
        assert!(settings.verify_control_id && !settings.allow_repeated_control_ids && !settings.release2);
        assert!(settings.stream.tls.is_none());
        assert_eq!((pool.max_connections, pool.idle_timeout, pool.max_connection_age), (1, None, None));
        assert_eq!(pool.messages_per_connection, None);
        assert_eq!(pool.reconnect, Reconnect::default());
        assert_eq!((settings.ack_policy.mode, settings.ack_policy.application_timeout), (AckMode::FromHeader, None));
    }

    #[test]
    fn keepalive_is_whole_seconds() {
        for (given, expected) in [
            (Some(Duration::from_millis(1)), Some(1)),
            (Some(Duration::from_millis(1_500)), Some(2)),
            (Some(Duration::from_secs(60)), Some(60)),
            (None, None),
        ] {
            let (set, _) = Client::builder("mllp://127.0.0.1:2575").keepalive(given).settings().unwrap();
            assert_eq!(set.stream.socket.keepalive, expected.map(Duration::from_secs), "{given:?}");
        }
    }
}
