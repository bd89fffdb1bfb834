//! The authority that signs certificates. The request's subject, key and alternative names go into
//! the certificate byte for byte; all else is decided here.

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use rcgen::{KeyPair, SigningKey};
use x509_parser::{oid_registry::OID_X509_EXT_SUBJECT_KEY_IDENTIFIER, pem::parse_x509_pem};
use yasna::{DERWriter, DERWriterSeq, Tag, models::ObjectIdentifier};

use super::request::Request;

/// A certificate that asks for no time is valid this long, and none is longer.
const LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 365);
/// Clocks of others may be this much behind.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);
/// A certificate that is valid less long than this is not shortened by the backdating.
const SHORT: SignedDuration = SignedDuration::from_hours(8);
/// The shortest time a certificate is valid.
const LEAST_SECONDS: i64 = 600;
/// Bytes of a serial number.
const SERIAL_BYTES: usize = 16;
/// Times from this year on are written with four digits of the year.
const LONG_YEARS: i16 = 2050;

const TAG_UTC_TIME: u8 = 0x17;
const TAG_GENERALIZED_TIME: u8 = 0x18;

const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const EXTENDED_KEY_USAGE: &[u64] = &[2, 5, 29, 37];
const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
const AUTHORITY_KEY: &[u64] = &[2, 5, 29, 35];
const ALTERNATIVE_NAMES: &[u64] = &[2, 5, 29, 17];

/// Usages that are bits of the key usage, in the order of the bits.
const KEY_USAGES: [&[&str]; 9] = [
    &["digital signature", "signing"],
    &["content commitment"],
    &["key encipherment"],
    &["data encipherment"],
    &["key agreement"],
    &["cert sign"],
    &["crl sign"],
    &["encipher only"],
    &["decipher only"],
];

/// Usages that are extended ones.
const EXTENDED_USAGES: [(&[&str], &[u64]); 10] = [
    (&["any"], &[2, 5, 29, 37, 0]),
    (&["server auth"], &[1, 3, 6, 1, 5, 5, 7, 3, 1]),
    (&["client auth"], &[1, 3, 6, 1, 5, 5, 7, 3, 2]),
    (&["code signing"], &[1, 3, 6, 1, 5, 5, 7, 3, 3]),
    (
        &["email protection", "s/mime"],
        &[1, 3, 6, 1, 5, 5, 7, 3, 4],
    ),
    (&["ipsec end system"], &[1, 3, 6, 1, 5, 5, 7, 3, 5]),
    (&["ipsec tunnel"], &[1, 3, 6, 1, 5, 5, 7, 3, 6]),
    (&["ipsec user"], &[1, 3, 6, 1, 5, 5, 7, 3, 7]),
    (&["timestamping"], &[1, 3, 6, 1, 5, 5, 7, 3, 8]),
    (&["ocsp signing"], &[1, 3, 6, 1, 5, 5, 7, 3, 9]),
];

/// Why a certificate cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The authority's certificate cannot be read.
    #[error("the authority's certificate: {0}")]
    Certificate(String),
    /// The authority's key cannot be used.
    #[error("the authority's key: {0}")]
    Key(#[from] rcgen::Error),
    /// The key is of a kind that nothing is signed with here.
    #[error("the authority's key is neither ECDSA, RSA nor Ed25519")]
    UnknownAlgorithm,
    /// A usage that no certificate has.
    #[error("unrecognized usage: {0:?}")]
    UnknownUsage(String),
}

/// An authority.
pub struct Authority {
    key: KeyPair,
    /// Its name, DER.
    subject: Vec<u8>,
    /// The identifier of its key, if it has one.
    key_id: Option<Vec<u8>>,
    ends: Timestamp,
    /// How its signatures are made: object identifier, and whether a null follows.
    algorithm: (&'static [u64], bool),
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}

fn algorithm(key: &KeyPair) -> Result<(&'static [u64], bool), AuthorityError> {
    let known = key.algorithm();
    if *known == rcgen::PKCS_ECDSA_P256_SHA256 {
        Ok((&[1, 2, 840, 10045, 4, 3, 2], false))
    } else if *known == rcgen::PKCS_ECDSA_P384_SHA384 {
        Ok((&[1, 2, 840, 10045, 4, 3, 3], false))
    } else if *known == rcgen::PKCS_ED25519 {
        Ok((&[1, 3, 101, 112], false))
    } else if *known == rcgen::PKCS_RSA_SHA256 {
        Ok((&[1, 2, 840, 113549, 1, 1, 11], true))
    } else {
        Err(AuthorityError::UnknownAlgorithm)
    }
}

impl Authority {
    /// From its certificate and key, both PEM.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub fn new(certificate: &str, key: &str) -> Result<Self, AuthorityError> {
        let unreadable = |e: &dyn std::fmt::Display| AuthorityError::Certificate(e.to_string());
        let key = KeyPair::from_pem(key)?;
        let (_, pem) = parse_x509_pem(certificate.as_bytes()).map_err(|e| unreadable(&e))?;
        let parsed = pem.parse_x509().map_err(|e| unreadable(&e))?;
        let ends = Timestamp::from_second(parsed.validity().not_after.timestamp())
            .map_err(|e| unreadable(&e))?;
        let key_id = parsed
            .extensions()
            .iter()
            .find(|e| e.oid == OID_X509_EXT_SUBJECT_KEY_IDENTIFIER)
            .and_then(|e| yasna::parse_der(e.value, |r| r.read_bytes()).ok());
        Ok(Self {
            subject: parsed.subject().as_raw().to_vec(),
            key_id,
            ends,
            algorithm: algorithm(&key)?,
            key,
        })
    }

