//! The stand-in for the settings of TLS where the feature `tls` is off: there are none.

use crate::error::{Error, ErrorKind};
use crate::net::Connector;

/// A type of which there is no value.
#[derive(Clone, Debug)]
pub(crate) enum TlsConfig {}

impl TlsConfig {
    pub(crate) fn connector_or_default(_: Option<TlsConfig>, host: &str) -> Result<Connector, Error> {
        let problem = format!("mllps://{host}: this build of mllp-client is without its feature `tls`");
        Err(Error::before_sending(ErrorKind::Config(problem)))
    }
}
