//! `mllp://host:port` and `mllps://host:port`.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Where a receiver listens: `mllp://host:port`, or `mllps://host:port` for MLLP over TLS.
///
/// The host is a name, an IPv4 address or an IPv6 address in brackets, perhaps with a zone
/// (`[fe80::1%eth0]`). One slash may follow the port. MLLP has no registered
/// default, so the port is required. Literals are validated; names are resolved when a connection
/// is opened, each time anew.
///
/// # Examples
///
/// ```
/// let endpoint: mllp_client::Endpoint = "mllp://[::1]:2575".parse()?;
/// assert_eq!((endpoint.host(), endpoint.port(), endpoint.is_tls()), ("::1", 2575, false));
/// # Ok::<(), mllp_client::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    host: String,
    port: u16,
    tls: bool,
}

impl Endpoint {
    /// The host as it was given; an IPv6 address is without its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the scheme is `mllps`.
    pub fn is_tls(&self) -> bool {
        self.tls
    }
}

impl Endpoint {
    /// Reads an endpoint. The error says what is wrong with it and what was expected. It does not
    /// show the text: a password may stand anywhere in one that is wrong.
    pub(crate) fn parse(text: &str) -> Result<Endpoint, String> {
        let expected = "expected mllp://host:port or mllps://host:port";
        let fail = |problem: &str| format!("endpoint: {problem}; {expected}");
        let has_no = |what: &str| format!("endpoint: MLLP has no {what}; {expected}, and nothing else");
        if text.contains('@') {
            return Err(has_no("user name or password"));
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(|| fail("no scheme"))?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "mllp" => false,
            "mllps" => true,
            _ => return Err(fail("unknown scheme")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        for (mark, what) in [('?', "query"), ('#', "fragment"), ('/', "path")] {
            if rest.contains(mark) {
                return Err(has_no(what));
            }
        }
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| fail("no port"))?;
        let host = match host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
            Some(inner) if is_ipv6(inner) => inner,
            Some(_) => return Err(fail("no IPv6 address in the brackets")),
            None if host.contains(':') => return Err(fail("an IPv6 address goes in brackets, and one port follows")),
            None if is_host(host) => host,
            None => return Err(fail("not a host name or IP address")),
        };
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        match port.parse() {
            Ok(port) if digits && port > 0 => Ok(Endpoint { host: host.to_owned(), port, tls }),
            _ => Err(fail("the port is a number from 1 to 65535")),
        }
    }

    /// The host without the zone of a link-local address, as certificates name it.
    pub(crate) fn name(&self) -> &str {
        self.host.split('%').next().unwrap_or(&self.host)
    }
}

/// An IPv6 address, perhaps with a zone (RFC 4007, section 11): `fe80::1%eth0`.
fn is_ipv6(text: &str) -> bool {
    let is_zone = |zone: &str| {
        let taken = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        !zone.is_empty() && zone.bytes().all(taken)
    };
    match text.split_once('%') {
        Some((address, zone)) => address.parse::<Ipv6Addr>().is_ok() && is_zone(zone),
        None => text.parse::<Ipv6Addr>().is_ok(),
    }
}

/// A host name in the letters that resolvers take (underscores occur inside hospitals), or an IPv4
/// address. A name whose last label is a number is an address that was meant and mistyped (RFC
/// 3696, section 2).
pub(crate) fn is_host(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let numeric_end = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    if numeric_end { host.parse::<Ipv4Addr>().is_ok() } else { name.len() <= 253 && name.split('.').all(label) }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "mllps" } else { "mllp" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn what_is_an_endpoint() {
        for (text, host, port, tls) in [
            ("mllp://127.0.0.1:2575", "127.0.0.1", 2575, false),
            ("mllps://ris.example.org:6661", "ris.example.org", 6661, true),
            ("mllps://ris.example.org:6661/", "ris.example.org", 6661, true),
            ("mllp://[fe80::1%eth0]:2575", "fe80::1%eth0", 2575, false),
            ("mllp://[fe80::1%25]:2575/", "fe80::1%25", 2575, false),
            ("mllp://localhost:1", "localhost", 1, false),
            ("mllp://lab_1:65535", "lab_1", 65535, false),
            ("mllp://[::1]:2575", "::1", 2575, false),
            ("mllp://[2001:db8::7]:2575", "2001:db8::7", 2575, false),
            ("MLLP://host.:02575", "host.", 2575, false),
            ("mllp://1st-floor:99", "1st-floor", 99, false),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!((endpoint.host(), endpoint.port(), endpoint.is_tls()), (host, port, tls), "{text}");
            let shown: Endpoint = endpoint.to_string().parse().unwrap();
            assert_eq!(shown, endpoint, "{text}");
        }
    }

    #[test]
    fn what_is_none() {
        for text in [
            "",
            "127.0.0.1:2575",
            "http://host:80",
            "mllp:host:2575",
            "mllp://",
            "mllp://host",
            "mllp://host:",
            "mllp://host:0",
            "mllp://host:65536",
            "mllp://host:+80",
            "mllp://host:80/path",
            "mllp://:2575",
            "mllp://host:80//",
            "mllp://[fe80::1%]:2575",
            "mllp://[fe80::1%e h]:2575",
            "mllp://[host%eth0]:2575",
            "mllp://host%eth0:2575",
            "mllp://ho st:2575",
            "mllp://a..b:2575",
            "mllp://256.1.1.1:2575",
            "mllp://127.0.0.1.:2575",
            "mllp://1.2.3:2575",
            "mllp://::1:2575",
            "mllp://[::1]2575",
            "mllp://[::1]",
            "mllp://[127.0.0.1]:2575",
            "mllp://[::g]:2575",
            "mllp://host:80:90",
            "mllp://hôte:2575",
        ] {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Config(_)), "{text}: {error}");
        }
    }

    #[test]
    fn what_mllp_has_no_use_for_is_named_and_not_shown() {
        for (text, what) in [
            ("mllp://user@host:2575", "user name or password"),
            ("mllp://user:SECRET@host:2575", "user name or password"),
            ("http://user:SECRET@host:2575", "user name or password"),
            ("user:SECRET@host", "user name or password"),
            ("mllp://host:2575/SECRET@", "user name or password"),
            ("mllp://host:2575/SECRET", "path"),
            ("mllp://host:2575/SECRET/", "path"),
            ("mllp://host:2575?key=SECRET", "query"),
            ("mllp://host:2575/?key=SECRET", "query"),
            ("mllp://host:2575#SECRET", "fragment"),
        ] {
            let said = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(said.contains(&format!("MLLP has no {what}")) && !said.contains("SECRET"), "{text}: {said}");
        }
    }
}
