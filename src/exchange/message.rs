//! Which acknowledgment ends the exchange of one message, and how.

use std::iter;

use super::{
    AckRules, After, Answer, Asks, Awaited, CONTRADICTORY, Decided, Effect, Failure, PassOver, Progress, STRIDE,
    hold_against, next_acknowledgment,
};
use crate::error::{Error, ErrorKind, Evidence, Phase};
use crate::hl7::ack::{Ack, AckParseError, Layout};
use crate::hl7::header::{self, Header};
use crate::hl7::segment;

/// The acknowledgment of one message is awaited.
#[derive(Debug)]
pub(crate) struct Message<'m> {
    asks: Asks<'m>,
    rules: AckRules,
    /// The text, where it is several messages that are sent as one: a receiver may acknowledge each
    /// by itself.
    batch: Option<&'m [u8]>,
    /// The last commit accept, kept as evidence until the message is accepted. It is dropped if
    /// there is no room for a refusal beside it.
    commit: Option<Ack>,
    /// The acknowledgment that has ended the exchange.
    verdict: Option<Ack>,
    /// Whether MSA-2 of the verdict is empty, so that a repetition of it could not be recognised.
    is_nameless: bool,
    /// The effect of the current answer so far.
    step: Effect,
}

impl<'m> Message<'m> {
    pub(crate) fn new(message: &'m [u8], header: &Header<'m>, rules: AckRules) -> Self {
        Message {
            asks: Asks::of(header, rules.mode),
            rules,
            batch: header::holds_many(message).then_some(message),
            commit: None,
            verdict: None,
            is_nameless: false,
            step: Effect::PassedOver,
        }
    }

    /// Takes one acknowledgment.
    fn take_acknowledgment(
        &mut self,
        raw: &[u8],
        layout: Layout,
        answer: Answer<'_>,
        pass_over: &mut PassOver<'_>,
    ) -> Result<Effect, ErrorKind> {
        let ack = || layout.to_ack(raw).in_charset(self.rules.charset);
        if self.rules.verify {
            match layout.control_id(raw) {
                control_id if control_id == self.asks.control_id => {}
                // One message at a time is under way, so that a receiver that cannot read its control ID refuses this
                // one.
                b"" if answer.is_alone && !layout.code().is_accept() => self.is_nameless = true,
                b"" => return Err(ErrorKind::MalformedAck(AckParseError::NoControlId)),
                _ if pass_over(raw, &layout) => return Ok(Effect::PassedOver),
                _ => return Err(ErrorKind::UnmatchedAck(ack())),
            }
        }
        if layout.is_contradicted(raw) {
            return Err(CONTRADICTORY);
        }
        if self.asks.ends_with(layout.code()) {
            if layout.code().is_accept() || self.kept() + raw.len() > self.rules.max_kept {
                self.commit = None;
            }
            self.verdict = Some(ack());
            return Ok(Effect::Ends);
        }
        let was_committed = self.commit.take().is_some();
        self.commit = Some(ack());
        Ok(if was_committed { Effect::GoesOn } else { Effect::Commits })
    }

    /// Takes one acknowledgment of an answer that holds the verdict already. It is for an earlier
    /// message, or says the same again.
    fn take_after_verdict(&mut self, raw: &[u8], pass_over: &mut PassOver<'_>) -> Result<(), ErrorKind> {
        let Ok(layout) = Layout::read(raw) else { return Ok(()) };
        let control_id = layout.control_id(raw);
        let is_own = control_id.is_empty() || control_id == self.asks.control_id;
        if self.rules.verify && is_own {
            return hold_against(&mut self.verdict, layout.code());
        }
        if self.rules.verify {
            pass_over(raw, &layout);
        }
        Ok(())
    }

    /// The commit accept that has come last.
    pub(crate) fn commit(&self) -> Option<&Ack> {
        self.commit.as_ref()
    }
}

