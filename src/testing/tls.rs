//! The receiver's end of TLS.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion};

use crate::locks::lock;

/// How a [`Receiver`](super::Receiver) speaks TLS: with which certificate, in which versions, and
/// whether it asks for the client's certificate.
pub struct ServerTls {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    client_roots: Option<RootCertStore>,
    versions: Vec<&'static SupportedProtocolVersion>,
}

impl ServerTls {
    /// TLS 1.2 and 1.3 with a certificate chain and a private key in PEM form.
    ///
    /// # Errors
    ///
    /// If they cannot be read.
    pub fn new(chain: &[u8], key: &[u8]) -> io::Result<ServerTls> {
        Ok(ServerTls {
            chain: certificates(chain)?,
            key: PrivateKeyDer::from_pem_slice(key).map_err(io::Error::other)?,
            client_roots: None,
            versions: vec![&TLS12, &TLS13],
        })
    }

    /// Requires a client certificate from one of these authorities, in PEM form.
    ///
    /// # Errors
    ///
    /// If they cannot be read.
    pub fn require_client_certificate(self, roots: &[u8]) -> io::Result<ServerTls> {
        let mut store = RootCertStore::empty();
        for root in certificates(roots)? {
            store.add(root).map_err(io::Error::other)?;
        }
        Ok(ServerTls { client_roots: Some(store), ..self })
    }

    /// Speaks TLS 1.2 only.
    #[must_use]
    pub fn only_tls12(self) -> ServerTls {
        ServerTls { versions: vec![&TLS12], ..self }
    }

    /// Speaks TLS 1.3 only.
    #[must_use]
    pub fn only_tls13(self) -> ServerTls {
        ServerTls { versions: vec![&TLS13], ..self }
    }

    pub(super) fn config(&self) -> io::Result<Arc<ServerConfig>> {
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&self.versions)
            .map_err(io::Error::other)?;
        let builder = match &self.client_roots {
            None => builder.with_no_client_auth(),
            Some(roots) => builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), provider)
                    .build()
                    .map_err(io::Error::other)?,
            ),
        };
        let config = builder.with_single_cert(self.chain.clone(), self.key.clone_key()).map_err(io::Error::other)?;
        Ok(Arc::new(config))
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls")
            .field("chain", &self.chain.len())
            .field("requires_client_certificate", &self.client_roots.is_some())
            .field("versions", &self.versions)
            .finish_non_exhaustive()
    }
}

fn certificates(pem: &[u8]) -> io::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(io::Error::other)
}

/// One session. Only one thread reads; the others may write meanwhile, in turn.
///
/// The connection's lock is never held while the network is waited for.
pub(super) struct ServerSession {
    connection: Mutex<ServerConnection>,
    incoming: Mutex<Incoming>,
    /// TLS records to be written. The holder of the lock writes them, in the order in which they
    /// were made.
    outgoing: Mutex<Vec<u8>>,
}

/// Bytes that came and are not decrypted yet.
struct Incoming {
    bytes: Vec<u8>,
    used: usize,
    filled: usize,
}

impl ServerSession {
    pub(super) fn new(config: &Arc<ServerConfig>) -> io::Result<ServerSession> {
        let connection = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        Ok(ServerSession {
            connection: Mutex::new(connection),
            incoming: Mutex::new(Incoming { bytes: vec![0; 16 * 1024], used: 0, filled: 0 }),
            outgoing: Mutex::default(),
        })
    }

    pub(super) fn read(&self, mut tcp: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        let mut incoming = lock(&self.incoming);
        loop {
            match lock(&self.connection).reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
            if incoming.used == incoming.filled {
                // Without the lock, so that a writer need not wait for the peer.
                incoming.filled = tcp.read(&mut incoming.bytes)?;
                incoming.used = 0;
                if incoming.filled == 0 {
                    return Ok(0);
                }
            }
            let mut connection = lock(&self.connection);
            let mut rest = &incoming.bytes[incoming.used..incoming.filled];
            connection.read_tls(&mut rest)?;
            incoming.used = incoming.filled - rest.len();
            let processed = connection.process_new_packets();
            let answers = connection.wants_write();
            drop(connection);
            if answers {
                // An alert included.
                self.flush(&mut lock(&self.outgoing), tcp)?;
            }
            processed.map_err(io::Error::other)?;
        }
    }

    pub(super) fn write_all(&self, tcp: &TcpStream, bytes: &[u8]) -> io::Result<()> {
        let mut outgoing = lock(&self.outgoing);
        for record in bytes.chunks(16 * 1024) {
            lock(&self.connection).writer().write_all(record)?;
            self.flush(&mut outgoing, tcp)?;
        }
        Ok(())
    }

    /// Writes the records that are ready.
    fn flush(&self, outgoing: &mut Vec<u8>, mut tcp: &TcpStream) -> io::Result<()> {
        outgoing.clear();
        let mut connection = lock(&self.connection);
        while connection.wants_write() {
            connection.write_tls(outgoing)?;
        }
        drop(connection);
        tcp.write_all(outgoing)
    }

    /// Sends `close_notify`, if that can be done without waiting.
    pub(super) fn close(&self, tcp: &TcpStream) {
        if let (Ok(mut outgoing), Ok(())) = (self.outgoing.try_lock(), tcp.set_nonblocking(true)) {
            lock(&self.connection).send_close_notify();
            // A peer that does not read misses nothing else.
            let _ = self.flush(&mut outgoing, tcp);
        }
    }
}
