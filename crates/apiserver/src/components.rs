//! The health of the control plane's parts as objects, which old scripts ask for. They are made when they are
//! read: whatever answers, answers in the process of all of them.

use std::sync::Arc;

use api::Status;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::json;

use crate::ApiServer;
use crate::http::body::Response;
use crate::http::handler::Call;
use crate::http::negotiate::Transform;
use crate::registry::list::{ListOptions, Page};
use crate::registry::{Fail, Resource, Stored};

/// What upstream calls the parts; the store is named as its first etcd.
const PARTS: [&str; 3] = ["scheduler", "controller-manager", "etcd-0"];

impl ApiServer {
    /// Answers a read of one or all.
    pub(crate) fn component_statuses(
        &self,
        headers: &HeaderMap,
        call: &Call,
        resource: &Arc<Resource>,
    ) -> Result<Response, Fail> {
        let name = call.info.name.as_str();
        if !name.is_empty() {
            let form = call.object_form(headers, resource)?;
            let part = PARTS.iter().find(|part| **part == name);
            let part = part.ok_or_else(|| Status::not_found("", "componentstatuses", name))?;
            return call.object(&self.registry, resource, StatusCode::OK, status(part), form);
        }
        let transforms = [Transform::Table, Transform::PartialList];
        let form = call.form(headers, &resource.kind, &transforms)?;
        let selection = ListOptions::parse(resource, &call.query, false)?.selection;
        let mut items: Vec<Stored> = PARTS.into_iter().map(status).collect();
        items.retain(|item| selection.matches(resource, &item.bytes));
        let page = Page {
            items,
            ..Page::default()
        };
        call.list(&self.registry, resource, &page, form)
    }
}

fn status(part: &str) -> Stored {
    let object = json!({
        "kind": "ComponentStatus",
        "apiVersion": "v1",
        "metadata": {"name": part},
        "conditions": [{"type": "Healthy", "status": "True", "message": "ok"}],
    });
    Stored {
        bytes: Bytes::from(object.to_string()),
        revision: 0,
    }
}
