//! Bytes over the network, plain or through TLS: no HL7, no MLLP.

mod shutdown;
mod socket;
mod stream;
#[cfg_attr(not(feature = "tls"), path = "tls_off.rs")]
mod tls;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

pub use shutdown::ShutdownHandle;
pub(crate) use socket::SocketOptions;
pub(crate) use stream::{Stream, StreamOptions};
pub(crate) use tls::Connector;
pub use tls::TlsError;
#[cfg(feature = "tls")]
pub(crate) use tls::in_short;

/// Why reading or writing ended.
#[derive(Debug)]
pub(crate) enum Halt {
    /// The deadline passed.
    Deadline,
    /// A [`ShutdownHandle`] was used.
    Shutdown,
    /// The TLS session broke, or the peer refused it.
    Tls(TlsError),
    /// The peer closed (`None`) or broke the connection.
    Peer(Option<io::Error>),
}

/// Why no connection was opened.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// The limit of the attempt passed.
    Deadline { during: Opening, limit: Duration },
    /// A [`ShutdownHandle`] was used.
    Shutdown,
    /// The TLS session could not be made.
    Tls(TlsError),
    /// The name did not resolve, or no address answered; the address is the one that was tried
    /// last.
    Connect { address: Option<SocketAddr>, source: io::Error },
}

impl OpenError {
    fn connect(address: Option<SocketAddr>, source: io::Error) -> OpenError {
        OpenError::Connect { address, source }
    }
}

/// A step of opening a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    Resolve,
    Connect,
    TlsHandshake,
}
