//! A connection, or a client with one, and peers that answer twice, late, in halves, in another
//! order, or nobody: no verdict of one sending is given to another, no failure says what is not so,
//! nothing is used that is in doubt, and no call takes more time or memory than it may.
//!
//! All that happens is read from bytes, so that a fuzzer and a property test play the same. The
//! answers are tagged: each says in its text which sending it is meant for, and the client, which
//! does not read that, is held to it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::fuzzing::oracle::{self, Grammar, Meaning};
use crate::simulation::{Peer, Record, Says, Simulation, Takes};
use crate::{Ack, AckCode, AckMode, Batch, Client, ClientBuilder, Connection, Delivery, Error, ErrorKind, Reconnect};

/// Times are counted in these.
const TICK: Duration = Duration::from_millis(10);
/// The bytes that a client needs beside an answer: a copy of a small message, and small things.
const FIXED: u64 = 64 * 1024;
/// How much may stand before an answer.
const SKIPPED: usize = 64 * 1024 + 64;
/// How long what has already come is taken in once the time is over.
const LAST_LOOK: Duration = Duration::from_millis(50);
/// Larger than anything that is sent here.
const ANY_SIZE: usize = 1 << 40;
const MAX_PEERS: usize = 4;
const MAX_STATEMENTS: usize = 48;
const MAX_CALLS: usize = 12;

/// Runs a work and says how many bytes it had allocated at most.
pub type Measure = fn(&mut dyn FnMut()) -> u64;

/// Plays what the bytes describe. It panics where the client breaks a promise.
pub fn play(bytes: &[u8], measure: Measure) {
    let mut source = Numbers { bytes, at: 0 };
    let setup = Setup::read(&mut source);
    let mut peers: Vec<Script> = (0..MAX_PEERS).map(|_| Script::default()).collect();
    let mut calls = Vec::new();
    let mut statements = 0;
    while let Some(kind) = source.next() {
        // Calls and what the peers say stand in between each other, so that a change of one leaves the
        // other as it is.
        if kind % 4 == 0 && calls.len() < MAX_CALLS {
            calls.push(Call::read(&mut source));
        } else if statements < MAX_STATEMENTS {
            statements += 1;
            // Most is said by the first peers, since others come after a connection has ended.
            let peer = [0, 0, 1, 2, 1, 3, 0, 1][usize::from(kind / 4 % 8)];
            peers[peer].read(statements, &mut source);
        }
    }
    let peers = peers.into_iter().map(|script| script.describe(&setup.grammar)).collect();
    let sizes = calls.iter().map(|call| call.payload().len() + 64);
    // In release 2 each may go three times, with commit blocks between.
    let simulation = Simulation::begin(peers, 3 * sizes.sum::<usize>() + 4096);
    let mut trial = Trial::new(setup, &simulation, measure);
    for (number, call) in calls.iter().enumerate() {
        trial.call(number, call);
    }
    trial.user = User::Nobody;
    simulation.with_records(|records| {
        assert!(records.iter().all(|record| record.closed && !record.used_after_close));
    });
}

