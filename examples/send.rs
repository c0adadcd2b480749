//! Sends messages and prints each acknowledgment's code and control ID.
//!
//! Without arguments it starts a receiver of its own and sends a sample to it. A file may have many
//! messages, in whatever shape; they are sent one by one, in order, up to the first that fails.
//! Standard output has one line for each message, as `AA MSG00001`; everything else goes to
//! standard error.

use std::error::Error as _;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use mllp_client::testing::Receiver;
use mllp_client::{Ack, Client, ClientBuilder, Delivery, Error, ErrorKind, messages};

/// Sends HL7 v2 messages over MLLP.
#[derive(Parser)]
#[command(after_help = "Exit status: 0 accepted, 1 refused, 2 usage, configuration or invalid message, \
                        3 not sent, 4 unknown, 5 committed")]
struct Arguments {
    /// The receiver, as mllp://host:2575 or mllps://host:2575; without it, one that is started here
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// A bundled message with invented people
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    sample: Option<Sample>,
    /// The limit for each message
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    timeout: Duration,
    /// A file with messages, or - for standard input: one or many, framed or not, lines ended in
    /// any way
    file: Option<PathBuf>,
    #[command(flatten)]
    tls: TlsArguments,
}

/// For an mllps:// receiver
#[derive(Args)]
#[command(next_help_heading = "TLS")]
struct TlsArguments {
    /// Trusts the certificate authorities in this PEM file, beside the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The client's certificate chain, a PEM file
    #[arg(long, value_name = "FILE", requires = "key", conflicts_with = "pkcs12")]
    cert: Option<PathBuf>,
    /// Its private key, a PKCS#8 PEM file
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The client's certificate and key in a PKCS#12 file, whose passphrase is taken from the
    /// environment variable MLLP_PKCS12_PASSPHRASE
    #[arg(long, value_name = "FILE")]
    pkcs12: Option<PathBuf>,
    /// The name that the receiver's certificate must be for, if it is not the host's
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// Accepts any certificate: whoever is on the line can read and change what is sent
    #[arg(long)]
    insecure: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Sample {
    AdtA01,
    OruR01,
    OrmO01,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let text = match read(&arguments) {
        Ok(text) => text,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::from(2);
        }
    };
    let Some(endpoint) = &arguments.to else {
        return match Receiver::accepting() {
            Ok(receiver) => {
                eprintln!("sending to a receiver started here, {}", receiver.endpoint());
                send(Client::builder(&receiver.endpoint()).timeout(arguments.timeout), &text)
            }
            Err(error) => {
                eprintln!("no receiver can be started here: {error}");
                ExitCode::from(3)
            }
        };
    };
    let builder = Client::builder(endpoint).timeout(arguments.timeout);
    match secured(builder, &arguments.tls) {
        Ok(builder) => send(builder, &text),
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::from(2)
        }
    }
}

/// The builder with what the arguments say of TLS.
#[cfg(feature = "tls")]
fn secured(builder: ClientBuilder, arguments: &TlsArguments) -> Result<ClientBuilder, String> {
    use mllp_client::TlsConfig;

    if !arguments.any() {
        return Ok(builder);
    }
    let file = |path: &PathBuf| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let text = |error: mllp_client::Error| error.to_string();
    let mut tls = TlsConfig::new().danger_accept_invalid_certs(arguments.insecure);
    if let Some(ca) = &arguments.ca {
        tls = tls.root_certificates_pem(&file(ca)?).map_err(text)?;
    }
    if let (Some(cert), Some(key)) = (&arguments.cert, &arguments.key) {
        tls = tls.identity_pem(&file(cert)?, &file(key)?).map_err(text)?;
    }
    if let Some(pkcs12) = &arguments.pkcs12 {
        let passphrase = std::env::var("MLLP_PKCS12_PASSPHRASE").unwrap_or_default();
        tls = tls.identity_pkcs12(&file(pkcs12)?, &passphrase).map_err(text)?;
    }
    if let Some(name) = &arguments.server_name {
        tls = tls.server_name(name);
    }
    Ok(builder.tls(tls))
}

