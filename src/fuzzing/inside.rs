//! Rooms that have no door of their own.

use crate::ack::{Ack, AckMode};
use crate::charset::Charset;
use crate::error::{ErrorKind, MessageError, Phase};
use crate::fuzzing::oracle;
use crate::outcome::{Outcome, Outcomes, Rules, Verdict};

/// The header as the client reads it.
pub fn header(message: &[u8]) -> Result<oracle::Header, MessageError> {
    crate::header::Header::read(message).map(|header| oracle::Header {
        control_id: header.control_id.to_vec(),
        commit: header.asked.commit,
        application: header.asked.application,
    })
}

/// How an exchange of a message goes on with each of the answers, until it ends: what each does, and the phase after it.
pub fn outcome(
    message: &[u8],
    mode: AckMode,
    verify: bool,
    answers: &[Vec<u8>],
) -> Result<Vec<(Result<Option<Ack>, ErrorKind>, Phase)>, MessageError> {
    let header = crate::header::Header::read(message)?;
    let mut outcome = Outcome::of(&header, Rules { mode, verify, charset: Charset::UTF_8 });
    let mut steps = Vec::new();
    for answer in answers {
        let step = match outcome.take(answer) {
            Ok(Verdict::GoesOn) => Ok(None),
            Ok(Verdict::Ends(ack)) => Ok(Some(ack)),
            Err(kind) => Err(kind),
        };
        let ends = !matches!(step, Ok(None));
        steps.push((step, outcome.phase()));
        if ends {
            break;
        }
    }
    Ok(steps)
}

/// What becomes of each message of a batch, in its order, after all the answers or the first that cannot be taken.
pub fn outcomes(
    batch: &[u8],
    messages: &[Vec<u8>],
    mode: AckMode,
    verify: bool,
    answers: &[Vec<u8>],
) -> Result<(Vec<Option<Result<Ack, ErrorKind>>>, bool), MessageError> {
    let headers = messages.iter().map(|message| crate::header::Header::read(message)).collect::<Result<Vec<_>, _>>()?;
    let rules = Rules { mode, verify, charset: Charset::UTF_8 };
    let mut outcomes = Outcomes::of([batch].into_iter(), &headers, rules);
    for answer in answers {
        if outcomes.are_complete() || outcomes.take(answer).is_err() {
            break;
        }
    }
    let complete = outcomes.are_complete();
    Ok((outcomes.into_each().map(|(_, verdict)| verdict).collect(), complete))
}
