//! Messages with lanes, and a receiver's record of them, which finds out what has overtaken what.

use std::collections::HashMap;

use super::message;

/// The lane of a message, as `LaneKey::PatientId` finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InLane {
    Destination,
    Patient(usize),
    Barrier,
}

/// Numbered messages for so many patients, of whom one has a tenth of all.
#[derive(Clone, Copy)]
pub struct Numbered {
    pub patients: usize,
}

impl Numbered {
    pub fn lane(self, number: usize) -> InLane {
        match number {
            _ if number % 499 == 250 => InLane::Barrier,
            _ if number % 50 == 7 => InLane::Destination,
            _ if number % 10 == 0 => InLane::Patient(0),
            _ => InLane::Patient(number.wrapping_mul(2_654_435_761) % self.patients),
        }
    }

    pub fn message(self, number: usize) -> Vec<u8> {
        let segments = match self.lane(number) {
            InLane::Destination => String::new(),
            InLane::Patient(patient) => format!("PID|2||P{patient}^^^INVENTED\r"),
            InLane::Barrier => format!("PID|2||P{}^^^INVENTED\rMRG|P0^^^INVENTED\r", number % self.patients),
        };
        // Without the patient that all messages of the tests have.
        let header = message(&format!("N{number}"));
        let header = header.split_inclusive('\r').next().unwrap();
        format!("{header}{segments}OBX|1|NM|{number}\r").into_bytes()
    }
}

/// What has come to a receiver.
pub struct Seen {
    messages: Numbered,
    seen: Vec<bool>,
    accepted: Vec<bool>,
    /// All before this one are accepted.
    all_before: usize,
    /// The last of each lane that was seen.
    last: HashMap<InLane, usize>,
    /// The last barrier that was seen.
    barrier: Option<usize>,
    pub repeats: usize,
}

impl Seen {
    pub fn nothing_of(messages: Numbered, count: usize) -> Seen {
        let (last, barrier) = Default::default();
        Seen {
            messages,
            seen: vec![false; count],
            accepted: vec![false; count],
            all_before: 0,
            last,
            barrier,
            repeats: 0,
        }
    }

    pub fn all_accepted(&self) -> bool {
        self.all_before == self.accepted.len()
    }

    /// How many have come.
    pub fn count(&self) -> usize {
        self.seen.iter().filter(|seen| **seen).count()
    }

    /// A message comes. Nothing of its lane is open before it, and no barrier is overtaken.
    pub fn sees(&mut self, bytes: &[u8]) -> (usize, InLane) {
        let text = String::from_utf8_lossy(bytes);
        let number: usize = text.split('|').nth(9).and_then(|id| id[1..].parse().ok()).expect("a number");
        assert!(bytes == self.messages.message(number), "{number} comes with its bytes");
        let lane = self.messages.lane(number);
        if std::mem::replace(&mut self.seen[number], true) {
            self.repeats += 1;
            return (number, lane);
        }
        if let Some(last) = self.last.insert(lane, number) {
            assert!(last < number, "{number} comes after {last} in {lane:?}");
            assert!(self.accepted[last], "{number} comes while {last} is open in {lane:?}");
        }
        if let Some(barrier) = self.barrier {
            assert!(number > barrier, "{number} comes after the barrier {barrier}");
            assert!(self.accepted[barrier], "{number} comes while the barrier {barrier} is open");
        }
        if lane == InLane::Barrier {
            assert_eq!(self.all_before, number, "a barrier comes while one before it is open");
            self.barrier = Some(number);
        }
        let skipped = (self.all_before..number).find(|skipped| self.messages.lane(*skipped) == InLane::Barrier);
        assert!(skipped.is_none_or(|skipped| self.accepted[skipped]), "{number} comes before the barrier {skipped:?}");
        (number, lane)
    }

    pub fn accepts(&mut self, number: usize) {
        self.accepted[number] = true;
        while self.accepted.get(self.all_before) == Some(&true) {
            self.all_before += 1;
        }
    }
}
