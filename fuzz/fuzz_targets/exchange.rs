//! A connection, or a client with one, and peers that say anything at any time and take what they are sent in any way: no answer reaches
//! another message, no failure says what is not so, nothing is used that is in doubt, and no call takes more time or memory than it may.

#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mllp_client::frame::Framing;
use mllp_client::fuzzing::oracle::{self, Grammar, Meaning};
use mllp_client::fuzzing::world::{self, Peer, Says, Takes};
use mllp_client::{Ack, AckCode, AckMode, Client, ClientBuilder, Connection, Delivery, Error, ErrorKind, Reconnect};

#[derive(Arbitrary, Debug)]
struct Plan {
    setup: Setup,
    peers: Vec<PeerPlan>,
    calls: Vec<Call>,
}

#[derive(Arbitrary, Debug)]
struct Setup {
    framing: u8,
    mode: u8,
    verify: bool,
    release2: bool,
    client: bool,
    max_ack_size: u16,
    timeout: u8,
    application_timeout: Option<u8>,
}

#[derive(Arbitrary, Debug)]
struct PeerPlan {
    says: Vec<(u8, SaysPlan)>,
    takes: Vec<TakesPlan>,
}

#[derive(Arbitrary, Debug)]
enum SaysPlan {
    Acknowledgment { code: u8, control_id: u8 },
    Part { code: u8, control_id: u8, cut: u8 },
    Block { stored: bool },
    Raw(Vec<u8>),
    Flood { byte: u8, kilobytes: u8 },
    End,
    Reset,
}

#[derive(Arbitrary, Debug)]
enum TakesPlan {
    AtMost(u8),
    Nothing(u8),
    Broken,
}

#[derive(Arbitrary, Debug)]
enum Call {
    Send { control_id: u8, asks: u8, blocks: u8 },
    Exchange { payload: Vec<u8> },
    Pass(u8),
    Look,
    Reconnect,
}

/// Times are counted in these.
const TICK: Duration = Duration::from_millis(10);
/// What a client needs beside an answer: a small message once more, and what is small anyway.
const FIXED: u64 = 64 * 1024;
/// How much may stand before an answer.
const SKIPPED: usize = 64 * 1024 + 64;

fuzz_target!(|plan: Plan| {
    let (framing, grammar) = oracle::framing(plan.setup.framing.into());
    let peers = plan.peers.into_iter().take(6).map(|peer| peer.describe(&grammar)).collect();
    let sizes = plan.calls.iter().take(12).map(|call| match call {
        Call::Send { control_id, asks, blocks } => message(*control_id, *asks, *blocks).len(),
        Call::Exchange { payload } => payload.len(),
        Call::Pass(_) | Call::Look | Call::Reconnect => 0,
    });
    // In release 2 each may go three times, with commit blocks between.
    world::begin(peers, 3 * sizes.map(|size| size + 64).sum::<usize>() + 4096);
    let mut trial = Trial::new(&plan.setup, framing, grammar);
    for call in plan.calls.iter().take(12) {
        trial.call(call);
    }
    trial.user = User::Nobody;
    world::with_records(|records| assert!(records.iter().all(|record| record.closed && !record.used_after_close)));
});

impl PeerPlan {
    fn describe(self, grammar: &Grammar) -> Peer {
        let says = |(pause, says)| {
            let says = match says {
                SaysPlan::Acknowledgment { code, control_id } => {
                    Says::Bytes(frame(grammar, &acknowledgment(code, control_id)))
                }
                SaysPlan::Part { code, control_id, cut } => {
                    let mut bytes = frame(grammar, &acknowledgment(code, control_id));
                    bytes.truncate(cut.into());
                    Says::Bytes(bytes)
                }
                SaysPlan::Block { stored } => Says::Bytes(frame(grammar, &[if stored { 0x06 } else { 0x15 }])),
                SaysPlan::Raw(bytes) => Says::Bytes(bytes),
                SaysPlan::Flood { byte, kilobytes } => Says::Bytes(vec![byte; usize::from(kilobytes) * 1024]),
                SaysPlan::End => Says::End,
                SaysPlan::Reset => Says::Reset,
            };
            (TICK * u32::from(pause), says)
        };
        let takes = |takes| match takes {
            TakesPlan::AtMost(count) => Takes::AtMost(count.into()),
            TakesPlan::Nothing(pause) => Takes::Nothing(TICK * u32::from(pause)),
            TakesPlan::Broken => Takes::Broken,
        };
        Peer { says: self.says.into_iter().map(says).collect(), takes: self.takes.into_iter().map(takes).collect() }
    }
}

enum User {
    Connection(Box<Connection>),
    Client(Client),
    Nobody,
}

/// What a call ended with.
enum End {
    Ack(Ack),
    Reply(Vec<u8>),
}

struct Trial {
    user: User,
    grammar: Grammar,
    mode: AckMode,
    verify: bool,
    release2: bool,
    max_ack_size: usize,
    limit: Duration,
    /// What a failure leaves of a connection: nothing, after any doubt.
    ended: bool,
}

