//! The application acknowledgments that a connection still owes: of messages whose exchange a commit accept has ended.

use std::collections::VecDeque;

use crate::ack::Layout;
use crate::charset::Charset;
use crate::event::{Event, Monitor};
use crate::frame::Framing;
use crate::inbox::Inbox;

/// So many are remembered. What comes for one that was forgotten belongs to no exchange.
const MOST: usize = 64;

/// No control ID is longer in practice; HL7 v2.9 allows 199 characters.
const MAX_LENGTH: usize = 1024;

/// The control IDs of those messages, the oldest first.
#[derive(Debug)]
pub(crate) struct Owed {
    control_ids: VecDeque<Vec<u8>>,
    charset: Charset,
}

impl Owed {
    /// Nothing so far. The views of what comes are in this character set if it names no other.
    pub(crate) fn nothing(charset: Charset) -> Self {
        Owed { control_ids: VecDeque::new(), charset }
    }

    pub(crate) fn add(&mut self, control_id: &[u8]) {
        if control_id.len() > MAX_LENGTH {
            return;
        }
        if self.control_ids.len() == MOST {
            self.control_ids.pop_front();
        }
        self.control_ids.push_back(control_id.to_vec());
    }

    /// Whether the acknowledgment of an earlier message with this control ID may still come.
    pub(crate) fn holds(&self, control_id: &[u8]) -> bool {
        self.control_ids.iter().any(|owed| owed == control_id)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.control_ids.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.control_ids.len()
    }

    /// Whether an answer is an acknowledgment owed to an earlier exchange. If so, it is told of, and owed no more.
    pub(crate) fn take(&mut self, answer: &[u8], monitor: &Monitor) -> bool {
        // As good as always.
        if self.control_ids.is_empty() {
            return false;
        }
        let Ok(layout) = Layout::read(answer) else { return false };
        let control_id = layout.control_id(answer);
        if layout.code().is_commit() {
            return false;
        }
        let Some(place) = self.control_ids.iter().position(|owed| owed == control_id) else { return false };
        self.control_ids.remove(place);
        let ack = layout.to_ack(answer).in_charset(self.charset);
        monitor.tell(&Event::LateAck { control_id: &ack.control_id(), code: ack.code(), ack: &ack });
        true
    }

    /// Takes what has come outside of an exchange. How many bytes of it belong to none; the beginning of what may be owed
    /// stays in the inbox.
    pub(crate) fn settle(&mut self, inbox: &mut Inbox, monitor: &Monitor) -> usize {
        loop {
            let bytes = inbox.rest().len();
            if Framing::is_filler(inbox.rest()) {
                return 0;
            }
            if self.control_ids.is_empty() {
                return bytes;
            }
            match inbox.frame() {
                Ok(None) => return 0,
                Ok(Some(place)) if self.take(inbox.content(place.clone()), monitor) => {}
                Ok(Some(_)) | Err(_) => return bytes,
            }
        }
    }
}
