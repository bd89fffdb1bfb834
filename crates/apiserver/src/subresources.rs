//! Subresources: parts of an object with verbs and permissions of their own.

use std::sync::Arc;

use api::{FieldError, Status, meta};
use http::StatusCode;
use serde_json::{Value, json};

use crate::ApiServer;
use crate::admission::pod_topology_labels;
use crate::auth::{BoundObject, TokenRequest, tokens};
use crate::call::{PatchType, apply_patch, parse_patch, patch_type, read_body};
use crate::dispatch::not_allowed;
use crate::http::body::{Request, Response};
use crate::http::handler::Call;
use crate::http::respond;
use crate::registry::{Fail, Part, Resource, Write, new_uid};

impl ApiServer {
    /// Serves a request below an object.
    pub(crate) async fn serve_subresource(
        self: &Arc<Self>,
        request: Request,
        call: &Call,
        resource: &Arc<Resource>,
    ) -> Result<Response, Fail> {
        let info = &call.info;
        let Some(subresource) = resource.kind.subresource(&info.subresource) else {
            return Err(Box::new(Status::no_resource()));
        };
        if !subresource.verbs.contains(&info.verb) {
            return Err(not_allowed());
        }
        match (info.subresource.as_str(), info.verb.as_str()) {
            ("log" | "exec" | "attach" | "portforward" | "proxy", _) => {
                self.serve_stream(request, call).await
            }
            ("scale", _) => self.serve_scale(request, call, resource).await,
            ("binding", "create") => self.serve_binding(request, call, resource).await,
            ("eviction", "create") => self.serve_eviction(request, call, resource).await,
            ("token", "create") => self.serve_token(request, call, resource).await,
            (_, "get") => {
                let form = call.form(request.headers(), &resource.kind, &[])?;
                let write = call.write(&self.registry, resource)?;
                let stored = self
                    .registry
                    .get(resource, write.namespace, write.name)
                    .await?;
                call.object(&self.registry, resource, StatusCode::OK, stored, form)
            }
            (name, "update") => self.serve_update(request, call, resource, part(name)).await,
            (name, "patch") => self.serve_patch(request, call, resource, part(name)).await,
            _ => Err(not_allowed()),
        }
    }

    async fn serve_scale(
        &self,
        request: Request,
        call: &Call,
        resource: &Arc<Resource>,
    ) -> Result<Response, Fail> {
        let apply = call.info.verb == "patch" && crate::apply::is_apply(&request);
        let owner = match call.info.verb.as_str() {
            "update" => Some(call.owner(request.headers(), "UpdateOptions")?),
            "patch" if !apply => Some(call.owner(request.headers(), "PatchOptions")?),
            _ => None,
        };
        let write = Write {
            owner: owner.as_ref(),
            ..call.write(&self.registry, resource)?
        };
        let answer = match call.info.verb.as_str() {
            "patch" if apply => {
                let apply = call.apply(request).await?;
                self.registry
                    .update_scale(&write, |current| {
                        write.applied_scale(current, apply.config(), apply.by())
                    })
                    .await?
            }
            "get" => self.registry.get_scale(&write).await?,
            "update" => {
                let wanted = self
                    .decode_as(request, call, "autoscaling", "v1", "Scale")
                    .await?;
                self.registry
                    .update_scale(&write, |_| Ok(wanted.clone()))
                    .await?
            }
            "patch" => {
                // Strategic merge of a Scale is a plain merge: it has no lists.
                let kind = patch_type(&request, resource)?;
                let patch = parse_patch(&read_body(request.into_body()).await?)?;
                self.registry
                    .update_scale(&write, |current| {
                        let kind = match kind {
                            PatchType::Strategic => PatchType::Merge,
                            other => other,
                        };
                        let mut unpinned = current.clone();
                        if patch.pointer("/metadata/resourceVersion").is_none() {
                            meta::remove(&mut unpinned, &["metadata", "resourceVersion"]);
                        }
                        apply_patch(resource, kind, &unpinned, &patch)
                    })
                    .await?
            }
            _ => return Err(not_allowed()),
        };
        Ok(respond::json(StatusCode::OK, &answer, call.style))
    }

    /// Decodes a body of a kind that is not the resource's own.
    pub(crate) async fn decode_as(
        &self,
        request: Request,
        call: &Call,
        group: &str,
        version: &str,
        kind: &str,
    ) -> Result<Value, Fail> {
        let input = call.input(request).await?;
        let Some(descriptor) = api::kind_by_gvk(group, version, kind) else {
            // Kinds that are only ever subresources have no descriptor: their bodies are checked by use.
            return Ok(codec::parse(&input.bytes, input.content_type)?.0);
        };
        let (object, warnings) = codec::decode(
            &input.bytes,
            input.content_type,
            descriptor,
            input.validation,
        )?;
        call.warnings.add(warnings);
        Ok(object)
    }

