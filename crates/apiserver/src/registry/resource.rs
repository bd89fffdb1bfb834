//! The resources the server knows, and the few storage rules that differ between them.
//!
//! A [`Resource`] is a kind's descriptor with its strategy and policy. Policies are data in this file, not
//! code paths: what a kind does beyond them is in its strategy.

use std::collections::HashMap;
use std::sync::Arc;

use api::Kind;
use bytes::Bytes;
use kinds::Strategy;
use serde_json::Value;

/// What happens to dependents when an object is deleted and the request does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collect {
    /// The garbage collector deletes them afterwards.
    Background,
    /// They are left alone.
    Orphan,
}

/// Rules of the generic engine that differ between resources.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// DELETE answers with the object instead of a Status.
    pub returns_deleted: bool,
    /// Dependents of a deleted object.
    pub collect: Collect,
    /// Values are sealed at rest.
    pub secret: bool,
}

const RETURNS_DELETED: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "pods",
            "podtemplates",
            "services",
            "serviceaccounts",
            "resourcequotas",
            "persistentvolumes",
            "persistentvolumeclaims",
        ],
    ),
    (
        "storage.k8s.io",
        &[
            "storageclasses",
            "csidrivers",
            "csinodes",
            "volumeattachments",
        ],
    ),
];
const ORPHANING: &[(&str, &[&str])] = &[("", &["replicationcontrollers"])];
const SECRETS: &[(&str, &[&str])] = &[("", &["secrets"])];

fn listed(table: &[(&str, &[&str])], kind: &Kind) -> bool {
    table.iter().any(|(group, resources)| {
        *group == kind.group && resources.contains(&kind.resource.as_str())
    })
}

impl Policy {
    fn of(kind: &Kind) -> Self {
        Self {
            returns_deleted: listed(RETURNS_DELETED, kind),
            collect: if listed(ORPHANING, kind) {
                Collect::Orphan
            } else {
                Collect::Background
            },
            secret: listed(SECRETS, kind),
        }
    }
}

/// One served resource of one version.
pub struct Resource {
    /// The served descriptor.
    pub kind: Kind,
    /// The descriptor of the version objects are stored in; `None` if it is `kind` itself.
    storage: Option<Kind>,
    /// Hooks of the kind.
    pub strategy: &'static dyn Strategy,
    /// Rules of the engine.
    pub policy: Policy,
    prefix: String,
}

impl Resource {
    /// Puts a descriptor together with its rules.
    pub fn new(kind: &Kind) -> Self {
        let storage = (!kind.is_storage_version())
            .then(|| api::kind(&kind.storage_group, &kind.storage_version, &kind.resource).cloned())
            .flatten();
        let stored = storage.as_ref().unwrap_or(kind);
        Self {
            strategy: kinds::strategy(stored),
            policy: Policy::of(kind),
            prefix: kind.storage_prefix(),
            kind: kind.clone(),
            storage,
        }
    }

    /// The descriptor of the stored version.
    pub fn stored(&self) -> &Kind {
        self.storage.as_ref().unwrap_or(&self.kind)
    }

    /// Whether stored objects must be converted to be served.
    pub fn converts(&self) -> bool {
        self.storage.is_some()
    }

    /// Whether this is that resource, in whatever version.
    pub fn is(&self, group: &str, resource: &str) -> bool {
        self.kind.group == group && self.kind.resource == resource
    }

    /// An object of the served version in the stored one.
    pub fn to_stored(&self, mut object: Value) -> Value {
        if self.converts() {
            kinds::convert(&mut object, self.stored());
        }
        object
    }

    /// A stored object in the served version.
    pub fn to_served(&self, mut object: Value) -> Value {
        if self.converts() {
            kinds::convert(&mut object, &self.kind);
        }
        object
    }

    /// Prefix of the keys of a namespace's objects, or of all when `namespace` is empty.
    pub fn prefix(&self, namespace: &str) -> Bytes {
        if namespace.is_empty() || !self.kind.namespaced {
            Bytes::from(self.prefix.clone())
        } else {
            Bytes::from(format!("{}{namespace}/", self.prefix))
        }
    }

    /// Store key of one object.
    pub fn key(&self, namespace: &str, name: &str) -> Bytes {
        if self.kind.namespaced {
            Bytes::from(format!("{}{namespace}/{name}", self.prefix))
        } else {
            Bytes::from(format!("{}{name}", self.prefix))
        }
    }
}

/// All resources by group, version and plural name.
#[derive(Default)]
pub struct Resources {
    by_path: HashMap<(String, String, String), Arc<Resource>>,
    kinds: Vec<Kind>,
}

impl Resources {
    /// The resources of these kinds, in this order.
    pub fn new<'a>(kinds: impl IntoIterator<Item = &'a Kind>) -> Self {
        let mut all = Self::default();
        for kind in kinds {
            let path = (
                kind.group.clone(),
                kind.version.clone(),
                kind.resource.clone(),
            );
            all.by_path.insert(path, Arc::new(Resource::new(kind)));
            all.kinds.push(kind.clone());
        }
        all
    }

    /// The resource at a path.
    pub fn find(&self, group: &str, version: &str, resource: &str) -> Option<Arc<Resource>> {
        self.by_path
            .get(&(group.to_owned(), version.to_owned(), resource.to_owned()))
            .cloned()
    }

    /// The descriptors, in discovery order.
    pub fn kinds(&self) -> &[Kind] {
        &self.kinds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_laid_out_as_upstream_does() {
        let resource = |g, v, r| Resource::new(api::kind(g, v, r).unwrap());
        assert_eq!(
            resource("", "v1", "pods").key("a", "b"),
            "/registry/pods/a/b"
        );
        assert_eq!(
            resource("", "v1", "nodes").key("", "n"),
            "/registry/nodes/n"
        );
        assert_eq!(
            resource("apps", "v1", "deployments").prefix("a"),
            "/registry/apps/deployments/a/"
        );
        assert_eq!(
            resource("apps", "v1", "deployments").prefix(""),
            "/registry/apps/deployments/"
        );
        let events = resource("events.k8s.io", "v1", "events");
        assert_eq!(events.key("a", "b"), "/registry/events/a/b");
        assert!(events.converts() && events.stored().group.is_empty());
        assert!(resource("", "v1", "secrets").policy.secret);
    }
}
