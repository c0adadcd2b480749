//! Certificates and private keys as files hold them: PEM among other text, DER, and the forms that
//! private keys come in.

use std::borrow::Cow;
use std::fmt;

use native_tls::{Certificate, Identity, TlsConnector};
use pkcs8::der::asn1::{AnyRef, OctetStringRef};
use pkcs8::der::pem::{self, LineEnding};
use pkcs8::der::{Decode, Reader, SecretDocument, SliceReader, Tag, Tagged};
use pkcs8::{AlgorithmIdentifierRef, ObjectIdentifier, PrivateKeyInfoRef};

use crate::net::in_short;

/// The algorithm of RSA keys (RFC 8017, appendix C).
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// The algorithm of keys on elliptic curves, whose parameters name the curve (RFC 5480).
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");

const CERTIFICATE: &str = "CERTIFICATE";
/// The label of an unencrypted PKCS#8 key (RFC 7468, section 10).
const PKCS8: &str = "PRIVATE KEY";
const ENCRYPTED_PKCS8: &str = "ENCRYPTED PRIVATE KEY";

/// A certificate that is trusted.
#[derive(Clone)]
pub(crate) struct Trusted {
    pub(crate) certificate: Certificate,
    der: Vec<u8>,
}

/// The certificates in a file of authorities.
///
/// # Errors
///
/// A description of the problem and, where one exists, the command that converts the file.
pub(crate) fn trusted(file: &[u8]) -> Result<Vec<Trusted>, String> {
    let file = Content::read(file)?;
    let certificates = file.certificates()?;
    if certificates.is_empty() {
        return Err(file.no_certificate());
    }
    let count = certificates.len();
    let trust = |(index, der): (usize, Vec<u8>)| match Certificate::from_der(&der) {
        Ok(certificate) => Ok(Trusted { certificate, der }),
        Err(error) => Err(unreadable_certificate(index, count, &in_short(&error))),
    };
    certificates.into_iter().enumerate().map(trust).collect()
}

/// Whether the issuer of a trusted certificate is not among them, and neither is it its own, as a
/// root authority is.
pub(crate) fn lacks_root(trusted: &[Trusted]) -> bool {
    let names: Vec<_> = trusted.iter().filter_map(|it| issuer_and_subject(&it.der)).collect();
    names.iter().any(|(issuer, _)| !names.iter().any(|(_, subject)| subject == issuer))
}

