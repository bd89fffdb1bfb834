//! The generic engine: one path of create, get, list, watch, update, patch and delete for every kind.
//!
//! Objects are stored as canonical JSON without `resourceVersion`; the store's revision is spliced in on the
//! way out. A write is a read-modify-commit loop whose commit carries every precondition: the object's revision, the
//! namespace's existence and allocated addresses are decided atomically, never checked and then hoped for.

pub mod apply;
mod claims;
mod conversion;
mod create;
mod delete;
mod edit;
pub mod feed;
pub mod list;
mod memo;
pub mod metadata;
mod myself;
mod pods;
mod quota;
pub mod resource;
pub mod scale;
mod selection;
mod services;
mod shared;
pub mod sparse;
pub mod streamed;
pub mod table;
mod transform;
mod update;
pub mod watch;

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use api::Status;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use store::{CommitError, KeyValue, RangeRequest, ReadError, Store, prefix_end};

pub use api::splice;
pub use apply::Owner;
pub use claims::Claims;
pub use create::new_uid;
pub use delete::{DeleteOptions, Deleted};
pub use memo::Memo;
pub use myself::Myself;
pub use resource::{Resource, Resources};
pub use selection::Selection;
pub use transform::Transformer;
pub use update::{Part, Update, served_with_revision};

use crate::admission::Chain;
use crate::auth::UserInfo;
use crate::config::Config;

/// A failure to be answered; boxed because it is rare and large.
pub type Fail = Box<Status>;

/// How often a write is tried again when another one came in between and the client pinned no version.
const WRITE_ATTEMPTS: usize = 64;

/// An object as it is stored.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Canonical JSON of the stored version, without `resourceVersion`.
    pub bytes: Bytes,
    /// Revision of the last write; 0 if that was a dry run.
    pub revision: u64,
}

impl Stored {
    /// The object as a tree.
    ///
    /// # Errors
    /// When the stored bytes are no JSON.
    pub fn value(&self) -> Result<Value, Fail> {
        serde_json::from_slice(&self.bytes).map_err(|e| Box::new(Status::internal(e)))
    }

    /// The object with nothing in it but its name and namespace.
    ///
    /// # Errors
    /// As [`Self::value`].
    pub fn identity(&self) -> Result<Value, Fail> {
        self.part(&[&["metadata", "name"], &["metadata", "namespace"]])
    }

    /// The object with nothing in it but what lies at `paths`.
    ///
    /// # Errors
    /// As [`Self::value`].
    pub fn part(&self, paths: &[sparse::Path<'_>]) -> Result<Value, Fail> {
        sparse::read(&self.bytes, paths).map_err(|e| Box::new(Status::internal(e)))
    }

    /// The object as clients see it: with its resourceVersion, if it was ever stored.
    ///
    /// # Errors
    /// As [`Self::value`].
    pub fn with_revision(&self) -> Result<Value, Fail> {
        let mut object = self.value()?;
        if self.revision > 0 {
            let revision = self.revision.to_string();
            metadata::of(&mut object).insert("resourceVersion".into(), revision.into());
        }
        Ok(object)
    }
}

/// Who writes what, and how.
pub struct Write<'a> {
    /// The resource written.
    pub resource: &'a Arc<Resource>,
    /// Namespace of the request, or empty.
    pub namespace: &'a str,
    /// Name in the path, or empty on create.
    pub name: &'a str,
    /// Subresource, or empty.
    pub subresource: &'a str,
    /// Who asks.
    pub user: &'a UserInfo,
    /// Everything happens but the commit.
    pub dry_run: bool,
    /// The time of the request.
    pub now: Timestamp,
    /// Collects warnings for the response.
    pub warnings: &'a Warnings,
    /// Who owns the fields that this write sets; `None` for the cluster's own doing, and where the change itself says.
    pub owner: Option<&'a Owner>,
}

impl<'a> Write<'a> {
    /// The same, setting the fields of `owner`.
    pub fn owned_by(self, owner: &'a Owner) -> Self {
        Self {
            owner: Some(owner),
            ..self
        }
    }
}

/// Warnings of one request, in order.
#[derive(Default)]
pub struct Warnings(Mutex<Vec<String>>);

impl Warnings {
    /// Adds warnings, leaving out repetitions.
    pub fn add(&self, more: impl IntoIterator<Item = String>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for warning in more {
            if !all.contains(&warning) {
                all.push(warning);
            }
        }
    }

    /// Takes all warnings.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The engine.
pub struct Registry {
    store: Arc<dyn Store>,
    transformer: Transformer,
    built_in: Resources,
    resources: RwLock<Arc<Resources>>,
    changes: tokio::sync::watch::Sender<()>,
    admission: Chain,
    config: Config,
    /// Cancelled when the server stops: ends watches.
    pub stop: tokio_util::sync::CancellationToken,
}

/// A failure of reading, in the API's words.
pub fn read_failure(error: ReadError) -> Fail {
    Box::new(match error {
        ReadError::Compacted { .. } => {
            Status::expired("The resourceVersion for the provided list is too old.")
        }
        ReadError::Closed => Status::service_unavailable("the server is shutting down"),
        other => Status::internal(other),
    })
}

/// A failure of committing other than a conflict, in the API's words.
pub fn commit_failure(error: CommitError) -> Fail {
    Box::new(match error {
        CommitError::TooLarge { .. } => Status::too_large(&error),
        CommitError::Closed => Status::service_unavailable("the server is shutting down"),
        other => Status::internal(other),
    })
}

impl Registry {
    /// An engine over `store`.
    pub fn new(config: Config, store: Arc<dyn Store>, admission: Chain) -> Self {
        let built_in = Resources::new(api::kinds());
        Self {
            store,
            transformer: Transformer::new(config.encryption_key.as_ref()),
            resources: RwLock::new(Arc::new(built_in.with(&[]))),
            changes: tokio::sync::watch::Sender::new(()),
            built_in,
            admission,
            config,
            stop: tokio_util::sync::CancellationToken::new(),
        }
    }

