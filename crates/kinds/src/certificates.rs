//! CertificateSigningRequests: what is asked for never changes; whether it is granted is decided through `approval`, and what
//! comes of it is written through `status`.

use api::time::{self, Timestamp};
use api::{FieldError, meta, names};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;

use crate::cells::{Cell, condition, join, render, text};
use crate::simple::FieldLabels;
use crate::strategy::{Ctx, Strategy};

/// Conditions that only `approval` adds and removes.
const DECISIONS: [&str; 2] = ["Approved", "Denied"];
/// Conditions that, once there, stay, and that can only be true.
const FINAL: [&str; 3] = ["Approved", "Denied", "Failed"];
/// Shortest life of a certificate that may be asked for, in seconds.
const SHORTEST_SECONDS: i64 = 600;
const CONDITIONS: [&str; 2] = ["status", "conditions"];
/// What a certificate may be for, sorted.
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
/// Longest name of a signer, in bytes.
const SIGNER_MAX: usize = 571;

const CELLS: &[Cell] = &[
    Cell::Name,
    Cell::Age,
    Cell::Text(&["spec", "signerName"]),
    Cell::Text(&["spec", "username"]),
    Cell::With(|o, _| {
        meta::int_at(o, &["spec", "expirationSeconds"])
            .map_or_else(|| "<none>".to_owned(), time::human_duration)
            .into()
    }),
    Cell::With(state),
];

/// Rules of CertificateSigningRequests.
pub(crate) struct SigningRequest;

impl Strategy for SigningRequest {
    fn prepare_update(&self, new: &mut Value, old: &Value, _ctx: &Ctx<'_>) {
        crate::generic::put_back(new, old, "spec");
    }

    fn prepare_status_update(&self, new: &mut Value, old: &Value, ctx: &Ctx<'_>) {
        if ctx.subresource == "approval" {
            let certificate = meta::get(old, &["status", "certificate"]).cloned();
            meta::remove(new, &["status", "certificate"]);
            if let Some(certificate) = certificate {
                meta::set(new, &["status", "certificate"], certificate);
            }
        } else {
            keep_decisions(new, old);
        }
        stamp(new, old, ctx.now);
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        let spec = obj.get("spec").unwrap_or(&Value::Null);
        let mut errors = Vec::new();
        if let Err(why) = parsed(meta::str_at(spec, &["request"])) {
            let request = meta::str_at(spec, &["request"]);
            errors.push(FieldError::invalid("spec.request", request, why));
        }
        errors.extend(usages(meta::list_at(spec, &["usages"])));
        errors.extend(signer_name(
            meta::str_at(spec, &["signerName"]),
            "spec.signerName",
        ));
        let life = meta::int_at(spec, &["expirationSeconds"]);
        if let Some(seconds) = life.filter(|s| *s < SHORTEST_SECONDS) {
            errors.push(FieldError::invalid(
                "spec.expirationSeconds",
                seconds,
                "may not specify a duration less than 600 seconds (10 minutes)",
            ));
        }
        errors
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = conditions(meta::list_at(new, &CONDITIONS));
        for kind in FINAL {
            let count = |of: &Value| {
                let all = meta::list_at(of, &CONDITIONS).iter();
                all.filter(|c| meta::str_at(c, &["type"]) == kind).count()
            };
            if count(new) < count(old) {
                let why = format!("updates may not remove a condition of type {kind:?}");
                errors.push(FieldError::forbidden("status.conditions", why));
            }
        }
        let certificate = |of| meta::str_at(of, &["status", "certificate"]);
        let (before, after) = (certificate(old), certificate(new));
        if before != after {
            if !before.is_empty() {
                let why = "updates may not modify existing certificate content";
                errors.push(FieldError::forbidden("status.certificate", why));
            }
            if let Err(why) = issued(after) {
                let shown = "<certificate data>";
                errors.push(FieldError::invalid("status.certificate", shown, why));
            }
        }
        errors
    }