/// Numbers, from the first byte to the last.
struct Numbers<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Numbers<'_> {
    fn next(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.at).copied();
        self.at += 1;
        byte
    }

    fn number(&mut self) -> usize {
        self.next().unwrap_or(0).into()
    }

    fn below(&mut self, limit: usize) -> usize {
        self.number() % limit
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

struct Setup {
    builder: ClientBuilder,
    grammar: Grammar,
    mode: AckMode,
    verify: bool,
    repeated: bool,
    release2: bool,
    is_client: bool,
    max_ack_size: usize,
    limit: Duration,
}

impl Setup {
    fn read(source: &mut Numbers<'_>) -> Setup {
        // Mostly what most use.
        let kind = source.number();
        let (framing, grammar) = oracle::framing(if kind < 128 { 0 } else { kind });
        let mode = source.one_of(&[AckMode::FromHeader, AckMode::FromHeader, AckMode::Commit, AckMode::Application]);
        let [verify, repeated, release2] = [8, 8, 6].map(|rarity| source.below(rarity) == 1);
        let verify = !verify;
        let is_client = source.below(3) > 0;
        let max_ack_size = source.one_of(&[2000, 2000, 300, 90, 20_000, 1]);
        let timeout = TICK * (1 + source.number() as u32);
        let mut builder = Client::builder("mllp://receiver:2575")
            .framing(framing)
            .ack_mode(mode)
            .verify_control_id(verify)
            .allow_repeated_control_ids(repeated)
            .release2(release2)
            .max_ack_size(max_ack_size)
            .timeout(timeout)
            .reconnect(Reconnect::never());
        let mut limit = timeout + LAST_LOOK;
        match source.number() {
            0..128 => {}
            ticks => {
                let more = TICK * (1 + ticks as u32 - 128);
                builder = builder.application_timeout(more);
                limit += more + LAST_LOOK;
            }
        }
        match source.number() {
            0..200 => {}
            number => builder = builder.messages_per_connection(number as u32 - 199),
        }
        Setup { builder, grammar, mode, verify, repeated, release2, is_client, max_ack_size, limit }
    }
}

/// The payload of a call. Its control IDs are few, so that they come again.
enum Call {
    Send { control_id: usize, asks: usize, size: usize },
    Batch { control_id: usize, first: usize, messages: usize, asks: usize },
    Exchange { payload: Vec<u8> },
    Pass(usize),
    Look,
    Reconnect,
}

impl Call {
    fn read(source: &mut Numbers<'_>) -> Call {
        match source.below(16) {
            0..9 => Call::Send { control_id: source.below(4), asks: source.below(5), size: source.number() },
            9..12 => Call::Batch {
                control_id: source.below(3),
                first: source.below(4),
                messages: 1 + source.below(3),
                asks: source.below(5),
            },
            12 => {
                let payload = match source.below(4) {
                    0 => message(source.below(4), 0, 0),
                    length => vec![b'q'; length],
                };
                Call::Exchange { payload }
            }
            13 => Call::Pass(source.number()),
            14 => Call::Look,
            _ => Call::Reconnect,
        }
    }

    fn payload(&self) -> Vec<u8> {
        match self {
            Call::Send { control_id, asks, size } => message(*control_id, *asks, *size),
            Call::Batch { .. } => self.batch().map(|batch| batch.to_bytes()).unwrap_or_default(),
            Call::Exchange { payload } => payload.clone(),
            Call::Pass(_) | Call::Look | Call::Reconnect => Vec::new(),
        }
    }

    fn batch(&self) -> Option<Batch> {
        let Call::Batch { control_id, first, messages, asks } = self else { return None };
        let mut batch = Batch::new(&format!("B{control_id}")).ok()?;
        for number in 0..*messages {
            batch.push(message((first + number) % 4, *asks, 0)).ok()?;
        }
        Some(batch)
    }

    /// The control IDs that an acknowledgment may carry, those of the messages first.
    fn control_ids(&self) -> Vec<String> {
        match self {
            Call::Send { control_id, .. } => vec![format!("M{control_id}")],
            Call::Batch { control_id, first, messages, .. } => {
                let messages = (0..*messages).map(|number| format!("M{}", (first + number) % 4));
                messages.chain([format!("B{control_id}")]).collect()
            }
            _ => Vec::new(),
        }
    }
}

fn message(control_id: usize, asks: usize, size: usize) -> Vec<u8> {
    let conditions = ["", "|||AL|AL", "|||AL|NE", "|||NE|AL", "|||NE|NE"][asks];
    // Mostly what leaves in one piece, and sometimes more.
    let filler = "x".repeat(if size == 255 { 20_000 } else { size });
    format!("MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|M{control_id}|P|2.5{conditions}\rNTE|{filler}\r").into_bytes()
}

fn frame(grammar: &Grammar, content: &[u8]) -> Vec<u8> {
    [&grammar.start[..], content, &grammar.end].concat()
}

/// Describes the bytes that one peer sends, and how it takes those that it is sent.
#[derive(Default)]
struct Script {
    statements: Vec<(usize, Statement)>,
    takes: VecDeque<Takes>,
    refuses: bool,
}

/// One statement; the number in a script makes the tag of what it says.
struct Statement {
    number: usize,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    /// Answers the next payload that has not been answered, waiting for it, or an earlier one
    /// again, which has come by then; for its n-th control ID.
    Answer {
        again: Option<usize>,
        code: usize,
        of: usize,
        shape: Shape,
    },
    /// The rest of the half that came last.
    Rest,
    /// Acknowledges something of its own accord.
    Prophecy {
        control_id: usize,
        code: usize,
        half: bool,
    },
    Block {
        stored: bool,
    },
    Raw(usize),
    Flood {
        byte: u8,
        kilobytes: usize,
    },
    End,
    Reset,
}

#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Whole,
    Half,
    /// Each control ID of the payload, in one frame.
    Together,
    /// Each in a frame of its own, the last first.
    Each,
    /// Without a control ID.
    Nameless,
    /// With a second verdict on the same message behind it.
    Twice {
        opposite: bool,
    },
}