/// The certificate chain and private key in two files, or in one that is given twice, in any order.
///
/// # Errors
///
/// A description of the problem and, where one exists, the `openssl` command that converts a file.
pub(crate) fn identity(chain: &[u8], key: &[u8], passphrase: Option<&str>) -> Result<Identity, String> {
    let (chain, key) = (Content::read(chain)?, Content::read(key)?);
    if chain.is_pkcs12() || key.is_pkcs12() {
        return Err("it is a PKCS#12 archive: use identity_pkcs12".to_owned());
    }
    let mut certificates = chain.certificates()?;
    for certificate in pem_certificates(key.blocks())? {
        if !certificates.contains(&certificate) {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(chain.no_certificate());
    }
    let keys = match &key {
        Content::Der(der) => vec![der_key(der)?],
        Content::Text { blocks, .. } => pem_keys(blocks, chain.blocks(), passphrase, &certificates)?,
    };
    let mut problem = None;
    for key in &keys {
        match own_certificate(&certificates, key) {
            Ok(own) => return of_parts(certificates, own, key),
            Err(other) => problem = problem.or(Some(other)),
        }
    }
    Err(problem.unwrap_or_else(|| "there is no private key (-----BEGIN PRIVATE KEY-----)".to_owned()))
}

fn unreadable_key(problem: &dyn fmt::Display) -> String {
    format!("the private key cannot be read ({})", in_short(problem))
}

/// Which certificate belongs to a key: of several the one that is valid for the longest, since
/// renewed certificates often keep their key.
fn own_certificate(certificates: &[Vec<u8>], key: &SecretDocument) -> Result<usize, String> {
    let algorithm = key.decode_msg::<PrivateKeyInfoRef<'_>>().map_err(|error| unreadable_key(&error))?.algorithm;
    let key_pem = key.to_pem(PKCS8, LineEnding::LF).map_err(|error| unreadable_key(&error))?;
    let count = certificates.len();
    let mut names = Vec::new();
    let mut own: Option<(String, usize)> = None;
    for (index, der) in certificates.iter().enumerate() {
        let unreadable = |problem: &dyn fmt::Display| unreadable_certificate(index, count, problem);
        Certificate::from_der(der).map_err(|error| unreadable(&in_short(&error)))?;
        let of_certificate = public_key_algorithm(der).ok_or_else(|| unreadable(&"no public key"))?;
        names.push(name(&of_certificate));
        // OpenSSL reports a mismatch only between keys of the same algorithm. For other pairs it
        // reports success, and later sends no certificate.
        if !is_same(&of_certificate, &algorithm) {
            continue;
        }
        let identity = Identity::from_pkcs8(pem_of([der])?.as_bytes(), key_pem.as_bytes());
        let identity = identity.map_err(|error| unreadable_key(&error))?;
        match TlsConnector::builder().disable_built_in_roots(true).identity(identity).build() {
            Ok(_) => {
                let expiry = expiry(der).unwrap_or_default();
                if own.as_ref().is_none_or(|(latest, _)| *latest < expiry) {
                    own = Some((expiry, index));
                }
            }
            Err(error) if error.to_string().contains("mismatch") => {}
            Err(error) => return Err(format!("the certificate or its key is not accepted ({})", in_short(&error))),
        }
    }
    names.dedup();
    own.map(|(_, index)| index).ok_or_else(|| {
        let what = if count == 1 { "the certificate".to_owned() } else { format!("any of the {count} certificates") };
        format!(
            "the private key ({}) does not belong to {what} ({}); use the pair that was made together",
            name(&algorithm),
            names.join(", ")
        )
    })
}

/// The identity of a key and the certificate that belongs to it, with the others after it.
fn of_parts(mut certificates: Vec<Vec<u8>>, own: usize, key: &SecretDocument) -> Result<Identity, String> {
    // A chain that begins with the root is in reverse order.
    if own > 0 && own == certificates.len() - 1 {
        certificates.reverse();
    } else {
        certificates[..=own].rotate_right(1);
    }
    let key = key.to_pem(PKCS8, LineEnding::LF).map_err(|error| unreadable_key(&error))?;
    Identity::from_pkcs8(pem_of(&certificates)?.as_bytes(), key.as_bytes()).map_err(|error| in_short(&error))
}

/// The identity in a PKCS#12 archive.
///
/// # Errors
///
/// A description of the problem and, where one exists, the `openssl` command that converts the
/// file.
pub(crate) fn pkcs12_identity(file: &[u8], passphrase: &str) -> Result<Identity, String> {
    check_passphrase(passphrase)?;
    let der = match Content::read(file)? {
        Content::Der(der) if is_pkcs12(&der) => der,
        Content::Text { blocks, .. } if !blocks.is_empty() => {
            return Err("it is PEM text, not a PKCS#12 archive: use identity_pem".to_owned());
        }
        _ => return Err("expected a PKCS#12 archive (.p12, .pfx)".to_owned()),
    };
    Identity::from_pkcs12(&der, passphrase).map_err(|error| {
        let said = in_short(&error);
        if said.contains("mac verify failure") || said.contains("bad decrypt") {
            return format!("the passphrase is wrong ({said})");
        }
        if said.contains("at least one certificate") {
            return "the archive has no certificate with its private key; export both".to_owned();
        }
        if is_too_old(&error) {
            return format!(
                "its cipher is too old for OpenSSL 3: unpack it with `openssl pkcs12 -legacy -in old.p12 -nodes -out all.pem` \
                 and pack it anew with `openssl pkcs12 -export -in all.pem -out new.p12` ({said})"
            );
        }
        format!("the archive cannot be read ({said})")
    })
}

fn check_passphrase(passphrase: &str) -> Result<(), String> {
    if passphrase.contains('\0') { Err("a passphrase cannot contain a NUL character".to_owned()) } else { Ok(()) }
}

/// Whether OpenSSL has no implementation of the cipher, or hides it among its legacy ones. What a
/// wrong passphrase makes of a key is "unsupported" too, and so is no sign of it.
fn is_too_old(error: &dyn fmt::Display) -> bool {
    let said = error.to_string();
    ["Algorithm (", "unknown pbe", "unknown cipher", "unsupported cipher"].iter().any(|words| said.contains(words))
}

/// What a file has in it.
enum Content<'f> {
    Der(Cow<'f, [u8]>),
    /// PEM, or anything else.
    Text {
        blocks: Vec<Block>,
        is_utf16: bool,
    },
}

/// A part of a PEM text (RFC 7468), between its BEGIN and its END.
struct Block {
    label: String,
    /// The header lines of older forms, as `Proc-Type: 4,ENCRYPTED`.
    headers: Vec<String>,
    /// Without white space.
    base64: String,
    is_whole: bool,
}

impl<'f> Content<'f> {
    /// Reads a file: DER, the base64 of PKCS#12 or a certificate without anything around it, or
    /// PEM.
    ///
    /// # Errors
    ///
    /// The command that decodes the base64 of PKCS#7.
    fn read(file: &'f [u8]) -> Result<Content<'f>, String> {
        if is_der(file) {
            return Ok(Content::Der(Cow::Borrowed(file)));
        }
        let text = text(file);
        let blocks = blocks(&text);
        let base64: String = match &blocks[..] {
            [] => text.split_whitespace().collect(),
            [block] if block.label == "PKCS12" => block.base64.clone(),
            _ => String::new(),
        };
        let whole = Block { label: "DER".to_owned(), headers: Vec::new(), base64, is_whole: true };
        match pem::decode_vec(whole.canonical().as_bytes()) {
            Ok((_, der)) if is_pkcs7(&der) => {
                Err("it is the base64 of PKCS#7; `base64 -d ca.b64 > ca.p7b` decodes it".to_owned())
            }
            Ok((_, der)) if is_der(&der) => Ok(Content::Der(Cow::Owned(der))),
            _ => Ok(Content::Text { blocks, is_utf16: is_utf16(file) }),
        }
    }

    fn blocks(&self) -> &[Block] {
        match self {
            Content::Der(_) => &[],
            Content::Text { blocks, .. } => blocks,
        }
    }

    fn is_pkcs12(&self) -> bool {
        matches!(self, Content::Der(der) if is_pkcs12(der))
    }

    fn certificates(&self) -> Result<Vec<Vec<u8>>, String> {
        match self {
            Content::Der(der) => der_certificates(der),
            Content::Text { blocks, .. } => pem_certificates(blocks),
        }
    }

    /// Describes the problem of a file without a certificate.
    fn no_certificate(&self) -> String {
        let blocks = self.blocks();
        let has = |labels: &[&str]| blocks.iter().any(|block| labels.contains(&block.label.as_str()));
        if has(&["PKCS7"]) && matches!(self, Content::Text { is_utf16: true, .. }) {
            "it is PKCS#7 in UTF-16; `iconv -f UTF-16 -t UTF-8 ca.p7b > ca.utf8.p7b` makes UTF-8 of it".to_owned()
        } else if has(&["PKCS7"]) {
            "it is PKCS#7; `openssl pkcs7 -in ca.p7b -print_certs -out ca.pem` makes PEM certificates of it".to_owned()
        } else if has(&["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"]) {
            "it is a certificate request; use the certificate that the authority made of it".to_owned()
        } else if blocks.iter().any(Block::is_private_key) {
            "there is a private key and no certificate (-----BEGIN CERTIFICATE-----)".to_owned()
        } else {
            EXPECTED.to_owned()
        }
    }
}

impl Block {
    fn is_certificate(&self) -> bool {
        matches!(self.label.as_str(), CERTIFICATE | "X509 CERTIFICATE")
    }

    fn is_private_key(&self) -> bool {
        self.label.ends_with(PKCS8)
    }

    fn is_encrypted(&self) -> bool {
        self.label == ENCRYPTED_PKCS8 || self.headers.iter().any(|header| header.contains("ENCRYPTED"))
    }

    /// The block as the specification wants it, whatever its lines were like.
    fn canonical(&self) -> String {
        let lines: Vec<_> = self.base64.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        let headers: String = self.headers.iter().map(|header| format!("{header}\n")).collect();
        let gap = if headers.is_empty() { "" } else { "\n" };
        let (label, lines) = (&self.label, lines.join("\n"));
        format!("-----BEGIN {label}-----\n{headers}{gap}{lines}\n-----END {label}-----\n")
    }

    fn der(&self) -> Result<SecretDocument, String> {
        if !self.is_whole {
            return Err(format!("its end, -----END {}-----, is missing", self.label));
        }
        SecretDocument::from_pem(&self.canonical()).map(|(_, der)| der).map_err(|error| error.to_string())
    }
}

/// Whether a file is UTF-16, by its byte-order mark.
fn is_utf16(file: &[u8]) -> bool {
    file.starts_with(b"\xFF\xFE") || file.starts_with(b"\xFE\xFF")
}

fn text(file: &[u8]) -> Cow<'_, str> {
    if !is_utf16(file) {
        return String::from_utf8_lossy(file);
    }
    let unit = if file[0] == 0xFF { u16::from_le_bytes } else { u16::from_be_bytes };
    let units: Vec<u16> = file[2..].chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect();
    String::from_utf16_lossy(&units).into()
}

fn blocks(text: &str) -> Vec<Block> {
    const BEGIN: &str = "-----BEGIN ";
    let mut blocks = Vec::new();
    // Each part is what follows one BEGIN, up to the next.
    for part in text.split(BEGIN).skip(1) {
        let Some((label, body)) = part.split_once("-----") else { continue };
        // Anything else may be a key whose BEGIN is damaged, and is shown in no error.
        let is_label = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b' ';
        if label.len() > 40 || !label.bytes().all(is_label) {
            continue;
        }
        let end = body.find("-----END ");
        let lines = body[..end.unwrap_or(body.len())].split(['\r', '\n']);
        let (headers, base64): (Vec<_>, Vec<_>) = lines.map(str::trim).partition(|line| line.contains(':'));
        blocks.push(Block {
            label: label.trim().to_owned(),
            headers: headers.into_iter().map(str::to_owned).collect(),
            base64: base64.concat().split_whitespace().collect(),
            is_whole: end.is_some(),
        });
    }
    blocks
}

/// Whether bytes begin as DER does here: a sequence, of more than 127 bytes, of indefinite length
/// (BER), or of just the length of the whole.
fn is_der(bytes: &[u8]) -> bool {
    match bytes {
        [0x30, 0x80..=0x84, ..] => true,
        [0x30, length, rest @ ..] => usize::from(*length) == rest.len() && !rest.is_empty(),
        _ => false,
    }
}

/// The certificates among the blocks of a PEM text.
fn pem_certificates(blocks: &[Block]) -> Result<Vec<Vec<u8>>, String> {
    if blocks.iter().any(|block| block.label == "TRUSTED CERTIFICATE") {
        return Err("an OpenSSL TRUSTED CERTIFICATE is among them; `openssl x509 -in ca.pem -out plain.pem` makes an \
                    ordinary one of the first in a file"
            .to_owned());
    }
    let found: Vec<_> = blocks.iter().filter(|block| block.is_certificate()).collect();
    let count = found.len();
    let der = |(index, block): (usize, &&Block)| {
        block.der().map(|der| der.as_bytes().to_vec()).map_err(|problem| unreadable_certificate(index, count, &problem))
    };
    found.iter().enumerate().map(der).collect()
}

/// The certificates in DER, one after the other.
fn der_certificates(der: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    if is_pkcs7(der) {
        return Err(
            "it is PKCS#7; `openssl pkcs7 -inform der -in ca.p7b -print_certs -out ca.pem` makes PEM of it".to_owned()
        );
    }
    if is_pkcs12(der) {
        return Err(
            "it is a PKCS#12 archive; `openssl pkcs12 -in ca.p12 -nokeys -out ca.pem` (with -legacy for an old \
                    one) takes the certificates out of it"
                .to_owned(),
        );
    }
    let not_one = |problem: &dyn fmt::Display| format!("{EXPECTED} ({})", in_short(problem));
    let mut reader = SliceReader::new(der).map_err(|error| not_one(&error))?;
    let mut certificates = Vec::new();
    while !reader.is_finished() {
        let one = reader.tlv_bytes().map_err(|error| not_one(&error))?;
        Certificate::from_der(one).map_err(|error| not_one(&error))?;
        certificates.push(one.to_vec());
    }
    Ok(certificates)
}

const EXPECTED: &str = "expected certificates, in PEM (-----BEGIN CERTIFICATE-----) or in DER";

fn unreadable_certificate(index: usize, count: usize, problem: &dyn fmt::Display) -> String {
    if count == 1 {
        format!("the certificate cannot be read ({problem})")
    } else {
        format!("certificate {} of {count} cannot be read ({problem})", index + 1)
    }
}

/// The private keys in PEM texts, as PKCS#8. The `key` argument is searched first.
fn pem_keys(
    key: &[Block],
    chain: &[Block],
    passphrase: Option<&str>,
    certificates: &[Vec<u8>],
) -> Result<Vec<SecretDocument>, String> {
    let all = || key.iter().chain(chain);
    let mut keys = Vec::new();
    for block in all().filter(|block| block.is_private_key()) {
        keys.extend(match block.label.as_str() {
            _ if block.is_encrypted() => {
                let passphrase =
                    passphrase.ok_or("the private key is encrypted: use identity_pem_encrypted with its passphrase")?;
                vec![decrypt(block, passphrase)?]
            }
            PKCS8 => vec![block.der().map_err(|problem| unreadable_key(&problem))?],
            "RSA PRIVATE KEY" => {
                let der = block.der().map_err(|problem| unreadable_key(&problem))?;
                vec![wrapped(AlgorithmIdentifierRef { oid: RSA, parameters: Some(AnyRef::NULL) }, &der)?]
            }
            "EC PRIVATE KEY" => {
                let der = block.der().map_err(|problem| unreadable_key(&problem))?;
                let curves = curves_for(&der, all(), certificates);
                if curves.is_empty() {
                    return Err(unreadable_key(&"it does not name its curve"));
                }
                let algorithms =
                    curves.iter().map(|curve| AlgorithmIdentifierRef { oid: EC, parameters: Some(curve.into()) });
                algorithms.map(|algorithm| wrapped(algorithm, &der)).collect::<Result<_, _>>()?
            }
            "OPENSSH PRIVATE KEY" => {
                return Err(
                    "it is an OpenSSH key, which TLS cannot use: use the key that was made with the certificate"
                        .to_owned(),
                );
            }
            label => {
                return Err(format!(
                    "the private key has an unknown format ({label}); `openssl pkey -in client.key -out plain.key` \
                     makes a PKCS#8 key of it"
                ));
            }
        });
    }
    if keys.is_empty() && all().any(|block| block.label.ends_with("PUBLIC KEY")) {
        return Err("there is a public key and no private key (-----BEGIN PRIVATE KEY-----)".to_owned());
    }
    Ok(keys)
}

/// A key of an older form as PKCS#8, which names its algorithm.
fn wrapped(algorithm: AlgorithmIdentifierRef<'_>, key: &SecretDocument) -> Result<SecretDocument, String> {
    let key = OctetStringRef::new(key.as_bytes()).map_err(|error| unreadable_key(&error))?;
    SecretDocument::try_from(PrivateKeyInfoRef::new(algorithm, key)).map_err(|error| unreadable_key(&error))
}

/// The curve that a SEC1 key names; where it names none, that of an `EC PARAMETERS` block, or those
/// of the certificates.
fn curves_for<'b>(
    key: &SecretDocument,
    blocks: impl Iterator<Item = &'b Block>,
    certificates: &[Vec<u8>],
) -> Vec<ObjectIdentifier> {
    let own = curve_of(key.as_bytes());
    let stated = blocks.filter(|block| block.label == "EC PARAMETERS").filter_map(|block| block.der().ok());
    let stated = stated.filter_map(|der| ObjectIdentifier::from_der(der.as_bytes()).ok()).next();
    match own.or(stated) {
        Some(curve) => vec![curve],
        None => {
            let of = |der: &Vec<u8>| public_key_algorithm(der)?.parameters?.decode_as::<ObjectIdentifier>().ok();
            certificates.iter().filter_map(of).collect()
        }
    }
}

