//! The templates a DaemonSet or StatefulSet had, as ControllerRevisions.
//!
//! The revision of the present template always has the highest number: a template that comes
//! back moves to the end.

use std::{collections::BTreeSet, fmt::Debug};

use client::{
    Cache, Client, Entry, Error, Key, Selector,
    cache::decode_all,
    write::{self, Revisioned as _},
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{apps::v1::ControllerRevision, core::v1::PodTemplateSpec},
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        runtime::RawExtension,
    },
};
use kube::{Api, Resource, api::PostParams};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{claim, deployment::hash};

/// Reads and writes the revisions of owners.
#[derive(Clone)]
pub struct History {
    /// Writes.
    pub client: Client,
    /// Shows what was written.
    pub revisions: Cache<ControllerRevision>,
}

/// What came of [`History::record`].
pub enum Recorded {
    /// This is the revision of the present template.
    Current(Box<ControllerRevision>),
    /// Its name is taken by that of another template: the hash must take in one collision more.
    Collision,
}

impl History {
    /// The revisions of `owner`, by number.
    pub async fn of<O>(
        &self,
        owner: &O,
        selector: &LabelSelector,
    ) -> Result<Vec<ControllerRevision>, Error>
    where
        O: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let key = Key::of(owner);
        let meta = owner.meta();
        let uid = meta.uid.as_deref().unwrap_or_default();
        let selector = Selector::of(selector).map_err(|e| Error::Other(e.to_string()))?;
        let candidates = claim::candidates(&self.revisions, &key.namespace, uid, &selector);
        let deleting = meta.deletion_timestamp.is_some();
        let claims = claim::sort(uid, deleting, &selector, candidates);
        let owners: Api<O> = write::namespaced(&self.client, &key.namespace);
        let revisions = self.api(&key.namespace);
        let owned = claim::settle(owner, &owners, &revisions, &self.revisions, claims).await?;
        let mut all: Vec<ControllerRevision> = decode_all(&owned);
        all.sort_by_cached_key(|r| {
            let meta = &r.metadata;
            let created = meta.creation_timestamp.as_ref().map(|t| t.0);
            (number(r), created, meta.name.clone())
        });
        Ok(all)
    }

    fn api(&self, namespace: &str) -> Api<ControllerRevision> {
        write::namespaced(&self.client, namespace)
    }

    /// Makes the revision of the present template the newest of `all`; `hash_label` is the label
    /// of revisions that holds the hash.
    pub async fn record<O>(
        &self,
        owner: &O,
        template: &PodTemplateSpec,
        all: &[ControllerRevision],
        collisions: i32,
        hash_label: &str,
    ) -> Result<Recorded, Error>
    where
        O: Resource<DynamicType = ()>,
    {
        let next = all.last().map_or(0, number) + 1;
        let api = self.api(owner.meta().namespace.as_deref().unwrap_or_default());
        if let Some(known) = find(all, template) {
            if number(known) == next - 1 {
                return Ok(Recorded::Current(Box::new(known.clone())));
            }
            let name = known.metadata.name.as_deref().unwrap_or_default();
            let patch = json!({"metadata": {"uid": known.metadata.uid}, "revision": next});
            let Some(written) = write::patch(&api, name, &patch).await? else {
                return Err(Error::Other(format!("revision {name} vanished")));
            };
            self.revisions
                .caught_up(write::revision_of(&written))
                .await?;
            let mut current = known.clone();
            current.revision = Some(next);
            current.metadata.resource_version = written.resource_version().map(str::to_owned);
            return Ok(Recorded::Current(Box::new(current)));
        }
        let new = revision(owner, template, next, collisions, hash_label);
        match api.create(&PostParams::default(), &new).await {
            Ok(made) => {
                self.revisions.caught_up(write::revision_of(&made)).await?;
                Ok(Recorded::Current(Box::new(made)))
            }
            Err(e) if client::is_exists(&e) => Ok(Recorded::Collision),
            Err(e) => Err(e.into()),
        }
    }

    /// Deletes revisions.
    pub async fn delete(&self, doomed: &[&ControllerRevision]) -> Result<(), Error> {
        for revision in doomed {
            let key = Key::of(*revision);
            let uid = revision.metadata.uid.as_deref();
            write::delete(&self.api(&key.namespace), &key.name, uid).await?;
            let gone = |e: Option<&Entry>| e.is_none_or(|e| e.deleting || Some(&*e.uid) != uid);
            self.revisions.until(&key, gone).await?;
        }
        Ok(())
    }
}

