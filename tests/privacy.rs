//! A marker stands in the message, in MSA-3 and in ERR; every kind of failure is provoked; the
//! marker must be in no log record, no `Debug`, no `Display` and no event.

mod common;

use std::error::Error as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Deaf, LONG, SHORT, dead_endpoint};
use mllp_client::outbox::{Forwarder, MemoryOutbox, Outbox};
use mllp_client::testing::{Receiver, Step};
use mllp_client::{AckCode, Batch, Client, Error, ErrorKind, messages};

const MARKER: &str = "XYZZYPATIENT";

/// Keeps every record of every level.
struct Recorder(Mutex<Vec<String>>);

static RECORDER: Recorder = Recorder(Mutex::new(Vec::new()));

impl log::Log for Recorder {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push(format!("{} {} {}", record.level(), record.target(), record.args()));
    }

    fn flush(&self) {}
}

/// A result whose every field but the control ID says the marker.
fn marked() -> String {
    format!("MSH|^~\\&|{MARKER}|{MARKER}|EHR|NORTH|20260101||ORU^R01|1|P|2.5\rPID|1||{MARKER}||{MARKER}^{MARKER}\r")
}

fn shown(error: &Error) -> Vec<String> {
    let mut shown = vec![
        format!("{error}"),
        format!("{error:#}"),
        format!("{error:?}"),
        format!("{error:#?}"),
        format!("{:?}", error.kind()),
    ];
    shown.push(error.kind().to_string());
    if let Some(ack) = error.nak().or(error.commit()) {
        shown.push(format!("{ack:?}"));
        shown.extend(ack.errors().map(|detail| format!("{detail:?}")));
    }
    let mut cause = error.source();
    while let Some(error) = cause {
        shown.push(format!("{error} {error:?}"));
        cause = error.source();
    }
    shown
}

