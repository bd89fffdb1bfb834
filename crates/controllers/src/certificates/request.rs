//! What a certificate signing request asks for. Its names are kept as the bytes they came as.

use jiff::Timestamp;
use x509_parser::{
    certification_request::X509CertificationRequest,
    cri_attributes::ParsedCriAttribute,
    extensions::{GeneralName, ParsedExtension},
    oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME,
    pem::parse_x509_pem,
    prelude::FromDer,
};

/// The label of requests in PEM.
const LABEL: &str = "CERTIFICATE REQUEST";

/// A request whose signature holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The subject's common name.
    pub common_name: String,
    /// The subject's organizations.
    pub organizations: Vec<String>,
    /// Alternative names that are DNS names.
    pub dns: usize,
    /// … addresses.
    pub addresses: usize,
    /// … of mailboxes.
    pub emails: usize,
    /// … URIs.
    pub uris: usize,
    /// The subject, DER.
    pub subject: Vec<u8>,
    /// The public key with its algorithm, DER.
    pub public_key: Vec<u8>,
    /// The alternative names as in the extension, DER.
    pub alternative_names: Option<Vec<u8>>,
}

impl Request {
    /// Reads a request in PEM and checks that it was made with the key it names.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let (_, pem) = parse_x509_pem(pem)
            .map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_owned())?;
        if pem.label != LABEL {
            return Err("PEM block type must be CERTIFICATE REQUEST".into());
        }
        let (_, csr) =
            X509CertificationRequest::from_der(&pem.contents).map_err(|e| e.to_string())?;
        csr.verify_signature()
            .map_err(|e| format!("unable to verify certificate request signature: {e}"))?;
        let info = &csr.certification_request_info;
        let text =
            |a: &x509_parser::x509::AttributeTypeAndValue| a.as_str().ok().map(str::to_owned);
        let mut request = Self {
            common_name: info
                .subject
                .iter_common_name()
                .filter_map(text)
                .last()
                .unwrap_or_default(),
            organizations: info.subject.iter_organization().filter_map(text).collect(),
            subject: info.subject.as_raw().to_vec(),
            public_key: info.subject_pki.raw.to_vec(),
            ..Self::default()
        };
        for attribute in info.iter_attributes() {
            let ParsedCriAttribute::ExtensionRequest(asked) = attribute.parsed_attribute() else {
                continue;
            };
            for extension in &asked.extensions {
                if extension.oid == OID_X509_EXT_SUBJECT_ALT_NAME {
                    request.count(extension.parsed_extension());
                    request.alternative_names = Some(extension.value.to_vec());
                }
            }
        }
        Ok(request)
    }

    fn count(&mut self, extension: &ParsedExtension<'_>) {
        let ParsedExtension::SubjectAlternativeName(names) = extension else {
            return;
        };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(_) => self.dns += 1,
                GeneralName::IPAddress(_) => self.addresses += 1,
                GeneralName::RFC822Name(_) => self.emails += 1,
                GeneralName::URI(_) => self.uris += 1,
                _ => {}
            }
        }
    }
}

/// When a certificate in PEM ends.
pub fn expiry(pem: &[u8]) -> Option<Timestamp> {
    let (_, pem) = parse_x509_pem(pem).ok()?;
    let certificate = pem.parse_x509().ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}
