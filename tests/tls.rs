//! TLS: who is trusted, who is refused and what the error says, with TLS 1.2 and 1.3.

#![cfg(feature = "tls")]

mod common;

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use common::certificates::{Authority, Certified, NAME, Validity};
use common::{Deaf, LONG, SHORT, Transport, acknowledgment, limited, message, message_of, prompt, with_peer};
use mllp_client::testing::{Receiver, ServerTls, Step};
use mllp_client::{Ack, Client, Delivery, Error, ErrorKind, Phase, TlsConfig, TlsVersion};

const VERSIONS: [fn(ServerTls) -> ServerTls; 2] = [ServerTls::only_tls12, ServerTls::only_tls13];

fn serve(tls: ServerTls) -> Receiver {
    Receiver::builder().tls(tls).answering(|_| Step::accept()).unwrap()
}

fn send(receiver: &Receiver, tls: TlsConfig) -> Result<Ack, Error> {
    Client::builder(&receiver.endpoint()).timeout(LONG).tls(tls).build().unwrap().send(message("1"))
}

/// Refused by the client itself: in the handshake, so that nothing of the message left.
fn refused(name: &str, receiver: &Receiver, result: Result<Ack, Error>) -> String {
    let error = result.expect_err(name);
    assert!(matches!(error.kind(), ErrorKind::Tls(_)), "{name}: {error:?}");
    assert_eq!(error.delivery(), Delivery::NotSent, "{name}");
    assert!(receiver.received().is_empty(), "{name}");
    std::error::Error::source(&error).unwrap().to_string()
}

#[test]
fn whom_a_client_trusts() {
    let authority = Authority::new("Authority");
    let other = Authority::new("Other Authority");
    let usual = || authority.issue(&[NAME], Validity::Now);
    for version in VERSIONS {
        let serve = |certified: &Certified| serve(version(certified.server()));
        assert!(send(&serve(&usual()), authority.trusted()).is_ok());
        let both = other.trusted().root_certificates_pem(authority.pem().as_bytes()).unwrap();
        assert!(send(&serve(&usual()), both).is_ok(), "one of several roots");
        let bundle = [other.pem(), authority.pem()].concat();
        let bundle = TlsConfig::new().root_certificates_pem(bundle.as_bytes()).unwrap().server_name(NAME);
        assert!(send(&serve(&usual()), bundle).is_ok(), "a bundle beside the system's roots");

        for (name, certified, config, cause) in [
            ("unknown issuer", usual(), other.trusted(), "issuer"),
            ("the system's roots alone", usual(), TlsConfig::new().server_name(NAME), "issuer"),
            ("no roots", usual(), TlsConfig::new().system_roots(false).server_name(NAME), "issuer"),
            ("self-signed", Certified::self_signed(&[NAME]), authority.trusted(), "self-signed"),
            ("expired", authority.issue(&[NAME], Validity::Past), authority.trusted(), "expired"),
            ("not yet valid", authority.issue(&[NAME], Validity::Future), authority.trusted(), "not yet valid"),
            ("wrong name", authority.issue(&["other.test"], Validity::Now), authority.trusted(), "mismatch"),
            ("another name asked for", usual(), authority.trusted().server_name("other.test"), "mismatch"),
        ] {
            let receiver = serve(&certified);
            let said = refused(name, &receiver, send(&receiver, config));
            assert!(
                said.contains(if name == "another name asked for" { "other.test" } else { NAME }),
                "{name}: {said}"
            );
            // The words are OpenSSL's.
            assert!(said.contains(cause) || cfg!(not(target_os = "linux")), "{name}: {said}");
        }
    }
}

#[test]
fn addresses_are_verified_as_addresses() {
    let authority = Authority::new("Authority");
    let trusted = || TlsConfig::new().system_roots(false).root_certificates_pem(authority.pem().as_bytes()).unwrap();
    for version in VERSIONS {
        let serve = |names: &[&str]| serve(version(authority.issue(names, Validity::Now).server()));
        assert!(send(&serve(&["127.0.0.1"]), trusted()).is_ok());
        for names in [&["127.0.0.2"][..], &["localhost"], &[NAME]] {
            let receiver = serve(names);
            let said = refused("wrong address", &receiver, send(&receiver, trusted()));
            assert!(said.contains("127.0.0.1"), "{said}");
        }
        // The same receiver by its name.
        let receiver = serve(&["localhost"]);
        let endpoint = receiver.endpoint().replace("127.0.0.1", "localhost");
        let client = Client::builder(&endpoint).timeout(LONG).tls(trusted()).build().unwrap();
        assert!(client.send(message("1")).is_ok());
    }
}