    fn validate_name(&self, _name: &str, _prefix: bool) -> Vec<String> {
        // Clients name them as they like.
        Vec::new()
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Option<Vec<Value>> {
        Some(render(CELLS, obj, now))
    }

    fn field_labels(&self) -> FieldLabels {
        &[("spec.signerName", &["spec", "signerName"])]
    }
}

fn state(obj: &Value, _now: Timestamp) -> Value {
    let mut states: Vec<&str> = FINAL
        .into_iter()
        .filter(|name| condition(obj, name).is_some())
        .collect();
    if states.is_empty() {
        states.push("Pending");
    }
    if !text(obj, &["status", "certificate"]).is_empty() {
        states.push("Issued");
    }
    join(states, ",").into()
}

/// Takes out decisions that were added and puts back those that were changed or left out.
fn keep_decisions(new: &mut Value, old: &Value) {
    let decides = |c: &Value| DECISIONS.contains(&meta::str_at(c, &["type"]));
    let mut kept = meta::list_at(old, &CONDITIONS)
        .iter()
        .filter(|c| decides(c));
    let mut all = Vec::new();
    for condition in meta::list_at(new, &CONDITIONS) {
        if decides(condition) {
            all.extend(kept.next().cloned());
        } else {
            all.push(condition.clone());
        }
    }
    all.extend(kept.cloned());
    if all.is_empty() {
        meta::remove(new, &CONDITIONS);
    } else {
        meta::set(new, &CONDITIONS, all.into());
    }
}

/// Writes down when conditions came and changed, where nobody did.
fn stamp(new: &mut Value, old: &Value, now: Timestamp) {
    let mut all = meta::list_at(new, &CONDITIONS).to_vec();
    for (place, condition) in all.iter_mut().enumerate() {
        let before = meta::list_at(old, &CONDITIONS).get(place);
        let same = before.filter(|b| {
            ["type", "status"]
                .iter()
                .all(|f| b.get(f) == condition.get(f))
        });
        let since = same.and_then(|b| b.get("lastTransitionTime").cloned());
        let now: Value = time::format(now).into();
        let fields = meta::object_at(condition, &[]);
        fields.entry("lastUpdateTime").or_insert(now.clone());
        fields
            .entry("lastTransitionTime")
            .or_insert(since.unwrap_or(now));
    }
    if !all.is_empty() {
        meta::set(new, &CONDITIONS, all.into());
    }
}

fn conditions(all: &[Value]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, condition) in all.iter().enumerate() {
        let at = |field: &str| format!("status.conditions[{i}].{field}");
        let kind = meta::str_at(condition, &["type"]);
        let allowed: &[&str] = if FINAL.contains(&kind) {
            &["True"]
        } else {
            &["False", "True", "Unknown"]
        };
        let status = meta::str_at(condition, &["status"]);
        errors.extend(crate::check::one_of(status, at("status"), allowed));
        if kind.is_empty() {
            errors.push(FieldError::required(at("type"), ""));
            continue;
        }
        let earlier = || all[..i].iter().map(|c| meta::str_at(c, &["type"]));
        if DECISIONS.contains(&kind) && earlier().any(|k| DECISIONS.contains(&k) && k != kind) {
            let why = "Approved and Denied conditions are mutually exclusive";
            errors.push(FieldError::invalid(at("type"), kind, why));
        }
        if earlier().any(|k| k == kind) {
            errors.push(FieldError::duplicate(at("type"), kind));
        }
    }
    errors
}

fn usages(all: &[Value]) -> Vec<FieldError> {
    if all.is_empty() {
        return vec![FieldError::required("spec.usages", "")];
    }
    let mut errors = Vec::new();
    for (i, usage) in all.iter().enumerate() {
        let at = format!("spec.usages[{i}]");
        let usage = usage.as_str().unwrap_or_default();
        if !USAGES.contains(&usage) {
            errors.push(FieldError::not_supported(&at, usage, &USAGES));
        }
        if all[..i].iter().any(|u| u == usage) {
            errors.push(FieldError::duplicate(&at, usage));
        }
    }
    errors
}

/// `domain/path`, as signers are named.
pub(crate) fn signer_name(name: &str, at: &str) -> Vec<FieldError> {
    if name.is_empty() {
        return vec![FieldError::required(at, "")];
    }
    let [domain, path] = name.split('/').collect::<Vec<_>>()[..] else {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return vec![FieldError::invalid(at, name, why)];
    };
    let mut errors: Vec<FieldError> = names::dns1123_subdomain(domain)
        .into_iter()
        .map(|why| FieldError::invalid(at, domain, format!("validating label {domain:?}: {why}")))
        .collect();
    if !domain.contains('.') {
        let why = "should be a domain with at least two segments separated by dots";
        errors.push(FieldError::invalid(at, domain, why));
    }
    for label in path.split('.') {
        let why = names::dns1123_label(label).into_iter();
        errors.extend(why.map(|why| {
            FieldError::invalid(at, path, format!("validating label {label:?}: {why}"))
        }));
    }
    if name.len() > SIGNER_MAX {
        errors.push(FieldError::too_long(at, SIGNER_MAX));
    }
    errors
}

fn parsed(request: &str) -> Result<(), String> {
    let bytes = STANDARD.decode(request).map_err(|e| e.to_string())?;
    let block = Pem::iter_from_buffer(&bytes).next().and_then(Result::ok);
    let block = block.filter(|pem| pem.label == "CERTIFICATE REQUEST");
    let block = block.ok_or("PEM block type must be CERTIFICATE REQUEST")?;
    match X509CertificationRequest::from_der(&block.contents) {
        Ok(([], _)) => Ok(()),
        Ok(_) => Err("asn1: syntax error: trailing data".to_owned()),
        Err(why) => Err(format!("asn1: structure error: {why}")),
    }
}

