//! Rules for names, label keys and label values, with upstream's messages.
//!
//! Each function returns the list of messages; an empty list means valid.

/// Longest DNS label, in bytes.
pub const DNS_LABEL_MAX: usize = 63;
/// Longest DNS subdomain, in bytes.
pub const DNS_SUBDOMAIN_MAX: usize = 253;
/// Longest label value, in bytes.
pub const LABEL_VALUE_MAX: usize = 63;

const LABEL_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const LABEL_1035_FMT: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED_FMT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn regex_message(text: &str, fmt: &str, examples: &[&str]) -> String {
    let quoted: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    let mut list = quoted.join(" or ");
    if !list.is_empty() {
        list = format!("e.g. {list}");
    }
    format!("{text} ({list}regex used for validation is '{fmt}')")
}

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_label(s: &str) -> bool {
    let b = s.as_bytes();
    !b.is_empty()
        && lower_alnum(b[0])
        && lower_alnum(b[b.len() - 1])
        && b.iter().all(|&c| lower_alnum(c) || c == b'-')
}

fn is_qualified_part(s: &str) -> bool {
    let b = s.as_bytes();
    !b.is_empty()
        && b[0].is_ascii_alphanumeric()
        && b[b.len() - 1].is_ascii_alphanumeric()
        && b.iter()
            .all(|&c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// RFC 1123 label, as for namespaces and pod host names.
pub fn dns1123_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > DNS_LABEL_MAX {
        errors.push(too_long(DNS_LABEL_MAX));
    }
    if !is_label(value) {
        let text = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
        errors.push(regex_message(text, LABEL_FMT, &["my-name", "123-abc"]));
    }
    errors
}

/// RFC 1123 subdomain, as for most object names.
pub fn dns1123_subdomain(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > DNS_SUBDOMAIN_MAX {
        errors.push(too_long(DNS_SUBDOMAIN_MAX));
    }
    if !value.split('.').all(is_label) {
        let text = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
        let fmt = format!("{LABEL_FMT}(\\.{LABEL_FMT})*");
        errors.push(regex_message(text, &fmt, &["example.com"]));
    }
    errors
}

/// RFC 1035 label, as for services.
pub fn dns1035_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > DNS_LABEL_MAX {
        errors.push(too_long(DNS_LABEL_MAX));
    }
    if !is_label(value) || !value.as_bytes()[0].is_ascii_lowercase() {
        let text = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
        errors.push(regex_message(text, LABEL_1035_FMT, &["my-name", "abc-123"]));
    }
    errors
}

/// A name that may be one segment of a URL path, as for RBAC objects.
pub fn path_segment(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value == "." || value == ".." {
        errors.push(format!("may not be '{value}'"));
        return errors;
    }
    for c in ["/", "%"] {
        if value.contains(c) {
            errors.push(format!("may not contain '{c}'"));
        }
    }
    errors
}

/// A label key, annotation key, finalizer or condition type: `[prefix/]name`.
pub fn qualified_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let text = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    let parts: Vec<&str> = value.split('/').collect();
    let name = match parts.as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                errors.extend(
                    dns1123_subdomain(prefix)
                        .into_iter()
                        .map(|m| format!("prefix part {m}")),
                );
            }
            *name
        }
        _ => {
            let message = regex_message(
                &format!("a qualified name {text}"),
                QUALIFIED_FMT,
                &["MyName", "my.name", "123-abc"],
            );
            return vec![format!(
                "{message} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_VALUE_MAX {
        errors.push(format!("name part {}", too_long(LABEL_VALUE_MAX)));
    }
    if !is_qualified_part(name) {
        errors.push(format!(
            "name part {}",
            regex_message(text, QUALIFIED_FMT, &["MyName", "my.name", "123-abc"])
        ));
    }
    errors
}

/// A label value.
pub fn label_value(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > LABEL_VALUE_MAX {
        errors.push(too_long(LABEL_VALUE_MAX));
    }
    if !value.is_empty() && !is_qualified_part(value) {
        let text = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
        errors.push(regex_message(
            text,
            &format!("({QUALIFIED_FMT})?"),
            &["MyValue", "my_value", "12345"],
        ));
    }
    errors
}

/// A key of a ConfigMap or Secret.
pub fn config_map_key(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > DNS_SUBDOMAIN_MAX {
        errors.push(too_long(DNS_SUBDOMAIN_MAX));
    }
    let valid = !value.is_empty()
        && value
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'));
    if !valid {
        let text = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        errors.push(regex_message(
            text,
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    if value == "." || value == ".." {
        errors.push(format!("must not be '{value}'"));
    } else if value.starts_with("..") {
        errors.push("must not start with '..'".to_owned());
    }
    errors
}

/// The name of an environment variable.
pub fn env_var_name(value: &str) -> Vec<String> {
    // Upstream relaxed this in 1.34: any printable ASCII but "=".
    let mut errors = Vec::new();
    if value.is_empty() {
        errors.push("environment variable name must be non-empty".to_owned());
    }
    if !value
        .bytes()
        .all(|c| (0x20..0x7f).contains(&c) && c != b'=')
    {
        errors.push(regex_message("a valid environment variable name must consist only of printable ASCII characters other than '='", "^[ -<>-~]+$", &[]));
    }
    errors
}

/// A share in percent, such as `25%`.
pub fn percent(value: &str) -> Vec<String> {
    let digits = value.strip_suffix('%').unwrap_or_default();
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Vec::new();
    }
    let text = "a valid percent string must be a numeric string followed by an ending '%'";
    vec![regex_message(text, "[0-9]+%", &["1%", "93%"])]
}

/// The name of a port, as services and probes refer to it.
pub fn port_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > 15 {
        errors.push("must be no more than 15 characters".to_owned());
    }
    if !value.bytes().all(|c| lower_alnum(c) || c == b'-') || value.is_empty() {
        errors.push(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !value.bytes().any(|c| c.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        errors.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        errors.push("must not begin or end with a hyphen".to_owned());
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_subdomains() {
        for (value, label, subdomain, dns1035) in [
            ("a", true, true, true),
            ("1a", true, true, false),
            ("a-b", true, true, true),
            ("-a", false, false, false),
            ("a.b", false, true, false),
            ("A", false, false, false),
            ("", false, false, false),
            ("a..b", false, false, false),
        ] {
            assert_eq!(dns1123_label(value).is_empty(), label, "{value}");
            assert_eq!(dns1123_subdomain(value).is_empty(), subdomain, "{value}");
            assert_eq!(dns1035_label(value).is_empty(), dns1035, "{value}");
        }
        assert!(!dns1123_label(&"a".repeat(64)).is_empty());
    }

    #[test]
    fn messages_are_those_of_upstream() {
        assert_eq!(
            dns1123_subdomain("A")[0],
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
        );
        assert!(
            dns1123_label("A")[0]
                .contains("(e.g. 'my-name',  or '123-abc', regex used for validation is")
        );
    }

    #[test]
    fn qualified_names() {
        for (value, ok) in [
            ("a", true),
            ("a/b", true),
            ("a/b/c", false),
            ("/b", false),
            ("a/", false),
            ("A.b_c-d", true),
            ("é", false),
        ] {
            assert_eq!(qualified_name(value).is_empty(), ok, "{value}");
        }
        assert!(label_value("").is_empty() && !label_value("a b").is_empty());
        assert!(
            config_map_key("my.cnf").is_empty()
                && !config_map_key("..a").is_empty()
                && !config_map_key("a/b").is_empty()
        );
    }
}
