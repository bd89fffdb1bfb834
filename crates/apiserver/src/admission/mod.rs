//! Admission: plugins that complete or refuse an object on its way in, in a fixed order.
//!
//! A plugin is one file with one struct and one line in [`Chain::standard`]. Plugins read other objects through
//! the registry; they never write. Order matters: each sees what the ones before it filled in.

pub mod admin_access;
pub mod certificates;
pub mod claim_resize;
pub mod default_ingress_class;
pub mod default_storage_class;
pub mod default_toleration_seconds;
pub mod limit_ranger;
pub mod namespace_lifecycle;
pub mod pod_topology_labels;
pub mod priority;
pub mod runtime_class;
pub mod service_account;
pub mod storage_protection;
pub mod taint_nodes;

use std::sync::{Arc, OnceLock};

use api::Status;
use futures::future::BoxFuture;
use jiff::Timestamp;
use serde_json::Value;

use crate::auth::{Authorizer, UserInfo};
use crate::registry::{Fail, Registry, Resource, Warnings};

/// What is done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It is created.
    Create,
    /// It, or a subresource of it, is changed.
    Update,
    /// It is deleted.
    Delete,
}

/// A request as admission sees it.
pub struct Review<'a> {
    /// Reads other objects.
    pub registry: &'a Registry,
    /// The resource.
    pub resource: &'a Arc<Resource>,
    /// What is done.
    pub operation: Operation,
    /// Subresource, or empty.
    pub subresource: &'a str,
    /// Namespace, or empty.
    pub namespace: &'a str,
    /// Name of the object.
    pub name: &'a str,
    /// Who asks.
    pub user: &'a UserInfo,
    /// The object as it was, on update and delete.
    pub old: Option<&'a Value>,
    /// Nothing will be committed.
    pub dry_run: bool,
    /// The time of the request.
    pub now: Timestamp,
    /// Collects warnings for the response.
    pub warnings: &'a Warnings,
}

impl Review<'_> {
    /// Whether this creates such a resource.
    pub fn creates(&self, group: &str, resource: &str) -> bool {
        self.operation == Operation::Create && self.is(group, resource)
    }

    /// Whether the object itself (no subresource) of this resource is meant.
    pub fn is(&self, group: &str, resource: &str) -> bool {
        let kind = &self.resource.kind;
        kind.group == group && kind.resource == resource && self.subresource.is_empty()
    }

    /// 403 in the words of admission.
    pub fn forbidden(&self, why: &str) -> Fail {
        let kind = &self.resource.kind;
        Box::new(Status::forbidden(
            &kind.group,
            &kind.resource,
            self.name,
            why,
        ))
    }
}

/// Outcome of a plugin.
pub type Admitted<'a> = BoxFuture<'a, Result<(), Fail>>;

/// One admission plugin.
pub trait Plugin: Send + Sync {
    /// Upstream's name of the plugin.
    fn name(&self) -> &'static str;

    /// Whether a request may be any of its business. Most are not, and then neither phase is entered.
    fn handles(&self, review: &Review<'_>) -> bool;

    /// Completes or refuses an object before it is validated.
    fn mutate<'a>(&'a self, _review: &'a Review<'a>, _object: &'a mut Value) -> Admitted<'a> {
        Box::pin(async { Ok(()) })
    }

    /// Refuses a complete object; on delete it is null.
    fn validate<'a>(&'a self, _review: &'a Review<'a>, _object: &'a Value) -> Admitted<'a> {
        Box::pin(async { Ok(()) })
    }
}

/// Plugins in order.
#[derive(Default)]
pub struct Chain(Vec<Box<dyn Plugin>>);

impl Chain {
    /// The plugins that are on by default, in upstream's order.
    ///
    /// `authorizer` is filled in once the objects are there that it decides by.
    pub fn standard(authorizer: Arc<OnceLock<Authorizer>>) -> Self {
        Self(vec![
            Box::new(namespace_lifecycle::NamespaceLifecycle),
            Box::new(limit_ranger::LimitRanger),
            Box::new(service_account::ServiceAccount),
            Box::new(taint_nodes::TaintNodesByCondition),
            Box::new(priority::Priority::default()),
            Box::new(default_toleration_seconds::DefaultTolerationSeconds),
            Box::new(default_storage_class::DefaultStorageClass),
            Box::new(storage_protection::StorageObjectInUseProtection),
            Box::new(claim_resize::PersistentVolumeClaimResize),
            Box::new(admin_access::DeviceAdminAccess),
            Box::new(runtime_class::RuntimeClass),
            Box::new(certificates::CertificateRequester),
            Box::new(certificates::SignerPermissions { authorizer }),
            Box::new(certificates::CertificateSubjectRestriction),
            Box::new(default_ingress_class::DefaultIngressClass),
            Box::new(pod_topology_labels::PodTopologyLabels),
        ])
    }

    /// Runs the mutating phase.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn mutate(&self, review: &Review<'_>, object: &mut Value) -> Result<(), Fail> {
        for plugin in self.0.iter().filter(|p| p.handles(review)) {
            plugin.mutate(review, object).await?;
        }
        Ok(())
    }

    /// Runs the validating phase.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn validate(&self, review: &Review<'_>, object: &Value) -> Result<(), Fail> {
        for plugin in self.0.iter().filter(|p| p.handles(review)) {
            plugin.validate(review, object).await?;
        }
        Ok(())
    }
}