/// The place of a revision in the history.
pub fn number(revision: &ControllerRevision) -> i64 {
    revision.revision.unwrap_or(0)
}

/// A label of a revision; empty where it has none.
pub fn label<'a>(revision: &'a ControllerRevision, key: &str) -> &'a str {
    let all = revision.metadata.labels.as_ref();
    all.and_then(|l| l.get(key)).map_or("", String::as_str)
}

/// The template a revision holds.
pub fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let template = revision.data.0.pointer("/spec/template")?;
    PodTemplateSpec::deserialize(template).ok()
}

/// The newest revision of this template.
pub fn find<'a>(
    all: &'a [ControllerRevision],
    wanted: &PodTemplateSpec,
) -> Option<&'a ControllerRevision> {
    all.iter()
        .rev()
        .find(|r| template(r).is_some_and(|t| t == *wanted))
}

/// The oldest revisions beyond `limit`, leaving those whose names are `live`.
pub fn excess<'a>(
    all: &'a [ControllerRevision],
    live: &BTreeSet<&str>,
    limit: i32,
) -> Vec<&'a ControllerRevision> {
    let name = |r: &ControllerRevision| r.metadata.name.clone().unwrap_or_default();
    let idle: Vec<_> = all
        .iter()
        .filter(|r| !live.contains(name(r).as_str()))
        .collect();
    let keep = usize::try_from(limit).unwrap_or(0);
    let excess = idle.len().saturating_sub(keep);
    idle.into_iter().take(excess).collect()
}

/// The patch that brings a template back.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

fn revision<O: Resource<DynamicType = ()>>(
    owner: &O,
    template: &PodTemplateSpec,
    number: i64,
    collisions: i32,
    hash_label: &str,
) -> ControllerRevision {
    let hash = hash::of_template(template, collisions);
    let meta = owner.meta();
    let mut labels = template
        .metadata
        .as_ref()
        .and_then(|m| m.labels.clone())
        .unwrap_or_default();
    labels.insert(hash_label.to_owned(), hash.clone());
    let name = meta.name.as_deref().unwrap_or_default();
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{hash}")),
            namespace: meta.namespace.clone(),
            labels: Some(labels),
            annotations: meta.annotations.clone(),
            owner_references: Some(vec![claim::owner_reference(owner)]),
            ..ObjectMeta::default()
        },
        data: RawExtension(data(template)),
        revision: Some(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(image: &str, number: i64) -> ControllerRevision {
        let owner = k8s_openapi::api::apps::v1::DaemonSet {
            metadata: ObjectMeta {
                name: Some("d".into()),
                ..ObjectMeta::default()
            },
            ..Default::default()
        };
        revision(&owner, &of_image(image), number, 0, "hash")
    }

    fn of_image(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": image}]}}))
        .unwrap()
    }

    #[test]
    fn a_revision_holds_its_template() {
        let one = made("v1", 1);
        assert_eq!(template(&one), Some(of_image("v1")));
        assert_eq!(one.data.0["spec"]["template"]["$patch"], "replace");
        let name = format!("d-{}", label(&one, "hash"));
        assert_eq!(one.metadata.name, Some(name));
        assert_eq!(label(&one, "a"), "b");
    }

    #[test]
    fn finds_and_cleans_up() {
        let all = [made("v1", 1), made("v2", 2), made("v3", 3), made("v1", 4)];
        assert_eq!(find(&all, &of_image("v1")).map(number), Some(4));
        assert_eq!(find(&all, &of_image("v9")), None);
        let name = |i: usize| all[i].metadata.name.as_deref().unwrap();
        let live = BTreeSet::from([name(1)]);
        let numbers =
            |limit| -> Vec<i64> { excess(&all, &live, limit).into_iter().map(number).collect() };
        assert_eq!(numbers(1), [1, 3]);
        assert_eq!(numbers(0), [1, 3, 4]);
        assert_eq!(numbers(9), [0; 0]);
    }
}
