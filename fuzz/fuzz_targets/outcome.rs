//! Any sequence of acknowledgments does to an exchange, or to the exchanges of a batch, what the rules say.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mllp_client::fuzzing::inside;
use mllp_client::fuzzing::oracle::{self, Meaning};
use mllp_client::{AckCode, AckMode, AckParseError, ErrorKind, Phase};

#[derive(Arbitrary, Debug)]
struct Plan {
    mode: u8,
    verify: bool,
    asks: (u8, u8),
    answers: Vec<Answer>,
    batch: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
enum Answer {
    Acknowledgment { code: u8, control_id: u8 },
    Raw(Vec<u8>),
}

fuzz_target!(|plan: Plan| {
    let mode = [AckMode::FromHeader, AckMode::Application, AckMode::Commit][usize::from(plan.mode % 3)];
    let answers: Vec<Vec<u8>> = plan
        .answers
        .iter()
        .map(|answer| match answer {
            Answer::Acknowledgment { code, control_id } => acknowledgment(*code, *control_id),
            Answer::Raw(raw) => raw.clone(),
        })
        .filter(|answer| oracle::is_one(answer))
        .collect();
    alone(&message(1, plan.asks), mode, plan.verify, &answers);
    // No control ID stands twice.
    let mut control_ids: Vec<_> = plan.batch.iter().map(|control_id| control_id % 4).collect();
    let mut seen = [false; 4];
    control_ids.retain(|&control_id| !std::mem::replace(&mut seen[usize::from(control_id)], true));
    let messages: Vec<_> = control_ids.iter().map(|&control_id| message(control_id, plan.asks)).collect();
    if messages.is_empty() {
        return;
    }
    together(&messages, mode, plan.verify, &plan.answers);
});

fn alone(message: &[u8], mode: AckMode, verify: bool, answers: &[Vec<u8>]) {
    let header = oracle::header(message).unwrap();
    let steps = inside::outcome(message, mode, verify, answers).unwrap();
    let mut committed = false;
    let mut ended = false;
    for (answer, (step, phase)) in answers.iter().zip(&steps) {
        assert!(!ended);
        let expected = oracle::acknowledgment(answer).and_then(|ack| {
            let nameless = verify && ack.control_id.is_empty();
            let unmatched = verify && !nameless && ack.control_id != header.control_id;
            match () {
                () if nameless && ack.code.is_accept() => Err(AckParseError::NoControlId),
                () if !unmatched && oracle::is_contradicted(answer) => Err(AckParseError::Contradictory),
                () => Ok(ack),
            }
        });
        let meaning = expected.as_ref().map(|ack| oracle::meaning(&header, mode, verify, ack.code, &ack.control_id));
        match (step, meaning) {
            (Ok(None), Ok(Meaning::GoesOn)) => committed = true,
            (Ok(Some(ack)), Ok(Meaning::Ends)) => assert!(ack.code().is_accept() && ack.raw() == answer),
            (Err(ErrorKind::Nak(ack)), Ok(Meaning::Refused)) => assert!(!ack.code().is_accept() && ack.raw() == answer),
            (Err(ErrorKind::UnmatchedAck(ack)), Ok(Meaning::Doubt)) => assert!(ack.raw() == answer),
            (Err(ErrorKind::MalformedAck(error)), Err(expected)) => assert_eq!(error, expected),
            (step, meaning) => panic!("{step:?}, and not {meaning:?}"),
        }
        ended = !matches!(step, Ok(None));
        let commit_is_awaited = mode == AckMode::Commit || header.commit;
        let expected = if commit_is_awaited && !committed { Phase::CommitAck } else { Phase::ApplicationAck };
        assert!(ended || *phase == expected, "{phase:?}, and not {expected:?}");
    }
    assert!(ended || steps.len() == answers.len());
}

fn together(messages: &[Vec<u8>], mode: AckMode, verify: bool, answers: &[Answer]) {
    let headers: Vec<_> = messages.iter().map(|message| oracle::header(message).unwrap()).collect();
    let mut expected: Vec<Option<(bool, AckCode)>> = vec![None; messages.len()];
    let mut taken = Vec::new();
    for answer in answers {
        let Answer::Acknowledgment { code, control_id } = answer else { break };
        let raw = acknowledgment(*code, *control_id);
        let ack = oracle::acknowledgment(&raw).unwrap();
        taken.push(raw);
        if expected.iter().all(Option::is_some) {
            break;
        }
        let unanswered =
            |expected: &[Option<_>]| (0..messages.len()).filter(|&index| expected[index].is_none()).collect::<Vec<_>>();
        let named = |index: &usize| headers[*index].control_id == ack.control_id;
        let open = unanswered(&expected);
        let meant = if let Some(first) = open.iter().copied().find(named) {
            vec![first]
        } else if ack.control_id == b"W" && !(0..messages.len()).any(|index| named(&index)) {
            open
        } else if verify && ack.control_id.is_empty() && messages.len() == 1 && !ack.code.is_accept() {
            vec![0]
        } else if verify {
            break;
        } else {
            open.into_iter().take(1).collect()
        };
        for index in meant {
            // That it is meant for this one is decided.
            match oracle::meaning(&headers[index], mode, false, ack.code, &ack.control_id) {
                Meaning::GoesOn => {}
                Meaning::Ends => expected[index] = Some((true, ack.code)),
                Meaning::Refused | Meaning::Doubt => expected[index] = Some((false, ack.code)),
            }
        }
    }
    let (verdicts, complete) = inside::outcomes(b"W", messages, mode, verify, &taken).unwrap();
    let found: Vec<_> = verdicts
        .iter()
        .map(|verdict| match verdict {
            Some(Ok(ack)) => Some((true, ack.code())),
            Some(Err(ErrorKind::Nak(ack))) => Some((false, ack.code())),
            Some(Err(kind)) => panic!("{kind:?}"),
            None => None,
        })
        .collect();
    assert_eq!(found, expected);
    assert_eq!(complete, expected.iter().all(Option::is_some));
}

fn message(control_id: u8, (accept, application): (u8, u8)) -> Vec<u8> {
    let condition = |choice: u8| ["", "AL", "NE", "ER", "SU", "\"\""][usize::from(choice % 6)];
    let (accept, application) = (condition(accept), condition(application));
    format!("MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|M{control_id}|P|2.5|||{accept}|{application}\rPID|1\r")
        .into_bytes()
}

fn acknowledgment(code: u8, control_id: u8) -> Vec<u8> {
    let code = ["AA", "AE", "AR", "CA", "CE", "CR"][usize::from(code % 6)];
    // Those of messages, what is almost one of them, the batch's own, and none.
    let control_id = ["M0", "M1", "M2", "M3", "M", "M1x", "W", ""][usize::from(control_id % 8)];
    format!("MSH|^~\\&|EHR|H|LAB|H|20260101||ACK|1|P|2.5\rMSA|{code}|{control_id}\r").into_bytes()
}