/// A private key in DER, which has to be PKCS#8.
fn der_key(der: &[u8]) -> Result<SecretDocument, String> {
    if Certificate::from_der(der).is_ok() {
        return Err("there is a certificate where the private key is expected".to_owned());
    }
    let info = PrivateKeyInfoRef::from_der(der).ok();
    info.and_then(|info| SecretDocument::try_from(info).ok()).ok_or_else(|| {
        "the private key cannot be read; `openssl pkey -inform der -in client.key -out plain.key` makes a PKCS#8 PEM \
         key of it"
            .to_owned()
    })
}

/// The key of an encrypted block, as PKCS#8.
#[cfg(not(any(target_os = "windows", target_vendor = "apple")))]
fn decrypt(block: &Block, passphrase: &str) -> Result<SecretDocument, String> {
    use openssl::pkey::PKey;

    check_passphrase(passphrase)?;
    // In the older PEM form (`Proc-Type`) the content is DER only after decryption.
    if !block.is_whole || block.headers.is_empty() {
        block.der().map_err(|problem| unreadable_key(&problem))?;
    }
    let key = PKey::private_key_from_pem_passphrase(block.canonical().as_bytes(), passphrase.as_bytes());
    let key = key.map_err(|error| {
        let said = in_short(&error);
        if is_too_old(&error) {
            format!(
                "the private key's cipher is too old for OpenSSL 3: decrypt it with `openssl pkey -provider legacy \
                 -provider default -in client.key -out plain.key` ({said})"
            )
        } else {
            format!("the passphrase is wrong, or the private key damaged ({said})")
        }
    })?;
    let der = key.private_key_to_pkcs8().map_err(|error| error.to_string())?;
    SecretDocument::try_from(der).map_err(|error| error.to_string())
}

