//! A connection's bytes, plain or through TLS: frames written whole, reads by a deadline, the
//! probe.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::time::Duration;

use super::socket::{Socket, SocketOptions};
use super::tls::{Connector, Session, TlsError};
use super::{Halt, OpenError, Opening, ShutdownHandle};
use crate::deadline::Deadline;
use crate::endpoint::Endpoint;
#[cfg(any(test, fuzzing))]
use crate::simulation;

/// Up to this size a frame is put together in the stream's buffer and leaves in one plain write,
/// which is the faster there. Above, its parts leave in vectored writes, and the message is not
/// copied. It is also the most that one TLS record holds.
const RECORD: usize = 16 * 1024;

/// The most that one system call is given to write. The deadline is asked between them, and the
/// peer's kernel and ours work at the same time: 10 MB took 1.75 ms so on loopback, and 2.2 ms in
/// one piece.
const STRIDE: usize = 1024 * 1024;

/// How streams are opened.
#[derive(Debug)]
pub(crate) struct StreamOptions {
    /// The limit of one attempt, TLS handshake included.
    pub(crate) connect_timeout: Duration,
    pub(crate) socket: SocketOptions,
    /// Makes TLS sessions; `None` for a plain endpoint.
    pub(crate) tls: Option<Connector>,
}

/// An open connection's byte stream.
pub(crate) struct Stream {
    channel: Transport,
    buffer: Vec<u8>,
    /// Whether any byte has been read.
    has_read: bool,
}

enum Transport {
    Plain(Socket),
    Tls(Box<Session<Socket>>),
    #[cfg(any(test, fuzzing))]
    Simulated(simulation::Channel),
}

impl Stream {
    /// Connects, and makes a TLS session if there is a connector, inside the deadline and
    /// `connect_timeout`.
    pub(crate) fn open(
        endpoint: &Endpoint,
        options: &StreamOptions,
        deadline: &Deadline,
        handle: ShutdownHandle,
    ) -> Result<Stream, OpenError> {
        let attempt = deadline.or_within(options.connect_timeout);
        #[cfg(any(test, fuzzing))]
        if let Some(connected) = simulation::connect(endpoint, &handle) {
            let channel = Transport::Simulated(connected?);
            return Ok(Stream { channel, buffer: Vec::new(), has_read: false });
        }
        let open = || {
            let mut socket = Socket::open(endpoint, &options.socket, &attempt, handle.clone())?;
            let Some(connector) = &options.tls else { return Ok(Transport::Plain(socket)) };
            socket.set_deadline(Some(attempt));
            let session = connector.handshake(socket).map_err(|error| {
                if handle.is_shut() {
                    OpenError::Shutdown
                } else if attempt.remaining().is_none() {
                    OpenError::Deadline { during: Opening::TlsHandshake, limit: attempt.limit() }
                } else {
                    OpenError::Tls(error)
                }
            })?;
            Ok(Transport::Tls(Box::new(session)))
        };
        let channel = open()?;
        Ok(Stream { channel, buffer: Vec::new(), has_read: false })
    }

    pub(crate) fn peer_addr(&self) -> SocketAddr {
        match &self.channel {
            Transport::Plain(socket) => socket.peer_addr(),
            Transport::Tls(session) => session.stream().peer_addr(),
            #[cfg(any(test, fuzzing))]
            Transport::Simulated(channel) => channel.peer_addr(),
        }
    }

    /// Whether the peer has not ended the connection, as far as can be seen without reading.
    pub(crate) fn seems_open(&self) -> bool {
        match &self.channel {
            Transport::Plain(socket) => socket.seems_open(),
            Transport::Tls(session) => session.stream().seems_open(),
            #[cfg(any(test, fuzzing))]
            Transport::Simulated(channel) => channel.seems_open(),
        }
    }

    /// Whether a [`ShutdownHandle`] was used.
    pub(crate) fn is_shut(&self) -> bool {
        match &self.channel {
            Transport::Plain(socket) => socket.is_shut(),
            Transport::Tls(session) => session.stream().is_shut(),
            #[cfg(any(test, fuzzing))]
            Transport::Simulated(channel) => channel.is_shut(),
        }
    }

