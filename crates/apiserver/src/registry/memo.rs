//! What was made of a few stored objects, kept for as long as they are the same: every pod asks which priority class
//! is the default one, and classes hardly ever change.

use std::sync::{Arc, Mutex, PoisonError};

/// Holds what was made last. No two states of any objects have the same revisions, so these say whether it still holds.
#[derive(Debug)]
pub struct Memo<T>(Mutex<Option<(Vec<u64>, Arc<T>)>>);

impl<T> Default for Memo<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Memo<T> {
    pub(super) fn of(&self, revisions: &[u64]) -> Option<Arc<T>> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, made) = last.as_ref()?;
        (known == revisions).then(|| Arc::clone(made))
    }

    pub(super) fn set(&self, revisions: Vec<u64>, made: T) -> Arc<T> {
        let made = Arc::new(made);
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some((revisions, Arc::clone(&made)));
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_holds_until_an_object_comes_changes_or_goes() {
        let memo = Memo::default();
        assert_eq!(memo.of(&[]), None);
        memo.set(vec![3, 5], "made");
        assert_eq!(memo.of(&[3, 5]).as_deref(), Some(&"made"));
        for others in [&[][..], &[3], &[3, 6], &[3, 5, 6]] {
            assert_eq!(memo.of(others), None, "{others:?}");
        }
        memo.set(Vec::new(), "of none");
        assert_eq!(memo.of(&[]).as_deref(), Some(&"of none"));
    }
}
