//! Deleting objects: grace, finalizers, dependents, preconditions.
//!
//! An object goes at once when nothing holds it. Otherwise it is marked with a deletionTimestamp and stays until its
//! finalizers are gone and, for kinds with graceful deletion, until its node agent says so (a delete with grace 0).

use api::{Status, meta};
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use store::{Commit, CommitError, Expect, Mutation};

use super::resource::Collect;
use super::{Claims, Fail, Registry, Stored, WRITE_ATTEMPTS, Write, commit_failure, metadata};
use crate::admission::Operation;
use crate::http::request_info::Query;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
/// Objects of a collection that are deleted at once: the store writes those together that come together.
const TOGETHER: usize = 64;

/// What a delete request says besides the name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Seconds of grace.
    pub grace: Option<i64>,
    /// Uid the object must have.
    pub uid: Option<String>,
    /// Revision the object must have.
    pub resource_version: Option<String>,
    /// What happens to dependents.
    pub propagation: Option<Propagation>,
    /// Nothing is committed.
    pub dry_run: bool,
}

/// What happens to the dependents of a deleted object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// They lose their owner and stay.
    Orphan,
    /// They are deleted after the object.
    Background,
    /// They are deleted before the object.
    Foreground,
}

impl Propagation {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "Orphan" => Some(Self::Orphan),
            "Background" => Some(Self::Background),
            "Foreground" => Some(Self::Foreground),
            _ => None,
        }
    }
}

impl DeleteOptions {
    /// From the body (null if there is none) and, for what it leaves out, from the query.
    ///
    /// # Errors
    /// 400 or 422 when a value makes no sense.
    pub fn parse(body: &Value, query: &Query) -> Result<Self, Fail> {
        let text = |v: Option<&Value>| v.and_then(Value::as_str).map(str::to_owned);
        let grace = match body.get("gracePeriodSeconds").and_then(Value::as_i64) {
            Some(seconds) => Some(seconds),
            None => match query.non_empty("gracePeriodSeconds").map(str::parse::<i64>) {
                Some(Ok(seconds)) => Some(seconds),
                Some(Err(e)) => return Err(Box::new(Status::bad_request(e.to_string()))),
                None => None,
            },
        };
        let policy = text(body.get("propagationPolicy"))
            .or_else(|| query.non_empty("propagationPolicy").map(str::to_owned));
        let orphan = body
            .get("orphanDependents")
            .and_then(Value::as_bool)
            .or_else(|| {
                query
                    .get("orphanDependents")
                    .map(|_| query.flag("orphanDependents"))
            });
        let propagation = match (policy.as_deref(), orphan) {
            (Some(_), Some(_)) => {
                return Err(invalid(api::FieldError::invalid(
                    "propagationPolicy",
                    policy.unwrap_or_default(),
                    "orphanDependents and deletionPropagation cannot be both set",
                )));
            }
            (Some(text), None) => Some(Propagation::parse(text).ok_or_else(|| {
                invalid(api::FieldError::not_supported(
                    "propagationPolicy",
                    text,
                    &["Foreground", "Background", "Orphan", "nil"],
                ))
            })?),
            (None, Some(true)) => Some(Propagation::Orphan),
            (None, Some(false)) => Some(Propagation::Background),
            (None, None) => None,
        };
        let dry_run = body
            .get("dryRun")
            .and_then(Value::as_array)
            .is_some_and(|d| !d.is_empty())
            || query.non_empty("dryRun").is_some();
        Ok(Self {
            grace,
            uid: text(body.pointer("/preconditions/uid")),
            resource_version: text(body.pointer("/preconditions/resourceVersion")),
            propagation,
            dry_run,
        })
    }
}

fn invalid(error: api::FieldError) -> Fail {
    Box::new(Status::invalid("", "DeleteOptions", "", &[error]))
}

/// Outcome of a delete.
pub struct Deleted {
    /// The object as it was last or as it is now.
    pub stored: Stored,
    /// Whether it is gone; otherwise it is dying.
    pub gone: bool,
}