#[test]
fn nothing_says_what_is_in_a_message() {
    log::set_logger(&RECORDER).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let events = Arc::new(Mutex::new(Vec::new()));
    let observed = |endpoint: &str| {
        let events = Arc::clone(&events);
        Client::builder(endpoint)
            .timeout(SHORT)
            .on_event(move |event| events.lock().unwrap().push(format!("{event:?}")))
    };
    let mut errors: Vec<Error> = Vec::new();

    // Files, and what is wrong with them.
    let file = format!("{}-- {MARKER} --\rremark {MARKER}\r", marked());
    let located: Vec<_> = messages::locate(file.as_bytes()).collect();
    assert!(located.iter().any(|found| found.problem.is_some()) && file.contains(MARKER));
    let mut said =
        vec![format!("{located:?} {:?} {:?}", messages::locate(file.as_bytes()), messages::split(file.as_bytes()))];
    let batch = format!("BHS|^~\\&|||||||||B1\r{file}");
    said.push(format!("{:?}", Batch::parse(batch.as_bytes()).unwrap_err()));
    assert!(said.iter().all(|text| !text.contains(MARKER)), "{said:?}");

    let answer = |segments: &str| Step::frame(format!("MSH|^~\\&|{MARKER}\r{segments}"));
    let err = format!("ERR|{MARKER}|{MARKER}|{MARKER}^{MARKER}|E||||{MARKER}\r");
    for step in [
        answer(&format!("MSA|AA|1|{MARKER}\r{err}")),
        answer(&format!("MSA|AE|1|{MARKER}\r{err}")),
        Step::refuse(AckCode::ApplicationReject, MARKER),
        answer(&format!("MSA|AA|2|{MARKER}\r{err}")),
        answer(&format!("MSA|{MARKER}|1|{MARKER}\r")),
        answer(&format!("MSA||1|{MARKER}\r")),
        answer(&format!("MSA|AA||{MARKER}\r")),
        answer(&err),
        Step::frame(MARKER),
        Step::bytes(MARKER),
        Step::bytes(format!("\x0B{MARKER}\x0B{MARKER}")),
        Step::bytes(format!("\x0B{MARKER}\x1C{MARKER}")),
        Step::frame(MARKER.repeat(100)),
        Step::accept().then(Step::bytes(MARKER)),
        answer(&format!("MSA|CA|1|{MARKER}\r")),
        Step::bytes(format!("\x0B{MARKER}")).close(),
        Step::silence().reset(),
        Step::silence(),
    ] {
        let receiver = Receiver::answering(move |_| step.clone()).unwrap();
        let client = observed(&receiver.endpoint()).max_ack_size(1000).build().unwrap();
        for _ in 0..2 {
            match client.send(marked()) {
                Ok(ack) => events.lock().unwrap().push(format!("{ack:?}")),
                Err(error) => errors.push(error),
            }
        }
        let mut connection = observed(&receiver.endpoint()).max_ack_size(1000).connect().unwrap();
        let text = marked();
        for _ in 0..2 {
            errors.extend(connection.send(text.as_bytes()).err());
        }
        let held = format!("{client:?} {connection:?} {:?} {receiver:?}", client.request(&text));
        events.lock().unwrap().push(held);
        client.close();
        errors.extend(client.send(&text).err());
    }
    let usual = Receiver::accepting().unwrap();
    let client = observed(&usual.endpoint()).max_message_size(1000).build().unwrap();
    for message in [
        format!("{MARKER}|^~\\&|"),
        format!("MSH|^~\\&|{MARKER}\r"),
        format!("\x0B{}", marked()),
        marked().repeat(20),
        format!("MSH|^~\\&|{MARKER}||||||ORU|1|P|2.5|||NE|NE\r"),
        String::new(),
    ] {
        errors.push(client.send(message).unwrap_err());
    }
    for _ in 0..2 {
        client.send(marked().replace('\r', "\n")).unwrap();
    }
    let warnings = RECORDER.0.lock().unwrap().iter().filter(|record| record.contains("messages::split")).count();
    assert_eq!(warnings, 1, "of line feeds, once for each client");
    errors.push(client.request(&marked()).timeout(Duration::ZERO).send().unwrap_err());
    let deaf = Deaf::new();
    let large = marked() + &MARKER.repeat(64 * 1024 * 1024 / MARKER.len());
    errors.push(observed(&deaf.endpoint()).build().unwrap().exchange(&large).unwrap_err());
    errors.push(observed(&dead_endpoint()).build().unwrap().send(marked()).unwrap_err());

    #[cfg(feature = "tls")]
    errors.push(observed(&usual.endpoint().replace("mllp:", "mllps:")).build().unwrap().send(marked()).unwrap_err());
    #[cfg(feature = "tls")]
    dangerous_switches_are_warned_about_once();

    events.lock().unwrap().extend(forwarded(answer(&format!("MSA|AE|1|{MARKER}\r{err}"))));
    events.lock().unwrap().extend(forwarded(answer(&format!("MSA|AA|1|{MARKER}\r{err}"))));
    events.lock().unwrap().extend(forwarded(Step::frame(MARKER)));

    let kind = |expected: fn(&ErrorKind) -> bool| errors.iter().any(|error| expected(error.kind()));
    for (name, provoked) in [
        ("Config", kind(|kind| matches!(kind, ErrorKind::Config(_)))),
        ("InvalidMessage", kind(|kind| matches!(kind, ErrorKind::InvalidMessage(_)))),
        ("Connect", kind(|kind| matches!(kind, ErrorKind::Connect { .. }))),
        ("Timeout", kind(|kind| matches!(kind, ErrorKind::Timeout { .. }))),
        ("Disconnected", kind(|kind| matches!(kind, ErrorKind::Disconnected { .. }))),
        ("Desync", kind(|kind| matches!(kind, ErrorKind::Desync { .. }))),
        ("MalformedFrame", kind(|kind| matches!(kind, ErrorKind::MalformedFrame(_)))),
        ("AckTooLarge", kind(|kind| matches!(kind, ErrorKind::AckTooLarge { .. }))),
        ("MalformedAck", kind(|kind| matches!(kind, ErrorKind::MalformedAck(_)))),
        ("UnmatchedAck", kind(|kind| matches!(kind, ErrorKind::UnmatchedAck(_)))),
        ("Nak", kind(|kind| matches!(kind, ErrorKind::Nak(_)))),
        ("Closed", kind(|kind| matches!(kind, ErrorKind::Closed))),
        ("Tls", cfg!(not(feature = "tls")) || kind(|kind| matches!(kind, ErrorKind::Tls(_)))),
    ] {
        assert!(provoked, "{name} was not provoked");
    }
    let records = RECORDER.0.lock().unwrap().clone();
    assert!(records.len() > 50, "the recorder records: {records:?}");
    let events = events.lock().unwrap().clone();
    for said in errors.iter().flat_map(shown).chain(records).chain(events) {
        assert!(!said.contains(MARKER), "{said}");
    }
}