#[cfg(any(target_os = "windows", target_vendor = "apple"))]
fn decrypt(_: &Block, _: &str) -> Result<SecretDocument, String> {
    Err("on this system a private key cannot be decrypted; pack it as PKCS#12 with `openssl pkcs12 -export -inkey \
         client.key -in client.pem -out client.p12` and use identity_pkcs12"
        .to_owned())
}

fn pem_of<'c>(certificates: impl IntoIterator<Item = &'c Vec<u8>>) -> Result<String, String> {
    let encoded = certificates.into_iter().map(|der| pem::encode_string(CERTIFICATE, LineEnding::LF, der));
    encoded
        .collect::<Result<Vec<String>, _>>()
        .map(|certificates| certificates.concat())
        .map_err(|error| error.to_string())
}

/// Whether DER, or BER, begins as signed data of PKCS#7 does (RFC 2315, section 9.1).
fn is_pkcs7(der: &[u8]) -> bool {
    const SIGNED_DATA: &[u8] = b"\x2A\x86\x48\x86\xF7\x0D\x01\x07\x02";
    der.windows(SIGNED_DATA.len()).take(8).any(|window| window == SIGNED_DATA)
}

/// Whether DER, or BER, begins as a PKCS#12 archive does, with version 3 (RFC 7292, section 4).
fn is_pkcs12(der: &[u8]) -> bool {
    der.windows(4).take(8).any(|window| window == b"\x02\x01\x03\x30")
}

