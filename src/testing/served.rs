//! One connection that the receiver has accepted. Its own thread reads from it; any thread may
//! write to it or end it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use socket2::SockRef;

#[cfg(feature = "testing-tls")]
use super::tls::ServerSession;

pub(super) struct ServedConnection {
    tcp: TcpStream,
    #[cfg(feature = "testing-tls")]
    tls: Option<ServerSession>,
}

impl ServedConnection {
    pub(super) fn plain(tcp: TcpStream) -> ServedConnection {
        ServedConnection {
            tcp,
            #[cfg(feature = "testing-tls")]
            tls: None,
        }
    }

    #[cfg(feature = "testing-tls")]
    pub(super) fn with_tls(tcp: TcpStream, session: ServerSession) -> ServedConnection {
        ServedConnection { tcp, tls: Some(session) }
    }

    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        #[cfg(feature = "testing-tls")]
        if let Some(session) = &self.tls {
            return session.read(&self.tcp, buffer);
        }
        (&self.tcp).read(buffer)
    }

    pub(super) fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        #[cfg(feature = "testing-tls")]
        if let Some(session) = &self.tls {
            return session.write_all(&self.tcp, bytes);
        }
        (&self.tcp).write_all(bytes)
    }

    /// Ends the connection in order.
    pub(super) fn close(&self) {
        #[cfg(feature = "testing-tls")]
        if let Some(session) = &self.tls {
            session.close(&self.tcp);
        }
        self.cut();
    }

    /// Ends the connection at once.
    pub(super) fn cut(&self) {
        // It fails where the peer was quicker.
        let _ = self.tcp.shutdown(Shutdown::Both);
    }

    /// Makes the connection end in a reset once it is dropped.
    pub(super) fn reset(&self) {
        if let Err(error) = SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO)) {
            log::warn!("cannot reset a connection: {error}");
        }
    }
}