#[test]
fn what_is_dangerous_is_accepted_only_when_asked() {
    let authority = Authority::new("Authority");
    for version in VERSIONS {
        let self_signed = serve(version(Certified::self_signed(&["other.test"]).server()));
        assert!(send(&self_signed, authority.trusted().danger_accept_invalid_certs(true)).is_ok());
        let self_signed = serve(version(Certified::self_signed(&["other.test"]).server()));
        let any_name = authority.trusted().danger_accept_invalid_hostnames(true);
        refused("untrusted", &self_signed, send(&self_signed, any_name.clone()));
        let misnamed = serve(version(authority.issue(&["other.test"], Validity::Now).server()));
        assert!(send(&misnamed, any_name).is_ok());
    }
}

#[test]
fn the_least_version_holds() {
    let authority = Authority::new("Authority");
    let certified = authority.issue(&[NAME], Validity::Now);
    let modern = || authority.trusted().min_version(TlsVersion::Tls13);
    let receiver = serve(certified.server().only_tls12());
    refused("below the minimum", &receiver, send(&receiver, modern()));
    assert!(send(&receiver, authority.trusted().min_version(TlsVersion::Tls12)).is_ok());
    assert!(send(&serve(certified.server().only_tls13()), modern()).is_ok());
    assert!(send(&serve(certified.server()), modern()).is_ok());
}

#[test]
fn a_peer_without_tls() {
    let receiver = Receiver::accepting().unwrap();
    let endpoint = receiver.endpoint().replace("mllp:", "mllps:");
    let error = Client::new(&endpoint).unwrap().send(message("1")).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Tls(_)) && error.delivery() == Delivery::NotSent, "{error:?}");

    let no_tls = "does it speak TLS at all?";
    for (answer, words) in [
        (&b"\x0BMSH|^~\\&|\r\x1C\r"[..], no_tls),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", no_tls),
        (b"SSH-2.0-OpenSSH_9.6\r\n", no_tls),
        (b"", no_tls),
        (b"\x15\x03\x03\0\x02\x02\x28", "client certificate"),
        (b"\x15\x03\x03\0\x02\x02\x46", "no version of TLS in common"),
    ] {
        with_peer(
            |mut stream| {
                stream.write_all(answer).unwrap();
                if answer.is_empty() {
                    stream.shutdown(Shutdown::Write).unwrap();
                }
                let mut seen = Vec::new();
                // It ends in a reset if the client left something unread.
                let _ = stream.read_to_end(&mut seen);
                assert!(
                    !seen.is_empty() && !seen.windows(5).any(|part| part == b"PROBE"),
                    "a greeting, and no message"
                );
            },
            |endpoint| {
                let endpoint = endpoint.replace("mllp:", "mllps:");
                let error = Client::new(&endpoint).unwrap().send(message("1")).unwrap_err();
                let said = format!("{error:#}");
                assert!(matches!(error.kind(), ErrorKind::Tls(_)) && error.delivery() == Delivery::NotSent, "{said}");
                assert!(said.contains(words) && said.len() <= 300, "{answer:?}: {said}");
            },
        );
    }

    // A receiver with TLS, and a client without.
    let authority = Authority::new("Authority");
    let receiver = serve(authority.issue(&[NAME], Validity::Now).server());
    let endpoint = receiver.endpoint().replace("mllps:", "mllp:");
    let error = Client::new(&endpoint).unwrap().send(message("1")).unwrap_err();
    assert_eq!(error.delivery(), Delivery::Unknown, "{error:?}");
    assert!(format!("{error:#}").contains("try mllps://"), "{error:?}");
    assert!(receiver.received().is_empty());
}

#[test]
fn an_end_before_the_first_answer_asks_for_a_client_certificate() {
    let authority = Authority::new("Authority");
    for version in VERSIONS {
        let server = version(authority.issue(&[NAME], Validity::Now).server());
        let answers = [Step::accept(), Step::silence().close(), Step::silence().close()];
        let receiver = Receiver::builder().tls(server).scripted(answers).unwrap();
        let client = Client::builder(&receiver.endpoint()).timeout(LONG).tls(authority.trusted()).build().unwrap();
        client.send(message("1")).unwrap();
        for (id, is_asked) in [("2", false), ("3", true)] {
            let error = client.send(message(id)).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Disconnected { .. }), "{error:?}");
            assert_eq!(error.to_string().contains("client certificate"), is_asked, "{error:?}");
        }
    }
}

