//! Which acknowledgment ends an exchange, and how: acknowledgments in, verdict out.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::ack::{Ack, AckCode, AckMode, AckParseError, Layout};
use crate::charset::Charset;
use crate::error::{ErrorKind, Phase};
use crate::header::{Asked, Header};
use crate::messages;

/// What holds for all exchanges of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) mode: AckMode,
    /// Whether an acknowledgment must carry the control ID.
    pub(crate) verify: bool,
    /// In which the views of acknowledgments are that do not name another.
    pub(crate) charset: Charset,
}

/// The state of one exchange.
#[derive(Debug)]
pub(crate) struct Outcome<'m> {
    control_id: &'m [u8],
    rules: Rules,
    /// What is awaited.
    asked: Asked,
    /// Whether the message asks for an application acknowledgment, awaited or not.
    application_may_follow: bool,
    commit: Option<Ack>,
}

/// What an acknowledgment means that does not end an exchange badly.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// A commit accept, remembered; another acknowledgment is due.
    GoesOn,
    /// This one ends the exchange well.
    Ends(Ack),
}

impl<'m> Outcome<'m> {
    pub(crate) fn of(header: &Header<'m>, rules: Rules) -> Self {
        let asked = match rules.mode {
            AckMode::FromHeader => header.asked,
            AckMode::Application => Asked { application: true, ..header.asked },
            AckMode::Commit => Asked { commit: true, application: false },
        };
        let application_may_follow = header.asked.application;
        Outcome { control_id: header.control_id, rules, asked, application_may_follow, commit: None }
    }

    /// Takes the next answer.
    pub(crate) fn take(&mut self, answer: &[u8]) -> Result<Verdict, ErrorKind> {
        let layout = Layout::read(answer).map_err(ErrorKind::MalformedAck)?;
        if self.rules.verify {
            match layout.control_id(answer) {
                b"" => return Err(ErrorKind::MalformedAck(AckParseError::NoControlId)),
                other if other != self.control_id => {
                    return Err(ErrorKind::UnmatchedAck(layout.to_ack(answer).in_charset(self.rules.charset)));
                }
                _ => {}
            }
        }
        self.decide(layout.to_ack(answer).in_charset(self.rules.charset))
    }

    /// Decides on an acknowledgment that is meant for this exchange.
    fn decide(&mut self, ack: Ack) -> Result<Verdict, ErrorKind> {
        match ack.code() {
            AckCode::CommitAccept if self.asked.application => {
                self.commit = Some(ack);
                Ok(Verdict::GoesOn)
            }
            code if code.is_accept() => Ok(Verdict::Ends(ack)),
            _ => Err(ErrorKind::Nak(ack)),
        }
    }

    pub(crate) fn control_id(&self) -> &'m [u8] {
        self.control_id
    }

    /// What is being waited for.
    pub(crate) fn phase(&self) -> Phase {
        if self.asked.commit && self.commit.is_none() { Phase::CommitAck } else { Phase::ApplicationAck }
    }

    /// The commit accept that has come so far.
    pub(crate) fn commit(&self) -> Option<&Ack> {
        self.commit.as_ref()
    }

    /// Whether a connection can be used again after this acknowledgment has ended the exchange: not if an application
    /// acknowledgment may follow which nothing would tell from the next message's.
    pub(crate) fn leaves_no_doubt(&self, ack: &Ack) -> bool {
        self.rules.verify || ack.code() != AckCode::CommitAccept || !self.application_may_follow
    }
}

/// The state of an exchange of a batch, whose messages are acknowledged each by itself, in batches of acknowledgments, or all by
/// one.
#[derive(Debug)]
pub(crate) struct Outcomes<'m> {
    /// The control IDs of the batch itself.
    whole: HashSet<&'m [u8]>,
    rules: Rules,
    each: Vec<Outcome<'m>>,
    verdicts: Vec<Option<Result<Ack, ErrorKind>>>,
    /// Where the messages with a control ID stand that are not answered yet.
    places: HashMap<&'m [u8], VecDeque<usize>>,
    /// So many are answered from the first on, without a gap.
    answered: usize,
    /// How many are not answered yet, of how many of these the commit acknowledgment is due, and of how many nothing has come.
    unanswered: usize,
    uncommitted: usize,
    unheard: usize,
}