    /// Reads some bytes, at least one.
    pub(crate) fn read(&mut self, buffer: &mut [u8], deadline: &Deadline) -> Result<usize, Halt> {
        let result = match &mut self.channel {
            Transport::Plain(socket) => socket.read_by(buffer, deadline),
            Transport::Tls(session) => {
                session.stream_mut().set_deadline(Some(*deadline));
                session.read(buffer)
            }
            #[cfg(any(test, fuzzing))]
            Transport::Simulated(channel) => channel.read_by(buffer, deadline),
        };
        self.some(result, Some(deadline))
    }

    /// Reads what is already there; `None` if that is nothing. Through TLS, since a session has
    /// things of its own to say, such as the tickets of TLS 1.3, that are no bytes of the
    /// peer's. It does not wait, in either direction.
    pub(crate) fn try_read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Halt> {
        let result = match &mut self.channel {
            Transport::Plain(socket) => socket.try_read(buffer),
            Transport::Tls(session) => {
                session.stream_mut().set_deadline(None);
                let result = session.read(buffer);
                // A half may be of a ticket, and it may be of a late answer. What cannot be told apart cannot be
                // trusted.
                let doubt = if session.stream().is_write_blocked() {
                    Some("the peer takes nothing, while TLS has something to say to it")
                } else {
                    let nothing = matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
                    (nothing && session.is_inside_a_record())
                        .then_some("half a TLS record had come while nothing was due")
                };
                doubt.map_or(result, |doubt| Err(io::Error::new(io::ErrorKind::InvalidData, doubt)))
            }
            #[cfg(any(test, fuzzing))]
            Transport::Simulated(channel) => channel.try_read(buffer),
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            result => self.some(result, None).map(Some),
        }
    }

    /// Has TCP acknowledge at once what has been received, where the system has a way to ask for
    /// it.
    pub(crate) fn acknowledge_now(&self) {
        match &self.channel {
            Transport::Plain(socket) => socket.acknowledge_now(),
            Transport::Tls(session) => session.stream().acknowledge_now(),
            #[cfg(any(test, fuzzing))]
            Transport::Simulated(_) => {}
        }
    }

    /// Writes all parts, in order, as one frame. A failure says how many of their bytes may have
    /// left.
    pub(crate) fn write_frame(&mut self, parts: [&[u8]; 3], deadline: &Deadline) -> Result<(), (usize, Halt)> {
        let mut written = 0;
        let buffer = &mut self.buffer;
        let result = match &mut self.channel {
            Transport::Plain(socket) => {
                write_plain(parts, buffer, &mut written, |slices| socket.write_by(slices, deadline))
            }
            Transport::Tls(session) => {
                session.stream_mut().set_deadline(Some(*deadline));
                buffer.clear();
                write_records(parts, buffer, &mut written, |bytes| session.write(bytes))
            }
            #[cfg(any(test, fuzzing))]
            Transport::Simulated(channel) => {
                write_plain(parts, buffer, &mut written, |slices| channel.write_by(slices, deadline))
            }
        };
        result.map_err(|error| (written, self.halt(error, Some(deadline))))
    }

    /// Tells the peer the end where the protocol has a word for it, without waiting, and ends both
    /// directions.
    pub(crate) fn close(&mut self) -> io::Result<()> {
        match &mut self.channel {
            Transport::Plain(socket) => socket.close(),
            Transport::Tls(session) => {
                session.stream_mut().never_wait()?;
                // Politeness: what the peer does with it makes no difference any more.
                let _ = session.shutdown();
                session.stream().close()
            }
            #[cfg(any(test, fuzzing))]
            Transport::Simulated(channel) => channel.close(),
        }
    }

    /// Makes sure that what was written can arrive, before the connection is closed for good, on a
    /// peer of which nothing is awaited. A session of TLS 1.3 has tickets that nobody reads,
    /// and a socket that is closed with something unread throws away what it has not sent: so
    /// this side ends, and the peer's end is read to its own, until the deadline.
    pub(crate) fn finish(&mut self, deadline: &Deadline) {
        let Transport::Tls(session) = &mut self.channel else { return };
        session.stream_mut().set_deadline(Some(*deadline));
        let ended = session.shutdown().and_then(|()| session.stream_mut().end());
        let mut unread = [0; 4096];
        while ended.is_ok() && matches!(session.stream_mut().read_by(&mut unread, deadline), Ok(1..)) {}
    }

