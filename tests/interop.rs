//! Against a receiver from elsewhere: python-hl7's MLLP server, bare and behind `stunnel`.
//!
//! `MLLP_INTEROP_PYTHON` names a Python that has the package `hl7`; without it, `python3` is asked. Where it or `stunnel` is
//! missing the tests say that they were skipped, unless `MLLP_INTEROP_REQUIRED` is set.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use common::{LONG, connection, message};
use mllp_client::{AckCode, Client, Delivery};

struct Server {
    process: Child,
    endpoint: String,
}

impl Server {
    fn start() -> Option<Server> {
        let python = std::env::var("MLLP_INTEROP_PYTHON").unwrap_or_else(|_| "python3".into());
        let has_hl7 = Command::new(&python).args(["-c", "import hl7.mllp"]).stderr(Stdio::null()).status();
        if !has_hl7.is_ok_and(|status| status.success()) {
            assert!(std::env::var_os("MLLP_INTEROP_REQUIRED").is_none(), "{python} has no package hl7");
            println!("skipped: {python} has no package hl7");
            return None;
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/python_hl7.py");
        let mut process =
            Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Some(Server { process, endpoint: format!("mllp://127.0.0.1:{}", port.trim()) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its standard input ends, and it with it.
        drop(self.process.stdin.take());
        self.process.wait().unwrap();
    }
}

#[test]
fn python_hl7_accepts_and_refuses() {
    let Some(server) = Server::start() else { return };
    let client = Client::builder(&server.endpoint).timeout(LONG).build().unwrap();
    assert_eq!(client.send(message("1")).unwrap().control_id(), "1");
    let error = client.send(message("2").replace("EHR", "REFUSE")).unwrap_err();
    assert_eq!(error.delivery(), Delivery::Refused, "{error:?}");
    assert_eq!(
        error.nak().map(|nak| (nak.code(), nak.control_id().into_owned())),
        Some((AckCode::ApplicationReject, "2".into()))
    );
    assert_eq!(client.send(message("3").replace("PROBE^TESTA", "PRÖBE^TESTÅ")).unwrap().control_id(), "3");
    assert_eq!(client.stats().connections_opened, 1);
}

#[test]
fn python_hl7_takes_many_and_large_messages_on_one_connection() {
    let Some(server) = Server::start() else { return };
    let mut connection = connection(&server.endpoint, LONG);
    for number in 0..1000 {
        let id = format!("M{number}");
        assert_eq!(connection.send(message(&id).as_bytes()).unwrap().control_id(), id);
    }
    let large = common::message_of("LARGE", 5 * 1024 * 1024);
    assert_eq!(connection.send(&large).unwrap().control_id(), "LARGE");
    connection.close().unwrap();
}

/// TLS in front of a server, by a program that is not ours.
#[cfg(feature = "tls")]
struct Stunnel {
    process: Child,
    endpoint: String,
    _files: tempfile::TempDir,
}

#[cfg(feature = "tls")]
impl Stunnel {
    fn start(server: &Server, certified: &common::certificates::Certified, client_ca: Option<&str>) -> Option<Stunnel> {
        use std::net::TcpListener;

        if Command::new("stunnel").arg("-version").stderr(Stdio::null()).status().is_err() {
            assert!(std::env::var_os("MLLP_INTEROP_REQUIRED").is_none(), "there is no stunnel");
            println!("skipped: there is no stunnel");
            return None;
        }
        let files = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = files.path().join(name);
            std::fs::write(&path, content).unwrap();
            path.display().to_string()
        };
        let (cert, key) = (file("cert", &certified.chain), file("key", &certified.key));
        let verify =
            client_ca.map(|ca| format!("verifyChain = yes\nCAfile = {}\n", file("ca", ca))).unwrap_or_default();
        let connect = server.endpoint.strip_prefix("mllp://").unwrap();
        // It cannot choose a port by itself; another may have taken the one that was free a moment ago.
        for _ in 0..20 {
            let accept = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let settings = format!(
                "foreground = yes\ndebug = info\npid =\nsyslog = no\n[mllp]\naccept = {accept}\nconnect = {connect}\ncert = {cert}\nkey = {key}\n{verify}"
            );
            let mut process =
                Command::new("stunnel").arg(file("settings", &settings)).stderr(Stdio::piped()).spawn().unwrap();
            let said = BufReader::new(process.stderr.take().unwrap());
            if said.lines().map_while(Result::ok).any(|line| line.contains("bound to")) {
                return Some(Stunnel { process, endpoint: format!("mllps://{accept}"), _files: files });
            }
            process.wait().unwrap();
        }
        panic!("stunnel does not start");
    }
}

#[cfg(feature = "tls")]
impl Drop for Stunnel {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[test]
#[cfg(feature = "tls")]
fn stunnel_ends_tls_in_front_of_python_hl7() {
    use common::certificates::{Authority, NAME, Validity};

    let authority = Authority::new("Authority");
    let receiver = authority.issue(&[NAME], Validity::Now);
    let client = authority.issue(&["client.test"], Validity::Now);
    for client_ca in [None, Some(authority.pem())] {
        let Some(server) = Server::start() else { return };
        let Some(stunnel) = Stunnel::start(&server, &receiver, client_ca.as_deref()) else { return };
        let tls = client.identify(authority.trusted());
        let client = Client::builder(&stunnel.endpoint).tls(tls).timeout(LONG).build().unwrap();
        for number in 0..100 {
            let id = format!("M{number}");
            assert_eq!(client.send(message(&id)).unwrap().control_id(), id);
        }
        let large = common::message_of("LARGE", 5 * 1024 * 1024);
        assert_eq!(client.send(&large).unwrap().control_id(), "LARGE");
        let error = client.send(message("2").replace("EHR", "REFUSE")).unwrap_err();
        assert_eq!(error.delivery(), Delivery::Refused, "{error:?}");
        assert_eq!(client.stats().connections_opened, 1);
        client.close();
    }
}
