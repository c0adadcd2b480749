//! What sharing a client costs: threads with a connection each, beside as many bare loops of
//! `write` and `read` in the same run, where the system puts them; and what a `Client` costs over a
//! `Connection`, on one thread, placed as the other benchmarks are.
//!
//! A thread that is alone shares a core with its receiver: the system would put the two on one core
//! now and on two then, and nothing else would be seen.
//!
//! All take turns, and a ratio is the median of the rounds' own: of the throughput, so that more is
//! better.

mod common;

use std::hint::black_box;
use std::net::TcpStream;
use std::thread;

use common::{
    Messages, compare, compare_runs, connect, exchange_bare, note, placements, run_on, serve, serve_anywhere,
};
use core_affinity::CoreId;
use mllp_client::{Client, frame::Framing};

const SIZE: usize = 1_000;
const EACH: usize = 2_000;

fn main() {
    // Before any of it is run on one core, for then there seems to be no other.
    let placements = placements();
    println!("{:<24}{:>14}{:>14}{:>8}", "threads, connections", "bare", "send", "");
    share(4);
    share(16);
    run_on(placements[0].1);
    share(1);
    one_thread(placements);
}

fn share(threads: usize) {
    let mut senders: Vec<_> = (0..threads).map(|sender| Messages::of_sender(sender, SIZE)).collect();
    let frame = Framing::default().encode(senders[0].next()).expect("the message has no framing byte");
    let address = serve_anywhere(2 * threads);
    let mut bare: Vec<TcpStream> = (0..threads).map(|_| connect(address)).collect();
    let builder = Client::builder(&format!("mllp://{address}")).max_connections(threads);
    let client = builder.build().expect("the settings are sound");
    let ([bare, send], [_, ratio]) = compare_runs([
        &mut || {
            thread::scope(|scope| {
                for stream in &mut bare {
                    scope.spawn(|| (0..EACH).for_each(|_| exchange_bare(stream, &frame)));
                }
            });
        },
        &mut || {
            thread::scope(|scope| {
                for messages in &mut senders {
                    scope.spawn(|| {
                        for _ in 0..EACH {
                            black_box(client.send(messages.next()).expect("it is accepted"));
                        }
                    });
                }
            });
        },
    ]);
    let rate = |run: f64| (threads * EACH) as f64 / run;
    let name = format!("{threads}, {threads}");
    println!("{name:<24}{:>12.0}/s{:>12.0}/s{:>8.3}", rate(bare), rate(send), 1.0 / ratio);
    note("Threads that share a client", &format!("{threads} on {threads} connections"), "send", ratio);
}

fn one_thread(placements: Vec<(&str, CoreId, CoreId)>) {
    for (title, here, there) in placements {
        run_on(here);
        let address = serve(2, there, |stream| stream);
        let endpoint = format!("mllp://{address}");
        let mut connection = Client::builder(&endpoint).connect().expect("the receiver listens");
        let client = Client::new(&endpoint).expect("the endpoint is one");
        let [mut one, mut other] = [0, 1].map(|sender| Messages::of_sender(sender, SIZE));
        let ([connection, client], [_, ratio]) = compare(
            SIZE,
            [
                &mut || {
                    black_box(connection.send(one.next()).expect("it is accepted"));
                },
                &mut || {
                    black_box(client.send(other.next()).expect("it is accepted"));
                },
            ],
        );
        println!("\n{title:<24}{:>14}{:>14}{:>8}", "Connection", "Client", "");
        println!("{:<24}{connection:>11.2} us{client:>11.2} us{:>8.3}", "one thread", 1.0 / ratio);
    }
}