impl Script {
    fn read(&mut self, number: usize, source: &mut Numbers<'_>) {
        let kind = source.number();
        let pause = source.number();
        let pause = if pause < 128 { pause / 32 } else { pause - 127 };
        let code = |source: &mut Numbers<'_>| [0, 0, 0, 3, 3, 1, 2, 4, 5, 0][source.below(10)];
        let what = match kind % 32 {
            0..18 => What::Answer {
                again: (kind >= 160).then(|| kind / 32 - 5),
                code: code(source),
                of: source.below(4),
                shape: match source.below(16) {
                    0..7 => Shape::Whole,
                    7..9 => Shape::Half,
                    9 | 10 => Shape::Together,
                    11 | 12 => Shape::Each,
                    13 => Shape::Nameless,
                    14 => Shape::Twice { opposite: true },
                    _ => Shape::Twice { opposite: false },
                },
            },
            18..21 => What::Rest,
            21..23 => {
                let half = source.below(2) == 0;
                What::Prophecy { control_id: source.below(8), code: code(source), half }
            }
            23 | 24 => What::Block { stored: source.below(4) > 0 },
            25 => What::Raw(source.number()),
            26 => What::Flood { byte: source.one_of(b"\n\x0Bx\x1C"), kilobytes: source.number() / 2 },
            27 => What::End,
            28 => What::Reset,
            29 => {
                self.takes.push_back(match source.below(8) {
                    0 => Takes::Broken,
                    1..4 => Takes::Nothing(TICK * source.number() as u32),
                    _ => Takes::AtMost(source.number()),
                });
                return;
            }
            30 => {
                self.refuses |= source.below(8) == 0;
                return;
            }
            _ => What::Block { stored: true },
        };
        self.statements.push((pause, Statement { number, what }));
    }

    fn describe(self, grammar: &Grammar) -> Peer {
        let mut speaker = Speaker { grammar: grammar.clone(), answered: 0, rest: Vec::new() };
        let mut statements: VecDeque<_> = self.statements.into();
        let pauses: Vec<_> = statements.iter().map(|(pause, _)| TICK * *pause as u32).collect();
        let mut next = move |sent: &[u8]| {
            let (_, statement) = statements.front()?;
            let says = speaker.says(statement, sent)?;
            statements.pop_front();
            Some(says)
        };
        let next = std::rc::Rc::new(std::cell::RefCell::new(move |sent: &[u8]| next(sent)));
        let says = pauses.into_iter().map(|pause| {
            let next = std::rc::Rc::clone(&next);
            (pause, Says::InReply(Box::new(move |sent| (*next.borrow_mut())(sent))))
        });
        Peer { says: says.collect(), takes: self.takes, refuses: self.refuses }
    }
}

/// The memory of a peer: how many payloads it has answered, and the rest of a frame of which it has
/// sent a half.
struct Speaker {
    grammar: Grammar,
    answered: usize,
    rest: Vec<u8>,
}

