//! Described peers, and a clock that runs only while somebody waits: what a connection does depends on nothing else, so that it does the
//! same each time.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// What one peer does, in order.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// What it says, each so long after the one before; the first after the connection was opened.
    pub says: VecDeque<(Duration, Says)>,
    /// How it takes what it is sent. Afterwards it takes all there is, at once.
    pub takes: VecDeque<Takes>,
}

/// One thing that a peer says.
#[derive(Clone, Debug)]
pub enum Says {
    /// Bytes.
    Bytes(Vec<u8>),
    /// That it has nothing more to say.
    End,
    /// That there is no connection.
    Reset,
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

/// What a connection did.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// All that was sent.
    pub sent: Vec<u8>,
    /// All that was received.
    pub received: Vec<u8>,
    /// Each write that was taken: where in what was sent it begins, and how many bytes lay unread when it was asked for.
    pub writes: Vec<(usize, usize)>,
    /// Whether it was closed.
    pub closed: bool,
    /// Whether it was read or written after that.
    pub used_after_close: bool,
}

/// What can be seen of a connection without taking anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Nothing,
    Bytes,
    End,
    Reset,
}

#[derive(Default)]
struct World {
    now: Duration,
    lines: Vec<State>,
    opened: usize,
}

struct State {
    peer: Peer,
    /// When it said the last thing.
    said: Duration,
    /// What it has said and nobody has read.
    unread: VecDeque<u8>,
    /// Where that was: given back at the end, since a call's memory is measured.
    emptied: Vec<Vec<u8>>,
    over: Option<Seen>,
    record: Record,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::default();
}

static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Begins anew, with these peers behind the next connections, one each. Further connections are refused.
///
/// `most_sent` is how much will be sent over one of them at most: room is made for it now, so that what the client needs can be told from
/// what the record of it takes.
pub fn begin(peers: Vec<Peer>, most_sent: usize) {
    LazyLock::force(&BEGINNING);
    let state = |peer: Peer| {
        let said = peer.says.iter().map(|(_, says)| if let Says::Bytes(bytes) = says { bytes.len() } else { 0 }).sum();
        State {
            said: Duration::ZERO,
            unread: VecDeque::with_capacity(said),
            emptied: Vec::with_capacity(peer.says.len()),
            over: None,
            record: Record {
                sent: Vec::with_capacity(most_sent),
                received: Vec::with_capacity(said),
                writes: Vec::with_capacity(peer.takes.len() + 64),
                ..Record::default()
            },
            peer,
        }
    };
    WORLD.set(World { now: Duration::ZERO, lines: peers.into_iter().map(state).collect(), opened: 0 });
}

/// What the connections have done so far, in the order in which they were opened.
pub fn with_records<T>(look: impl FnOnce(&[&Record]) -> T) -> T {
    WORLD.with_borrow(|world| look(&world.lines[..world.opened].iter().map(|line| &line.record).collect::<Vec<_>>()))
}

/// Time since it all began.
pub fn elapsed() -> Duration {
    WORLD.with_borrow(|world| world.now)
}

/// Lets time pass.
pub fn pass(time: Duration) {
    WORLD.with_borrow_mut(|world| world.now += time);
}

/// The present, for [`deadline`](crate::deadline).
pub(crate) fn now() -> Instant {
    *BEGINNING + elapsed()
}

/// Opens the next connection, if there is a peer left.
pub(crate) fn connect() -> Option<Line> {
    WORLD.with_borrow_mut(|world| {
        let index = world.opened;
        world.lines.get_mut(index)?.said = world.now;
        world.opened += 1;
        Some(Line { index })
    })
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Line {
    index: usize,
}

impl Line {
    /// Looks at what has come until now.
    pub(crate) fn seen(&self) -> Seen {
        self.with(|state, now| {
            state.record.used_after_close |= state.record.closed;
            state.hear(*now);
            if state.unread.is_empty() { state.over.unwrap_or(Seen::Nothing) } else { Seen::Bytes }
        })
    }

    /// Waits until more has come, or so long.
    pub(crate) fn wait_for_more(&self, at_most: Duration) {
        self.with(|state, now| {
            *now = state.next_said().clamp(*now, now.saturating_add(at_most));
        });
    }

    /// Takes what lies unread.
    pub(crate) fn take(&self, buffer: &mut [u8]) -> usize {
        self.with(|state, _| {
            let count = state.unread.len().min(buffer.len());
            for (place, byte) in buffer.iter_mut().zip(state.unread.drain(..count)) {
                *place = byte;
            }
            state.record.received.extend_from_slice(&buffer[..count]);
            count
        })
    }

    /// Offers bytes, of which some are taken before so long has passed.
    pub(crate) fn put(&self, slices: &[IoSlice<'_>], at_most: Duration) -> io::Result<usize> {
        self.with(|state, now| {
            state.record.used_after_close |= state.record.closed;
            let until = now.saturating_add(at_most);
            let mut free_at = *now;
            state.hear(*now);
            let unread = state.unread.len();
            let most = loop {
                state.hear(*now);
                if state.over == Some(Seen::Reset) {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                if *now >= until {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                if *now < free_at {
                    // What it says meanwhile may end the wait.
                    *now = free_at.min(until).min(state.next_said());
                    continue;
                }
                match state.peer.takes.front().copied() {
                    None => break usize::MAX,
                    Some(Takes::AtMost(most)) => {
                        state.peer.takes.pop_front();
                        break most.max(1);
                    }
                    Some(Takes::Nothing(pause)) => {
                        state.peer.takes.pop_front();
                        free_at = now.saturating_add(pause);
                    }
                    Some(Takes::Broken) => return Err(io::ErrorKind::BrokenPipe.into()),
                }
            };
            let before = state.record.sent.len();
            state.record.writes.push((before, unread));
            for slice in slices {
                let room = most - (state.record.sent.len() - before);
                state.record.sent.extend_from_slice(&slice[..room.min(slice.len())]);
            }
            Ok(state.record.sent.len() - before)
        })
    }

    pub(crate) fn close(&self) {
        self.with(|state, _| state.record.closed = true);
    }

    fn with<T>(&self, act: impl FnOnce(&mut State, &mut Duration) -> T) -> T {
        WORLD.with_borrow_mut(|world| act(&mut world.lines[self.index], &mut world.now))
    }
}

impl State {
    /// When the peer says the next thing, if it ever does.
    fn next_said(&self) -> Duration {
        self.peer
            .says
            .front()
            .filter(|_| self.over.is_none())
            .map_or(Duration::MAX, |(pause, _)| self.said.saturating_add(*pause))
    }

    /// Takes in what the peer has said until now.
    fn hear(&mut self, now: Duration) {
        while self.over.is_none() {
            let Some((pause, _)) = self.peer.says.front() else { break };
            let due = self.said.saturating_add(*pause);
            if due > now {
                break;
            }
            self.said = due;
            match self.peer.says.pop_front() {
                Some((_, Says::Bytes(bytes))) => {
                    self.unread.extend(&bytes);
                    self.emptied.push(bytes);
                }
                Some((_, Says::End)) => self.over = Some(Seen::End),
                Some((_, Says::Reset)) => self.over = Some(Seen::Reset),
                None => {}
            }
        }
    }
}
