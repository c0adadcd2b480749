//! The receiver's sockets and threads.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::served::ServedConnection;
use super::step::{Ending, Step};
#[cfg(feature = "testing-tls")]
use super::tls::ServerTls;
use crate::connection::RecvBuffer;
use crate::frame::Framing;
use crate::locks::lock;

/// The largest number of connections served at the same time; further ones wait in the system's
/// queue.
const MAX_CONNECTIONS: usize = 64;

/// The largest message that is read, in bytes. A connection that sends a larger one is closed.
const MAX_MESSAGE: usize = 256 * 1024 * 1024;

/// The largest number of bytes of messages kept for [`Receiver::received`]; later messages are only
/// counted.
const MAX_RECORD: usize = 512 * 1024 * 1024;

/// A blocking MLLP receiver that plays the steps it is given. See the [module](super).
///
/// Dropping it ends its connections and waits for its threads.
pub struct Receiver {
    shared: Arc<ReceiverShared>,
    acceptor: Option<JoinHandle<()>>,
    /// Connects to the receiver when it is dropped, so that `accept` returns once more. It exists
    /// from the beginning, since there may be no descriptor left then.
    waker: Socket,
}

/// Settings of a [`Receiver`], from [`Receiver::builder`].
#[derive(Debug)]
#[must_use = "settings do nothing until `answering`"]
pub struct ReceiverBuilder {
    address: SocketAddr,
    framing: Framing,
    #[cfg(feature = "testing-tls")]
    tls: Option<ServerTls>,
}

type Respond = dyn Fn(&[u8]) -> Step + Send + Sync;

struct ReceiverShared {
    address: SocketAddr,
    framing: Framing,
    #[cfg(feature = "testing-tls")]
    tls: Option<Arc<rustls::ServerConfig>>,
    respond: Box<Respond>,
    state: Mutex<ReceiverState>,
    changed: Condvar,
}

#[derive(Default)]
struct ReceiverState {
    stopping: bool,
    accepted: usize,
    open: HashMap<usize, Arc<ServedConnection>>,
    messages: Vec<Vec<u8>>,
    count: usize,
    kept: usize,
}

impl Receiver {
    /// A receiver on 127.0.0.1 that accepts every message.
    ///
    /// # Errors
    ///
    /// If no socket can be opened.
    pub fn accepting() -> io::Result<Receiver> {
        Receiver::answering(|_| Step::accept())
    }

    /// A receiver on 127.0.0.1 that asks a closure what to do with each message.
    ///
    /// # Errors
    ///
    /// If no socket can be opened.
    pub fn answering(respond: impl Fn(&[u8]) -> Step + Send + Sync + 'static) -> io::Result<Receiver> {
        Receiver::builder().answering(respond)
    }

    /// A receiver on 127.0.0.1 that plays one step for each message, whatever connection it comes
    /// on, and accepts what comes after the last.
    ///
    /// # Errors
    ///
    /// If no socket can be opened.
    pub fn scripted(steps: impl IntoIterator<Item = Step>) -> io::Result<Receiver> {
        Receiver::builder().scripted(steps)
    }

    /// Settings, to begin with 127.0.0.1 and MLLP.
    pub fn builder() -> ReceiverBuilder {
        ReceiverBuilder {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            framing: Framing::default(),
            #[cfg(feature = "testing-tls")]
            tls: None,
        }
    }

    /// Where it listens, as a client wants it: `mllp://127.0.0.1:40123`, or `mllps://` if it speaks
    /// TLS.
    pub fn endpoint(&self) -> String {
        let scheme = if self.shared.speaks_tls() { "mllps" } else { "mllp" };
        format!("{scheme}://{}", self.shared.address)
    }

    /// The messages that came, whole and in order, without their frames.
    pub fn received(&self) -> Vec<Vec<u8>> {
        self.shared.lock().messages.clone()
    }

