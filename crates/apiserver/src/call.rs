//! What a request asks for, read from its head and body, and the forms its answer may have.

use std::sync::Arc;

use api::{FieldError, Status};
use bytes::Bytes;
use codec::{ContentType, FieldValidation};
use http::{HeaderMap, StatusCode, header};
use serde_json::Value;

use crate::http::body::{self, ReadBodyError, Request, RequestBody, Response};
use crate::http::handler::Call;
use crate::http::negotiate::{self, Encoding, Form, Offer, Transform};
use crate::http::respond;
use crate::registry::list::{Page, served};
use crate::registry::table::{self, IncludeObject};
use crate::registry::{Fail, Registry, Resource, Stored, Write, splice};

/// Media types of bodies, as refusals name them.
const BODY_TYPES: [&str; 3] = [
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];
/// Media types of answers, as refusals name them.
const ANSWER_TYPES: [&str; 3] = ["application/json", "application/yaml", negotiate::PROTOBUF];
/// Media types of patches, as refusals name them.
const PATCH_TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    crate::apply::APPLY_PATCH,
    "application/strategic-merge-patch+json",
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
///
/// # Errors
/// 415, 413 or 422 for what cannot be read.
pub async fn typed_body(request: Request) -> Result<(Bytes, ContentType), Fail> {
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

    /// The form of an answer that is one object; 406 if none fits.
    ///
    /// # Errors
    /// 406 in upstream's words.
    pub fn object_form(&self, headers: &HeaderMap, resource: &Resource) -> Result<Form, Fail> {
        let transforms = [Transform::Table, Transform::Partial];
        self.form(headers, &resource.kind, &transforms)
    }

    /// How much of each object a table carries.
    ///
    /// # Errors
    /// 422 for a value that means nothing.
    pub fn include(&self) -> Result<IncludeObject, Fail> {
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

    /// Writes a page of a list as answer.
    ///
    /// # Errors
    /// When stored bytes cannot be read.
    pub fn list(
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