/// The parts of a sequence, or of a value that holds others.
fn parts<'d>(value: &'d [u8]) -> Option<Vec<AnyRef<'d>>> {
    let mut reader = SliceReader::new(value).ok()?;
    let mut parts = Vec::new();
    while !reader.is_finished() {
        parts.push(AnyRef::decode(&mut reader).ok()?);
    }
    Some(parts)
}

/// The parts of a certificate's first sequence from the issuer on: issuer, validity, subject,
/// public key (RFC 5280, section 4.1).
fn from_issuer_on(certificate: &[u8]) -> Option<Vec<AnyRef<'_>>> {
    let tbs = parts(AnyRef::from_der(certificate).ok()?.value())?.first()?.value();
    let parts = parts(tbs)?;
    // The version is left out by certificates of version 1.
    let serial_number = parts.iter().position(|part| Tag::Integer == part.tag())?;
    Some(parts.get(serial_number + 2..)?.to_vec())
}

fn issuer_and_subject(certificate: &[u8]) -> Option<(AnyRef<'_>, AnyRef<'_>)> {
    let parts = from_issuer_on(certificate)?;
    Some((*parts.first()?, *parts.get(2)?))
}

/// When a certificate expires, as text that can be compared: the year has four digits (RFC 5280,
/// section 4.1.2.5).
fn expiry(certificate: &[u8]) -> Option<String> {
    let validity = from_issuer_on(certificate)?.get(1)?.value();
    let not_after = *parts(validity)?.get(1)?;
    let text = std::str::from_utf8(not_after.value()).ok()?;
    Some(match not_after.tag() {
        Tag::UtcTime => format!("{}{text}", if text < "50" { "20" } else { "19" }),
        _ => text.to_owned(),
    })
}

