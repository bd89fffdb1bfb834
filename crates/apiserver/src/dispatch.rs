//! From a resource request to the engine: decode the body, call one verb, write the answer.

use std::sync::Arc;

use api::{Status, meta};
use http::{HeaderMap, Method, StatusCode, header};
use serde_json::Value;

use crate::ApiServer;
use crate::call::{apply_patch, complete, parse_patch, patch_type, read_body, typed_body};
use crate::http::body::{self, Request, Response};
use crate::http::handler::{self, Call};
use crate::http::negotiate::{Encoding, Transform};
use crate::http::request_info::RequestInfo;
use crate::http::respond;
use crate::registry::list::ListOptions;
use crate::registry::watch::Shape;
use crate::registry::{DeleteOptions, Fail, Part, Resource, Selection};

/// Media types of watches, as refusals name them.
const STREAM_TYPES: [&str; 2] = [
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
];
/// Core resources that upstream asks people to leave, and its words.
const DEPRECATED: [(&str, &str); 2] = [
    (
        "componentstatuses",
        "v1 ComponentStatus is deprecated in v1.19+",
    ),
    (
        "endpoints",
        "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
    ),
];

impl ApiServer {
    /// Serves a request for a resource.
    pub(crate) async fn serve_resource(
        self: &Arc<Self>,
        request: Request,
        call: &Call,
    ) -> Result<Response, Fail> {
        let info = &call.info;
        let resource = self
            .registry
            .resource(&info.group, &info.version, &info.resource)?;
        if unknown_method(request.method(), &info.subresource) {
            return Err(not_allowed());
        }
        if let Some((_, text)) = DEPRECATED
            .iter()
            .find(|(r, _)| info.group.is_empty() && *r == info.resource)
        {
            call.warnings.add([(*text).to_owned()]);
        }
        if let Some(custom) = &resource.kind.custom {
            crate::custom::check(call, &resource.kind, custom)?;
        }
        if !info.subresource.is_empty() {
            return Box::pin(self.serve_subresource(request, call, &resource)).await;
        }
        if !resource.kind.is_stored() {
            return Box::pin(self.serve_virtual(request, call, &resource)).await;
        }
        if !resource.answers(&info.verb) || !fits(info, &resource.kind) {
            return Err(not_allowed());
        }
        match info.verb.as_str() {
            "get" => {
                let form = call.object_form(request.headers(), &resource)?;
                let write = call.write(&self.registry, &resource)?;
                self.registry.reached(&call.query)?;
                let stored = self
                    .registry
                    .get(&resource, write.namespace, &info.name)
                    .await?;
                call.object(&self.registry, &resource, StatusCode::OK, stored, form)
            }
            "list" if request.extensions().get::<api::feed::Wanted>().is_some() => {
                self.serve_feed(call, &resource).await
            }
            "list" => {
                let (head, _) = request.into_parts();
                Box::pin(self.serve_list(&head.headers, call, &resource)).await
            }
            "watch" => {
                let (head, _) = request.into_parts();
                Box::pin(self.serve_watch(&head.headers, call, &resource)).await
            }
            "create" => Box::pin(self.serve_create(request, call, &resource)).await,
            "update" => Box::pin(self.serve_update(request, call, &resource, Part::Main)).await,
            "patch" => Box::pin(self.serve_patch(request, call, &resource, Part::Main)).await,
            "delete" => Box::pin(self.serve_delete(request, call, &resource)).await,
            "deletecollection" => {
                Box::pin(self.serve_delete_collection(request, call, &resource)).await
            }
            _ => Err(not_allowed()),
        }
    }

