//! Which control IDs a connection has carried, so that an acknowledgment that comes late or twice
//! is recognised for what it is.

use std::fmt;

use crate::exchange::After;
use crate::hl7::ack::AckCode;

/// How many control IDs are remembered: the size of the ring.
pub(crate) const REMEMBERED: usize = 1024;

/// The number of chains by which the ring is searched. A power of two.
const CHAINS: usize = 1024;

/// The control IDs of messages and batches whose exchanges have ended well enough to leave the
/// connection open.
///
/// Hashes stand for control IDs. Where two have the same hash, a message goes over another
/// connection without need, or an acknowledgment that belongs to nobody is passed over. Neither
/// gives an acknowledgment to the wrong message, since the control ID that is awaited is always
/// compared byte for byte.
pub(crate) struct History {
    /// A ring: entry `n` stands at `n % REMEMBERED`, so that the newest overwrites the one that is
    /// `REMEMBERED` older.
    entries: Box<[Carried]>,
    /// For each chain the number of its newest entry, plus one; 0 if there is none. What an entry
    /// older than the ring is long has been overwritten, and ends its chain.
    chains: Box<[u32]>,
    /// How many entries there have been.
    count: u32,
    /// Whether any of them was read, and whether any was not.
    has_read: bool,
    has_unread: bool,
    /// How many of those that are remembered have [`RememberedAs::Awaiting`].
    awaiting: usize,
    /// Whether one had to be overwritten whose application acknowledgment may still come.
    overflowed: bool,
    /// Whether those already answered are not remembered
    /// ([`allow_repeated_control_ids`](crate::ClientBuilder::allow_repeated_control_ids)).
    forgets_answered: bool,
}

#[derive(Clone, Copy)]
struct Carried {
    hash: u64,
    /// The next older entry of the same chain, as in `chains`.
    older: u32,
    state: RememberedAs,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RememberedAs {
    /// A commit accept has ended the exchange, and the application acknowledgment may still come.
    Awaiting,
    /// All awaited acknowledgments have come. A receiver may send one of them a second time.
    Answered,
    /// It was carried by a payload that was not read, and whose reply has come; that may come
    /// again.
    Unread,
    /// Not remembered any more.
    Forgotten,
}

impl History {
    pub(crate) fn new(forgets_answered: bool) -> Self {
        let none = Carried { hash: 0, older: 0, state: RememberedAs::Forgotten };
        History {
            entries: vec![none; REMEMBERED].into(),
            chains: vec![0; CHAINS].into(),
            count: 0,
            has_read: false,
            has_unread: false,
            awaiting: 0,
            overflowed: false,
            forgets_answered,
        }
    }

    /// Remembers a control ID whose exchange has ended; `after` says what may still come for it.
    pub(crate) fn add(&mut self, control_id: &[u8], after: After) {
        let state = match after {
            After::ApplicationAck => RememberedAs::Awaiting,
            After::Unread => RememberedAs::Unread,
            After::Answered | After::Doubt => RememberedAs::Answered,
        };
        if self.forgets_answered && state != RememberedAs::Awaiting {
            return;
        }
        if self.is_full() {
            // Only a batch gets here, since a full history ends the connection after the exchange.
            self.overflowed = true;
            return;
        }
        let hash = hash(control_id);
        let chain = &mut self.chains[chain_of(hash)];
        let entry = &mut self.entries[self.count as usize % REMEMBERED];
        *entry = Carried { hash, older: *chain, state };
        self.has_read |= state != RememberedAs::Unread;
        self.has_unread |= state == RememberedAs::Unread;
        self.count += 1;
        *chain = self.count;
        self.awaiting += usize::from(state == RememberedAs::Awaiting);
    }

    /// Whether the connection has carried this control ID; `except_unread` leaves out payloads that
    /// were not read.
    pub(crate) fn remembers(&self, control_id: &[u8], except_unread: bool) -> bool {
        self.find(control_id).is_some_and(|index| !except_unread || self.entries[index].state != RememberedAs::Unread)
    }

    /// Whether an acknowledgment is for a control ID that is remembered. An application
    /// acknowledgment is then no longer awaited.
    pub(crate) fn recognise(&mut self, control_id: &[u8], code: AckCode) -> bool {
        let Some(index) = self.find(control_id) else { return false };
        let entry = &mut self.entries[index];
        if entry.state == RememberedAs::Awaiting && !code.is_commit() {
            entry.state = if self.forgets_answered { RememberedAs::Forgotten } else { RememberedAs::Answered };
            self.awaiting -= 1;
        }
        true
    }

    /// Whether nothing is remembered.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether anything was carried that was read, so that acknowledgments of it may come again.
    pub(crate) fn has_read(&self) -> bool {
        self.has_read
    }

    /// Whether an application acknowledgment may still come.
    pub(crate) fn is_awaiting(&self) -> bool {
        self.awaiting > 0 || self.overflowed
    }

    /// Whether an acknowledgment that names no message may be for one of these: what a payload that
    /// is not read has asked for is not known.
    pub(crate) fn may_be_nameless(&self) -> bool {
        self.is_awaiting() || self.has_unread
    }

    /// Whether the next control ID would take the room of one whose application acknowledgment may
    /// still come: the connection is not to carry another.
    pub(crate) fn is_full(&self) -> bool {
        let next = &self.entries[self.count as usize % REMEMBERED];
        self.overflowed || next.state == RememberedAs::Awaiting || self.count == u32::MAX
    }

