//! The socket: resolve, connect, options, deadline-bound read and write, the look at what waits.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use super::{OpenError, Opening, ShutdownHandle};
use socket2::{Domain, Protocol, SockRef, TcpKeepalive, Type};

use crate::deadline::Deadline;
use crate::endpoint::Endpoint;

/// A socket's time-out is set anew only when it is further than this from what is wanted: the
/// kernel's own timer is no finer, and an exchange then needs no system call for it.
const ARMING_TOLERANCE: Duration = Duration::from_millis(1);

/// The largest number of reads, none of which waits, that one probe of a TLS session makes: a peer
/// that sends records without content cannot keep it busy. The tickets of TLS 1.3 take about four.
const MAX_LOOKS: u32 = 256;

/// The flag that makes one call not wait (`MSG_DONTWAIT`), where the system has it.
const AT_ONCE: Option<i32> = if cfg!(any(target_os = "linux", target_os = "android")) {
    Some(0x40)
} else if cfg!(any(
    target_vendor = "apple",
    target_os = "freebsd",
    target_os = "netbsd",
    target_os = "openbsd",
    target_os = "dragonfly"
)) {
    Some(0x80)
} else {
    None
};

/// The flag that makes `recv` look without taking (`MSG_PEEK`), which is the same everywhere.
const PEEK: i32 = 0x02;

/// The flag that makes writing to an ended connection an error and no SIGPIPE, which would end a
/// program that is not Rust's own. A plain write has it from the standard library, and Apple's
/// sockets from `socket2`.
const NO_SIGNAL: i32 = if cfg!(any(target_os = "linux", target_os = "android")) { 0x4000 } else { 0 };

/// How sockets are set up.
#[derive(Debug)]
pub(crate) struct SocketOptions {
    /// Idle time before TCP asks whether the peer is still there.
    pub(crate) keepalive: Option<Duration>,
    /// The address to connect from.
    pub(crate) local_address: Option<IpAddr>,
}

/// The bytes, or the end, that wait in a socket.
#[derive(Debug, PartialEq, Eq)]
enum Waiting {
    Nothing,
    EndOfStream,
    Bytes,
}

/// A connected socket, whose reads and writes end by a deadline.
///
/// As [`Read`] and [`Write`], for a TLS library that knows nothing of deadlines, it goes by one
/// that is [set](Socket::set_deadline) before.
pub(crate) struct Socket {
    tcp: Arc<TcpStream>,
    handle: ShutdownHandle,
    peer: SocketAddr,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    /// Until when [`Read`] and [`Write`] wait; not at all if there is none.
    deadline: Option<Deadline>,
    /// How often [`Read`] may still look, where it does not wait.
    looks: u32,
    /// Whether [`Write`] would have had to wait, and did not.
    write_blocked: bool,
    ended: bool,
}

impl Socket {
    /// Connects to the first address of the endpoint's host that answers, before the attempt's
    /// deadline.
    pub(crate) fn open(
        endpoint: &Endpoint,
        options: &SocketOptions,
        attempt: &Deadline,
        handle: ShutdownHandle,
    ) -> Result<Socket, OpenError> {
        let addresses = resolve(endpoint, options, attempt)?;
        open_any(&addresses, options, attempt, handle)
    }

    pub(crate) fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// Whether a [`ShutdownHandle`] was used.
    pub(crate) fn is_shut(&self) -> bool {
        self.handle.is_shut()
    }

    /// Whether the peer's end of stream has been read.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether the peer has not ended the connection, as far as can be seen without reading.
    pub(crate) fn seems_open(&self) -> bool {
        !self.is_shut() && matches!(self.peek(), Ok(Waiting::Nothing | Waiting::Bytes))
    }

    /// Until when [`Read`] and [`Write`] wait from now on; not at all if there is no deadline.
    pub(crate) fn set_deadline(&mut self, deadline: Option<Deadline>) {
        self.deadline = deadline;
        self.looks = MAX_LOOKS;
        self.write_blocked = false;
    }

    /// Reads some bytes; none at the end of the stream. A passed deadline is `TimedOut`.
    pub(crate) fn read_by(&mut self, buffer: &mut [u8], deadline: &Deadline) -> io::Result<usize> {
        loop {
            arm(deadline, &mut self.read_timeout, |limit| self.tcp.set_read_timeout(Some(limit)))?;
            match self.recv(buffer) {
                Err(error) if is_timer(&error) => {}
                result => return result,
            }
        }
    }

