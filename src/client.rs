//! The types that a user holds: `Client`, `Request`, `Acks`, `SendAll`. They decide when to connect
//! anew, never how.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::builder::ClientBuilder;
use crate::connection::{Connection, Conversation};
use crate::deadline::Deadline;
use crate::endpoint::Endpoint;
use crate::error::{Delivery, Error, ErrorKind, Phase};
use crate::event::Stats;
use crate::exchange::{Batched, Message};
use crate::hl7::MessageError;
use crate::hl7::ack::{Ack, AckMode};
use crate::hl7::batch::Batch;
#[cfg(feature = "charset")]
use crate::hl7::charset::Charset;
#[cfg(feature = "charset")]
use crate::hl7::header::Header;
use crate::pool::{Lease, Pool, PoolOptions};
use crate::settings::{AckPolicy, Settings};

/// Sends messages to one receiver and returns their acknowledgments.
///
/// A client holds one connection, or as many as [`max_connections`](ClientBuilder::max_connections)
/// says, each opened when a message needs it. Before each use it is probed; one that the receiver
/// has closed meanwhile, or on which bytes came that belong to no exchange, is replaced without the
/// message suffering.
///
/// It is cheap to clone, and clones share the connections. Threads may share it: they take turns in
/// order of arrival, each waiting inside the limit of its own call. Dropping the last clone closes
/// the connections.
///
/// # Examples
///
/// ```
/// # use mllp_client::testing::Receiver;
/// # let receiver = Receiver::accepting()?;
/// # let endpoint = receiver.endpoint();
/// use mllp_client::Client;
///
/// let client = Client::new(&endpoint)?; // as "mllp://127.0.0.1:2575"
/// let ack = client.send("MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|MSG1|P|2.5\rPID|1||42\r")?;
/// assert_eq!(format!("{} {}", ack.code(), ack.control_id()), "AA MSG1");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Client {
    pool: Arc<Pool>,
}

impl Client {
    /// A client with the default settings for an endpoint such as `mllp://127.0.0.1:2575`. Opens
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if it is no [`Endpoint`].
    pub fn new(endpoint: &str) -> Result<Client, Error> {
        Client::builder(endpoint).build()
    }

    /// Settings for a client, to begin with its endpoint.
    pub fn builder(endpoint: &str) -> ClientBuilder {
        ClientBuilder::new(endpoint)
    }

    pub(crate) fn with_settings(settings: Arc<Settings>, options: PoolOptions) -> Client {
        Client { pool: Arc::new(Pool::new(settings, options)) }
    }

    /// Sends a message and returns the acknowledgment that ends its exchange.
    ///
    /// The message is sent as given, in one frame: its segments should end in Carriage Returns, and
    /// are not corrected here. MSH-15 and MSH-16 decide which acknowledgment is awaited (HL7
    /// v2.5, chapter 2.9). Both empty, the original mode: the application acknowledgment; a
    /// commit accept before it is remembered. Otherwise the commit acknowledgment, the
    /// application acknowledgment or both, as they ask.
    ///
    /// # Errors
    ///
    /// Any [`ErrorKind`]; [`Error::delivery`] says what became of the message. A refusal is an
    /// error too.
    pub fn send(&self, message: impl AsRef<[u8]>) -> Result<Ack, Error> {
        self.request(message.as_ref()).send()
    }