fn public_key_algorithm(certificate: &[u8]) -> Option<AlgorithmIdentifierRef<'_>> {
    let parts = from_issuer_on(certificate)?;
    let algorithm = self::parts(parts.get(3)?.value())?.first()?.to_owned();
    algorithm.decode_as().ok()
}

/// The curve that an elliptic-curve key names itself (SEC1, RFC 5915: `[0]` of its sequence).
fn curve_of(key: &[u8]) -> Option<ObjectIdentifier> {
    let parts = parts(AnyRef::from_der(key).ok()?.value())?;
    let parameters = parts.iter().find(|part| part.tag().number().value() == 0)?;
    ObjectIdentifier::from_der(parameters.value()).ok()
}

/// Whether two keys are of one kind, so that they can be compared.
fn is_same(one: &AlgorithmIdentifierRef<'_>, other: &AlgorithmIdentifierRef<'_>) -> bool {
    one.oid == other.oid && (one.oid != EC || one.parameters == other.parameters)
}

fn name(algorithm: &AlgorithmIdentifierRef<'_>) -> String {
    let curve = || algorithm.parameters?.decode_as::<ObjectIdentifier>().ok();
    match (algorithm.oid, curve()) {
        (RSA, _) => "RSA".to_owned(),
        (EC, Some(curve)) => match curve.to_string().as_str() {
            "1.2.840.10045.3.1.7" => "EC P-256".to_owned(),
            "1.3.132.0.34" => "EC P-384".to_owned(),
            "1.3.132.0.35" => "EC P-521".to_owned(),
            other => format!("EC on curve {other}"),
        },
        (other, _) if other.to_string() == "1.3.101.112" => "Ed25519".to_owned(),
        (other, _) => other.to_string(),
    }
}