    fn find(&self, control_id: &[u8]) -> Option<usize> {
        if self.count == 0 {
            return None;
        }
        let hash = hash(control_id);
        let mut number = self.chains[chain_of(hash)];
        while number > 0 && (self.count - number) < REMEMBERED as u32 {
            let index = (number - 1) as usize % REMEMBERED;
            let entry = &self.entries[index];
            if entry.hash == hash && entry.state != RememberedAs::Forgotten {
                return Some(index);
            }
            number = entry.older;
        }
        None
    }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History").field("count", &self.count).field("awaiting", &self.awaiting).finish_non_exhaustive()
    }
}

/// FNV-1a.
fn hash(control_id: &[u8]) -> u64 {
    control_id
        .iter()
        .fold(0xCBF2_9CE4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3))
}

fn chain_of(hash: u64) -> usize {
    (hash ^ (hash >> 32)) as usize % CHAINS
}

#[cfg(test)]
mod tests {
    use AckCode::{ApplicationAccept, ApplicationError, CommitAccept};

    use super::*;

    fn after(awaiting: bool) -> After {
        if awaiting { After::ApplicationAck } else { After::Answered }
    }

    fn id(number: usize) -> Vec<u8> {
        format!("M{number}").into_bytes()
    }

    #[test]
    fn the_last_answered_are_remembered_and_older_ones_are_not() {
        let mut history = History::new(false);
        assert!(history.is_empty() && !history.remembers(&id(0), false));
        for number in 0..10 * REMEMBERED {
            assert!(!history.remembers(&id(number), true), "{number} before it was carried");
            history.add(&id(number), After::Answered);
            assert!(history.remembers(&id(number), true), "{number}");
            assert!(history.remembers(&id(number.saturating_sub(REMEMBERED - 1)), true), "the oldest beside {number}");
            assert!(
                number < REMEMBERED || !history.remembers(&id(number - REMEMBERED), false),
                "too old beside {number}"
            );
        }
        assert!(!history.is_empty() && !history.is_full() && !history.is_awaiting());
    }

    #[test]
    fn what_is_awaited_is_never_forgotten() {
        let mut history = History::new(false);
        history.add(&id(0), After::ApplicationAck);
        for number in 1..REMEMBERED {
            assert!(!history.is_full(), "{number}");
            history.add(&id(number), After::Answered);
        }
        assert!(history.is_full() && history.is_awaiting() && history.remembers(&id(0), false));
        // A batch goes on: what came before stays, and the connection has to end.
        history.add(&id(REMEMBERED), After::ApplicationAck);
        assert!(history.remembers(&id(0), false) && history.is_full());
        assert!(history.recognise(&id(0), ApplicationAccept));
        assert!(history.is_full() && history.is_awaiting(), "one was not remembered");
    }

    #[test]
    fn an_acknowledgment_is_recognised_however_often_it_comes() {
        for (name, awaiting, forgets, codes, expected) in [
            (
                "answered",
                false,
                false,
                &[ApplicationAccept, ApplicationError, CommitAccept][..],
                "yes yes yes, remembered",
            ),
            ("awaited", true, false, &[CommitAccept][..], "yes, remembered, awaiting"),
            ("awaited, and came", true, false, &[ApplicationError, ApplicationAccept][..], "yes yes, remembered"),
            ("answered, and not remembered", false, true, &[ApplicationAccept][..], "no"),
            ("awaited by one that forgets", true, true, &[CommitAccept][..], "yes, remembered, awaiting"),
            ("came to one that forgets", true, true, &[ApplicationAccept, ApplicationAccept][..], "yes no"),
        ] {
            let mut history = History::new(forgets);
            history.add(b"1", after(awaiting));
            let found: Vec<_> =
                codes.iter().map(|&code| if history.recognise(b"1", code) { "yes" } else { "no" }).collect();
            let mut found = found.join(" ");
            found += if history.remembers(b"1", true) { ", remembered" } else { "" };
            found += if history.is_awaiting() { ", awaiting" } else { "" };
            assert_eq!(found, expected, "{name}");
            assert!(
                !history.recognise(b"2", ApplicationAccept) && !history.recognise(b"", ApplicationAccept),
                "{name}"
            );
        }
    }

    #[test]
    fn what_was_not_read_is_remembered_for_what_is() {
        let mut history = History::new(false);
        history.add(b"1", After::Unread);
        assert!(history.remembers(b"1", false) && !history.remembers(b"1", true));
        assert!(history.recognise(b"1", ApplicationAccept) && !history.is_awaiting());
        history.add(b"1", After::Answered);
        assert!(history.remembers(b"1", true), "the newest counts");
    }

    proptest::proptest! {
        #[test]
        fn a_list_remembers_the_same(steps in proptest::collection::vec((0_usize..40, 0_u8..4), 0..200), forgets: bool) {
            let mut history = History::new(forgets);
            let mut naive: Vec<(Vec<u8>, bool)> = Vec::new();
            for (number, step) in steps {
                let id = id(number);
                let known = naive.iter().position(|(known, _)| *known == id);
                proptest::prop_assert_eq!(history.remembers(&id, true), known.is_some());
                match (step, known) {
                    (0 | 1, None) => {
                        history.add(&id, after(step == 1));
                        if step == 1 || !forgets {
                            naive.push((id, step == 1));
                        }
                    }
                    (2, _) => {
                        proptest::prop_assert_eq!(history.recognise(&id, ApplicationAccept), known.is_some());
                        if let Some(index) = known {
                            let was_awaiting = std::mem::take(&mut naive[index].1);
                            if was_awaiting && forgets {
                                naive.remove(index);
                            }
                        }
                    }
                    (3, _) => proptest::prop_assert_eq!(history.recognise(&id, CommitAccept), known.is_some()),
                    _ => {}
                }
                proptest::prop_assert_eq!(history.is_awaiting(), naive.iter().any(|(_, awaiting)| *awaiting));
            }
        }
    }
}