fn handshake_timed_out(error: &Error) {
    let phase = Phase::TlsHandshake;
    assert!(matches!(error.kind(), ErrorKind::Timeout { phase: at, limit: SHORT, .. } if *at == phase), "{error:?}");
    assert_eq!(error.delivery(), Delivery::NotSent);
    assert!(error.to_string().contains("does the peer speak TLS at all?"), "{error:?}");
}

#[test]
fn a_handshake_ends_by_its_limit() {
    let deaf = Deaf::new();
    let endpoint = deaf.endpoint().replace("mllp:", "mllps:");
    let client = |timeout, connect_timeout| {
        Client::builder(&endpoint).timeout(timeout).connect_timeout(connect_timeout).build().unwrap()
    };
    handshake_timed_out(&limited(SHORT, || client(SHORT, LONG).send(message("1"))).unwrap_err());
    let by_attempt = client(LONG, SHORT);
    handshake_timed_out(&limited(SHORT, || by_attempt.send(message("1"))).unwrap_err());
    handshake_timed_out(&limited(SHORT, || by_attempt.connect()).unwrap_err());

    let (done, finished) = mpsc::channel::<()>();
    with_peer(
        move |mut stream| {
            // A handshake record that is announced, and comes byte by byte.
            stream.write_all(b"\x16\x03\x03\x10\x00\x02\x00\x0F\xFC\x03\x03").unwrap();
            while finished.recv_timeout(SHORT / 10).is_err_and(|error| error == mpsc::RecvTimeoutError::Timeout) {
                if stream.write_all(b"x").is_err() {
                    break;
                }
            }
        },
        |endpoint| {
            let endpoint = endpoint.replace("mllp:", "mllps:");
            let client = Client::builder(&endpoint).timeout(SHORT).build().unwrap();
            handshake_timed_out(&limited(SHORT, || client.send(message("1"))).unwrap_err());
            drop(done);
        },
    );
}

#[test]
fn closing_ends_a_handshake() {
    let deaf = Deaf::new();
    let client = Client::builder(&deaf.endpoint().replace("mllp:", "mllps:")).timeout(LONG).build().unwrap();
    let error = prompt(|| {
        thread::scope(|scope| {
            let (begun, beginning) = mpsc::channel();
            let call = scope.spawn({
                let client = &client;
                move || {
                    begun.send(()).unwrap();
                    client.send(message("1"))
                }
            });
            beginning.recv().unwrap();
            assert!(beginning.recv_timeout(SHORT).is_err(), "it does not end by itself");
            client.close();
            call.join().unwrap()
        })
    })
    .unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Closed) && error.delivery() == Delivery::NotSent, "{error:?}");
}