    /// Waits until so many messages have come; `false` if they have not within the limit.
    pub fn wait_for(&self, count: usize, limit: Duration) -> bool {
        let state = self.shared.lock();
        let waited = self.shared.changed.wait_timeout_while(state, limit, |state| state.count < count);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// How many connections it has taken.
    pub fn connections(&self) -> usize {
        self.shared.lock().accepted
    }

    /// Writes bytes to every open connection, asked or not, and waits for peers that do not read.
    ///
    /// # Errors
    ///
    /// If one of them cannot be written to.
    pub fn push(&self, bytes: &[u8]) -> io::Result<()> {
        self.shared.open_connections().iter().try_for_each(|peer| peer.write_all(bytes))
    }

    /// Closes every open connection, and goes on listening.
    pub fn hang_up(&self) {
        self.shared.open_connections().iter().for_each(|peer| peer.close());
    }
}

impl ReceiverBuilder {
    /// Where to listen. Defaults to 127.0.0.1 and a port of the system's choice.
    ///
    /// # Errors
    ///
    /// If it is not an address.
    pub fn address(self, address: impl ToSocketAddrs) -> io::Result<ReceiverBuilder> {
        let found = address.to_socket_addrs()?.next();
        let address = found.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no address to listen on"))?;
        Ok(ReceiverBuilder { address, ..self })
    }

    /// How frames look, in both directions. Defaults to MLLP, strictly.
    pub fn framing(self, framing: Framing) -> ReceiverBuilder {
        ReceiverBuilder { framing, ..self }
    }

    /// Speaks TLS. Defaults to not.
    #[cfg(feature = "testing-tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "testing-tls")))]
    pub fn tls(self, tls: ServerTls) -> ReceiverBuilder {
        ReceiverBuilder { tls: Some(tls), ..self }
    }

