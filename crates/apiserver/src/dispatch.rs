//! From a resource request to the engine: decode the body, call one verb, write the answer.

use std::sync::Arc;

use api::{FieldError, Status, meta};
use bytes::Bytes;
use codec::{ContentType, FieldValidation};
use http::{HeaderMap, Method, StatusCode, header};
use serde_json::Value;

use crate::ApiServer;
use crate::http::body::{self, ReadBodyError, Request, RequestBody, Response};
use crate::http::handler::{self, Call};
use crate::http::negotiate::{self, Encoding, Form, Offer, Transform};
use crate::http::request_info::RequestInfo;
use crate::http::respond;
use crate::registry::list::{ListOptions, Page, served};
use crate::registry::table::{self, IncludeObject};
use crate::registry::watch::Shape;
use crate::registry::{
    DeleteOptions, Fail, Part, Registry, Resource, Selection, Stored, Write, splice,
};

/// Media types of bodies, as refusals name them.
const BODY_TYPES: [&str; 3] = [
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];
/// Media types of answers, as refusals name them.
const ANSWER_TYPES: [&str; 3] = ["application/json", "application/yaml", negotiate::PROTOBUF];
/// Media types of watches, as refusals name them.
const STREAM_TYPES: [&str; 2] = [
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
];
/// Media types of patches, as refusals name them.
const PATCH_TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    crate::apply::APPLY_PATCH,
    "application/strategic-merge-patch+json",
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

/// How a patch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' own.
    Strategic,
}

/// What a writing request carries besides its object.
pub struct Input {
    /// The body.
    pub bytes: Bytes,
    /// How it is written.
    pub content_type: ContentType,
    /// What happens to unknown fields.
    pub validation: FieldValidation,
}

/// `Content-Type` without parameters, in lower case; empty if there is none.
pub fn content_type(request: &Request) -> String {
    let value = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    value
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// Reads a body within its bound.
pub async fn read_body(body: RequestBody) -> Result<Bytes, Fail> {
    body::read(body).await.map_err(|e| {
        Box::new(match e {
            ReadBodyError::TooLarge => Status::too_large(e),
            ReadBodyError::Transport(e) => Status::bad_request(e.to_string()),
        })
    })
}

/// Reads a body of a known type; protobuf becomes JSON here, so that nothing behind knows of it.
async fn typed_body(request: Request) -> Result<(Bytes, ContentType), Fail> {
    let media = content_type(&request);
    let content_type = match media.as_str() {
        "" | "application/json" | "application/vnd.kubernetes.protobuf" => ContentType::Json,
        "application/yaml" => ContentType::Yaml,
        _ => return Err(Box::new(Status::unsupported_media_type(&BODY_TYPES))),
    };
    let bytes = read_body(request.into_body()).await?;
    if media == "application/vnd.kubernetes.protobuf" && !bytes.is_empty() {
        let object = codec::protobuf::to_json(&bytes)?;
        return Ok((object.to_string().into(), content_type));
    }
    Ok((bytes, content_type))
}

impl Call {
    /// Reads the body of a create or update.
    ///
    /// # Errors
    /// 415, 413 or 422 for what cannot be read.
    pub async fn input(&self, request: Request) -> Result<Input, Fail> {
        let (bytes, content_type) = typed_body(request).await?;
        Ok(Input {
            bytes,
            content_type,
            validation: self.validation()?,
        })
    }

    /// What happens to unknown fields.
    ///
    /// # Errors
    /// 422 for a value that means nothing.
    pub fn validation(&self) -> Result<FieldValidation, Fail> {
        let text = self.query.get("fieldValidation").unwrap_or_default();
        FieldValidation::parse(text).ok_or_else(|| {
            let why =
                FieldError::not_supported("fieldValidation", text, &["Ignore", "Strict", "Warn"]);
            Box::new(Status::invalid("meta.k8s.io", "CreateOptions", "", &[why]))
        })
    }

    /// Whether nothing is to be committed.
    ///
    /// # Errors
    /// 422 for a value other than `All`.
    pub fn dry_run(&self) -> Result<bool, Fail> {
        match self.query.all("dryRun").find(|v| *v != "All") {
            None => Ok(self.query.get("dryRun").is_some()),
            Some(other) => {
                let why = FieldError::not_supported("dryRun", other, &["All"]);
                Err(Box::new(Status::invalid(
                    "meta.k8s.io",
                    "CreateOptions",
                    "",
                    &[why],
                )))
            }
        }
    }

    /// The write this request asks for.
    ///
    /// # Errors
    /// As [`Self::dry_run`].
    pub fn write<'a>(
        &'a self,
        registry: &Registry,
        resource: &'a Arc<Resource>,
    ) -> Result<Write<'a>, Fail> {
        Ok(Write {
            resource,
            namespace: if resource.kind.namespaced {
                &self.info.namespace
            } else {
                ""
            },
            name: &self.info.name,
            subresource: &self.info.subresource,
            user: &self.user,
            dry_run: self.dry_run()?,
            now: registry.now(),
            warnings: &self.warnings,
            owner: None,
        })
    }

    /// The form of the answer; 406 if none fits.
    ///
    /// # Errors
    /// 406 in upstream's words.
    pub fn form(
        &self,
        headers: &HeaderMap,
        kind: &api::Kind,
        transforms: &[Transform],
    ) -> Result<Form, Fail> {
        let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
        let offer = Offer {
            transforms,
            protobuf: kind.custom.is_none(),
        };
        negotiate::choose(accept, offer)
            .ok_or_else(|| Box::new(Status::not_acceptable(&ANSWER_TYPES)))
    }

    fn include(&self) -> Result<IncludeObject, Fail> {
        let text = self.query.get("includeObject");
        IncludeObject::parse(text).ok_or_else(|| {
            let why = FieldError::invalid(
                "includeObject",
                text.unwrap_or_default(),
                "must be 'Metadata', 'Object', 'None', or empty",
            );
            Box::new(Status::invalid("meta.k8s.io", "TableOptions", "", &[why]))
        })
    }

    /// Decodes and completes an object of the resource.
    ///
    /// # Errors
    /// 400 with upstream's decoding errors.
    pub fn decode(&self, resource: &Resource, input: &Input) -> Result<Value, Fail> {
        let (mut object, warnings) = codec::decode(
            &input.bytes,
            input.content_type,
            &resource.kind,
            input.validation,
        )?;
        self.warnings.add(warnings);
        complete(resource, &mut object);
        Ok(object)
    }

    /// Writes one object as answer.
    ///
    /// # Errors
    /// When the stored bytes cannot be read.
    pub fn object(
        &self,
        registry: &Registry,
        resource: &Resource,
        code: StatusCode,
        stored: Stored,
        form: Form,
    ) -> Result<Response, Fail> {
        let value = match form.transform {
            Transform::None => {
                let stored = served(resource, stored)?;
                let bytes = splice::object(&stored.bytes, stored.revision);
                return Ok(respond::json_bytes(code, bytes, form.encoding, self.style));
            }
            Transform::Table => {
                let page = Page {
                    revision: stored.revision,
                    items: vec![stored],
                    ..Page::default()
                };
                table::table(resource, &page, self.include()?, form, registry.now(), true)?
            }
            Transform::Partial | Transform::PartialList => table::partial_of(&stored, form)?,
        };
        Ok(respond::json_bytes(
            code,
            value.to_string().into(),
            form.encoding,
            self.style,
        ))
    }

    fn list(
        &self,
        registry: &Registry,
        resource: &Resource,
        page: &Page,
        form: Form,
    ) -> Result<Response, Fail> {
        let bytes = match form.transform {
            Transform::None if form.encoding == Encoding::Protobuf => {
                let bytes = page.to_protobuf(resource)?;
                let kind = negotiate::PROTOBUF;
                return Ok(respond::encoded(StatusCode::OK, kind, bytes, self.style));
            }
            Transform::None => page.to_json(resource),
            Transform::Table => {
                table::table(resource, page, self.include()?, form, registry.now(), true)?
                    .to_string()
                    .into()
            }
            Transform::Partial | Transform::PartialList => {
                table::partial_list(page, form)?.to_string().into()
            }
        };
        Ok(respond::json_bytes(
            StatusCode::OK,
            bytes,
            form.encoding,
            self.style,
        ))
    }
}