    async fn serve_list(
        &self,
        headers: &HeaderMap,
        call: &Call,
        resource: &Arc<Resource>,
    ) -> Result<Response, Fail> {
        let form = call.form(
            headers,
            &resource.kind,
            &[Transform::Table, Transform::PartialList],
        )?;
        let options = ListOptions::parse(resource, &call.query, false)?;
        let namespace = &call.info.namespace;
        let plain = form.transform == Transform::None && form.encoding == Encoding::Json;
        if plain
            && !call.style.pretty
            && let Some(pieces) = self
                .registry
                .list_pieces(resource, namespace, &options)
                .await?
        {
            return Ok(respond::json_pieces(pieces, call.style).await);
        }
        let page = self.registry.list(resource, namespace, &options).await?;
        call.list(&self.registry, resource, &page, form)
    }

    /// Answers a client in this process with what a list and a watch would bring.
    async fn serve_feed(&self, call: &Call, resource: &Arc<Resource>) -> Result<Response, Fail> {
        let mut watch = handler::attributes(&call.info, &call.user);
        watch.verb = "watch".to_owned();
        self.authorize(&watch).await?;
        let options = ListOptions::parse(resource, &call.query, false)?;
        let feed = self
            .registry
            .feed(resource, &call.info.namespace, options.selection)
            .await?;
        let mut response = Response::new(body::empty());
        response.extensions_mut().insert(api::feed::Feed::new(feed));
        Ok(response)
    }

