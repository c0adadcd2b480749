//! The TLS settings of an `mllps://` endpoint.

use std::fmt;
use std::net::IpAddr;

use native_tls::{Identity, Protocol, TlsConnector};

use crate::endpoint::is_host;
use crate::error::{Error, ErrorKind};
use crate::key_files::{self, Trusted};
use crate::net::Connector;

/// The TLS settings of an `mllps://` endpoint: trusted authorities, client certificate, expected
/// server name, versions. See the [crate's page on TLS](crate#tls).
///
/// By default the system's trust store decides, the certificate must be for the endpoint's host,
/// and TLS 1.2 is the minimum version.
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
    roots: Vec<Trusted>,
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

    /// Trusts further certificate authorities: one certificate or several, in PEM form, or one in
    /// DER. In addition to the system's, unless [`system_roots`](TlsConfig::system_roots) says
    /// otherwise.
    ///
    /// Give root certificates, or the receiver's own certificate if it is self-signed. The
    /// certificate of an intermediate authority, or one of the receiver that an authority
    /// issued, is not enough with OpenSSL, which also needs the root.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if there is no certificate, or one that cannot be read; it says which,
    /// and for other forms (PKCS#7, PKCS#12) the command that makes PEM of them.
    pub fn root_certificates_pem(mut self, pem: &[u8]) -> Result<Self, Error> {
        self.roots.extend(key_files::trusted(pem).map_err(|problem| unreadable("root certificates", &problem))?);
        Ok(self)
    }

    /// Whether the system's trust store counts. Without it only the certificates from
    /// [`root_certificates_pem`](TlsConfig::root_certificates_pem) do. Defaults to `true`.
    pub fn system_roots(self, trust: bool) -> Self {
        TlsConfig { system_roots: trust, ..self }
    }

    /// The client's certificate for receivers that ask for one (mutual TLS): its chain and its
    /// private key, in PEM form.
    ///
    /// The key may be PKCS#8 (`BEGIN PRIVATE KEY`), PKCS#1 (`BEGIN RSA PRIVATE KEY`) or SEC1
    /// (`BEGIN EC PRIVATE KEY`). Both may be in one file, which is given twice then, and in any
    /// order: the certificate that belongs to the key is found, and the others are sent after
    /// it. DER is read too.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] that says what is wrong, and the command that makes a readable file of
    /// another form.
    pub fn identity_pem(self, chain: &[u8], key: &[u8]) -> Result<Self, Error> {
        self.identified(key_files::identity(chain, key, None))
    }

    /// As [`identity_pem`](TlsConfig::identity_pem), but the private key is encrypted: PKCS#8
    /// (`BEGIN ENCRYPTED PRIVATE KEY`), or the older form with `Proc-Type: 4,ENCRYPTED`. This
    /// works only where the TLS library is OpenSSL; on Windows and
    /// macOS use [`identity_pkcs12`](TlsConfig::identity_pkcs12).
    ///
    /// # Errors
    ///
    /// As [`identity_pem`](TlsConfig::identity_pem), and if the passphrase is wrong.
    pub fn identity_pem_encrypted(self, chain: &[u8], key: &[u8], passphrase: &str) -> Result<Self, Error> {
        self.identified(key_files::identity(chain, key, Some(passphrase)))
    }

    /// The client's certificate, chain and private key from a PKCS#12 archive (`.p12`, `.pfx`).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if it is none, if the passphrase is wrong, or if it is encrypted with
    /// a cipher that the system's TLS library no longer takes.
    pub fn identity_pkcs12(self, der: &[u8], passphrase: &str) -> Result<Self, Error> {
        self.identified(key_files::pkcs12_identity(der, passphrase))
    }

    fn identified(self, identity: Result<Identity, String>) -> Result<Self, Error> {
        let identity = identity.map_err(|problem| unreadable("client identity", &problem))?;
        Ok(TlsConfig { identity: Some(identity), ..self })
    }

    /// The name that the certificate must be for, and that is asked for (SNI), where it is not the
    /// endpoint's host: behind a tunnel, or where the endpoint is an address. A value that is
    /// neither a host name nor an address makes `build` fail. Defaults to the endpoint's
    /// host.
    pub fn server_name(self, name: &str) -> Self {
        TlsConfig { server_name: Some(name.to_owned()), ..self }
    }

    /// The minimum version of TLS. Defaults to [`TlsVersion::Tls12`].
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
            builder.add_root_certificate(root.certificate.clone());
        }
        if let Some(identity) = &self.identity {
            builder.identity(identity.clone());
        }
        let name = self.server_name.clone().unwrap_or_else(|| host.trim_end_matches('.').to_owned());
        // An empty name would switch the verification of names off, silently, in OpenSSL.
        if !is_host(&name) && name.parse::<IpAddr>().is_err() {
            let shown: String = name.chars().take(60).collect();
            return Err(unreadable("server_name", &format!("{shown:?} is neither a host name nor an IP address")));
        }
        // No name is asked for where the host is an address (RFC 6066, section 3).
        builder.use_sni(name.parse::<IpAddr>().is_err());
        let native = builder.build().map_err(refused)?;
        Ok(Connector::new(native, name, key_files::lacks_root(&self.roots)))
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
