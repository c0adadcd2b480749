//! A connection to a described peer, as the stream sees it.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::time::Duration;

use super::{Link, Seen};
use crate::deadline::Deadline;
use crate::net::ShutdownHandle;

/// A connection to a described peer.
#[derive(Debug)]
pub(crate) struct Channel {
    index: usize,
    handle: ShutdownHandle,
    ended: bool,
}

impl Channel {
    pub(super) fn new(index: usize, handle: ShutdownHandle) -> Self {
        Channel { index, handle, ended: false }
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
        !self.is_shut() && matches!(self.with(|link, now| link.seen(*now)), Seen::Nothing | Seen::Bytes)
    }

    pub(crate) fn read_by(&mut self, buffer: &mut [u8], deadline: &Deadline) -> io::Result<usize> {
        loop {
            let left = deadline.remaining().ok_or(io::ErrorKind::TimedOut)?;
            match self.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.with(|link, now| *now = link.next_said().clamp(*now, now.saturating_add(left)));
                }
                result => return result,
            }
        }
    }

    pub(crate) fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_shut() {
            return Ok(0);
        }
        match self.with(|link, now| link.seen(*now)) {
            Seen::Nothing => Err(io::ErrorKind::WouldBlock.into()),
            Seen::Bytes => Ok(self.with(|link, _| link.take(buffer))),
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
        self.with(|link, now| link.put(slices, left, now))
    }

    pub(crate) fn close(&self) -> io::Result<()> {
        self.with(|link, _| link.record.closed = true);
        Ok(())
    }

    fn with<T>(&self, act: impl FnOnce(&mut Link, &mut Duration) -> T) -> T {
        super::with(|world| act(&mut world.links[self.index], &mut world.now))
    }
}
