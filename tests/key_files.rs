//! Certificates and private keys in the forms that people have them in, made by the `openssl`
//! command: each is accepted and works, or refused with a command that helps.

#![cfg(all(feature = "tls", target_os = "linux"))]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};

use common::{LONG, message};
use mllp_client::testing::{Receiver, ServerTls};
use mllp_client::{Advice, Client, Error, ErrorKind, TlsConfig};
use tempfile::TempDir;

/// Makes all files. `geheim` is the passphrase of what is encrypted.
const FILES: &str = r#"
set -e
printf 'basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign\n' > ca.ext
printf 'basicConstraints=CA:FALSE\nsubjectAltName=DNS:receiver.test\n' > leaf.ext
req() { openssl req -new -key $1.key -subj "/CN=$2" -out $1.csr; }
sign() { openssl x509 -req -in $1.csr -CA $2.pem -CAkey $2.key -CAcreateserial -days 99 -extfile $3.ext -out $1.pem; }
rsa() { openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out $1.key; }

rsa ca; openssl req -x509 -new -key ca.key -days 99 -subj '/CN=Hospital Authority' -out ca.pem -addext keyUsage=critical,keyCertSign
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out int.key; req int 'Issuing Authority'; sign int ca ca
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out server.key; req server server; sign server int leaf
cat server.pem int.pem > server.chain
rsa cl; req cl sender; sign cl ca leaf
rsa other; req other other; sign other ca leaf
openssl ecparam -name prime256v1 -genkey -out ec.key; req ec ec; sign ec ca leaf
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out p384.key; req p384 p384; sign p384 int leaf
openssl genpkey -algorithm ed25519 -out ed.key; req ed ed; sign ed ca leaf

cat ca.pem int.pem > two.pem
sed 's/$/\r/' ca.pem > ca.crlf.pem
tr '\n' '\r' < ca.pem > ca.cr.pem
(echo '# Hospital CA, gültig'; openssl x509 -in ca.pem -text) > ca.text.pem
sed 's/^/  /' ca.pem > ca.indent.pem
tr -d '\n' < ca.pem > ca.oneline.pem
tr -d '\n' < ca.pem | sed 's/-----BEGIN CERTIFICATE-----/&\n/; s/-----END/\n&/' > ca.long.pem
printf '\xef\xbb\xbf' | cat - ca.pem > ca.bom.pem
(printf '\xff\xfe'; iconv -t UTF-16LE ca.pem) > ca.u16.pem
(printf '\xfe\xff'; iconv -t UTF-16BE ca.pem) > ca.u16be.pem
sed 's/CERTIFICATE/X509 CERTIFICATE/' ca.pem > ca.x509.pem
openssl x509 -in ca.pem -outform der -out ca.der
base64 ca.der > ca.b64
openssl crl2pkcs7 -nocrl -certfile ca.pem -out ca.pem.p7b
openssl crl2pkcs7 -nocrl -certfile ca.pem -outform der -out ca.der.p7b
base64 ca.der.p7b > ca.b64.p7b
(printf '\xff\xfe'; iconv -t UTF-16LE ca.pem.p7b) > ca.u16.p7b
openssl x509 -in int.pem -outform der | cat - ca.der > two.der
openssl x509 -in ca.pem -trustout -out ca.trusted.pem
(cat ca.pem; sed '3,6d' cl.pem) > ca.onebad.pem
(cat ca.pem; head -n 5 cl.pem) > ca.cut.pem

