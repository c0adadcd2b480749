//! Taking and returning the connection: one at most, waiting for it, closing it for good; no thread.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::connection::{Connection, Health, Settings};
use crate::deadline::Deadline;
use crate::error::{Error, ErrorKind, Phase};
use crate::socket::ShutdownHandle;

/// A client's one connection, or the place for it.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Boxed, since it moves between here and a lease for every message.
    idle: Option<Box<Connection>>,
    /// Whether a thread holds the place.
    taken: bool,
    /// Whether that thread has a connection in it.
    connected: bool,
    /// Ends the connection that is in use or being opened.
    handle: Option<ShutdownHandle>,
    closed: bool,
    /// How many threads wait; waking nobody would be a system call all the same.
    waiting: usize,
}

impl Pool {
    /// Waits for the place, until the deadline.
    pub(crate) fn take(&self, deadline: &Deadline) -> Result<Lease<'_>, Error> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return Err(Error::before_sending(ErrorKind::Closed));
            }
            if !state.taken {
                return Ok(self.lend(state));
            }
            let left = deadline.remaining();
            if let Some(left) = left {
                state.waiting += 1;
                state = self.returned.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                state.waiting -= 1;
            }
            if left.is_none() || (deadline.remaining().is_none() && !state.closed) {
                // Passed on, should it be free by now: whoever is told of it last must not be the one who leaves.
                self.pass_on(&state);
                let kind = ErrorKind::Timeout { phase: Phase::Checkout, limit: deadline.limit() };
                return Err(Error::before_sending(kind));
            }
        }
    }

    /// Whether a connection is open; one that nobody uses is probed.
    pub(crate) fn is_connected(&self) -> bool {
        let state = self.lock();
        if state.closed || state.taken {
            return !state.closed && state.connected;
        }
        self.lend(state).sound().is_some()
    }

    /// Closes for good: ends what is under way and lets nobody in any more.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let handle = state.handle.take();
        let idle = state.idle.take();
        self.returned.notify_all();
        // Outside the lock, since an observer is told, and may ask the client something.
        drop(state);
        if let Some(handle) = handle {
            handle.shutdown();
        }
        drop(idle);
    }

    fn lend(&self, mut state: MutexGuard<'_, State>) -> Lease<'_> {
        let connection = state.idle.take();
        state.taken = true;
        state.connected = connection.is_some();
        Lease { pool: self, connection }
    }

    /// Wakes one of those who wait, if the place is free.
    fn pass_on(&self, state: &State) {
        if !state.taken && state.waiting > 0 {
            self.returned.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is a few assignments, so that a panic cannot leave it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place, and the connection in it; both go back when it is dropped.
#[derive(Debug)]
pub(crate) struct Lease<'p> {
    pool: &'p Pool,
    connection: Option<Box<Connection>>,
}

impl Lease<'_> {
    /// The connection, if there is one that can be used; one that cannot is ended.
    pub(crate) fn sound(&mut self) -> Option<&mut Connection> {
        match self.connection.as_mut()?.health() {
            Health::Sound => {}
            Health::Surplus(stale) => {
                self.connection.as_mut()?.end_for_surplus(stale);
                self.discard();
            }
            Health::Ended(_) => self.discard(),
        }
        self.connection.as_deref_mut()
    }

    /// A fresh connection, in place of what there was.
    pub(crate) fn open(&mut self, settings: &Arc<Settings>, deadline: &Deadline) -> Result<&mut Connection, Error> {
        self.discard();
        let handle = ShutdownHandle::new();
        {
            let mut state = self.pool.lock();
            if state.closed {
                return Err(Error::before_sending(ErrorKind::Closed));
            }
            state.handle = Some(handle.clone());
        }
        let connection = Connection::open(settings, deadline, handle)?;
        self.pool.lock().connected = true;
        Ok(self.connection.insert(Box::new(connection)))
    }

    fn discard(&mut self) {
        self.connection = None;
        self.pool.lock().connected = false;
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut connection = self.connection.take();
        if !connection.as_mut().is_some_and(|connection| connection.rest()) {
            connection = None;
        }
        let mut state = self.pool.lock();
        state.taken = false;
        state.connected = false;
        if !state.closed {
            state.idle = connection.take();
        }
        self.pool.pass_on(&state);
        // The lock goes before a connection that came back too late: its end is told.
        drop(state);
    }
}
