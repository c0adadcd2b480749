//! Ending a connection from another thread.

use std::fmt;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use crate::locks::lock;

/// Ends a connection from another thread: the call under way there returns
/// [`ErrorKind::Closed`](crate::ErrorKind::Closed) at once, wherever it waits.
///
/// It holds no socket: once the connection is gone, it does nothing.
#[derive(Clone)]
pub struct ShutdownHandle {
    target: Arc<Target>,
}

/// The part that all clones of a handle share.
struct Target {
    shut: AtomicBool,
    socket: Mutex<Weak<TcpStream>>,
}

impl ShutdownHandle {
    /// A handle for a connection that is about to be opened.
    pub(crate) fn new() -> Self {
        ShutdownHandle { target: Arc::new(Target { shut: AtomicBool::new(false), socket: Mutex::new(Weak::new()) }) }
    }

    /// Ends the connection. Calling it again, or after the connection has ended, does nothing.
    pub fn shutdown(&self) {
        self.target.shut.store(true, Ordering::SeqCst);
        let socket = lock(&self.target.socket).upgrade();
        if let Some(socket) = socket {
            // It fails where the connection has ended already, which is what is wanted.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Whether another clone exists: a connection has one, and so does an attempt to open one.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.target) > 1
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.target.shut.load(Ordering::SeqCst)
    }

    pub(super) fn watch(&self, socket: &Arc<TcpStream>) -> io::Result<()> {
        *lock(&self.target.socket) = Arc::downgrade(socket);
        if self.is_shut() { Err(io::ErrorKind::NotConnected.into()) } else { Ok(()) }
    }
}

impl fmt::Debug for ShutdownHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShutdownHandle").field("shut", &self.is_shut()).finish()
    }
}
