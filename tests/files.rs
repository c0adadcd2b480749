//! Files of messages as people have them, made by a generator with fixed seeds: what goes in comes
//! back, at its place, and what is no HL7 is not sent in silence.

mod common;

use common::{LONG, Seeded, Tidy};
use mllp_client::testing::Receiver;
use mllp_client::{Batch, Client, ErrorKind, MessageError, messages};

/// One for each kind of file that is found, many times over.
const FILES: u64 = 3_000;

const SEGMENTS: [&str; 6] = [
    "PID|1||4711^^^NORTH||PROBE^TESTA",
    "OBX|1|NM|718-7^Hemoglobin^LN||13.5|g/dL",
    "NTE|1||angle MSH 12, see BTS|",
    "ZX1|\u{fc}ber \u{4e2d}\u{6587}",
    "PV1",
    "OBX|2|ED|||^^^Base64^TVNIfA==",
];

/// Lines that are no segments, wherever they come from.
const STRAY: [&str; 8] = [
    "--------",
    "  PID|1||4711",
    "\tOBX|1",
    "The next one is to be split by the engine:",
    "MSH angle 12",
    "BTS - bus",
    "# checked",
    "mg|5",
];

/// Lines of a report, behind a line feed inside a field.
const REPORT: [&str; 9] = [
    "MSH angle 12",
    "PID|1||4711",
    "BTS|1",
    "FHS - second line",
    "--------",
    "  indented",
    "",
    "\u{c}next page",
    "BHS",
];

/// A file, and what is to be found in it.
#[derive(Default)]
struct File {
    text: Vec<u8>,
    expected: Vec<Expected>,
}

