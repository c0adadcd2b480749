//! Events for an observer, the counters, the log.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::endpoint::Endpoint;
use crate::error::{Delivery, Error};
use crate::hl7::ack::{Ack, AckCode};

/// Something that happened, for an observer set with [`on_event`](crate::ClientBuilder::on_event).
///
/// Events carry metadata, never content. In one exchange the order is `Connected` (where a
/// connection had to be opened), `Sent`, `Acknowledged`; a call that fails ends in one `Failed`.
/// They are emitted on the thread of the call, so that those of calls on different threads come at
/// the same time.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A connection was opened.
    #[non_exhaustive]
    Connected {
        /// The receiver.
        endpoint: &'a Endpoint,
        /// How long it took.
        elapsed: Duration,
    },
    /// A connection could not be opened.
    #[non_exhaustive]
    ConnectFailed {
        /// The receiver.
        endpoint: &'a Endpoint,
        /// Why.
        error: &'a Error,
        /// Which attempt this was, from 1. Calls that wait for the receiver at the same time share
        /// the attempts and their count; the one that made the attempt emits the event.
        attempt: u32,
        /// Delay until this call's next attempt, unless another call has reached the receiver by
        /// then; `None` if it makes no more.
        retry_in: Option<Duration>,
    },
    /// A whole frame has been handed to the operating system.
    #[non_exhaustive]
    Sent {
        /// The receiver.
        endpoint: &'a Endpoint,
        /// The control ID of the message (MSH-10; of a batch BHS-11 or FHS-11); `None` for a
        /// payload without one.
        control_id: Option<&'a str>,
        /// Its length on the wire, in bytes.
        bytes: usize,
    },
    /// An accepting acknowledgment ended an exchange. Replies to a raw
    /// [`exchange`](crate::Client::exchange) are not read, and there is no event of them.
    #[non_exhaustive]
    Acknowledged {
        /// The receiver.
        endpoint: &'a Endpoint,
        /// The control ID of the message (MSH-10).
        control_id: &'a str,
        /// Its code.
        code: AckCode,
        /// Time since the call began.
        elapsed: Duration,
    },
    /// An acknowledgment came for a message whose exchange on this connection had already ended:
    /// the application acknowledgment after the commit accept that ended it
    /// ([`AckMode::Commit`](crate::AckMode::Commit), or MSH-16 `NE`), a duplicate, or an AE after
    /// an AA. It is not taken for the message under way, and the connection stays open. It is
    /// emitted when the connection is read or probed next; if the connection is closed before,
    /// the acknowledgment is lost. The last 1 024 answered control IDs of a connection are
    /// recognised; none with [`verify_control_id(false)`](crate::ClientBuilder::verify_control_id),
    /// and no answered one with
    /// [`allow_repeated_control_ids(true)`](crate::ClientBuilder::allow_repeated_control_ids).
    #[non_exhaustive]
    LateAck {
        /// The receiver.
        endpoint: &'a Endpoint,
        /// The control ID of the message that it acknowledges (MSA-2).
        control_id: &'a str,
        /// Its code.
        code: AckCode,
        /// The acknowledgment.
        ack: &'a Ack,
    },
    /// A call failed or was refused. There is one such event for each call.
    #[non_exhaustive]
    Failed {
        /// The receiver.
        endpoint: &'a Endpoint,
        /// The error that the caller gets. [`Error::control_id`] names the message.
        error: &'a Error,
        /// Time since the call began.
        elapsed: Duration,
    },
    /// Bytes had come that belong to no exchange: a late or second answer. The connection is
    /// closed; a [`Client`](crate::Client) opens another for the next message.
    #[non_exhaustive]
    Surplus {
        /// The receiver.
        endpoint: &'a Endpoint,
        /// How many bytes, on the wire.
        stale: usize,
    },
    /// An open connection is open no more, whoever ended it.
    #[non_exhaustive]
    Disconnected {
        /// The receiver.
        endpoint: &'a Endpoint,
    },
}

