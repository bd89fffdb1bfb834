//! Regular expressions: upstream's dialect is RE2, whose letter classes know ASCII only.

use regex::{Regex, RegexBuilder};

/// Largest compiled expression, in bytes: they come from clients.
const SIZE_LIMIT: usize = 16 << 20;

/// Compiles an expression of upstream's dialect.
///
/// # Errors
/// Why it is none.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(&translate(pattern))
        .size_limit(SIZE_LIMIT)
        .build()
        .map_err(|e| match e {
            regex::Error::Syntax(text) => text
                .lines()
                .last()
                .unwrap_or_default()
                .trim_start_matches("error: ")
                .to_owned(),
            other => other.to_string(),
        })
}

/// Writes letter classes out in ASCII.
fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    let mut in_class = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(class) => push_class(&mut out, class, in_class),
                None => out.push('\\'),
            },
            '[' => {
                out.push(c);
                in_class = true;
            }
            ']' => {
                out.push(c);
                in_class = false;
            }
            // Only our dialect gives these a meaning inside of brackets.
            '&' | '~' if in_class => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}

fn push_class(out: &mut String, class: char, in_class: bool) {
    let inner = match class.to_ascii_lowercase() {
        'd' => "0-9",
        'w' => "0-9A-Za-z_",
        's' => "\\t\\n\\f\\r ",
        'b' if !in_class => {
            out.push_str(if class == 'b' {
                "(?-u:\\b)"
            } else {
                "(?-u:\\B)"
            });
            return;
        }
        _ => {
            out.push('\\');
            out.push(class);
            return;
        }
    };
    let negated = class.is_ascii_uppercase();
    match (in_class, negated) {
        (true, false) => out.push_str(inner),
        (_, true) => out.push_str(&format!("[^{inner}]")),
        (false, false) => out.push_str(&format!("[{inner}]")),
    }
}

#[cfg(test)]
mod tests {
    use super::compile;

    #[test]
    fn classes_are_ascii() {
        for (pattern, text, matches) in [
            (r"^\d+$", "12", true),
            (r"^\d+$", "\u{0661}", false),
            (r"^[\w-]+$", "a_b-c", true),
            (r"^[\w-]+$", "ä", false),
            (r"^\S+$", "a b", false),
            (r"^[^\s]+$", "ab", true),
            (r"^[a-z&&b]$", "&", true),
            (r"\bfoo\b", "a foo b", true),
            (r"^a\/b\.c$", "a/b.c", true),
            (r"^\p{L}+$", "ä", true),
        ] {
            assert_eq!(
                compile(pattern).unwrap().is_match(text),
                matches,
                "{pattern} {text}"
            );
        }
        assert!(compile("(").is_err());
        assert!(compile("(?=a)").is_err());
    }
}