    /// Reads what is already there; if that is nothing, it is `WouldBlock`.
    pub(crate) fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.peek()? {
            Waiting::Nothing => Err(io::ErrorKind::WouldBlock.into()),
            Waiting::EndOfStream | Waiting::Bytes => self.recv(buffer),
        }
    }

    /// Writes some of the bytes. A passed deadline is `TimedOut`.
    pub(crate) fn write_by(&mut self, slices: &[IoSlice<'_>], deadline: &Deadline) -> io::Result<usize> {
        loop {
            arm(deadline, &mut self.write_timeout, |limit| self.tcp.set_write_timeout(Some(limit)))?;
            // One slice alone is written plainly, which is the cheaper system call.
            let result = match slices {
                [one] => (&*self.tcp).write(one),
                several => SockRef::from(&*self.tcp).send_vectored_with_flags(several, NO_SIGNAL),
            };
            match result {
                Err(error) if is_timer(&error) => {}
                result => return result,
            }
        }
    }

    /// Writes what the system takes without waiting; the error is `WouldBlock` if it takes nothing.
    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let socket = SockRef::from(&*self.tcp);
        match AT_ONCE {
            Some(flag) => socket.send_with_flags(bytes, flag | NO_SIGNAL),
            None => {
                socket.set_nonblocking(true)?;
                let written = (&*self.tcp).write(bytes);
                socket.set_nonblocking(false)?;
                written
            }
        }
    }

    /// Whether [`Write`] would have had to wait since there is no deadline.
    pub(crate) fn is_write_blocked(&self) -> bool {
        self.write_blocked
    }

    /// Has TCP acknowledge at once what has been received, and not with the next bytes that leave.
    /// It holds for a while only.
    pub(crate) fn acknowledge_now(&self) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        // A system that does not take it goes on as before.
        let _ = SockRef::from(&*self.tcp).set_tcp_quickack(true);
    }

    /// Lets no further read or write wait, whatever the peer does.
    pub(crate) fn never_wait(&mut self) -> io::Result<()> {
        self.deadline = None;
        self.tcp.set_nonblocking(true)
    }

    /// Ends this side only.
    pub(crate) fn end(&self) -> io::Result<()> {
        self.tcp.shutdown(Shutdown::Write)
    }

    /// Ends both directions.
    pub(crate) fn close(&self) -> io::Result<()> {
        self.tcp.shutdown(Shutdown::Both)
    }

    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (&*self.tcp).read(buffer)?;
        self.ended = count == 0;
        Ok(count)
    }

    /// Looks, without waiting and without taking.
    fn peek(&self) -> io::Result<Waiting> {
        let socket = SockRef::from(&*self.tcp);
        let mut byte = [MaybeUninit::uninit()];
        loop {
            let peeked = match AT_ONCE {
                Some(flag) => socket.recv_with_flags(&mut byte, flag | PEEK),
                None => {
                    socket.set_nonblocking(true)?;
                    let peeked = socket.peek(&mut byte);
                    socket.set_nonblocking(false)?;
                    peeked
                }
            };
            return match peeked {
                Ok(0) => Ok(Waiting::EndOfStream),
                Ok(_) => Ok(Waiting::Bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Waiting::Nothing),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.deadline {
            Some(deadline) => self.read_by(buffer, &deadline).map_err(resumable),
            None => {
                self.looks = self.looks.checked_sub(1).ok_or_else(|| {
                    io::Error::new(io::ErrorKind::InvalidData, "the peer says more than TLS needs while nothing is due")
                })?;
                self.try_read(buffer)
            }
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.deadline {
            Some(deadline) => self.write_by(&[IoSlice::new(bytes)], &deadline).map_err(resumable),
            None => {
                let result = self.try_write(bytes);
                self.write_blocked |= matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
                result
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A deadline that has passed, in the words of a socket that does not block: to a TLS library
/// anything else is the end of the session, so that nothing more could be read from it.
fn resumable(error: io::Error) -> io::Error {
    if is_deadline(&error) { io::ErrorKind::WouldBlock.into() } else { error }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("peer", &self.peer).field("ended", &self.ended).finish_non_exhaustive()
    }
}

/// Sets a socket's time-out to what the deadline leaves, unless it is about that already.
fn arm(
    deadline: &Deadline,
    armed: &mut Option<Duration>,
    set: impl FnOnce(Duration) -> io::Result<()>,
) -> io::Result<()> {
    let left = deadline.remaining().ok_or_else(deadline_passed)?;
    if armed.is_none_or(|armed| armed.abs_diff(left) > ARMING_TOLERANCE) {
        set(left)?;
        *armed = Some(left);
    }
    Ok(())
}

/// The error of a deadline that has passed. `TimedOut` of the system's, with its number, is TCP's
/// word for a dead connection.
fn deadline_passed() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

fn is_deadline(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none()
}

/// Whether a call came back only to have the clock asked: an expired socket time-out is
/// `WouldBlock` on Unix and `TimedOut` on Windows. On Unix `TimedOut` is TCP's own word for a dead
/// connection.
fn is_timer(error: &io::Error) -> bool {
    match error.kind() {
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => true,
        io::ErrorKind::TimedOut => cfg!(windows),
        _ => false,
    }
}

/// The addresses to try, in the resolver's order. The system's resolver knows no deadline; it is
/// asked after it.
fn resolve(endpoint: &Endpoint, options: &SocketOptions, attempt: &Deadline) -> Result<Vec<SocketAddr>, OpenError> {
    let found: Vec<SocketAddr> = match endpoint.host().parse::<IpAddr>() {
        Ok(literal) => vec![(literal, endpoint.port()).into()],
        Err(_) => (endpoint.host(), endpoint.port())
            .to_socket_addrs()
            .map_err(|source| OpenError::connect(None, source))?
            .collect(),
    };
    if attempt.remaining().is_none() {
        return Err(OpenError::Deadline { during: Opening::Resolve, limit: attempt.limit() });
    }
    let Some(&first) = found.first() else {
        let source = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        return Err(OpenError::connect(None, source));
    };
    let usable = |address: &SocketAddr| options.local_address.is_none_or(|local| local.is_ipv4() == address.is_ipv4());
    let addresses: Vec<SocketAddr> = found.into_iter().filter(usable).collect();
    if addresses.is_empty() {
        let source = io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            "the host has no address of the local address's family (IPv4 or IPv6)",
        );
        return Err(OpenError::connect(Some(first), source));
    }
    Ok(addresses)
}

/// Tries the addresses in turn. Each gets a share of the time, so that a dead first one leaves some
/// to the next.
fn open_any(
    addresses: &[SocketAddr],
    options: &SocketOptions,
    attempt: &Deadline,
    handle: ShutdownHandle,
) -> Result<Socket, OpenError> {
    let mut failure = OpenError::Deadline { during: Opening::Connect, limit: attempt.limit() };
    for (index, &address) in addresses.iter().enumerate() {
        let share = attempt.share(addresses.len() - index);
        let Some(limit) = share.remaining() else { break };
        match open_one(address, options, limit, &handle) {
            Ok(_) if handle.is_shut() => return Err(OpenError::Shutdown),
            Ok(tcp) => {
                return Ok(Socket {
                    tcp,
                    handle,
                    peer: address,
                    read_timeout: None,
                    write_timeout: None,
                    deadline: None,
                    looks: 0,
                    write_blocked: false,
                    ended: false,
                });
            }
            Err(_) if handle.is_shut() => return Err(OpenError::Shutdown),
            Err(_) if share.remaining().is_none() => {
                log::debug!("{address}: no connection within {limit:?}, its share of the time");
                failure = OpenError::Deadline { during: Opening::Connect, limit: attempt.limit() };
            }
            Err(source) => {
                log::debug!("{address}: {source}");
                failure = OpenError::connect(Some(address), source);
            }
        }
    }
    Err(failure)
}

fn open_one(
    address: SocketAddr,
    options: &SocketOptions,
    limit: Duration,
    handle: &ShutdownHandle,
) -> io::Result<Arc<TcpStream>> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A frame is written whole; there is nothing that waiting for more bytes could join.
    socket.set_tcp_nodelay(true)?;
    if let Some(idle) = options.keepalive {
        socket.set_tcp_keepalive(&keepalive(idle))?;
    }
    if let Some(local) = options.local_address {
        socket.bind(&SocketAddr::new(local, 0).into())?;
    }
    let tcp = Arc::new(TcpStream::from(socket));
    // Known to the handle before it connects, so that connecting can be ended too.
    handle.watch(&tcp)?;
    // It waits in whole milliseconds, and rounds down.
    SockRef::from(&*tcp).connect_timeout(&address.into(), limit.saturating_add(Duration::from_millis(1)))?;
    if tcp.local_addr()? == address {
        // TCP may connect a socket to itself when nobody listens on a port of the ephemeral range.
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(tcp)
}

/// Asks after so much idle time whether the peer is still there. Where the system lets that be set,
/// it is given up when as much time again has passed, and some questions, without an answer.
fn keepalive(idle: Duration) -> TcpKeepalive {
    let keepalive = TcpKeepalive::new().with_time(idle);
    #[cfg(any(
        target_os = "android",
        target_os = "dragonfly",
        target_os = "freebsd",
        target_os = "illumos",
        target_os = "linux",
        target_os = "netbsd",
        target_os = "windows",
        target_vendor = "apple",
    ))]
    let keepalive = {
        let questions = 4;
        keepalive.with_interval(Duration::from_secs(idle.as_secs().div_ceil(questions.into()))).with_retries(questions)
    };
    keepalive
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(400);

    fn options() -> SocketOptions {
        SocketOptions { keepalive: None, local_address: None }
    }

    fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// An address whose queue of connections is full, so that an attempt is left without an answer.
    fn silent() -> (socket2::Socket, Vec<TcpStream>, SocketAddr) {
        let listener = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let queue = std::iter::from_fn(|| TcpStream::connect_timeout(&address, LIMIT / 4).ok()).take(64).collect();
        (listener, queue, address)
    }

    fn open(addresses: &[SocketAddr]) -> Result<SocketAddr, OpenError> {
        open_any(addresses, &options(), &Deadline::after(LIMIT), ShutdownHandle::new()).map(|socket| socket.peer_addr())
    }

    #[test]
    fn the_first_address_that_answers_is_taken() {
        let (_listener, good) = listen();
        let (dropped, dead) = listen();
        drop(dropped);
        let (_silent, _queue, silent) = silent();
        for (name, addresses) in [
            ("good", &[good][..]),
            ("a dead one first", &[dead, good]),
            ("a silent one first", &[silent, good]),
            ("both first", &[dead, silent, good]),
            ("good, then others", &[good, silent, dead]),
        ] {
            assert_eq!(open(addresses).unwrap(), good, "{name}");
        }
    }

    #[test]
    fn the_last_failure_is_told() {
        let (dropped, dead) = listen();
        drop(dropped);
        let (_silent, _queue, silent) = silent();
        assert!(matches!(open(&[silent, dead]), Err(OpenError::Connect { address: Some(at), .. }) if at == dead));
        let attempt = Deadline::after(LIMIT);
        let failure = open(&[dead, silent]);
        assert!(matches!(failure, Err(OpenError::Deadline { during: Opening::Connect, limit: LIMIT })), "{failure:?}");
        assert!(attempt.remaining().is_none());
    }

    #[test]
    fn a_deadline_that_passes_while_a_name_is_resolved_ends_the_attempt_there() {
        let endpoint = "mllp://localhost:1".parse().unwrap();
        let resolved = resolve(&endpoint, &options(), &Deadline::after(Duration::ZERO));
        let timeout = OpenError::Deadline { during: Opening::Resolve, limit: Duration::ZERO };
        assert_eq!(format!("{:?}", resolved.unwrap_err()), format!("{timeout:?}"));
        assert!(!resolve(&endpoint, &options(), &Deadline::after(LIMIT)).unwrap().is_empty());
    }

    #[test]
    fn a_socket_is_set_up_as_asked() {
        let (listener, address) = listen();
        let options = SocketOptions { keepalive: Some(Duration::from_secs(7)), local_address: Some(address.ip()) };
        let tcp = open_one(address, &options, LIMIT, &ShutdownHandle::new()).unwrap();
        let socket = SockRef::from(&*tcp);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(7));
        assert_eq!(listener.accept().unwrap().1, tcp.local_addr().unwrap());
    }

    #[test]
    fn without_waiting_it_looks_a_bounded_number_of_times() {
        let (listener, address) = listen();
        let deadline = Deadline::after(LIMIT);
        let mut socket = open_any(&[address], &options(), &deadline, ShutdownHandle::new()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let mut byte = [0];
        socket.set_deadline(None);
        assert_eq!(socket.read(&mut byte).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        peer.write_all(&[b'x'; 2 * MAX_LOOKS as usize]).unwrap();
        socket.read_by(&mut byte, &deadline).unwrap();
        socket.set_deadline(None);
        for _ in 0..MAX_LOOKS {
            assert_eq!(socket.read(&mut byte).unwrap(), 1);
        }
        assert_eq!(socket.read(&mut byte).unwrap_err().kind(), io::ErrorKind::InvalidData);
        socket.set_deadline(None);
        assert_eq!(socket.read(&mut byte).unwrap(), 1);
    }

    #[test]
    fn a_handle_used_before_the_connection_is_there_prevents_it() {
        let (_listener, address) = listen();
        let handle = ShutdownHandle::new();
        handle.shutdown();
        let opened = open_any(&[address], &options(), &Deadline::after(LIMIT), handle);
        assert!(matches!(opened, Err(OpenError::Shutdown)));
    }
}
