//! Whom to trust and who to be on an `mllps://` endpoint: certificates and keys as files hold them.

use std::fmt;
use std::net::IpAddr;

use native_tls::{Certificate, Identity, Protocol, TlsConnector};

use crate::endpoint::is_host;
use crate::error::{Error, ErrorKind};
use crate::net::Connector;

/// Whom to trust and who to be on an `mllps://` endpoint. See the [crate's page on TLS](crate#tls).
///
/// By default the system's trust store decides, the certificate must be for the endpoint's host,
/// and TLS 1.2 is the least.
///
/// # Examples
///
/// ```no_run
/// use mllp_client::{Client, TlsConfig};
///
/// let tls = TlsConfig::new()
///     .root_certificates_pem(&std::fs::read("hospital-ca.pem")?)?
///     .identity_pem(&std::fs::read("client.pem")?, &std::fs::read("client.key")?)?;
/// let client = Client::builder("mllps://ris.example.org:6661").tls(tls).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[must_use = "settings do nothing until a builder's `tls`"]
pub struct TlsConfig {
    roots: Vec<Certificate>,
    system_roots: bool,
    identity: Option<Identity>,
    server_name: Option<String>,
    min_version: TlsVersion,
    accept_invalid_certs: bool,
    accept_invalid_hostnames: bool,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    Tls12,
    /// TLS 1.3 (RFC 8446).
    Tls13,
}

impl Default for TlsConfig {
    fn default() -> Self {
        TlsConfig::new()
    }
}

impl TlsConfig {
    /// The system's trust store, the host's name verified, TLS 1.2 or later, no client certificate.
    pub fn new() -> Self {
        TlsConfig {
            roots: Vec::new(),
            system_roots: true,
            identity: None,
            server_name: None,
            min_version: TlsVersion::Tls12,
            accept_invalid_certs: false,
            accept_invalid_hostnames: false,
        }
    }

    /// Trusts further certificate authorities: one certificate or several, in PEM form. In addition
    /// to the system's, unless [`system_roots`](TlsConfig::system_roots) says otherwise.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if there is no certificate, or one that cannot be read.
    pub fn root_certificates_pem(mut self, pem: &[u8]) -> Result<Self, Error> {
        let what = "root certificates";
        if holds(pem, "-----BEGIN TRUSTED CERTIFICATE-----") {
            return Err(unreadable(
                what,
                "an OpenSSL TRUSTED CERTIFICATE is among them; `openssl x509 -in ca.pem -out plain.pem` makes an ordinary one of it",
            ));
        }
        if !holds(pem, "-----BEGIN CERTIFICATE-----") {
            return Err(unreadable(
                what,
                "expected PEM, that begins with -----BEGIN CERTIFICATE-----; of DER, \
                 `openssl x509 -inform der -in ca.cer -out ca.pem` makes it",
            ));
        }
        let found = Certificate::stack_from_pem(pem).map_err(|error| unreadable(what, &error.to_string()))?;
        if found.is_empty() {
            return Err(unreadable(what, "no certificate in the PEM text"));
        }
        self.roots.extend(found);
        Ok(self)
    }

    /// Whether the system's trust store counts. Without it only the certificates from
    /// [`root_certificates_pem`](TlsConfig::root_certificates_pem) do. Defaults to `true`.
    pub fn system_roots(self, trust: bool) -> Self {
        TlsConfig { system_roots: trust, ..self }
    }

    /// The client's certificate for receivers that ask for one (mutual TLS): its chain in PEM form,
    /// the client's own first, and its private key in PKCS#8 PEM form. The key must be of the
    /// certificate's type: OpenSSL does not notice an RSA key beside an elliptic-curve
    /// certificate, and then sends no certificate.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] that says what was expected, and the command that makes it of another
    /// form.
    pub fn identity_pem(self, chain: &[u8], key: &[u8]) -> Result<Self, Error> {
        let what = "client identity";
        if !holds(chain, "-----BEGIN CERTIFICATE-----") {
            return Err(unreadable(what, "the chain has no PEM certificate (-----BEGIN CERTIFICATE-----)"));
        }
        // The back end wants the key to begin at the first byte; files often say something before it.
        let Some(key) = from(key, "-----BEGIN PRIVATE KEY-----") else {
            let to_pkcs8 = "`openssl pkcs8 -topk8 -nocrypt -in client.key -out client.pkcs8.key` makes it of this one";
            return Err(unreadable(
                what,
                &if holds(key, "ENCRYPTED") {
                    format!(
                        "expected an unencrypted PKCS#8 key (-----BEGIN PRIVATE KEY-----); {to_pkcs8}, or keep it encrypted \
                         as PKCS#12 with `openssl pkcs12 -export -inkey client.key -in client.pem -out client.p12`"
                    )
                } else {
                    format!("expected a PKCS#8 PEM key (-----BEGIN PRIVATE KEY-----); {to_pkcs8}")
                },
            ));
        };
        let identity = Identity::from_pkcs8(chain, key).map_err(|error| unreadable(what, &error.to_string()))?;
        // The library compares the two only when they are put to use.
        TlsConnector::builder()
            .disable_built_in_roots(true)
            .identity(identity.clone())
            .build()
            .map_err(|error| unreadable(what, &format!("the key does not belong to the certificate ({error})")))?;
        Ok(TlsConfig { identity: Some(identity), ..self })
    }