    async fn serve_watch(
        &self,
        headers: &HeaderMap,
        call: &Call,
        resource: &Arc<Resource>,
    ) -> Result<Response, Fail> {
        let transforms = [Transform::Table, Transform::Partial, Transform::PartialList];
        let form = call
            .form(headers, &resource.kind, &transforms)
            .ok()
            .filter(|form| form.encoding != Encoding::Yaml)
            .ok_or_else(|| Box::new(Status::not_acceptable(&STREAM_TYPES)))?;
        let mut options = ListOptions::parse(resource, &call.query, true)?;
        if call.info.name_in_path {
            // `.../name?watch=true` watches one object.
            options.selection = Selection::of_name(&call.info.name)?;
        }
        let namespace = if resource.kind.namespaced {
            call.info.namespace.as_str()
        } else {
            ""
        };
        let shape = Shape {
            form,
            include: call.include()?,
        };
        let body = self
            .registry
            .watch(resource, namespace, options, shape)
            .await?;
        let guard = self.metrics.stream(&call.info);
        let mut response = Response::new(body::guarded(body, guard));
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static(match form.encoding {
                Encoding::Protobuf => STREAM_TYPES[1],
                _ => "application/json",
            }),
        );
        Ok(response)
    }

    async fn serve_create(
        &self,
        request: Request,
        call: &Call,
        resource: &Arc<Resource>,
    ) -> Result<Response, Fail> {
        let headers = request.headers();
        let form = call.object_form(headers, resource)?;
        let owner = call.owner(headers, "CreateOptions")?;
        let write = call.write(&self.registry, resource)?.owned_by(&owner);
        let input = call.input(request).await?;
        let mut object = call.decode(resource, &input)?;
        write.track(&self.registry, None, &mut object);
        let object = resource.to_stored(object);
        let stored = self.registry.create(&write, object).await?;
        call.object(&self.registry, resource, StatusCode::CREATED, stored, form)
    }

    /// PUT of an object or of a part of it.
    pub(crate) async fn serve_update(
        &self,
        request: Request,
        call: &Call,
        resource: &Arc<Resource>,
        part: Part,
    ) -> Result<Response, Fail> {
        let headers = request.headers();
        let form = call.object_form(headers, resource)?;
        let owner = call.owner(headers, "UpdateOptions")?;
        let write = call.write(&self.registry, resource)?.owned_by(&owner);
        let input = call.input(request).await?;
        let object = call.decode(resource, &input)?;
        let update = self.registry.replace(&write, part, object).await?;
        let code = if update.created {
            StatusCode::CREATED
        } else {
            StatusCode::OK
        };
        call.object(&self.registry, resource, code, update.stored, form)
    }

    /// PATCH of an object or of a part of it.
    pub(crate) async fn serve_patch(
        &self,
        request: Request,
        call: &Call,
        resource: &Arc<Resource>,
        part: Part,
    ) -> Result<Response, Fail> {
        if crate::apply::is_apply(&request) {
            return self.serve_apply(request, call, resource, part).await;
        }
        let headers = request.headers();
        let form = call.object_form(headers, resource)?;
        let owner = call.owner(headers, "PatchOptions")?;
        let write = call.write(&self.registry, resource)?.owned_by(&owner);
        let patch_type = patch_type(&request, resource)?;
        let validation = call.validation()?;
        let patch = parse_patch(&read_body(request.into_body()).await?)?;
        let stored = self
            .registry
            .update(&write, part, |object| {
                let mut patched = apply_patch(resource, patch_type, object, &patch)?;
                call.warnings.add(codec::check(
                    &mut patched,
                    &resource.kind,
                    Vec::new(),
                    validation,
                )?);
                complete(resource, &mut patched);
                Ok(patched)
            })
            .await?;
        call.object(&self.registry, resource, StatusCode::OK, stored, form)
    }

    async fn serve_delete(
        &self,
        request: Request,
        call: &Call,
        resource: &Arc<Resource>,
    ) -> Result<Response, Fail> {
        let form = call.object_form(request.headers(), resource)?;
        let write = call.write(&self.registry, resource)?;
        let options = self.delete_options(request, call).await?;
        let deleted = self.registry.delete(&write, &options).await?;
        if deleted.gone && !resource.policy.returns_deleted {
            let value = deleted.stored.value()?;
            let kind = &resource.kind;
            let done = Status::success(&kind.group, &kind.resource, write.name, meta::uid(&value));
            return Ok(respond::status(&done, call.style));
        }
        call.object(
            &self.registry,
            resource,
            StatusCode::OK,
            deleted.stored,
            form,
        )
    }

    /// Reads the options of a delete from body and query.
    pub(crate) async fn delete_options(
        &self,
        request: Request,
        call: &Call,
    ) -> Result<DeleteOptions, Fail> {
        let (bytes, content_type) = typed_body(request).await?;
        let value = if bytes.is_empty() {
            Value::Null
        } else {
            codec::parse(&bytes, content_type)?.0
        };
        DeleteOptions::parse(&value, &call.query)
    }

    async fn serve_delete_collection(
        &self,
        request: Request,
        call: &Call,
        resource: &Arc<Resource>,
    ) -> Result<Response, Fail> {
        let form = call.form(
            request.headers(),
            &resource.kind,
            &[Transform::Table, Transform::PartialList],
        )?;
        let write = call.write(&self.registry, resource)?;
        let options = self.delete_options(request, call).await?;
        let list = ListOptions::parse(resource, &call.query, false)?;
        let page = self.registry.list(resource, write.namespace, &list).await?;
        let mut targets = Vec::with_capacity(page.items.len());
        for item in &page.items {
            let value = item.identity()?;
            targets.push((
                meta::namespace(&value).to_owned(),
                meta::name(&value).to_owned(),
            ));
        }
        self.registry.delete_all(&write, &options, targets).await?;
        call.list(&self.registry, resource, &page, form)
    }
}

/// 405 in upstream's words.
pub fn not_allowed() -> Fail {
    Box::new(Status::method_not_allowed())
}

/// Whether a verb that a resource knows is one of the path as well: all namespaces together are only read.
fn fits(info: &RequestInfo, kind: &api::Kind) -> bool {
    let across = kind.namespaced && info.namespace.is_empty();
    match info.verb.as_str() {
        "update" | "patch" | "delete" | "get" => info.name_in_path && !across,
        "create" => !info.name_in_path && !across,
        "deletecollection" => !across,
        _ => true,
    }
}

/// Whether no resource answers the method: only what is passed on to others does, whatever it is.
fn unknown_method(method: &Method, subresource: &str) -> bool {
    matches!(*method, Method::HEAD | Method::OPTIONS) && subresource != "proxy"
}
