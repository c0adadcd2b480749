//! Text in the character sets of sites, against a receiver that keeps every byte.

#![cfg(feature = "charset")]

mod common;

use common::{LONG, Tidy};
use mllp_client::testing::{Receiver, Step};
use mllp_client::{Client, Delivery, ErrorKind, MessageError};

/// A message whose MSH-18 is this.
fn message(charset: &str, text: &str) -> String {
    format!("MSH|^~\\&|LAB|N|EHR|N|20260101||ORU^R01|1|P|2.5||||||{charset}\rPID|1||42^^^N||PROBE^{text}\r")
}

/// What the receiver's bytes should be: the text's own between those of ASCII.
fn wire(charset: &str, text: &[u8]) -> Vec<u8> {
    let whole = message(charset, "\0");
    let (before, after) = whole.split_once('\0').unwrap();
    [before.as_bytes(), text, after.as_bytes()].concat()
}

#[test]
fn text_goes_out_and_comes_back_in_the_sites_characters() {
    let _tidy = Tidy::up();
    for (header, builder, text, bytes) in [
        ("8859/1", "UTF-8", "M\u{fc}ller", &b"M\xFCller"[..]),
        ("8859/5", "UTF-8", "\u{418}\u{432}\u{430}\u{43d}", b"\xB8\xD2\xD0\xDD"),
        ("GB 18030-2000", "UTF-8", "\u{4e2d}\u{6587}", b"\xD6\xD0\xCE\xC4"),
        ("~ISO IR87", "UTF-8", "\u{65e5}", b"\x1B$BF|\x1B(B"),
        ("", "windows-1252", "\u{20ac}", b"\x80"),
        ("", "Shift_JIS", "\u{8868}\u{80fd}", b"\x95\x5C\x94\x5C"),
        ("", "8859/1", "\u{e9}", b"\xE9"),
        ("UNICODE UTF-8", "8859/1", "\u{e9}", b"\xC3\xA9"),
        ("", "UTF-8", "\u{1f600}", "\u{1f600}".as_bytes()),
    ] {
        // It says the name back as it came, in the text of its acknowledgment.
        let echo = move |payload: &[u8]| {
            assert_eq!(payload, wire(header, bytes));
            let answer = format!("MSH|^~\\&|EHR|N|LAB|N|20260101||ACK|9|P|2.5||||||{header}\rMSA|AE|1|");
            Step::frame([answer.as_bytes(), bytes, b"\rERR|||207|E||||", bytes, b"\r"].concat())
        };
        let receiver = Receiver::answering(echo).unwrap();
        let client = Client::builder(&receiver.endpoint()).timeout(LONG).charset(builder).build().unwrap();
        let error = client.send_text(&message(header, text)).unwrap_err();
        let nak = error.nak().unwrap_or_else(|| panic!("{header} {builder}: {error:?}"));
        assert_eq!(nak.text().as_deref(), Some(text), "{header} {builder}");
        assert_eq!(nak.errors().next().unwrap().text().as_deref(), Some(text), "{header} {builder}");
        assert_eq!((nak.control_id().as_ref(), nak.code().as_str()), ("1", "AE"));
        assert!(nak.raw().windows(bytes.len()).any(|window| window == bytes), "the bytes are at hand as they came");
    }
}

#[test]
fn half_a_character_is_no_delimiter() {
    let _tidy = Tidy::up();
    // In Shift_JIS the second byte of this one is that of the field separator.
    let message = "MSH|^~\\&|LAB|\u{30dd}|EHR|N|20260101||ORU^R01|MSG1|P|2.5|||AL|NE\rPID|1\r";
    let receiver = Receiver::answering(|_| Step::bytes(common::acknowledgment("CA", "MSG1"))).unwrap();
    let client = Client::builder(&receiver.endpoint()).timeout(LONG).charset("Shift_JIS").build().unwrap();
    assert_eq!(client.send_text(message).unwrap().control_id(), "MSG1");
    assert!(receiver.received()[0].starts_with(b"MSH|^~\\&|LAB|\x83\x7C|EHR"));
}

#[test]
fn what_cannot_be_said_is_not_sent() {
    let _tidy = Tidy::up();
    let receiver = Receiver::accepting().unwrap();
    let client = Client::builder(&receiver.endpoint()).timeout(LONG).build().unwrap();
    let place = message("8859/1", "").len() - 1;
    for (message, expected) in [
        (message("8859/1", "\u{20ac}"), format!("Unencodable {{ offset: {place}, charset: \"8859/1\" }}")),
        (message("ASCII", "\u{e4}"), format!("Unencodable {{ offset: {}, charset: \"ASCII\" }}", place - 1)),
        (message("nothing", ""), "UnknownCharset".to_owned()),
        (message("8859/1", "\x0B"), format!("FramingByte {{ byte: 11, offset: {place} }}")),
        (message("8859/1", "").replace("|1|P|", "||P|"), "NoControlId".to_owned()),
    ] {
        let error = client.send_text(&message).unwrap_err();
        let ErrorKind::InvalidMessage(found) = error.kind() else { panic!("{error:?}") };
        assert_eq!(format!("{found:?}"), expected);
        assert_eq!(error.delivery(), Delivery::NotSent);
    }
    for name in ["UNICODE UTF-16", "UNICODE UTF-32", "ISO IR14", "ISO IR159", "CNS 11643-1992", "UNICODE"] {
        let error = client.send_text(&message(name, "")).unwrap_err();
        let ErrorKind::InvalidMessage(MessageError::UnsupportedCharset { charset, .. }) = error.kind() else {
            panic!("{name}: {error:?}");
        };
        assert_eq!(*charset, name);
        let error = Client::builder(&receiver.endpoint()).charset(name).build().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Config(said) if said.contains(name)), "{error}");
    }
    assert_eq!((receiver.connections(), client.stats().failed), (0, 11));
}