/// What a delete does to an object, decided without I/O.
#[derive(Debug, PartialEq)]
enum Plan {
    /// Nothing holds it.
    Remove,
    /// It is marked, or its marks change.
    Mark(Value),
    /// It is dying already and the request changes nothing.
    Keep,
}

/// Whether the object's own spec lists finalizers (namespaces do).
pub(super) fn held_by_spec(object: &Value) -> bool {
    object.get("kind").and_then(Value::as_str) == Some("Namespace")
        && !meta::list_at(object, &["spec", "finalizers"]).is_empty()
}

/// The finalizers after the request's wish for dependents.
fn finalizers(old: &Value, options: &DeleteOptions, collect: Collect) -> Vec<Value> {
    let current = meta::list_at(old, &["metadata", "finalizers"]);
    let has = |name: &str| current.iter().any(|f| f == name);
    let (orphan, foreground) = match options.propagation {
        Some(Propagation::Orphan) => (true, false),
        Some(Propagation::Foreground) => (false, true),
        Some(Propagation::Background) => (false, false),
        None if has(ORPHAN) || has(FOREGROUND) => (has(ORPHAN), has(FOREGROUND)),
        None => (collect == Collect::Orphan, false),
    };
    let mut wanted: Vec<Value> = current
        .iter()
        .filter(|f| *f != ORPHAN && *f != FOREGROUND)
        .cloned()
        .collect();
    if orphan {
        wanted.push(ORPHAN.into());
    }
    if foreground {
        wanted.push(FOREGROUND.into());
    }
    wanted
}

fn plan(
    old: &Value,
    options: &DeleteOptions,
    default_grace: Option<i64>,
    collect: Collect,
    now: jiff::Timestamp,
) -> Plan {
    let wanted = finalizers(old, options, collect);
    let dying_grace = meta::int_at(old, &["metadata", "deletionGracePeriodSeconds"]);
    let dying = old.pointer("/metadata/deletionTimestamp").is_some();
    // A pod that runs nowhere (default 0) needs no grace, whatever is asked for.
    let grace = match default_grace {
        None | Some(0) => 0,
        Some(default) => options.grace.map_or(default, |g| if g < 0 { 1 } else { g }),
    };
    let grace = match dying_grace.filter(|_| dying) {
        // Grace can only be shortened, and only by saying so.
        Some(current) if options.grace.is_none() || grace > current => current,
        _ => grace,
    };
    if wanted.is_empty() && grace == 0 && !held_by_spec(old) {
        return Plan::Remove;
    }
    let mut new = old.clone();
    let namespace = new.get("kind").and_then(Value::as_str) == Some("Namespace");
    let metadata = metadata::of(&mut new);
    if !dying || dying_grace != Some(grace) {
        let due = now
            .saturating_add(jiff::SignedDuration::from_secs(grace))
            .unwrap_or(now);
        metadata.insert("deletionTimestamp".into(), api::time::format(due).into());
        metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
        if !dying
            && let Some(generation) = metadata
                .get("generation")
                .and_then(Value::as_i64)
                .filter(|g| *g > 0)
        {
            metadata.insert("generation".into(), (generation + 1).into());
        }
    }
    if wanted.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), wanted.into());
    }
    if namespace {
        meta::set(&mut new, &["status", "phase"], json!("Terminating"));
    }
    if new == *old {
        Plan::Keep
    } else {
        Plan::Mark(new)
    }
}