/// A message as it is to be sent, and where it begins in the file.
struct Expected {
    message: Vec<u8>,
    at: usize,
    /// What is wrong with it, and where that stands in the file.
    problem: Option<(MessageKind, usize)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MessageKind {
    /// Text without a header.
    NotHl7,
    /// A line that is no segment begins at this offset of the message.
    Stray(usize),
    /// A framing byte stands at this offset of the message.
    Framing(usize),
}

impl File {
    fn of_seed(seed: u64) -> File {
        let mut choice = Seeded(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut file = File::default();
        let ends: &[&str] = [&["\r"][..], &["\n"], &["\r\n"], &["\r", "\r\n"]][choice.below(4)];
        let is_batch = choice.below(4) == 0;
        if choice.below(4) == 0 {
            file.add("\u{feff}");
        }
        if choice.below(6) == 0 {
            file.add(["\n\n", " \r\n", "\u{c}\n"][choice.below(3)]);
        }
        if choice.below(8) == 0 {
            file.remark("Results of the night shift", ends[0]);
        }
        let count = 1 + choice.below(5);
        if is_batch {
            file.add(&format!("BHS|^~\\&|LAB|N|EHR|N|20260101||||B{seed}{}", ends[0]));
        }
        for number in 0..count {
            match choice.below(6) {
                0 => file.framed(&mut choice, ends, number),
                _ => file.message(&mut choice, ends, number, false),
            }
            if choice.below(5) == 0 {
                file.add(["\n", "\r\n\r\n", "\u{c}\r\n", "\u{feff}"][choice.below(4)]);
            }
        }
        if is_batch {
            file.add(&format!("BTS|{count}{}", ends[0]));
        }
        file.add(["", "", "\u{1a}", "\0\0", "\r\n\u{1a}"][choice.below(5)]);
        file
    }

    fn add(&mut self, text: &str) {
        self.text.extend_from_slice(text.as_bytes());
    }

    /// Text that belongs to no message.
    fn remark(&mut self, text: &str, end: &str) {
        let at = self.text.len();
        let message = format!("{text}\r").into_bytes();
        self.expected.push(Expected { message, at, problem: Some((MessageKind::NotHl7, at)) });
        self.add(&format!("{text}{end}"));
    }

    fn framed(&mut self, choice: &mut Seeded, ends: &[&str], number: usize) {
        self.add("\x0B");
        self.message(choice, ends, number, true);
        self.add(["\x1C\r", "\x1C\r\n", "\x1C\n"][choice.below(3)]);
    }

    fn message(&mut self, choice: &mut Seeded, ends: &[&str], number: usize, framed: bool) {
        let at = self.text.len();
        let separator = ["|", "|", "|", "#"][choice.below(4)];
        let header = format!("MSH|^~\\&|LAB|N|EHR|N|20260101||ORU^R01|M{number}|P|2.5").replace('|', separator);
        let mut expected = Expected { message: Vec::new(), at, problem: None };
        self.segment(&mut expected, &header, ends[choice.below(ends.len())]);
        for _ in 0..choice.below(6) {
            let line = match choice.below(10) {
                0 => {
                    let (within, here) = (expected.message.len(), self.text.len());
                    expected.problem.get_or_insert((MessageKind::Stray(within), here));
                    STRAY[choice.below(STRAY.len())].to_owned()
                }
                // Where line feeds end segments, none is content.
                1 | 2 if ends[0] != "\n" => {
                    let lines: Vec<_> = (0..3).map(|_| REPORT[choice.below(REPORT.len())]).collect();
                    format!("OBX|1|TX|||{}", lines.join("\n")).replace('|', separator)
                }
                3 if !framed && choice.below(3) == 0 => {
                    let segment = "NTE|1||pasted \x0Btext".replace('|', separator);
                    let offset = segment.len() - 5;
                    // A framing byte is found before a stray line.
                    let problem = (MessageKind::Framing(expected.message.len() + offset), self.text.len() + offset);
                    match expected.problem {
                        Some((MessageKind::Framing(_), _)) => {}
                        _ => expected.problem = Some(problem),
                    }
                    segment
                }
                _ => SEGMENTS[choice.below(SEGMENTS.len())].replace('|', separator),
            };
            self.segment(&mut expected, &line, ends[choice.below(ends.len())]);
            if !framed && choice.below(8) == 0 {
                self.add(ends[0]);
            }
        }
        self.expected.push(expected);
    }

    fn segment(&mut self, expected: &mut Expected, segment: &str, end: &str) {
        self.add(segment);
        self.add(end);
        expected.message.extend_from_slice(segment.as_bytes());
        expected.message.push(b'\r');
    }

    /// The number of the line at an offset.
    fn line(&self, at: usize) -> usize {
        let before = String::from_utf8_lossy(&self.text[..at]).replace("\r\n", "\n");
        let split = self.text[..at].ends_with(b"\r") && self.text[at..].starts_with(b"\n");
        before.matches(['\r', '\n']).count() + 1 - usize::from(split)
    }
}

/// What a message's error says, with where it stands in the message.
fn kind(error: MessageError) -> Option<MessageKind> {
    match error {
        MessageError::NotHl7 => Some(MessageKind::NotHl7),
        MessageError::NotASegment { offset, .. } => Some(MessageKind::Stray(offset)),
        MessageError::FramingByte { offset, .. } => Some(MessageKind::Framing(offset)),
        _ => None,
    }
}

#[test]
fn what_goes_into_a_file_comes_out_of_it() {
    for seed in 0..FILES {
        let file = File::of_seed(seed);
        let expected: Vec<_> = file
            .expected
            .iter()
            .map(|it| {
                let problem = it.problem.map(|(kind, at)| (kind, file.line(at)));
                (String::from_utf8_lossy(&it.message).into_owned(), file.line(it.at), problem)
            })
            .collect();
        let found: Vec<_> = messages::locate(&file.text)
            .map(|it| {
                let problem = it.problem.map(|problem| (kind(problem.error).expect("of a known kind"), problem.line));
                (String::from_utf8_lossy(&it.message).into_owned(), it.line, problem)
            })
            .collect();
        assert_eq!(found, expected, "seed {seed}: {:?}", String::from_utf8_lossy(&file.text));
        let split: Vec<_> = messages::split(&file.text).collect();
        assert!(split.iter().map(|message| &message[..]).eq(file.expected.iter().map(|it| &it.message[..])), "{seed}");
    }
}

#[test]
fn nothing_of_a_file_is_lost() {
    for seed in 0..FILES {
        let file = File::of_seed(seed);
        let mut rest = &file.text[..];
        for message in messages::split(&file.text) {
            for segment in message.split(|&byte| byte == b'\r').filter(|segment| !segment.is_empty()) {
                while !rest.starts_with(segment) {
                    rest = after_what_is_dropped(rest).unwrap_or_else(|| panic!("seed {seed}: something is lost"));
                }
                rest = &rest[segment.len()..];
            }
        }
        while !rest.is_empty() {
            rest = after_what_is_dropped(rest).unwrap_or_else(|| panic!("seed {seed}: something is lost at the end"));
        }
    }
}

/// A text without one of the things that may be dropped at its beginning.
fn after_what_is_dropped(text: &[u8]) -> Option<&[u8]> {
    if [&b"BHS|"[..], b"BTS|"].iter().any(|wrapper| text.starts_with(wrapper)) {
        let end = text.iter().position(|byte| b"\r\n".contains(byte)).unwrap_or(text.len());
        return Some(&text[end..]);
    }
    text.strip_prefix("\u{feff}".as_bytes())
        .or_else(|| text.split_first().filter(|(first, _)| b"\r\n\x0C\x0B\x1C\x1A\0 ".contains(first)).map(|it| it.1))
}

#[test]
fn what_is_no_hl7_is_not_sent_in_silence() {
    let _tidy = Tidy::up();
    let receiver = Receiver::accepting().unwrap();
    let client = Client::builder(&receiver.endpoint()).timeout(LONG).allow_repeated_control_ids(true).build().unwrap();
    let mut sent = Vec::new();
    for seed in 0..60 {
        let file = File::of_seed(seed);
        let results: Vec<_> = client.send_all(messages::split(&file.text)).keep_going().collect();
        assert_eq!(results.len(), file.expected.len());
        for (result, expected) in results.iter().zip(&file.expected) {
            let problem = result.as_ref().err().map(|error| match error.kind() {
                ErrorKind::InvalidMessage(problem) => kind(*problem).expect("of a known kind"),
                _ => panic!("seed {seed}: {error:#}"),
            });
            assert_eq!(problem, expected.problem.map(|(kind, _)| kind), "seed {seed}");
            if problem.is_none() {
                sent.push(expected.message.clone());
            }
        }
    }
    assert!(receiver.received() == sent);

    // Whoever knows better sends it all the same.
    let remark = b"MSH|^~\\&|LAB|N|EHR|N|20260101||ORU^R01|1|P|2.5\r# checked\r";
    client.send(remark).unwrap();
    assert_eq!(receiver.received().last().unwrap(), remark);
}

#[test]
fn batches_are_read_in_every_shape_that_files_have() {
    let one = "MSH|^~\\&|LAB|N|EHR|N|20260101||ORU^R01|1|P|2.5\rPID|1\r";
    let two = "MSH|^~\\&|LAB|N|EHR|N|20260101||ORU^R01|2|P|2.5\rOBX|1|TX|||a\nBTS - b\r";
    let whole = format!("BHS|^~\\&|LAB|N|EHR|N|20260101||||B1\r{one}{two}BTS|2\r");
    let lines = |text: &str, end: &str| text.replace('\r', end);
    let short = format!("BHS|^~\\&|LAB|N|EHR|N|20260101||||B1\r{one}BTS|1\r");
    for (name, text, messages) in [
        ("as it is sent", whole.clone(), vec![one, two]),
        ("CRLF", lines(&whole, "\r\n"), vec![one, two]),
        ("LF", lines(&short, "\n"), vec![one]),
        ("a byte-order mark", format!("\u{feff}{whole}"), vec![one, two]),
        ("a DOS end of file", format!("{whole}\x1A"), vec![one, two]),
        ("a blank line before", format!("\r\n{whole}"), vec![one, two]),
        ("blank lines within", whole.replace("PID|1\r", "PID|1\r\r\n\r"), vec![one, two]),
        ("in a frame", format!("\x0B{whole}\x1C\r"), vec![one, two]),
        (
            "each message in a frame",
            format!("BHS|^~\\&|||||||||B1\r\x0B{one}\x1C\r\x0B{two}\x1C\rBTS|2\r"),
            vec![one, two],
        ),
        ("no trailer", whole.replace("BTS|2\r", ""), vec![one, two]),
    ] {
        let batch = Batch::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(batch.messages().eq(messages.iter().map(|message| message.as_bytes())), "{name}");
    }
}
