//! TLS: the handshake, the session, where its records end.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use native_tls::{HandshakeError, TlsConnector, TlsStream};

/// Opens sessions for one client.
pub(crate) struct Connector {
    native: TlsConnector,
    name: String,
    /// Whether the root above a trusted certificate is not trusted itself.
    lacks_root: bool,
}

impl Connector {
    /// A connector for receivers that show a certificate for this name.
    pub(crate) fn new(native: TlsConnector, name: String, lacks_root: bool) -> Connector {
        Connector { native, name, lacks_root }
    }

    /// Makes a session of a stream that blocks, within limits of its own.
    pub(crate) fn handshake<S: Read + Write>(&self, stream: S) -> Result<Session<S>, TlsError> {
        let lost = Arc::default();
        let records = Records { stream, header: [0; 5], seen: 0, left: 0, lost: Arc::clone(&lost) };
        let cause = match self.native.connect(&self.name, records) {
            Ok(native) => return Ok(Session { native }),
            Err(HandshakeError::Failure(error)) => in_short(&error),
            Err(HandshakeError::WouldBlock(_)) => "interrupted".to_owned(),
        };
        let broken_off = lost.load(Ordering::Relaxed);
        let meaning = if broken_off { Some(BROKEN_OFF) } else { meaning(&cause, self.lacks_root) };
        Err(TlsError { name: Some(self.name.clone()), meaning, cause, broken_off })
    }
}

/// The connection ended in the handshake, without a TLS alert.
const BROKEN_OFF: &str =
    "the connection ended in the handshake: the receiver behind a proxy may be down; or does it speak TLS at all?";

/// The peer answers a ClientHello with something else than TLS.
const NO_TLS: &str = "the peer did not answer in TLS: does it speak TLS at all?";

/// The TLS library's message, shortened. Of OpenSSL's
/// `error:CODE:library:function:reason:file:line:data` the first one's reason, data and code.
pub(crate) fn in_short(error: &dyn fmt::Display) -> String {
    let said = error.to_string();
    let Some((before, stack)) = said.split_once("error:") else { return said };
    let first = stack.split(", error:").next().unwrap_or(stack);
    let mut fields = first.splitn(7, ':');
    let (Some(code), Some(reason)) = (fields.next(), fields.nth(2)) else { return said };
    match fields.nth(2).unwrap_or_default().trim().trim_start_matches("Global default library context, ") {
        "" => format!("{before}{reason} [{code}]"),
        // Why a certificate is not accepted.
        data if data.starts_with('(') => format!("{before}{} [{code}]", data.trim_matches(['(', ')'])),
        data => format!("{before}{reason} {data} [{code}]"),
    }
}

/// The meaning of the TLS library's message about a failed handshake, where it is known. The words
/// are OpenSSL's.
fn meaning(cause: &str, lacks_root: bool) -> Option<&'static str> {
    let no_issuer = if lacks_root {
        "a trusted certificate is no root, and its root is missing: `openssl x509 -in ca.pem -noout -issuer`"
    } else {
        "the receiver's certificate is not from a trusted authority (TlsConfig::root_certificates_pem)"
    };
    let table = [
        (&["get issuer", "get local issuer", "self-signed", "self signed", "verify the first"][..], no_issuer),
        (&["has expired"], "the receiver's certificate has expired"),
        (&["not yet valid"], "the receiver's certificate is not yet valid: is this machine's clock right?"),
        (
            &["ostname mismatch", "address mismatch"],
            "the receiver's certificate is for another name (TlsConfig::server_name sets the name that is expected)",
        ),
        (&["http request", "wrong version number", "packet length too long", "bad record type"], NO_TLS),
        (
            &["alert certificate required", "alert bad certificate", "alert unknown ca", "alert certificate unknown"],
            "the receiver rejected this client's certificate, or requires one and got none (TlsConfig::identity_pem)",
        ),
        (
            &["alert protocol version", "unsupported protocol"],
            "the two have no version of TLS in common (TlsConfig::min_version)",
        ),
        (
            &["alert handshake failure"],
            "the receiver refused the handshake: no cipher suite in common, or it wants a client certificate \
             (TlsConfig::identity_pem)",
        ),
    ];
    let said = |words: &[&str]| words.iter().any(|word| cause.contains(word));
    table.into_iter().find(|(words, _)| said(words)).map(|(_, meaning)| meaning)
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A stream inside a TLS session.
pub(crate) struct Session<S> {
    native: TlsStream<Records<S>>,
}

impl<S: Read + Write> Session<S> {
    pub(crate) fn stream(&self) -> &S {
        &self.native.get_ref().stream
    }

    pub(crate) fn stream_mut(&mut self) -> &mut S {
        &mut self.native.get_mut().stream
    }

