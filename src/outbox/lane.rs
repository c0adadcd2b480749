//! Which messages of a destination keep their order among themselves.

#[cfg(any(feature = "redis", feature = "sqlite"))]
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::hl7::header::{absent_if_null, holds_many};
use crate::hl7::segment::{Delimiters, segments, without_mark};

/// The lane of a message: the messages of one lane are sent in the order in which they were pushed,
/// those of different lanes at the same time, as far as the forwarder has
/// [connections for it](super::ForwarderBuilder::lanes). `Debug` does not show a key.
#[derive(Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Lane {
    /// The lane of all messages of the destination that have no key.
    Destination,
    /// The lane of the messages that have this key. A storage keeps a digest of it.
    Key(Box<[u8]>),
    /// Beside all lanes: the message is sent when all that were pushed before it have left the
    /// queue, and those pushed after it wait until it has left.
    Barrier,
}

impl Lane {
    /// The lane of the messages with this key.
    pub fn key(key: impl AsRef<[u8]>) -> Lane {
        Lane::Key(key.as_ref().into())
    }

    /// The lane as storages keep it: its digest, by which messages of one key are found together.
    /// `.` for the destination's own, `!` for a barrier.
    #[cfg(any(feature = "redis", feature = "sqlite"))]
    fn digest(&self) -> String {
        use sha2::{Digest, Sha256};
        match self {
            Lane::Destination => ".".to_owned(),
            Lane::Barrier => "!".to_owned(),
            Lane::Key(key) => Sha256::digest(key).iter().take(16).map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Lane::Destination => "Destination",
            Lane::Key(_) => "Key(..)",
            Lane::Barrier => "Barrier",
        })
    }
}

/// The rule by which an outbox chooses the [`Lane`] of a message that is pushed without one
/// ([`PushOptions::lane`](super::PushOptions::lane)).
///
/// # Examples
///
/// ```
/// use mllp_client::outbox::{Lane, LaneKey, MemoryOutbox};
///
/// // In order for each device: MSH-3, the sending application.
/// let by_device = LaneKey::by("device", |message| match message.split(|&byte| byte == b'|').nth(2) {
///     Some(device) if !device.is_empty() => Lane::key(device),
///     _ => Lane::Destination,
/// });
/// let outbox = MemoryOutbox::new(1_000, 64 * 1024 * 1024).lane_key(by_device).lanes(8);
/// ```
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum LaneKey {
    /// One order for all messages of the destination.
    #[default]
    Destination,
    /// The patient: the first identifier in PID-3 that is not empty (PID-3.1), with its assigning
    /// authority (PID-3.4). A message without any identifier is in the destination's lane; an
    /// identifier without an authority is a key of its own.
    ///
    /// A message that is about two patients is a barrier: one with a segment MRG (merges and
    /// changes of identifiers, such as ADT^A40), or with PID segments of different patients
    /// (ADT^A24 and A37, which link and unlink; ADT^A17, which swaps beds; results of several
    /// patients in one message).
    PatientId,
    /// A rule of your own, from [`LaneKey::by`].
    By(LaneRule),
}

/// A rule of your own, in [`LaneKey::By`].
#[derive(Clone)]
pub struct LaneRule {
    name: Arc<str>,
    rule: Arc<dyn Fn(&[u8]) -> Lane + Send + Sync>,
}

impl LaneKey {
    /// A rule of your own. It has to say the same of the same message each time. A storage keeps
    /// its name; give it a new one whenever the function changes, so that the storage notices.
    ///
    /// It is called by the thread that pushes, before anything is stored, and gets the bytes as
    /// they are pushed. It is not asked about a batch, which is in the destination's lane.
    pub fn by(name: &str, rule: impl Fn(&[u8]) -> Lane + Send + Sync + 'static) -> LaneKey {
        LaneKey::By(LaneRule { name: name.into(), rule: Arc::new(rule) })
    }

    /// The lane of a message.
    pub fn lane_of(&self, message: &[u8]) -> Lane {
        match self {
            LaneKey::Destination => Lane::Destination,
            _ if holds_many(without_mark(message)) => Lane::Destination,
            LaneKey::PatientId => lane_of_patient(without_mark(message)),
            LaneKey::By(LaneRule { rule, .. }) => rule(message),
        }
    }

    /// The name by which a storage knows the rule.
    #[cfg(any(feature = "redis", feature = "sqlite"))]
    pub(super) fn name(&self) -> Cow<'_, str> {
        match self {
            LaneKey::Destination => DESTINATION.into(),
            LaneKey::PatientId => PATIENT_ID.into(),
            LaneKey::By(LaneRule { name, .. }) => format!("by {name}").into(),
        }
    }
}

