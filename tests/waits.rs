//! Every wait of a call, over every transport, with every kind of peer that makes it wait: the
//! limit holds on both sides, closing ends it at once, and looking at a connection takes no time.

mod common;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::LazyLock;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
#[cfg(feature = "tls")]
use std::sync::{Arc, Mutex};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use common::{LONG, Transport, limited, message, message_of, waited_for_a_core};
use mllp_client::{AckMode, Client, ClientBuilder, Delivery, Error, ErrorKind};

/// The limit of a call that is to run into it.
const LIMIT: Duration = Duration::from_millis(150);
/// How long closing and looking may take.
const AT_ONCE: Duration = Duration::from_millis(100);
const A_LOOK: Duration = Duration::from_millis(50);
/// How often a peer does what it does again and again.
const EVERY: Duration = Duration::from_millis(3);
/// OpenSSL takes no more than 32 updates of keys without content between them.
const MAX_UPDATES: usize = 30;

/// A message that no send buffer takes in whole.
static LARGE: LazyLock<Vec<u8>> = LazyLock::new(|| message_of("CALL", 20_000_000));

/// What the peer does once the connection is open.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Habit {
    /// Reads all and says nothing.
    Silent,
    /// Reads all and sends one byte after the other of an answer that never ends.
    Drips,
    /// Answers the first message, and then sends that answer again and again.
    Repeats,
    /// Says nothing and reads nothing.
    StopsReading,
    /// Reads all, and asks for new keys again and again (TLS 1.3).
    UpdatesKeys,
    /// Reads nothing, and asks for new keys, which the client would have to answer.
    UpdatesKeysAndStopsReading,
}

/// Where a call waits.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wait {
    Answer,
    /// Several answers, of which none comes.
    Batch,
    /// The commit block of MLLP release 2.
    CommitBlock,
    /// The peer, that is to take a large message.
    Sending,
    /// The raw reply.
    Reply,
    /// The connection, which another call uses.
    Checkout,
}

const WAITS: [Wait; 6] = [Wait::Answer, Wait::Batch, Wait::CommitBlock, Wait::Sending, Wait::Reply, Wait::Checkout];

fn habits(transport: Transport) -> Vec<Habit> {
    let mut habits = vec![Habit::Silent, Habit::Drips, Habit::Repeats, Habit::StopsReading];
    if is_tls13(transport) {
        habits.extend([Habit::UpdatesKeys, Habit::UpdatesKeysAndStopsReading]);
    }
    habits
}

fn is_tls13(transport: Transport) -> bool {
    match transport {
        Transport::Plain => false,
        #[cfg(feature = "tls")]
        Transport::Tls12 => false,
        #[cfg(feature = "tls")]
        Transport::Tls13 => true,
    }
}

/// A connection as the peer has it.
trait Wire: Send {
    /// Reads some bytes of content; 0 at the end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    fn update_keys(&mut self) -> io::Result<()>;
}

impl Wire for TcpStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Read::read(self, buffer)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn update_keys(&mut self) -> io::Result<()> {
        unreachable!("there are none")
    }
}

#[cfg(feature = "tls")]
#[derive(Clone)]
struct TlsWire {
    tcp: Arc<TcpStream>,
    session: Arc<Mutex<rustls::ServerConnection>>,
}

#[cfg(feature = "tls")]
impl TlsWire {
    fn accept(tcp: TcpStream, version: &'static rustls::SupportedProtocolVersion) -> io::Result<TlsWire> {
        use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
        let certified = &common::certificates::usual().1;
        let chain = vec![CertificateDer::from_pem_slice(certified.chain.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(certified.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key))
            .unwrap();
        let mut session = rustls::ServerConnection::new(Arc::new(config)).unwrap();
        while session.is_handshaking() {
            session.complete_io(&mut &tcp)?;
        }
        Ok(TlsWire { tcp: Arc::new(tcp), session: Arc::new(Mutex::new(session)) })
    }

    fn flush(&self, session: &mut rustls::ServerConnection) -> io::Result<()> {
        while session.wants_write() {
            session.write_tls(&mut &*self.tcp)?;
        }
        Ok(())
    }
}

#[cfg(feature = "tls")]
impl Wire for TlsWire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.lock().unwrap().reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
            // Without the lock, so that another thread can write.
            let mut records = [0; 16 * 1024];
            let count = Read::read(&mut &*self.tcp, &mut records)?;
            let mut session = self.session.lock().unwrap();
            let mut unread = &records[..count];
            if unread.is_empty() {
                return Ok(0);
            }
            while !unread.is_empty() {
                session.read_tls(&mut unread)?;
                session.process_new_packets().map_err(io::Error::other)?;
            }
            self.flush(&mut session)?;
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut session = self.session.lock().unwrap();
        session.writer().write_all(bytes)?;
        self.flush(&mut session)
    }

    fn update_keys(&mut self) -> io::Result<()> {
        let mut session = self.session.lock().unwrap();
        session.refresh_traffic_keys().map_err(io::Error::other)?;
        self.flush(&mut session)
    }
}