impl Trial {
    fn new(setup: &Setup, framing: Framing, grammar: Grammar) -> Trial {
        let mode = [AckMode::FromHeader, AckMode::Application, AckMode::Commit][usize::from(setup.mode % 3)];
        let max_ack_size = usize::from(setup.max_ack_size).max(1);
        let timeout = TICK * (1 + u32::from(setup.timeout));
        let release2 = setup.release2;
        let mut builder: ClientBuilder = Client::builder("mllp://receiver:2575")
            .framing(framing)
            .ack_mode(mode)
            .verify_control_id(setup.verify)
            .release2(release2)
            .max_ack_size(max_ack_size)
            .timeout(timeout)
            .reconnect(Reconnect::never());
        let mut limit = timeout;
        if let Some(ticks) = setup.application_timeout {
            let more = TICK * (1 + u32::from(ticks));
            builder = builder.application_timeout(more);
            limit += more;
        }
        if release2 {
            // Each of the commit blocks for what came late has a second of its own.
            limit += Duration::from_secs(60);
        }
        let user = if setup.client {
            User::Client(builder.build().unwrap())
        } else {
            match builder.connect() {
                Ok(connection) => User::Connection(Box::new(connection)),
                Err(error) => {
                    assert_eq!(error.delivery(), Delivery::NotSent);
                    User::Nobody
                }
            }
        };
        Trial { user, grammar, mode, verify: setup.verify, release2, max_ack_size, limit, ended: false }
    }

    fn call(&mut self, call: &Call) {
        match call {
            Call::Pass(ticks) => world::pass(TICK * u32::from(*ticks)),
            Call::Look => match &self.user {
                User::Connection(connection) => assert!(!(self.ended && connection.is_open())),
                User::Client(client) => drop(client.is_connected()),
                User::Nobody => {}
            },
            Call::Reconnect => {
                if let User::Client(client) = &self.user {
                    let failed = client.reconnect().is_err();
                    assert!(!failed || !client.is_connected());
                }
            }
            Call::Send { control_id, asks, blocks } => {
                let message = message(*control_id, *asks, *blocks);
                self.watch(&message, |user| match user {
                    User::Connection(connection) => Some(connection.send(&message).map(End::Ack)),
                    User::Client(client) => Some(client.send(&message).map(End::Ack)),
                    User::Nobody => None,
                });
            }
            Call::Exchange { payload } => self.watch(payload, |user| match user {
                User::Connection(connection) => {
                    Some(connection.exchange(payload).map(|reply| End::Reply(reply.to_vec())))
                }
                User::Client(client) => Some(client.exchange(payload).map(End::Reply)),
                User::Nobody => None,
            }),
        }
        world::with_records(|records| {
            assert!(records.iter().all(|record| !record.used_after_close));
            assert!(records.iter().filter(|record| !record.closed).count() <= 1, "more than one connection");
        });
    }

    /// Makes a call and compares what it says with what happened.
    fn watch(&mut self, payload: &[u8], call: impl FnOnce(&mut User) -> Option<Result<End, Error>>) {
        let marks: Vec<_> = world::with_records(|records| {
            records.iter().map(|record| (record.sent.len(), record.received.len())).collect()
        });
        let began = world::elapsed();
        let mut result = None;
        let memory = allocation_counter::measure(|| result = call(&mut self.user));
        let Some(result) = result else { return };
        let took = world::elapsed() - began;
        assert!(took <= self.limit, "{took:?} of {:?}", self.limit);
        // The buffer while it grows, what is handed out or kept as evidence, and a commit accept before it.
        let (answer, buffer) = (self.max_ack_size as u64, (self.max_ack_size + SKIPPED) as u64);
        let most = buffer * 3 / 2 + buffer + answer + FIXED;
        assert!(memory.bytes_max <= most, "{} bytes of {most}", memory.bytes_max);

        let whole = frame(&self.grammar, payload);
        let content_end = whole.len() - self.grammar.end.len();
        let (mut left, mut complete) = (0, None);
        world::with_records(|records| {
            for (index, record) in records.iter().enumerate() {
                let (sent, _) = marks.get(index).copied().unwrap_or_default();
                let new = &record.sent[sent..];
                if !self.release2 {
                    assert!(whole.starts_with(new), "nothing but the frame is sent, and once");
                    if let Some((_, unread)) = record.writes.iter().find(|(at, _)| *at == sent && index < marks.len()) {
                        assert_eq!(*unread, 0, "a connection was used again without a look at what it had to say");
                    }
                }
                // In release 2 a message may go several times, with commit blocks between.
                let longest = (0..new.len()).map(|at| shared(&new[at..], &whole)).max().unwrap_or(0);
                left += usize::from(longest > content_end);
                if longest == whole.len() {
                    complete = Some(index);
                }
            }
        });
        // In release 2 the receiver may say that it has not stored it, and go away.
        assert!(left <= 1 || self.release2, "sent over {left} connections");
        match &result {
            Ok(end) => {
                let index = complete.expect("an answer to what was not sent");
                let raw = match end {
                    End::Ack(ack) => ack.raw(),
                    End::Reply(reply) => reply,
                };
                assert!(self.has_come(index, &marks, raw));
                if let End::Ack(ack) = end {
                    self.must_mean(payload, ack, Meaning::Ends);
                }
            }
            Err(error) => self.judge(payload, error, left > 0, &marks),
        }
        let doubt = match &result {
            Ok(_) => false,
            Err(error) => {
                !matches!(error.kind(), ErrorKind::Nak(_) | ErrorKind::InvalidMessage(_) | ErrorKind::NotStored { .. })
            }
        };
        if let User::Connection(connection) = &self.user {
            if self.ended {
                assert!(matches!(&result, Err(error) if matches!(error.kind(), ErrorKind::Closed)));
            }
            self.ended |= doubt;
            assert!(!(self.ended && connection.is_open()));
        }
        if doubt {
            world::with_records(|records| assert!(records.iter().all(|record| record.closed)));
        }
    }

