//! Certificates, made anew at every run.

use std::sync::OnceLock;

use mllp_client::TlsConfig;
use mllp_client::testing::ServerTls;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};

/// The name that receivers' certificates are for.
pub const NAME: &str = "receiver.test";

/// A certificate authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM form.
pub struct Certified {
    pub chain: String,
    pub key: String,
}

/// When a certificate is valid.
#[derive(Clone, Copy, PartialEq)]
pub enum Validity {
    Now,
    Past,
    Future,
}

/// An authority and a receiver that it certifies, for tests that are not about trust.
pub fn usual() -> &'static (Authority, Certified) {
    static USUAL: OnceLock<(Authority, Certified)> = OnceLock::new();
    USUAL.get_or_init(|| {
        let authority = Authority::new("Usual Authority");
        let receiver = authority.issue(&[NAME], Validity::Now);
        (authority, receiver)
    })
}

fn params(names: &[&str], common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

impl Authority {
    pub fn new(common_name: &str) -> Authority {
        let mut params = params(&[], common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn issue(&self, names: &[&str], validity: Validity) -> Certified {
        let mut params = params(names, "Invented");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = match validity {
            Validity::Now => (date_time_ymd(2020, 1, 1), date_time_ymd(2090, 1, 1)),
            Validity::Past => (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1)),
            Validity::Future => (date_time_ymd(2089, 1, 1), date_time_ymd(2090, 1, 1)),
        };
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Certified { chain: certificate.pem(), key: key.serialize_pem() }
    }

    /// Trusts this authority only, and expects [`NAME`].
    pub fn trusted(&self) -> TlsConfig {
        TlsConfig::new().system_roots(false).root_certificates_pem(self.pem().as_bytes()).unwrap().server_name(NAME)
    }
}

impl Certified {
    pub fn self_signed(names: &[&str]) -> Certified {
        let key = KeyPair::generate().unwrap();
        let certificate = params(names, "Invented").self_signed(&key).unwrap();
        Certified { chain: certificate.pem(), key: key.serialize_pem() }
    }

    pub fn server(&self) -> ServerTls {
        ServerTls::new(self.chain.as_bytes(), self.key.as_bytes()).unwrap()
    }

    pub fn identify(&self, config: TlsConfig) -> TlsConfig {
        config.identity_pem(self.chain.as_bytes(), self.key.as_bytes()).unwrap()
    }
}
