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
use tokio_util::sync::CancellationToken;

use super::shared::Shared;
use super::sparse::Path;
use super::{Fail, Stored};

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
    /// How it is served, if it is a custom one.
    serving: Option<Serving>,
    /// What its watchers share.
    pub(super) shared: Shared,
    /// Where selectors look in an object, of a built-in kind.
    pub(super) selected_by: Vec<Path<'static>>,
}

/// What the engine must know of a custom resource beyond its kind: its schema may change while it is served.
struct Serving {
    /// `apiVersion` of stored objects.
    stored_version: String,
    /// How the bytes of an object begin that is stored in the served version.
    head: String,
    /// Objects written up to this revision may have been written under another schema.
    since: u64,
    /// Cancelled when another descriptor takes this one's place.
    retired: CancellationToken,
}

impl Resource {
    /// A custom resource whose definition counts for objects written after the revision.
    pub fn custom(kind: Kind, since: u64) -> Self {
        let kind_and_version = format!(
            "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",",
            kind.kind,
            kind.api_version()
        );
        let serving = Serving {
            stored_version: format!("{}/{}", kind.storage_group, kind.storage_version),
            head: kind_and_version,
            since,
            retired: CancellationToken::new(),
        };
        Self {
            strategy: kinds::strategy(&kind),
            policy: Policy::of(&kind),
            prefix: kind.storage_prefix(),
            kind,
            storage: None,
            serving: Some(serving),
            shared: Shared::default(),
            selected_by: Vec::new(),
        }
    }

    /// Whether a stored object can be sent as it is.
    pub fn is_current(&self, stored: &Stored) -> bool {
        match &self.serving {
            None => self.storage.is_none(),
            Some(s) => stored.revision > s.since && stored.bytes.starts_with(s.head.as_bytes()),
        }
    }

    /// A stored object as hooks see it: custom ones in the served version, with its defaults.
    ///
    /// # Errors
    /// When the stored bytes are no JSON.
    pub fn load(&self, stored: &Stored) -> Result<Value, Fail> {
        let mut object = stored.value()?;
        if let Some(custom) = &self.kind.custom
            && !self.is_current(stored)
        {
            kinds::convert(&mut object, &self.kind);
            codec::custom::refresh(&mut object, custom);
        }
        Ok(object)
    }

    /// What is stored of an object that hooks are done with.
    pub fn stored_form(&self, object: &Value) -> Value {
        let mut object = object.clone();
        if let Some(serving) = &self.serving {
            api::meta::set(
                &mut object,
                &["apiVersion"],
                serving.stored_version.as_str().into(),
            );
        }
        object
    }

    /// The bytes to store of an object that hooks are done with, unless a webhook converts it.
    pub fn encode(&self, object: &Value) -> Bytes {
        match &self.serving {
            Some(s) if s.stored_version != self.kind.api_version() => {
                codec::canonical(&self.stored_form(object))
            }
            _ => codec::canonical(object),
        }
    }

    /// The webhook that converts between versions.
    pub fn webhook(&self) -> Option<&Value> {
        self.kind.custom.as_ref().and_then(|c| c.webhook.as_ref())
    }

    /// `apiVersion` of what is stored.
    pub fn stored_version(&self) -> String {
        match &self.serving {
            Some(serving) => serving.stored_version.clone(),
            None => self.stored().api_version(),
        }
    }

    /// Whether bytes are a custom object of the served version.
    pub fn is_written_as_served(&self, bytes: &[u8]) -> bool {
        let head = self.serving.as_ref().map(|s| s.head.as_bytes());
        head.is_none_or(|head| bytes.starts_with(head))
    }

    /// Whether the resource answers the verb. A custom one whose definition is being deleted still takes
    /// updates, which discovery no longer says: finalizers must go.
    pub fn answers(&self, verb: &str) -> bool {
        self.kind.has_verb(verb)
            || (self.serving.is_some() && matches!(verb, "create" | "update" | "patch"))
    }

    /// Ends what still uses this descriptor.
    pub fn retire(&self) {
        if let Some(serving) = &self.serving {
            serving.retired.cancel();
        }
    }

    /// Cancelled when this descriptor no longer counts; `None` for one that always does.
    pub fn retirement(&self) -> Option<&CancellationToken> {
        self.serving.as_ref().map(|s| &s.retired)
    }

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
            selected_by: super::selection::paths(stored),
            storage,
            serving: None,
            shared: Shared::default(),
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
    /// By plural name: few groups and versions share one.
    by_name: HashMap<String, Vec<Arc<Resource>>>,
    kinds: Vec<Kind>,
}

impl Resources {
    /// The resources of these kinds, in this order.
    pub fn new<'a>(kinds: impl IntoIterator<Item = &'a Kind>) -> Self {
        let mut all = Self::default();
        for kind in kinds {
            all.put(Arc::new(Resource::new(kind)));
        }
        all
    }

    /// These resources and the given ones behind them.
    pub fn with(&self, more: &[Arc<Resource>]) -> Self {
        let mut all = Self {
            by_name: self.by_name.clone(),
            kinds: self.kinds.clone(),
        };
        for resource in more {
            let kind = &resource.kind;
            // What is built in cannot be defined anew.
            if all.at(&kind.group, &kind.version, &kind.resource).is_none() {
                all.put(resource.clone());
            }
        }
        all
    }

    fn put(&mut self, resource: Arc<Resource>) {
        self.kinds.push(resource.kind.clone());
        let same_name = self.by_name.entry(resource.kind.resource.clone());
        same_name.or_default().push(resource);
    }

    fn at(&self, group: &str, version: &str, resource: &str) -> Option<&Arc<Resource>> {
        let same_name = self.by_name.get(resource)?;
        same_name
            .iter()
            .find(|r| r.kind.group == group && r.kind.version == version)
    }

    /// The resource at a path.
    pub fn find(&self, group: &str, version: &str, resource: &str) -> Option<Arc<Resource>> {
        self.at(group, version, resource).cloned()
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