    /// Sends a message that is text, in the character set that its MSH-18 names (HL7 Table 0211),
    /// or else the builder's [`charset`](ClientBuilder::charset), or else UTF-8. A character
    /// that the set does not have is an error, and none is replaced; the framing bytes have no
    /// part in it.
    ///
    /// # Errors
    ///
    /// As [`send`](Client::send); [`MessageError::Unencodable`],
    /// [`MessageError::UnsupportedCharset`] and [`MessageError::UnknownCharset`] as
    /// [`ErrorKind::InvalidMessage`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use mllp_client::testing::Receiver;
    /// # let receiver = Receiver::accepting()?;
    /// # let client = mllp_client::Client::new(&receiver.endpoint())?;
    /// client.send_text("MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|MSG1|P|2.5||||||8859/1\rPID|1||42||M\u{dc}LLER\r")?;
    /// assert!(receiver.received()[0].ends_with(b"M\xDCLLER\r"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "charset")]
    #[cfg_attr(docsrs, doc(cfg(feature = "charset")))]
    pub fn send_text(&self, message: &str) -> Result<Ack, Error> {
        let settings = self.pool.settings();
        let Settings { timeout, ack_policy: policy, charset, .. } = &**settings;
        let deadline = Deadline::after(*timeout);
        // Looked at as text: an offset is one in the text, and in some sets a byte that is the half of a
        // character looks like a delimiter.
        let sent = settings.check_message(message.as_bytes(), policy.mode).and_then(|header| {
            let encode = |text: &str| {
                let charset = Charset::of_message(message.as_bytes()).unwrap_or(Ok(*charset))?;
                charset.encode(text)
            };
            let refused = |error| Error::before_sending(ErrorKind::InvalidMessage(error));
            let bytes = encode(message).map_err(refused)?;
            let control_id = encode(&String::from_utf8_lossy(header.control_id)).map_err(refused)?;
            settings.check_payload(&bytes)?;
            let header = Header { control_id: &control_id, ..header };
            let awaited = || Message::new(&bytes, &header, settings.ack_rules(policy));
            self.run(&deadline, |connection| connection.converse(&bytes, awaited(), policy, &deadline))
        });
        settings.conclude(sent, Some(message.as_bytes()), &deadline)
    }

    /// Sends any payload in one frame and returns the content of the first frame that comes back,
    /// as it came: neither is read as HL7, so that a refusal is a reply like any other. Where
    /// the payload could not be sent whole, an answer that came before is no reply to it, but
    /// [`Error::response`].
    ///
    /// # Errors
    ///
    /// As [`send`](Client::send), but those that concern HL7.
    pub fn exchange(&self, payload: impl AsRef<[u8]>) -> Result<Vec<u8>, Error> {
        self.request(payload.as_ref()).exchange()
    }

    /// Sends a batch in one frame and returns what became of each of its messages, in the batch's
    /// order.
    ///
    /// Receivers answer a batch with an acknowledgment for each message, in frames of their own or
    /// together in a batch of acknowledgments, or with a single one for the whole, which
    /// carries the control ID of the batch or its file (BHS-11, FHS-11); any of
    /// these is understood, in any order. In a file of several batches, an acknowledgment of one
    /// batch is for the messages in it. What was not answered when the limit had passed, or the
    /// connection had ended, is [`Unknown`](Delivery::Unknown) by message.
    ///
    /// # Errors
    ///
    /// As [`send`](Client::send), where the whole has not left or, in MLLP release 2, was not
    /// stored. The items have the rest.
    ///
    /// # Examples
    ///
    /// ```
    /// # use mllp_client::testing::{Receiver, Step};
    /// # let receiver = Receiver::answering(|_| Step::frame(b"MSH|^~\\&|\rMSA|AA|B1\r"))?;
    /// # let client = mllp_client::Client::new(&receiver.endpoint())?;
    /// use mllp_client::Batch;
    ///
    /// let mut batch = Batch::new("B1")?;
    /// batch.push("MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|MSG1|P|2.5\rPID|1||42\r")?;
    /// for (message, result) in batch.messages().zip(client.send_batch(&batch)?) {
    ///     println!("{} bytes: {:?}", message.len(), result.map(|ack| ack.code()));
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send_batch(&self, batch: &Batch) -> Result<Vec<Result<Ack, Error>>, Error> {
        let settings = self.pool.settings();
        let Settings { timeout, ack_policy: policy, .. } = &**settings;
        let deadline = Deadline::after(*timeout);
        let mut text = batch.to_bytes();
        let checked = settings.check_payload(&text).and_then(|()| settings.check_batch(batch, policy.mode));
        let sent = checked.and_then(|headers| {
            self.run(&deadline, |connection| {
                let awaited = Batched::new(batch.wholes(), &headers, settings.ack_rules(policy));
                let mut conversation = Conversation::new(awaited, policy, &deadline);
                connection.begin(&mut conversation, &text)?;
                if !conversation.is_over() {
                    // It is not sent again, and the answers may take as much room.
                    text = Vec::new();
                }
                connection.finish(conversation)
            })
        });
        let whole = batch.wholes().next().map(|(control_id, _)| control_id);
        let sent = sent.map_err(|error| error.about(whole));
        let results = settings.conclude(sent, None, &deadline)?;
        Ok(results.into_iter().map(|result| settings.conclude(result, None, &deadline)).collect())
    }

