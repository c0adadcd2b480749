//! What an exchange costs beside a bare `write` and `read` on the same kind of socket, and beside
//! hl7-mllp-codec on tokio, in the same run.
//!
//! All take turns, so that whatever else the machine does meets all of them, and a ratio is the
//! median of the rounds' own. The bare socket is set up as the client's: TCP_NODELAY, and a
//! time-out for reading and writing. The table is printed twice: with the ends on a core each, and
//! with both on one (the only table under `taskset -c 0`), where waking the other core
//! does not hide what the client costs.
//!
//! The column `probed` is the bare loop with what the client's promises take: before each write a
//! look at what has come, and one search for framing bytes in the message.

mod common;

use std::hint::black_box;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::TcpStream;

use bytes::BytesMut;
use common::{Messages, compare, connect, exchange_bare, note, placements, run_on, serve};
use futures_util::{SinkExt, StreamExt};
use hl7_mllp_codec::MllpCodec;
use memchr::memchr2;
use mllp_client::{Client, frame::Framing};
use socket2::SockRef;
use tokio_util::codec::Framed;

const SIZES: [(&str, usize); 5] =
    [("200 B", 200), ("1 KB", 1_000), ("64 KB", 64_000), ("1 MB", 1_000_000), ("10 MB", 10_000_000)];

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("there is a poll to have");
    for (title, here, there) in placements() {
        run_on(here);
        println!(
            "\n{title:<24}{:>12}{:>12}{:>8}{:>12}{:>8}{:>12}{:>8}{:>12}{:>8}",
            "bare", "probed", "", "exchange", "", "send", "", "codec", ""
        );
        for (name, size) in SIZES {
            let [mut sent, mut exchanged, mut coded] = [0, 1, 2].map(|sender| Messages::of_sender(sender, size));
            let frame = Framing::default().encode(sent.next()).expect("the message has no framing byte");
            let address = serve(5, there, |stream| stream);
            let [mut bare, mut probed] = [connect(address), connect(address)];
            let endpoint = format!("mllp://{address}");
            let mut connection = Client::builder(&endpoint).connect().expect("the receiver listens");
            let client = Client::new(&endpoint).expect("the endpoint is one");
            let mut codec = runtime.block_on(async {
                let stream = tokio::net::TcpStream::connect(address).await.expect("the receiver listens");
                stream.set_nodelay(true).expect("a TCP socket takes it");
                Framed::new(stream, MllpCodec::new())
            });
            let (times, [_, probed_ratio, exchange_ratio, send_ratio, peer_ratio]) = compare(
                size,
                [
                    &mut || exchange_bare(&mut bare, &frame),
                    &mut || {
                        assert_eq!(memchr2(0x0B, 0x1C, black_box(&frame[1..frame.len() - 2])), None);
                        probe(&probed);
                        exchange_bare(&mut probed, &frame);
                    },
                    &mut || {
                        black_box(connection.exchange(exchanged.next()).expect("it is answered"));
                    },
                    &mut || {
                        black_box(client.send(sent.next()).expect("it is accepted"));
                    },
                    &mut || {
                        runtime.block_on(async {
                            codec.send(BytesMut::from(coded.next())).await.expect("the receiver reads");
                            black_box(codec.next().await.expect("it is answered").expect("it is a frame"));
                        });
                    },
                ],
            );
            let [bare, probed, exchange, send, peer] = times;
            print!(
                "{name:<24}{bare:>9.2} us{probed:>9.2} us{probed_ratio:>8.3}{exchange:>9.2} us{exchange_ratio:>8.3}"
            );
            println!("{send:>9.2} us{send_ratio:>8.3}{peer:>9.2} us{peer_ratio:>8.3}");
            let chart = format!("Exchange, {title}");
            for (what, ratio) in
                [("exchange", exchange_ratio), ("send", send_ratio), ("hl7-mllp-codec on tokio", peer_ratio)]
            {
                note(&chart, name, what, ratio);
            }
        }
    }
}

/// Looks, without waiting and without taking, whether anything has come.
fn probe(stream: &TcpStream) {
    let peek_at_once = if cfg!(target_os = "linux") { 0x02 | 0x40 } else { 0x02 | 0x80 };
    let peeked = SockRef::from(stream).recv_with_flags(&mut [MaybeUninit::uninit()], peek_at_once);
    assert!(peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "nothing has come");
}
