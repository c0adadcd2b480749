//! Simulated peers, and a clock that advances only while the thread waits: a third kind of channel
//! beside plain and TLS, for tests and fuzzers. A connection then behaves the same each time, and
//! time-outs take no time.
//!
//! A simulation holds for the thread that has begun it. There, connections are opened to the
//! described peers, and the clock of `deadline.rs` is the simulation's.

mod channel;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

pub(crate) use channel::Channel;

use crate::endpoint::Endpoint;
use crate::net::{OpenError, ShutdownHandle};

/// The actions of one peer, in order.
#[derive(Debug, Default)]
pub struct Peer {
    /// The bytes that the peer sends. Each delay counts from the entry before, the first one from
    /// the opening of the connection.
    pub says: VecDeque<(Duration, Says)>,
    /// How it takes what it is sent. Afterwards it takes all there is, at once.
    pub takes: VecDeque<Takes>,
    /// Whether it refuses the connection.
    pub refuses: bool,
}

/// One thing that a peer says.
pub enum Says {
    /// Bytes.
    Bytes(Vec<u8>),
    /// That it has nothing more to say.
    End,
    /// That there is no connection.
    Reset,
    /// The bytes that this closure makes of all that has been sent to it; `None` if it waits for
    /// more, and then for the pause once more.
    InReply(Box<dyn FnMut(&[u8]) -> Option<Says>>),
}

impl std::fmt::Debug for Says {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Says::Bytes(_) => "Bytes",
            Says::End => "End",
            Says::Reset => "Reset",
            Says::InReply(_) => "InReply",
        })
    }
}

/// How a peer takes what one write offers.
#[derive(Clone, Copy, Debug)]
pub enum Takes {
    /// At most so many bytes of it, and at least one.
    AtMost(usize),
    /// Nothing for so long.
    Nothing(Duration),
    /// Never anything again.
    Broken,
}

/// The record of a connection.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// All that was sent.
    pub sent: Vec<u8>,
    /// All that was received.
    pub received: Vec<u8>,
    /// Each thing that the peer said: where in what is received it begins, and how many bytes had
    /// been sent by then, one of which may still be offered.
    pub said: Vec<(usize, usize)>,
    /// How many bytes the peer said.
    pub spoken: usize,
    /// Each write that was taken: where in what was sent it begins, and how many bytes lay unread
    /// when it was asked for.
    pub writes: Vec<(usize, usize)>,
    /// Whether it was closed.
    pub closed: bool,
    /// Whether it was read or written after that.
    pub used_after_close: bool,
}

/// The state of a connection as a look shows it that takes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Nothing,
    Bytes,
    End,
    Reset,
}

struct World {
    now: Duration,
    links: Vec<Link>,
    opened: usize,
}

/// One connection, opened or not.
struct Link {
    peer: Peer,
    /// When it said the last thing.
    said: Duration,
    /// The bytes that it has sent and nobody has read.
    unread: VecDeque<u8>,
    /// Buffers already sent, freed at the end, since tests measure the memory of a call.
    emptied: Vec<Vec<u8>>,
    over: Option<Seen>,
    /// Whether it waits for more to be sent before it says the next thing.
    waits: bool,
    /// One while bytes are offered to it.
    offers: usize,
    record: Record,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A simulation on this thread. It ends when this is dropped.
#[derive(Debug)]
#[must_use = "the simulation ends when this is dropped"]
pub struct Simulation {
    of_this_thread: PhantomData<*const ()>,
}

impl Simulation {
    /// Begins anew, with these peers behind the next connections, one each. Further connections are
    /// refused.
    ///
    /// `most_sent` is how much will be sent over one of them at most: room is made for it now, so
    /// that what the client needs can be told from what the record of it takes.
    pub fn begin(peers: Vec<Peer>, most_sent: usize) -> Simulation {
        LazyLock::force(&BEGINNING);
        let links = peers.into_iter().map(|peer| Link::new(peer, most_sent)).collect();
        WORLD.set(Some(World { now: Duration::ZERO, links, opened: 0 }));
        Simulation { of_this_thread: PhantomData }
    }