/// A peer for one connection.
struct Peer {
    endpoint: String,
    address: SocketAddr,
    /// Something has come, or the connection is open to a peer that reads nothing.
    busy: Receiver<()>,
    /// Ends what it does again and again, when it is dropped.
    stop: Option<Sender<()>>,
}

impl Peer {
    fn start<'s>(
        scope: &'s thread::Scope<'s, '_>,
        transport: Transport,
        habit: Habit,
    ) -> (Peer, ScopedJoinHandle<'s, ()>) {
        // A small buffer, so that what is not read fills it soon.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(16).unwrap();
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().unwrap();
        let scheme = if transport == Transport::Plain { "mllp" } else { "mllps" };
        let (tell, busy) = mpsc::channel();
        let (stop, stopped) = mpsc::channel();
        let thread = scope.spawn(move || {
            let (tcp, _) = listener.accept().unwrap();
            let end = tcp.try_clone().unwrap();
            // What fails here ends with the connection.
            let _ = serve(tcp, transport, habit, &tell, &stopped);
            let _ = end.shutdown(Shutdown::Both);
        });
        (Peer { endpoint: format!("{scheme}://{address}"), address, busy, stop: Some(stop) }, thread)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.stop.take());
        // Lets `accept` return where no client has connected.
        drop(TcpStream::connect_timeout(&self.address, LONG));
    }
}

fn serve(
    tcp: TcpStream,
    transport: Transport,
    habit: Habit,
    tell: &Sender<()>,
    stopped: &Receiver<()>,
) -> io::Result<()> {
    let end = tcp.try_clone()?;
    let (mut wire, mut reading): (Box<dyn Wire>, Box<dyn Wire>) = match transport {
        Transport::Plain => (Box::new(tcp.try_clone()?), Box::new(tcp)),
        #[cfg(feature = "tls")]
        Transport::Tls12 | Transport::Tls13 => {
            let version = if transport == Transport::Tls12 { &rustls::version::TLS12 } else { &rustls::version::TLS13 };
            let wire = TlsWire::accept(tcp, version)?;
            (Box::new(wire.clone()), Box::new(wire))
        }
    };
    let reads = !matches!(habit, Habit::StopsReading | Habit::UpdatesKeysAndStopsReading);
    thread::scope(|scope| {
        let (seen, has_come) = mpsc::channel();
        if reads {
            scope.spawn(move || {
                let mut buffer = [0; 64 * 1024];
                while matches!(reading.read(&mut buffer), Ok(1..)) {
                    let _ = tell.send(());
                    let _ = seen.send(buffer[..200].to_vec());
                }
            });
        } else {
            let _ = tell.send(());
        }
        let mut answered = Vec::new();
        if matches!(habit, Habit::Drips | Habit::Repeats) {
            // Nothing is said before something has come.
            if let Ok(first) = has_come.recv() {
                answered = if habit == Habit::Drips { b"\x0B".to_vec() } else { answer(&first) };
                let _ = wire.write(&answered);
            }
        }
        let mut updates = 0..MAX_UPDATES;
        while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
            let said = match habit {
                Habit::Drips => wire.write(b"x"),
                Habit::Repeats => wire.write(&answered),
                Habit::UpdatesKeys | Habit::UpdatesKeysAndStopsReading => {
                    updates.next().map_or(Ok(()), |_| wire.update_keys())
                }
                Habit::Silent | Habit::StopsReading => Ok(()),
            };
            if said.is_err() {
                break;
            }
        }
        let _ = end.shutdown(Shutdown::Both);
    });
    Ok(())
}

/// Accepts a message, of which the beginning has come.
fn answer(beginning: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(beginning).into_owned();
    common::acknowledgment("AA", text.split('|').nth(9).unwrap_or("?"))
}

fn builder(transport: Transport, endpoint: &str, wait: Wait) -> ClientBuilder {
    transport.builder(endpoint).timeout(LONG).ack_mode(AckMode::Application).release2(wait == Wait::CommitBlock)
}

/// Makes the call that waits, with this limit; the failure it ends with.
fn call(client: &Client, wait: Wait, limit: Duration) -> Error {
    match wait {
        Wait::Answer | Wait::CommitBlock | Wait::Checkout => {
            client.request(&message("CALL")).timeout(limit).send().unwrap_err()
        }
        Wait::Sending => client.request(&*LARGE).timeout(limit).send().unwrap_err(),
        Wait::Reply => client.request("query").timeout(limit).exchange().unwrap_err(),
        Wait::Batch => {
            let mut batch = mllp_client::Batch::new("B").unwrap();
            ["1", "2"].iter().for_each(|id| batch.push(message(id)).unwrap());
            // A batch has the client's own limit.
            match client.send_batch(&batch) {
                Ok(results) => results.into_iter().next().unwrap().unwrap_err(),
                Err(error) => error,
            }
        }
    }
}

/// A peer that repeats an answer has given one: to another message, so that all later answers are
/// late.
fn warm_up(client: &Client, habit: Habit) -> bool {
    habit != Habit::Repeats || client.request(&message("FIRST")).timeout(LONG).send().is_ok()
}