    /// Signs what was asked for; PEM.
    ///
    /// # Errors
    /// When a usage is unknown or the key fails.
    pub fn sign(
        &self,
        asked: &Request,
        usages: &[String],
        seconds: Option<i32>,
        now: Timestamp,
    ) -> Result<String, AuthorityError> {
        let usages = Usages::of(usages)?;
        let (from, to) = self.validity(seconds, now);
        let serial: [u8; SERIAL_BYTES] = rand::random();
        let body = yasna::construct_der(|w| {
            w.write_sequence(|w| {
                w.next().write_tagged(Tag::context(0), |w| w.write_u8(2));
                w.next().write_bigint_bytes(&serial, true);
                self.write_algorithm(w.next());
                w.next().write_der(&self.subject);
                w.next().write_sequence(|w| {
                    w.next().write_der(&time(from));
                    w.next().write_der(&time(to));
                });
                w.next().write_der(&asked.subject);
                w.next().write_der(&asked.public_key);
                w.next().write_tagged(Tag::context(3), |w| {
                    w.write_sequence(|w| self.write_extensions(w, &usages, asked));
                });
            });
        });
        let signature = self.key.sign(&body)?;
        let whole = yasna::construct_der(|w| {
            w.write_sequence(|w| {
                w.next().write_der(&body);
                self.write_algorithm(w.next());
                let bits = signature.len() * 8;
                w.next().write_bitvec_bytes(&signature, bits);
            });
        });
        Ok(pem(&whole))
    }

    fn validity(&self, seconds: Option<i32>, now: Timestamp) -> (Timestamp, Timestamp) {
        let asked = seconds.map(|s| SignedDuration::from_secs(i64::from(s).max(LEAST_SECONDS)));
        let lifetime = asked.unwrap_or(LIFETIME).min(LIFETIME);
        let from = now.saturating_sub(BACKDATE).unwrap_or(now);
        let base = if lifetime < SHORT { now } else { from };
        let to = base.saturating_add(lifetime).unwrap_or(self.ends);
        (from, to.min(self.ends))
    }

    fn write_algorithm(&self, w: DERWriter<'_>) {
        let (oid, null) = self.algorithm;
        w.write_sequence(|w| {
            w.next().write_oid(&ObjectIdentifier::from_slice(oid));
            if null {
                w.next().write_null();
            }
        });
    }

    fn write_extensions(&self, w: &mut DERWriterSeq<'_>, usages: &Usages, asked: &Request) {
        if let Some(bits) = &usages.bits {
            extension(w, KEY_USAGE, true, bits);
        }
        if !usages.extended.is_empty() {
            let list = yasna::construct_der(|w| {
                w.write_sequence(|w| {
                    for oid in &usages.extended {
                        w.next().write_oid(&ObjectIdentifier::from_slice(oid));
                    }
                });
            });
            extension(w, EXTENDED_KEY_USAGE, false, &list);
        }
        let no_authority = yasna::construct_der(|w| w.write_sequence(|_| {}));
        extension(w, BASIC_CONSTRAINTS, true, &no_authority);
        if let Some(id) = &self.key_id {
            let id = yasna::construct_der(|w| {
                w.write_sequence(|w| {
                    w.next()
                        .write_tagged_implicit(Tag::context(0), |w| w.write_bytes(id));
                });
            });
            extension(w, AUTHORITY_KEY, false, &id);
        }
        if let Some(names) = &asked.alternative_names {
            extension(w, ALTERNATIVE_NAMES, false, names);
        }
    }
}

fn extension(w: &mut DERWriterSeq<'_>, oid: &[u64], critical: bool, value: &[u8]) {
    w.next().write_sequence(|w| {
        w.next().write_oid(&ObjectIdentifier::from_slice(oid));
        if critical {
            w.next().write_bool(true);
        }
        w.next().write_bytes(value);
    });
}

/// Usages as extensions have them.
struct Usages {
    /// The key usage, DER.
    bits: Option<Vec<u8>>,
    extended: Vec<&'static [u64]>,
}

