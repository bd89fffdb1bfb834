//! `cargo xtask conformance`: the page that says which entries of Kubernetes' conformance list our
//! tests cover.
//!
//! A test says what it covers in a line of its doc comment: `Conformance: <entry>`, or
//! `Conformance (partly): <entry>` where a part of the entry is left out. The page follows from
//! these lines and the list alone, so that it cannot promise what no test does.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::run::workspace;
use crate::tidy::sources;

/// The entries, by the group that owns them.
const LIST: &str = include_str!("../facts/conformance-1.37.txt");

/// Where the page is, below the workspace.
const PAGE: &str = "docs/conformance.md";

/// What comes before an entry's name in a doc comment, and what it promises.
const MARKS: &[(&str, State)] = &[
    ("/// Conformance: ", State::Covered),
    ("/// Conformance (partly): ", State::Partly),
];

/// Write the page of covered conformance entries.
#[derive(clap::Args)]
pub struct Conformance {}

impl Conformance {
    /// Writes `docs/conformance.md`.
    ///
    /// # Errors
    /// When a source cannot be read or a test names an entry that does not exist.
    pub fn run(self) -> anyhow::Result<()> {
        let claims = claims()?;
        let breaches = unknown(&claims);
        anyhow::ensure!(breaches.is_empty(), "{}", breaches.join("\n"));
        let path = workspace().join(PAGE);
        fs::write(&path, page(LIST, &claims)).with_context(|| path.display().to_string())
    }
}

/// What `cargo xtask tidy` has against the page and the lines it is made from.
///
/// # Errors
/// When a source cannot be read.
pub fn breaches() -> anyhow::Result<Vec<String>> {
    let claims = claims()?;
    let mut breaches = unknown(&claims);
    let now = fs::read_to_string(workspace().join(PAGE)).unwrap_or_default();
    if now != page(LIST, &claims) {
        breaches.push(format!("{PAGE} is stale: run `cargo xtask conformance`"));
    }
    Ok(breaches)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Covered,
    Partly,
    NotYet,
}

impl State {
    fn words(self) -> &'static str {
        match self {
            Self::Covered => "covered",
            Self::Partly => "partly",
            Self::NotYet => "not yet",
        }
    }
}

/// A line of a test that names an entry.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    state: State,
    file: String,
    line: usize,
    entry: String,
}

/// The lines of all sources, in the order of their files.
fn claims() -> anyhow::Result<Vec<Claim>> {
    let root = workspace();
    let mut files: Vec<PathBuf> = sources(&["crates"])?;
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let name = file.strip_prefix(&root).unwrap_or(&file);
        all.extend(claims_of(name, &text));
    }
    Ok(all)
}

fn claims_of(file: &Path, text: &str) -> Vec<Claim> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        for (mark, state) in MARKS {
            let Some(entry) = line.strip_prefix(mark) else {
                continue;
            };
            found.push(Claim {
                state: *state,
                file: file.display().to_string(),
                line: number + 1,
                entry: entry.split_whitespace().collect::<Vec<_>>().join(" "),
            });
        }
    }
    found
}

/// Claims of entries that the list does not have.
fn unknown(claims: &[Claim]) -> Vec<String> {
    claims
        .iter()
        .filter(|claim| !LIST.lines().any(|entry| entry == claim.entry))
        .map(|c| format!("{}:{}: no conformance entry {:?}", c.file, c.line, c.entry))
        .collect()
}

/// An entry with what is claimed of it: as many claims as the list has lines of that name count.
struct Row<'a> {
    sig: &'a str,
    entry: &'a str,
    state: State,
    file: &'a str,
}

fn rows<'a>(list: &'a str, claims: &'a [Claim]) -> Vec<Row<'a>> {
    let mut claimed: BTreeMap<&str, Vec<&Claim>> = BTreeMap::new();
    for claim in claims {
        claimed.entry(&claim.entry).or_default().push(claim);
    }
    for of_one in claimed.values_mut() {
        // The best claims first; they are taken from the end.
        of_one.sort_by_key(|claim| std::cmp::Reverse((claim.state, &claim.file, claim.line)));
    }
    let mut sig = "";
    let mut rows = Vec::new();
    for line in list
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            sig = name;
            continue;
        }
        let claim = claimed.get_mut(line).and_then(Vec::pop);
        rows.push(Row {
            sig,
            entry: line,
            state: claim.map_or(State::NotYet, |c| c.state),
            file: claim.map_or("", |c| c.file.as_str()),
        });
    }
    rows
}

fn counts<'a>(rows: impl Iterator<Item = &'a Row<'a>>) -> [usize; 3] {
    let mut counts = [0; 3];
    for row in rows {
        counts[row.state as usize] += 1;
    }
    counts
}

fn page(list: &str, claims: &[Claim]) -> String {
    let rows = rows(list, claims);
    let mut text = String::from(
        "# Conformance\n\nThe entries of Kubernetes 1.37's conformance list and the tests here that assert what they \
         assert. Written by `cargo xtask conformance` from the tests' doc comments.\n\n\
         | group | covered | partly | not yet | all |\n|---|---|---|---|---|\n",
    );
    let mut groups: Vec<&str> = rows.iter().map(|row| row.sig).collect();
    groups.dedup();
    let mut line = |name: &str, [covered, partly, not_yet]: [usize; 3]| {
        let all = covered + partly + not_yet;
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| {name} | {covered} | {partly} | {not_yet} | {all} |"
        );
    };
    for group in &groups {
        line(group, counts(rows.iter().filter(|row| row.sig == *group)));
    }
    line("**all**", counts(rows.iter()));
    for group in &groups {
        let _ = write!(text, "\n## {group}\n\n| entry | | test |\n|---|---|---|\n");
        for row in rows.iter().filter(|row| row.sig == *group) {
            let (entry, state) = (row.entry.replace('|', "\\|"), row.state.words());
            let _ = writeln!(text, "| {entry} | {state} | {} |", row.file);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "# what it is\n\n[sig-a]\nOne, two\nTwice\nTwice\n\n[sig-b]\nThree\n";

    #[test]
    fn the_page_counts_what_tests_claim() {
        // In parts, so that this file claims nothing itself.
        let text = format!(
            "{0}: One,  two\n    {0} (partly): Twice\nfn a() {{}}\n// {0}: Three\n",
            concat!("/// ", "Conformance")
        );
        let claims = claims_of(Path::new("a.rs"), &text);
        assert_eq!(claims.len(), 2, "{claims:?}");
        let page = page(SMALL, &claims);
        for line in [
            "| sig-a | 1 | 1 | 1 | 3 |",
            "| sig-b | 0 | 0 | 1 | 1 |",
            "| **all** | 1 | 1 | 2 | 4 |",
            "| One, two | covered | a.rs |",
            "| Twice | partly | a.rs |",
            "| Twice | not yet |  |",
            "| Three | not yet |  |",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} in\n{page}");
        }
        assert_eq!(unknown(&claims).len(), 2);
    }

    #[test]
    fn the_list_is_whole() {
        assert_eq!(rows(LIST, &[]).len(), 444);
    }
}
