//! The stand-in for TLS where the feature `tls` is off: types of which there is no value.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::marker::PhantomData;

#[derive(Debug)]
pub(crate) enum Connector {}

impl Connector {
    pub(crate) fn handshake<S>(&self, _: S) -> Result<Session<S>, TlsError> {
        match *self {}
    }
}

#[derive(Debug)]
pub(crate) struct Session<S> {
    never: Infallible,
    stream: PhantomData<S>,
}

impl<S> Session<S> {
    pub(crate) fn stream(&self) -> &S {
        match self.never {}
    }

    pub(crate) fn stream_mut(&mut self) -> &mut S {
        match self.never {}
    }

    pub(crate) fn is_inside_a_record(&self) -> bool {
        match self.never {}
    }

    pub(crate) fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        match self.never {}
    }

    pub(crate) fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        match self.never {}
    }

    pub(crate) fn shutdown(&mut self) -> io::Result<()> {
        match self.never {}
    }
}

/// A failure of TLS. Without the feature `tls` there is none.
#[derive(Clone, Debug)]
pub struct TlsError {
    never: Infallible,
}

impl TlsError {
    pub(crate) fn of_session(_: &io::Error) -> Option<TlsError> {
        None
    }

    pub(crate) fn is_broken_off(&self) -> bool {
        match self.never {}
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.never {}
    }
}

impl std::error::Error for TlsError {}