    /// Whether the failure says what happened.
    fn judge(&self, payload: &[u8], error: &Error, left: bool, marks: &[(usize, usize)]) {
        for evidence in error.nak().into_iter().chain(error.commit()) {
            let connections = world::with_records(|records| records.len());
            assert!((0..connections).any(|index| self.has_come(index, marks, evidence.raw())), "{error:?}");
        }
        match error.delivery() {
            // In release 2 the receiver may say that it has not stored it.
            Delivery::NotSent => assert!(!left || self.release2, "{error:?}"),
            Delivery::Unknown => assert!(left, "{error:?}"),
            Delivery::Committed => {
                assert!(left, "{error:?}");
                match error.commit() {
                    Some(commit) => {
                        assert_eq!(commit.code(), AckCode::CommitAccept);
                        self.must_mean(payload, commit, Meaning::GoesOn);
                    }
                    None => assert!(self.release2, "committed by nothing"),
                }
            }
            Delivery::Refused => match error.nak() {
                Some(nak) => self.must_mean(payload, nak, Meaning::Refused),
                None => assert!(self.release2 && matches!(error.kind(), ErrorKind::NotStored { .. })),
            },
        }
        assert!(error.commit().is_none() || matches!(error.delivery(), Delivery::Committed | Delivery::Refused));
        assert!(error.response().is_none_or(|response| response.len() <= self.max_ack_size + SKIPPED));
        let _ = (format!("{error}"), format!("{error:?}"));
    }

    fn must_mean(&self, message: &[u8], ack: &Ack, expected: Meaning) {
        let header = oracle::header(message).expect("an acknowledgment of what has no header");
        let read = oracle::acknowledgment(ack.raw()).expect("an acknowledgment that is none");
        assert_eq!(read.code, ack.code());
        assert_eq!(oracle::meaning(&header, self.mode, self.verify, read.code, &read.control_id), expected);
    }

    /// Whether a connection received a frame with this content that was not whole before the call.
    fn has_come(&self, index: usize, marks: &[(usize, usize)], content: &[u8]) -> bool {
        let mark = marks.get(index).map_or(0, |(_, received)| *received);
        let mut frame = frame(&self.grammar, content);
        let frames = self.grammar.frames(self.max_ack_size, &frame);
        assert!(frames.contents.len() == 1 && frames.contents[0].0 == content);
        if self.grammar.missing_carriage_return {
            frame.pop();
        }
        world::with_records(|records| {
            let received = &records[index].received;
            let earliest = (mark + 1).saturating_sub(frame.len());
            received.get(earliest..).is_some_and(|late| late.windows(frame.len()).any(|window| window == frame))
        })
    }
}

/// How much of two texts is the same from the beginning.
fn shared(text: &[u8], other: &[u8]) -> usize {
    text.iter().zip(other).take_while(|(one, other)| one == other).count()
}

fn frame(grammar: &Grammar, content: &[u8]) -> Vec<u8> {
    [&grammar.start[..], content, &grammar.end].concat()
}

fn message(control_id: u8, asks: u8, blocks: u8) -> Vec<u8> {
    let conditions = ["", "|||AL|AL", "|||AL|NE", "|||NE|AL", "|||NE|NE"][usize::from(asks % 5)];
    let control_id = control_id % 4;
    // Mostly what leaves in one piece, and sometimes more.
    let filler = "x".repeat(if blocks % 16 == 15 { 20_000 } else { usize::from(blocks % 16) * 128 });
    format!("MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|M{control_id}|P|2.5{conditions}\rNTE|{filler}\r").into_bytes()
}

fn acknowledgment(code: u8, control_id: u8) -> Vec<u8> {
    let code = ["AA", "AE", "AR", "CA", "CE", "CR"][usize::from(code % 6)];
    // Those of messages, and what is almost one of them.
    let control_id = ["M0", "M1", "M2", "M3", "M", "M1x", " M2 ", "m3"][usize::from(control_id % 8)];
    format!("MSH|^~\\&|EHR|H|LAB|H|20260101||ACK|1|P|2.5\rMSA|{code}|{control_id}\r").into_bytes()
}