    /// The records of the connections so far, in the order in which they were opened.
    pub fn with_records<T>(&self, look: impl FnOnce(&[&Record]) -> T) -> T {
        with(|world| look(&world.links[..world.opened].iter().map(|link| &link.record).collect::<Vec<_>>()))
    }

    /// How many bytes the records and what lies unread take, with the room to grow.
    pub fn memory(&self) -> usize {
        let of_link = |link: &Link| {
            let Record { sent, received, said, writes, .. } = &link.record;
            let bytes = link.unread.capacity() + sent.capacity() + received.capacity();
            bytes + size_of::<(usize, usize)>() * (said.capacity() + writes.capacity())
        };
        with(|world| world.links.iter().map(of_link).sum())
    }

    /// Time since it all began.
    pub fn elapsed(&self) -> Duration {
        with(|world| world.now)
    }

    /// Lets time pass.
    pub fn pass(&self, time: Duration) {
        with(|world| world.now += time);
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        WORLD.set(None);
    }
}

/// Now, if this thread is in a simulation.
pub(crate) fn now() -> Option<Instant> {
    WORLD.with_borrow(|world| world.as_ref().map(|world| *BEGINNING + world.now))
}

/// Lets this much time pass in place of waiting, if this thread is in a simulation.
pub(crate) fn wait(time: Duration) -> bool {
    WORLD.with_borrow_mut(|world| world.as_mut().map(|world| world.now = world.now.saturating_add(time)).is_some())
}

/// Connects to the next peer, if this thread is in a simulation.
pub(crate) fn connect(endpoint: &Endpoint, handle: &ShutdownHandle) -> Option<Result<Channel, OpenError>> {
    WORLD.with_borrow_mut(|world| {
        let world = world.as_mut()?;
        let refused = || {
            let address = ([127, 0, 0, 1], endpoint.port()).into();
            OpenError::Connect { address: Some(address), source: io::ErrorKind::ConnectionRefused.into() }
        };
        if handle.is_shut() {
            return Some(Err(OpenError::Shutdown));
        }
        let Some(link) = world.links.get_mut(world.opened) else { return Some(Err(refused())) };
        link.said = world.now;
        world.opened += 1;
        if link.peer.refuses {
            link.record.closed = true;
            return Some(Err(refused()));
        }
        Some(Ok(Channel::new(world.opened - 1, handle.clone())))
    })
}

fn with<T>(act: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with_borrow_mut(|world| {
        act(world.as_mut().expect("a channel and a simulation exist on one thread, in this order"))
    })
}

impl Link {
    fn new(peer: Peer, most_sent: usize) -> Link {
        let said = peer.says.iter().map(|(_, says)| if let Says::Bytes(bytes) = says { bytes.len() } else { 0 }).sum();
        Link {
            said: Duration::ZERO,
            unread: VecDeque::with_capacity(said),
            emptied: Vec::with_capacity(peer.says.len()),
            over: None,
            waits: false,
            offers: 0,
            record: Record {
                sent: Vec::with_capacity(most_sent),
                received: Vec::with_capacity(said),
                writes: Vec::with_capacity(peer.takes.len() + 64),
                ..Record::default()
            },
            peer,
        }
    }

    /// When the peer says the next thing, if it ever does.
    fn next_said(&self) -> Duration {
        let next = self.peer.says.front().filter(|_| self.over.is_none() && !self.waits);
        next.map_or(Duration::MAX, |(pause, _)| self.said.saturating_add(*pause))
    }

