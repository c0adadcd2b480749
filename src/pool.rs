//! Taking and returning connections: the cap, those that are too old, opening another, closing for good; no thread.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::connection::{Connection, Health, Settings};
use crate::deadline::Deadline;
use crate::error::{Error, ErrorKind, Phase};
use crate::event::Event;
use crate::outage::{Moment, Outage};
use crate::places::{Look, Place, Places, Refusal};
use crate::reconnect::Reconnect;
use crate::socket::ShutdownHandle;

/// How connections are kept.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) max_connections: usize,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) max_connection_age: Option<Duration>,
    pub(crate) reconnect: Reconnect,
}

/// A client's connections.
#[derive(Debug)]
pub(crate) struct Pool {
    settings: Arc<Settings>,
    idle_timeout: Option<Duration>,
    max_connection_age: Option<Duration>,
    places: Places<Box<Kept>>,
    outage: Outage,
    /// What ends the connections that are open or being opened.
    handles: Mutex<Vec<ShutdownHandle>>,
}

/// A connection, and until when it may be used. Boxed, since it moves between the pool and a lease for every message.
#[derive(Debug)]
struct Kept {
    connection: Connection,
    idle_until: Option<Deadline>,
    young_until: Option<Deadline>,
}

impl Kept {
    fn is_old(&self) -> bool {
        let passed = |limit: &Option<Deadline>| limit.is_some_and(|limit| limit.remaining().is_none());
        passed(&self.idle_until) || passed(&self.young_until)
    }
}

impl Pool {
    pub(crate) fn new(settings: Arc<Settings>, options: Options) -> Self {
        Pool {
            settings,
            idle_timeout: options.idle_timeout,
            max_connection_age: options.max_connection_age,
            places: Places::new(options.max_connections),
            outage: Outage::new(options.reconnect),
            handles: Mutex::default(),
        }
    }

    pub(crate) fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// Waits for a place, until the deadline.
    pub(crate) fn take(&self, deadline: &Deadline) -> Result<Lease<'_>, Error> {
        let began = self.outage.now();
        match self.places.take(deadline) {
            Ok(place) => Ok(self.lease(place, began)),
            Err(Refusal::Closed) => Err(closed()),
            // Where those who have the places cannot reach the receiver, that is what was waited for.
            Err(Refusal::TooLate) => Err(self.outage.failure_since(began).unwrap_or_else(|| {
                let kind = ErrorKind::Timeout { phase: Phase::Checkout, limit: deadline.limit() };
                Error::before_sending(kind)
            })),
        }
    }

    /// Ends the connections that nobody uses.
    pub(crate) fn drop_idle(&self) {
        self.outage.suspect();
        self.places.take_idle().iter_mut().for_each(Place::empty);
    }

    /// Whether a connection is open; those that nobody uses are probed, if nobody uses any.
    pub(crate) fn is_connected(&self) -> bool {
        loop {
            match self.places.look() {
                Look::InUse => return true,
                Look::Nothing => return false,
                Look::Idle(place) => {
                    if self.lease(place, self.outage.now()).sound().is_some() {
                        return true;
                    }
                }
            }
        }
    }

    /// Closes for good: ends what is under way and lets nobody in any more.
    pub(crate) fn close(&self) {
        let idle = self.places.close();
        self.outage.close();
        // Whoever adds a handle later looks afterwards whether the pool is closed.
        let handles = std::mem::take(&mut *self.handles());
        handles.iter().for_each(ShutdownHandle::shutdown);
        drop(idle);
    }

    fn lease<'p>(&'p self, place: Place<'p, Box<Kept>>, began: Moment) -> Lease<'p> {
        Lease { pool: self, place, began, used: false }
    }

    fn open(&self, deadline: &Deadline) -> Result<Box<Kept>, Error> {
        let handle = ShutdownHandle::new();
        let mut handles = self.handles();
        // What a connection has let go of ends nothing any more.
        handles.retain(ShutdownHandle::is_shared);
        handles.push(handle.clone());
        drop(handles);
        if self.places.is_closed() {
            return Err(closed());
        }
        let connection = Connection::open(&self.settings, deadline, handle)?;
        let young_until = self.max_connection_age.map(Deadline::after);
        Ok(Box::new(Kept { connection, idle_until: None, young_until }))
    }

    fn handles(&self) -> MutexGuard<'_, Vec<ShutdownHandle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn closed() -> Error {
    Error::before_sending(ErrorKind::Closed)
}

/// A place, and the connection in it; both go back when it is dropped.
#[derive(Debug)]
pub(crate) struct Lease<'p> {
    pool: &'p Pool,
    place: Place<'p, Box<Kept>>,
    began: Moment,
    /// Whether the connection is idle anew afterwards. Looking at it is no use of it, since nothing passes the network.
    used: bool,
}

impl Lease<'_> {
    /// The connection, if there is one that can be used; one that cannot is ended.
    pub(crate) fn sound(&mut self) -> Option<&mut Connection> {
        if self.place.content()?.is_old() {
            self.lose();
        }
        match self.place.content()?.connection.health() {
            Health::Sound => {}
            Health::Surplus(stale) => {
                self.place.content()?.connection.end_for_surplus(stale);
                self.lose();
            }
            Health::Ended(_) => self.lose(),
        }
        Some(&mut self.place.content()?.connection)
    }

    /// Another call begins on it.
    pub(crate) fn renew(&mut self) {
        self.began = self.pool.outage.now();
    }

    /// The connection for an exchange, if there is a sound one.
    pub(crate) fn sound_to_use(&mut self) -> Option<&mut Connection> {
        self.used = true;
        self.sound()?;
        let kept = self.place.content()?;
        kept.idle_until = None;
        Some(&mut kept.connection)
    }

    /// The connection, if there is one, as it is.
    pub(crate) fn connection(&mut self) -> Option<&mut Connection> {
        self.place.content().map(|kept| &mut kept.connection)
    }

    /// A fresh connection, in place of what there was, after as many attempts as the deadline and the policy allow.
    pub(crate) fn connect(&mut self, deadline: &Deadline) -> Result<&mut Connection, Error> {
        if self.place.content().is_some() {
            self.lose();
        }
        let Settings { endpoint, monitor, .. } = &*self.pool.settings;
        let opened = self.pool.outage.reach(
            self.began,
            deadline,
            || self.pool.open(deadline),
            |failed| {
                let (error, attempt, retry_in) = (failed.error, failed.number, failed.retry_in);
                monitor.tell(&Event::ConnectFailed { endpoint, error, attempt, retry_in });
            },
        )?;
        self.used = true;
        let connection = &mut self.place.fill(opened).connection;
        connection.tell_connected();
        Ok(connection)
    }

    /// Ends a connection. Whether the receiver is there, the next one will show.
    fn lose(&mut self) {
        self.place.empty();
        self.pool.outage.suspect();
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let Some(kept) = self.place.content() else { return };
        if !kept.connection.rest() {
            self.lose();
            return;
        }
        if self.used {
            kept.idle_until = self.pool.idle_timeout.map(Deadline::after);
        }
        if kept.is_old() {
            self.lose();
        }
    }
}
