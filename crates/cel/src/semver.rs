//! Semantic versions, as the version library of expressions compares them.

use std::cmp::Ordering;

/// A semantic version; build metadata does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Major, minor and patch number.
    pub numbers: [u64; 3],
    /// What follows the first dash.
    pre: Vec<String>,
}

impl Version {
    /// Parses a version such as `1.2.3-rc.1`; `lenient` adds missing numbers and drops a leading `v`.
    pub fn parse(text: &str, lenient: bool) -> Option<Self> {
        let text = if lenient {
            text.strip_prefix('v').unwrap_or(text)
        } else {
            text
        };
        let (text, build) = match text.split_once('+') {
            Some((text, build)) => (text, Some(build)),
            None => (text, None),
        };
        let (core, pre) = match text.split_once('-') {
            Some((core, pre)) => (core, Some(pre)),
            None => (text, None),
        };
        let parts: Vec<&str> = core.split('.').collect();
        let complete = parts.len() == 3 || (lenient && parts.len() < 3);
        let mut numbers = [0; 3];
        for (number, part) in numbers.iter_mut().zip(&parts) {
            let padded = part.len() > 1 && part.starts_with('0') && !lenient;
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            if padded || !digits {
                return None;
            }
            *number = part.parse().ok()?;
        }
        let word =
            |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let words = |text: Option<&str>| text.is_none_or(|t| t.split('.').all(word));
        (complete && words(pre) && words(build)).then(|| Self {
            numbers,
            pre: pre
                .map(|p| p.split('.').map(str::to_owned).collect())
                .unwrap_or_default(),
        })
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let word = |a: &String, b: &String| match (a.parse::<u64>(), b.parse::<u64>()) {
            (Ok(a), Ok(b)) => a.cmp(&b),
            (Ok(_), Err(_)) => Ordering::Less,
            (Err(_), Ok(_)) => Ordering::Greater,
            (Err(_), Err(_)) => a.cmp(b),
        };
        let pre = match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => self
                .pre
                .iter()
                .zip(&other.pre)
                .map(|(a, b)| word(a, b))
                .find(|o| o.is_ne())
                .unwrap_or(self.pre.len().cmp(&other.pre.len())),
        };
        self.numbers.cmp(&other.numbers).then(pre)
    }
}