#[test]
fn mutual_tls() {
    let authority = Authority::new("Authority");
    let other = Authority::new("Other Authority");
    let receiver = authority.issue(&[NAME], Validity::Now);
    for (is_tls13, version) in [(false, VERSIONS[0]), (true, VERSIONS[1])] {
        let serve =
            || serve(version(receiver.server().require_client_certificate(authority.pem().as_bytes()).unwrap()));
        let right = authority.issue(&["client.test"], Validity::Now).identify(authority.trusted());
        let ack = send(&serve(), right).unwrap();
        assert_eq!(ack.control_id(), "1");
        for (name, config) in [
            ("none", authority.trusted()),
            ("expired", authority.issue(&["client.test"], Validity::Past).identify(authority.trusted())),
            ("untrusted", other.issue(&["client.test"], Validity::Now).identify(authority.trusted())),
            ("self-signed", Certified::self_signed(&["client.test"]).identify(authority.trusted())),
        ] {
            let receiver = serve();
            let error = send(&receiver, config.clone()).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Tls(_)), "{name}: {error:?}");
            // Under TLS 1.3 the client is ready before it is judged.
            let expected = if is_tls13 { &[Delivery::Unknown, Delivery::NotSent][..] } else { &[Delivery::NotSent] };
            assert!(expected.contains(&error.delivery()), "{name}: {error:?}");
            assert!(receiver.received().is_empty(), "{name}");
            let said = format!("{error:#}");
            assert!(said.contains("certificate") && said.len() <= 300, "{name}: {said}");

            let connected = Client::builder(&receiver.endpoint()).timeout(LONG).tls(config).connect();
            let error = connected.and_then(|mut connection| connection.send(message("2").as_bytes())).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Tls(_)), "{name}: {error:?}");
            assert!(receiver.received().is_empty(), "{name}");
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn identities_from_pkcs12() {
    use openssl::{pkcs12::Pkcs12, pkey::PKey, x509::X509};
    let authority = Authority::new("Authority");
    let certified = authority.issue(&["client.test"], Validity::Now);
    let archive = Pkcs12::builder()
        .pkey(&PKey::private_key_from_pem(certified.key.as_bytes()).unwrap())
        .cert(&X509::from_pem(certified.chain.as_bytes()).unwrap())
        .build2("open sesame")
        .unwrap()
        .to_der()
        .unwrap();
    let receiver = authority.issue(&[NAME], Validity::Now).server();
    let receiver = serve(receiver.require_client_certificate(authority.pem().as_bytes()).unwrap());
    let right = authority.trusted().identity_pkcs12(&archive, "open sesame").unwrap();
    assert!(!format!("{right:?}").contains("sesame"));
    assert!(send(&receiver, right).is_ok());
    for (bytes, passphrase) in
        [(&archive[..], "open simsim"), (&archive, "open\0sesame"), (b"no archive", "open sesame"), (b"", "")]
    {
        let error = TlsConfig::new().identity_pkcs12(bytes, passphrase).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Config(_)), "{error:?}");
        let said = format!("{error} {error:?}");
        assert!(said.contains("client identity") && !said.contains("sesame") && !said.contains("simsim"), "{said}");
    }
}

#[test]
fn unreadable_material_says_what_was_expected() {
    let certified = Certified::self_signed(&["client.test"]);
    let relabelled = |label: &str| certified.key.replace("PRIVATE KEY", label);
    let chain = &*certified.chain;
    let identity = |chain: &str, key: &str| TlsConfig::new().identity_pem(chain.as_bytes(), key.as_bytes()).map(|_| ());
    let roots = |pem: &str| TlsConfig::new().root_certificates_pem(pem.as_bytes()).map(|_| ());
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (name, result, words) in [
        ("another form", identity(chain, &relabelled("DSA PRIVATE KEY")), "openssl pkey -in"),
        ("OpenSSH", identity(chain, &relabelled("OPENSSH PRIVATE KEY")), "OpenSSH"),
        ("encrypted", identity(chain, &relabelled("ENCRYPTED PRIVATE KEY")), "identity_pem_encrypted"),
        ("no key", identity(chain, ""), "BEGIN PRIVATE KEY"),
        ("no chain", identity("", &certified.key), "BEGIN CERTIFICATE"),
        ("broken key", identity(chain, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), "identity"),
        ("broken chain", identity(broken, &certified.key), "identity"),
        ("no roots", roots(""), "BEGIN CERTIFICATE"),
        ("OpenSSL's own form", roots(&chain.replace(" CERT", " TRUSTED CERT")), "openssl x509 -in"),
        ("broken roots", roots(broken), "root certificates"),
    ] {
        let error = result.expect_err(name);
        assert!(matches!(error.kind(), ErrorKind::Config(said) if said.contains(words)), "{name}: {error}");
        let key = certified.key.lines().nth(1).unwrap();
        assert!(!format!("{error} {error:?}").contains(key), "{name}");
    }
    // A word before the key, as some tools write.
    assert!(identity(chain, &format!("Bag Attributes\n{}", certified.key)).is_ok());
}

#[test]
fn what_cannot_be_is_said_at_build() {
    let authority = Authority::new("Authority");
    let build = |tls: TlsConfig| Client::builder("mllps://127.0.0.1:2575").tls(tls).build();
    for name in ["", ".", " ", "a b", "receiver..test", "*", "1.2.3", "a\0b"] {
        let error = build(authority.trusted().server_name(name)).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Config(said) if said.contains("server_name")), "{name:?}: {error}");
    }
    for name in ["receiver.test", "receiver", "127.0.0.1", "::1"] {
        assert!(build(authority.trusted().server_name(name)).is_ok(), "{name:?}");
    }
    let (one, other) = (authority.issue(&["a.test"], Validity::Now), authority.issue(&["b.test"], Validity::Now));
    let mismatched = TlsConfig::new().identity_pem(one.chain.as_bytes(), other.key.as_bytes()).unwrap_err();
    assert!(matches!(mismatched.kind(), ErrorKind::Config(said) if said.contains("belong")), "{mismatched}");
}