openssl rsa -in cl.key -traditional -out cl.pkcs1.key
openssl ec -in ec.key -out ec.sec1.key
openssl ec -in ec.key -no_public -out ec.short.key
openssl ec -in p384.key -out p384.sec1.key
openssl pkcs8 -topk8 -nocrypt -in cl.key -outform der -out cl.der
openssl x509 -in cl.pem -outform der -out cl.cert.der
openssl rsa -in cl.key -traditional -outform der -out cl.pkcs1.der
openssl rsa -in cl.key -pubout -out cl.pub
(printf '\xff\xfe'; iconv -t UTF-16LE cl.key) > cl.u16.key
sed 's/$/\r/' cl.key > cl.crlf.key
cat ca.pem cl.pem > cl.reverse.pem
cat cl.pem ca.pem > cl.full.pem
openssl x509 -req -in cl.csr -CA ca.pem -CAkey ca.key -days -1 -extfile leaf.ext -out cl.old.pem
cat cl.old.pem cl.pem ca.pem > cl.renewed.pem
cat other.key cl.key > two.key
cat int.pem p384.pem > p384.chain
sed '1s/-----$/----/; $s/^-----/----/' cl.pkcs1.key > cl.dashes.key
openssl pkey -in ed.key -outform der -out ed.der
cat cl.key cl.pem ca.pem > all.pem
cat cl.reverse.pem cl.pkcs1.key > all.reverse.pem
openssl pkcs8 -topk8 -in cl.key -passout pass:geheim -out cl.enc8.key
openssl pkcs8 -topk8 -scrypt -in cl.key -passout pass:geheim -out cl.scrypt.key
openssl rsa -in cl.key -traditional -aes256 -passout pass:geheim -out cl.enc1.key
openssl pkcs8 -provider legacy -provider default -topk8 -v1 PBE-MD5-DES -in cl.key -passout pass:geheim -out cl.old.key

pack() { openssl pkcs12 -export -in cl.pem -inkey cl.key "$@"; }
pack -certfile ca.pem -passout pass:geheim -out new.p12
pack -passout pass: -out empty.p12
pack -passout 'pass:pässwörd' -out umlaut.p12
pack -certpbe PBE-SHA1-3DES -keypbe PBE-SHA1-3DES -macalg sha1 -passout pass:geheim -out tdes.p12
pack -legacy -passout pass:geheim -out legacy.p12
openssl pkcs12 -export -nokeys -in ca.pem -passout pass:geheim -out nokey.p12
base64 new.p12 > b64.p12
openssl pkcs12 -in new.p12 -nodes -passin pass:geheim -out bag.pem
"#;

