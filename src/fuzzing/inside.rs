//! Rooms that have no door of their own.

use crate::error::{ErrorKind, Phase};
use crate::exchange::{AckRules, Answer, Awaited, Batched, Effect, Message};
use crate::fuzzing::oracle;
use crate::hl7::MessageError;
use crate::hl7::ack::{Ack, AckMode};
use crate::hl7::charset::Charset;

/// The header as the client reads it.
pub fn header(message: &[u8]) -> Result<oracle::NaiveHeader, MessageError> {
    crate::hl7::header::Header::read(message).map(|header| oracle::NaiveHeader {
        control_id: header.control_id.to_vec(),
        commit: header.asked.commit,
        application: header.asked.application,
    })
}

fn rules(mode: AckMode, verify: bool) -> AckRules {
    AckRules { mode, verify, charset: Charset::UTF_8, max_kept: usize::MAX }
}

/// Takes a whole answer, where nothing else is outstanding.
fn take(awaited: &mut impl Awaited, content: &[u8]) -> Result<Effect, ErrorKind> {
    let mut from = 0;
    loop {
        match awaited
            .accept(Answer { content, frame: None, from, may_be_earlier: false, is_alone: true }, &mut |_, _| false)?
        {
            Effect::Partly(next) => from = next,
            step => return Ok(step),
        }
    }
}

/// How an exchange of a message goes on with each of the answers, until it ends: what each does,
/// and the phase after it.
pub fn outcome(
    message: &[u8],
    mode: AckMode,
    verify: bool,
    answers: &[Vec<u8>],
) -> Result<Vec<(Result<Option<Ack>, ErrorKind>, Phase)>, MessageError> {
    let header = crate::hl7::header::Header::read(message)?;
    let mut awaited = Message::new(message, &header, rules(mode, verify));
    let mut steps = Vec::new();
    for answer in answers {
        let step = take(&mut awaited, answer);
        let phase = awaited.phase();
        match step {
            Ok(Effect::Ends) => {
                let end = awaited.end(None).map(Some).map_err(|error| error.kind().clone());
                steps.push((end, phase));
                break;
            }
            Ok(_) => steps.push((Ok(None), phase)),
            Err(kind) => {
                steps.push((Err(kind), phase));
                break;
            }
        }
    }
    Ok(steps)
}

/// The end of each message of a batch, in order, after all answers or after the first that cannot
/// be taken.
pub fn outcomes(
    batch: &[u8],
    messages: &[Vec<u8>],
    mode: AckMode,
    verify: bool,
    answers: &[Vec<u8>],
) -> Result<(Vec<Option<Result<Ack, ErrorKind>>>, bool), MessageError> {
    let headers =
        messages.iter().map(|message| crate::hl7::header::Header::read(message)).collect::<Result<Vec<_>, _>>()?;
    let mut awaited = Batched::new([(batch, 0..messages.len())].into_iter(), &headers, rules(mode, verify));
    let mut complete = false;
    for answer in answers {
        match take(&mut awaited, answer) {
            Ok(Effect::Ends) => complete = true,
            Ok(_) => continue,
            Err(_) => {}
        }
        break;
    }
    let ends = awaited.end(None).unwrap_or_default();
    let verdict = |end: Result<Ack, crate::error::Error>| match end {
        Ok(ack) => Some(Ok(ack)),
        Err(error) if error.nak().is_some() => Some(Err(error.kind().clone())),
        Err(_) => None,
    };
    Ok((ends.into_iter().map(verdict).collect(), complete))
}