#[test]
fn tls_belongs_to_mllps() {
    let error = Client::builder("mllp://127.0.0.1:2575").tls(TlsConfig::new()).build().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Config(said) if said.contains("mllps")), "{error}");
}

#[test]
fn debug_shows_no_key() {
    let authority = Authority::new("Authority");
    let certified = authority.issue(&["client.test"], Validity::Now);
    let config = certified.identify(authority.trusted());
    let shown = format!("{config:?} {:?}", Client::builder("mllps://127.0.0.1:1").tls(config.clone()));
    let server = format!("{:?}", certified.server());
    for line in certified.key.lines().chain(certified.chain.lines()) {
        assert!(!shown.contains(line) && !server.contains(line), "{shown}");
    }
    assert!(shown.contains("identity: true"), "{shown}");
}

#[test]
fn unread_session_tickets_are_no_surplus() {
    let receiver = Transport::Tls13.receiver().scripted([]).unwrap();
    let client = Transport::Tls13.builder(&receiver.endpoint()).timeout(LONG).build().unwrap();
    client.connect().unwrap();
    // Idle time is what this is about: the tickets have come, and nobody has read them.
    thread::sleep(std::time::Duration::from_millis(300));
    for id in ["1", "2"] {
        assert_eq!(client.send(message(id)).unwrap().control_id(), id);
    }
    assert_eq!((receiver.connections(), client.stats().connections_opened), (1, 1));
}

#[test]
fn a_peer_that_stops_reading_inside_a_session() {
    for transport in [Transport::Tls12, Transport::Tls13] {
        // It answers the first message and then waits, before it sends nothing more.
        let step = Step::accept().then(Step::bytes("").after(LONG));
        let receiver = transport.receiver().scripted([step]).unwrap();
        let mut connection = transport.builder(&receiver.endpoint()).timeout(SHORT).connect().unwrap();
        connection.send(message("1").as_bytes()).unwrap();
        let large = message_of("2", 64 * 1024 * 1024);
        let error = limited(SHORT, || connection.exchange(&large).map(<[u8]>::len)).unwrap_err();
        let phase = Phase::Send;
        assert!(matches!(error.kind(), ErrorKind::Timeout { phase: at, .. } if *at == phase), "{error:?}");
        assert_eq!(error.delivery(), Delivery::NotSent);
    }
}

#[test]
fn limits_inside_a_session() {
    for transport in [Transport::Tls12, Transport::Tls13] {
        for step in [Step::silence(), Step::accept().half(), Step::accept().drip(SHORT / 2)] {
            let receiver = transport.receiver().answering(move |_| step.clone()).unwrap();
            let client = transport.builder(&receiver.endpoint()).timeout(LONG).build().unwrap();
            client.connect().unwrap();
            let error = limited(SHORT, || client.request(&message("1")).timeout(SHORT).send()).unwrap_err();
            assert!(error.is_timeout() && error.delivery() == Delivery::Unknown, "{error:?}");
        }
    }
}

#[test]
fn large_messages_inside_a_session() {
    for transport in [Transport::Tls12, Transport::Tls13] {
        let receiver = transport.receiver().answering(|payload| Step::frame(payload)).unwrap();
        let mut connection = transport.builder(&receiver.endpoint()).timeout(LONG).connect().unwrap();
        for size in [16 * 1024 - 4, 16 * 1024 - 3, 16 * 1024 - 2, 16 * 1024, 100_000, 5_000_000] {
            let payload = message_of("1", size);
            assert!(connection.exchange(&payload).unwrap() == payload, "{size}");
        }
        connection.close().unwrap();
    }
}

/// Keeps back the last bytes of what is written while it is told to.
#[derive(Debug)]
struct Withholding(TcpStream, Arc<AtomicBool>);

