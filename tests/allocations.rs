//! What a warm exchange allocates: nothing on a connection, the acknowledgment handed out by a client.

mod common;

use std::time::Duration;

use common::{LONG, client, connection, message};
use mllp_client::testing::Receiver;

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

#[test]
fn a_large_message_is_not_copied() {
    let receiver = Receiver::accepting().unwrap();
    let mut connection = connection(&receiver.endpoint(), LONG);
    let large = common::message_of("1", 1024 * 1024);
    connection.exchange(&large).unwrap();
    let allocated = allocation_counter::measure(|| assert!(connection.exchange(&large).is_ok()));
    assert_eq!(allocated.bytes_total, 0);
}
