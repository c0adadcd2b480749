//! In the place of `socket.rs`: connections to peers that are only described, in the time of the [`world`](super::world).

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::deadline::Deadline;
use crate::endpoint::Endpoint;
use crate::error::ErrorKind;
use crate::fuzzing::world::{self, Line, Seen};

/// As those of a real one, and without effect.
#[derive(Debug)]
#[allow(dead_code, reason = "there is no kernel to tell them to")]
pub(crate) struct Options {
    pub(crate) keepalive: Option<Duration>,
    pub(crate) local_address: Option<IpAddr>,
}

/// A connection to a described peer.
#[derive(Debug)]
pub(crate) struct Socket {
    line: Line,
    handle: ShutdownHandle,
    ended: bool,
}

impl Socket {
    pub(crate) fn open(
        endpoint: &Endpoint,
        _: &Options,
        attempt: &Deadline,
        handle: ShutdownHandle,
    ) -> Result<Socket, ErrorKind> {
        if handle.is_shut() {
            return Err(ErrorKind::Closed);
        }
        debug_assert!(attempt.share(1).remaining().is_some());
        let line = world::connect().ok_or_else(|| ErrorKind::Connect {
            address: Some(SocketAddr::from(([127, 0, 0, 1], endpoint.port()))),
            source: io::ErrorKind::ConnectionRefused.into(),
        })?;
        Ok(Socket { line, handle, ended: false })
    }

    pub(crate) fn peer_addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 2575))
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.handle.is_shut()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    pub(crate) fn seems_open(&self) -> bool {
        !self.is_shut() && matches!(self.line.seen(), Seen::Nothing | Seen::Bytes)
    }

    /// For a TLS session, which there is none of here.
    pub(crate) fn wait(&mut self, _: Option<Deadline>) {}

    pub(crate) fn read_by(&mut self, buffer: &mut [u8], deadline: &Deadline) -> io::Result<usize> {
        loop {
            let left = deadline.remaining().ok_or(io::ErrorKind::TimedOut)?;
            match self.read_waiting(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.line.wait_for_more(left),
                result => return result,
            }
        }
    }

    pub(crate) fn read_waiting(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_shut() {
            return Ok(0);
        }
        match self.line.seen() {
            Seen::Nothing => Err(io::ErrorKind::WouldBlock.into()),
            Seen::Bytes => Ok(self.line.take(buffer)),
            Seen::End => {
                self.ended = true;
                Ok(0)
            }
            Seen::Reset => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    pub(crate) fn write_by(&mut self, slices: &[IoSlice<'_>], deadline: &Deadline) -> io::Result<usize> {
        let left = deadline.remaining().ok_or(io::ErrorKind::TimedOut)?;
        if self.is_shut() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.line.put(slices, left)
    }

    pub(crate) fn never_wait(&mut self) -> io::Result<()> {
        Ok(())
    }

    pub(crate) fn end(&self) -> io::Result<()> {
        Ok(())
    }

    pub(crate) fn close(&self) -> io::Result<()> {
        self.line.close();
        Ok(())
    }
}

/// Ends a connection.
#[derive(Clone, Debug)]
pub struct ShutdownHandle {
    shut: Arc<AtomicBool>,
}

impl ShutdownHandle {
    pub(crate) fn new() -> Self {
        ShutdownHandle { shut: Arc::new(AtomicBool::new(false)) }
    }

    /// Ends the connection.
    pub fn shutdown(&self) {
        self.shut.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.shut) > 1
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::SeqCst)
    }
}