/// The names by which storages know these rules.
#[cfg(any(feature = "redis", feature = "sqlite"))]
const DESTINATION: &str = "destination";
#[cfg(any(feature = "redis", feature = "sqlite"))]
const PATIENT_ID: &str = "patient-id";

impl fmt::Debug for LaneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LaneKey::Destination => f.write_str("Destination"),
            LaneKey::PatientId => f.write_str("PatientId"),
            LaneKey::By(rule) => f.debug_tuple("By").field(rule).finish(),
        }
    }
}

impl fmt::Debug for LaneRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.name, f)
    }
}

/// The lane of the one patient that a message is about.
fn lane_of_patient(message: &[u8]) -> Lane {
    let mut segments = segments(message);
    let Some(delimiters) = segments.next().and_then(Delimiters::of_header) else { return Lane::Destination };
    let mut lane = Lane::Destination;
    for segment in segments {
        match segment.get(..4) {
            Some([b'M', b'R', b'G', separator]) if *separator == delimiters.field => return Lane::Barrier,
            Some([b'P', b'I', b'D', separator]) if *separator == delimiters.field => {
                let Some(patient) = patient(segment, delimiters) else { continue };
                if lane != Lane::Destination && lane != patient {
                    return Lane::Barrier;
                }
                lane = patient;
            }
            _ => {}
        }
    }
    lane
}

/// The patient of a PID segment: the first identifier of PID-3, with its assigning authority.
fn patient(pid: &[u8], delimiters: Delimiters) -> Option<Lane> {
    let [identifiers] = delimiters.fields(pid, [3]);
    identifiers.split(|&byte| byte == delimiters.repetition).find_map(|identifier| {
        let id = absent_if_null(delimiters.component(identifier, 1).trim_ascii());
        if id.is_empty() {
            return None;
        }
        // The same whatever the message separates its parts by.
        let mut key = delimiters.unescape(id).into_owned().into_bytes();
        let authority = absent_if_null(delimiters.component(identifier, 4).trim_ascii());
        for (number, part) in authority.split(|&byte| byte == delimiters.subcomponent).enumerate() {
            let part = delimiters.unescape(absent_if_null(part.trim_ascii()));
            if !part.is_empty() {
                // What stands in front of a part says which it is; no text of HL7 has such bytes.
                key.extend([0, number as u8]);
                key.extend_from_slice(part.as_bytes());
            }
        }
        Some(Lane::Key(key.into()))
    })
}

/// The digest of a message's lane, as far as it is known before the destination's rule is.
#[cfg(any(feature = "redis", feature = "sqlite"))]
#[derive(Clone)]
pub(super) struct LaneChoice {
    /// That of the lane which the caller has given, whatever the rule.
    pub(super) given: Option<String>,
    /// Otherwise the name of this handle's rule, if it was opened with one, and the lane by it.
    pub(super) own: Option<(String, String)>,
}

#[cfg(any(feature = "redis", feature = "sqlite"))]
impl LaneChoice {
    pub(super) fn of(message: &[u8], given: Option<&Lane>, own: Option<&LaneKey>) -> LaneChoice {
        let own = own.filter(|_| given.is_none());
        LaneChoice {
            given: given.map(Lane::digest),
            own: own.map(|rule| (rule.name().into_owned(), rule.lane_of(message).digest())),
        }
    }

    /// The lane at a destination that has this rule, by its name; `None` if this handle does not
    /// know the rule, or has another one. (A script does the same in Redis.)
    #[cfg(feature = "sqlite")]
    pub(super) fn by(&self, rule: &str, message: &[u8]) -> Option<Cow<'_, str>> {
        match (&self.given, &self.own, rule) {
            (Some(given), ..) => Some(given.into()),
            (None, Some((own, lane)), _) => (own == rule).then_some(lane.into()),
            (None, None, PATIENT_ID) => Some(by_patient(message).into()),
            (None, None, DESTINATION) => Some(Lane::Destination.digest().into()),
            (None, None, _) => None,
        }
    }
}

