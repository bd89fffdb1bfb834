//! Targets of iSCSI: their names and those of whoever uses them.

use api::{FieldError, meta};
use serde_json::Value;

use super::{Source, unit};

/// Longest `<volume name>:<target portal>` with an initiator of its own, in bytes.
const PORTAL_MAX: usize = 64;

/// What is wrong with the name of an initiator or target.
fn initiator(name: &str, unknown: &'static str) -> Option<&'static str> {
    let letters = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric());
    let good = if name.starts_with("iqn") {
        is_qualified_initiator(name)
    } else if name.starts_with("eui") {
        name.get(4..)
            .is_some_and(|rest| rest.len() == 16 && letters(rest))
    } else if name.starts_with("naa") {
        name.get(4..)
            .is_some_and(|rest| rest.len() == 32 && letters(rest))
    } else {
        return Some(unknown);
    };
    (!good).then_some("must be valid format")
}

/// `iqn.2001-04.com.example:storage.disk1`
fn is_qualified_initiator(name: &str) -> bool {
    let digits = |text: Option<&str>, n: usize| {
        text.is_some_and(|t| t.len() == n && t.bytes().all(|b| b.is_ascii_digit()))
    };
    let Some(rest) = name.strip_prefix("iqn.") else {
        return false;
    };
    let dated = digits(rest.get(..4), 4)
        && rest.get(4..5) == Some("-")
        && digits(rest.get(5..7), 2)
        && rest.get(7..8) == Some(".");
    let Some((authority, own)) = rest
        .get(8..)
        .filter(|_| dated)
        .and_then(|r| r.split_once(':'))
    else {
        return false;
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    let odd = |c: char| ",;*&$|".contains(c) || c.is_whitespace();
    !authority.is_empty() && authority.chars().all(plain) && !own.is_empty() && !own.contains(odd)
}

/// Every broken rule of a source that is a target.
pub(super) fn validate(source: &Source<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let own = source.value.get("initiatorName").and_then(Value::as_str);
    let portal = source.text("targetPortal");
    if let Some(volume) = source.volume.filter(|_| own.is_some())
        && volume.len() + 1 + portal.len() > PORTAL_MAX
    {
        let at = source.path("targetportal");
        errors.push(FieldError::invalid(at, portal, TOO_LONG_PORTAL));
    }
    let unknown = "must be valid format starting with iqn, eui, or naa";
    if source.is_set("iqn") {
        let unknown = if source.volume.is_some() {
            "must be valid format"
        } else {
            unknown
        };
        let why = initiator(source.text("iqn"), unknown);
        errors.extend(why.map(|why| source.invalid("iqn", why)));
    } else {
        errors.extend(source.required(&["iqn"]));
    }
    errors.extend(unit(source));
    let checks = |field: &&str| meta::bool_at(source.value, &[field]);
    let checks = ["chapAuthDiscovery", "chapAuthSession"].iter().any(checks);
    if checks && source.value.get("secretRef").is_none() {
        errors.push(FieldError::required(source.path("secretRef"), ""));
    }
    if source.volume.is_some() {
        errors.extend(source.secret(&["name"]));
    }
    if let Some(own) = own {
        let at = source.path("initiatorname");
        let why = initiator(own, unknown);
        errors.extend(why.map(|why| FieldError::invalid(at, own, why)));
    }
    errors
}

/// Upstream's words for a portal that is too long to be told apart by.
pub(crate) const TOO_LONG_PORTAL: &str = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";

/// That a pod's volume and its portal are too long together.
pub(crate) fn long_portal(volume: &str, source: &Value) -> bool {
    let portal = meta::str_at(source, &["targetPortal"]);
    source.get("initiatorName").is_some() && volume.len() + 1 + portal.len() > PORTAL_MAX
}
