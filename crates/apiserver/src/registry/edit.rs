//! Changing a few fields of an object that no hook, no owner and no quota has a say in: what the engine does itself in
//! the name of a subresource. Neither version of the object becomes a tree.

use api::edit::{self, Change};
use api::meta;
use bytes::Bytes;
use serde_json::Value;
use store::{Commit, CommitError, Expect, Mutation};

use super::sparse::Path;
use super::{Fail, Registry, Stored, WRITE_ATTEMPTS, Write, commit_failure};

impl Registry {
    /// Applies `change` to those fields of the object that lie at `paths`, and again when another write comes in
    /// between. It sees nothing else of the object; what it changes elsewhere is lost.
    ///
    /// # Errors
    /// Those of `change`; not found, conflict.
    pub async fn edit<F>(
        &self,
        write: &Write<'_>,
        paths: &[Path<'_>],
        mut change: F,
    ) -> Result<Stored, Fail>
    where
        F: FnMut(&mut Value) -> Result<(), Fail> + Send,
    {
        let resource = write.resource;
        let key = resource.key(write.namespace, write.name);
        for _ in 0..WRITE_ATTEMPTS {
            let old = self.get(resource, write.namespace, write.name).await?;
            let before = old.part(paths)?;
            let mut after = before.clone();
            change(&mut after)?;
            let changes = differences(&before, &after, paths);
            if changes.is_empty() {
                return Ok(old);
            }
            let bytes =
                edit::edited(&old.bytes, &changes).map_or_else(|| rewritten(&old, &changes), Ok)?;
            let stored = |revision| Stored {
                bytes: bytes.clone(),
                revision,
            };
            if write.dry_run {
                return Ok(stored(old.revision));
            }
            let commit = Commit {
                expect: vec![(key.clone(), Expect::ModRevision(old.revision))],
                mutations: vec![Mutation::Put {
                    key: key.clone(),
                    value: self.seal(resource, &key, bytes.clone()),
                }],
            };
            match self.store.commit(commit).await {
                Ok(revision) => return Ok(stored(revision)),
                Err(CommitError::Conflict { current: None, .. }) => {
                    return Err(super::update::not_found(write));
                }
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(commit_failure(error)),
            }
        }
        Err(super::update::modified(write))
    }
}

fn differences<'p>(before: &Value, after: &Value, paths: &[Path<'p>]) -> Vec<Change<'p>> {
    let differs = |path: &Path<'p>| {
        let (was, is) = (meta::get(before, path), meta::get(after, path));
        (was != is).then(|| (*path, is.cloned()))
    };
    paths.iter().filter_map(differs).collect()
}

/// The same through a tree, for text that somebody else wrote.
fn rewritten(old: &Stored, changes: &[Change<'_>]) -> Result<Bytes, Fail> {
    let mut object = old.value()?;
    for (path, value) in changes {
        match value {
            Some(value) => meta::set(&mut object, path, value.clone()),
            None => drop(meta::remove(&mut object, path)),
        }
    }
    Ok(codec::canonical(&object))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_of_whatever_form_changes_alike() {
        let before = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}, "spec": {"a": [1]}});
        let mut after = before.clone();
        meta::set(&mut after, &["spec", "nodeName"], "n".into());
        meta::remove(&mut after, &["metadata", "name"]);
        let paths: [Path<'_>; 3] = [&["spec", "nodeName"], &["metadata", "name"], &["spec", "a"]];
        let changes = differences(&before, &after, &paths);
        assert_eq!(changes.len(), 2);
        let (compact, pretty) = (before.to_string(), format!("{before:#}"));
        let stored = |text: &str| Stored {
            bytes: text.to_owned().into(),
            revision: 1,
        };
        let read = |text: Bytes| serde_json::from_slice::<Value>(&text).unwrap();
        assert_eq!(
            read(edit::edited(compact.as_bytes(), &changes).unwrap()),
            after
        );
        assert_eq!(edit::edited(pretty.as_bytes(), &changes), None);
        assert_eq!(read(rewritten(&stored(&pretty), &changes).unwrap()), after);
    }
}
