//! The receiver itself: it keeps what it promises, and ends whatever its peers do.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::{LONG, acknowledgment, client, eventually, message, prompt, read_frame};
use mllp_client::testing::{Receiver, Step};

fn connect(receiver: &Receiver) -> TcpStream {
    TcpStream::connect(receiver.endpoint().strip_prefix("mllp://").unwrap()).unwrap()
}

fn frame(content: &str) -> Vec<u8> {
    [b"\x0B", content.as_bytes(), b"\x1C\r"].concat()
}

#[test]
fn answers_are_the_bytes_they_are_said_to_be() {
    let receiver =
        Receiver::scripted([Step::frame("one").then(Step::bytes("two")), Step::silence(), Step::frame("three").half()])
            .unwrap();
    let mut stream = connect(&receiver);
    stream.write_all(&frame("MSH|^~\\&|||||||X|1\r").repeat(4)).unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\x1C\r") || seen.len() < 30 {
        let mut buffer = [0; 100];
        let count = stream.read(&mut buffer).unwrap();
        seen.extend_from_slice(&buffer[..count]);
    }
    assert!(seen.starts_with(b"\x0Bone\x1C\rtwo\x0Bthr\x0BMSH|^~\\&|"), "{}", String::from_utf8_lossy(&seen));
    assert_eq!(receiver.received().len(), 4);
}

#[test]
fn close_and_reset_are_different_ends() {
    for (step, clean) in [(Step::accept().close(), true), (Step::accept().reset(), false)] {
        let receiver = Receiver::scripted([step]).unwrap();
        let mut stream = connect(&receiver);
        stream.write_all(&frame(&message("1"))).unwrap();
        let mut rest = Vec::new();
        assert_eq!(stream.read_to_end(&mut rest).is_ok(), clean);
    }
}

#[test]
fn it_survives_any_peer() {
    let receiver = Receiver::accepting().unwrap();
    let mut held = Vec::new();
    for bytes in [
        &b""[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x0B",
        b"\x0Bhalf a frame",
        b"\x0Bno end\x1Cx",
        b"\x0B\x0B\x0B",
        b"\x1C\r\x1C\r",
        b"\x0B\x1C\r",
        b"\x0Bnot HL7\x1C\r",
    ] {
        for keep in [false, true] {
            let mut stream = connect(&receiver);
            stream.write_all(bytes).unwrap();
            if keep {
                held.push(stream);
            }
        }
    }
    assert!(client(&receiver.endpoint(), LONG).send(message("1")).is_ok());
    prompt(|| drop(receiver));
}

#[test]
fn it_ends_while_peers_do_their_worst() {
    let steps = [
        Step::accept().after(LONG),
        Step::accept().drip(LONG),
        Step::bytes(vec![b'x'; 100 * 1024 * 1024]),
        Step::silence(),
    ];
    for step in steps {
        let receiver = Receiver::answering(move |_| step.clone()).unwrap();
        let mut stream = connect(&receiver);
        stream.write_all(&frame(&message("1"))).unwrap();
        assert!(receiver.wait_for(1, LONG));
        prompt(|| drop(receiver));
        drop(stream);
    }
}

#[test]
fn more_peers_than_it_serves_wait_and_it_still_ends() {
    let receiver = Receiver::accepting().unwrap();
    let streams: Vec<_> = (0..70).map(|_| connect(&receiver)).collect();
    eventually("all it serves", || receiver.connections() == 64);
    drop(streams);
    assert!(client(&receiver.endpoint(), LONG).send(message("1")).is_ok());
    let _streams: Vec<_> = (0..70).map(|_| connect(&receiver)).collect();
    prompt(|| drop(receiver));
}

#[test]
fn a_closure_that_panics_ends_its_connection_only() {
    let receiver = Receiver::answering(|message| {
        assert!(message.starts_with(b"MSH"), "on purpose");
        Step::accept()
    })
    .unwrap();
    let client = client(&receiver.endpoint(), LONG);
    assert!(client.exchange("no HL7").is_err());
    assert!(client.send(message("1")).is_ok());
}

#[test]
fn it_pushes_and_hangs_up() {
    let receiver = Receiver::accepting().unwrap();
    let mut stream = connect(&receiver);
    stream.write_all(&frame(&message("1"))).unwrap();
    read_frame(&stream);
    receiver.push(&acknowledgment("AA", "2")).unwrap();
    assert_eq!(read_frame(&stream), acknowledgment("AA", "2"));
    receiver.hang_up();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert!(!receiver.wait_for(2, Duration::from_millis(1)));
}

#[test]
fn its_port_is_free_again() {
    let receiver = Receiver::accepting().unwrap();
    let address = receiver.endpoint().strip_prefix("mllp://").unwrap().to_owned();
    client(&receiver.endpoint(), LONG).send(message("1")).unwrap();
    drop(receiver);
    assert!(TcpStream::connect(&address).is_err());
    let again = Receiver::builder().address(&*address).unwrap().answering(|_| Step::accept()).unwrap();
    client(&again.endpoint(), LONG).send(message("2")).unwrap();
    let busy = Receiver::builder().address(again.endpoint().strip_prefix("mllp://").unwrap()).unwrap();
    assert!(busy.scripted([]).is_err());
}