impl<'m> Outcomes<'m> {
    pub(crate) fn of(whole: impl Iterator<Item = &'m [u8]>, headers: &[Header<'m>], rules: Rules) -> Self {
        let each: Vec<_> = headers.iter().map(|header| Outcome::of(header, rules)).collect();
        let mut places = HashMap::<_, VecDeque<_>>::new();
        for (index, outcome) in each.iter().enumerate() {
            places.entry(outcome.control_id).or_default().push_back(index);
        }
        Outcomes {
            whole: whole.collect(),
            rules,
            verdicts: each.iter().map(|_| None).collect(),
            answered: 0,
            unanswered: each.len(),
            unheard: each.len(),
            uncommitted: each.iter().filter(|outcome| outcome.phase() == Phase::CommitAck).count(),
            each,
            places,
        }
    }

    /// Takes the next answer: one acknowledgment or several. Whether a message was committed by it that had not been before.
    pub(crate) fn take(&mut self, answer: &[u8]) -> Result<bool, ErrorKind> {
        if let Err(block @ AckParseError::CommitBlock) = Layout::read(answer) {
            return Err(ErrorKind::MalformedAck(block));
        }
        let mut committed = false;
        for answer in messages::split(answer) {
            let layout = Layout::read(&answer).map_err(ErrorKind::MalformedAck)?;
            let control_id = layout.control_id(&answer);
            let ack = layout.to_ack(&answer).in_charset(self.rules.charset);
            if self.rules.verify && control_id.is_empty() {
                return Err(ErrorKind::MalformedAck(AckParseError::NoControlId));
            }
            // A control ID that names a message is not that of the whole, even where the batch has the same.
            match self.places.get(control_id) {
                Some(places) if !places.is_empty() => committed |= self.decide(places[0], ack),
                None if self.whole.contains(control_id) => {
                    let unanswered = (0..self.each.len()).filter(|&index| self.verdicts[index].is_none());
                    for index in unanswered.collect::<Vec<_>>() {
                        committed |= self.decide(index, ack.clone());
                    }
                }
                _ if self.rules.verify => return Err(ErrorKind::UnmatchedAck(ack)),
                _ => {
                    while self.verdicts.get(self.answered).is_some_and(Option::is_some) {
                        self.answered += 1;
                    }
                    if self.unanswered > 0 {
                        committed |= self.decide(self.answered, ack);
                    }
                }
            }
        }
        Ok(committed)
    }

    /// Whether the message is committed by this acknowledgment, and was not before.
    fn decide(&mut self, index: usize, ack: Ack) -> bool {
        let outcome = &mut self.each[index];
        let (was_awaited, was_committed) = (outcome.phase() == Phase::CommitAck, outcome.commit.is_some());
        let verdict = match outcome.decide(ack) {
            Ok(Verdict::GoesOn) => None,
            Ok(Verdict::Ends(ack)) => Some(Ok(ack)),
            Err(refusal) => Some(Err(refusal)),
        };
        let ends = verdict.is_some();
        if !was_committed {
            self.unheard -= 1;
        }
        if was_awaited && (ends || outcome.phase() != Phase::CommitAck) {
            self.uncommitted -= 1;
        }
        if ends {
            self.unanswered -= 1;
            self.verdicts[index] = verdict;
            if let Some(places) = self.places.get_mut(outcome.control_id) {
                places.retain(|&place| place != index);
            }
        }
        !was_committed && outcome.commit.is_some()
    }

    /// Whether nothing more is awaited.
    pub(crate) fn are_complete(&self) -> bool {
        self.unanswered == 0
    }

    /// Whether every message that is not answered is committed, so that the applications alone are waited for.
    pub(crate) fn are_committed(&self) -> bool {
        self.unheard == 0
    }

    /// Whether the receiver has refused all of it.
    pub(crate) fn are_refused(&self) -> bool {
        self.verdicts.iter().all(|verdict| matches!(verdict, Some(Err(ErrorKind::Nak(_)))))
    }

    pub(crate) fn control_ids(&self) -> impl Iterator<Item = &'m [u8]> + '_ {
        self.each.iter().map(|outcome| outcome.control_id).chain(self.whole.iter().copied())
    }

    /// What is being waited for.
    pub(crate) fn phase(&self) -> Phase {
        if self.uncommitted > 0 { Phase::CommitAck } else { Phase::ApplicationAck }
    }

    /// Each message's outcome with its verdict, in the batch's order; no verdict for one that was not answered.
    pub(crate) fn into_each(self) -> impl Iterator<Item = (Outcome<'m>, Option<Result<Ack, ErrorKind>>)> {
        self.each.into_iter().zip(self.verdicts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::oracle::{self, Meaning};
    use AckMode::{Application, Commit, FromHeader};

    const ORIGINAL: Asked = Asked { commit: false, application: true };
    const COMMIT: Asked = Asked { commit: true, application: false };
    const APPLICATION: Asked = Asked { commit: false, application: true };
    const BOTH: Asked = Asked { commit: true, application: true };
    const NEITHER: Asked = Asked { commit: false, application: false };

    fn rules(mode: AckMode, verify: bool) -> Rules {
        Rules { mode, verify, charset: Charset::UTF_8 }
    }

    /// Plays acknowledgments, written `code` or `code:control ID`, and tells the verdict.
    fn play(asked: Asked, mode: AckMode, verify: bool, answers: &str) -> String {
        let header = Header { control_id: b"1", asked };
        let mut outcome = Outcome::of(&header, rules(mode, verify));
        let mut verdict = String::from("waits");
        for answer in answers.split_whitespace() {
            let (code, id) = answer.split_once(':').unwrap_or((answer, "1"));
            verdict = match outcome.take(format!("MSH|^~\\&|\rMSA|{code}|{id}\r").as_bytes()) {
                Ok(Verdict::GoesOn) => continue,
                Ok(Verdict::Ends(ack)) => format!("done {}", ack.code()),
                Err(ErrorKind::Nak(ack)) => format!("refused {}", ack.code()),
                Err(ErrorKind::UnmatchedAck(ack)) => format!("unmatched {}", ack.control_id()),
                Err(ErrorKind::MalformedAck(error)) => format!("malformed {error:?}"),
                Err(kind) => panic!("{kind:?}"),
            };
            break;
        }
        if outcome.commit.is_some() {
            verdict += ", committed";
        }
        verdict
    }

    #[test]
    fn transitions() {
        for (asked, mode, answers, expected) in [
            (ORIGINAL, FromHeader, "AA", "done AA"),
            (ORIGINAL, FromHeader, "AE", "refused AE"),
            (ORIGINAL, FromHeader, "AR", "refused AR"),
            (ORIGINAL, FromHeader, "CE", "refused CE"),
            (ORIGINAL, FromHeader, "CR", "refused CR"),
            (ORIGINAL, FromHeader, "CA", "waits, committed"),
            (ORIGINAL, FromHeader, "CA AA", "done AA, committed"),
            (ORIGINAL, FromHeader, "CA AE", "refused AE, committed"),
            (ORIGINAL, FromHeader, "CA CA AA", "done AA, committed"),
            (ORIGINAL, FromHeader, "AA:2", "unmatched 2"),
            (ORIGINAL, FromHeader, "AE:2", "unmatched 2"),
            (ORIGINAL, FromHeader, "AA:11", "unmatched 11"),
            (ORIGINAL, FromHeader, "CA AA:2", "unmatched 2, committed"),
            (ORIGINAL, FromHeader, "CA:2", "unmatched 2"),
            (ORIGINAL, FromHeader, "AA:", "malformed NoControlId"),
            (ORIGINAL, FromHeader, "CA XX", "malformed UnknownCode, committed"),
            (COMMIT, FromHeader, "CA", "done CA"),
            (COMMIT, FromHeader, "CE", "refused CE"),
            (COMMIT, FromHeader, "CR", "refused CR"),
            (COMMIT, FromHeader, "AA", "done AA"),
            (COMMIT, FromHeader, "AE", "refused AE"),
            (APPLICATION, FromHeader, "AA", "done AA"),
            (APPLICATION, FromHeader, "CA AR", "refused AR, committed"),
            (BOTH, FromHeader, "CA", "waits, committed"),
            (BOTH, FromHeader, "CA AA", "done AA, committed"),
            (BOTH, FromHeader, "AA", "done AA"),
            (BOTH, FromHeader, "CE", "refused CE"),
            (BOTH, FromHeader, "CA CE", "refused CE, committed"),
            (ORIGINAL, Commit, "AA", "done AA"),
            (ORIGINAL, Commit, "AE", "refused AE"),
            (ORIGINAL, Commit, "CA", "done CA"),
            (ORIGINAL, Commit, "CE", "refused CE"),
            (BOTH, Commit, "CA", "done CA"),
            (BOTH, Commit, "CR", "refused CR"),
            (BOTH, Commit, "CA:2", "unmatched 2"),
            (NEITHER, Commit, "CA", "done CA"),
            (COMMIT, Application, "CA", "waits, committed"),
            (COMMIT, Application, "CA AA", "done AA, committed"),
            (COMMIT, Application, "CA AR", "refused AR, committed"),
            (COMMIT, Application, "CE", "refused CE"),
            (ORIGINAL, Application, "AA", "done AA"),
            (NEITHER, Application, "AE", "refused AE"),
        ] {
            assert_eq!(play(asked, mode, true, answers), expected, "{asked:?} {mode:?} {answers}");
        }
    }

    #[test]
    fn without_verification_any_control_id_will_do() {
        assert_eq!(play(ORIGINAL, FromHeader, false, "AA:2"), "done AA");
        assert_eq!(play(ORIGINAL, FromHeader, false, "AA:"), "done AA");
        assert_eq!(play(ORIGINAL, FromHeader, false, "AE:2"), "refused AE");
        assert_eq!(play(ORIGINAL, FromHeader, false, "XX:1"), "malformed UnknownCode");
    }

    #[test]
    fn the_phase_names_what_is_awaited() {
        for (asked, mode, before, after) in [
            (ORIGINAL, FromHeader, Phase::ApplicationAck, Phase::ApplicationAck),
            (APPLICATION, FromHeader, Phase::ApplicationAck, Phase::ApplicationAck),
            (BOTH, FromHeader, Phase::CommitAck, Phase::ApplicationAck),
            (BOTH, Application, Phase::CommitAck, Phase::ApplicationAck),
        ] {
            let mut outcome = Outcome::of(&Header { control_id: b"1", asked }, rules(mode, true));
            assert_eq!(outcome.phase(), before);
            assert!(matches!(outcome.take(b"MSH|^~\\&|\rMSA|CA|1\r"), Ok(Verdict::GoesOn)));
            assert_eq!(outcome.phase(), after);
        }
        for (asked, mode) in [(COMMIT, FromHeader), (ORIGINAL, Commit)] {
            let header = Header { control_id: b"1", asked };
            assert_eq!(Outcome::of(&header, rules(mode, true)).phase(), Phase::CommitAck);
        }
    }

    #[test]
    fn what_may_follow_unrecognised_leaves_doubt() {
        for (asked, verify, code, expected) in [
            (ORIGINAL, true, "CA", true),
            (BOTH, true, "CA", true),
            (BOTH, false, "CA", false),
            (ORIGINAL, false, "CA", false),
            (COMMIT, false, "CA", true),
            (BOTH, false, "AA", true),
        ] {
            let mut outcome = Outcome::of(&Header { control_id: b"1", asked }, rules(Commit, verify));
            let Ok(Verdict::Ends(ack)) = outcome.take(format!("MSH|^~\\&|\rMSA|{code}|1\r").as_bytes()) else {
                panic!()
            };
            assert_eq!(outcome.leaves_no_doubt(&ack), expected, "{asked:?} {verify} {code}");
        }
    }

    /// Plays answers to a batch `B`, each of one or more acknowledgments, and tells of each answer whether it committed a message
    /// (`+`) or not (`.`), what became of each message (`?` for one that nothing ended, `c` before it if committed), and what holds
    /// then.
    fn play_batch(asked: Asked, verify: bool, control_ids: &str, answers: &str) -> String {
        let headers: Vec<_> =
            control_ids.split_whitespace().map(|id| Header { control_id: id.as_bytes(), asked }).collect();
        let mut outcomes = Outcomes::of([&b"B"[..]].into_iter(), &headers, rules(FromHeader, verify));
        let mut told = String::new();
        for answer in answers.split_whitespace() {
            let bytes: String = answer
                .split(',')
                .map(|answer| answer.split_once(':').unwrap())
                .map(|(code, id)| format!("MSH|^~\\&|\rMSA|{code}|{id}\r"))
                .collect();
            told += match outcomes.take(bytes.as_bytes()) {
                Ok(true) => "+",
                Ok(false) => ".",
                Err(ErrorKind::UnmatchedAck(_)) => "unmatched",
                Err(ErrorKind::MalformedAck(_)) => "malformed",
                Err(kind) => panic!("{kind:?}"),
            };
        }
        let states = [
            (outcomes.phase() == Phase::CommitAck, "commits awaited"),
            (outcomes.are_committed(), "committed"),
            (outcomes.are_complete(), "complete"),
            (outcomes.are_refused(), "refused"),
        ];
        for (outcome, verdict) in outcomes.into_each() {
            told += if outcome.commit().is_some() { " c" } else { " " };
            told += &match verdict {
                None => "?".into(),
                Some(Ok(ack)) => ack.code().to_string(),
                Some(Err(ErrorKind::Nak(ack))) => ack.code().to_string(),
                Some(Err(kind)) => panic!("{kind:?}"),
            };
        }
        states.iter().filter(|(holds, _)| *holds).for_each(|(_, state)| told += &format!(", {state}"));
        told
    }

    #[test]
    fn transitions_of_batches() {
        for (asked, verify, control_ids, answers, expected) in [
            (ORIGINAL, true, "1 2", "", " ? ?"),
            (ORIGINAL, true, "1 2", "AA:2", ". ? AA"),
            (ORIGINAL, true, "1 2", "AA:2 AE:1", ".. AE AA, committed, complete"),
            (ORIGINAL, true, "1 2", "AA:1,AA:2", ". AA AA, committed, complete"),
            (ORIGINAL, true, "1 2", "AR:1 AE:2", ".. AR AE, committed, complete, refused"),
            (ORIGINAL, true, "1 2", "AA:B", ". AA AA, committed, complete"),
            (ORIGINAL, true, "1 2", "AE:1 AA:B", ".. AE AA, committed, complete"),
            (ORIGINAL, true, "1 2", "AR:B", ". AR AR, committed, complete, refused"),
            (ORIGINAL, true, "B 2", "AA:B", ". AA ?"),
            (ORIGINAL, true, "1 2", "AA:3", "unmatched ? ?"),
            (ORIGINAL, true, "1 2", "AA:1,AA:3", "unmatched AA ?"),
            (ORIGINAL, true, "1 2", "AA:", "malformed ? ?"),
            (ORIGINAL, true, "1 2", "AA:1 AA:1", ".unmatched AA ?"),
            (ORIGINAL, true, "1 1", "AA:1 AE:1", ".. AA AE, committed, complete"),
            (ORIGINAL, true, "1 1", "AA:1,AE:1,AE:1", "unmatched AA AE, committed, complete"),
            (ORIGINAL, true, "1 2", "CA:1", "+ c? ?"),
            (COMMIT, true, "1 2", "CA:1", ". CA ?, commits awaited"),
            (COMMIT, true, "1 2", "CA:1 CE:2", ".. CA CE, committed, complete"),
            (BOTH, true, "1 2", "", " ? ?, commits awaited"),
            (BOTH, true, "1 2", "CA:1", "+ c? ?, commits awaited"),
            (BOTH, true, "1 2", "CA:1 CA:1", "+. c? ?, commits awaited"),
            (BOTH, true, "1 2", "CA:1 CA:2", "++ c? c?, committed"),
            (BOTH, true, "1 2", "CA:2,CA:1", "+ c? c?, committed"),
            (BOTH, true, "1 2", "CA:1,AA:1", "+ cAA ?, commits awaited"),
            (BOTH, true, "1 2", "CA:B", "+ c? c?, committed"),
            (BOTH, true, "1 2", "CA:B AA:B", "+. cAA cAA, committed, complete"),
            (BOTH, true, "1 2", "CA:1 AA:2", "+. c? AA, committed"),
            (BOTH, true, "1 2", "CE:2 CA:1 AA:1", ".+. cAA CE, committed, complete"),
            (BOTH, true, "1 2", "CR:B", ". CR CR, committed, complete, refused"),
            (BOTH, true, "1 1", "CA:1 CA:1", "+. c? ?, commits awaited"),
            (ORIGINAL, false, "1 2", "AA:", ". AA ?"),
            (ORIGINAL, false, "1 2", "AA:3 AE:4", ".. AA AE, committed, complete"),
            (ORIGINAL, false, "1 2 3", "AA:2 AE:x AR:x", "... AE AA AR, committed, complete"),
            (ORIGINAL, false, "1 2", "AA:3,AE:4,AE:5", ". AA AE, committed, complete"),
            (ORIGINAL, false, "1 2", "CA:3", "+ c? ?"),
            (ORIGINAL, false, "1 2", "CA:3,AA:3,CA:3", "+ cAA c?, committed"),
            (ORIGINAL, false, "1 2", "AE:B", ". AE AE, committed, complete, refused"),
        ] {
            assert_eq!(play_batch(asked, verify, control_ids, answers), expected, "{control_ids} {verify} {answers}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_sequence_goes_by_the_rules(
            mode in proptest::sample::select(&[FromHeader, Application, Commit][..]),
            verify: bool,
            commit: bool,
            application: bool,
            answers in proptest::collection::vec(("AA|AE|AR|CA|CE|CR", "1|2|"), 0..6),
        ) {
            let header = Header { control_id: b"1", asked: Asked { commit, application } };
            let naive = oracle::Header { control_id: b"1".to_vec(), commit, application };
            let mut outcome = Outcome::of(&header, rules(mode, verify));
            for (code, id) in answers {
                let verdict = outcome.take(format!("MSH|^~\\&|\rMSA|{code}|{id}\r").as_bytes());
                let ack = oracle::acknowledgment(format!("MSH|^~\\&|\rMSA|{code}|{id}\r").as_bytes()).unwrap();
                let meaning = oracle::meaning(&naive, mode, verify, ack.code, id.as_bytes());
                let agrees = match meaning {
                    Meaning::GoesOn => matches!(verdict, Ok(Verdict::GoesOn)),
                    Meaning::Ends => matches!(verdict, Ok(Verdict::Ends(_))),
                    Meaning::Refused => matches!(verdict, Err(ErrorKind::Nak(_))),
                    Meaning::Doubt => matches!(verdict, Err(ErrorKind::UnmatchedAck(_) | ErrorKind::MalformedAck(_))),
                };
                proptest::prop_assert!(agrees, "{meaning:?}: {verdict:?}");
                if meaning != Meaning::GoesOn {
                    break;
                }
            }
        }
    }
}