    /// Starts a receiver as [`Receiver::answering`].
    ///
    /// # Errors
    ///
    /// If the address cannot be listened on, or the TLS settings do not fit each other.
    pub fn answering(self, respond: impl Fn(&[u8]) -> Step + Send + Sync + 'static) -> io::Result<Receiver> {
        let listener = TcpListener::bind(self.address)?;
        let waker = Socket::new(Domain::for_address(listener.local_addr()?), Type::STREAM, None)?;
        let shared = Arc::new(ReceiverShared {
            address: listener.local_addr()?,
            framing: self.framing,
            #[cfg(feature = "testing-tls")]
            tls: self.tls.map(|tls| tls.config()).transpose()?,
            respond: Box::new(respond),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let acceptor = thread::Builder::new().name("mllp-receiver".into()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        })?;
        Ok(Receiver { shared, acceptor: Some(acceptor), waker })
    }

    /// Starts a receiver as [`Receiver::scripted`].
    ///
    /// # Errors
    ///
    /// If the address cannot be listened on.
    pub fn scripted(self, steps: impl IntoIterator<Item = Step>) -> io::Result<Receiver> {
        let steps = Mutex::new(steps.into_iter().collect::<VecDeque<_>>());
        self.answering(move |_| {
            let next = lock(&steps).pop_front();
            next.unwrap_or_else(Step::accept)
        })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.changed.notify_all();
        // At once, without a word of TLS, for which a peer that does not read would have to be waited for.
        self.shared.open_connections().iter().for_each(|peer| peer.cut());
        // Where the queue of connections is full, `accept` returns anyway.
        let unspecified = self.shared.address.ip().is_unspecified();
        let mut awake = self.shared.address;
        match awake {
            SocketAddr::V4(_) if unspecified => awake.set_ip(Ipv4Addr::LOCALHOST.into()),
            SocketAddr::V6(_) if unspecified => awake.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        let _ = self.waker.connect_timeout(&awake.into(), Duration::from_secs(1));
        if let Some(acceptor) = self.acceptor.take() {
            // A panic there has been printed already.
            let _ = acceptor.join();
        }
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        f.debug_struct("Receiver")
            .field("endpoint", &self.endpoint())
            .field("connections", &state.accepted)
            .field("received", &state.count)
            .finish()
    }
}

impl ReceiverShared {
    fn lock(&self) -> MutexGuard<'_, ReceiverState> {
        lock(&self.state)
    }

    fn speaks_tls(&self) -> bool {
        #[cfg(feature = "testing-tls")]
        let speaks = self.tls.is_some();
        #[cfg(not(feature = "testing-tls"))]
        let speaks = false;
        speaks
    }

    /// A connection just taken, and what is to be said over it.
    fn peer(&self, connection: TcpStream) -> io::Result<ServedConnection> {
        // Answers that are one write are to be one packet.
        connection.set_nodelay(true)?;
        #[cfg(feature = "testing-tls")]
        if let Some(tls) = &self.tls {
            return Ok(ServedConnection::with_tls(connection, super::tls::ServerSession::new(tls)?));
        }
        Ok(ServedConnection::plain(connection))
    }

    fn open_connections(&self) -> Vec<Arc<ServedConnection>> {
        self.lock().open.values().cloned().collect()
    }

    /// Takes connections until the receiver stops; its scope ends when every connection has.
    fn accept(&self, listener: &TcpListener) {
        thread::scope(|scope| {
            loop {
                let free = |state: &mut ReceiverState| !state.stopping && state.open.len() >= MAX_CONNECTIONS;
                if self.changed.wait_while(self.lock(), free).unwrap_or_else(PoisonError::into_inner).stopping {
                    return;
                }
                let accepted = listener.accept().and_then(|(connection, _)| self.peer(connection)).map(Arc::new);
                let mut state = self.lock();
                if state.stopping {
                    return;
                }
                // A connection that was gone before it was taken is nobody's loss; a lack of descriptors may pass.
                let Ok(peer) = accepted else {
                    drop(self.changed.wait_timeout(state, Duration::from_millis(10)));
                    continue;
                };
                let number = state.accepted;
                state.accepted += 1;
                state.open.insert(number, Arc::clone(&peer));
                drop(state);
                let served = thread::Builder::new().spawn_scoped(scope, move || {
                    // The closure's panic has been printed; the peer sees the connection end.
                    match catch_unwind(AssertUnwindSafe(|| self.serve(&peer))) {
                        Ok(Ending::Reset) => peer.reset(),
                        _ => peer.close(),
                    }
                    self.lock().open.remove(&number);
                    drop(peer);
                    self.changed.notify_all();
                });
                if let Err(error) = served {
                    // The system has no thread to spare: the peer sees the connection end.
                    log::warn!("a connection cannot be served: {error}");
                    if let Some(peer) = self.lock().open.remove(&number) {
                        peer.cut();
                    }
                }
            }
        });
    }

    /// Serves one connection to its end.
    fn serve(&self, peer: &ServedConnection) -> Ending {
        let mut buffer = RecvBuffer::new(self.framing.clone(), MAX_MESSAGE);
        loop {
            match buffer.frame() {
                Err(_) => return Ending::Close,
                Ok(Some(place)) => {
                    let message = buffer.content(place);
                    self.record(message);
                    let step = (self.respond)(message);
                    match self.play(&step, message, peer) {
                        Ok(Ending::Keep) => {}
                        Ok(ending) => return ending,
                        Err(_) => return Ending::Close,
                    }
                }
                Ok(None) => match buffer
                    .space()
                    .map_err(|_| io::ErrorKind::InvalidData.into())
                    .and_then(|space| peer.read(space))
                {
                    Ok(0) => return Ending::Close,
                    Ok(count) => buffer.received(count),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return Ending::Close,
                },
            }
        }
    }

    fn record(&self, message: &[u8]) {
        let mut state = self.lock();
        state.count += 1;
        let size = message.len() + size_of::<Vec<u8>>();
        if state.kept + size <= MAX_RECORD {
            state.kept += size;
            state.messages.push(message.to_vec());
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Sends a step's answers; those that nothing separates together.
    fn play(&self, step: &Step, message: &[u8], peer: &ServedConnection) -> io::Result<Ending> {
        let mut ready = Vec::new();
        for part in &step.parts {
            let bytes = part.render(message, &self.framing);
            if part.delay.is_zero() && part.drip.is_none() {
                ready.extend(bytes);
                continue;
            }
            peer.write_all(&std::mem::take(&mut ready))?;
            self.pause(part.delay)?;
            match part.drip {
                None => ready.extend(bytes),
                Some(interval) => {
                    for (index, byte) in bytes.iter().enumerate() {
                        if index > 0 {
                            self.pause(interval)?;
                        }
                        peer.write_all(&[*byte])?;
                    }
                }
            }
        }
        peer.write_all(&ready)?;
        Ok(step.ending)
    }

    /// Lets time pass, unless the receiver stops.
    fn pause(&self, time: Duration) -> io::Result<()> {
        let begun = Instant::now();
        let mut state = self.lock();
        while !state.stopping {
            let left = time.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Err(io::ErrorKind::Interrupted.into())
    }
}