#[cfg(not(feature = "tls"))]
fn secured(builder: ClientBuilder, arguments: &TlsArguments) -> Result<ClientBuilder, String> {
    if arguments.any() { Err("this was built without the feature `tls`".into()) } else { Ok(builder) }
}

impl TlsArguments {
    fn any(&self) -> bool {
        let TlsArguments { ca, cert, key, pkcs12, server_name, insecure } = self;
        [ca, cert, key, pkcs12].into_iter().any(Option::is_some) || server_name.is_some() || *insecure
    }
}

fn send(builder: ClientBuilder, text: &[u8]) -> ExitCode {
    let messages: Vec<_> = messages::locate(text).collect();
    if messages.is_empty() {
        eprintln!("there is no message to send");
        return ExitCode::from(2);
    }
    let client = match builder.build() {
        Ok(client) => client,
        Err(error) => return explain(&error),
    };
    // Shown on a terminal only.
    let progress = match messages.len() {
        1 => ProgressBar::hidden(),
        many => ProgressBar::new(many as u64),
    };
    progress
        .set_style(ProgressStyle::with_template("{wide_bar} {pos} of {len}, {eta} left").expect("the template is one"));
    for result in client.send_all(messages.iter().map(|found| &found.message)) {
        match result {
            Ok(ack) => progress.suspend(|| report(&ack)),
            Err(error) => {
                progress.abandon();
                let number = progress.position() as usize;
                let line = messages[number].problem.map_or(messages[number].line, |problem| problem.line);
                eprintln!("message {} of {}, line {line}:", number + 1, messages.len());
                return explain(&error);
            }
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    ExitCode::SUCCESS
}

/// Says what went wrong, with its causes, and what became of the message.
fn explain(error: &Error) -> ExitCode {
    if let Some(nak) = error.nak() {
        report(nak);
    }
    eprintln!("{error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
    ExitCode::from(match (error.kind(), error.delivery()) {
        (ErrorKind::Config(_) | ErrorKind::InvalidMessage(_), _) => 2,
        (_, Delivery::Refused) => 1,
        (_, Delivery::NotSent) => 3,
        (_, Delivery::Unknown) => 4,
        (_, Delivery::Committed) => 5,
    })
}

/// What the messages are in.
fn read(arguments: &Arguments) -> Result<Vec<u8>, String> {
    let sample = match (arguments.sample, &arguments.to) {
        (None, None) => Some(Sample::AdtA01),
        (sample, _) => sample,
    };
    Ok(match (&arguments.file, sample) {
        (Some(file), _) if file.as_os_str() == "-" => {
            let mut text = Vec::new();
            std::io::stdin().read_to_end(&mut text).map_err(|error| format!("standard input: {error}"))?;
            text
        }
        (Some(file), _) => std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?,
        (None, Some(Sample::AdtA01)) => include_bytes!("samples/adt-a01.hl7").to_vec(),
        (None, Some(Sample::OruR01)) => include_bytes!("samples/oru-r01.hl7").to_vec(),
        (None, Some(Sample::OrmO01)) => include_bytes!("samples/orm-o01.hl7").to_vec(),
        (None, None) => return Err("what is to be sent? Give a file, - or --sample; see --help".into()),
    })
}

/// The line for standard output; what the receiver found wrong goes to standard error.
fn report(ack: &Ack) {
    println!("{} {}", ack.code(), ack.control_id());
    if let Some(reason) = ack.reason() {
        eprintln!("{}: {}", ack.code(), reason.escape_debug());
    }
    for detail in ack.errors() {
        let parts = [
            ("error", detail.code()),
            ("severity", detail.severity()),
            ("at", detail.location()),
            ("text", detail.text()),
        ];
        for (name, part) in parts {
            if let Some(part) = part {
                eprintln!("  {name}: {}", part.escape_debug());
            }
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