    /// Takes in what the peer has said until now.
    fn listen(&mut self, now: Duration) {
        while self.over.is_none() {
            let due = self.next_said();
            if due > now {
                break;
            }
            let says = match self.peer.says.pop_front() {
                Some((pause, Says::InReply(mut reply))) => match reply(&self.record.sent) {
                    Some(says) => says,
                    None => {
                        // Asked again once more has been sent.
                        self.peer.says.push_front((pause, Says::InReply(reply)));
                        self.said = due;
                        self.waits = true;
                        break;
                    }
                },
                Some((_, says)) => says,
                None => break,
            };
            self.said = due;
            match says {
                Says::Bytes(bytes) => {
                    self.record.spoken += bytes.len();
                    self.record
                        .said
                        .push((self.record.received.len() + self.unread.len(), self.record.sent.len() + self.offers));
                    self.unread.extend(&bytes);
                    self.emptied.push(bytes);
                }
                Says::End => self.over = Some(Seen::End),
                Says::Reset => self.over = Some(Seen::Reset),
                Says::InReply(_) => {}
            }
        }
    }

    /// Looks at what has come until now.
    fn seen(&mut self, now: Duration) -> Seen {
        self.record.used_after_close |= self.record.closed;
        self.listen(now);
        if self.unread.is_empty() { self.over.unwrap_or(Seen::Nothing) } else { Seen::Bytes }
    }

    /// Takes what lies unread.
    fn take(&mut self, buffer: &mut [u8]) -> usize {
        let count = self.unread.len().min(buffer.len());
        for (slot, byte) in buffer.iter_mut().zip(self.unread.drain(..count)) {
            *slot = byte;
        }
        self.record.received.extend_from_slice(&buffer[..count]);
        count
    }

    /// Offers bytes to the peer, which takes some of them or none within `at_most`; returns their
    /// number and lets the time pass that it took.
    fn put(&mut self, slices: &[IoSlice<'_>], at_most: Duration, now: &mut Duration) -> io::Result<usize> {
        self.record.used_after_close |= self.record.closed;
        let until = now.saturating_add(at_most);
        self.listen(*now);
        let unread = self.unread.len();
        self.offers = 1;
        let most = self.wait_to_take(until, now);
        self.offers = 0;
        let most = most?;
        let before = self.record.sent.len();
        self.record.writes.push((before, unread));
        for slice in slices {
            let room = most - (self.record.sent.len() - before);
            self.record.sent.extend_from_slice(&slice[..room.min(slice.len())]);
        }
        if std::mem::take(&mut self.waits) {
            self.said = *now;
        }
        Ok(self.record.sent.len() - before)
    }

    /// Lets time pass until the peer takes something. Returns how many bytes it takes at most.
    fn wait_to_take(&mut self, until: Duration, now: &mut Duration) -> io::Result<usize> {
        let mut free_at = *now;
        loop {
            self.listen(*now);
            if self.over == Some(Seen::Reset) {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            if *now >= until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if *now < free_at {
                // Bytes that it sends meanwhile may end the wait.
                *now = free_at.min(until).min(self.next_said());
                continue;
            }
            match self.peer.takes.front().copied() {
                None => return Ok(usize::MAX),
                Some(Takes::AtMost(most)) => {
                    self.peer.takes.pop_front();
                    return Ok(most.max(1));
                }
                Some(Takes::Nothing(pause)) => {
                    self.peer.takes.pop_front();
                    free_at = now.saturating_add(pause);
                }
                Some(Takes::Broken) => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }
}

#[cfg(test)]
impl Peer {
    /// A peer that says these things after each message, in order, each so long after the one
    /// before; commit blocks are no messages.
    pub(crate) fn answering(answers: impl IntoIterator<Item = Vec<(Duration, Vec<u8>)>>) -> Peer {
        let mut says = VecDeque::new();
        for (index, answer) in answers.into_iter().enumerate() {
            for (pause, bytes) in answer {
                let has_come = move |sent: &[u8]| {
                    let count = |bytes: &[u8]| memchr::memmem::find_iter(sent, bytes).count();
                    let messages = count(b"\x1C\r") - count(b"\x0B\x06\x1C\r") - count(b"\x0B\x15\x1C\r");
                    (messages > index).then(|| Says::Bytes(bytes.clone()))
                };
                says.push_back((pause, Says::InReply(Box::new(has_come))));
            }
        }
        Peer { says, ..Peer::default() }
    }
}
