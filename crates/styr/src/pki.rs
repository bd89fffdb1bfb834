//! The cluster's private certificate authority and the certificates it signs.
//!
//! The authority, that of the front proxy, the service-account key, the encryption key and the
//! administrator's certificate are kept in `pki/`; certificates of the server's own parts are signed
//! anew at each start, so they never run out while their names and addresses stay right.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::files;

/// How long the authority is valid.
const CA_LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);
/// How long a signed certificate is valid.
const LEAF_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// A kept certificate is signed anew when it is older than this.
const RENEW_AFTER: Duration = Duration::from_secs(180 * 24 * 3600);
/// Clocks of clients may be this much behind.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);
/// Files and name of the authority of requests that are passed on to other API servers.
const FRONT_PROXY: &str = "front-proxy-ca";
/// Bytes of the key that secrets are encrypted with.
const ENCRYPTION_KEY_BYTES: usize = 32;

/// Why a certificate or key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The refusal.
        source: std::io::Error,
    },
    /// A key or certificate is damaged.
    #[error(
        "{path} is damaged ({reason}); restore it from a backup, or start afresh with `styr delete`"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Signing failed.
    #[error("signing a certificate: {0}")]
    Sign(#[from] rcgen::Error),
}

/// A certificate and its key, both PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Certificate.
    pub certificate: String,
    /// Private key, PKCS #8.
    pub key: String,
}

/// Whom a certificate is for.
pub struct Subject<'a> {
    /// Common name: the user.
    pub name: &'a str,
    /// Organization: the group, if any.
    pub group: Option<&'a str>,
    /// DNS names and addresses; a certificate with any is a server's too.
    pub dns: &'a [String],
    /// Addresses.
    pub addresses: &'a [IpAddr],
}