    /// Whether a part of a record has been read, and not yet all of it: what it will say is not
    /// known.
    pub(crate) fn is_inside_a_record(&self) -> bool {
        self.native.get_ref().is_inside_one()
    }

    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.native.read(buffer)
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.native.write(bytes)
    }

    /// Tells the peer that nothing more will come (`close_notify`).
    pub(crate) fn shutdown(&mut self) -> io::Result<()> {
        self.native.shutdown()
    }
}

/// A stream of TLS records (RFC 8446, section 5.1: five bytes of header, the last two a length)
/// that tracks the record boundaries.
struct Records<S> {
    stream: S,
    header: [u8; 5],
    /// How many bytes of the next header have come.
    seen: usize,
    /// How many bytes of the current record are still to come.
    left: usize,
    /// Whether the stream has ended or failed; shared, because a failed handshake does not return
    /// the stream.
    lost: Arc<AtomicBool>,
}

impl<S> Records<S> {
    fn is_inside_one(&self) -> bool {
        self.seen > 0 || self.left > 0
    }

    fn note(&self, result: io::Result<usize>) -> io::Result<usize> {
        let lost = match &result {
            Ok(count) => *count == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        };
        if lost {
            self.lost.store(true, Ordering::Relaxed);
        }
        result
    }

    fn follow(&mut self, mut bytes: &[u8]) {
        while let Some((&first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                self.left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            self.header[self.seen] = first;
            self.seen += 1;
            bytes = rest;
            if self.seen == self.header.len() {
                let [.., high, low] = self.header;
                self.left = usize::from(u16::from_be_bytes([high, low]));
                self.seen = 0;
            }
        }
    }
}

impl<S: Read> Read for Records<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.stream.read(buffer);
        let count = self.note(result)?;
        self.follow(&buffer[..count]);
        Ok(count)
    }
}

impl<S: Write> Write for Records<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.stream.write(bytes);
        self.note(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Why a TLS session could not be made, or broke: the meaning, the message of the system's TLS
/// library, and the name that was expected.
#[derive(Clone, Debug)]
pub struct TlsError {
    name: Option<String>,
    meaning: Option<&'static str>,
    cause: String,
    broken_off: bool,
}

impl TlsError {
    /// A failure inside an open session, such as an alert, unless it is the network's.
    pub(crate) fn of_session(error: &io::Error) -> Option<TlsError> {
        // A network error carries an error code of the operating system; one that the TLS library
        // creates does not.
        let made_up = error.raw_os_error().is_none() && error.get_ref().is_some();
        made_up.then(|| {
            let cause = in_short(error);
            TlsError { name: None, meaning: meaning(&cause, false), cause, broken_off: false }
        })
    }

    /// Whether the connection ended in the middle of the handshake without a TLS alert, as behind a
    /// proxy whose receiver is down.
    pub(crate) fn is_broken_off(&self) -> bool {
        self.broken_off
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "handshake with {name:?}: ")?;
        }
        match self.meaning {
            Some(meaning) => write!(f, "{meaning} ({})", self.cause),
            None => f.write_str(&self.cause),
        }
    }
}

impl std::error::Error for TlsError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_openssl_in_short() {
        for (said, short) in [
            (
                "error:0A000086:SSL routines:tls_post_process:certificate verify failed:../ssl/statem.c:1889: (unable to get \
                 local issuer certificate)",
                "unable to get local issuer certificate [0A000086]",
            ),
            (
                "error:0308010C:digital envelope routines:fetch:unsupported:../evp.c:386:Global default library context, Algorithm (RC2-40-CBC : 0), \
                 Properties (), error:11800067:PKCS12 routines:item:data:../p12.c:1:x",
                "unsupported Algorithm (RC2-40-CBC : 0), Properties () [0308010C]",
            ),
            (
                "error:0A00010B:SSL routines:ssl3_get_record:wrong version number:ssl/record.c:355:",
                "wrong version number [0A00010B]",
            ),
            ("the handshake failed: error:1:a:b:c:d:5:", "the handshake failed: c [1]"),
            ("the system's own words", "the system's own words"),
            ("error:short", "error:short"),
        ] {
            assert_eq!(in_short(&said), short);
        }
    }

    #[test]
    fn where_records_end() {
        let wire = b"\x17\x03\x03\0\x03abc\x16\x03\x03\0\0\x17\x03\x03\x01\0";
        let inside = |records: &Records<()>| records.is_inside_one();
        for piece in 1..wire.len() {
            let mut records = Records { stream: (), header: [0; 5], seen: 0, left: 0, lost: Arc::default() };
            let mut read = 0;
            for bytes in wire.chunks(piece) {
                records.follow(bytes);
                read += bytes.len();
                assert_eq!(inside(&records), ![8, 13].contains(&read), "{read} bytes in pieces of {piece}");
            }
            records.follow(&[0; 255]);
            assert!(inside(&records));
            records.follow(&[0]);
            assert!(!inside(&records));
        }
    }
}
