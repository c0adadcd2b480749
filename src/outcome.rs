//! Which acknowledgment ends an exchange, and how: acknowledgments in, verdict out.

use crate::ack::{Ack, AckCode, AckParseError, Layout};
use crate::error::{ErrorKind, Phase};
use crate::header::{Asked, Header};

/// The state of one exchange.
#[derive(Debug)]
pub(crate) struct Outcome<'m> {
    /// The control ID that an acknowledgment must carry; `None` if any will do.
    control_id: Option<&'m [u8]>,
    asked: Asked,
    commit: Option<Ack>,
}

impl<'m> Outcome<'m> {
    pub(crate) fn of(header: &Header<'m>, verify_control_id: bool) -> Self {
        Outcome { control_id: verify_control_id.then_some(header.control_id), asked: header.asked, commit: None }
    }

    /// Takes the next answer; the acknowledgment that ends the exchange well, or `None` if another is due.
    pub(crate) fn take(&mut self, answer: &[u8]) -> Result<Option<Ack>, ErrorKind> {
        let layout = Layout::read(answer).map_err(ErrorKind::MalformedAck)?;
        if let Some(expected) = self.control_id {
            match layout.control_id(answer) {
                b"" => return Err(ErrorKind::MalformedAck(AckParseError::NoControlId)),
                other if other != expected => return Err(ErrorKind::UnmatchedAck(layout.to_ack(answer))),
                _ => {}
            }
        }
        let ack = layout.to_ack(answer);
        match layout.code() {
            AckCode::CommitAccept if self.asked.application => {
                self.commit = Some(ack);
                Ok(None)
            }
            code if code.is_accept() => Ok(Some(ack)),
            _ => Err(ErrorKind::Nak(ack)),
        }
    }

    /// What is being waited for.
    pub(crate) fn phase(&self) -> Phase {
        if self.asked.commit && self.commit.is_none() { Phase::CommitAck } else { Phase::ApplicationAck }
    }

    /// The commit accept that has come so far.
    pub(crate) fn into_commit(self) -> Option<Ack> {
        self.commit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGINAL: Asked = Asked { commit: false, application: true };
    const COMMIT: Asked = Asked { commit: true, application: false };
    const APPLICATION: Asked = Asked { commit: false, application: true };
    const BOTH: Asked = Asked { commit: true, application: true };

    /// Plays acknowledgments, written `code` or `code:control ID`, and tells the verdict.
    fn play(asked: Asked, verify: bool, answers: &str) -> String {
        let header = Header { control_id: b"1", asked };
        let mut outcome = Outcome::of(&header, verify);
        let mut verdict = String::from("waits");
        for answer in answers.split_whitespace() {
            let (code, id) = answer.split_once(':').unwrap_or((answer, "1"));
            verdict = match outcome.take(format!("MSH|^~\\&|\rMSA|{code}|{id}\r").as_bytes()) {
                Ok(None) => continue,
                Ok(Some(ack)) => format!("done {}", ack.code()),
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
        for (asked, answers, expected) in [
            (ORIGINAL, "AA", "done AA"),
            (ORIGINAL, "AE", "refused AE"),
            (ORIGINAL, "AR", "refused AR"),
            (ORIGINAL, "CE", "refused CE"),
            (ORIGINAL, "CR", "refused CR"),
            (ORIGINAL, "CA", "waits, committed"),
            (ORIGINAL, "CA AA", "done AA, committed"),
            (ORIGINAL, "CA AE", "refused AE, committed"),
            (ORIGINAL, "CA CA AA", "done AA, committed"),
            (ORIGINAL, "AA:2", "unmatched 2"),
            (ORIGINAL, "AE:2", "unmatched 2"),
            (ORIGINAL, "AA:11", "unmatched 11"),
            (ORIGINAL, "CA AA:2", "unmatched 2, committed"),
            (ORIGINAL, "CA:2", "unmatched 2"),
            (ORIGINAL, "AA:", "malformed NoControlId"),
            (ORIGINAL, "CA XX", "malformed UnknownCode, committed"),
            (COMMIT, "CA", "done CA"),
            (COMMIT, "CE", "refused CE"),
            (COMMIT, "CR", "refused CR"),
            (COMMIT, "AA", "done AA"),
            (COMMIT, "AE", "refused AE"),
            (APPLICATION, "AA", "done AA"),
            (APPLICATION, "CA AR", "refused AR, committed"),
            (BOTH, "CA", "waits, committed"),
            (BOTH, "CA AA", "done AA, committed"),
            (BOTH, "AA", "done AA"),
            (BOTH, "CE", "refused CE"),
            (BOTH, "CA CE", "refused CE, committed"),
        ] {
            assert_eq!(play(asked, true, answers), expected, "{asked:?} {answers}");
        }
    }

    #[test]
    fn without_verification_any_control_id_will_do() {
        assert_eq!(play(ORIGINAL, false, "AA:2"), "done AA");
        assert_eq!(play(ORIGINAL, false, "AA:"), "done AA");
        assert_eq!(play(ORIGINAL, false, "AE:2"), "refused AE");
        assert_eq!(play(ORIGINAL, false, "XX:1"), "malformed UnknownCode");
    }

    #[test]
    fn the_phase_names_what_is_awaited() {
        for (asked, before, after) in [
            (ORIGINAL, Phase::ApplicationAck, Phase::ApplicationAck),
            (APPLICATION, Phase::ApplicationAck, Phase::ApplicationAck),
            (BOTH, Phase::CommitAck, Phase::ApplicationAck),
        ] {
            let mut outcome = Outcome::of(&Header { control_id: b"1", asked }, true);
            assert_eq!(outcome.phase(), before);
            assert!(matches!(outcome.take(b"MSH|^~\\&|\rMSA|CA|1\r"), Ok(None)));
            assert_eq!(outcome.phase(), after);
        }
        assert_eq!(Outcome::of(&Header { control_id: b"1", asked: COMMIT }, true).phase(), Phase::CommitAck);
    }
}
