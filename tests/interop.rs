//! Against receivers and senders from elsewhere: python-hl7, node-hl7-server and node-hl7-client,
//! @medplum/hl7, and the codec of hl7-mllp-codec; bare, and over TLS where they speak it or
//! `stunnel` does it for them.
//!
//! `MLLP_INTEROP_PYTHON` names a Python that has the package `hl7`; without it, `python3` is asked.
//! `MLLP_INTEROP_NODE` names a directory in which npm has installed its packages. Where something
//! is missing the tests say that they were skipped, unless `MLLP_INTEROP_REQUIRED` is set.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::{env, io};

use bytes::BytesMut;
use common::{LONG, message, message_of};
use futures_util::{SinkExt, StreamExt};
use hl7_mllp_codec::MllpCodec;
use mllp_client::testing::{Receiver, Step};
use mllp_client::{AckCode, Client, Delivery};
use tokio_util::codec::Framed;

const LARGE: usize = 5 * 1024 * 1024;

/// A program under `tests/interop`, which receives and sends.
#[derive(Clone, Copy, Debug)]
enum Program {
    PythonHl7,
    NodeHl7,
    Medplum,
}

impl Program {
    /// How it is started; nothing where what it takes is missing.
    fn command(self) -> Option<Command> {
        let python = || env::var("MLLP_INTEROP_PYTHON").unwrap_or_else(|_| "python3".into());
        let (interpreter, option, probe, script) = match self {
            Program::PythonHl7 => (python(), "-c", "import hl7.mllp", "python_hl7.py"),
            Program::NodeHl7 => {
                ("node".into(), "-e", "load('node-hl7-server'); load('node-hl7-client')", "node_hl7.cjs")
            }
            Program::Medplum => ("node".into(), "-e", "load('@medplum/hl7')", "medplum.cjs"),
        };
        let probe = match option {
            "-e" => format!(
                "const load = require('node:module').createRequire(process.env.MLLP_INTEROP_NODE + '/'); {probe}"
            ),
            _ => probe.to_owned(),
        };
        let there = Command::new(&interpreter).args([option, &probe]).stderr(Stdio::null()).status();
        if !there.is_ok_and(|status| status.success()) {
            return missing(&format!("{interpreter} has no package for {script}"));
        }
        let mut command = Command::new(interpreter);
        command.arg(format!("{}/tests/interop/{script}", env!("CARGO_MANIFEST_DIR")));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Some(command)
    }

    /// A receiver, with arguments of its own.
    fn receive(self, arguments: &[&str]) -> Option<Server> {
        let mut process = self.command()?.arg("receive").args(arguments).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Some(Server { process, address: format!("127.0.0.1:{}", port.trim()) })
    }

    /// What it says of each message that it sends.
    fn send(self, address: &str, messages: &[String]) -> Option<Vec<String>> {
        let port = address.rsplit(':').next().unwrap();
        let mut process = self.command()?.args(["send", port]).spawn().unwrap();
        let quoted: Vec<_> = messages.iter().map(|message| format!("{message:?}")).collect();
        process.stdin.take().unwrap().write_all(format!("[{}]", quoted.join(",")).as_bytes()).unwrap();
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{self:?}: {}", output.status);
        Some(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect())
    }
}

fn missing<T>(what: &str) -> Option<T> {
    assert!(env::var_os("MLLP_INTEROP_REQUIRED").is_none(), "{what}");
    println!("skipped: {what}");
    None
}

/// A receiver in a process of its own.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn endpoint(&self) -> String {
        format!("mllp://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its standard input ends, and it with it.
        drop(self.process.stdin.take());
        self.process.wait().unwrap();
    }
}

/// A receiver by hl7-mllp-codec, for one connection.
struct CodecReceiver {
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl CodecReceiver {
    fn start() -> CodecReceiver {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            runtime().block_on(async {
                let mut transport = framed(stream).unwrap();
                while let Some(received) = transport.next().await {
                    let received = String::from_utf8(received.unwrap().to_vec()).unwrap();
                    let fields: Vec<_> = received.split('|').collect();
                    let code = if fields[4] == "REFUSE" { "AR" } else { "AA" };
                    let answer =
                        format!("MSH|^~\\&|EHR|NORTH|LAB|NORTH|20260101||ACK|1|P|2.5\rMSA|{code}|{}\r", fields[9]);
                    transport.send(BytesMut::from(answer.as_str())).await.unwrap();
                }
            });
        });
        CodecReceiver { address, thread: Some(thread) }
    }
}