    /// Sends messages one by one, in order and over one connection, and yields what became of each.
    /// It stops after the first error, unless it is set to [go on](SendAll::keep_going).
    ///
    /// Nothing is sent before the iterator is asked for its next item. Each message has the whole
    /// limit. The connection is taken for as long as the iterator lives; one that ends is
    /// replaced before the next message.
    ///
    /// It is made for files, and refuses a message with a line that cannot be a segment
    /// ([`MessageError::NotASegment`](crate::MessageError::NotASegment)), such as a remark, which
    /// [`send`](Client::send) would take.
    ///
    /// # Examples
    ///
    /// ```
    /// # use mllp_client::testing::Receiver;
    /// # let receiver = Receiver::accepting()?;
    /// # let client = mllp_client::Client::new(&receiver.endpoint())?;
    /// # let file = b"MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|MSG1|P|2.5\nPID|1||42\n";
    /// for result in client.send_all(mllp_client::messages::split(file)) {
    ///     println!("{}", result?.control_id());
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send_all<I>(&self, messages: I) -> SendAll<'_, I::IntoIter>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        SendAll {
            client: self,
            messages: messages.into_iter(),
            lease: None,
            goes_on_after: Box::new(|_| false),
            stopped: false,
        }
    }

    /// One message with settings of its own.
    ///
    /// # Examples
    ///
    /// ```
    /// # use mllp_client::testing::Receiver;
    /// # let receiver = Receiver::accepting()?;
    /// # let client = mllp_client::Client::new(&receiver.endpoint())?;
    /// # let message = "MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|MSG1|P|2.5\r";
    /// use std::time::Duration;
    ///
    /// let ack = client.request(message).timeout(Duration::from_secs(5)).send()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn request<'a, M: AsRef<[u8]> + ?Sized>(&'a self, message: &'a M) -> Request<'a> {
        let Settings { timeout, ack_policy, .. } = &**self.pool.settings();
        Request { client: self, message: message.as_ref(), timeout: *timeout, until: None, policy: *ack_policy }
    }

    /// Makes sure that a connection is open, inside both limits: at the start of a program, to
    /// learn early that the receiver is there. If no connection is free and there are as many
    /// as may be, it waits for one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Connect`], [`ErrorKind::Tls`], [`ErrorKind::Timeout`] or [`ErrorKind::Closed`].
    pub fn connect(&self) -> Result<(), Error> {
        self.connected(|lease, deadline| lease.is_fit(deadline))
    }

    /// Closes the connections that are idle and opens a fresh one. Messages under way are not
    /// disturbed; if they use as many connections as may be, it waits for one of them.
    ///
    /// # Errors
    ///
    /// As [`connect`](Client::connect).
    pub fn reconnect(&self) -> Result<(), Error> {
        self.pool.drop_idle();
        self.connected(|_, _| Ok(false))
    }

    fn connected(&self, suffices: impl FnOnce(&mut Lease<'_>, &Deadline) -> Result<bool, Error>) -> Result<(), Error> {
        let settings = self.pool.settings();
        let deadline = Deadline::after(settings.timeout);
        let connected = self.pool.acquire(&deadline).and_then(|mut lease| {
            if suffices(&mut lease, &deadline)? { Ok(()) } else { lease.connect(&deadline).map(|_| ()) }
        });
        settings.conclude(connected, None, &deadline)
    }

    /// Whether a connection is open: one in use is taken to be; if there is none, those that are
    /// idle are probed.
    pub fn is_connected(&self) -> bool {
        self.pool.is_connected()
    }

    /// Closes for good. Calls under way on other threads end at once with [`ErrorKind::Closed`], in
    /// whatever phase but the resolving of a name, and so does every later call on any clone.
    pub fn close(&self) {
        self.pool.close();
    }

    /// Counts of all that has happened since the client was made, over all clones.
    pub fn stats(&self) -> Stats {
        self.pool.settings().monitor.stats()
    }

    /// The receiver's endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        &self.pool.settings().endpoint
    }

    /// The longest time that a call may take: its limit, with that of the application's
    /// acknowledgment where it has one of its own.
    pub(crate) fn longest_call(&self) -> Duration {
        let settings = self.pool.settings();
        settings.timeout.saturating_add(settings.ack_policy.application_timeout.unwrap_or_default())
    }

    /// The most connections that it has at a time.
    pub(crate) fn max_connections(&self) -> usize {
        self.pool.max_connections()
    }

    /// Runs one exchange on a connection that is fit for use. If it turns out dead before the
    /// message's end has left, nobody has seen the message, and it goes out on a fresh one.
    fn run<T>(
        &self,
        deadline: &Deadline,
        exchange: impl FnMut(&mut Connection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut lease = self.pool.acquire(deadline)?;
        exchange_on(&mut lease, deadline, exchange)
    }
}