    /// The resources served now.
    pub fn resources(&self) -> Arc<Resources> {
        self.resources
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Serves these custom resources, and no other ones, beside the built-in ones.
    pub fn serve_custom(&self, custom: &[Arc<Resource>]) {
        let all = Arc::new(self.built_in.with(custom));
        *self
            .resources
            .write()
            .unwrap_or_else(PoisonError::into_inner) = all;
        self.changes.send_replace(());
    }

    /// Tells whenever other resources are served than before.
    pub fn changes(&self) -> tokio::sync::watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        (self.config.clock)()
    }

    /// Opens a stored value.
    pub fn open(&self, kv: &KeyValue) -> Result<Stored, Fail> {
        let bytes = self
            .transformer
            .open(&kv.key, kv.value.clone())
            .map_err(|e| Box::new(Status::internal(e)))?;
        Ok(Stored {
            bytes,
            revision: kv.mod_revision,
        })
    }

    fn seal(&self, resource: &Resource, key: &[u8], value: Bytes) -> Bytes {
        self.transformer.seal(resource.policy.secret, key, value)
    }

    /// One object, or `None`.
    pub async fn find(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Stored>, Fail> {
        match self.find_stored(resource, namespace, name).await? {
            Some(stored) => self.converted_one(resource, stored).await.map(Some),
            None => Ok(None),
        }
    }

    async fn find_stored(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Stored>, Fail> {
        let key = resource.key(namespace, name);
        let (kv, _) = self.store.get(&key, None).await.map_err(read_failure)?;
        kv.map(|kv| self.open(&kv)).transpose()
    }

    /// One object; 404 without it.
    pub async fn get(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Stored, Fail> {
        let found = self.find(resource, namespace, name).await?;
        found.ok_or_else(|| {
            Box::new(Status::not_found(
                &resource.kind.group,
                &resource.kind.resource,
                name,
            ))
        })
    }

    /// A built-in resource by its path.
    pub fn resource(
        &self,
        group: &str,
        version: &str,
        resource: &str,
    ) -> Result<Arc<Resource>, Fail> {
        self.resources()
            .find(group, version, resource)
            .ok_or_else(|| Box::new(Status::no_resource()))
    }

    /// What an object of a built-in resource has at `paths`, or `None`: for admission, which asks the same few things
    /// again and again.
    pub async fn read_part(
        &self,
        (group, version, resource): (&str, &str, &str),
        namespace: &str,
        name: &str,
        paths: &[sparse::Path<'_>],
    ) -> Result<Option<Value>, Fail> {
        let resource = self.resource(group, version, resource)?;
        let found = self.find(&resource, namespace, name).await?;
        found.map(|s| s.part(paths)).transpose()
    }

    /// One object of a built-in resource as a tree, or `None`: for admission and reviews.
    pub async fn read(
        &self,
        (group, version, resource): (&str, &str, &str),
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, Fail> {
        let resource = self.resource(group, version, resource)?;
        self.find(&resource, namespace, name)
            .await?
            .map(|s| s.value())
            .transpose()
    }

    /// All objects of a built-in resource (in a namespace, if one is given) as trees: for admission and reviews,
    /// where there are few.
    pub async fn read_all(
        &self,
        resource: (&str, &str, &str),
        namespace: &str,
    ) -> Result<Vec<Value>, Fail> {
        let found = self.stored_all(resource, namespace).await?;
        found.iter().map(Stored::value).collect()
    }

    /// What `make` makes of them, or has made: as long as they are the same, it is not asked again.
    pub async fn read_memo<T>(
        &self,
        resource: (&str, &str, &str),
        namespace: &str,
        memo: &Memo<T>,
        make: impl FnOnce(&[Value]) -> T,
    ) -> Result<Arc<T>, Fail> {
        let found = self.stored_all(resource, namespace).await?;
        let revisions: Vec<u64> = found.iter().map(|s| s.revision).collect();
        if let Some(known) = memo.of(&revisions) {
            return Ok(known);
        }
        let all: Vec<Value> = found.iter().map(Stored::value).collect::<Result<_, _>>()?;
        Ok(memo.set(revisions, make(&all)))
    }

    async fn stored_all(
        &self,
        (group, version, resource): (&str, &str, &str),
        namespace: &str,
    ) -> Result<Vec<Stored>, Fail> {
        let resource = self.resource(group, version, resource)?;
        let start = resource.prefix(namespace);
        let range = RangeRequest {
            end: prefix_end(&start),
            start,
            limit: 0,
            at: None,
        };
        let found = self.store.range(range).await.map_err(read_failure)?;
        found.kvs.iter().map(|kv| self.open(kv)).collect()
    }
}