    /// The client's certificate, chain and private key from a PKCS#12 archive (`.p12`, `.pfx`).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if it cannot be read with that passphrase.
    pub fn identity_pkcs12(self, der: &[u8], passphrase: &str) -> Result<Self, Error> {
        if passphrase.contains('\0') {
            return Err(unreadable("client identity", "a passphrase cannot contain a NUL character"));
        }
        let identity = Identity::from_pkcs12(der, passphrase).map_err(|error| {
            unreadable(
                "client identity",
                &format!(
                    "expected a PKCS#12 archive and its passphrase ({error}); for one made with old ciphers, unpack it with \
                     `openssl pkcs12 -legacy -in old.p12 -nodes -out all.pem` and pack it anew with `openssl pkcs12 -export \
                     -in all.pem -out new.p12`"
                ),
            )
        })?;
        Ok(TlsConfig { identity: Some(identity), ..self })
    }

    /// The name that the certificate must be for, and that is asked for (SNI), where it is not the
    /// endpoint's host: behind a tunnel, or where the endpoint is an address. What is neither a
    /// host name nor an address is refused when the client is built. Defaults to the endpoint's
    /// host.
    pub fn server_name(self, name: &str) -> Self {
        TlsConfig { server_name: Some(name.to_owned()), ..self }
    }

    /// The least version of TLS. Defaults to [`TlsVersion::Tls12`].
    pub fn min_version(self, version: TlsVersion) -> Self {
        TlsConfig { min_version: version, ..self }
    }

    /// Accepts any certificate, from anyone. Whoever can reach the line can then read and change
    /// what is sent, without being noticed. A warning is logged once for each client. Defaults
    /// to `false`.
    pub fn danger_accept_invalid_certs(self, accept: bool) -> Self {
        TlsConfig { accept_invalid_certs: accept, ..self }
    }

    /// Accepts a trusted certificate that is for another host: whoever holds any certificate of a
    /// trusted authority can then stand in for the receiver. A warning is logged once for each
    /// client. Defaults to `false`.
    pub fn danger_accept_invalid_hostnames(self, accept: bool) -> Self {
        TlsConfig { accept_invalid_hostnames: accept, ..self }
    }

    /// A connector by these settings, or by the defaults.
    pub(crate) fn connector_or_default(config: Option<TlsConfig>, host: &str) -> Result<Connector, Error> {
        config.unwrap_or_default().connector(host)
    }

    /// A connector by these settings. It is made once for each client: loading the system's trust
    /// store takes tens of milliseconds.
    fn connector(&self, host: &str) -> Result<Connector, Error> {
        let refused = |error: native_tls::Error| unreadable("TLS", &error.to_string());
        if self.accept_invalid_certs {
            log::warn!("{host}: any certificate is accepted (danger_accept_invalid_certs)");
        }
        if self.accept_invalid_hostnames {
            log::warn!("{host}: a certificate for any host is accepted (danger_accept_invalid_hostnames)");
        }
        let mut builder = TlsConnector::builder();
        builder
            .min_protocol_version(Some(match self.min_version {
                TlsVersion::Tls12 => Protocol::Tlsv12,
                TlsVersion::Tls13 => Protocol::Tlsv13,
            }))
            .disable_built_in_roots(!self.system_roots)
            .danger_accept_invalid_certs(self.accept_invalid_certs)
            .danger_accept_invalid_hostnames(self.accept_invalid_hostnames);
        for root in &self.roots {
            builder.add_root_certificate(root.clone());
        }
        if let Some(identity) = &self.identity {
            builder.identity(identity.clone());
        }
        let name = self.server_name.clone().unwrap_or_else(|| host.trim_end_matches('.').to_owned());
        // An empty name would switch the verification of names off, silently, in OpenSSL.
        if !is_host(&name) && name.parse::<IpAddr>().is_err() {
            return Err(unreadable("server_name", &format!("{name:?} is neither a host name nor an IP address")));
        }
        // No name is asked for where the host is an address (RFC 6066, section 3).
        builder.use_sni(name.parse::<IpAddr>().is_err());
        Ok(Connector::new(builder.build().map_err(refused)?, name))
    }
}

/// Shows what is set, without certificates and keys.
impl fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConfig")
            .field("roots", &self.roots.len())
            .field("system_roots", &self.system_roots)
            .field("identity", &self.identity.is_some())
            .field("server_name", &self.server_name)
            .field("min_version", &self.min_version)
            .field("accept_invalid_certs", &self.accept_invalid_certs)
            .field("accept_invalid_hostnames", &self.accept_invalid_hostnames)
            .finish()
    }
}

fn unreadable(what: &str, problem: &str) -> Error {
    Error::before_sending(ErrorKind::Config(format!("{what}: {problem}")))
}

/// The text from a marker on.
fn from<'t>(text: &'t [u8], marker: &str) -> Option<&'t [u8]> {
    memchr::memmem::find(text, marker.as_bytes()).map(|at| &text[at..])
}

fn holds(text: &[u8], marker: &str) -> bool {
    from(text, marker).is_some()
}