    /// Whether the peer's end of stream has been read.
    fn has_ended(&self) -> bool {
        match &self.channel {
            Transport::Plain(socket) => socket.has_ended(),
            Transport::Tls(session) => session.stream().has_ended(),
            #[cfg(any(test, fuzzing))]
            Transport::Simulated(channel) => channel.has_ended(),
        }
    }

    /// Whether it is a TLS session in which the peer has said nothing yet. Under TLS 1.3 it judges
    /// the client's certificate after the handshake.
    pub(crate) fn is_silent_tls(&self) -> bool {
        matches!(self.channel, Transport::Tls(_)) && !self.has_read
    }

    /// At least one byte, or the reason why there is none.
    fn some(&mut self, result: io::Result<usize>, deadline: Option<&Deadline>) -> Result<usize, Halt> {
        self.has_read |= matches!(result, Ok(1..));
        match result {
            Ok(0) if self.is_shut() => Err(Halt::Shutdown),
            Ok(0) => Err(Halt::Peer(None)),
            Ok(count) => Ok(count),
            Err(error) => Err(self.halt(error, deadline)),
        }
    }

    /// Turns an error into its reason: after a shutdown or a deadline these are the reason,
    /// whatever the socket reports.
    fn halt(&self, error: io::Error, deadline: Option<&Deadline>) -> Halt {
        if self.is_shut() {
            Halt::Shutdown
        } else if deadline.is_some_and(|deadline| deadline.remaining().is_none()) {
            Halt::Deadline
        } else if self.has_ended() {
            // TCP ended without TLS's `close_notify`. That is an ordinary end here: a frame has an end of its
            // own, so that a truncation is noticed.
            Halt::Peer(None)
        } else if error.kind() == io::ErrorKind::InvalidData {
            Halt::Peer(Some(error))
        } else {
            TlsError::of_session(&error).map_or(Halt::Peer(Some(error)), Halt::Tls)
        }
    }
}

/// Writes the parts of a frame: put together in the buffer where that is the faster, and otherwise
/// without copying.
fn write_plain(
    parts: [&[u8]; 3],
    buffer: &mut Vec<u8>,
    written: &mut usize,
    mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
) -> io::Result<()> {
    let total: usize = parts.iter().map(|part| part.len()).sum();
    if total > RECORD {
        return write_strides(parts, written, write);
    }
    buffer.clear();
    parts.iter().for_each(|part| buffer.extend_from_slice(part));
    write_all(buffer, written, |rest| write(&[IoSlice::new(rest)]))
}

/// Writes all bytes, adding to the count what has been written.
fn write_all(bytes: &[u8], written: &mut usize, mut write: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let count = some_written(write(rest))?;
        *written += count;
        rest = &rest[count..];
    }
    Ok(())
}

/// Writes the parts as few slices at a time, none of them copied.
fn write_strides(
    parts: [&[u8]; 3],
    written: &mut usize,
    mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
) -> io::Result<()> {
    let total: usize = parts.iter().map(|part| part.len()).sum();
    while *written < total {
        *written += some_written(write(&stride(parts, *written)))?;
    }
    Ok(())
}

/// The next bytes to write, from so many on.
fn stride(parts: [&[u8]; 3], mut skip: usize) -> [IoSlice<'_>; 3] {
    let mut room = STRIDE;
    parts.map(|part| {
        let rest = &part[skip.min(part.len())..];
        skip -= part.len() - rest.len();
        let taken = &rest[..room.min(rest.len())];
        room -= taken.len();
        IoSlice::new(taken)
    })
}