/// Counts since a client was made, over all its clones. See
/// [`Client::stats`](crate::Client::stats).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections opened.
    pub connections_opened: u64,
    /// Frames that left whole.
    pub sent: u64,
    /// Messages accepted: calls that ended in AA or CA.
    pub acknowledged: u64,
    /// Messages refused: calls that ended in AE, AR, CE, CR or a negative commit block.
    pub refused: u64,
    /// Calls that failed in any other way.
    pub failed: u64,
}

type Observer = Box<dyn Fn(&Event<'_>) + Send + Sync>;

/// Where every event goes: to the counters, to the log, to the observer.
#[derive(Default)]
pub(crate) struct Monitor {
    observer: Option<Observer>,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    connections_opened: AtomicU64,
    sent: AtomicU64,
    acknowledged: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
}

impl Monitor {
    pub(crate) fn observed_by(observer: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        Monitor { observer: Some(Box::new(observer)), ..Monitor::default() }
    }

    pub(crate) fn stats(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            connections_opened: read(&self.counters.connections_opened),
            sent: read(&self.counters.sent),
            acknowledged: read(&self.counters.acknowledged),
            refused: read(&self.counters.refused),
            failed: read(&self.counters.failed),
        }
    }

    pub(crate) fn emit(&self, event: &Event<'_>) {
        self.counters.count(event);
        write_log(event);
        if let Some(observer) = &self.observer {
            // A panic of the observer must not change the result: the message has been sent.
            if catch_unwind(AssertUnwindSafe(|| observer(event))).is_err() {
                log::error!("the observer of mllp-client panicked; the call goes on");
            }
        }
    }
}

impl Counters {
    fn count(&self, event: &Event<'_>) {
        let counter = match event {
            Event::Connected { .. } => &self.connections_opened,
            Event::Sent { .. } => &self.sent,
            Event::Acknowledged { .. } => &self.acknowledged,
            Event::Failed { error, .. } if error.delivery() == Delivery::Refused => &self.refused,
            Event::Failed { .. } => &self.failed,
            Event::ConnectFailed { .. }
            | Event::LateAck { .. }
            | Event::Surplus { .. }
            | Event::Disconnected { .. } => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn write_log(event: &Event<'_>) {
    match event {
        Event::Connected { endpoint, elapsed } => log::debug!("{endpoint}: connected in {elapsed:?}"),
        // The caller knows nothing of this one.
        Event::ConnectFailed { error, attempt, retry_in: Some(retry_in), .. } => {
            log::warn!("attempt {attempt} to connect failed, the next is in {retry_in:?}: {error:#}");
        }
        Event::ConnectFailed { error, attempt, retry_in: None, .. } => {
            log::debug!("attempt {attempt} to connect failed: {error:#}");
        }
        Event::Sent { endpoint, control_id: Some(control_id), bytes } => {
            log::trace!("{endpoint}: sent message {control_id:?}, a frame of {bytes} bytes");
        }
        Event::Sent { endpoint, control_id: None, bytes } => log::trace!("{endpoint}: sent a frame of {bytes} bytes"),
        Event::Acknowledged { endpoint, control_id, code, elapsed } => {
            log::trace!("{endpoint}: message {control_id:?} acknowledged with {code} after {elapsed:?}");
        }
        Event::Failed { error, elapsed, .. } => log::debug!("failed after {elapsed:?}: {error:#}"),
        Event::LateAck { endpoint, code, ack, .. } => {
            log::debug!("{endpoint}: late acknowledgment {code} for {:?}", ack.control_id_in_short());
        }
        Event::Surplus { endpoint, stale } => {
            log::warn!("{endpoint}: {stale} bytes had come that belong to no exchange; closing the connection");
        }
        Event::Disconnected { endpoint } => log::debug!("{endpoint}: disconnected"),
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("observer", &self.observer.is_some()).field("stats", &self.stats()).finish()
    }
}
