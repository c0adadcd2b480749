//! What several themes need: messages of invented people, peers that a script cannot play, and a
//! clock for limits.

#![allow(dead_code, reason = "each test binary uses its part")]

#[cfg(feature = "tls")]
pub mod certificates;
pub mod hang;
pub mod lanes;
pub mod proxy;
#[cfg(feature = "redis")]
pub mod redis;

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mllp_client::testing::{Receiver, ReceiverBuilder};
use mllp_client::{Client, ClientBuilder, Connection, Error};
use socket2::{Domain, Socket, Type};

/// A limit that no test reaches unless something hangs.
pub const LONG: Duration = Duration::from_secs(20);

/// A limit that a test runs into.
pub const SHORT: Duration = Duration::from_millis(200);

/// How late a limit may be.
const SLACK: Duration = Duration::from_millis(250);

/// A result of Testa Probe, a person who does not exist.
pub fn message(control_id: &str) -> String {
    format!(
        "MSH|^~\\&|LAB|NORTH|EHR|NORTH|20260101120000||ORU^R01|{control_id}|P|2.5\r\
         PID|1||42^^^NORTH||PROBE^TESTA\r\
         OBX|1|NM|718-7^Hemoglobin^LN||13.5|g/dL\r"
    )
}

/// A message with a payload of this many bytes.
pub fn message_of(control_id: &str, size: usize) -> Vec<u8> {
    let mut message = message(control_id).into_bytes();
    message.extend_from_slice(b"OBX|2|TX|");
    message.resize(size.max(message.len()), b'x');
    message
}

/// Chooses numbers that look like chance, and are the same each time (a linear congruential
/// generator).
pub struct Seeded(pub u64);

impl Seeded {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// What an exchange goes over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Transport {
    Plain,
    #[cfg(feature = "tls")]
    Tls12,
    #[cfg(feature = "tls")]
    Tls13,
}

impl Transport {
    pub const ALL: &[Transport] = &[
        Transport::Plain,
        #[cfg(feature = "tls")]
        Transport::Tls12,
        #[cfg(feature = "tls")]
        Transport::Tls13,
    ];

    pub fn receiver(self) -> ReceiverBuilder {
        match self {
            Transport::Plain => Receiver::builder(),
            #[cfg(feature = "tls")]
            Transport::Tls12 => Receiver::builder().tls(certificates::usual().1.server().only_tls12()),
            #[cfg(feature = "tls")]
            Transport::Tls13 => Receiver::builder().tls(certificates::usual().1.server().only_tls13()),
        }
    }

    /// A client that trusts such a receiver.
    pub fn builder(self, endpoint: &str) -> ClientBuilder {
        let builder = Client::builder(endpoint);
        match self {
            Transport::Plain => builder,
            #[cfg(feature = "tls")]
            Transport::Tls12 | Transport::Tls13 => builder.tls(certificates::usual().0.trusted()),
        }
    }
}

pub fn client(endpoint: &str, timeout: Duration) -> Client {
    Client::builder(endpoint).timeout(timeout).build().unwrap()
}

pub fn connection(endpoint: &str, timeout: Duration) -> Connection {
    Client::builder(endpoint).timeout(timeout).connect().unwrap()
}

/// Runs what ends by a limit, and checks both sides of it: not before, and not much after. What
/// this thread had to wait for a core does not count.
pub fn limited<T>(limit: Duration, call: impl FnOnce() -> T) -> T {
    let (begun, waited) = (Instant::now(), waited_for_a_core());
    let result = call();
    let (taken, waited) = (begun.elapsed(), waited_for_a_core() - waited);
    assert!(taken >= limit, "ended after {taken:?}, before its limit of {limit:?}");
    assert!(
        taken <= limit + SLACK + waited,
        "ended after {taken:?}, of which {waited:?} without a core, long after its limit of {limit:?}"
    );
    result
}