impl Awaited for Message<'_> {
    type End = Ack;

    fn control_id(&self) -> Option<&[u8]> {
        Some(self.asks.control_id)
    }

    fn control_ids(&self) -> impl Iterator<Item = &[u8]> {
        iter::once(self.asks.control_id).chain(self.batch.into_iter().flat_map(header::control_ids))
    }

    fn phase(&self) -> Phase {
        self.asks.phase(self.commit.is_some())
    }

    fn is_committed(&self) -> bool {
        self.commit.is_some()
    }

    fn accept(&mut self, answer: Answer<'_>, pass_over: &mut PassOver<'_>) -> Result<Effect, ErrorKind> {
        let Answer { content, mut from, .. } = answer;
        if from == 0 {
            self.step = Effect::PassedOver;
            // Common case: it holds one acknowledgment and no more.
            match Layout::read(content) {
                Ok(layout) if layout.ends_with_msa(content) => {
                    return self.take_acknowledgment(content, layout, answer, pass_over);
                }
                // A batch of acknowledgments begins with a header of its own.
                Err(error)
                    if !segment::is_named(segment::without_mark(content.trim_ascii_start()), &segment::WRAPPERS) =>
                {
                    return Err(ErrorKind::MalformedAck(error));
                }
                Err(error) if next_acknowledgment(content, 0).is_none() => return Err(ErrorKind::MalformedAck(error)),
                _ => {}
            }
        }
        for _ in 0..STRIDE {
            let Some(at) = next_acknowledgment(content, from) else { return Ok(self.step) };
            from = at.end;
            let raw = &content[at];
            if self.step == Effect::Ends {
                self.take_after_verdict(raw, pass_over)?;
                continue;
            }
            let layout = Layout::read(raw).map_err(ErrorKind::MalformedAck)?;
            match (self.take_acknowledgment(raw, layout, answer, pass_over)?, self.step) {
                (Effect::PassedOver, _) | (Effect::GoesOn, Effect::Commits) => {}
                (step, _) => self.step = step,
            }
        }
        Ok(Effect::Partly(from))
    }

    fn decided(&mut self, mut each: impl FnMut(Decided<'_>)) {
        let Some(verdict) = &self.verdict else { return };
        let after = if self.is_nameless { After::Doubt } else { self.asks.after(verdict.code(), self.rules.verify) };
        each(Decided { control_id: self.asks.control_id, verdict: Some(verdict), after });
        let others = self.batch.into_iter().flat_map(header::control_ids);
        for control_id in others.filter(|control_id| *control_id != self.asks.control_id) {
            each(Decided { control_id, verdict: None, after });
        }
    }

    fn kept(&self) -> usize {
        self.commit.as_ref().map_or(0, |commit| commit.raw().len())
    }

    fn end(self, failure: Option<Failure>) -> Result<Ack, Error> {
        match (self.verdict, failure) {
            (Some(refusal), _) if !refusal.code().is_accept() => {
                let progress = self.commit.map_or(Progress::Sent, Progress::Committed);
                Err(progress.fail(ErrorKind::Nak(refusal), Evidence::default()))
            }
            (Some(ack), None) => Ok(ack),
            // An acceptance cannot be meant for a message that the receiver has seen only a part of.
            (_, Some(failure)) if failure.while_sending => Err(failure.into_error()),
            (_, failure) => Err(failure.unwrap_or_default().of_message(&self.asks, self.commit)),
        }
    }
}

#[cfg(test)]
mod tests {
    use AckMode::{Application, Commit, FromHeader};

    use super::*;
    use crate::error::Delivery;
    use crate::exchange::take;
    use crate::fuzzing::oracle::{self, Meaning};
    use crate::hl7::ack::AckMode;
    use crate::hl7::charset::Charset;
    use crate::hl7::header::Asked;

    const ORIGINAL: Asked = Asked { commit: false, application: true, conditional: false };
    const COMMIT: Asked = Asked { commit: true, application: false, conditional: false };
    const APPLICATION: Asked = Asked { commit: false, application: true, conditional: false };
    const BOTH: Asked = Asked { commit: true, application: true, conditional: false };
    const NEITHER: Asked = Asked { commit: false, application: false, conditional: false };

    fn rules(mode: AckMode, verify: bool) -> AckRules {
        AckRules { mode, verify, charset: Charset::UTF_8, max_kept: 1000 }
    }

