//! What a warm exchange allocates: nothing on a connection, the acknowledgment handed out by a
//! client.

mod common;

use std::time::Duration;

use common::{LONG, acknowledgment, client, connection, message};
use mllp_client::testing::{Receiver, Step};
use mllp_client::{Batch, Client};

/// Allocations on this thread.
fn allocations(work: impl FnMut()) -> u64 {
    allocation_counter::measure(work).count_total
}

#[test]
fn a_warm_exchange() {
    let receiver = Receiver::accepting().unwrap();
    let mut connection = connection(&receiver.endpoint(), LONG);
    let client = client(&receiver.endpoint(), LONG);
    connection.exchange(message("first").as_bytes()).unwrap();
    client.send(message("first")).unwrap();

    // More than a connection remembers.
    for number in 0..1100 {
        let [one, two, three] = ["a", "b", "c"].map(|letter| message(&format!("{letter}{number}")));
        assert_eq!(allocations(|| assert!(connection.exchange(one.as_bytes()).is_ok())), 0, "Connection::exchange");
        assert_eq!(allocations(|| drop(connection.send(two.as_bytes()).unwrap())), 1, "Connection::send");
        assert_eq!(allocations(|| drop(client.send(&one).unwrap())), 1, "Client::send");
        let request = || client.request(&two).timeout(Duration::from_secs(10));
        assert_eq!(allocations(|| drop(request().send().unwrap())), 1, "Request::send");
        assert_eq!(allocations(|| drop(client.exchange(&three).unwrap())), 1, "Client::exchange");
    }
    assert_eq!(receiver.connections(), 2);
}

/// 20 000 messages, and 10 MB of acknowledgments.
#[test]
fn a_batch_keeps_no_more_than_its_answers() {
    const MAX_ACK_SIZE: usize = 10 * 1024 * 1024;
    let mut batch = Batch::new("B").unwrap();
    (0..20_000).for_each(|number| batch.push(message(&number.to_string())).unwrap());
    let answer = |number: usize| {
        let mut answer = acknowledgment("AA", &number.to_string());
        answer.splice(answer.len() - 3..answer.len() - 3, [&b"|"[..], &vec![b'x'; 495 - answer.len()]].concat());
        answer
    };
    let bare = |number: usize| answer(number)[1..].strip_suffix(b"\x1C\r").unwrap().to_vec();
    let each: Vec<u8> = (0..20_000).flat_map(answer).collect();
    let together: Vec<u8> = (0..20_000).flat_map(bare).collect();
    let size = batch.to_bytes().len();
    for (name, step) in [("a frame for each", Step::bytes(each)), ("one frame", Step::frame(together))] {
        let receiver = Receiver::scripted([step]).unwrap();
        let client = Client::builder(&receiver.endpoint()).timeout(LONG).max_ack_size(MAX_ACK_SIZE).build().unwrap();
        client.connect().unwrap();
        let mut results = Vec::new();
        let allocated = allocation_counter::measure(|| results = client.send_batch(&batch).unwrap());
        assert!(results.iter().all(Result::is_ok), "{name}");
        let most = (size + 2 * MAX_ACK_SIZE) as u64;
        assert!(allocated.bytes_max <= most, "{name}: {} of {most}", allocated.bytes_max);
    }
}

#[test]
fn a_large_message_is_not_copied() {
    let receiver = Receiver::accepting().unwrap();
    let mut connection = connection(&receiver.endpoint(), LONG);
    let large = common::message_of("1", 1024 * 1024);
    connection.exchange(&large).unwrap();
    let allocated = allocation_counter::measure(|| assert!(connection.exchange(&large).is_ok()));
    assert_eq!(allocated.bytes_total, 0);
}