/// How long this thread has been ready to run and has not run, where the system tells.
pub fn waited_for_a_core() -> Duration {
    let told = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = told.split_whitespace().nth(1).and_then(|waited| waited.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}

/// Makes a connection whose limit is meant for what comes after: if it passes while connecting,
/// again. How often it was tried.
pub fn connected<T>(mut connect: impl FnMut() -> Result<T, Error>) -> (T, usize) {
    for attempt in 1..20 {
        match connect() {
            Ok(connected) => return (connected, attempt),
            Err(error) if error.is_timeout() => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    panic!("no connection");
}

/// Runs what is to end at once when something happens on another thread; `limit` is one it must not
/// wait for.
pub fn prompt<T>(call: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = call();
    let taken = begun.elapsed();
    assert!(taken < LONG / 2, "took {taken:?}");
    result
}

/// Asks until the answer is yes, for what another thread or the network does in its own time.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LONG, "still not so: {what}");
        thread::yield_now();
    }
}

/// Holds tests to leaving neither a thread nor a file descriptor behind: looked at when the last of
/// those that run at the same time has ended. Counted in `/proc`, where there is one.
pub struct Tidy;

/// The tests that are held to it now, and what there was before the first of them.
struct TidyTests {
    running: usize,
    descriptors: usize,
    has_panicked: bool,
}

impl Tidy {
    pub fn up() -> Self {
        let mut tests = Tidy::tests();
        if tests.running == 0 {
            *tests = TidyTests { running: 0, descriptors: entries("/proc/self/fd").count(), has_panicked: false };
        }
        tests.running += 1;
        // The runner names its threads by their tests, of which the system keeps 15 bytes.
        let _ = fs::write("/proc/thread-self/comm", "the-tidy-test");
        Tidy
    }

    fn tests() -> MutexGuard<'static, TidyTests> {
        static TESTS: Mutex<TidyTests> = Mutex::new(TidyTests { running: 0, descriptors: 0, has_panicked: false });
        TESTS.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that a tidy test has started, or that one of those has: a thread has the name of the
    /// one that started it, unless it is given another.
    fn threads() -> usize {
        let name = |thread: PathBuf| fs::read_to_string(thread.join("comm")).unwrap_or_default();
        let own = ["the-tidy-test\n", "mllp-receiver\n", "mllp-forwarder\n"];
        entries("/proc/self/task").filter(|thread| own.contains(&&*name(thread.clone()))).count()
    }
}

impl Drop for Tidy {
    fn drop(&mut self) {
        let _ = fs::write("/proc/thread-self/comm", "a-tidy-test");
        // Nobody begins while it is looked.
        let mut tests = Tidy::tests();
        tests.running -= 1;
        tests.has_panicked |= thread::panicking();
        if cfg!(target_os = "linux") && tests.running == 0 && !tests.has_panicked {
            // What has ended may take a moment to vanish.
            eventually("no thread is left", || Tidy::threads() == 0);
            eventually("no descriptor is left", || entries("/proc/self/fd").count() <= tests.descriptors);
        }
    }
}

fn entries(directory: &str) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

/// Lets time pass that is what the test is about.
pub fn pass(time: Duration) {
    let begun = Instant::now();
    while let Some(left) = time.checked_sub(begun.elapsed()) {
        thread::park_timeout(left);
    }
}

/// Listens and takes no connection: what connects succeeds, and nothing is ever read.
pub struct Deaf {
    listener: TcpListener,
}

impl Deaf {
    pub fn new() -> Self {
        Deaf { listener: TcpListener::bind("127.0.0.1:0").unwrap() }
    }

    pub fn endpoint(&self) -> String {
        format!("mllp://{}", self.listener.local_addr().unwrap())
    }
}

/// An address whose queue of connections is full: a connection attempt is left without an answer,
/// as by a firewall.
pub struct Unreachable {
    listener: Socket,
    _queue: Vec<TcpStream>,
}

impl Unreachable {
    pub fn new() -> Self {
        Unreachable::at("127.0.0.1:0")
    }

    pub fn at(address: &str) -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.set_reuse_address(true).unwrap();
        listener.bind(&address.parse::<SocketAddr>().unwrap().into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let queue = std::iter::from_fn(|| TcpStream::connect_timeout(&address, Duration::from_millis(100)).ok());
        Unreachable { _queue: queue.take(64).collect(), listener }
    }

    pub fn endpoint(&self) -> String {
        format!("mllp://{}", self.listener.local_addr().unwrap().as_socket().unwrap())
    }
}

/// An address on which nobody listens.
pub fn dead_endpoint() -> String {
    format!("mllp://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
}

/// A peer played by a closure, for one connection, on a thread that is joined.
pub fn with_peer<T>(peer: impl FnOnce(TcpStream) + Send, client: impl FnOnce(String) -> T) -> T {
    /// Lets `accept` return where the client failed before it connected.
    struct Wake(SocketAddr);
    impl Drop for Wake {
        fn drop(&mut self) {
            drop(TcpStream::connect_timeout(&self.0, LONG));
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || peer(listener.accept().unwrap().0));
        let _wake = Wake(address);
        client(format!("mllp://{address}"))
    })
}

/// Reads whatever still comes, until the other side closes.
pub fn drain(mut stream: &TcpStream) -> usize {
    let mut buffer = [0; 16 * 1024];
    let mut total = 0;
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        total += count;
    }
    total
}

/// Reads until the frame's end.
pub fn read_frame(mut stream: &TcpStream) -> Vec<u8> {
    let mut frame = Vec::new();
    let mut buffer = [0; 16 * 1024];
    while !frame.ends_with(b"\x1C\r") {
        match stream.read(&mut buffer).unwrap() {
            0 => panic!("the client closed in the middle of a frame"),
            count => frame.extend_from_slice(&buffer[..count]),
        }
    }
    frame
}

/// A frame that acknowledges a message.
pub fn acknowledgment(code: &str, control_id: &str) -> Vec<u8> {
    format!("\x0BMSH|^~\\&|EHR|NORTH|LAB|NORTH|20260101||ACK^R01|1|P|2.5\rMSA|{code}|{control_id}\r\x1C\r").into_bytes()
}