/// Writes the parts in whole records: what is smaller than one is put together in the buffer, the
/// rest is not copied. The first is made shorter where the last would have nothing but framing
/// bytes: the start and the end of a frame never stand alone.
fn write_records(
    parts: [&[u8]; 3],
    record: &mut Vec<u8>,
    written: &mut usize,
    mut write: impl FnMut(&[u8]) -> io::Result<usize>,
) -> io::Result<()> {
    let total: usize = parts.iter().map(|part| part.len()).sum();
    let mut size = if total > RECORD && (1..=parts[2].len()).contains(&(total % RECORD)) { RECORD / 2 } else { RECORD };
    for mut part in parts {
        while !part.is_empty() {
            if record.is_empty() && part.len() >= RECORD {
                let (whole, rest) = part.split_at(part.len() - part.len() % RECORD);
                write_all(whole, written, &mut write)?;
                part = rest;
            } else {
                let (taken, rest) = part.split_at(part.len().min(size - record.len()));
                record.extend_from_slice(taken);
                part = rest;
            }
            if record.len() == size {
                write_all(record, written, &mut write)?;
                record.clear();
                size = RECORD;
            }
        }
    }
    write_all(record, written, write)
}

fn some_written(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<[Vec<u8>; 3]> {
        [
            1,
            100,
            RECORD - 3,
            RECORD - 2,
            RECORD - 1,
            RECORD,
            3 * RECORD - 2,
            3 * RECORD - 1,
            3 * RECORD + 7,
            2 * STRIDE + 5,
        ]
        .map(|size| [b"<".to_vec(), (0..size).map(|number| number as u8).collect(), b"->".to_vec()])
        .to_vec()
    }

    #[test]
    fn strides_and_records_make_up_the_whole() {
        for frame in frames() {
            let parts = [0, 1, 2].map(|index| &*frame[index]);
            let whole = parts.concat();
            for most in [1021, RECORD, STRIDE, usize::MAX] {
                let (mut seen, mut written) = (Vec::new(), 0);
                write_strides(parts, &mut written, |slices| {
                    let bytes = slices.iter().map(|slice| slice.to_vec()).collect::<Vec<_>>().concat();
                    assert_eq!(bytes.len(), STRIDE.min(whole.len() - seen.len()));
                    let count = bytes.len().min(most);
                    seen.extend_from_slice(&bytes[..count]);
                    Ok(count)
                })
                .unwrap();
                assert!(seen == whole && written == whole.len(), "strides of {most}");

                let (mut seen, mut written) = (Vec::new(), 0);
                write_records(parts, &mut Vec::new(), &mut written, |bytes| {
                    let count = bytes.len().min(most);
                    seen.extend_from_slice(&bytes[..count]);
                    Ok(count)
                })
                .unwrap();
                assert!(seen == whole && written == whole.len(), "records of {most}");
            }
        }
    }

    #[test]
    fn a_small_frame_is_one_record_and_a_large_one_is_not_copied() {
        for frame in frames() {
            let parts = [0, 1, 2].map(|index| &*frame[index]);
            let mut record = Vec::with_capacity(RECORD);
            let mut pieces = Vec::new();
            write_records(parts, &mut record, &mut 0, |bytes| {
                pieces.push(bytes.len().min(RECORD));
                Ok(bytes.len().min(RECORD))
            })
            .unwrap();
            let total = parts.concat().len();
            assert_eq!(pieces.len() == 1, total <= RECORD, "{pieces:?}");
            assert!(pieces[0] > 1 && record.capacity() == RECORD, "{pieces:?}");
            assert!(*pieces.last().unwrap() > parts[2].len(), "the end stands alone: {pieces:?}");
        }
    }

    #[test]
    fn a_failure_tells_how_much_had_been_written() {
        let payload = vec![b'x'; 3 * RECORD];
        let mut left = 40_000;
        let mut fail_later = |bytes: usize| {
            let count = bytes.min(left).min(RECORD);
            left -= count;
            if count == 0 { Ok(0) } else { Ok(count) }
        };
        let mut written = 0;
        let result =
            write_records([b"<", &payload, b">"], &mut Vec::new(), &mut written, |bytes| fail_later(bytes.len()));
        assert_eq!((result.unwrap_err().kind(), written), (io::ErrorKind::WriteZero, 40_000));
    }
}
