//! How versions are converted into each other.

use api::names::dns1035_label;
use api::{FieldError, meta};
use serde_json::{Value, json};

use crate::check::one_of;

const AT: &str = "spec.conversion";

/// Every broken rule of the conversion of a definition's spec.
pub(super) fn validate(spec: &Value) -> Vec<FieldError> {
    let Some(conversion) = spec.get("conversion") else {
        return Vec::new();
    };
    let strategy = meta::str_at(conversion, &["strategy"]);
    let path = format!("{AT}.strategy");
    let mut errors: Vec<FieldError> = one_of(strategy, path, &["None", "Webhook"])
        .into_iter()
        .collect();
    let client = meta::get(conversion, &["webhook", "clientConfig"]);
    let versions = meta::list_at(conversion, &["webhook", "conversionReviewVersions"]);
    let at_client = format!("{AT}.webhookClientConfig");
    let at_versions = format!("{AT}.conversionReviewVersions");
    if strategy == "Webhook" {
        match client {
            None => {
                let why = "required when strategy is set to Webhook";
                errors.push(FieldError::required(at_client, why));
            }
            Some(client) => errors.extend(client_config(client, &at_client)),
        }
        errors.extend(review_versions(versions, &at_versions));
        return errors;
    }
    let why = "should not be set when strategy is not set to Webhook";
    if client.is_some() {
        errors.push(FieldError::forbidden(at_client, why));
    }
    if !versions.is_empty() {
        errors.push(FieldError::forbidden(at_versions, why));
    }
    errors
}

fn client_config(client: &Value, at: &str) -> Vec<FieldError> {
    match (client.get("url"), client.get("service")) {
        (Some(url), None) => webhook_url(url.as_str().unwrap_or_default(), format!("{at}.url")),
        (None, Some(service)) => webhook_service(service, &format!("{at}.service")),
        _ => vec![FieldError::required(
            at,
            "exactly one of url or service is required",
        )],
    }
}

fn webhook_url(url: &str, path: String) -> Vec<FieldError> {
    const FORM: &str = "; desired format: https://host[/path]";
    let refuse = |value: &str, why: String| vec![FieldError::invalid(path.clone(), value, why)];
    let Some(rest) = url.strip_prefix("https://") else {
        let scheme = url.split_once("://").map_or("", |(s, _)| s);
        let why = format!("'https' is the only allowed URL scheme{FORM}");
        return refuse(scheme, why);
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.is_empty() {
        return refuse(host, format!("host must be specified{FORM}"));
    }
    if let Some((user, _)) = host.rsplit_once('@') {
        return refuse(
            user,
            "user information is not permitted in the URL".to_owned(),
        );
    }
    if let Some((_, fragment)) = rest.split_once('#') {
        return refuse(
            fragment,
            "fragments are not permitted in the URL".to_owned(),
        );
    }
    if let Some((_, query)) = rest.split_once('?') {
        return refuse(
            query,
            "query parameters are not permitted in the URL".to_owned(),
        );
    }
    Vec::new()
}

fn webhook_service(service: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["name", "namespace"] {
        if meta::str_at(service, &[field]).is_empty() {
            errors.push(FieldError::required(format!("{at}.{field}"), ""));
        }
    }
    let port = meta::int_at(service, &["port"]).unwrap_or(443);
    if !(1..=65535).contains(&port) {
        let why = "port is not valid: must be between 1 and 65535, inclusive";
        errors.push(FieldError::invalid(format!("{at}.port"), port, why));
    }
    let path = meta::str_at(service, &["path"]);
    if !path.is_empty() && !path.starts_with('/') {
        let why = "must start with a '/'";
        errors.push(FieldError::invalid(format!("{at}.path"), path, why));
    }
    errors
}

fn review_versions(versions: &[Value], at: &str) -> Vec<FieldError> {
    if versions.is_empty() {
        return vec![FieldError::required(at, "")];
    }
    let mut errors = Vec::new();
    for (index, version) in versions.iter().enumerate() {
        let text = version.as_str().unwrap_or_default();
        let path = format!("{at}[{index}]");
        if versions[..index].contains(version) {
            errors.push(FieldError::invalid(path, text, "duplicate version"));
            continue;
        }
        let wrong = dns1035_label(text).into_iter();
        errors.extend(wrong.map(|why| FieldError::invalid(path.clone(), text, why)));
    }
    if !versions.iter().any(|v| v == "v1" || v == "v1beta1") {
        let why = "must include at least one of v1, v1beta1";
        errors.push(FieldError::invalid(at, json!(versions), why));
    }
    errors
}