/// What a forwarder, its outbox and what is in it show, where each message is answered so.
fn forwarded(step: Step) -> Vec<String> {
    let said = Arc::new(Mutex::new(Vec::new()));
    let receiver = Receiver::scripted([step.clone(), step]).unwrap();
    let outbox = MemoryOutbox::new(10, 1_000);
    let client = Client::builder(&receiver.endpoint()).timeout(SHORT).build().unwrap();
    let tell = Arc::clone(&said);
    let builder =
        Forwarder::builder(outbox.clone(), client).refusals(1).rejections(0).initial_delay(Duration::from_millis(1));
    let builder = builder.on_event(move |event| tell.lock().unwrap().push(format!("{event:?}")));
    said.lock().unwrap().push(format!("{builder:?}"));
    outbox.push(marked().as_bytes()).unwrap();
    let forwarder = builder.start().unwrap();
    assert!(forwarder.drain(LONG).unwrap());
    let shown = format!("{forwarder:?} {:?} {outbox:?} {:?}", forwarder.status(), outbox.stopped(0, 10));
    said.lock().unwrap().push(shown);
    assert!(forwarder.stop(LONG));
    for message in [marked().repeat(20), MARKER.to_owned(), marked().repeat(8)] {
        let pushed = (0..2).map(|_| outbox.push(message.as_bytes()));
        said.lock().unwrap().extend(pushed.filter_map(Result::err).map(|error| format!("{error} {error:?}")));
    }
    assert!(outbox.claim().unwrap().is_none_or(|claim| !format!("{claim:?}").contains(MARKER)));
    said.lock().unwrap().clone()
}

/// Here, since this program records what is logged.
#[cfg(feature = "tls")]
fn dangerous_switches_are_warned_about_once() {
    use mllp_client::TlsConfig;

    let warnings = || RECORDER.0.lock().unwrap().iter().filter(|record| record.contains("danger_accept")).count();
    let receiver = common::Transport::Tls13.receiver().scripted([]).unwrap();
    for (certs, hostnames) in [(false, false), (true, false), (true, true)] {
        let tls = common::certificates::usual().0.trusted();
        let tls = tls.danger_accept_invalid_certs(certs).danger_accept_invalid_hostnames(hostnames);
        let before = warnings();
        let client = Client::builder(&receiver.endpoint()).tls(tls).build().unwrap();
        for _ in 0..3 {
            client.reconnect().unwrap();
        }
        assert_eq!(warnings() - before, usize::from(certs) + usize::from(hostnames));
    }

    // Nor does a secret of TLS reach the log: every record so far is searched below for the marker,
    // here as a passphrase.
    let error = TlsConfig::new().identity_pkcs12(MARKER.as_bytes(), MARKER).unwrap_err();
    assert!(!format!("{error} {error:?}").contains(MARKER));
    let key = format!("-----BEGIN PRIVATE KEY-----\n{MARKER}\n-----END PRIVATE KEY-----\n");
    let chain = &common::certificates::usual().1.chain;
    let error = TlsConfig::new().identity_pem(chain.as_bytes(), key.as_bytes()).unwrap_err();
    assert!(!format!("{error} {error:?}").contains(MARKER));
}
