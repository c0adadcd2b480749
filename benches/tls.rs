//! What an exchange over TLS costs beside a bare `write` and `read` of the same TLS library's
//! stream, in the same run.

mod common;

use std::hint::black_box;

use common::{Messages, compare, connect, exchange_bare, note, placements, run_on, serve};
use mllp_client::{Client, TlsConfig, frame::Framing};
use native_tls::{Certificate, Identity, TlsAcceptor, TlsConnector};

const SIZES: [(&str, usize); 3] = [("1 KB", 1_000), ("64 KB", 64_000), ("10 MB", 10_000_000)];

fn main() {
    let certified = rcgen::generate_simple_self_signed(["receiver.test".to_owned()]).expect("it can be made");
    let (pem, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
    let identity = Identity::from_pkcs8(pem.as_bytes(), key.as_bytes()).expect("they fit each other");
    let acceptor = TlsAcceptor::new(identity).expect("it is usable");
    let root = Certificate::from_pem(pem.as_bytes()).expect("it is PEM");
    let connector = TlsConnector::builder().add_root_certificate(root).build().expect("it is usable");
    let config =
        TlsConfig::new().root_certificates_pem(pem.as_bytes()).expect("it is PEM").server_name("receiver.test");

    for (title, here, there) in placements() {
        run_on(here);
        println!("\nTLS, {title:<24}{:>12}{:>12}", "bare", "exchange");
        for (name, size) in SIZES {
            let mut messages = Messages::new(size);
            let frame = Framing::default().encode(messages.next()).expect("the message has no framing byte");
            let acceptor = acceptor.clone();
            let address = serve(2, there, move |stream| acceptor.accept(stream).expect("the client is right"));
            let mut bare = connector.connect("receiver.test", connect(address)).expect("the receiver is right");
            let endpoint = format!("mllps://{address}");
            let builder = Client::builder(&endpoint).tls(config.clone());
            let mut connection = builder.connect().expect("the receiver is right");
            let ([bare, exchange], [_, ratio]) = compare(
                size,
                [&mut || exchange_bare(&mut bare, &frame), &mut || {
                    black_box(connection.exchange(messages.next()).expect("it is answered"));
                }],
            );
            println!("{name:<29}{bare:>9.2} us{exchange:>9.2} us{ratio:>8.3}");
            note(&format!("Exchange over TLS, {title}"), name, "exchange", ratio);
        }
    }
}