impl Drop for CodecReceiver {
    fn drop(&mut self) {
        let ended = self.thread.take().unwrap().join();
        assert!(thread::panicking() || ended.is_ok());
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap()
}

fn framed(stream: TcpStream) -> io::Result<Framed<tokio::net::TcpStream, MllpCodec>> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    Ok(Framed::new(tokio::net::TcpStream::from_std(stream)?, MllpCodec::new()))
}

/// Accepted and refused messages, a thousand, a large one; all over one connection.
fn exchange_with(client: &Client) {
    assert_eq!(client.send(message("1")).unwrap().control_id(), "1");
    let error = client.send(message("2").replace("EHR", "REFUSE")).unwrap_err();
    assert_eq!(error.delivery(), Delivery::Refused, "{error:?}");
    let nak = error.nak().map(|nak| (nak.code(), nak.control_id().into_owned()));
    assert_eq!(nak, Some((AckCode::ApplicationReject, "2".into())));
    assert_eq!(client.send(message("3").replace("PROBE^TESTA", "PRÖBE^TESTÅ")).unwrap().control_id(), "3");
    for number in 0..1000 {
        let id = format!("M{number}");
        assert_eq!(client.send(message(&id)).unwrap().control_id(), id);
    }
    assert_eq!(client.send(message_of("LARGE", LARGE)).unwrap().control_id(), "LARGE");
    assert_eq!(client.stats().connections_opened, 1);
}

#[test]
fn python_hl7_receives() {
    let Some(server) = Program::PythonHl7.receive(&[]) else { return };
    exchange_with(&common::client(&server.endpoint(), LONG));
}

#[test]
fn medplum_receives() {
    let Some(server) = Program::Medplum.receive(&[]) else { return };
    exchange_with(&common::client(&server.endpoint(), LONG));
}

#[test]
fn the_codec_receives() {
    let receiver = CodecReceiver::start();
    exchange_with(&common::client(&format!("mllp://{}", receiver.address), LONG));
}

/// It keeps the text of a connection's earlier messages and answers all of them again with each
/// message.
fn exchange_with_node_hl7(client: impl Fn() -> Client) {
    let one = client();
    for id in ["1", "2", "3"] {
        assert_eq!(one.send(message(id)).unwrap().control_id(), id);
    }
    assert_eq!(one.stats().connections_opened, 1);
    let error = client().send(message("4").replace("EHR", "REFUSE")).unwrap_err();
    assert_eq!(error.nak().map(|nak| nak.code()), Some(AckCode::ApplicationReject), "{error:?}");
    for number in 0..100 {
        let id = format!("M{number}");
        assert_eq!(client().send(message(&id)).unwrap().control_id(), id);
    }
    assert_eq!(client().send(message_of("LARGE", LARGE)).unwrap().control_id(), "LARGE");
}

#[test]
fn node_hl7_receives() {
    let Some(server) = Program::NodeHl7.receive(&[]) else { return };
    exchange_with_node_hl7(|| common::client(&server.endpoint(), LONG));
}

#[test]
#[cfg(feature = "tls")]
fn node_hl7_receives_over_tls() {
    let (authority, receiver) = common::certificates::usual();
    let files = tempfile::tempdir().unwrap();
    let [key, chain] = [("key", &receiver.key), ("chain", &receiver.chain)].map(|(name, content)| {
        let path = files.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    });
    let Some(server) = Program::NodeHl7.receive(&[&key, &chain]) else { return };
    let endpoint = format!("mllps://{}", server.address);
    exchange_with_node_hl7(|| Client::builder(&endpoint).tls(authority.trusted()).timeout(LONG).build().unwrap());
}