/// The digest of a message's lane by the patient.
#[cfg(any(feature = "redis", feature = "sqlite"))]
pub(super) fn by_patient(message: &[u8]) -> String {
    LaneKey::PatientId.lane_of(message).digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patients() {
        let header = r"MSH|^~\&|ADT|H|EHR|H|20260101||ADT^A08|M1|P|2.5";
        let key = |text: &str| Lane::key(text.as_bytes());
        for (name, segments, expected) in [
            ("one identifier", "PID|1||42^^^HOSP^MR", key("42\0\0HOSP")),
            ("no authority", "PID|1||42", key("42")),
            ("authority of three parts", "PID|1||42^^^HOSP&1.2.3&ISO", key("42\0\0HOSP\0\u{1}1.2.3\0\u{2}ISO")),
            ("authority without a name", "PID|1||42^^^&1.2.3&ISO", key("42\0\u{1}1.2.3\0\u{2}ISO")),
            ("a null in the authority", "PID|1||42^^^HOSP&\"\"&ISO", key("42\0\0HOSP\0\u{2}ISO")),
            ("several identifiers", "PID|1||42^^^HOSP~7^^^NATION", key("42\0\0HOSP")),
            ("the first is empty", "PID|1||^^^HOSP~7^^^NATION", key("7\0\0NATION")),
            ("null", "PID|1||\"\"", Lane::Destination),
            ("spaces", "PID|1|| 42 ^^^ HOSP ", key("42\0\0HOSP")),
            ("escaped", r"PID|1||4\S\2^^^A\T\B", key("4^2\0\0A&B")),
            ("an identifier of another kind", "PID|1|42||7", Lane::Destination),
            ("no patient", "EVN|A08", Lane::Destination),
            ("short", "PID|1", Lane::Destination),
            ("a merge", "PID|1||42^^^HOSP\rMRG|7^^^HOSP", Lane::Barrier),
            ("two patients", "PID|1||42^^^HOSP\rPV1|1\rPID|2||7^^^HOSP", Lane::Barrier),
            ("one patient twice", "PID|1||42^^^HOSP\rOBR|1\rPID|1||42^^^HOSP", key("42\0\0HOSP")),
            ("the second unknown", "PID|1||42^^^HOSP\rPID|2", key("42\0\0HOSP")),
            ("a word that begins so", "PIDX|1||42\rMRGX|1", Lane::Destination),
        ] {
            let message = format!("{header}\r{segments}\r");
            assert!(LaneKey::PatientId.lane_of(message.as_bytes()) == expected, "{name}");
            let lines = format!("\u{FEFF}{header}\n{}\n", segments.replace('\r', "\n"));
            assert!(
                LaneKey::PatientId.lane_of(lines.as_bytes()) == expected,
                "{name}, in lines behind a byte-order mark"
            );
        }
        let other = b"MSH$%*!@$ADT$H$EHR$H$20260101$$ADT%A08$M1$P$2.5\rPID$1$$4!S!2%%%HOSP@1.2.3\r";
        let usual = format!("{header}\rPID|1||4\\X25\\2^^^HOSP&1.2.3\r");
        assert!(LaneKey::PatientId.lane_of(other) == LaneKey::PatientId.lane_of(usual.as_bytes()));
        let batch = format!("BHS|^~\\&|ADT\r{header}\rPID|1||42\rBTS|1\r");
        assert!(LaneKey::PatientId.lane_of(batch.as_bytes()) == Lane::Destination);
        let asked = LaneKey::by("none", |_| Lane::Barrier);
        assert!(asked.lane_of(batch.as_bytes()) == Lane::Destination, "no rule is asked about a batch");
        assert!(asked.lane_of(header.as_bytes()) == Lane::Barrier);
    }

    #[test]
    fn debug_shows_no_key() {
        let shown = format!("{:?} {:?}", Lane::key("42"), LaneKey::by("device", |_| Lane::key("42")));
        assert_eq!(shown, "Key(..) By(\"device\")");
    }

    #[cfg(any(feature = "redis", feature = "sqlite"))]
    #[test]
    fn a_storage_knows_a_digest() {
        let digests = [Lane::Destination, Lane::Barrier, Lane::key("42"), Lane::key("")].map(|lane| lane.digest());
        assert_eq!(digests, [".", "!", "73475cb40a568e8da8a045ced110137e", "e3b0c44298fc1c149afbf4c8996fb924"]);
    }

    #[cfg(feature = "sqlite")]
    #[test]
    fn the_lane_is_by_the_rule_of_the_destination() {
        let message = b"MSH|^~\\&|A|B|C|D|20260101||ADT^A08|M1|P|2.5\rPID|1||42\r";
        let own = LaneKey::by("all", |_| Lane::Barrier);
        for (given, own, rule, expected) in [
            (None, None, DESTINATION, Some(".")),
            (None, None, PATIENT_ID, Some("73475cb40a568e8da8a045ced110137e")),
            (None, None, "by all", None),
            (None, Some(&own), "by all", Some("!")),
            (None, Some(&own), DESTINATION, None),
            (None, Some(&LaneKey::Destination), PATIENT_ID, None),
            (Some(&Lane::Barrier), None, "by all", Some("!")),
            (Some(&Lane::Destination), Some(&own), DESTINATION, Some(".")),
        ] {
            let choice = LaneChoice::of(message, given, own);
            assert_eq!(choice.by(rule, message).as_deref(), expected, "{given:?} {own:?} {rule}");
        }
    }
}