impl Registry {
    /// Deletes the object named by `write`.
    ///
    /// # Errors
    /// A Status in upstream's words: not found, failed preconditions, forbidden by admission, …
    pub async fn delete(
        &self,
        write: &Write<'_>,
        options: &DeleteOptions,
    ) -> Result<Deleted, Fail> {
        let resource = write.resource;
        for _ in 0..WRITE_ATTEMPTS {
            let stored = self.get(resource, write.namespace, write.name).await?;
            let old = stored.value()?;
            check_preconditions(write, options, &old, stored.revision)?;
            let review = write.review(self, Operation::Delete, write.name, Some(&old));
            self.admission.validate(&review, &Value::Null).await?;
            if held_by_spec(&old)
                && old.pointer("/metadata/deletionTimestamp").is_some()
                && options.propagation.is_none()
            {
                return Err(still_terminating(write));
            }
            let grace = kinds::delete_grace(resource.stored(), &old);
            let held = kinds::hold_on_delete(resource.stored(), &old, write.now);
            let target = held.as_ref().unwrap_or(&old);
            let step = match plan(target, options, grace, resource.policy.collect, write.now) {
                Plan::Keep => {
                    return Ok(Deleted {
                        stored,
                        gone: false,
                    });
                }
                Plan::Remove => None,
                Plan::Mark(new) => Some(codec::canonical(&new)),
            };
            if let Some(done) = self
                .commit_delete(write, options, stored, &old, step)
                .await?
            {
                return Ok(done);
            }
        }
        let kind = &resource.kind;
        Err(Box::new(Status::modified(
            &kind.group,
            &kind.resource,
            write.name,
        )))
    }

    async fn commit_delete(
        &self,
        write: &Write<'_>,
        options: &DeleteOptions,
        stored: Stored,
        old: &Value,
        marked: Option<bytes::Bytes>,
    ) -> Result<Option<Deleted>, Fail> {
        let resource = write.resource;
        let key = resource.key(write.namespace, write.name);
        let mut claims = Claims::default();
        let mutation = match &marked {
            Some(bytes) => Mutation::Put {
                key: key.clone(),
                value: self.seal(resource, &key, bytes.clone()),
            },
            None => {
                self.claim(write, Some(old), None, &mut claims).await?;
                Mutation::Delete { key: key.clone() }
            }
        };
        let (gone, bytes) = (marked.is_none(), marked.unwrap_or(stored.bytes));
        if write.dry_run || options.dry_run {
            return Ok(Some(Deleted {
                stored: Stored {
                    bytes,
                    revision: stored.revision,
                },
                gone,
            }));
        }
        let mut commit = Commit {
            expect: vec![(key, Expect::ModRevision(stored.revision))],
            mutations: vec![mutation],
        };
        commit.expect.append(&mut claims.expect);
        commit.mutations.append(&mut claims.mutations);
        match self.store.commit(commit).await {
            Ok(revision) => Ok(Some(Deleted {
                stored: Stored { bytes, revision },
                gone,
            })),
            Err(CommitError::Conflict { .. }) => Ok(None),
            Err(error) => Err(commit_failure(error)),
        }
    }

    /// Deletes every given object; objects that are gone meanwhile are skipped.
    ///
    /// # Errors
    /// The first failure of a single delete.
    pub async fn delete_all(
        &self,
        write: &Write<'_>,
        options: &DeleteOptions,
        objects: Vec<(String, String)>,
    ) -> Result<(), Fail> {
        let one = |(namespace, name): (String, String)| async move {
            let one = Write {
                namespace: &namespace,
                name: &name,
                ..*write
            };
            match self.delete(&one, options).await {
                Err(status) if status.code != 404 => Err(status),
                _ => Ok(()),
            }
        };
        futures::stream::iter(objects)
            .map(one)
            .buffer_unordered(TOGETHER)
            .try_collect()
            .await
    }
}

fn still_terminating(write: &Write<'_>) -> Fail {
    let kind = &write.resource.kind;
    let why = "The system is ensuring all content is removed from this namespace.  Upon completion, this namespace will automatically be purged by the system.";
    Box::new(Status::conflict(
        &kind.group,
        &kind.resource,
        write.name,
        why,
    ))
}

