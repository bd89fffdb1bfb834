//! Objects live in namespaces that exist; nothing is created in one that goes away; the first ones stay.

use std::borrow::Cow;

use api::{Status, StatusCause};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::{Admitted, Operation, Plugin, Review};
use crate::registry::{Fail, Stored, Write};

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// The plugin.
pub struct NamespaceLifecycle;

impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        let made = review.operation == Operation::Create && !review.namespace.is_empty();
        made || review.is("", "namespaces")
    }

    fn mutate<'a>(&'a self, review: &'a Review<'a>, _object: &'a mut Value) -> Admitted<'a> {
        Box::pin(async move {
            if review.operation != Operation::Create || review.namespace.is_empty() {
                return Ok(());
            }
            // Whether it is terminating is decided with the commit itself.
            let namespaces = review.registry.resource("", "v1", "namespaces")?;
            let found = review
                .registry
                .find(&namespaces, "", review.namespace)
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

/// What of a namespace tells whether it is terminating: read on every create, so without its whole tree.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Life<'a> {
    metadata: Metadata,
    #[serde(borrow)]
    status: Phase<'a>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    deletion_timestamp: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Phase<'a> {
    #[serde(borrow)]
    phase: Cow<'a, str>,
}

/// Refuses a create in a namespace that is terminating.
pub fn check_alive(write: &Write<'_>, name: &str, namespace: &Stored) -> Result<(), Fail> {
    let life: Life<'_> =
        serde_json::from_slice(&namespace.bytes).map_err(|e| Box::new(Status::internal(e)))?;
    if life.status.phase != "Terminating" && life.metadata.deletion_timestamp.is_none() {
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