/// Fills in the defaults of a decoded object.
pub fn complete(resource: &Resource, object: &mut Value) {
    codec::default(&resource.kind, object);
    kinds::default(&resource.kind, object);
}

/// Reads the patch type of a request.
pub fn patch_type(request: &Request, resource: &Resource) -> Result<PatchType, Fail> {
    let strategic = codec::patch::supports_strategic(&resource.kind);
    match content_type(request).as_str() {
        "application/json-patch+json" => Ok(PatchType::Json),
        "application/merge-patch+json" => Ok(PatchType::Merge),
        "application/strategic-merge-patch+json" if strategic => Ok(PatchType::Strategic),
        _ => {
            let accepted = if strategic {
                &PATCH_TYPES[..]
            } else {
                &PATCH_TYPES[..3]
            };
            Err(Box::new(Status::unsupported_media_type(accepted)))
        }
    }
}

/// Parses a patch's body.
pub fn parse_patch(bytes: &[u8]) -> Result<Value, Fail> {
    serde_json::from_slice(bytes)
        .map_err(|e| Box::new(Status::bad_request(format!("error decoding patch: {e}"))))
}

/// Applies a patch to an object of the served version.
pub fn apply_patch(
    resource: &Resource,
    kind: PatchType,
    object: &Value,
    patch: &Value,
) -> Result<Value, Fail> {
    Ok(match kind {
        PatchType::Json => codec::patch::json_patch(object, patch)?,
        PatchType::Merge => codec::patch::merge_patch(object, patch),
        PatchType::Strategic => codec::patch::strategic_merge(&resource.kind, object, patch)?,
    })
}

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
                let form = call.form(
                    request.headers(),
                    &resource.kind,
                    &[Transform::Table, Transform::Partial],
                )?;
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
        let form = call.form(
            request.headers(),
            &resource.kind,
            &[Transform::Table, Transform::Partial],
        )?;
        let owner = call.owner(request.headers(), "CreateOptions")?;
        let write = Write {
            owner: Some(&owner),
            ..call.write(&self.registry, resource)?
        };
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
        let form = call.form(
            request.headers(),
            &resource.kind,
            &[Transform::Table, Transform::Partial],
        )?;
        let owner = call.owner(request.headers(), "UpdateOptions")?;
        let write = Write {
            owner: Some(&owner),
            ..call.write(&self.registry, resource)?
        };
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
        let form = call.form(
            request.headers(),
            &resource.kind,
            &[Transform::Table, Transform::Partial],
        )?;
        let owner = call.owner(request.headers(), "PatchOptions")?;
        let write = Write {
            owner: Some(&owner),
            ..call.write(&self.registry, resource)?
        };
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
        let form = call.form(
            request.headers(),
            &resource.kind,
            &[Transform::Table, Transform::Partial],
        )?;
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