/// Whether issued certificates are certificates in PEM.
fn issued(certificate: &str) -> Result<(), String> {
    if certificate.is_empty() {
        return Ok(());
    }
    let bytes = STANDARD.decode(certificate).map_err(|e| e.to_string())?;
    let mut found = false;
    for block in Pem::iter_from_buffer(&bytes) {
        let Ok(block) = block else { break };
        if block.label != "CERTIFICATE" {
            return Err(format!(
                "only CERTIFICATE PEM blocks are allowed, found {:?}",
                block.label
            ));
        }
        if let Err(why) = block.parse_x509() {
            return Err(format!("asn1: structure error: {why}"));
        }
        found = true;
    }
    if found {
        Ok(())
    } else {
        Err("must contain at least one CERTIFICATE PEM block".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::texts;
    use serde_json::json;

    #[test]
    fn everything_that_is_wrong_with_a_request_is_told() {
        let odd = json!({"spec": {"request": "eA==", "signerName": "one", "expirationSeconds": 5, "usages": ["any", "fun", "any"]}});
        let errors = texts(&SigningRequest.validate(&odd));
        let begin = [
            "spec.request: Invalid value: \"eA==\": PEM block type must be CERTIFICATE REQUEST",
            "spec.usages[1]: Unsupported value: \"fun\": supported values: \"any\", ",
            "spec.usages[2]: Duplicate value: \"any\"",
            "spec.signerName: Invalid value: \"one\": must be a fully qualified domain and path of the form 'example.com/signer-name'",
            "spec.expirationSeconds: Invalid value: 5: may not specify a duration less than 600 seconds (10 minutes)",
        ];
        assert_eq!(errors.len(), begin.len(), "{errors:#?}");
        for (error, begin) in errors.iter().zip(begin) {
            assert!(error.starts_with(begin), "{error}");
        }
        let none = texts(&SigningRequest.validate(&json!({})));
        assert!(
            none.contains(&"spec.usages: Required value".to_owned()),
            "{none:?}"
        );
        assert!(none.contains(&"spec.signerName: Required value".to_owned()));
        assert_eq!(
            texts(&signer_name("kubernetes.io/kubelet-serving", "s")),
            [""; 0]
        );
        assert_eq!(
            texts(&signer_name("kubernetes/X", "s"))[0],
            "s: Invalid value: \"kubernetes\": should be a domain with at least two segments separated by dots"
        );
    }

    #[test]
    fn decisions_are_kept_by_writers_of_the_status() {
        let of = |all: &[&str]| {
            let all: Vec<Value> = all
                .iter()
                .map(|t| json!({"type": t, "status": "True"}))
                .collect();
            json!({"status": {"conditions": all}})
        };
        let kinds = |o: &Value| {
            let all = meta::list_at(o, &CONDITIONS).iter();
            all.map(|c| meta::str_at(c, &["type"]).to_owned())
                .collect::<Vec<_>>()
        };
        for (old, sent, kept) in [
            (
                &["Approved"][..],
                &["Approved", "Failed"][..],
                &["Approved", "Failed"][..],
            ),
            (&[], &["Approved"], &[]),
            (&[], &["Denied", "Failed"], &["Failed"]),
            (&["Approved"], &[], &["Approved"]),
            (&["Approved"], &["Denied"], &["Approved"]),
        ] {
            let mut new = of(sent);
            keep_decisions(&mut new, &of(old));
            assert_eq!(kinds(&new), kept, "{old:?} {sent:?}");
        }
    }

    #[test]
    fn what_was_decided_stays() {
        let of = |all: Value| json!({"status": {"conditions": all}});
        let yes = json!([{"type": "Approved", "status": "True"}]);
        let errors = SigningRequest.validate_status_update(&of(json!([])), &of(yes.clone()));
        assert_eq!(
            texts(&errors),
            [
                "status.conditions: Forbidden: updates may not remove a condition of type \"Approved\""
            ]
        );
        let both =
            json!([{"type": "Approved", "status": "True"}, {"type": "Denied", "status": "False"}]);
        assert_eq!(
            texts(&SigningRequest.validate_status_update(&of(both), &of(yes))),
            [
                "status.conditions[1].status: Unsupported value: \"False\": supported values: \"True\"",
                "status.conditions[1].type: Invalid value: \"Denied\": Approved and Denied conditions are mutually exclusive"
            ]
        );
        let mut told = of(json!([]));
        told["status"]["certificate"] = "eA==".into();
        assert_eq!(
            texts(&SigningRequest.validate_status_update(&told, &of(json!([])))),
            [
                "status.certificate: Invalid value: \"<certificate data>\": must contain at least one CERTIFICATE PEM block"
            ]
        );
    }

    #[test]
    fn conditions_get_their_times() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let old = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "lastTransitionTime": time::format(at(1))}]}});
        let mut new = json!({"status": {"conditions": [{"type": "Approved", "status": "True"}, {"type": "Failed", "status": "True"}]}});
        stamp(&mut new, &old, at(9));
        let times = |i: usize| {
            let c = &meta::list_at(&new, &CONDITIONS)[i];
            [c["lastTransitionTime"].clone(), c["lastUpdateTime"].clone()]
        };
        assert_eq!(times(0), [time::format(at(1)), time::format(at(9))]);
        assert_eq!(times(1), [time::format(at(9)), time::format(at(9))]);
    }
}
