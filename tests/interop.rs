//! Against a receiver from elsewhere: python-hl7's MLLP server.
//!
//! `MLLP_INTEROP_PYTHON` names a Python that has the package `hl7`; without it, `python3` is asked. Where neither has it the
//! tests say that they were skipped, unless `MLLP_INTEROP_REQUIRED` is set.

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