impl Read for Withholding {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Withholding {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let kept = if self.1.load(Ordering::SeqCst) { 3 } else { 0 };
        self.0.write_all(&bytes[..bytes.len() - kept])?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn half_a_record_while_idle_is_not_trusted() {
    let authority = Authority::new("Authority");
    let certified = authority.issue(&[NAME], Validity::Now);
    let identity = native_tls::Identity::from_pkcs8(certified.chain.as_bytes(), certified.key.as_bytes()).unwrap();
    let acceptor = native_tls::TlsAcceptor::new(identity).unwrap();
    let (said, heard) = mpsc::channel();
    with_peer(
        move |stream| {
            stream.set_nodelay(true).unwrap();
            let withhold = Arc::new(AtomicBool::new(false));
            let mut session = acceptor.accept(Withholding(stream, Arc::clone(&withhold))).unwrap();
            assert!(session.read(&mut [0; 1000]).unwrap() > 0);
            session.write_all(b"\x0Bone\x1C\r").unwrap();
            withhold.store(true, Ordering::SeqCst);
            session.write_all(b"\x0Bstale\x1C\r").unwrap();
            said.send(()).unwrap();
            common::drain(&session.get_ref().0);
        },
        |endpoint| {
            let endpoint = endpoint.replace("mllp:", "mllps:");
            let builder = Client::builder(&endpoint).timeout(LONG).tls(authority.trusted());
            let mut connection = builder.connect().unwrap();
            assert_eq!(connection.exchange(b"1").unwrap(), b"one");
            heard.recv().unwrap();
            let error = connection.exchange(b"2").map(<[u8]>::len).unwrap_err();
            assert_eq!(error.delivery(), Delivery::NotSent, "{error:?}");
            assert!(matches!(error.kind(), ErrorKind::Disconnected { phase: Phase::Send, .. }), "{error:?}");
            assert!(!connection.is_open());
        },
    );
}

#[test]
fn an_unacknowledged_message_arrives_whole_beside_unread_tickets() {
    for &transport in Transport::ALL {
        let receiver = transport.receiver().answering(|_| Step::silence()).unwrap();
        let client = transport.builder(&receiver.endpoint()).timeout(LONG).build().unwrap();
        for size in [1000, 1_000_000, 4_000_000] {
            client.request(&message_of("1", size)).send_unacknowledged().unwrap();
        }
        assert!(receiver.wait_for(3, LONG), "{transport:?}");
        assert_eq!(receiver.received()[2], message_of("1", 4_000_000));
    }
}

#[test]
fn a_name_is_asked_for_and_an_address_is_not() {
    let authority = Authority::new("Authority");
    let trusted = || TlsConfig::new().system_roots(false).root_certificates_pem(authority.pem().as_bytes()).unwrap();
    for (config, expected) in [(trusted(), false), (trusted().server_name(NAME), true)] {
        let (greeting, greeted) = mpsc::channel();
        with_peer(
            move |mut stream| {
                let mut hello = [0; 4096];
                let count = stream.read(&mut hello).unwrap();
                greeting.send(hello[..count].to_vec()).unwrap();
            },
            |endpoint| {
                let endpoint = endpoint.replace("mllp:", "mllps:");
                let error = Client::builder(&endpoint).timeout(LONG).tls(config).connect().unwrap_err();
                assert!(matches!(error.kind(), ErrorKind::Tls(_)), "{error:?}");
            },
        );
        let hello = greeted.recv().unwrap();
        assert_eq!(hello.windows(NAME.len()).any(|part| part == NAME.as_bytes()), expected);
        assert!(!hello.windows(9).any(|part| part == b"127.0.0.1"));
    }
}

#[test]
fn an_early_refusal_inside_a_session() {
    let authority = Authority::new("Authority");
    let certified = authority.issue(&[NAME], Validity::Now);
    let identity = native_tls::Identity::from_pkcs8(certified.chain.as_bytes(), certified.key.as_bytes()).unwrap();
    let acceptor = native_tls::TlsAcceptor::new(identity).unwrap();
    let error = with_peer(
        |stream| {
            let mut session = acceptor.accept(stream).unwrap();
            session.read_exact(&mut [0; 1000]).unwrap();
            session.write_all(&acknowledgment("AR", "1")).unwrap();
        },
        |endpoint| {
            let endpoint = endpoint.replace("mllp:", "mllps:");
            let client = Client::builder(&endpoint).timeout(LONG).tls(authority.trusted()).build().unwrap();
            client.send(message_of("1", 64 * 1024 * 1024)).unwrap_err()
        },
    );
    assert!(error.nak().is_some() && error.delivery() == Delivery::Refused, "{error:?}");
}