fn exchange_on<T>(
    lease: &mut Lease<'_>,
    deadline: &Deadline,
    mut exchange: impl FnMut(&mut Connection) -> Result<T, Error>,
) -> Result<T, Error> {
    let is_fit = lease.is_fit(deadline)?;
    if let Some(connection) = lease.connection().filter(|_| is_fit) {
        match exchange(connection) {
            Err(error) if was_dead_already(&error) => lease.lose(),
            Err(error) if is_ambiguous_here(&error) => {}
            result => {
                lease.count_exchange();
                return result;
            }
        }
    }
    let mut connection = lease.connect(deadline)?;
    // Bytes that the peer sent before the message left are not its acknowledgment, on a new
    // connection as on an old one. Where the peer ends the new one at once, one more is opened.
    match connection.make_fit(deadline) {
        Err(error) if was_dead_already(&error) => {
            connection = lease.connect(deadline)?;
            connection.make_fit(deadline)?;
        }
        fit => fit?,
    }
    let result = exchange(connection);
    lease.count_exchange();
    result
}

fn was_dead_already(error: &Error) -> bool {
    error.delivery() == Delivery::NotSent
        && matches!(error.kind(), ErrorKind::Disconnected { phase: Phase::Send, .. })
        // A peer that answered before it ended was alive, and would do the same again.
        && error.response().is_none()
}

/// Whether the answer could not be distinguished from one for an earlier message on this
/// connection, but on another can.
fn is_ambiguous_here(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidMessage(MessageError::ControlIdInUse))
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("endpoint", self.endpoint()).field("stats", &self.stats()).finish()
    }
}

/// One message with settings of its own, from [`Client::request`].
#[must_use = "a request does nothing until it is sent"]
pub struct Request<'a> {
    client: &'a Client,
    message: &'a [u8],
    timeout: Duration,
    until: Option<Instant>,
    policy: AckPolicy,
}

impl<'a> Request<'a> {
    /// The limit of this call, in place of the client's. With zero, sending fails
    /// ([`ErrorKind::Config`]).
    pub fn timeout(self, limit: Duration) -> Self {
        Request { timeout: limit, ..self }
    }

    /// Ends the call at this instant at the latest, whatever its limit. A limit of the application
    /// acknowledgment's own is not cut short.
    pub fn until(self, end: Instant) -> Self {
        Request { until: Some(end), ..self }
    }

    /// Which acknowledgment ends the exchange, in place of the client's choice
    /// ([`ack_mode`](ClientBuilder::ack_mode)).
    pub fn ack_mode(mut self, mode: AckMode) -> Self {
        self.policy.mode = mode;
        self
    }

    /// The limit of waiting for the application acknowledgment after a commit accept, in place of
    /// the client's ([`application_timeout`](ClientBuilder::application_timeout)). Zero is
    /// refused when it is sent.
    pub fn application_timeout(mut self, limit: Duration) -> Self {
        self.policy.application_timeout = Some(limit);
        self
    }

    /// As [`Client::send`].
    ///
    /// # Errors
    ///
    /// As [`Client::send`].
    pub fn send(self) -> Result<Ack, Error> {
        let settings = self.client.pool.settings();
        let Request { message, policy, .. } = &self;
        self.conclude(|deadline| {
            let header = settings.check_message(message, policy.mode)?;
            let awaited = || Message::new(message, &header, settings.ack_rules(policy));
            self.client.run(deadline, |connection| connection.converse(message, awaited(), policy, deadline))
        })
    }

