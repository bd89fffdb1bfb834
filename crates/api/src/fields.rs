//! Finding a few fields in a stored object's text, without reading the rest: what decides about an object is a small
//! part of it, and it is asked for by many: selectors of watches, indexes, caches, admission.
//!
//! What is stored is compact JSON whose keys are written without escapes. Text of any other form is refused, and
//! whoever asks reads it as any JSON; what lies beside the paths is passed over unread.

use std::borrow::Cow;

pub use crate::edit::Path;
use crate::edit::value_end;
use crate::splice::string_end;

/// Most paths that are looked for at once.
pub const PATHS_MAX: usize = u64::BITS as usize;

/// Where a value begins and ends in the text; `None`: it is not there.
pub type Place = Option<(usize, usize)>;

/// Where the values at `paths` are, in the order of the paths. `None` for text that is no compact JSON object, and for
/// more than [`PATHS_MAX`] paths.
pub fn places(text: &[u8], paths: &[Path<'_>]) -> Option<Vec<Place>> {
    let mut found = vec![None; paths.len()];
    look(text, paths, &mut found)?;
    Some(found)
}

/// The texts of the values at `paths`, in their order. `None` as for [`places`].
pub fn find<'t, const N: usize>(
    text: &'t [u8],
    paths: &[Path<'_>; N],
) -> Option<[Option<&'t [u8]>; N]> {
    let mut found = [None; N];
    look(text, paths, &mut found)?;
    Some(found.map(|place| place.map(|(start, end)| &text[start..end])))
}

/// What a string says that is written as `text`; `None` for what is no string.
pub fn string(text: &[u8]) -> Option<Cow<'_, str>> {
    let inner = text.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if inner.contains(&b'\\') {
        return serde_json::from_slice(text).ok().map(Cow::Owned);
    }
    std::str::from_utf8(inner).ok().map(Cow::Borrowed)
}

fn look(text: &[u8], paths: &[Path<'_>], found: &mut [Place]) -> Option<()> {
    let all = match paths.len() {
        0 => 0,
        count => u64::MAX >> PATHS_MAX.checked_sub(count)?,
    };
    let mut walk = Walk { text, paths, found };
    let end = walk.object(0, 0, all)?;
    (end == text.len()).then_some(())
}

struct Walk<'w> {
    text: &'w [u8],
    paths: &'w [Path<'w>],
    found: &'w mut [Place],
}

impl Walk<'_> {
    /// Goes through the object that begins at `at`, to which the first `depth` steps of the paths lead that are among
    /// `wanted`. Answers where it ends.
    fn object(&mut self, at: usize, depth: usize, wanted: u64) -> Option<usize> {
        if self.text.get(at) != Some(&b'{') {
            return None;
        }
        let mut at = at + 1;
        if self.text.get(at) == Some(&b'}') {
            return Some(at + 1);
        }
        loop {
            if self.text.get(at) != Some(&b'"') {
                return None;
            }
            let key_end = at + 1 + string_end(&self.text[at + 1..])?;
            if self.text.get(key_end) != Some(&b':') {
                return None;
            }
            let here = self.step(wanted, depth, &self.text[at + 1..key_end - 1]);
            let end = self.value(key_end + 1, depth + 1, here)?;
            match self.text.get(end)? {
                b',' => at = end + 1,
                b'}' => return Some(end + 1),
                _ => return None,
            }
        }
    }

    /// Goes through the value that begins at `start`, to which the first `depth` steps lead. Answers where it ends.
    fn value(&mut self, start: usize, depth: usize, wanted: u64) -> Option<usize> {
        let (mut here, mut deeper) = (wanted, wanted);
        for path in bits(wanted) {
            let whole = self.paths[path].len() == depth;
            *(if whole { &mut deeper } else { &mut here }) &= !(1 << path);
        }
        let end = if deeper != 0 && self.text.get(start) == Some(&b'{') {
            self.object(start, depth, deeper)?
        } else {
            start + value_end(self.text.get(start..)?)?
        };
        for path in bits(here) {
            self.found[path] = Some((start, end));
        }
        Some(end)
    }

    /// Those of the paths that go on with `key`.
    fn step(&self, wanted: u64, depth: usize, key: &[u8]) -> u64 {
        bits(wanted)
            .filter(|path| {
                self.paths[*path]
                    .get(depth)
                    .is_some_and(|step| step.as_bytes() == key)
            })
            .fold(0, |all, path| all | 1 << path)
    }
}

/// The numbers of the bits that are set.
fn bits(mut set: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lowest = (set != 0).then(|| set.trailing_zeros() as usize)?;
        set &= set - 1;
        Some(lowest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const PATHS: [Path<'static>; 9] = [
        &["a"],
        &["a", "a"],
        &["a", "b"],
        &["a", "b", "c"],
        &["b"],
        &["b", "a"],
        &["c", "b", "a"],
        &["nowhere"],
        &[],
    ];

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-c{}\\[\\]\"\\\\,: é\n]{0,6}".prop_map(Value::from),
        ];
        let value = leaf.prop_recursive(4, 40, 4, |inner| {
            let keys = prop::collection::vec(("[abc]", inner.clone()), 0..4);
            prop_oneof![
                prop::collection::vec(inner, 0..4).prop_map(Value::from),
                keys.prop_map(|all| Value::Object(all.into_iter().collect())),
            ]
        });
        prop::collection::vec(("[abc]", value), 0..4)
            .prop_map(|all| Value::Object(all.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_the_whole_tree_has(object in tree()) {
            let text = object.to_string();
            let found = find(text.as_bytes(), &PATHS).unwrap();
            for (path, found) in PATHS.iter().zip(found) {
                let expected = meta::get(&object, path).filter(|_| !path.is_empty());
                let found: Option<Value> = found.map(|t| serde_json::from_slice(t).unwrap());
                prop_assert_eq!(found.as_ref(), expected, "{:?} of {}", path, text);
            }
            let pretty = format!("{object:#}");
            if pretty != text {
                prop_assert_eq!(find(pretty.as_bytes(), &PATHS), None);
            }
            for cut in 0..text.len() {
                // Cut short anywhere, it must not panic, and is refused.
                prop_assert!(find(&text.as_bytes()[..cut], &PATHS).is_none());
            }
        }

        #[test]
        fn strings_say_what_they_do_as_json(text in any::<String>()) {
            let written = json!(text).to_string();
            prop_assert_eq!(string(written.as_bytes()).unwrap(), text);
        }
    }

    #[test]
    fn no_more_paths_than_can_be_looked_for() {
        let paths: Vec<Path<'_>> = vec![&["a"]; PATHS_MAX];
        assert_eq!(
            places(b"{\"a\":1}", &paths),
            Some(vec![Some((5, 6)); PATHS_MAX])
        );
        assert_eq!(places(b"{}", &[paths, vec![&["a"]]].concat()), None);
        assert_eq!(string(b"3"), None);
    }
}
