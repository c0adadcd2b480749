//! What the benchmarks of exchanges share: messages, a receiver that does no more than it must, a
//! clock.

#![allow(dead_code, reason = "each benchmark uses its part")]

#[cfg(feature = "redis")]
pub mod redis;

use std::fs::OpenOptions;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use core_affinity::CoreId;

const ROUNDS: usize = 41;

/// The cores for the client's end and for the receiver's: one each, then the same for both.
pub fn placements() -> Vec<(&'static str, CoreId, CoreId)> {
    let cores = core_affinity::get_core_ids().expect("the system tells its cores");
    let mut placements = vec![("both ends on one core", cores[0], cores[0])];
    if let [first, second, ..] = cores[..] {
        placements.insert(0, ("a core for each end", first, second));
    }
    placements
}

pub fn run_on(core: CoreId) {
    assert!(core_affinity::set_for_current(core), "this thread may run there");
}

/// What stands before the control ID, whose length is fixed.
const BEFORE_ID: &[u8] = b"MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|";
const ID: usize = 8;

/// Messages of one size, each with a control ID of its own, as a sender gives them.
#[derive(Clone)]
pub struct Messages(Vec<u8>);

impl Messages {
    /// Messages of this many bytes.
    pub fn new(size: usize) -> Messages {
        Messages::of_sender(0, size)
    }

    /// The messages of one of many senders, of which each has a million.
    pub fn of_sender(sender: usize, size: usize) -> Messages {
        let id = format!("{sender:02}000000");
        let mut message = [BEFORE_ID, id.as_bytes(), b"|P|2.5\rOBX|1|TX|"].concat();
        message.resize(size - 1, b'x');
        message.push(b'\r');
        Messages(message)
    }

    /// The next message.
    pub fn next(&mut self) -> &[u8] {
        for digit in self.0[BEFORE_ID.len()..BEFORE_ID.len() + ID].iter_mut().rev() {
            if *digit < b'9' {
                *digit += 1;
                break;
            }
            *digit = b'0';
        }
        &self.0
    }
}

/// A socket set up as the client's.
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the receiver listens");
    let limit = Some(Duration::from_secs(30));
    stream.set_nodelay(true).expect("a TCP socket takes it");
    stream.set_read_timeout(limit).expect("a TCP socket takes it");
    stream.set_write_timeout(limit).expect("a TCP socket takes it");
    stream
}

/// Serves so many connections, each on a thread that runs where the system puts it.
pub fn serve_anywhere(connections: usize) -> SocketAddr {
    serve_by(connections, || (), |stream| stream)
}

/// The same by a receiver that takes so long for each answer.
pub fn serve_after(delay: Duration, connections: usize) -> SocketAddr {
    serve_by(connections, || (), move |stream| Slow { stream, delay })
}

struct Slow {
    stream: TcpStream,
    delay: Duration,
}

impl Read for Slow {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        thread::sleep(self.delay);
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Serves so many connections, each on a thread on this core, once `open` has made of the socket
/// what is read and written.
pub fn serve<S: Read + Write>(
    connections: usize,
    core: CoreId,
    open: impl Fn(TcpStream) -> S + Clone + Send + 'static,
) -> SocketAddr {
    serve_by(connections, move || run_on(core), open)
}

fn serve_by<S: Read + Write>(
    connections: usize,
    begin: impl Fn() + Clone + Send + 'static,
    open: impl Fn(TcpStream) -> S + Clone + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for connection in listener.incoming().take(connections) {
            let connection = connection.expect("it connected");
            let (begin, open) = (begin.clone(), open.clone());
            thread::spawn(move || {
                begin();
                connection.set_nodelay(true).expect("a TCP socket takes it");
                let mut stream = open(connection);
                let mut answer =
                    b"\x0BMSH|^~\\&|EHR|H|LAB|H|20260101||ACK^R01|1|P|2.5\rMSA|AA|00000000\r\x1C\r".to_vec();
                let id_at = answer.len() - 3 - ID;
                let mut buffer = vec![0; 256 * 1024];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    if buffer.starts_with(&[b"\x0B", BEFORE_ID].concat()) {
                        let from = 1 + BEFORE_ID.len();
                        answer[id_at..id_at + ID].copy_from_slice(&buffer[from..from + ID]);
                    }
                    if buffer[..count].ends_with(b"\x1C\r") {
                        stream.write_all(&answer).expect("the client reads");
                        buffer[0] = 0;
                    }
                }
            });
        }
    });
    address
}

/// The limit: one write, one read.
pub fn exchange_bare(stream: &mut (impl Read + Write), frame: &[u8]) {
    let mut reply = [0; 4096];
    stream.write_all(frame).expect("the receiver reads");
    let mut received = 0;
    while !reply[..received].ends_with(b"\x1C\r") {
        received += stream.read(&mut reply[received..]).expect("the receiver answers");
    }
    black_box(&reply[..received]);
}

/// Lets the works take turns on messages of this size; the medians in microseconds, and the medians
/// of the rounds' own ratios to the first.
pub fn compare<const N: usize>(size: usize, mut works: [&mut dyn FnMut(); N]) -> ([f64; N], [f64; N]) {
    let repeats = (10_000_000 / size).clamp(8, 2_000);
    let mut runs = works.each_mut().map(|work| move || (0..repeats).for_each(|_| work()));
    let (seconds, ratios) = compare_runs(runs.each_mut().map(|run| run as &mut dyn FnMut()));
    (seconds.map(|seconds| seconds * 1e6 / repeats as f64), ratios)
}

/// Lets the works take turns; the medians in seconds, and the medians of the rounds' own ratios to
/// the first.
pub fn compare_runs<const N: usize>(mut works: [&mut dyn FnMut(); N]) -> ([f64; N], [f64; N]) {
    // The first round warms up.
    let rounds: Vec<[f64; N]> = (0..=ROUNDS).map(|_| works.each_mut().map(|work| time(work))).skip(1).collect();
    let median_of = |value: &dyn Fn(&[f64; N]) -> f64| median(rounds.iter().map(value));
    let indices: [usize; N] = std::array::from_fn(|index| index);
    (
        indices.map(|index| median_of(&|round| round[index])),
        indices.map(|index| median_of(&|round| round[index] / round[0])),
    )
}

/// Notes a figure for the chart, where `MLLP_BENCH_RECORD` names a file: how long something takes,
/// the limit being one.
pub fn note(chart: &str, row: &str, what: &str, ratio: f64) {
    if let Some(path) = std::env::var_os("MLLP_BENCH_RECORD") {
        let mut record = OpenOptions::new().append(true).create(true).open(path).expect("the record can be written");
        writeln!(record, "{chart}\t{row}\t{what}\t{ratio:.4}").expect("the record can be written");
    }
}

fn time(work: &mut dyn FnMut()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64()
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
