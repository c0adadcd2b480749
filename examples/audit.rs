//! Writes an audit trail: one line of JSON for each message, with its control ID, its receiver and
//! what became of it, and none of its content.
//!
//! Starts a receiver that refuses every third message, and sends it some of invented people.

use std::error::Error;

use mllp_client::testing::{Receiver, Step};
use mllp_client::{AckCode, Client, Event};

fn main() -> Result<(), Box<dyn Error>> {
    let receiver = Receiver::answering(|message| {
        let id = mllp_client::messages::control_id(message).unwrap_or_default();
        if id.ends_with('3') { Step::refuse(AckCode::ApplicationError, "on purpose") } else { Step::accept() }
    })?;
    let client = Client::builder(&receiver.endpoint()).on_event(audit).build()?;
    for number in 1..=4 {
        // The observer has written what failed.
        let _ = client.send(format!(
            "MSH|^~\\&|LAB|NORTH|EHR|NORTH|20260101120000||ORU^R01|MSG{number}|P|2.5\rPID|1||4711^^^NORTH||EXAMPLE^EMIL\r"
        ));
    }
    Ok(())
}

/// One line for each end of a message. It is called in the middle of the call, so it does no more.
fn audit(event: &Event<'_>) {
    match event {
        Event::Acknowledged { endpoint, control_id, code, .. } => {
            println!(
                "{{\"receiver\":{},\"message\":{},\"ack\":\"{code}\"}}",
                json(&endpoint.to_string()),
                json(control_id)
            );
        }
        Event::Failed { endpoint, error, .. } => println!(
            "{{\"receiver\":{},\"message\":{},\"failed\":{},\"delivery\":\"{:?}\",\"advice\":\"{:?}\"}}",
            json(&endpoint.to_string()),
            error.control_id().map_or("null".to_owned(), json),
            json(&error.to_string()),
            error.delivery(),
            error.advice(),
        ),
        _ => {}
    }
}

/// A JSON string (RFC 8259, section 7).
fn json(text: &str) -> String {
    let escaped = |character: char| match character {
        '"' | '\\' => format!("\\{character}"),
        '\0'..='\x1F' => format!("\\u{:04x}", u32::from(character)),
        _ => character.to_string(),
    };
    format!("\"{}\"", text.chars().map(escaped).collect::<String>())
}