    /// `pods/binding`: gives a pod its node.
    pub(crate) async fn serve_binding(
        &self,
        request: Request,
        call: &Call,
        resource: &Arc<Resource>,
    ) -> Result<Response, Fail> {
        let binding = self.decode_as(request, call, "", "v1", "Binding").await?;
        let mut write = call.write(&self.registry, resource)?;
        if write.name.is_empty() {
            write.name = meta::name(&binding);
        }
        let node = meta::str_at(&binding, &["target", "name"]);
        let kind = meta::str_at(&binding, &["target", "kind"]);
        let mut errors = Vec::new();
        if !matches!(kind, "" | "Node") {
            errors.push(FieldError::not_supported(
                "target.kind",
                kind,
                &["Node", "<empty>"],
            ));
        }
        if node.is_empty() {
            errors.push(FieldError::required("target.name", ""));
        }
        if !errors.is_empty() {
            return Err(Box::new(Status::invalid(
                "", "Binding", write.name, &errors,
            )));
        }
        let asked_uid = meta::uid(&binding).to_owned();
        let place = pod_topology_labels::of_node(&self.registry, node).await?;
        self.registry
            .edit(&write, BOUND, |pod| {
                bind(&write, pod, &binding, node, &asked_uid)?;
                pod_topology_labels::give(pod, place.clone());
                Ok(())
            })
            .await?;
        let done = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(respond::json(StatusCode::CREATED, &done, call.style))
    }

    /// `serviceaccounts/token`: issues a token.
    async fn serve_token(
        &self,
        request: Request,
        call: &Call,
        resource: &Arc<Resource>,
    ) -> Result<Response, Fail> {
        let asked = self
            .decode_as(request, call, "authentication.k8s.io", "v1", "TokenRequest")
            .await?;
        let write = call.write(&self.registry, resource)?;
        let account = self
            .registry
            .get(resource, write.namespace, write.name)
            .await?
            .value()?;
        let audiences: Vec<String> = meta::list_at(&asked, &["spec", "audiences"])
            .iter()
            .filter_map(|a| a.as_str().map(str::to_owned))
            .collect();
        let lifetime = meta::int_at(&asked, &["spec", "expirationSeconds"])
            .unwrap_or(tokens::DEFAULT_LIFETIME_SECONDS);
        if lifetime < tokens::MIN_LIFETIME_SECONDS {
            let why = FieldError::invalid(
                "spec.expirationSeconds",
                lifetime,
                "may not specify a duration less than 10 minutes",
            );
            return Err(Box::new(Status::invalid(
                "authentication.k8s.io",
                "TokenRequest",
                "",
                &[why],
            )));
        }
        let mut token = TokenRequest {
            namespace: write.namespace.to_owned(),
            name: write.name.to_owned(),
            uid: meta::uid(&account).to_owned(),
            audiences: audiences.clone(),
            lifetime_seconds: lifetime,
            ..TokenRequest::default()
        };
        self.bind_token(&write, &asked, &mut token).await?;
        let now = write.now.as_second();
        let (text, expiry) = self
            .registry
            .config()
            .tokens
            .issue(token, now, new_uid())
            .map_err(|e| Box::new(Status::internal(e)))?;
        let expires = jiff::Timestamp::from_second(expiry).unwrap_or(write.now);
        let mut answer = asked;
        answer["kind"] = "TokenRequest".into();
        answer["apiVersion"] = "authentication.k8s.io/v1".into();
        let mut metadata = json!({"name": write.name, "namespace": write.namespace});
        metadata["creationTimestamp"] = api::time::format(write.now).into();
        answer["metadata"] = metadata;
        let audiences = if audiences.is_empty() {
            vec![self.registry.config().tokens.issuer().to_owned()]
        } else {
            audiences
        };
        meta::set(&mut answer, &["spec", "audiences"], audiences.into());
        meta::set(&mut answer, &["spec", "expirationSeconds"], lifetime.into());
        answer["status"] =
            json!({"token": text, "expirationTimestamp": api::time::format(expires)});
        Ok(respond::json(StatusCode::CREATED, &answer, call.style))
    }

