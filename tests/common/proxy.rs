//! A network that fails at a chosen byte: a proxy between a client and its receiver.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::SockRef;

use super::pass;

/// What happens at that byte, to both sides of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Both sides see the end of the stream.
    Cut,
    /// Both sides see a reset.
    Reset,
    /// Nothing more passes, in either direction, and nobody is told.
    Stall,
    /// What follows comes apart from what was before, and nothing is lost.
    Split,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToReceiver,
    ToClient,
}

/// Passes bytes on, until the one at which a fault is due. Ends its connections and its threads
/// when dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    endpoint: String,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    receiver: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stopping: bool,
    armed: Option<(Direction, usize, Fault)>,
    /// How much has been passed on to the receiver and to the client since a fault was armed last.
    passed: [usize; 2],
    open: HashMap<usize, Arc<Line>>,
}

/// One connection: the client's side and the receiver's.
struct Line {
    client: TcpStream,
    receiver: TcpStream,
    fate: Mutex<Fate>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Passes,
    Stalls,
    Ended,
}

impl Proxy {
    /// In front of the receiver at an endpoint.
    pub fn to(endpoint: &str) -> Proxy {
        let (scheme, receiver) = endpoint.split_once("://").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { receiver: receiver.to_owned(), state: Mutex::default() });
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        });
        Proxy { shared, endpoint: format!("{scheme}://{address}"), address, acceptor: Some(acceptor) }
    }

    /// The receiver's endpoint, by way of the proxy.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// Lets so many of the bytes pass that come from now on in this direction, and has the fault
    /// happen then: to the connection on which they are.
    pub fn arm(&self, direction: Direction, offset: usize, fault: Fault) {
        let mut state = self.shared.lock();
        state.armed = Some((direction, offset, fault));
        state.passed = [0; 2];
    }

    /// Counts anew what passes, and forgets a fault that has not happened.
    pub fn disarm(&self) {
        let mut state = self.shared.lock();
        state.armed = None;
        state.passed = [0; 2];
    }

    /// Whether a fault has not happened yet.
    pub fn is_armed(&self) -> bool {
        self.shared.lock().armed.is_some()
    }

    /// How much has been passed on to the receiver and to the client since.
    pub fn passed(&self) -> [usize; 2] {
        self.shared.lock().passed
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.stopping = true;
            state.open.values().for_each(|line| line.end());
        }
        let woken = TcpStream::connect(self.address);
        self.acceptor.take().unwrap().join().unwrap();
        drop(woken);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(&self, listener: &TcpListener) {
        thread::scope(|scope| {
            for number in 0.. {
                let client = listener.accept().unwrap().0;
                // A receiver that is away is one that hangs up.
                let receiver = TcpStream::connect(&self.receiver);
                let mut state = self.lock();
                if state.stopping {
                    return;
                }
                let Ok(receiver) = receiver else { continue };
                client.set_nodelay(true).unwrap();
                receiver.set_nodelay(true).unwrap();
                let line = Arc::new(Line { client, receiver, fate: Mutex::new(Fate::Passes) });
                state.open.insert(number, Arc::clone(&line));
                drop(state);
                let back = Arc::clone(&line);
                let back = scope.spawn(move || self.pump(&back, Direction::ToClient));
                scope.spawn(move || {
                    self.pump(&line, Direction::ToReceiver);
                    back.join().unwrap();
                    self.lock().open.remove(&number);
                });
            }
        });
    }

    /// Passes on what comes from one side, until that ends.
    fn pump(&self, line: &Line, direction: Direction) {
        let (mut from, mut to) = match direction {
            Direction::ToReceiver => (&line.client, &line.receiver),
            Direction::ToClient => (&line.receiver, &line.client),
        };
        let mut buffer = [0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if line.fate() != Fate::Passes {
                continue;
            }
            let (before, fault) = self.due(direction, count);
            let (before, after) = buffer[..count].split_at(before);
            if fault.is_some_and(|fault| fault != Fault::Split) {
                // Before the last of it leaves, so that no answer to that overtakes the fault.
                line.stall();
            }
            if to.write_all(before).is_err() {
                break;
            }
            match fault {
                None => {}
                Some(Fault::Split) => {
                    // So that the other side reads what is before alone.
                    pass(Duration::from_millis(1));
                    if to.write_all(after).is_err() {
                        break;
                    }
                }
                Some(Fault::Cut) => return line.end(),
                Some(Fault::Reset) => return line.reset(),
                Some(Fault::Stall) => {}
            }
        }
        match line.fate() {
            // It fails where that side has ended too.
            Fate::Passes => drop(to.shutdown(Shutdown::Write)),
            Fate::Stalls => line.end(),
            Fate::Ended => {}
        }
    }

    /// How many of the next bytes are passed on, and what happens then.
    fn due(&self, direction: Direction, count: usize) -> (usize, Option<Fault>) {
        let mut state = self.lock();
        let passed = state.passed[direction as usize];
        match state.armed {
            Some((due, offset, fault)) if due == direction && passed + count >= offset => {
                state.armed = None;
                state.passed[direction as usize] = if fault == Fault::Split { passed + count } else { offset };
                (offset - passed, Some(fault))
            }
            _ => {
                state.passed[direction as usize] += count;
                (count, None)
            }
        }
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Fate> {
        self.fate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fate(&self) -> Fate {
        *self.lock()
    }

    fn stall(&self) {
        *self.lock() = Fate::Stalls;
    }

    fn end(&self) {
        *self.lock() = Fate::Ended;
        self.shutdown(Shutdown::Both);
    }

    /// What is closed without waiting for what it has not sent is reset. That is done by whoever
    /// has the sockets last.
    fn reset(&self) {
        *self.lock() = Fate::Ended;
        for socket in [&self.client, &self.receiver] {
            SockRef::from(socket).set_linger(Some(Duration::ZERO)).unwrap();
        }
        self.shutdown(Shutdown::Read);
    }

    fn shutdown(&self, how: Shutdown) {
        for socket in [&self.client, &self.receiver] {
            match socket.shutdown(how) {
                Ok(()) => {}
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotConnected),
            }
        }
    }
}