/// The cluster's authority.
pub struct Pki {
    dir: PathBuf,
    ca: Pair,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// Reads the authority in `dir`, or makes it.
    ///
    /// # Errors
    /// When the file system refuses or the files are damaged.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        Self::open_named(dir, "ca", "styr-ca")
    }

    /// The authority that other API servers know this one by, and no client of this one.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn front_proxy(&self) -> Result<Self, PkiError> {
        Self::open_named(&self.dir, FRONT_PROXY, FRONT_PROXY)
    }

    fn open_named(dir: &Path, file: &str, name: &str) -> Result<Self, PkiError> {
        fs::create_dir_all(dir).map_err(|source| PkiError::Io {
            path: dir.to_owned(),
            source,
        })?;
        let ca = match read_pair(dir, file)? {
            Some(pair) => pair,
            None => {
                let pair = new_authority(name)?;
                write_pair(dir, file, &pair)?;
                pair
            }
        };
        let damaged = |e: rcgen::Error| PkiError::Damaged {
            path: dir.join(format!("{file}.crt")),
            reason: e.to_string(),
        };
        let key = KeyPair::from_pem(&ca.key).map_err(damaged)?;
        let issuer = Issuer::from_ca_cert_pem(&ca.certificate, key).map_err(damaged)?;
        Ok(Self {
            dir: dir.to_owned(),
            ca,
            issuer,
        })
    }

    /// The authority's certificate, PEM.
    pub fn ca_certificate(&self) -> &str {
        &self.ca.certificate
    }

    /// The authority's certificate and key, both PEM.
    pub fn authority(&self) -> (&str, &str) {
        (&self.ca.certificate, &self.ca.key)
    }

    /// Signs a new certificate.
    ///
    /// # Errors
    /// When a name cannot be put in a certificate.
    pub fn sign(&self, subject: &Subject<'_>) -> Result<Pair, PkiError> {
        let mut params = CertificateParams::new(subject.dns.to_vec())?;
        let addresses = subject.addresses.iter().map(|a| SanType::IpAddress(*a));
        params.subject_alt_names.extend(addresses);
        params
            .distinguished_name
            .push(DnType::CommonName, subject.name);
        if let Some(group) = subject.group {
            params
                .distinguished_name
                .push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !params.subject_alt_names.is_empty() {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        validity(&mut params, LEAF_LIFETIME);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// A certificate kept as `name` in the folder; signed anew when it is missing or old.
    ///
    /// # Errors
    /// As [`Self::sign`], or when the file system refuses.
    pub fn kept(&self, name: &str, subject: &Subject<'_>) -> Result<Pair, PkiError> {
        let path = self.dir.join(format!("{name}.crt"));
        let young = fs::metadata(&path)
            .and_then(|m| m.modified())
            .is_ok_and(|t| t.elapsed().is_ok_and(|age| age < RENEW_AFTER));
        if young && let Some(pair) = read_pair(&self.dir, name)? {
            return Ok(pair);
        }
        let pair = self.sign(subject)?;
        write_pair(&self.dir, name, &pair)?;
        Ok(pair)
    }

    /// A P-256 key kept as `name`.key in the folder.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn kept_key(&self, name: &str) -> Result<String, PkiError> {
        let path = self.dir.join(format!("{name}.key"));
        if let Some(key) = read(&path)? {
            return Ok(key);
        }
        let key = KeyPair::generate()?.serialize_pem();
        write(&path, key.as_bytes())?;
        Ok(key)
    }

    /// The key that secrets are encrypted with at rest.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn encryption_key(&self) -> Result<[u8; ENCRYPTION_KEY_BYTES], PkiError> {
        let path = self.dir.join("encryption.key");
        match fs::read(&path) {
            Ok(bytes) => {
                return bytes.try_into().map_err(|_| PkiError::Damaged {
                    path,
                    reason: format!("not {ENCRYPTION_KEY_BYTES} bytes long"),
                });
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(PkiError::Io { path, source }),
        }
        let key: [u8; ENCRYPTION_KEY_BYTES] = rand::random();
        write(&path, &key)?;
        Ok(key)
    }
}

fn new_authority(name: &str) -> Result<Pair, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    validity(&mut params, CA_LIFETIME);
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(Pair {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

fn validity(params: &mut CertificateParams, lifetime: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + lifetime).into();
}

fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

fn write(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    files::replace(path, content, 0o600).map_err(|source| PkiError::Io {
        path: path.to_owned(),
        source,
    })
}

fn read_pair(dir: &Path, name: &str) -> Result<Option<Pair>, PkiError> {
    let certificate = read(&dir.join(format!("{name}.crt")))?;
    let key = read(&dir.join(format!("{name}.key")))?;
    Ok(certificate
        .zip(key)
        .map(|(certificate, key)| Pair { certificate, key }))
}

/// The key goes first: a pair without its certificate is made anew.
fn write_pair(dir: &Path, name: &str, pair: &Pair) -> Result<(), PkiError> {
    write(&dir.join(format!("{name}.key")), pair.key.as_bytes())?;
    write(
        &dir.join(format!("{name}.crt")),
        pair.certificate.as_bytes(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_and_kept_keys_outlive_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let admin = Subject {
            name: "kubernetes-admin",
            group: Some("system:masters"),
            dns: &[],
            addresses: &[],
        };
        let first = Pki::open(dir.path()).unwrap();
        let pair = first.kept("admin", &admin).unwrap();
        let key = first.encryption_key().unwrap();
        let second = Pki::open(dir.path()).unwrap();
        assert_eq!(first.ca_certificate(), second.ca_certificate());
        assert_eq!(
            second.kept("admin", &admin).unwrap().certificate,
            pair.certificate
        );
        assert_eq!(second.encryption_key().unwrap(), key);
        let fronts = [&first, &second].map(|pki| pki.front_proxy().unwrap());
        let [front, again] = fronts.each_ref().map(Pki::ca_certificate);
        assert_eq!(front, again);
        assert_ne!(front, first.ca_certificate());
    }

    #[test]
    fn a_damaged_authority_is_named() {
        let dir = tempfile::tempdir().unwrap();
        Pki::open(dir.path()).unwrap();
        fs::write(dir.path().join("ca.crt"), "garbage").unwrap();
        let error = Pki::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("ca.crt is damaged"), "{error}");
    }
}
