//! The settings of a client, and the checks of what is to be sent before anything is opened.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use memchr::memchr2;

use crate::deadline::Deadline;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind};
use crate::event::{Event, Monitor};
use crate::exchange::AckRules;
use crate::frame::Framing;
use crate::hl7::MessageError;
use crate::hl7::ack::AckMode;
use crate::hl7::batch::Batch;
use crate::hl7::charset::Charset;
use crate::hl7::header::{self, Header};
use crate::hl7::messages;
use crate::net::StreamOptions;

/// The settings that a client and all its connections share.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) endpoint: Endpoint,
    pub(crate) stream: StreamOptions,
    pub(crate) timeout: Duration,
    pub(crate) framing: Framing,
    pub(crate) max_ack_size: usize,
    pub(crate) max_message_size: usize,
    pub(crate) verify_control_id: bool,
    pub(crate) allow_repeated_control_ids: bool,
    pub(crate) charset: Charset,
    pub(crate) release2: bool,
    pub(crate) ack_policy: AckPolicy,
    pub(crate) monitor: Monitor,
    /// Whether a warning was logged of a message whose segments end in line feeds.
    pub(crate) has_warned: AtomicBool,
}

/// Which acknowledgment a call waits for, and how long for the application's. A call may have a
/// policy of its own.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AckPolicy {
    pub(crate) mode: AckMode,
    /// The limit of waiting for the application acknowledgment after a commit accept. `None`: the
    /// limit of the call.
    pub(crate) application_timeout: Option<Duration>,
}

impl Settings {
    pub(crate) fn ack_rules(&self, policy: &AckPolicy) -> AckRules {
        AckRules {
            mode: policy.mode,
            verify: self.verify_control_id,
            charset: self.charset,
            max_kept: self.max_ack_size,
        }
    }

    /// Passes on a call's result. An error gets the endpoint and the control ID of the payload, and
    /// is reported.
    pub(crate) fn conclude<T>(
        &self,
        result: Result<T, Error>,
        payload: Option<&[u8]>,
        deadline: &Deadline,
    ) -> Result<T, Error> {
        result.map_err(|error| {
            let error = error.about(payload.and_then(header::control_id)).at(&self.endpoint);
            self.monitor.emit(&Event::Failed { endpoint: &self.endpoint, error: &error, elapsed: deadline.elapsed() });
            error
        })
    }

    /// Whether a payload can be sent at all.
    pub(crate) fn check_payload(&self, payload: &[u8]) -> Result<(), Error> {
        let (size, limit) = (payload.len(), self.max_message_size);
        let checked = if size > limit {
            Err(MessageError::TooLarge { size, limit })
        } else {
            self.framing.check(payload).map_err(MessageError::from)
        };
        checked.map_err(invalid)
    }

    /// Whether a message can be sent and its acknowledgment awaited.
    pub(crate) fn check_message<'m>(&self, message: &'m [u8], mode: AckMode) -> Result<Header<'m>, Error> {
        self.check_payload(message)?;
        match Header::read(message) {
            Ok(header) if mode == AckMode::FromHeader && header.asked.nothing() => Err(MessageError::NoAckRequested),
            read => read,
        }
        .inspect(|header| self.warn_of_line_feeds(message, header.control_id))
        .map_err(invalid)
    }

    /// Whether every line of a message from a file is a segment.
    pub(crate) fn check_segments(&self, message: &[u8]) -> Result<(), Error> {
        messages::check_segments(message).map_err(invalid)
    }

    /// Warns in the log of the first message whose first segment ends in a line feed alone.
    fn warn_of_line_feeds(&self, message: &[u8], control_id: &[u8]) {
        let ends_in_line_feed = memchr2(b'\r', b'\n', message).is_some_and(|end| message[end] == b'\n');
        if ends_in_line_feed && !self.has_warned.swap(true, Ordering::Relaxed) {
            log::warn!(
                "{}: the segments of message {:?} end in line feeds, where HL7 asks for Carriage Returns; it is sent \
                 as it is (messages::split corrects that; warned about once for each client)",
                self.endpoint,
                String::from_utf8_lossy(control_id),
            );
        }
    }

    /// Checks a batch, and that no control ID stands twice in it. Returns the headers in order.
    pub(crate) fn check_batch<'b>(&self, batch: &'b Batch, mode: AckMode) -> Result<Vec<Header<'b>>, Error> {
        let headers = batch
            .messages()
            .map(|message| self.check_message(message, mode))
            .collect::<Result<Vec<Header<'_>>, Error>>()?;
        if headers.is_empty() {
            return Err(invalid(MessageError::Empty));
        }
        let mut seen = HashSet::with_capacity(headers.len() + 1);
        let mut control_ids =
            headers.iter().map(|header| header.control_id).chain(batch.wholes().map(|(control_id, _)| control_id));
        if control_ids.any(|control_id| !seen.insert(control_id)) {
            return Err(invalid(MessageError::RepeatedControlId));
        }
        Ok(headers)
    }
}

fn invalid(error: MessageError) -> Error {
    Error::before_sending(ErrorKind::InvalidMessage(error))
}