/// What is given to a `TlsConfig`.
#[derive(Clone, Copy)]
enum Given {
    Roots(&'static str),
    Identity(&'static str, &'static str),
    Encrypted(&'static str, &'static str, &'static str),
    Pkcs12(&'static str, &'static str),
}
use Given::{Encrypted, Identity, Pkcs12, Roots};

/// `None`: accepted, and it works. Otherwise the words of the refusal.
const ROWS: &[(Given, Option<&str>)] = &[
    (Roots("ca.pem"), None),
    (Roots("two.pem"), None),
    (Roots("ca.crlf.pem"), None),
    (Roots("ca.cr.pem"), None),
    (Roots("ca.text.pem"), None),
    (Roots("ca.indent.pem"), None),
    (Roots("ca.oneline.pem"), None),
    (Roots("ca.long.pem"), None),
    (Roots("ca.bom.pem"), None),
    (Roots("ca.u16.pem"), None),
    (Roots("ca.u16be.pem"), None),
    (Roots("ca.x509.pem"), None),
    (Roots("ca.der"), None),
    (Roots("ca.b64"), None),
    (Roots("two.der"), None),
    (Roots("ca.b64.p7b"), Some("it is the base64 of PKCS#7")),
    (Roots("ca.u16.p7b"), Some("it is PKCS#7 in UTF-16")),
    (Roots("ca.pem.p7b"), Some("it is PKCS#7")),
    (Roots("ca.der.p7b"), Some("it is PKCS#7")),
    (Roots("new.p12"), Some("it is a PKCS#12 archive")),
    (Roots("ca.trusted.pem"), Some("TRUSTED CERTIFICATE")),
    (Roots("ca.onebad.pem"), Some("certificate 2 of 2 cannot be read")),
    (Roots("ca.cut.pem"), Some("certificate 2 of 2 cannot be read (its end, -----END CERTIFICATE-----, is missing)")),
    (Roots("cl.csr"), Some("a certificate request")),
    (Roots("cl.key"), Some("a private key and no certificate")),
    (Roots("leaf.ext"), Some("expected certificates, in PEM")),
    (Roots("cl.der"), Some("expected certificates, in PEM")),
    (Identity("cl.pem", "cl.key"), None),
    (Identity("cl.pem", "cl.pkcs1.key"), None),
    (Identity("cl.pem", "cl.u16.key"), None),
    (Identity("cl.pem", "cl.crlf.key"), None),
    (Identity("cl.pem", "cl.der"), None),
    (Identity("cl.cert.der", "cl.key"), None),
    (Identity("ec.pem", "ec.key"), None),
    (Identity("ec.pem", "ec.sec1.key"), None),
    (Identity("ec.pem", "ec.short.key"), None),
    (Identity("p384.pem", "p384.sec1.key"), None),
    (Identity("ed.pem", "ed.key"), None),
    (Identity("ed.pem", "ed.der"), None),
    (Identity("p384.chain", "p384.sec1.key"), None),
    (Identity("cl.renewed.pem", "cl.key"), None),
    (Identity("cl.pem", "two.key"), None),
    (Identity("cl.pem", "cl.dashes.key"), Some("there is no private key")),
    (Identity("cl.pem", "cl.cert.der"), Some("a certificate where the private key is expected")),
    (Identity("cl.full.pem", "cl.key"), None),
    (Identity("cl.reverse.pem", "cl.key"), None),
    (Identity("all.pem", "all.pem"), None),
    (Identity("all.reverse.pem", "all.reverse.pem"), None),
    (Identity("cl.key", "cl.pem"), None),
    (Identity("bag.pem", "bag.pem"), None),
    (Identity("cl.pem", "other.key"), Some("does not belong to the certificate")),
    (Identity("ec.pem", "cl.key"), Some("the private key (RSA) does not belong to the certificate (EC P-256)")),
    (Identity("cl.pem", "ed.key"), Some("does not belong")),
    (Identity("two.pem", "cl.key"), Some("does not belong to any of the 2 certificates")),
    (Identity("cl.pem", "cl.enc8.key"), Some("identity_pem_encrypted")),
    (Identity("cl.pem", "cl.enc1.key"), Some("identity_pem_encrypted")),
    (Identity("cl.pem", "cl.pub"), Some("a public key and no private key")),
    (Identity("cl.pem", "cl.pem"), Some("there is no private key")),
    (Identity("cl.key", "cl.key"), Some("a private key and no certificate")),
    (Identity("cl.pem", "cl.pkcs1.der"), Some("openssl pkey -inform der")),
    (Identity("cl.pem", "new.p12"), Some("identity_pkcs12")),
    (Identity("new.p12", "cl.key"), Some("PKCS#12")),
    (Encrypted("cl.pem", "cl.enc8.key", "geheim"), None),
    (Encrypted("cl.pem", "cl.scrypt.key", "geheim"), None),
    (Encrypted("cl.pem", "cl.enc1.key", "geheim"), None),
    (Encrypted("cl.pem", "cl.key", "geheim"), None),
    (Encrypted("cl.pem", "cl.enc8.key", "false"), Some("the passphrase is wrong, or the private key damaged")),
    (Encrypted("cl.pem", "cl.enc8.key", ""), Some("the passphrase is wrong, or the private key damaged")),
    (Encrypted("cl.pem", "cl.scrypt.key", "false"), Some("the passphrase is wrong, or the private key damaged")),
    (Encrypted("cl.pem", "cl.enc1.key", "false"), Some("the passphrase is wrong, or the private key damaged")),
    (Encrypted("cl.pem", "cl.old.key", "geheim"), Some("too old for OpenSSL 3")),
    (Pkcs12("new.p12", "geheim"), None),
    (Pkcs12("empty.p12", ""), None),
    (Pkcs12("umlaut.p12", "pässwörd"), None),
    (Pkcs12("tdes.p12", "geheim"), None),
    (Pkcs12("b64.p12", "geheim"), None),
    (Pkcs12("new.p12", "false"), Some("the passphrase is wrong")),
    (Pkcs12("legacy.p12", "geheim"), Some("too old for OpenSSL 3")),
    (Pkcs12("nokey.p12", "geheim"), Some("no certificate with its private key")),
    (Pkcs12("all.pem", "geheim"), Some("use identity_pem")),
    (Pkcs12("leaf.ext", "geheim"), Some("expected a PKCS#12 archive")),
];

impl Given {
    fn apply(self, files: &Path) -> Result<TlsConfig, Error> {
        let read = |name: &str| fs::read(files.join(name)).unwrap();
        let trusting = || TlsConfig::new().system_roots(false).server_name("receiver.test");
        let roots = |name: &str| trusting().root_certificates_pem(&read(name));
        match self {
            Roots(name) => roots(name),
            Identity(chain, key) => roots("ca.pem")?.identity_pem(&read(chain), &read(key)),
            Encrypted(chain, key, passphrase) => {
                roots("ca.pem")?.identity_pem_encrypted(&read(chain), &read(key), passphrase)
            }
            Pkcs12(name, passphrase) => roots("ca.pem")?.identity_pkcs12(&read(name), passphrase),
        }
    }

    /// The same with what the commands of a hint have made of a file.
    fn replaced(self, made: &'static str) -> Given {
        match self {
            Roots(_) => Roots(made),
            Identity(chain, _) | Encrypted(chain, ..) => Identity(chain, made),
            Pkcs12(_, passphrase) => Pkcs12(made, passphrase),
        }
    }

    fn file(self) -> &'static str {
        match self {
            Roots(name) | Identity(_, name) | Encrypted(_, name, _) | Pkcs12(name, _) => name,
        }
    }

    fn name(self) -> String {
        match self {
            Roots(name) => format!("roots {name}"),
            Identity(chain, key) => format!("identity {chain} {key}"),
            Encrypted(chain, key, passphrase) => format!("identity {chain} {key} with {passphrase:?}"),
            Pkcs12(name, passphrase) => format!("PKCS#12 {name} with {passphrase:?}"),
        }
    }
}

fn shell(directory: &Path, script: &str) -> Result<(), String> {
    let output =
        Command::new("bash").args(["-c", script]).current_dir(directory).output().map_err(|e| e.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// The directory with all files, which tests that run beside each other share; `None` where there
/// is no `openssl` command.
fn files() -> Option<Arc<TempDir>> {
    static MADE: Mutex<Weak<TempDir>> = Mutex::new(Weak::new());
    let mut made = MADE.lock().unwrap();
    if let Some(directory) = made.upgrade() {
        return Some(directory);
    }
    let directory = Arc::new(tempfile::tempdir().unwrap());
    if shell(directory.path(), "openssl version && iconv --version").is_err() {
        assert!(std::env::var_os("MLLP_OPENSSL_REQUIRED").is_none(), "the openssl command is missing");
        eprintln!("skipped: there is no openssl command");
        return None;
    }
    shell(directory.path(), FILES).unwrap();
    *made = Arc::downgrade(&directory);
    Some(directory)
}

/// The commands of an error's hint, between backticks.
fn commands(said: &str) -> Vec<&str> {
    said.split('`').skip(1).step_by(2).collect()
}

/// Runs the commands of a hint on the file that it is given for; the name of what they make.
fn follow(files: &Path, given: Given, said: &str) -> Option<&'static str> {
    let commands = commands(said);
    let word = |command: &str, marks: [&str; 2], offset: usize| {
        let words: Vec<_> = command.split(' ').collect();
        let mark = marks.iter().find_map(|mark| words.iter().position(|word| word == mark)).unwrap();
        words[mark + 1 - offset * 2].to_owned()
    };
    let first = commands.first()?;
    let input = if first.contains(" -in ") { word(first, ["-in", "-in"], 0) } else { word(first, [">", ">"], 1) };
    let desk = files.join("desk");
    fs::create_dir_all(&desk).unwrap();
    // They may be the same file.
    let content = fs::read(files.join(given.file())).unwrap();
    fs::write(desk.join(&input), content).unwrap();
    for command in &commands {
        // Where it would ask for a passphrase.
        let asks = if command.contains("pkcs12 -export") { " -passout pass:geheim" } else { " -passin pass:geheim" };
        let asks = if ["pkcs7", "x509", " > "].iter().any(|word| command.contains(word)) { "" } else { asks };
        shell(&desk, &format!("{command}{asks}")).unwrap_or_else(|error| panic!("{command}: {error}"));
    }
    Some(format!("desk/{}", word(commands.last()?, ["-out", ">"], 0)).leak())
}

#[test]
fn every_form_is_accepted_or_refused_with_a_command_that_helps() {
    let Some(files) = files() else { return };
    let files = files.path();
    let read = |name: &str| fs::read(files.join(name)).unwrap();
    let server = || ServerTls::new(&read("server.chain"), &read("server.key")).unwrap();
    let open = Receiver::builder().tls(server()).answering(|_| mllp_client::testing::Step::accept()).unwrap();
    // It takes whoever has a certificate of the authority.
    let closed = server().require_client_certificate(&read("two.pem")).unwrap();
    let closed = Receiver::builder().tls(closed).answering(|_| mllp_client::testing::Step::accept()).unwrap();
    let works = |given: Given, config: TlsConfig| {
        let receiver = if matches!(given, Roots(_)) { &open } else { &closed };
        let client = Client::builder(&receiver.endpoint()).timeout(LONG).tls(config).build().unwrap();
        client.send(message("1")).map(|_| ()).unwrap_or_else(|error| panic!("{}: {error:#}", given.name()));
    };
    let mut helped = 0;
    for (given, refused) in ROWS {
        let name = given.name();
        match (given.apply(files), refused) {
            (Ok(config), None) => works(*given, config),
            (Err(error), Some(words)) => {
                let said = error.to_string();
                assert!(matches!(error.kind(), ErrorKind::Config(_)) && said.contains(words), "{name}: {said}");
                assert!(!said.contains("geheim") && said.len() <= 300, "{name}: {} {said}", said.len());
                assert!(!said.contains("MII"), "{name}: a part of the file");
                assert!(!words.contains("passphrase") || !said.contains("legacy"), "{name}: {said}");
                // What a command makes may need another.
                let (mut given, mut said, mut steps) = (*given, said, 0);
                while let Some(made) = follow(files, given, &said) {
                    (given, steps) = (given.replaced(made), steps + 1);
                    match given.apply(files) {
                        Ok(config) => {
                            works(given, config);
                            helped += 1;
                            break;
                        }
                        Err(error) if steps < 3 => said = error.to_string(),
                        Err(error) => panic!("{name}: {made}: {error}"),
                    }
                }
            }
            (Ok(_), Some(_)) => panic!("{name} is accepted"),
            (Err(error), None) => panic!("{name}: {error}"),
        }
    }
    assert_eq!(helped, 9);
}

#[test]
fn a_wrong_passphrase_is_called_so_whatever_it_makes_of_the_key() {
    let Some(files) = files() else { return };
    // One in 256 decrypts to something that seems whole.
    for number in 0..700 {
        let passphrase = format!("false {number}").leak();
        let error = Encrypted("cl.pem", "cl.enc8.key", passphrase).apply(files.path()).unwrap_err().to_string();
        assert!(error.contains("the passphrase is wrong") && !error.contains("old"), "{error}");
    }
}

#[test]
fn what_is_trusted_without_its_root_says_so() {
    let Some(files) = files() else { return };
    let files = files.path();
    let read = |name: &str| fs::read(files.join(name)).unwrap();
    let server = ServerTls::new(&read("server.chain"), &read("server.key")).unwrap();
    let receiver = Receiver::builder().tls(server).answering(|_| mllp_client::testing::Step::accept()).unwrap();
    let send = |roots: &str| {
        let trusting = TlsConfig::new().system_roots(false).server_name("receiver.test");
        let config = trusting.root_certificates_pem(&read(roots)).unwrap();
        Client::builder(&receiver.endpoint()).timeout(LONG).tls(config).build().unwrap().send(message("1"))
    };
    for name in ["server.pem", "int.pem", "ec.pem"] {
        let error = send(name).unwrap_err();
        let said = format!("{error:#}");
        assert_eq!(error.advice(), Advice::FixSetup, "{name}: {said}");
        assert!(said.contains("its root is missing") && said.len() <= 300, "{name}: {said}");
        for command in commands(&said) {
            fs::copy(files.join(name), files.join("trusted.pem")).unwrap();
            shell(files, &command.replace("ca.pem", "trusted.pem")).unwrap();
        }
    }
    // An authority that has nothing to do with it is no root that is missing.
    let foreign = "openssl req -x509 -new -key other.key -days 99 -subj /CN=Other -out foreign.pem
        openssl x509 -req -in cl.csr -CA foreign.pem -CAkey other.key -CAcreateserial -out below.pem
        cat below.pem foreign.pem > foreign.chain";
    shell(files, foreign).unwrap();
    for roots in ["foreign.pem", "foreign.chain"] {
        let said = format!("{:#}", send(roots).unwrap_err());
        assert!(said.contains("is not from a trusted authority"), "{roots}: {said}");
    }
    send("two.pem").unwrap();
}