    fn waiting(asked: Asked, mode: AckMode, verify: bool) -> Message<'static> {
        Message::new(b"MSH|", &Header { control_id: b"1", asked }, rules(mode, verify))
    }

    fn answer(content: &[u8]) -> Answer<'_> {
        Answer { content, frame: None, from: 0, may_be_earlier: true, is_alone: true }
    }

    fn nobodys(_: &[u8], _: &Layout) -> bool {
        false
    }

    /// Plays answers of one or more acknowledgments, written `code` or `code:control ID`, and says
    /// what became of the message. Those for `0` are for an earlier one.
    fn play(asked: Asked, mode: AckMode, verify: bool, answers: &str) -> String {
        let mut message = waiting(asked, mode, verify);
        let mut verdict = String::from("waits");
        for written in answers.split_whitespace() {
            let acknowledgment = |written: &str| {
                let (code, id) = written.split_once(':').unwrap_or((written, "1"));
                format!("MSH|^~\\&|\rMSA|{code}|{id}\r")
            };
            let content: String = written.split(',').map(acknowledgment).collect();
            verdict = match take(&mut message, content.as_bytes()) {
                Ok(Effect::GoesOn | Effect::Commits | Effect::PassedOver) => continue,
                Ok(Effect::Ends) => {
                    let ack = message.verdict.as_ref().unwrap();
                    format!("{} {}", if ack.code().is_accept() { "done" } else { "refused" }, ack.code())
                }
                Err(ErrorKind::UnmatchedAck(ack)) => format!("unmatched {}", ack.control_id()),
                Err(ErrorKind::MalformedAck(error)) => format!("malformed {error:?}"),
                other => panic!("{other:?}"),
            };
            break;
        }
        // A commit accept is evidence until the message is accepted.
        if message.commit().is_some() {
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
            (ORIGINAL, FromHeader, "CA AA", "done AA"),
            (ORIGINAL, FromHeader, "CA AE", "refused AE, committed"),
            (ORIGINAL, FromHeader, "CA CA AA", "done AA"),
            (ORIGINAL, FromHeader, "AA:2", "unmatched 2"),
            (ORIGINAL, FromHeader, "AE:2", "unmatched 2"),
            (ORIGINAL, FromHeader, "AA:11", "unmatched 11"),
            (ORIGINAL, FromHeader, "CA AA:2", "unmatched 2, committed"),
            (ORIGINAL, FromHeader, "CA:2", "unmatched 2"),
            (ORIGINAL, FromHeader, "AA:", "malformed NoControlId"),
            (ORIGINAL, FromHeader, "AE:", "refused AE"),
            (ORIGINAL, FromHeader, "CR:", "refused CR"),
            (ORIGINAL, FromHeader, "CA:", "malformed NoControlId"),
            (ORIGINAL, FromHeader, "CA AR:", "refused AR, committed"),
            (ORIGINAL, FromHeader, "AE:0 CA:0 AA", "done AA"),
            (ORIGINAL, FromHeader, "AE:0 AE", "refused AE"),
            (ORIGINAL, FromHeader, "CA XX", "malformed UnknownCode, committed"),
            (COMMIT, FromHeader, "CA", "done CA"),
            (COMMIT, FromHeader, "CE", "refused CE"),
            (COMMIT, FromHeader, "CR", "refused CR"),
            (COMMIT, FromHeader, "AA", "done AA"),
            (COMMIT, FromHeader, "AE", "refused AE"),
            (APPLICATION, FromHeader, "AA", "done AA"),
            (APPLICATION, FromHeader, "CA AR", "refused AR, committed"),
            (BOTH, FromHeader, "CA", "waits, committed"),
            (BOTH, FromHeader, "CA AA", "done AA"),
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
            (COMMIT, Application, "CA AA", "done AA"),
            (COMMIT, Application, "CA AR", "refused AR, committed"),
            (COMMIT, Application, "CE", "refused CE"),
            (ORIGINAL, Application, "AA", "done AA"),
            (NEITHER, Application, "AE", "refused AE"),
            // Several in one frame.
            (ORIGINAL, FromHeader, "AA:0,AE", "refused AE"),
            (ORIGINAL, FromHeader, "AA:0,AE:0 AA", "done AA"),
            (ORIGINAL, FromHeader, "AA,AE:0", "done AA"),
            (ORIGINAL, FromHeader, "AE,AA:0", "refused AE"),
            (ORIGINAL, FromHeader, "AA,AA:2", "done AA"),
            (ORIGINAL, FromHeader, "AA:2,AA", "unmatched 2"),
            (ORIGINAL, FromHeader, "AA,AE", "malformed Contradictory"),
            (ORIGINAL, FromHeader, "AA:0,AE,AA", "malformed Contradictory"),
            (ORIGINAL, FromHeader, "AA,AE:", "malformed Contradictory"),
            (ORIGINAL, FromHeader, "AA:0,XX", "malformed UnknownCode"),
            (ORIGINAL, FromHeader, "AA,XX", "done AA"),
            (BOTH, FromHeader, "CA,AA", "done AA"),
            (BOTH, FromHeader, "CA,AE", "refused AE, committed"),
            (BOTH, FromHeader, "CA,CA,AA:0 AR", "refused AR, committed"),
            (COMMIT, FromHeader, "CA,AA", "done CA"),
        ] {
            assert_eq!(play(asked, mode, true, answers), expected, "{asked:?} {mode:?} {answers}");
        }
    }

    #[test]
    fn an_answer_that_begins_with_no_header_is_no_acknowledgment() {
        let ack = "MSH|^~\\&|\rMSA|AA|1\r";
        for (answer, expected) in [
            (ack.to_owned(), None),
            (format!("BHS|\r{ack}BTS|1\r"), None),
            (format!("\r\nBHS|\r{ack}"), None),
            (format!("\u{feff}{ack}"), None),
            (format!("\r\u{feff}BHS|\r\u{feff}{ack}BTS|1\r"), None),
            (format!(" \r{ack}"), Some(AckParseError::NotHl7)),
            (format!("NTE|1\r{ack}"), Some(AckParseError::NotHl7)),
            ("MSH|^~\\&|\rMSH|^~\\&|\rMSA|XX|1\r".to_owned(), Some(AckParseError::UnknownCode)),
            ("BHS|\rBTS|0\r".to_owned(), Some(AckParseError::NotHl7)),
        ] {
            let mut message = waiting(ORIGINAL, FromHeader, true);
            match (take(&mut message, answer.as_bytes()), expected) {
                (Ok(Effect::Ends), None) => {}
                (Err(ErrorKind::MalformedAck(error)), Some(expected)) => assert_eq!(error, expected, "{answer:?}"),
                other => panic!("{answer:?}: {other:?}"),
            }
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
            let mut message = waiting(asked, mode, true);
            assert_eq!((message.phase(), message.is_committed()), (before, false));
            let commit = b"MSH|^~\\&|\rMSA|CA|1\r";
            assert_eq!(message.accept(answer(commit), &mut nobodys).unwrap(), Effect::Commits);
            assert_eq!((message.phase(), message.is_committed()), (after, true));
            assert_eq!(message.accept(answer(commit), &mut nobodys).unwrap(), Effect::GoesOn);
        }
        for (asked, mode) in [(COMMIT, FromHeader), (ORIGINAL, Commit)] {
            assert_eq!(waiting(asked, mode, true).phase(), Phase::CommitAck);
        }
    }

    #[test]
    fn what_may_come_after_the_end() {
        for (asked, verify, answered, expected) in [
            (ORIGINAL, true, "CA|1", After::ApplicationAck),
            (BOTH, true, "CA|1", After::ApplicationAck),
            (BOTH, false, "CA|1", After::Doubt),
            (ORIGINAL, false, "CA|1", After::Doubt),
            (COMMIT, false, "CA|1", After::Answered),
            (COMMIT, true, "CA|1", After::Answered),
            (BOTH, true, "AA|1", After::Answered),
            (BOTH, true, "AE|1", After::Answered),
            (BOTH, true, "CE|1", After::Answered),
            (BOTH, true, "AE|", After::Doubt),
            (BOTH, false, "AA|", After::Answered),
        ] {
            let mut message = waiting(asked, Commit, verify);
            let raw = format!("MSH|^~\\&|\rMSA|{answered}\r");
            assert_eq!(message.accept(answer(raw.as_bytes()), &mut nobodys).unwrap(), Effect::Ends);
            let mut found = Vec::new();
            message.decided(|decided| found.push((decided.control_id.to_vec(), decided.after)));
            assert_eq!(found, [(b"1".to_vec(), expected)], "{asked:?} {verify} {answered}");
        }
    }

    #[test]
    fn messages_without_a_batch_around_have_control_ids_of_their_own() {
        for (name, payload, expected) in [
            ("one", "MSH|^~\\&|||||||ADT|1\rPID|1|MSH\r", "1"),
            ("two", "MSH|^~\\&|||||||ADT|1\rPID|1\rMSH|^~\\&|||||||ADT|2\r", "1 1 2"),
            ("two in lines", "MSH|^~\\&|||||||ADT|1\nMSH$%*!@$$$$$$$ADT$2\n", "1 1 2"),
        ] {
            let message =
                Message::new(payload.as_bytes(), &Header::read(payload.as_bytes()).unwrap(), rules(FromHeader, true));
            let found: Vec<_> = message.control_ids().map(|id| String::from_utf8_lossy(id).into_owned()).collect();
            assert_eq!(found.join(" "), expected, "{name}");
        }
    }

    #[test]
    fn a_batch_that_is_sent_as_one_message_has_more_than_one_control_id() {
        let batch = b"BHS|^~\\&|||||||||B\rMSH|^~\\&|||||||ADT|1\rMSH|^~\\&|||||||ADT|2\r";
        let mut message = Message::new(batch, &Header::read(batch).unwrap(), rules(FromHeader, true));
        assert!(message.control_ids().eq([b"B", b"B", b"1", b"2"]));
        assert_eq!(message.accept(answer(b"MSH|^~\\&|\rMSA|AA|B\r"), &mut nobodys).unwrap(), Effect::Ends);
        let mut found = Vec::new();
        message.decided(|decided| found.push((decided.control_id.to_vec(), decided.verdict.is_some())));
        assert_eq!(found, [(b"B".to_vec(), true), (b"1".to_vec(), false), (b"2".to_vec(), false)]);
    }

    #[test]
    fn a_nameless_refusal_counts_where_nothing_else_is_outstanding() {
        let refusal = b"MSH|^~\\&|\rMSA|AR||cannot parse\r";
        let mut message = waiting(ORIGINAL, FromHeader, true);
        let step = message.accept(Answer { is_alone: false, ..answer(refusal) }, &mut nobodys);
        assert!(matches!(step, Err(ErrorKind::MalformedAck(AckParseError::NoControlId))), "{step:?}");
    }

    #[test]
    fn two_verdicts_in_one_answer_must_agree() {
        for (answered, expected) in [
            ("MSA|AA|1\rMSA|AE|1\r", None),
            ("MSA|AE|1\rMSA|AA|1\r", None),
            ("MSA|AA|1\rMSH|^~\\&|\rMSA|AR|1\r", None),
            ("MSA|AA|1\rERR|1\rMSA|CE| 1 ^x\r", Some(Effect::Ends)),
            ("MSA|AA|1\rERR|1\rMSA|CE| 1 \r", None),
            ("MSA|AA|1\rMSA|AE|\r", None),
            ("MSA|CA|1\rMSA|AE|1\r", None),
            ("MSA|AA|1\rMSA|AA|1\r", Some(Effect::Ends)),
            ("MSA|AA|1\rMSA|CA|1\r", Some(Effect::Ends)),
            ("MSA|AE|1\rMSA|AR|1\r", Some(Effect::Ends)),
            ("MSA|AA|1\rMSA|AE|2\r", Some(Effect::Ends)),
            ("MSA|AA|1\rMSAX|AE|1\r", Some(Effect::Ends)),
            ("MSA|AA|1\rMSA|XX|1\r", Some(Effect::Ends)),
        ] {
            let raw = format!("MSH|^~\\&|\r{answered}");
            match waiting(ORIGINAL, FromHeader, true).accept(answer(raw.as_bytes()), &mut nobodys) {
                Ok(step) => assert_eq!(Some(step), expected, "{answered:?}"),
                Err(ErrorKind::MalformedAck(AckParseError::Contradictory)) => {
                    assert_eq!(None, expected, "{answered:?}");
                }
                Err(other) => panic!("{answered:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn acknowledgments_in_one_answer_have_delimiters_of_their_own_and_perhaps_a_batch_around() {
        for (answered, expected) in [
            ("MSH|^~\\&|\rMSA|AA|1\rMSH$%*!@$\rMSA$AE$1\r", Err(CONTRADICTORY)),
            ("MSH|^~\\&|\rMSA|AA|0\rMSH$%*!@$\rMSA$AE$1\r", Ok(Effect::Ends)),
            ("BHS|^~\\&|\rMSH|^~\\&|\rMSA|AA|0\rMSH|^~\\&|\rMSA|AE|0\rBTS|2\r", Ok(Effect::PassedOver)),
            ("BHS|^~\\&|\rMSH|^~\\&|\rMSA|AA|0\rMSH|^~\\&|\rMSA|AE|1\rBTS|2\r", Ok(Effect::Ends)),
            ("BHS|^~\\&|\rBTS|0\r", Err(ErrorKind::MalformedAck(AckParseError::NotHl7))),
            ("MSH|^~\\&|\rMSA|AR|\"\"\r", Ok(Effect::Ends)),
        ] {
            let step = take(&mut waiting(ORIGINAL, FromHeader, true), answered.as_bytes());
            assert_eq!(format!("{step:?}"), format!("{expected:?}"), "{answered:?}");
        }
        let many = "MSH|^~\\&|\rMSA|AA|0\r".repeat(3 * STRIDE);
        assert_eq!(take(&mut waiting(ORIGINAL, FromHeader, true), many.as_bytes()).unwrap(), Effect::PassedOver);
    }

    #[test]
    fn what_is_kept_is_bounded_in_sum() {
        let raw = |code: &str, size: usize| format!("{:x<size$}", format!("MSH|^~\\&|\rMSA|{code}|1|")).into_bytes();
        for (name, commit, verdict, expected) in
            [("both fit", ("CA", 500), ("AE", 500), Some(500)), ("the refusal counts", ("CA", 500), ("AE", 501), None)]
        {
            let mut message = waiting(BOTH, FromHeader, true);
            message.accept(answer(&raw(commit.0, commit.1)), &mut nobodys).unwrap();
            assert_eq!(message.kept(), commit.1);
            message.accept(answer(&raw(verdict.0, verdict.1)), &mut nobodys).unwrap();
            let error = message.end(None).unwrap_err();
            assert_eq!(error.delivery(), Delivery::Refused, "{name}");
            assert_eq!(error.commit().map(|commit| commit.raw().len()), expected, "{name}");
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
            let asked = Asked { commit, application, conditional: false };
            let naive = oracle::NaiveHeader { control_id: b"1".to_vec(), commit, application };
            let mut message = waiting(asked, mode, verify);
            for (code, id) in answers {
                let raw = format!("MSH|^~\\&|\rMSA|{code}|{id}\r");
                let step = message.accept(answer(raw.as_bytes()), &mut nobodys);
                let accepted = message.verdict.as_ref().map(|ack| ack.code().is_accept());
                let ack = oracle::acknowledgment(raw.as_bytes()).unwrap();
                let meaning = oracle::meaning(&naive, mode, verify, ack.code, id.as_bytes());
                let agrees = match meaning {
                    Meaning::GoesOn => matches!(step, Ok(Effect::GoesOn | Effect::Commits)),
                    Meaning::Ends => matches!(step, Ok(Effect::Ends)) && accepted == Some(true),
                    Meaning::Refused => matches!(step, Ok(Effect::Ends)) && accepted == Some(false),
                    Meaning::Doubt => matches!(step, Err(ErrorKind::UnmatchedAck(_) | ErrorKind::MalformedAck(_))),
                };
                proptest::prop_assert!(agrees, "{meaning:?}: {step:?}");
                if meaning != Meaning::GoesOn {
                    break;
                }
            }
        }
    }
}