impl Usages {
    fn of(all: &[String]) -> Result<Self, AuthorityError> {
        let (mut set, mut extended) = ([false; KEY_USAGES.len()], Vec::new());
        for usage in all {
            let names = |names: &[&str]| names.contains(&usage.as_str());
            let bit = KEY_USAGES.iter().position(|n| names(n));
            let long = EXTENDED_USAGES.iter().find(|(n, _)| names(n));
            match (bit, long) {
                (Some(bit), _) => set[bit] = true,
                (None, Some((_, oid))) => extended.push(*oid),
                (None, None) => return Err(AuthorityError::UnknownUsage(usage.clone())),
            }
        }
        extended.sort_unstable();
        extended.dedup();
        // Zeroes at the end are not written.
        let len = set.iter().rposition(|b| *b).map(|last| last + 1);
        let bits = len.map(|len| {
            let mut bytes = vec![0_u8; len.div_ceil(8)];
            for (i, _) in set.iter().enumerate().filter(|(_, b)| **b) {
                bytes[i / 8] |= 0x80 >> (i % 8);
            }
            yasna::construct_der(|w| w.write_bitvec_bytes(&bytes, len))
        });
        Ok(Self { bits, extended })
    }
}

fn time(at: Timestamp) -> Vec<u8> {
    let at = at.to_zoned(TimeZone::UTC);
    let (tag, text) = if at.year() < LONG_YEARS {
        (TAG_UTC_TIME, at.strftime("%y%m%d%H%M%SZ").to_string())
    } else {
        (
            TAG_GENERALIZED_TIME,
            at.strftime("%Y%m%d%H%M%SZ").to_string(),
        )
    };
    // Both are shorter than what needs a long length.
    let mut bytes = vec![tag, text.len() as u8];
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa};
    use x509_parser::extensions::GeneralName;

    fn authority() -> (Authority, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "root");
        let certificate = params.self_signed(&key).unwrap().pem();
        let authority = Authority::new(&certificate, &key.serialize_pem()).unwrap();
        (authority, certificate)
    }

    fn request(names: &[&str]) -> Request {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, "jane");
        params
            .distinguished_name
            .push(DnType::OrganizationName, "dev");
        let csr = params.serialize_request(&key).unwrap();
        Request::parse(csr.pem().unwrap().as_bytes()).unwrap()
    }

    #[test]
    fn what_is_signed_can_be_verified() {
        let (authority, root) = authority();
        let asked = request(&["web.example", "10.0.0.1"]);
        assert_eq!(
            (asked.common_name.as_str(), asked.dns, asked.addresses),
            ("jane", 1, 1)
        );
        assert_eq!(asked.organizations, ["dev"]);
        let now: Timestamp = "2030-01-01T12:00:00Z".parse().unwrap();
        let usages = ["client auth", "digital signature", "key encipherment"].map(str::to_owned);
        let pem = authority.sign(&asked, &usages, Some(3600), now).unwrap();
        let (_, root) = parse_x509_pem(root.as_bytes()).unwrap();
        let root = root.parse_x509().unwrap();
        let (_, signed) = parse_x509_pem(pem.as_bytes()).unwrap();
        let signed = signed.parse_x509().unwrap();
        signed.verify_signature(Some(root.public_key())).unwrap();
        assert_eq!(signed.subject().as_raw(), asked.subject);
        assert_eq!(signed.issuer(), root.subject());
        assert_eq!(signed.public_key().raw, asked.public_key);
        assert_eq!(
            signed.validity().not_after.timestamp(),
            now.as_second() + 3600
        );
        assert_eq!(
            signed.validity().not_before.timestamp(),
            now.as_second() - 300
        );
        let extended = signed.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.client_auth && !extended.server_auth);
        let usage = signed.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
        assert!(!signed.is_ca());
        let names = signed.subject_alternative_name().unwrap().unwrap().value;
        assert!(
            names
                .general_names
                .contains(&GeneralName::DNSName("web.example"))
        );
        assert_eq!(
            super::super::request::expiry(pem.as_bytes()).map(|t| t.as_second()),
            Some(now.as_second() + 3600)
        );
    }

    #[test]
    fn times_are_bounded() {
        let (mut authority, _) = authority();
        let now: Timestamp = "2030-01-01T12:00:00Z".parse().unwrap();
        let seconds = |authority: &Authority, asked: Option<i32>| {
            authority.validity(asked, now).1.as_second() - now.as_second()
        };
        assert_eq!(seconds(&authority, Some(1)), 600);
        assert_eq!(seconds(&authority, Some(i32::MAX)), 365 * 24 * 3600 - 300);
        assert_eq!(seconds(&authority, None), 365 * 24 * 3600 - 300);
        authority.ends = now.checked_add(SignedDuration::from_secs(7)).unwrap();
        assert_eq!(seconds(&authority, None), 7);
        assert_eq!(
            time("2050-01-01T00:00:00Z".parse().unwrap())[0],
            TAG_GENERALIZED_TIME
        );
    }

    #[test]
    fn foreign_requests_are_refused() {
        assert!(Request::parse(b"nonsense").is_err());
        let (authority, root) = authority();
        assert!(Request::parse(root.as_bytes()).is_err());
        let unknown = authority.sign(
            &request(&[]),
            &["flying".into()],
            None,
            Timestamp::UNIX_EPOCH,
        );
        assert!(matches!(unknown, Err(AuthorityError::UnknownUsage(_))));
    }
}