    /// Sends the message and returns its acknowledgments one by one as they come: in the enhanced
    /// mode the commit accept, then the application acknowledgment. The last is the one that
    /// ends the exchange.
    ///
    /// The connection is taken until the last acknowledgment has been handed out. An iterator
    /// dropped before closes the connection, for an answer is outstanding. Limits go on while
    /// nobody asks for the next item; that of the application counts from the moment its commit
    /// accept is handed out.
    ///
    /// # Errors
    ///
    /// As [`Client::send`], as far as sending goes. The iterator's items are the rest; after an
    /// error there are no more.
    pub fn acks(self) -> Result<Acks<'a>, Error> {
        let settings = self.client.pool.settings();
        let Request { client, message, policy, .. } = self;
        self.conclude(|deadline| {
            let header = settings.check_message(message, policy.mode)?;
            let mut lease = client.pool.acquire(deadline)?;
            let conversation = exchange_on(&mut lease, deadline, |connection| {
                let awaited = Message::new(message, &header, settings.ack_rules(&policy));
                let mut conversation = Conversation::new(awaited, &policy, deadline);
                connection.begin(&mut conversation, message)?;
                if !conversation.is_over() {
                    return Ok(conversation);
                }
                let closed = || Error::before_sending(ErrorKind::Closed);
                Err(conversation.end().err().unwrap_or_else(closed))
            })?;
            Ok(Acks { client, under_way: Some((conversation, lease)), deadline: *deadline })
        })
    }

    /// As [`Client::exchange`].
    ///
    /// # Errors
    ///
    /// As [`Client::exchange`].
    pub fn exchange(self) -> Result<Vec<u8>, Error> {
        let settings = self.client.pool.settings();
        self.conclude(|deadline| {
            settings.check_payload(self.message)?;
            self.client.run(deadline, |connection| {
                let reply = connection.converse_unread(self.message, deadline)?;
                Ok(connection.reply(reply).to_vec())
            })
        })
    }

    /// Writes the payload in one frame, awaits nothing, and closes the connection, so that an
    /// answer that comes all the same cannot be taken for another's. For messages whose MSH-15
    /// and MSH-16 are both `NE`.
    ///
    /// `Ok` means that the frame was handed to the operating system, no more. Over TLS the call
    /// lasts until the receiver has ended its side too, or the limit has passed. If the
    /// receiver answers all the same, the closed connection is reset, which may cut off what it
    /// has not read yet.
    ///
    /// # Errors
    ///
    /// As [`Client::exchange`], but those of waiting for a reply.
    pub fn send_unacknowledged(self) -> Result<(), Error> {
        let settings = self.client.pool.settings();
        self.conclude(|deadline| {
            settings.check_payload(self.message)?;
            self.client.run(deadline, |connection| connection.send_unacknowledged(self.message, deadline))
        })
    }

    fn conclude<T>(&self, call: impl FnOnce(&Deadline) -> Result<T, Error>) -> Result<T, Error> {
        let deadline = Deadline::after(self.timeout).no_later_than(self.until);
        let limits = [("timeout", Some(self.timeout)), ("application_timeout", self.policy.application_timeout)];
        let result = match limits.iter().find(|(_, limit)| *limit == Some(Duration::ZERO)) {
            Some((name, _)) => {
                Err(Error::before_sending(ErrorKind::Config(format!("{name} must be longer than zero"))))
            }
            None => call(&deadline),
        };
        self.client.pool.settings().conclude(result, Some(self.message), &deadline)
    }
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("client", &self.client)
            .field("len", &self.message.len())
            .field("timeout", &self.timeout)
            .finish()
    }
}

/// The acknowledgments of one message as they come, from [`Request::acks`].
#[must_use = "the connection is closed if nobody waits for the acknowledgments"]
pub struct Acks<'a> {
    client: &'a Client,
    /// Absent once the exchange is over. The conversation is dropped first: its socket has its slot
    /// for as long as it exists.
    under_way: Option<(Conversation<Message<'a>>, Lease<'a>)>,
    deadline: Deadline,
}