/// What the others send comes as it was sent, and they find in the answers what they should: the
/// receiver that all other tests go by is as honest as theirs are.
#[test]
fn the_scripted_receiver_serves_others() {
    let messages: Vec<_> = ["1", "2", "3"].map(message).into();
    // python-hl7 has no loop around its `send`.
    let large = String::from_utf8(message_of("LARGE", 50_000)).unwrap();
    let steps = || [Step::accept(), Step::refuse(AckCode::ApplicationReject, "no")];
    let expected = ["AA 1", "AR 2", "AA 3", "AA LARGE"];
    let all = [&messages[..], &[large]].concat();
    for program in [Program::PythonHl7, Program::NodeHl7, Program::Medplum] {
        let receiver = Receiver::scripted(steps()).unwrap();
        let Some(said) = program.send(&receiver.endpoint(), &all) else { continue };
        assert_eq!(said, expected, "{program:?}");
        let trimmed = |message: &[u8]| String::from_utf8_lossy(message).trim_end().to_owned();
        let received: Vec<_> = receiver.received().iter().map(|message| trimmed(message)).collect();
        assert_eq!(received, all.iter().map(|message| trimmed(message.as_bytes())).collect::<Vec<_>>(), "{program:?}");
    }
    let receiver = Receiver::scripted(steps()).unwrap();
    let stream = TcpStream::connect(receiver.endpoint().trim_start_matches("mllp://")).unwrap();
    let said: Vec<_> = runtime().block_on(async {
        let mut transport = framed(stream).unwrap();
        let mut said = Vec::new();
        for message in &all {
            transport.send(BytesMut::from(message.as_str())).await.unwrap();
            let ack = mllp_client::Ack::parse(transport.next().await.unwrap().unwrap().to_vec()).unwrap();
            said.push(format!("{} {}", ack.code(), ack.control_id()));
        }
        said
    });
    assert_eq!(said, expected);
    assert_eq!(receiver.received(), all.iter().map(|message| message.clone().into_bytes()).collect::<Vec<_>>());
}

/// TLS in front of a server, by a program that is not ours.
#[cfg(feature = "tls")]
struct Stunnel {
    process: Child,
    endpoint: String,
    _files: tempfile::TempDir,
}

#[cfg(feature = "tls")]
impl Stunnel {
    fn start(server: &Server, certified: &common::certificates::Certified, client_ca: Option<&str>) -> Option<Stunnel> {
        if Command::new("stunnel").arg("-version").stderr(Stdio::null()).status().is_err() {
            return missing("there is no stunnel");
        }
        let files = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = files.path().join(name);
            std::fs::write(&path, content).unwrap();
            path.display().to_string()
        };
        let (cert, key) = (file("cert", &certified.chain), file("key", &certified.key));
        let verify =
            client_ca.map(|ca| format!("verifyChain = yes\nCAfile = {}\n", file("ca", ca))).unwrap_or_default();
        let connect = &server.address;
        // It cannot choose a port by itself; another may have taken the one that was free a moment ago.
        for _ in 0..20 {
            let accept = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let settings = format!(
                "foreground = yes\ndebug = info\npid =\nsyslog = no\n[mllp]\naccept = {accept}\nconnect = {connect}\ncert = {cert}\nkey = {key}\n{verify}"
            );
            let mut process =
                Command::new("stunnel").arg(file("settings", &settings)).stderr(Stdio::piped()).spawn().unwrap();
            let said = BufReader::new(process.stderr.take().unwrap());
            if said.lines().map_while(Result::ok).any(|line| line.contains("bound to")) {
                return Some(Stunnel { process, endpoint: format!("mllps://{accept}"), _files: files });
            }
            process.wait().unwrap();
        }
        panic!("stunnel does not start");
    }
}

#[cfg(feature = "tls")]
impl Drop for Stunnel {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[test]
#[cfg(feature = "tls")]
fn stunnel_ends_tls_in_front_of_python_hl7() {
    use common::certificates::{Authority, NAME, Validity};

    let authority = Authority::new("Authority");
    let receiver = authority.issue(&[NAME], Validity::Now);
    let client = authority.issue(&["client.test"], Validity::Now);
    for client_ca in [None, Some(authority.pem())] {
        let Some(server) = Program::PythonHl7.receive(&[]) else { return };
        let Some(stunnel) = Stunnel::start(&server, &receiver, client_ca.as_deref()) else { return };
        let tls = client.identify(authority.trusted());
        let client = Client::builder(&stunnel.endpoint).tls(tls).timeout(LONG).build().unwrap();
        for number in 0..100 {
            let id = format!("M{number}");
            assert_eq!(client.send(message(&id)).unwrap().control_id(), id);
        }
        let large = common::message_of("LARGE", 5 * 1024 * 1024);
        assert_eq!(client.send(&large).unwrap().control_id(), "LARGE");
        let error = client.send(message("2").replace("EHR", "REFUSE")).unwrap_err();
        assert_eq!(error.delivery(), Delivery::Refused, "{error:?}");
        assert_eq!(client.stats().connections_opened, 1);
        client.close();
    }
}