    /// Ties a token to the pod, secret or node it is asked for.
    async fn bind_token(
        &self,
        write: &Write<'_>,
        asked: &Value,
        token: &mut TokenRequest,
    ) -> Result<(), Fail> {
        let Some(reference) =
            meta::get(asked, &["spec", "boundObjectRef"]).filter(|r| !r.is_null())
        else {
            return Ok(());
        };
        let text = |field: &str| meta::str_at(reference, &[field]);
        let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
        let (resource, namespace) = match kind {
            "Pod" => ("pods", write.namespace),
            "Secret" => ("secrets", write.namespace),
            "Node" => ("nodes", ""),
            other => {
                let why = format!(
                    "cannot bind token for serviceaccount to object of type {:?}",
                    format!("{}, Kind={other}", text("apiVersion"))
                );
                return Err(Box::new(Status::bad_request(why)));
            }
        };
        let found = self
            .registry
            .read(("", "v1", resource), namespace, name)
            .await?;
        let object = found.ok_or_else(|| Box::new(Status::not_found("", resource, name)))?;
        if !uid.is_empty() && uid != meta::uid(&object) {
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(Box::new(Status::conflict("", resource, name, &why)));
        }
        let bound = BoundObject {
            name: name.to_owned(),
            uid: meta::uid(&object).to_owned(),
        };
        match kind {
            "Pod" => {
                let account = meta::str_at(&object, &["spec", "serviceAccountName"]);
                if account != write.name {
                    let why = format!(
                        "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                        write.name
                    );
                    return Err(Box::new(Status::bad_request(why)));
                }
                let node = meta::str_at(&object, &["spec", "nodeName"]).to_owned();
                if !node.is_empty() {
                    let uid = self.registry.read(("", "v1", "nodes"), "", &node).await?;
                    let uid = uid.map(|n| meta::uid(&n).to_owned()).unwrap_or_default();
                    token.node = Some(BoundObject { name: node, uid });
                }
                token.pod = Some(bound);
            }
            "Secret" => token.secret = Some(bound),
            _ => token.node = Some(bound),
        }
        Ok(())
    }
}

/// Which part a writing subresource changes.
fn part(name: &str) -> Part {
    match name {
        "status" | "approval" => Part::Status,
        "finalize" => Part::Exact,
        "ephemeralcontainers" => Part::EphemeralContainers,
        "resize" => Part::Resize,
        _ => Part::Main,
    }
}

/// What a binding looks at and changes of a pod.
const BOUND: &[api::edit::Path<'_>] = &[
    &["metadata", "uid"],
    &["metadata", "deletionTimestamp"],
    &["metadata", "annotations"],
    &["metadata", "labels"],
    &["spec", "nodeName"],
    &["spec", "schedulingGates"],
    &["status", "conditions"],
    &["status", "nominatedNodeName"],
];

fn bind(
    write: &Write<'_>,
    pod: &mut Value,
    binding: &Value,
    node: &str,
    asked_uid: &str,
) -> Result<(), Fail> {
    let conflict = |why: String| Box::new(Status::conflict("", "pods/binding", write.name, &why));
    if !asked_uid.is_empty() && asked_uid != meta::uid(pod) {
        let actual = meta::uid(pod);
        return Err(conflict(format!(
            "Precondition failed: UID in precondition: {asked_uid}, UID in object meta: {actual}"
        )));
    }
    if pod.pointer("/metadata/deletionTimestamp").is_some() {
        return Err(conflict(format!(
            "pod {} is being deleted, cannot be assigned to a host",
            write.name
        )));
    }
    let assigned = meta::str_at(pod, &["spec", "nodeName"]);
    if !assigned.is_empty() {
        return Err(conflict(format!(
            "pod {} is already assigned to node {assigned:?}",
            write.name
        )));
    }
    if !meta::list_at(pod, &["spec", "schedulingGates"]).is_empty() {
        return Err(conflict(format!(
            "pod {} has non-empty .spec.schedulingGates",
            write.name
        )));
    }
    meta::set(pod, &["spec", "nodeName"], node.into());
    // Where it was to go once other pods have left is of no interest any more.
    meta::remove(pod, &["status", "nominatedNodeName"]);
    for field in ["annotations", "labels"] {
        let given = meta::get(binding, &["metadata", field]).and_then(Value::as_object);
        for (key, value) in given.into_iter().flatten() {
            meta::object_at(pod, &["metadata", field]).insert(key.clone(), value.clone());
        }
    }
    let mut conditions = meta::list_at(pod, &["status", "conditions"]).to_vec();
    conditions.retain(|c| meta::str_at(c, &["type"]) != "PodScheduled");
    conditions.push(json!({
        "type": "PodScheduled",
        "status": "True",
        "lastProbeTime": null,
        "lastTransitionTime": api::time::format(write.now),
    }));
    meta::set(pod, &["status", "conditions"], conditions.into());
    Ok(())
}