/// Whether the two can be together: a peer that repeats its answers has to have been sent a message
/// in release 1, and a raw reply may be whatever comes.
fn fit(wait: Wait, habit: Habit) -> bool {
    habit != Habit::Repeats || !matches!(wait, Wait::CommitBlock)
}

fn cells() -> impl Iterator<Item = (Transport, Wait, Habit)> {
    let of = |transport| {
        WAITS.into_iter().flat_map(move |wait| habits(transport).into_iter().map(move |habit| (wait, habit)))
    };
    Transport::ALL
        .iter()
        .flat_map(move |&transport| of(transport).map(move |(wait, habit)| (transport, wait, habit)))
        .filter(|&(_, wait, habit)| fit(wait, habit))
}

/// Runs a check on every cell, several at the same time, since they mostly wait.
fn on_every_cell(check: fn(Transport, Wait, Habit)) {
    LazyLock::force(&LARGE);
    let cells: Vec<_> = cells().collect();
    thread::scope(|scope| {
        for some in cells.chunks(cells.len().div_ceil(6)) {
            scope.spawn(move || some.iter().for_each(|&(transport, wait, habit)| check(transport, wait, habit)));
        }
    });
}

/// Runs a call on another thread until its peer is busy with it.
fn meanwhile<'s>(
    scope: &'s thread::Scope<'s, '_>,
    client: &'s Client,
    peer: &Peer,
    wait: Wait,
) -> ScopedJoinHandle<'s, Error> {
    while peer.busy.try_recv().is_ok() {}
    let call = scope.spawn(move || call(client, wait, LONG));
    // A peer that does not read is busy from the beginning.
    let _ = peer.busy.recv_timeout(EVERY * 3);
    call
}

#[test]
fn every_limit_holds_on_both_sides() {
    on_every_cell(|transport, wait, habit| {
        let cell = format!("{transport:?}, {wait:?}, {habit:?}");
        thread::scope(|scope| {
            let (peer, thread) = Peer::start(scope, transport, habit);
            let limit = if wait == Wait::Batch { LIMIT } else { LONG };
            let client = builder(transport, &peer.endpoint, wait).timeout(limit).build().unwrap();
            let connected = (0..20).any(|_| client.connect().is_ok());
            assert!(connected && warm_up(&client, habit), "{cell}");
            let error = match wait {
                Wait::Checkout => thread::scope(|scope| {
                    let other = meanwhile(scope, &client, &peer, Wait::Answer);
                    let error = limited(LIMIT, || call(&client, wait, LIMIT));
                    client.close();
                    other.join().unwrap();
                    error
                }),
                _ => limited(LIMIT, || call(&client, wait, LIMIT)),
            };
            assert!(error.is_timeout(), "{cell}: {error:?}");
            assert_ne!(error.delivery(), Delivery::Refused, "{cell}");
            drop((client, peer));
            thread.join().unwrap();
        });
    });
}

#[test]
fn closing_ends_every_wait_at_once() {
    on_every_cell(|transport, wait, habit| {
        let cell = format!("{transport:?}, {wait:?}, {habit:?}");
        thread::scope(|scope| {
            let (peer, thread) = Peer::start(scope, transport, habit);
            let client = builder(transport, &peer.endpoint, wait).build().unwrap();
            client.connect().unwrap();
            assert!(warm_up(&client, habit), "{cell}");
            thread::scope(|scope| {
                let first = meanwhile(scope, &client, &peer, if wait == Wait::Checkout { Wait::Answer } else { wait });
                let second = (wait == Wait::Checkout).then(|| meanwhile(scope, &client, &peer, wait));
                let (begun, waited) = (Instant::now(), waited_for_a_core());
                client.close();
                for call in [Some(first), second].into_iter().flatten() {
                    let error = call.join().unwrap();
                    assert!(matches!(error.kind(), ErrorKind::Closed), "{cell}: {error:?}");
                }
                let (taken, waited) = (begun.elapsed(), waited_for_a_core() - waited);
                assert!(taken <= AT_ONCE + waited, "{cell}: closed after {taken:?}");
            });
            drop((client, peer));
            thread.join().unwrap();
        });
    });
}

#[test]
fn a_look_at_a_connection_takes_no_time() {
    for &transport in Transport::ALL {
        for habit in habits(transport) {
            let cell = format!("{transport:?}, {habit:?}");
            thread::scope(|scope| {
                let (peer, thread) = Peer::start(scope, transport, habit);
                let client = builder(transport, &peer.endpoint, Wait::Answer).build().unwrap();
                client.connect().unwrap();
                assert!(warm_up(&client, habit), "{cell}");
                for _ in 0..20 {
                    let (begun, waited) = (Instant::now(), waited_for_a_core());
                    client.is_connected();
                    let (taken, waited) = (begun.elapsed(), waited_for_a_core() - waited);
                    assert!(taken <= A_LOOK + waited, "{cell}: {taken:?}");
                    common::pass(EVERY);
                }
                drop((client, peer));
                thread.join().unwrap();
            });
        }
    }
}
