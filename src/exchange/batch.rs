//! Which acknowledgments end the exchange of a batch, and how: one for each message, several
//! together, or one for the whole.

use std::collections::HashMap;
use std::mem;
use std::ops::Range;
use std::sync::Arc;

use super::{
    AckRules, After, Answer, Asks, Awaited, CONTRADICTORY, Decided, Effect, Failure, PassOver, Progress, STRIDE,
    hold_against, next_acknowledgment,
};
use crate::error::{Error, ErrorKind, Evidence, Phase};
use crate::hl7::ack::{Ack, AckCode, AckParseError, Layout};
use crate::hl7::header::Header;

/// The acknowledgments of a batch's messages are awaited.
///
/// Work is linear in the messages and in the bytes of the answers together: an acknowledgment of a
/// whole is kept once, and its messages are looked at once for a verdict and once for a commit
/// accept.
#[derive(Debug)]
pub(crate) struct Batched<'m> {
    rules: AckRules,
    /// The batches (BHS to BTS), and the file (FHS to FTS) around them.
    wholes: Vec<Whole<'m>>,
    asks: Vec<Asks<'m>>,
    /// The acknowledgments that have come, for each message.
    found: Vec<Found>,
    /// Where the message or the whole with a control ID stands.
    index: HashMap<&'m [u8], Named>,
    /// The number of the answer that is being taken, from 1.
    answer: u32,
    /// The effects of the current answer: the messages that it has decided, whether it has
    /// committed any message, and whether it has been for earlier messages only.
    fresh: Vec<u32>,
    fresh_commits: bool,
    is_passed_over: bool,
    /// Every message before this one is decided.
    first_undecided: usize,
    /// Whether an application acknowledgment may still come for a message that a commit accept has
    /// decided.
    application_may_follow: bool,
    /// Whether a refusal that names no message has decided the only one.
    is_nameless: bool,
    /// How many messages are not decided yet; for how many of these nothing has come; how many
    /// await a commit acknowledgment.
    undecided: usize,
    silent: usize,
    uncommitted: usize,
    /// How many bytes of acknowledgments are kept, and whether the frame of the current answer is
    /// among them.
    kept: usize,
    is_frame_kept: bool,
}

/// The message or the batch that a control ID stands for.
#[derive(Clone, Copy, Debug)]
enum Named {
    Message(u32),
    Whole(u32),
}

/// A batch or a file.
#[derive(Debug)]
struct Whole<'m> {
    control_id: &'m [u8],
    messages: Range<usize>,
    /// Its first commit accept, which holds for every message in it that is not decided, and the
    /// answer that has brought it.
    commit: Option<Ack>,
    committed_by: u32,
    /// Whether a verdict has decided all that was left, the answer that has brought it, and whether
    /// it accepts.
    is_decided: bool,
    decided_by: u32,
    accepts: bool,
}

