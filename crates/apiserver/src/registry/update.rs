//! Changing objects: PUT, PATCH and every subresource that writes, through one loop.

use std::sync::Arc;

use api::{Status, meta};
use serde_json::Value;
use store::{Commit, CommitError, Expect, Mutation};

use super::create::check_namespace;
use super::{
    Claims, Fail, Registry, Resource, Stored, WRITE_ATTEMPTS, Write, commit_failure, metadata,
};
use crate::admission::{Operation, Review};

/// Which part of an object a request may change: decides the strategy's hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The object without its status.
    Main,
    /// The status.
    Status,
    /// Exactly what the engine changed itself (scale, binding, finalize): no hook resets anything.
    Exact,
    /// The ephemeral containers of a pod.
    EphemeralContainers,
    /// The resources of a pod's containers.
    Resize,
}

/// An updated object.
pub struct Update {
    /// As it is stored now.
    pub stored: Stored,
    /// Whether the update created it.
    pub created: bool,
}

/// The finished new object of one round of the loop.
struct Round {
    old: Stored,
    before: Value,
    after: Value,
}

impl Registry {
    /// Applies `change` to the object as it is now, and again when another write comes in between.
    ///
    /// `change` gets the current object in the version of the request, with its resourceVersion.
    ///
    /// # Errors
    /// A Status in upstream's words: not found, conflict, invalid, forbidden by admission, …
    pub async fn update<F>(
        &self,
        write: &Write<'_>,
        part: Part,
        mut change: F,
    ) -> Result<Stored, Fail>
    where
        F: FnMut(&Value) -> Result<Value, Fail> + Send,
    {
        for _ in 0..WRITE_ATTEMPTS {
            let old = self
                .get(write.resource, write.namespace, write.name)
                .await?;
            let mut before = write.resource.load(&old)?;
            // Copied only where the versions differ; otherwise the revision is put in for as long as it is looked at.
            let converted = write.resource.converts().then(|| before.clone());
            let converted =
                converted.map(|stored| served_with_revision(write.resource, stored, old.revision));
            if converted.is_none() {
                set_revision(&mut before, old.revision);
            }
            let live = converted.as_ref().unwrap_or(&before);
            let mut changed = change(live)?;
            write.track(self, Some(live), &mut changed);
            metadata::of(&mut before).remove("resourceVersion");
            check_identity(write, &changed)?;
            check_revision(write, old.revision, &changed)?;
            let round = Round {
                after: write.resource.to_stored(changed),
                before,
                old,
            };
            if let Some(stored) = self.finish(write, part, round).await? {
                return Ok(stored);
            }
        }
        Err(modified(write))
    }

    /// PUT: replaces the object, or creates it where the resource allows that.
    ///
    /// # Errors
    /// As [`Self::update`].
    pub async fn replace(
        &self,
        write: &Write<'_>,
        part: Part,
        object: Value,
    ) -> Result<Update, Fail> {
        let strategy = write.resource.strategy;
        let unpinned = matches!(
            meta::str_at(&object, &["metadata", "resourceVersion"]),
            "" | "0"
        );
        let creates = strategy.allows_create_on_update()
            && part == Part::Main
            && write.subresource.is_empty()
            && unpinned;
        if creates
            && self
                .find(write.resource, write.namespace, write.name)
                .await?
                .is_none()
        {
            let mut object = object;
            write.track(self, None, &mut object);
            let stored = write.resource.to_stored(object);
            return Ok(Update {
                stored: self.create(write, stored).await?,
                created: true,
            });
        }
        if unpinned && strategy.requires_resource_version() && part == Part::Main {
            // Upstream shows a version as the number it is there, and names the resource for the kind.
            let why = "0x0: must be specified for an update";
            let why = api::FieldError::unshown("metadata.resourceVersion", why);
            let kind = &write.resource.kind;
            let status = Status::invalid(&kind.group, &kind.resource, write.name, &[why]);
            return Err(Box::new(status));
        }
        let replace = |live: &Value| {
            check_uid(write, &object, live)?;
            Ok(object.clone())
        };
        let stored = self.update(write, part, replace).await?;
        Ok(Update {
            stored,
            created: false,
        })
    }

    /// Runs hooks, admission and validation over a round and commits it; `None` asks for another round.
    async fn finish(
        &self,
        write: &Write<'_>,
        part: Part,
        mut round: Round,
    ) -> Result<Option<Stored>, Fail> {
        let resource = write.resource;
        metadata::carry_over(&mut round.after, &round.before, write.namespace);
        if resource.is("", "services") {
            super::services::keep_allocated(&mut round.after, &round.before);
        }
        self.check(write, part, &mut round).await?;
        codec::apply::keep_times(&round.before, &mut round.after);
        // A write that changes nothing still brings a custom object into the version and schema it is stored by.
        if round.after == round.before && self.is_settled(write, &round).await? {
            return Ok(Some(round.old));
        }
        let key = resource.key(write.namespace, write.name);
        let mut claims = Claims::default();
        let gone = deletes(&round.after);
        let kept = (!gone).then_some(&mut round.after);
        self.claim(write, Some(&round.before), kept, &mut claims)
            .await?;
        let (value, bytes) = self.storable(resource, &round.after).await?;
        let mutation = if gone {
            Mutation::Delete { key: key.clone() }
        } else {
            Mutation::Put {
                key: key.clone(),
                value: self.seal(resource, &key, value),
            }
        };
        if write.dry_run {
            return Ok(Some(Stored {
                bytes,
                revision: round.old.revision,
            }));
        }
        let mut commit = Commit {
            expect: vec![(key.clone(), Expect::ModRevision(round.old.revision))],
            mutations: vec![mutation],
        };
        commit.expect.append(&mut claims.expect);
        commit.mutations.append(&mut claims.mutations);
        match self.store.commit(commit).await {
            Ok(revision) => Ok(Some(Stored { bytes, revision })),
            Err(CommitError::Conflict { key: at, current }) if at == key => match current {
                None => Err(not_found(write)),
                Some(_) => Ok(None),
            },
            Err(CommitError::Conflict { .. }) => Ok(None),
            Err(error) => Err(commit_failure(error)),
        }
    }

