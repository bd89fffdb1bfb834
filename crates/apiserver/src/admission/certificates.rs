//! Certificate signing requests say who made them, and only those who may speak for a signer approve, sign or fail them.

use std::sync::{Arc, OnceLock};

use api::meta;
use serde_json::{Value, json};
use x509_parser::{
    certification_request::X509CertificationRequest, pem::parse_x509_pem, prelude::FromDer,
};

use super::{Admitted, Operation, Plugin, Review};
use crate::auth::{Attributes, Authorizer, MASTERS};

const GROUP: &str = "certificates.k8s.io";
const REQUESTS: &str = "certificatesigningrequests";
/// The signer of clients of this server.
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

fn is_request(review: &Review<'_>) -> bool {
    let kind = &review.resource.kind;
    kind.group == GROUP && kind.resource == REQUESTS
}

/// Writes down who asks, whatever the request says.
pub struct CertificateRequester;

impl Plugin for CertificateRequester {
    fn name(&self) -> &'static str {
        "CertificateRequester"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        is_request(review)
    }

    fn mutate<'a>(&'a self, review: &'a Review<'a>, object: &'a mut Value) -> Admitted<'a> {
        Box::pin(async move {
            let created = review.operation == Operation::Create && review.subresource.is_empty();
            if !created {
                return Ok(());
            }
            let user = review.user;
            meta::set(object, &["spec", "username"], user.name.as_str().into());
            meta::set(object, &["spec", "groups"], json!(user.groups));
            for (field, value, empty) in [
                ("uid", json!(user.uid), user.uid.is_empty()),
                ("extra", json!(user.extra), user.extra.is_empty()),
            ] {
                meta::remove(object, &["spec", field]);
                if !empty {
                    meta::set(object, &["spec", field], value);
                }
            }
            Ok(())
        })
    }
}

/// Nobody becomes a master of the cluster by a signature.
pub struct CertificateSubjectRestriction;

impl Plugin for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        is_request(review)
    }

    fn validate<'a>(&'a self, review: &'a Review<'a>, object: &'a Value) -> Admitted<'a> {
        Box::pin(async move {
            let created = review.operation == Operation::Create && review.subresource.is_empty();
            let client = meta::str_at(object, &["spec", "signerName"]) == CLIENT_SIGNER;
            if created && client && names_masters(object) {
                return Err(review.forbidden(&format!(
                    "use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed"
                )));
            }
            Ok(())
        })
    }
}

fn names_masters(request: &Value) -> bool {
    use base64::Engine;
    let text = meta::str_at(request, &["spec", "request"]);
    let Ok(pem) = base64::engine::general_purpose::STANDARD.decode(text) else {
        return false;
    };
    let Ok((_, pem)) = parse_x509_pem(&pem) else {
        return false;
    };
    let Ok((_, csr)) = X509CertificationRequest::from_der(&pem.contents) else {
        return false;
    };
    let mut groups = csr.certification_request_info.subject.iter_organization();
    groups.any(|o| o.as_str().is_ok_and(|o| o == MASTERS))
}

/// Approving takes the verb `approve` on the signer, signing the verb `sign`.
pub struct SignerPermissions {
    /// Decides, once it is there.
    pub authorizer: Arc<OnceLock<Authorizer>>,
}

impl SignerPermissions {
    fn may(&self, review: &Review<'_>, verb: &str, signer: &str) -> bool {
        let Some(authorizer) = self.authorizer.get() else {
            return false;
        };
        let domain = signer.split('/').next().unwrap_or_default();
        [signer.to_owned(), format!("{domain}/*")]
            .into_iter()
            .any(|name| {
                let asked = Attributes {
                    user: Arc::new(review.user.clone()),
                    verb: verb.to_owned(),
                    group: GROUP.to_owned(),
                    version: "*".to_owned(),
                    resource: "signers".to_owned(),
                    name,
                    ..Attributes::default()
                };
                authorizer.authorize(&asked).allowed()
            })
    }
}

impl Plugin for SignerPermissions {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        is_request(review)
    }

    fn validate<'a>(&'a self, review: &'a Review<'a>, object: &'a Value) -> Admitted<'a> {
        Box::pin(async move {
            if review.operation != Operation::Update {
                return Ok(());
            }
            let Some(old) = review.old else {
                return Ok(());
            };
            let (verb, what) = match review.subresource {
                "approval" => ("approve", "approve"),
                "status" if signs(old, object) => ("sign", "sign"),
                _ => return Ok(()),
            };
            let signer = meta::str_at(old, &["spec", "signerName"]);
            if self.may(review, verb, signer) {
                return Ok(());
            }
            let why = format!("user not permitted to {what} requests with signerName {signer:?}");
            Err(review.forbidden(&why))
        })
    }
}

/// Whether a status update issues a certificate or changes what is said of the request.
fn signs(old: &Value, new: &Value) -> bool {
    let differs =
        |field: &str| meta::get(old, &["status", field]) != meta::get(new, &["status", field]);
    differs("certificate") || differs("conditions")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_issues_or_judges_is_signing() {
        let of = |status: Value| json!({"status": status});
        let none = of(json!({}));
        assert!(!signs(&none, &none));
        assert!(signs(&none, &of(json!({"certificate": "eA=="}))));
        assert!(signs(
            &none,
            &of(json!({"conditions": [{"type": "Failed"}]}))
        ));
        assert!(!names_masters(&json!({"spec": {"request": "eA=="}})));
    }
}