impl Speaker {
    /// The bytes by which it answers once this has come; `None` while it waits for more.
    fn says(&mut self, statement: &Statement, sent: &[u8]) -> Option<Says> {
        let bytes = match statement.what {
            What::End => return Some(Says::End),
            What::Reset => return Some(Says::Reset),
            What::Rest => std::mem::take(&mut self.rest),
            What::Block { stored } => frame(&self.grammar, &[if stored { 0x06 } else { 0x15 }]),
            What::Raw(kind) => match kind % 4 {
                0 => frame(&self.grammar, b""),
                1 => frame(&self.grammar, b"NTE|1\r"),
                2 => b"\r\n".to_vec(),
                _ => vec![kind as u8; 3],
            },
            What::Flood { byte, kilobytes } => vec![byte; kilobytes * 1024],
            What::Prophecy { control_id, code, half } => {
                let id = format!("{}{}", if control_id < 4 { 'M' } else { 'B' }, control_id % 4);
                self.speak(frame(&self.grammar, &self.tagged(statement.number, None, code, &id)), half)
            }
            What::Answer { again, code, of, shape } => {
                let mut payloads = self.grammar.frames(ANY_SIZE, sent).contents;
                payloads.retain(|(content, _)| content.len() > 1);
                let index = match again {
                    // Where none has come there is nothing to say.
                    Some(back) => payloads.len().checked_sub(1 + back).or(payloads.len().checked_sub(1)),
                    None => Some(self.answered),
                };
                let Some(index) = index else { return Some(Says::Bytes(Vec::new())) };
                let (payload, _) = payloads.get(index)?;
                self.answered = self.answered.max(index + 1);
                self.answer(statement.number, index, payload, (code, of, shape))
            }
        };
        Some(Says::Bytes(bytes))
    }

    fn answer(
        &mut self,
        number: usize,
        index: usize,
        payload: &[u8],
        (code, of, shape): (usize, usize, Shape),
    ) -> Vec<u8> {
        let mut ids: Vec<String> =
            crate::hl7::header::control_ids(payload).map(|id| String::from_utf8_lossy(id).into_owned()).collect();
        if ids.is_empty() {
            return frame(&self.grammar, b"reply");
        }
        let id = ids[of % ids.len()].clone();
        let one = |id: &str, code: usize| self.tagged(number, Some(index), code, id);
        let content = match shape {
            Shape::Whole | Shape::Half => one(&id, code),
            Shape::Nameless => one("", code),
            Shape::Together => {
                [&b"BHS|^~\\&\r"[..], &ids.iter().flat_map(|id| one(id, code)).collect::<Vec<_>>(), b"BTS|1\r"].concat()
            }
            Shape::Each => {
                ids.reverse();
                return ids.iter().flat_map(|id| frame(&self.grammar, &one(id, code))).collect();
            }
            Shape::Twice { opposite } => {
                let other = if opposite == CODES[code].is_accept() { 1 } else { 0 };
                [one(&id, code), one(&id, other)].concat()
            }
        };
        self.speak(frame(&self.grammar, &content), shape == Shape::Half)
    }

    fn speak(&mut self, mut bytes: Vec<u8>, half: bool) -> Vec<u8> {
        if half {
            self.rest = bytes.split_off(bytes.len() * 2 / 3);
        }
        bytes
    }

    /// An acknowledgment that says in MSA-3 which payload of the connection it is meant for.
    fn tagged(&self, number: usize, meant_for: Option<usize>, code: usize, control_id: &str) -> Vec<u8> {
        let code = CODES[code].as_str();
        let meant_for = meant_for.map_or("none".into(), |index| index.to_string());
        format!("MSH|^~\\&|EHR|H\rMSA|{code}|{control_id}|{meant_for} by {number}\r").into_bytes()
    }
}

const CODES: [AckCode; 6] = [
    AckCode::ApplicationAccept,
    AckCode::ApplicationError,
    AckCode::ApplicationReject,
    AckCode::CommitAccept,
    AckCode::CommitError,
    AckCode::CommitReject,
];

enum User {
    Connection(Box<Connection>),
    Client(Client),
    Nobody,
}

/// The end of a call.
enum CallEnd {
    Acks(Vec<Result<Ack, Error>>),
    Reply(Vec<u8>),
}

/// How much had been sent and received on a connection before a call.
#[derive(Clone, Copy, Default)]
struct Mark {
    sent: usize,
    received: usize,
}

