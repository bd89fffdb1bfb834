//! Objects live in namespaces that exist; nothing is created in one that goes away; the first ones stay.

use api::{Status, StatusCause};
use serde_json::Value;

use super::{Admitted, Operation, Plugin, Review};
use crate::registry::{Fail, Write};

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// The plugin.
pub struct NamespaceLifecycle;

impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn mutate<'a>(&'a self, review: &'a Review<'a>, _object: &'a mut Value) -> Admitted<'a> {
        Box::pin(async move {
            if review.operation != Operation::Create || review.namespace.is_empty() {
                return Ok(());
            }
            // Whether it is terminating is decided with the commit itself.
            let found = review
                .registry
                .read(("", "v1", "namespaces"), "", review.namespace)
                .await?;
            found
                .map(drop)
                .ok_or_else(|| Box::new(Status::not_found("", "namespaces", review.namespace)))
        })
    }

    fn validate<'a>(&'a self, review: &'a Review<'a>, _object: &'a Value) -> Admitted<'a> {
        Box::pin(async move {
            let deletes = review.operation == Operation::Delete && review.is("", "namespaces");
            if deletes && IMMORTAL.contains(&review.name) {
                return Err(review.forbidden("this namespace may not be deleted"));
            }
            Ok(())
        })
    }
}

/// Refuses a create in a namespace that is terminating.
pub fn check_alive(write: &Write<'_>, name: &str, namespace: &Value) -> Result<(), Fail> {
    let phase = api::meta::str_at(namespace, &["status", "phase"]);
    if phase != "Terminating" && namespace.pointer("/metadata/deletionTimestamp").is_none() {
        return Ok(());
    }
    let kind = &write.resource.kind;
    let why = format!(
        "unable to create new content in namespace {} because it is being terminated",
        write.namespace
    );
    let mut status = Status::forbidden(&kind.group, &kind.resource, name, &why);
    if let Some(details) = &mut status.details {
        details.causes.push(StatusCause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {} is being terminated", write.namespace),
            field: "metadata.namespace".into(),
        });
    }
    Err(Box::new(status))
}