fn check_preconditions(
    write: &Write<'_>,
    options: &DeleteOptions,
    old: &Value,
    revision: u64,
) -> Result<(), Fail> {
    let kind = &write.resource.kind;
    let current = revision.to_string();
    let checks = [
        ("UID", &options.uid, meta::uid(old)),
        (
            "ResourceVersion",
            &options.resource_version,
            current.as_str(),
        ),
    ];
    for (what, asked, actual) in checks {
        if let Some(asked) = asked.as_deref().filter(|a| *a != actual) {
            let why = format!(
                "Precondition failed: {what} in precondition: {asked}, {what} in object meta: {actual}"
            );
            return Err(Box::new(Status::conflict(
                &kind.group,
                &kind.resource,
                write.name,
                &why,
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn ask(grace: Option<i64>, propagation: Option<Propagation>) -> DeleteOptions {
        DeleteOptions {
            grace,
            propagation,
            ..DeleteOptions::default()
        }
    }

    fn marks(p: Plan) -> Value {
        match p {
            Plan::Mark(v) => v["metadata"].clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn objects_without_holds_go_at_once() {
        let o = json!({"kind": "ConfigMap", "metadata": {"name": "a"}});
        assert_eq!(
            plan(&o, &ask(None, None), None, Collect::Background, NOW),
            Plan::Remove
        );
        assert_eq!(
            plan(&o, &ask(Some(30), None), None, Collect::Background, NOW),
            Plan::Remove
        );
        let m = marks(plan(
            &o,
            &ask(None, Some(Propagation::Foreground)),
            None,
            Collect::Background,
            NOW,
        ));
        assert_eq!(m["finalizers"], json!(["foregroundDeletion"]));
        assert_eq!(m["deletionGracePeriodSeconds"], 0);
        let m = marks(plan(&o, &ask(None, None), None, Collect::Orphan, NOW));
        assert_eq!(m["finalizers"], json!(["orphan"]));
    }

    #[test]
    fn grace_can_be_shortened_but_not_extended() {
        let pod = json!({"kind": "Pod", "metadata": {"name": "a"}});
        let m = marks(plan(
            &pod,
            &ask(None, None),
            Some(30),
            Collect::Background,
            NOW,
        ));
        assert_eq!(
            (&m["deletionGracePeriodSeconds"], &m["deletionTimestamp"]),
            (&json!(30), &json!("1970-01-01T00:00:30Z"))
        );
        let dying = json!({"kind": "Pod", "metadata": m});
        assert_eq!(
            plan(&dying, &ask(None, None), Some(30), Collect::Background, NOW),
            Plan::Keep
        );
        assert_eq!(
            plan(
                &dying,
                &ask(Some(60), None),
                Some(30),
                Collect::Background,
                NOW
            ),
            Plan::Keep
        );
        let m = marks(plan(
            &dying,
            &ask(Some(5), None),
            Some(30),
            Collect::Background,
            NOW,
        ));
        assert_eq!(m["deletionGracePeriodSeconds"], 5);
        assert_eq!(
            plan(
                &dying,
                &ask(Some(0), None),
                Some(30),
                Collect::Background,
                NOW
            ),
            Plan::Remove
        );
        assert_eq!(
            plan(
                &pod,
                &ask(Some(30), None),
                Some(0),
                Collect::Background,
                NOW
            ),
            Plan::Remove
        );
    }

    #[test]
    fn namespaces_are_held_by_their_spec() {
        let ns = json!({"kind": "Namespace", "metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]}});
        let Plan::Mark(marked) = plan(&ns, &ask(None, None), None, Collect::Background, NOW) else {
            panic!()
        };
        assert_eq!(marked["status"]["phase"], "Terminating");
        assert_eq!(
            plan(&marked, &ask(None, None), None, Collect::Background, NOW),
            Plan::Keep
        );
    }

    #[test]
    fn options_come_from_body_or_query() {
        let q = Query::parse("gracePeriodSeconds=5&propagationPolicy=Orphan");
        let o = DeleteOptions::parse(&Value::Null, &q).unwrap();
        assert_eq!(
            (o.grace, o.propagation),
            (Some(5), Some(Propagation::Orphan))
        );
        let o = DeleteOptions::parse(
            &json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "u"}}),
            &Query::default(),
        )
        .unwrap();
        assert_eq!((o.grace, o.uid.as_deref()), (Some(0), Some("u")));
        assert!(
            DeleteOptions::parse(&json!({"propagationPolicy": "x"}), &Query::default()).is_err()
        );
    }
}