impl<'m> Whole<'m> {
    fn new((control_id, messages): (&'m [u8], Range<usize>)) -> Self {
        Whole { control_id, messages, commit: None, committed_by: 0, is_decided: false, decided_by: 0, accepts: false }
    }
}

#[derive(Clone, Debug, Default)]
struct Found {
    verdict: Option<Ack>,
    /// Whether a commit accept has come before the verdict, its own or that of a whole.
    is_committed: bool,
    /// The whole whose commit accept has committed it.
    committed_with: Option<u32>,
    /// Its own commit accept, kept as evidence until the message is accepted, or as long as there
    /// is room.
    commit: Option<Box<Ack>>,
    /// The number of the answer that has decided it, and whether by a verdict on a whole.
    decided_by: u32,
    is_decided_with_whole: bool,
}

impl<'m> Batched<'m> {
    /// Messages with these headers, in batches with control IDs of their own. No control ID stands
    /// twice.
    pub(crate) fn new(
        wholes: impl Iterator<Item = (&'m [u8], Range<usize>)>,
        headers: &[Header<'m>],
        rules: AckRules,
    ) -> Self {
        let asks: Vec<_> = headers.iter().map(|header| Asks::of(header, rules.mode)).collect();
        let wholes: Vec<_> = wholes.map(Whole::new).collect();
        let messages = (0..).map(Named::Message).zip(&asks).map(|(named, asks)| (asks.control_id, named));
        let batches = (0..).map(Named::Whole).zip(&wholes).map(|(named, whole)| (whole.control_id, named));
        Batched {
            rules,
            found: vec![Found::default(); asks.len()],
            index: messages.chain(batches).collect(),
            answer: 0,
            fresh: Vec::new(),
            fresh_commits: false,
            is_passed_over: true,
            first_undecided: 0,
            application_may_follow: false,
            is_nameless: false,
            undecided: asks.len(),
            silent: asks.len(),
            uncommitted: asks.iter().filter(|asks| asks.commit).count(),
            kept: 0,
            is_frame_kept: false,
            wholes,
            asks,
        }
    }

    /// Takes one acknowledgment.
    fn take_acknowledgment(
        &mut self,
        raw: &[u8],
        answer: Answer<'_>,
        pass_over: &mut PassOver<'_>,
    ) -> Result<(), ErrorKind> {
        let layout = Layout::read(raw).map_err(ErrorKind::MalformedAck)?;
        if layout.is_contradicted(raw) {
            return Err(CONTRADICTORY);
        }
        let control_id = layout.control_id(raw);
        let named = self.index.get(control_id).copied();
        let was_passed_over = mem::replace(&mut self.is_passed_over, false);
        match named {
            Some(Named::Message(index)) if self.found[index as usize].verdict.is_none() => {
                return self.take_for(index as usize, raw, layout, answer.frame);
            }
            Some(Named::Message(index))
                if self.rules.verify && self.found[index as usize].decided_by == self.answer =>
            {
                return hold_against(&mut self.found[index as usize].verdict, layout.code());
            }
            Some(Named::Whole(whole)) => return self.take_for_all(whole as usize, raw, layout, answer.frame),
            _ if !self.rules.verify => return self.take_for_next(raw, layout, answer.frame),
            // With more than one message it would not be known which one is refused.
            None if control_id.is_empty()
                && self.asks.len() == 1
                && self.undecided == 1
                && answer.is_alone
                && !layout.code().is_accept() =>
            {
                self.is_nameless = true;
                return self.take_for(0, raw, layout, answer.frame);
            }
            None if control_id.is_empty() => return Err(ErrorKind::MalformedAck(AckParseError::NoControlId)),
            _ => {}
        }
        if pass_over(raw, &layout) {
            self.is_passed_over = was_passed_over;
            return Ok(());
        }
        Err(ErrorKind::UnmatchedAck(layout.to_ack(raw).in_charset(self.rules.charset)))
    }

    /// Takes an acknowledgment for a message that is not decided.
    fn take_for(&mut self, index: usize, raw: &[u8], layout: Layout, frame: Frame<'_>) -> Result<(), ErrorKind> {
        let found = &mut self.found[index];
        if self.asks[index].ends_with(layout.code()) {
            let gives_way = layout.code().is_accept() || self.kept + raw.len() > self.rules.max_kept;
            if let Some(commit) = found.commit.take_if(|_| gives_way) {
                self.kept -= commit.kept();
            }
            let verdict = self.keep(raw, layout, frame)?;
            self.decide(index, verdict);
        } else if !found.is_committed {
            let commit = self.keep(raw, layout, frame)?;
            self.found[index].commit = Some(Box::new(commit));
            self.commit(index);
        }
        Ok(())
    }

    /// Takes an acknowledgment that names no message of the batch, where control IDs are not
    /// compared: for the next message that is not decided.
    fn take_for_next(&mut self, raw: &[u8], layout: Layout, frame: Frame<'_>) -> Result<(), ErrorKind> {
        while self.found.get(self.first_undecided).is_some_and(|found| found.verdict.is_some()) {
            self.first_undecided += 1;
        }
        if self.undecided == 0 { Ok(()) } else { self.take_for(self.first_undecided, raw, layout, frame) }
    }

    /// Takes an acknowledgment of a batch or of the file, for every message in it that is not
    /// decided.
    fn take_for_all(&mut self, number: usize, raw: &[u8], layout: Layout, frame: Frame<'_>) -> Result<(), ErrorKind> {
        let (code, accepts) = (layout.code(), layout.code().is_accept());
        let whole = &self.wholes[number];
        if self.rules.verify && whole.decided_by == self.answer && whole.accepts != accepts {
            return Err(self.contradiction());
        }
        let commits = code == AckCode::CommitAccept;
        if whole.is_decided || (commits && whole.commit.is_some()) {
            return Ok(());
        }
        let mut ack = None;
        for index in whole.messages.clone() {
            let found = &mut self.found[index];
            if let Some(verdict) = &found.verdict {
                let is_same_answer = found.decided_by == self.answer && found.is_decided_with_whole;
                if self.rules.verify && is_same_answer && verdict.code().is_accept() != accepts {
                    return Err(self.contradiction());
                }
                continue;
            }
            if ack.is_none() {
                ack = Some(self.keep(raw, layout, frame)?);
            }
            let found = &mut self.found[index];
            if self.asks[index].ends_with(code) {
                found.is_decided_with_whole = true;
                (self.wholes[number].decided_by, self.wholes[number].accepts) = (self.answer, accepts);
                ack.iter().cloned().for_each(|ack| self.decide(index, ack));
            } else if !found.is_committed {
                found.committed_with = Some(number as u32);
                self.commit(index);
            }
        }
        let whole = &mut self.wholes[number];
        whole.is_decided = !commits || ack.is_none();
        if commits {
            (whole.commit, whole.committed_by) = (ack, self.answer);
        }
        Ok(())
    }

    /// The current answer says two things of one whole: no verdict of it counts.
    fn contradiction(&mut self) -> ErrorKind {
        self.fresh.iter().for_each(|&index| self.found[index as usize].verdict = None);
        self.wholes.iter_mut().filter(|whole| whole.committed_by == self.answer).for_each(|whole| whole.commit = None);
        CONTRADICTORY
    }

    /// Counts a message of which a commit accept has come, the first.
    fn commit(&mut self, index: usize) {
        self.found[index].is_committed = true;
        self.fresh_commits = true;
        self.count_answered(index);
    }

    /// Counts a message of which nothing had come before.
    fn count_answered(&mut self, index: usize) {
        self.silent -= 1;
        self.uncommitted -= usize::from(self.asks[index].commit);
    }

    fn decide(&mut self, index: usize, verdict: Ack) {
        if !self.found[index].is_committed {
            self.count_answered(index);
        }
        let (found, asks) = (&mut self.found[index], &self.asks[index]);
        self.application_may_follow |= asks.after(verdict.code(), self.rules.verify) == After::ApplicationAck;
        found.verdict = Some(verdict);
        found.decided_by = self.answer;
        self.undecided -= 1;
        self.fresh.push(index as u32);
    }

    /// An acknowledgment, if there is room for it: as a part of its frame, which is kept once, or
    /// as a copy.
    fn keep(&mut self, raw: &[u8], layout: Layout, frame: Frame<'_>) -> Result<Ack, ErrorKind> {
        let limit = self.rules.max_kept;
        let size = match frame {
            Some(_) if self.is_frame_kept => 0,
            Some(frame) => frame.len(),
            None => raw.len(),
        };
        if self.kept + size > limit {
            return Err(ErrorKind::AckTooLarge { limit });
        }
        self.is_frame_kept |= frame.is_some();
        let ack = frame.map_or_else(|| layout.to_ack(raw), |frame| layout.to_part(frame, raw));
        let ack = ack.in_charset(self.rules.charset);
        self.kept += if frame.is_some() { size + ack.kept() } else { ack.kept() };
        Ok(ack)
    }
}

/// The bytes that an acknowledgment is a part of, where they can be kept.
type Frame<'a> = Option<&'a Arc<Vec<u8>>>;

impl Awaited for Batched<'_> {
    type End = Vec<Result<Ack, Error>>;

    const HOLDS_MANY: bool = true;

    fn control_id(&self) -> Option<&[u8]> {
        let whole = self.wholes.first().map(|whole| whole.control_id);
        whole.or_else(|| self.asks.first().map(|asks| asks.control_id))
    }

    fn control_ids(&self) -> impl Iterator<Item = &[u8]> {
        self.asks.iter().map(|asks| asks.control_id).chain(self.wholes.iter().map(|whole| whole.control_id))
    }

    fn phase(&self) -> Phase {
        if self.uncommitted > 0 { Phase::CommitAck } else { Phase::ApplicationAck }
    }

    fn is_committed(&self) -> bool {
        self.silent == 0
    }

    fn accept(&mut self, answer: Answer<'_>, pass_over: &mut PassOver<'_>) -> Result<Effect, ErrorKind> {
        let Answer { content, mut from, .. } = answer;
        if from == 0 {
            self.answer += 1;
            self.fresh.clear();
            (self.fresh_commits, self.is_frame_kept, self.is_passed_over) = (false, false, true);
        }
        for _ in 0..STRIDE {
            let Some(at) = next_acknowledgment(content, from) else {
                return Ok(match self.undecided {
                    0 => Effect::Ends,
                    _ if self.fresh_commits => Effect::Commits,
                    _ if self.is_passed_over && from > 0 => Effect::PassedOver,
                    _ => Effect::GoesOn,
                });
            };
            from = at.end;
            self.take_acknowledgment(&content[at], answer, pass_over)?;
        }
        Ok(Effect::Partly(from))
    }

    fn decided(&mut self, mut each: impl FnMut(Decided<'_>)) {
        let after = |after: After| if self.is_nameless { After::Doubt } else { after };
        for index in self.fresh.drain(..) {
            let (asks, found) = (&self.asks[index as usize], &self.found[index as usize]);
            if let Some(verdict) = &found.verdict {
                let after = after(asks.after(verdict.code(), self.rules.verify));
                each(Decided { control_id: asks.control_id, verdict: Some(verdict), after });
            }
        }
        if self.undecided == 0 {
            let follows = if self.application_may_follow { After::ApplicationAck } else { After::Answered };
            for whole in &self.wholes {
                each(Decided { control_id: whole.control_id, verdict: None, after: after(follows) });
            }
        }
    }

    fn kept(&self) -> usize {
        self.kept
    }

    fn end(self, failure: Option<Failure>) -> Result<Vec<Result<Ack, Error>>, Error> {
        let is_refused = |found: &Found| found.verdict.as_ref().is_some_and(|verdict| !verdict.code().is_accept());
        match failure {
            // Nothing but a refusal of all of it can be meant for a batch that the receiver has seen only a part of.
            Some(failure) if failure.while_sending && !self.found.iter().all(is_refused) => Err(failure.into_error()),
            failure => {
                let failure = failure.unwrap_or_default();
                let ends = self.found.into_iter().zip(&self.asks).map(|(found, asks)| {
                    let of_whole = || self.wholes[found.committed_with? as usize].commit.clone();
                    let commit = || found.commit.map(|commit| *commit).or_else(of_whole);
                    match found.verdict {
                        Some(ack) if ack.code().is_accept() => Ok(ack),
                        Some(refusal) => {
                            let progress = commit().map_or(Progress::Sent, Progress::Committed);
                            let refused = progress.fail(ErrorKind::Nak(refusal), Evidence::default());
                            Err(refused.about(Some(asks.control_id)))
                        }
                        None => Err(failure.clone().of_message(asks, commit())),
                    }
                });
                Ok(ends.collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::take;
    use crate::hl7::ack::AckMode;
    use crate::hl7::charset::Charset;
    use crate::hl7::header::Asked;

    const ORIGINAL: Asked = Asked { commit: false, application: true, conditional: false };
    const COMMIT: Asked = Asked { commit: true, application: false, conditional: false };
    const BOTH: Asked = Asked { commit: true, application: true, conditional: false };

    fn headers(control_ids: &str, asked: Asked) -> Vec<Header<'_>> {
        control_ids.split_whitespace().map(|id| Header { control_id: id.as_bytes(), asked }).collect()
    }

    fn wholes<'m>(messages: usize) -> impl Iterator<Item = (&'m [u8], Range<usize>)> {
        [(&b"B"[..], 0..messages), (b"F", 0..messages)].into_iter()
    }

    fn waiting<'m>(headers: &[Header<'m>], verify: bool, max_kept: usize) -> Batched<'m> {
        let rules = AckRules { mode: AckMode::FromHeader, verify, charset: Charset::UTF_8, max_kept };
        Batched::new(wholes(headers.len()), headers, rules)
    }

    fn acknowledgment(written: &str) -> String {
        let (code, id) = written.split_once(':').unwrap();
        format!("MSH|^~\\&|\rMSA|{code}|{id}\r")
    }

    /// Plays answers to a batch `B` in a file `F`, each of one or more acknowledgments, and says of
    /// each answer whether it committed a message (`+`) or not (`.`) and whether it ended the
    /// exchange (`!`), what became of each message (`?` for one that nothing ended, `c` before
    /// it if committed), and what holds then.
    fn play(asked: Asked, verify: bool, control_ids: &str, answers: &str) -> String {
        let headers = headers(control_ids, asked);
        play_batch(waiting(&headers, verify, 10_000), answers)
    }

    fn play_batch(mut batch: Batched<'_>, answers: &str) -> String {
        let mut said = String::new();
        for answer in answers.split_whitespace() {
            let bytes: String = answer.split(',').map(acknowledgment).collect();
            said += match take(&mut batch, bytes.as_bytes()) {
                Ok(Effect::Commits) => "+",
                Ok(Effect::GoesOn | Effect::PassedOver) => ".",
                Ok(Effect::Ends) => "!",
                Err(ErrorKind::UnmatchedAck(_)) => "unmatched",
                Err(ErrorKind::MalformedAck(AckParseError::Contradictory)) => "contradictory",
                Err(ErrorKind::MalformedAck(_)) => "malformed",
                other => panic!("{other:?}"),
            };
        }
        let states = [(batch.phase() == Phase::CommitAck, "commits awaited"), (batch.is_committed(), "committed")];
        for result in batch.end(None).unwrap() {
            let (commit, end) = match &result {
                Ok(ack) => (false, ack.code().to_string()),
                Err(error) => (error.commit().is_some(), error.nak().map_or("?".into(), |nak| nak.code().to_string())),
            };
            said += &format!(" {}{end}", if commit { "c" } else { "" });
        }
        states.iter().filter(|(holds, _)| *holds).for_each(|(_, state)| said += &format!(", {state}"));
        said
    }

    #[test]
    fn transitions_of_batches() {
        for (asked, verify, control_ids, answers, expected) in [
            (ORIGINAL, true, "1 2", "", " ? ?"),
            (ORIGINAL, true, "1 2", "AA:2", ". ? AA"),
            (ORIGINAL, true, "1 2", "AA:2 AE:1", ".! AE AA, committed"),
            (ORIGINAL, true, "1 2", "AA:1,AA:2", "! AA AA, committed"),
            (ORIGINAL, true, "1 2", "AR:1 AE:2", ".! AR AE, committed"),
            (ORIGINAL, true, "1 2", "AA:B", "! AA AA, committed"),
            (ORIGINAL, true, "1 2", "AA:F", "! AA AA, committed"),
            (ORIGINAL, true, "1 2", "AE:1 AA:B", ".! AE AA, committed"),
            (ORIGINAL, true, "1 2", "AE:1,AA:B", "! AE AA, committed"),
            (ORIGINAL, true, "1 2", "AR:B", "! AR AR, committed"),
            (ORIGINAL, true, "1 2", "AA:3", "unmatched ? ?"),
            (ORIGINAL, true, "1 2", "AA:1,AA:3", "unmatched AA ?"),
            (ORIGINAL, true, "1 2", "AA:0 AE:0,AA:1 AA:2", "..! AA AA, committed"),
            (ORIGINAL, true, "1 2", "AA:", "malformed ? ?"),
            (ORIGINAL, true, "1 2", "AE:", "malformed ? ?"),
            (ORIGINAL, true, "1", "AE:", "! AE, committed"),
            (ORIGINAL, true, "1", "AA:", "malformed ?"),
            (ORIGINAL, true, "1", "CA: AE:", "malformed! AE, committed"),
            // Behind an earlier answer the history of the connection recognises the control ID.
            (ORIGINAL, true, "1 2", "AA:1 AA:1", ".unmatched AA ?"),
            (ORIGINAL, true, "1 2", "AA:1,AA:1 AA:2", ".! AA AA, committed"),
            (ORIGINAL, true, "1 2", "AA:1,AE:1", "contradictory ? ?"),
            (ORIGINAL, true, "1 2", "AE:1,AA:1", "contradictory ? ?"),
            (ORIGINAL, true, "1 2", "AA:2,AA:1,AE:1", "contradictory ? AA, committed"),
            (ORIGINAL, true, "1 2", "AA:B,AE:1", "contradictory ? AA, committed"),
            (ORIGINAL, true, "1 2", "AA:B,AA:1,AA:F", "! AA AA, committed"),
            (ORIGINAL, true, "1 2", "AA:1,AA:B,AE:F", "contradictory ? ?, committed"),
            (ORIGINAL, true, "1 2", "CA:1", "+ c? ?"),
            (COMMIT, true, "1 2", "CA:1", ". CA ?, commits awaited"),
            (COMMIT, true, "1 2", "CA:1 CE:2", ".! CA CE, committed"),
            (COMMIT, true, "1 2", "CA:B", "! CA CA, committed"),
            (COMMIT, true, "1 2", "CA:B,AE:B", "contradictory ? ?, committed"),
            (COMMIT, true, "1 2", "CA:1 CA:B,AE:B", ".contradictory CA ?, committed"),
            (BOTH, true, "1 2", "", " ? ?, commits awaited"),
            (BOTH, true, "1 2", "CA:1", "+ c? ?, commits awaited"),
            (BOTH, true, "1 2", "CA:1 CA:1", "+. c? ?, commits awaited"),
            (BOTH, true, "1 2", "CA:1 CA:2", "++ c? c?, committed"),
            (BOTH, true, "1 2", "CA:2,CA:1", "+ c? c?, committed"),
            (BOTH, true, "1 2", "CA:1,AA:1", "+ AA ?, commits awaited"),
            (BOTH, true, "1 2", "CA:1,AE:1", "+ cAE ?, commits awaited"),
            (BOTH, true, "1 2", "CA:B", "+ c? c?, committed"),
            (BOTH, true, "1 2", "CA:B CA:B CA:1 CA:F", "+... c? c?, committed"),
            (BOTH, true, "1 2", "CA:1 CA:B", "++ c? c?, committed"),
            (BOTH, true, "1 2", "CA:1 CA:2 CA:B", "++. c? c?, committed"),
            (BOTH, true, "1 2", "CA:B AA:B", "+! AA AA, committed"),
            (BOTH, true, "1 2", "CA:B AE:1 AR:B", "+.! cAE cAR, committed"),
            (BOTH, true, "1 2", "AE:1 CA:B AE:2", ".+! AE cAE, committed"),
            (BOTH, true, "1 2", "AE:1,CA:B,AE:2", "! AE cAE, committed"),
            (BOTH, true, "1 2", "CA:1 AA:2", "+. c? AA, committed"),
            (BOTH, true, "1 2", "CE:2 CA:1 AA:1", ".+! AA CE, committed"),
            (BOTH, true, "1 2", "CR:B", "! CR CR, committed"),
            (ORIGINAL, false, "1 2", "AA:", ". AA ?"),
            (ORIGINAL, false, "1 2", "AA:3 AE:4", ".! AA AE, committed"),
            (ORIGINAL, false, "1 2 3", "AA:2 AE:x AR:x", "..! AE AA AR, committed"),
            (ORIGINAL, false, "1 2", "AA:1,AE:1", "! AA AE, committed"),
            (ORIGINAL, false, "1 2", "AA:3,AE:4,AE:5", "! AA AE, committed"),
            (ORIGINAL, false, "1 2", "CA:3", "+ c? ?"),
            (ORIGINAL, false, "1 2", "CA:3,AA:3,CA:3", "+ AA c?, committed"),
            (ORIGINAL, false, "1 2", "AE:B", "! AE AE, committed"),
        ] {
            assert_eq!(play(asked, verify, control_ids, answers), expected, "{control_ids} {verify} {answers}");
        }
    }

    #[test]
    fn where_acknowledgments_stand() {
        let one = "MSH|^~\\&|\rMSA|AA|1\r";
        for (name, content, expected) in [
            ("nothing", String::new(), vec![]),
            ("wrappers alone", "BHS|^~\\&\rBTS|0\r".into(), vec![]),
            ("one", one.into(), vec![one]),
            ("two", one.repeat(2), vec![one, one]),
            ("a batch", format!("\r\nFHS|^~\\&\rBHS|^~\\&\r{one}{one}BTS|2\rFTS|1\r"), vec![one, one]),
            ("LF", one.replace('\r', "\n").repeat(2), vec!["MSH|^~\\&|\nMSA|AA|1\n"; 2]),
            ("CRLF", one.replace('\r', "\r\n").repeat(2), vec!["MSH|^~\\&|\r\nMSA|AA|1\r\n"; 2]),
            ("no last end", one.trim_end().into(), vec![one.trim_end()]),
            ("text before", format!("hello\r{one}"), vec!["hello\r", one]),
            ("text behind", format!("{one}BTS\rhello"), vec![one, "hello"]),
            ("names that begin alike", "MSH|\rMSHX|\rBTSX\r".into(), vec!["MSH|\rMSHX|\rBTSX\r"]),
        ] {
            let (mut found, mut from) = (Vec::new(), 0);
            while let Some(at) = next_acknowledgment(content.as_bytes(), from) {
                from = at.end;
                found.push(&content[at]);
            }
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn what_is_no_acknowledgment_is_doubt() {
        let headers = headers("1 2", ORIGINAL);
        for content in ["hello", "\x06", "\x15", "MSH|^~\\&|\r", "MSH|^~\\&|\rMSA|AA|1\rBTS\rhello"] {
            let taken = take(&mut waiting(&headers, true, 1000), content.as_bytes());
            assert!(matches!(taken, Err(ErrorKind::MalformedAck(_))), "{content}: {taken:?}");
        }
    }

    #[test]
    fn a_long_answer_is_taken_in_parts() {
        let ids: Vec<String> = (0..3 * STRIDE).map(|number| format!("M{number}")).collect();
        let ids = ids.join(" ");
        let headers = headers(&ids, ORIGINAL);
        let answers: String = ids.split(' ').map(|id| acknowledgment(&format!("AA:{id}"))).collect();
        let mut batch = waiting(&headers, true, usize::MAX);
        let answer = Answer { content: answers.as_bytes(), frame: None, from: 0, may_be_earlier: true, is_alone: true };
        let step = batch.accept(answer, &mut |_, _| false).unwrap();
        assert!(matches!(step, Effect::Partly(next) if next < answers.len() / 2), "{step:?}");
        let mut batch = waiting(&headers, true, usize::MAX);
        assert_eq!(take(&mut batch, answers.as_bytes()).unwrap(), Effect::Ends);
        let mut decided = Vec::new();
        batch.decided(|message| decided.push(String::from_utf8_lossy(message.control_id).into_owned()));
        assert_eq!(decided.join(" "), ids + " B F");
    }

    #[test]
    fn what_is_kept_is_bounded_in_sum() {
        let padded =
            |written: &str, size: usize| format!("{:x<size$}", acknowledgment(written).trim_end().to_owned() + "|");
        for (name, answers, expected) in [
            ("as much as fits", &[("CA:1", 400), ("CA:2", 600)][..], "ok"),
            ("more", &[("CA:1", 400), ("CA:2", 601)], "too large"),
            ("a commit accept makes room for an acceptance", &[("CA:1", 900), ("AA:1", 900), ("AA:2", 100)], "ok"),
            ("and for a refusal", &[("CA:1", 900), ("AE:1", 900)], "ok"),
            ("not for another's", &[("CA:1", 900), ("AA:2", 101)], "too large"),
            ("one for all counts once", &[("AA:B", 1000)], "ok"),
            ("commit accepts of what is committed are not kept", &[("CA:B", 900), ("CA:1", 900), ("CA:B", 900)], "ok"),
        ] {
            let headers = headers("1 2", BOTH);
            let mut batch = waiting(&headers, true, 1000);
            let mut found = "ok";
            for (written, size) in answers {
                match take(&mut batch, padded(written, *size).as_bytes()) {
                    Ok(_) => assert!(batch.kept() <= 1000, "{name}"),
                    Err(ErrorKind::AckTooLarge { limit: 1000 }) => found = "too large",
                    other => panic!("{name}: {other:?}"),
                }
            }
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn an_acknowledgment_of_one_batch_of_a_file_is_for_the_messages_in_it() {
        for (asked, answers, expected) in [
            (ORIGINAL, "AA:B AE:C AR:4", "..! AA AA AE AR, committed"),
            (ORIGINAL, "AE:B AA:C AA:4", "..! AE AE AA AA, committed"),
            (ORIGINAL, "AA:B", ". AA AA ? ?"),
            (ORIGINAL, "AA:B,AE:C,AA:4", "! AA AA AE AA, committed"),
            (ORIGINAL, "AA:B AE:F", ".! AA AA AE AE, committed"),
            (ORIGINAL, "AE:1 AA:B AA:F", "..! AE AA AA AA, committed"),
            (ORIGINAL, "AA:B AA:B AA:F", "..! AA AA AA AA, committed"),
            (ORIGINAL, "AA:F,AE:C", "contradictory ? ? ? ?, committed"),
            (ORIGINAL, "AE:C,AA:F", "contradictory ? ? ? ?"),
            (ORIGINAL, "AA:B,AE:B", "contradictory ? ? ? ?"),
            (COMMIT, "CA:B", ". CA CA ? ?, commits awaited"),
            (COMMIT, "CA:B CA:F", ".! CA CA CA CA, committed"),
            (BOTH, "CA:B AE:C", "+. c? c? AE ?, commits awaited"),
            (BOTH, "CA:B CA:F AA:F", "++! AA AA AA AA, committed"),
            (BOTH, "CA:B CA:C CA:4 AE:F", "+++! cAE cAE cAE cAE, committed"),
        ] {
            let headers = headers("1 2 3 4", asked);
            let rules = AckRules { mode: AckMode::FromHeader, verify: true, charset: Charset::UTF_8, max_kept: 10_000 };
            let wholes = [(&b"F"[..], 0..4), (b"B", 0..2), (b"C", 2..3)].into_iter();
            let found = play_batch(Batched::new(wholes, &headers, rules), answers);
            assert_eq!(found, expected, "{asked:?} {answers}");
        }
    }

    #[test]
    fn what_may_come_after_the_end() {
        for (asked, answers, expected) in [
            (ORIGINAL, "AA:B", "1 Answered, 2 Answered, B Answered, F Answered"),
            (COMMIT, "CA:1,CE:2", "1 Answered, 2 Answered, B Answered, F Answered"),
            (ORIGINAL, "CA:1,AE:2", "1 ApplicationAck, 2 Answered, B ApplicationAck, F ApplicationAck"),
        ] {
            let headers = headers("1 2", asked);
            let rules = AckRules { mode: AckMode::Commit, verify: true, charset: Charset::UTF_8, max_kept: 1000 };
            let mut batch = Batched::new(wholes(2), &headers, rules);
            let content: String = answers.split(',').map(acknowledgment).collect();
            assert_eq!(take(&mut batch, content.as_bytes()).unwrap(), Effect::Ends);
            let mut found = Vec::new();
            batch.decided(|Decided { control_id, after, .. }| {
                found.push(format!("{} {after:?}", String::from_utf8_lossy(control_id)));
            });
            assert_eq!(found.join(", "), expected, "{answers}");
        }
    }
}