impl Iterator for Acks<'_> {
    type Item = Result<Ack, Error>;

    fn next(&mut self) -> Option<Result<Ack, Error>> {
        let (mut conversation, mut lease) = self.under_way.take()?;
        lease.connection()?.next_answer(&mut conversation);
        if !conversation.is_over() {
            let commit = conversation.awaited().commit().cloned();
            self.under_way = Some((conversation, lease));
            return commit.map(Ok);
        }
        let end = conversation.end();
        // Others may have the connection before the caller looks at what came.
        drop(lease);
        Some(self.client.pool.settings().conclude(end, None, &self.deadline))
    }
}

impl fmt::Debug for Acks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acks").field("client", &self.client).field("ended", &self.under_way.is_none()).finish()
    }
}

/// The results of messages sent one by one, from [`Client::send_all`].
#[must_use = "nothing is sent before it is asked for"]
pub struct SendAll<'a, I> {
    client: &'a Client,
    messages: I,
    lease: Option<Lease<'a>>,
    /// Whether it goes on after this error.
    goes_on_after: Box<dyn Fn(&Error) -> bool + Send + Sync + 'a>,
    stopped: bool,
}

impl<'a, I> SendAll<'a, I> {
    /// Goes on with the next message after any failure.
    pub fn keep_going(self) -> Self {
        self.continue_after(|_| true)
    }

    /// Goes on with the next message after the failures for which this returns `true`, such as
    /// those that concern one message alone. Defaults to none.
    ///
    /// # Examples
    ///
    /// ```
    /// # use mllp_client::testing::Receiver;
    /// # let receiver = Receiver::accepting()?;
    /// # let client = mllp_client::Client::new(&receiver.endpoint())?;
    /// use mllp_client::Advice;
    ///
    /// # let messages = [&b"MSH|^~\\&|||||||ORU|1|P|2.5\r"[..], b"PID|1\r", b"MSH|^~\\&|||||||ORU|2|P|2.5\r"];
    /// // A refused message or one that cannot be sent does not hold up the others; a receiver that is away does.
    /// let results = client
    ///     .send_all(messages)
    ///     .continue_after(|error| matches!(error.advice(), Advice::SeeRefusal | Advice::FixMessage));
    /// # assert_eq!(results.filter(Result::is_ok).count(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn continue_after(self, goes_on: impl Fn(&Error) -> bool + Send + Sync + 'a) -> Self {
        SendAll { goes_on_after: Box::new(goes_on), ..self }
    }
}

impl<I> Iterator for SendAll<'_, I>
where
    I: Iterator,
    I::Item: AsRef<[u8]>,
{
    type Item = Result<Ack, Error>;

    fn next(&mut self) -> Option<Result<Ack, Error>> {
        if self.stopped {
            return None;
        }
        let Some(message) = self.messages.next() else {
            // The connection is of no more use here.
            self.stopped = true;
            self.lease = None;
            return None;
        };
        let settings = self.client.pool.settings();
        let deadline = Deadline::after(settings.timeout);
        let sent = self.send(message.as_ref(), &settings.ack_policy, &deadline);
        let sent = settings.conclude(sent, Some(message.as_ref()), &deadline);
        if sent.as_ref().is_err_and(|error| !(self.goes_on_after)(error)) {
            self.stopped = true;
            self.lease = None;
        }
        // Idle from now on, and in use again with the next message.
        if let Some(lease) = &mut self.lease {
            lease.rest();
        }
        Some(sent)
    }
}

impl<I> SendAll<'_, I> {
    fn send(&mut self, message: &[u8], policy: &AckPolicy, deadline: &Deadline) -> Result<Ack, Error> {
        let pool = &self.client.pool;
        let settings = pool.settings();
        let header = settings.check_message(message, policy.mode)?;
        settings.check_segments(message)?;
        let lease = match &mut self.lease {
            Some(lease) => {
                lease.renew();
                lease
            }
            none => none.insert(pool.acquire(deadline)?),
        };
        exchange_on(lease, deadline, |connection| {
            let awaited = Message::new(message, &header, settings.ack_rules(policy));
            connection.converse(message, awaited, policy, deadline)
        })
    }
}

impl<I> fmt::Debug for SendAll<'_, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendAll").field("client", &self.client).field("stopped", &self.stopped).finish_non_exhaustive()
    }
}