    /// Whether an object that a write leaves as it is also is stored as it should be.
    async fn is_settled(&self, write: &Write<'_>, round: &Round) -> Result<bool, Fail> {
        let resource = write.resource;
        if resource.kind.custom.is_none() {
            return Ok(true);
        }
        if resource.webhook().is_some() {
            return self
                .is_stored_version(resource, write.namespace, write.name)
                .await;
        }
        Ok(resource.is_current(&round.old)
            || resource.stored_form(&round.after) == round.old.value()?)
    }

    async fn check(&self, write: &Write<'_>, part: Part, round: &mut Round) -> Result<(), Fail> {
        let (resource, ctx) = (write.resource, write.ctx());
        let (before, after) = (&round.before, &mut round.after);
        let review: Review<'_> = write.review(self, Operation::Update, write.name, Some(before));
        self.admission.mutate(&review, after).await?;
        let kind = resource.stored();
        let errors = match part {
            Part::Main => {
                kinds::prepare_update(after, before, &ctx);
                kinds::validate_update(kind, after, before)
            }
            Part::Status => {
                kinds::prepare_status_update(after, before, &ctx);
                kinds::validate_status_update(kind, after, before)
            }
            Part::Exact => kinds::validate_metadata_update(after, before),
            Part::EphemeralContainers | Part::Resize => {
                let errors = super::pods::narrow(part, after, before);
                errors
                    .into_iter()
                    .chain(kinds::validate_create(kind, after))
                    .collect()
            }
        };
        if !errors.is_empty() {
            return Err(write.invalid(write.name, &errors));
        }
        self.admission.validate(&review, after).await?;
        if part == Part::Main {
            write.warnings.add(kinds::warnings(kind, after));
        }
        Ok(())
    }
}

/// Somebody else's write came in between.
pub(super) fn modified(write: &Write<'_>) -> Fail {
    let kind = &write.resource.kind;
    Box::new(Status::modified(&kind.group, &kind.resource, write.name))
}

pub(super) fn not_found(write: &Write<'_>) -> Fail {
    let kind = &write.resource.kind;
    Box::new(Status::not_found(&kind.group, &kind.resource, write.name))
}

/// The object in the version of the request, with its resourceVersion.
pub fn served_with_revision(resource: &Arc<Resource>, stored: Value, revision: u64) -> Value {
    let mut value = resource.to_served(stored);
    set_revision(&mut value, revision);
    value
}

fn set_revision(object: &mut Value, revision: u64) {
    let revision = revision.to_string().into();
    metadata::of(object).insert("resourceVersion".into(), revision);
}

/// Whether an updated object is a dying one that nothing holds any more.
fn deletes(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some()
        && meta::list_at(object, &["metadata", "finalizers"]).is_empty()
        && meta::int_at(object, &["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0) == 0
        && !super::delete::held_by_spec(object)
}

fn check_identity(write: &Write<'_>, new: &Value) -> Result<(), Fail> {
    let name = meta::name(new);
    if name != write.name {
        let why = if name.is_empty() {
            "name must be provided".to_owned()
        } else {
            format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                write.name
            )
        };
        return Err(Box::new(Status::bad_request(why)));
    }
    check_namespace(write, new)
}

/// Refuses to replace another object than the one that was meant.
fn check_uid(write: &Write<'_>, new: &Value, old: &Value) -> Result<(), Fail> {
    let kind = &write.resource.kind;
    let (asked, actual) = (meta::uid(new), meta::uid(old));
    if asked.is_empty() || asked == actual {
        return Ok(());
    }
    let why =
        format!("Precondition failed: UID in precondition: {asked}, UID in object meta: {actual}");
    Err(Box::new(Status::conflict(
        &kind.group,
        &kind.resource,
        write.name,
        &why,
    )))
}

/// Refuses a change of another version than the current one.
fn check_revision(write: &Write<'_>, revision: u64, changed: &Value) -> Result<(), Fail> {
    let kind = &write.resource.kind;
    let asked = match meta::str_at(changed, &["metadata", "resourceVersion"]) {
        "" | "0" => return Ok(()),
        asked => asked,
    };
    match asked.parse::<u64>() {
        Ok(asked) if asked == revision => Ok(()),
        Ok(_) => Err(Box::new(Status::modified(
            &kind.group,
            &kind.resource,
            write.name,
        ))),
        Err(_) => {
            let why = api::FieldError::invalid(
                "metadata.resourceVersion",
                asked,
                "must be a decimal number",
            );
            Err(write.invalid(write.name, &[why]))
        }
    }
}