struct Trial<'s> {
    simulation: &'s Simulation,
    measure: Measure,
    user: User,
    setup: Setup,
    /// Whether a failure has ended the connection, as it does after any doubt.
    ended: bool,
}

impl<'s> Trial<'s> {
    fn new(mut setup: Setup, simulation: &'s Simulation, measure: Measure) -> Trial<'s> {
        let builder = std::mem::replace(&mut setup.builder, Client::builder("mllp://nobody:1"));
        let user = if setup.is_client {
            User::Client(builder.build().expect("the settings are right"))
        } else {
            match builder.connect() {
                Ok(connection) => User::Connection(Box::new(connection)),
                Err(error) => {
                    assert_eq!(error.delivery(), Delivery::NotSent);
                    User::Nobody
                }
            }
        };
        Trial { simulation, measure, user, setup, ended: false }
    }

    fn call(&mut self, number: usize, call: &Call) {
        match call {
            Call::Pass(ticks) => self.simulation.pass(TICK * *ticks as u32),
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
            Call::Send { .. } => {
                let message = call.payload();
                self.watch(number, call, |user| {
                    let end = match user {
                        User::Connection(connection) => connection.send(&message),
                        User::Client(client) => client.send(&message),
                        User::Nobody => return None,
                    };
                    Some(Ok(CallEnd::Acks(vec![end])))
                });
            }
            Call::Batch { .. } => {
                let Some(batch) = call.batch() else { return };
                self.watch(number, call, |user| match user {
                    User::Client(client) => Some(client.send_batch(&batch).map(CallEnd::Acks)),
                    User::Connection(_) | User::Nobody => None,
                });
            }
            Call::Exchange { payload } => self.watch(number, call, |user| match user {
                User::Connection(connection) => {
                    Some(connection.exchange(payload).map(|reply| CallEnd::Reply(reply.to_vec())))
                }
                User::Client(client) => Some(client.exchange(payload).map(CallEnd::Reply)),
                User::Nobody => None,
            }),
        }
        self.simulation.with_records(|records| {
            assert!(records.iter().all(|record| !record.used_after_close));
            assert!(records.iter().filter(|record| !record.closed).count() <= 1, "more than one connection");
        });
    }

    /// Makes a call and compares what it says with what happened.
    fn watch(&mut self, number: usize, call: &Call, run: impl FnOnce(&mut User) -> Option<Result<CallEnd, Error>>) {
        let marks: Vec<Mark> = self.simulation.with_records(|records| {
            records.iter().map(|record| Mark { sent: record.sent.len(), received: record.received.len() }).collect()
        });
        let (spoken_before, recorded_before) = (self.spoken(), self.simulation.memory());
        let began = self.simulation.elapsed();
        let (mut result, mut run) = (None, Some(run));
        let user = &mut self.user;
        let memory = (self.measure)(&mut || result = run.take().and_then(|run| run(user)));
        let Some(result) = result else { return };
        let took = self.simulation.elapsed() - began;
        assert!(took <= self.setup.limit, "call {number}: {took:?} of {:?}", self.setup.limit);
        // The buffer while it grows, what is kept of answers in sum, and what is handed out of it.
        let (kept, buffer) = (self.setup.max_ack_size as u64, (self.setup.max_ack_size + SKIPPED) as u64);
        // The peers' bytes, and the record of them, are made in the middle of the call. Where the record
        // grows, it is copied.
        let recorded = self.simulation.memory();
        let simulated = 8 * (self.spoken() - spoken_before) + if recorded > recorded_before { recorded } else { 0 };
        let most = buffer * 3 / 2 + buffer + 3 * kept + FIXED + simulated as u64;
        assert!(memory <= most, "call {number}: {memory} bytes of {most}");

        let (left, complete) = self.what_left(&call.payload(), &marks);
        // In release 2 the receiver may say that it has not stored it, and go away.
        assert!(left <= 1 || self.setup.release2, "call {number} was sent over {left} connections");
        let mut doubt = false;
        match result {
            Ok(CallEnd::Reply(reply)) => {
                let index = complete.expect("a reply to what was not sent");
                assert!(self.said_after(index, &marks, &reply).is_some(), "an early reply");
            }
            Ok(CallEnd::Acks(ends)) => {
                for (message, end) in ends.into_iter().enumerate() {
                    match end {
                        Ok(ack) => {
                            let index = complete.expect("an acknowledgment of what was not sent");
                            self.must_be_meant(call, message, index, &marks, &ack, Meaning::Ends);
                        }
                        Err(error) => {
                            doubt |= self.judge(call, message, &error, left > 0, &marks);
                        }
                    }
                }
            }
            Err(error) => doubt = self.judge(call, 0, &error, left > 0, &marks),
        }
        if let User::Connection(connection) = &self.user {
            self.ended |= doubt;
            assert!(!(self.ended && connection.is_open()));
        }
        if doubt {
            self.simulation.with_records(|records| assert!(records.iter().all(|record| record.closed), "{number}"));
        }
    }

    /// How many bytes the peers have said and the client has received.
    fn spoken(&self) -> usize {
        self.simulation
            .with_records(|records| records.iter().map(|record| record.spoken + record.received.len()).sum::<usize>())
    }

    /// Over how many connections the payload has left, and the last one to which it left whole.
    fn what_left(&self, payload: &[u8], marks: &[Mark]) -> (usize, Option<usize>) {
        let whole = frame(&self.setup.grammar, payload);
        let content_end = whole.len() - self.setup.grammar.end.len();
        let (mut left, mut complete) = (0, None);
        self.simulation.with_records(|records| {
            for (index, record) in records.iter().enumerate() {
                let sent = marks.get(index).map_or(0, |mark| mark.sent);
                let new = &record.sent[sent..];
                if !self.setup.release2 {
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
        (left, complete)
    }

    /// Whether the failure says what happened. Whether it leaves the connection in doubt.
    fn judge(&self, call: &Call, message: usize, error: &Error, left: bool, marks: &[Mark]) -> bool {
        let connections = self.simulation.with_records(|records| records.len());
        let on_one = |ack: &Ack, meaning: Meaning| {
            let found = (0..connections).find(|&index| self.said_after(index, marks, ack.raw()).is_some());
            let index = found.unwrap_or_else(|| panic!("evidence that has not come: {error:?}"));
            self.must_be_meant(call, message, index, marks, ack, meaning);
        };
        let commit = error.commit();
        if let Some(commit) = commit {
            assert_eq!(commit.code(), AckCode::CommitAccept);
            on_one(commit, Meaning::GoesOn);
        }
        match error.delivery() {
            // In release 2 the receiver may say that it has not stored it.
            Delivery::NotSent => assert!(!left || self.setup.release2, "{error:?}"),
            Delivery::Unknown => assert!(left, "{error:?}"),
            Delivery::Committed => assert!(left && (commit.is_some() || self.setup.release2), "{error:?}"),
            Delivery::Refused => match error.nak() {
                Some(nak) => on_one(nak, Meaning::Refused),
                None => assert!(self.setup.release2 && matches!(error.kind(), ErrorKind::NotStored { .. })),
            },
        }
        assert!(commit.is_none() || matches!(error.delivery(), Delivery::Committed | Delivery::Refused));
        assert!(error.response().is_none_or(|response| response.len() <= self.setup.max_ack_size));
        let _ = (format!("{error}"), format!("{error:?}"));
        match error.kind() {
            ErrorKind::Nak(_) | ErrorKind::InvalidMessage(_) | ErrorKind::NotStored { .. } => false,
            // The connection is as it was, where it is the pool that gave up.
            ErrorKind::Timeout { .. } if error.delivery() == Delivery::NotSent => false,
            _ => true,
        }
    }

    /// An acknowledgment that was taken for this message has to be for it: said after the message's
    /// first byte had left, by its tag, and by the rules.
    fn must_be_meant(&self, call: &Call, message: usize, index: usize, marks: &[Mark], ack: &Ack, expected: Meaning) {
        let read = oracle::acknowledgment(ack.raw()).expect("an acknowledgment that is none");
        assert_eq!(read.code, ack.code());
        if expected == Meaning::Refused {
            assert!(!read.code.is_accept());
        }
        let control_ids = call.control_ids();
        let header = oracle::header(&crate::fuzzing::trial::message(0, self.asks(call), 0)).expect("it has a header");
        let names = |control_id: &String| control_id.as_bytes() == read.control_id;
        let (own, whole) = (&control_ids[message], &control_ids[control_ids.len() - 1]);
        let is_batch = control_ids.len() > 1;
        if self.setup.verify {
            let nameless = read.control_id.is_empty() && !read.code.is_accept();
            assert!(names(own) || (is_batch && names(whole)) || nameless, "another's control ID");
        }
        let meaning = oracle::meaning(&header, self.setup.mode, false, read.code, &read.control_id);
        assert_eq!(meaning, expected);
        let said = self.said_after(index, marks, ack.raw()).expect("it came before the message was sent");
        // A refusal of no message in particular is taken for the one under way, whichever it is meant for.
        if !self.setup.verify || self.setup.repeated || read.control_id.is_empty() {
            return;
        }
        // The number of the payload on its connection, in front of the statement that made it.
        let tag = String::from_utf8_lossy(&read.text).into_owned();
        let meant_for = tag.split(' ').next().unwrap_or_default();
        let payloads = |sent: &[u8]| {
            let frames = self.setup.grammar.frames(ANY_SIZE, sent).contents;
            frames.iter().filter(|(content, _)| content.len() > 1).count()
        };
        // In release 2 a payload may have gone several times.
        let numbers = self.simulation.with_records(|records| {
            let sent = &records[index].sent;
            payloads(&sent[..marks.get(index).map_or(0, |mark| mark.sent)])..payloads(sent)
        });
        // A prophecy that is said while the message is under way cannot be told from an answer, and other
        // bytes in between may have taken a tag away.
        let meant_for = meant_for.parse::<usize>();
        assert!(
            meant_for.as_ref().map_or(true, |meant_for| numbers.contains(meant_for)),
            "{tag}, and taken for {numbers:?} ({said})"
        );
    }

    fn asks(&self, call: &Call) -> usize {
        match call {
            Call::Send { asks, .. } | Call::Batch { asks, .. } => *asks,
            _ => 0,
        }
    }

    /// Where a connection began to receive a frame that holds this, if it was said after a byte of
    /// the call's payload had left.
    fn said_after(&self, index: usize, marks: &[Mark], content: &[u8]) -> Option<usize> {
        let mark = marks.get(index).copied().unwrap_or_default();
        self.simulation.with_records(|records| {
            let Record { received, said, .. } = records[index];
            let places = received.windows(content.len()).enumerate().filter(|(_, window)| *window == content);
            let sent_by = |at: usize| said.iter().rfind(|(from, _)| *from <= at).map_or(0, |(_, sent)| *sent);
            let start = self.setup.grammar.start.len();
            places
                .map(|(at, _)| at.saturating_sub(start))
                .find(|&at| at + content.len() > mark.received && sent_by(at) > mark.sent)
        })
    }
}

/// How much of two texts is the same from the beginning.
fn shared(text: &[u8], other: &[u8]) -> usize {
    text.iter().zip(other).take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    use proptest::prelude::*;

    fn measure(work: &mut dyn FnMut()) -> u64 {
        // A panic would leave the counter counting.
        let mut result = Ok(());
        let memory = allocation_counter::measure(|| result = catch_unwind(AssertUnwindSafe(&mut *work)));
        result.unwrap_or_else(|panic| resume_unwind(panic));
        memory.bytes_max
    }

    /// The inputs that the fuzzer has found to be different from all others, where the repository
    /// is at hand.
    #[test]
    fn the_fuzzers_seeds_hold() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/exchange");
        for seed in std::fs::read_dir(seeds).into_iter().flatten() {
            super::play(&std::fs::read(seed.unwrap().path()).unwrap(), measure);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 600, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

        #[test]
        fn no_verdict_of_one_sending_is_given_to_another(bytes in proptest::collection::vec(any::<u8>(), 10..400)) {
            super::play(&bytes, measure);
        }
    }
}
