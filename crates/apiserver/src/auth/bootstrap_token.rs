//! Bootstrap tokens: `<id>.<secret>`, kept in the Secret `bootstrap-token-<id>` of `kube-system`, with which a machine that
//! has no certificate yet asks for one.
//!
//! What matched a Secret but may not be used is written to the log, never to the client: it learns nothing but 401.

use api::{meta, time};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::UserInfo;

/// Namespace of the Secrets.
pub const NAMESPACE: &str = "kube-system";
/// Start of their names, before the token's id.
const NAME_PREFIX: &str = "bootstrap-token-";
/// Their type.
const TYPE: &str = "bootstrap.kubernetes.io/token";
/// Group of everyone with such a token; further groups are below it.
const GROUP: &str = "system:bootstrappers";
/// Longest part of a group's name behind [`GROUP`], in bytes.
const MAX_GROUP_SUFFIX: usize = 256;
/// Characters of an id.
const ID_LENGTH: usize = 6;
/// Characters of a secret.
const SECRET_LENGTH: usize = 16;

/// A text that has the form of a bootstrap token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootstrapToken<'a> {
    id: &'a str,
    secret: &'a str,
}

impl<'a> BootstrapToken<'a> {
    /// The parts of a text of that form.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (id, secret) = text.split_once('.')?;
        let plain = |part: &str, length: usize| {
            part.len() == length
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        (plain(id, ID_LENGTH) && plain(secret, SECRET_LENGTH)).then_some(Self { id, secret })
    }

    /// Name of the Secret that knows the token.
    pub fn secret_name(&self) -> String {
        format!("{NAME_PREFIX}{}", self.id)
    }

    /// The user behind the token.
    ///
    /// # Errors
    /// With what is wrong with the Secret, or with the token by it.
    pub fn user(&self, secret: &Value, now: Timestamp) -> Result<UserInfo, &'static str> {
        if meta::get(secret, &["metadata", "deletionTimestamp"]).is_some() {
            return Err("is deleted and awaiting removal");
        }
        if meta::str_at(secret, &["type"]) != TYPE {
            return Err("has invalid type");
        }
        let data = |key: &str| decoded(secret, key);
        if !same(&data("token-secret"), self.secret) {
            return Err("has invalid value for key token-secret");
        }
        if data("token-id") != self.id {
            return Err("has invalid value for key token-id");
        }
        if expired(&data("expiration"), now) {
            return Err("is expired");
        }
        if data("usage-bootstrap-authentication") != "true" {
            return Err("not marked usage-bootstrap-authentication=true");
        }
        let groups = groups(&data("auth-extra-groups"))
            .ok_or("has invalid value for key auth-extra-groups")?;
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        Ok(UserInfo::new(
            format!("system:bootstrap:{}", self.id),
            &groups,
        ))
    }
}

/// A value of a Secret's data as text; empty without one.
fn decoded(secret: &Value, key: &str) -> String {
    let bytes = STANDARD.decode(meta::str_at(secret, &["data", key]));
    bytes
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .unwrap_or_default()
}

/// Whether two secrets are one, in a time that tells nothing of where they differ.
fn same(a: &str, b: &str) -> bool {
    Sha256::digest(a) == Sha256::digest(b)
}

/// What is no time has passed, too.
fn expired(expiration: &str, now: Timestamp) -> bool {
    !expiration.is_empty() && time::parse(expiration).is_none_or(|at| at <= now)
}

/// The groups of a token, sorted; `None` when it names one that no token may give.
fn groups(extra: &str) -> Option<Vec<String>> {
    let mut all = vec![GROUP.to_owned()];
    for group in extra.split(',').filter(|_| !extra.is_empty()) {
        if !may_give(group) {
            return None;
        }
        all.push(group.to_owned());
    }
    all.sort();
    all.dedup();
    Some(all)
}

fn may_give(group: &str) -> bool {
    let suffix = group
        .strip_prefix(GROUP)
        .and_then(|rest| rest.strip_prefix(':'));
    suffix.is_some_and(|suffix| {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        suffix.len() <= MAX_GROUP_SUFFIX
            && suffix.bytes().all(|b| plain(b) || b == b':' || b == b'-')
            && suffix.bytes().last().is_some_and(plain)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TOKEN: &str = "abcdef.0123456789abcdef";

    fn secret(changes: &[(&str, &str)]) -> Value {
        let mut fields = vec![
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
        ];
        fields.extend(changes);
        let data: serde_json::Map<String, Value> = fields
            .into_iter()
            .map(|(k, v)| (k.to_owned(), STANDARD.encode(v).into()))
            .collect();
        json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": TYPE, "data": data})
    }

    fn user(secret: &Value) -> Result<UserInfo, &'static str> {
        let now = Timestamp::from_second(1_000_000_000).unwrap();
        BootstrapToken::parse(TOKEN).unwrap().user(secret, now)
    }

    #[test]
    fn only_a_short_and_a_long_word_are_a_token() {
        let token = BootstrapToken::parse(TOKEN).unwrap();
        assert_eq!(token.secret_name(), "bootstrap-token-abcdef");
        for text in [
            "",
            "abcdef",
            "abcdef.0123456789abcde",
            "abcdef.0123456789abcdef0",
            "ABCDEF.0123456789abcdef",
            "abcde.0123456789abcdef",
            "abcdef.0123456789abcdef.",
            "abcdéf.0123456789abcdef",
        ] {
            assert_eq!(BootstrapToken::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_token_gives_its_id_and_groups() {
        let plain = user(&secret(&[])).unwrap();
        assert_eq!(plain.name, "system:bootstrap:abcdef");
        assert_eq!(
            plain.groups,
            ["system:bootstrappers", "system:authenticated"]
        );
        let more = "system:bootstrappers:kubeadm:default-node-token,system:bootstrappers:a";
        let user = user(&secret(&[
            ("auth-extra-groups", more),
            ("expiration", "2001-09-09T01:46:41Z"),
        ]));
        assert_eq!(
            user.unwrap().groups,
            [
                "system:bootstrappers",
                "system:bootstrappers:a",
                "system:bootstrappers:kubeadm:default-node-token",
                "system:authenticated"
            ]
        );
    }

    #[test]
    fn what_is_wrong_with_a_token_refuses_it() {
        for (key, value, why) in [
            ("token-secret", "0123456789abcdeg", "token-secret"),
            ("token-id", "abcdeg", "token-id"),
            ("expiration", "2001-09-09T01:46:40Z", "expired"),
            ("expiration", "tomorrow", "expired"),
            ("usage-bootstrap-authentication", "True", "not marked"),
            ("usage-bootstrap-authentication", "", "not marked"),
            ("auth-extra-groups", "system:masters", "auth-extra-groups"),
            ("auth-extra-groups", "system:bootstrappers:", "auth-extra"),
            ("auth-extra-groups", "system:bootstrappers:a-", "auth-extra"),
            ("auth-extra-groups", "system:bootstrappers:a,", "auth-extra"),
        ] {
            let said = user(&secret(&[(key, value)])).unwrap_err();
            assert!(said.contains(why), "{key}={value}: {said}");
        }
        let mut other = secret(&[]);
        other["type"] = "Opaque".into();
        assert_eq!(user(&other), Err("has invalid type"));
        let mut leaving = secret(&[]);
        leaving["metadata"]["deletionTimestamp"] = "2001-09-09T01:46:40Z".into();
        assert_eq!(user(&leaving), Err("is deleted and awaiting removal"));
    }
}
