//! Server-side apply over HTTP: whose request it is, and `application/apply-patch+yaml`.

use std::sync::Arc;

use api::{FieldError, Status, meta};
use codec::{ContentType, FieldValidation};
use http::{HeaderMap, StatusCode, header};
use serde_json::Value;

use crate::ApiServer;
use crate::call::{complete, content_type, read_body};
use crate::http::body::{Request, Response};
use crate::http::handler::{Call, attributes};
use crate::registry::{Fail, Owner, Part, Resource, Stored, Write};

/// Media type of applied configurations.
pub const APPLY_PATCH: &str = "application/apply-patch+yaml";
/// Longest name of a field manager, in bytes.
const MAX_MANAGER: usize = 128;
/// How often an apply is tried when the object comes and goes meanwhile.
const ATTEMPTS: usize = 5;

/// Whether a request carries an applied configuration.
pub fn is_apply(request: &Request) -> bool {
    content_type(request) == APPLY_PATCH
}

/// An applied configuration and how it is to be applied.
pub struct Apply {
    config: Value,
    manager: String,
    force: bool,
    validation: FieldValidation,
}

impl Apply {
    /// Manager and force.
    pub fn by(&self) -> (&str, bool) {
        (&self.manager, self.force)
    }

    /// The configuration.
    pub fn config(&self) -> &Value {
        &self.config
    }
}

/// What is wrong with the name of a field manager.
fn manager_errors(manager: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if manager.len() > MAX_MANAGER {
        errors.push(FieldError::too_long("fieldManager", MAX_MANAGER));
    }
    for (at, c) in manager.char_indices().filter(|(_, c)| c.is_control()) {
        let why = format!(
            "invalid character U+{:04X} (at position {at})",
            u32::from(c)
        );
        errors.push(FieldError::invalid("fieldManager", manager, why));
    }
    errors
}

/// The manager of clients that name none: their user agent up to the first slash.
fn of_user_agent(agent: &str) -> String {
    let mut out = String::new();
    let name = agent.split('/').next().unwrap_or_default();
    for c in name.chars().filter(|c| !c.is_control()) {
        if out.len() + c.len_utf8() > MAX_MANAGER {
            break;
        }
        out.push(c);
    }
    out
}

/// The manager of this cluster's own components, which send no user agent.
fn of_component(user: &str) -> String {
    let Some(name) = user.strip_prefix("system:") else {
        return String::new();
    };
    if name.starts_with("node:") {
        return "kubelet".to_owned();
    }
    name.rsplit(':').next().unwrap_or_default().to_owned()
}

impl Call {
    /// Who will own the fields that this request sets; `options` names the request's kind of options in refusals.
    ///
    /// # Errors
    /// 422 for a name no manager can have.
    pub fn owner(&self, headers: &HeaderMap, options: &str) -> Result<Owner, Fail> {
        let asked = self.query.get("fieldManager").unwrap_or_default();
        let mut errors = Vec::new();
        if options == "PatchOptions" && self.query.non_empty("force").is_some() {
            let why = "may not be specified for non-apply patch";
            errors.push(FieldError::forbidden("force", why));
        }
        errors.extend(manager_errors(asked));
        refuse(options, &errors)?;
        let manager = match headers.get(header::USER_AGENT) {
            _ if !asked.is_empty() => asked.to_owned(),
            Some(agent) => of_user_agent(&String::from_utf8_lossy(agent.as_bytes())),
            None => of_component(&self.user.name),
        };
        Ok(Owner { manager })
    }

    /// Reads an applied configuration.
    ///
    /// # Errors
    /// 422 without a manager, 400 for what is no configuration, 413.
    pub async fn apply(&self, request: Request) -> Result<Apply, Fail> {
        let manager = self
            .query
            .get("fieldManager")
            .unwrap_or_default()
            .to_owned();
        let mut errors = Vec::new();
        if manager.is_empty() {
            errors.push(FieldError::required(
                "fieldManager",
                "is required for apply patch",
            ));
        }
        errors.extend(manager_errors(&manager));
        refuse("PatchOptions", &errors)?;
        let validation = self.validation()?;
        let bytes = read_body(request.into_body()).await?;
        let (config, duplicates) = parse(&bytes)?;
        if !config.is_object() {
            let why = "error decoding patch: json: cannot unmarshal into Go value of type map[string]interface {}";
            return Err(Box::new(Status::bad_request(why)));
        }
        let duplicates: Vec<String> = codec::repeated(&duplicates)
            .iter()
            .map(|why| format!("error converting YAML to JSON: {why}"))
            .collect();
        match validation {
            FieldValidation::Strict if !duplicates.is_empty() => {
                let why = format!("error strict decoding YAML: {}", duplicates.join(", "));
                return Err(Box::new(Status::bad_request(why)));
            }
            FieldValidation::Warn => self.warnings.add(duplicates),
            _ => {}
        }
        Ok(Apply {
            config,
            manager,
            force: self.query.flag("force"),
            validation,
        })
    }
}

/// Reads YAML, of which JSON is the faster part: but only YAML knows the lines of duplicate keys.
fn parse(bytes: &[u8]) -> Result<(Value, Vec<codec::Duplicate>), Fail> {
    if bytes.trim_ascii_start().first() == Some(&b'{')
        && let Ok(parsed) = codec::parse(bytes, ContentType::Json)
        && parsed.1.is_empty()
    {
        return Ok(parsed);
    }
    codec::parse(bytes, ContentType::Yaml).map_err(|status| {
        let why = format!("error decoding patch: {}", status.message);
        Box::new(Status::bad_request(why))
    })
}

fn refuse(options: &str, errors: &[FieldError]) -> Result<(), Fail> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(Box::new(Status::invalid(
        "meta.k8s.io",
        options,
        "",
        errors,
    )))
}

impl ApiServer {
    /// PATCH with a configuration: changes the object, or creates it.
    pub(crate) async fn serve_apply(
        &self,
        request: Request,
        call: &Call,
        resource: &Arc<Resource>,
        part: Part,
    ) -> Result<Response, Fail> {
        let form = call.object_form(request.headers(), resource)?;
        let write = call.write(&self.registry, resource)?;
        let apply = call.apply(request).await?;
        for _ in 0..ATTEMPTS {
            let creates = write.subresource.is_empty() && part == Part::Main;
            let found = || self.registry.find(resource, write.namespace, write.name);
            if creates && found().await?.is_none() {
                match self.create_by_apply(call, &write, &apply).await {
                    Err(status) if status.reason == "AlreadyExists" => continue,
                    Err(status) => return Err(status),
                    Ok(stored) => {
                        let code = StatusCode::CREATED;
                        return call.object(&self.registry, resource, code, stored, form);
                    }
                }
            }
            let updated = self
                .registry
                .update(&write, part, |live| {
                    self.finish_apply(call, &write, Some(live), &apply)
                })
                .await;
            match updated {
                Err(status) if creates && status.code == 404 => {}
                Err(status) => return Err(status),
                Ok(stored) => {
                    return call.object(&self.registry, resource, StatusCode::OK, stored, form);
                }
            }
        }
        Err(Box::new(Status::timeout("too many concurrent writes")))
    }

    /// The whole object that an apply makes, in the version of the request.
    fn finish_apply(
        &self,
        call: &Call,
        write: &Write<'_>,
        live: Option<&Value>,
        apply: &Apply,
    ) -> Result<Value, Fail> {
        let resource = write.resource;
        let mut object = write.applied(&self.registry, live, &apply.config, apply.by())?;
        call.warnings.add(codec::check(
            &mut object,
            &resource.kind,
            Vec::new(),
            apply.validation,
        )?);
        complete(resource, &mut object);
        Ok(object)
    }

    async fn create_by_apply(
        &self,
        call: &Call,
        write: &Write<'_>,
        apply: &Apply,
    ) -> Result<Stored, Fail> {
        let mut needed = attributes(&call.info, &call.user);
        needed.verb = "create".to_owned();
        self.authorize(&needed).await?;
        let object = self.finish_apply(call, write, None, apply)?;
        let kind = &write.resource.kind;
        let name = meta::name(&object);
        if name != write.name {
            let why = if name.is_empty() {
                "name must be provided".to_owned()
            } else {
                format!(
                    "the name of the object ({name}) does not match the name on the URL ({})",
                    write.name
                )
            };
            return Err(Box::new(Status::bad_request(why)));
        }
        let uid = meta::uid(&object);
        if !uid.is_empty() {
            let why = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            let status = Status::conflict(&kind.group, &kind.resource, name, &why);
            return Err(Box::new(status));
        }
        let stored = write.resource.to_stored(object);
        self.registry.create(write, stored).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managers_of_clients_that_name_none() {
        assert_eq!(of_user_agent("kubectl/v1.32.4 (linux/amd64)"), "kubectl");
        assert_eq!(of_user_agent("a\u{1}b"), "ab");
        assert_eq!(of_user_agent(&"é".repeat(100)).len(), 128);
        assert_eq!(of_component("system:kube-scheduler"), "kube-scheduler");
        assert_eq!(of_component("system:node:n1"), "kubelet");
        assert_eq!(of_component("system:serviceaccount:ns:app"), "app");
        assert_eq!(of_component("jane"), "");
    }

    #[test]
    fn managers_must_be_short_and_printable() {
        assert!(manager_errors("kubectl").is_empty());
        assert_eq!(manager_errors(&"x".repeat(129)).len(), 1);
        assert_eq!(
            manager_errors("a\nb")[0].to_string(),
            "fieldManager: Invalid value: \"a\\nb\": invalid character U+000A (at position 1)"
        );
    }

    #[test]
    fn json_is_yaml() {
        assert_eq!(parse(b" {\"a\":1}").unwrap().0, serde_json::json!({"a": 1}));
        assert_eq!(parse(b"a: 1\n").unwrap().0, serde_json::json!({"a": 1}));
        assert_eq!(parse(b"{a: 1}").unwrap().0, serde_json::json!({"a": 1}));
        assert!(
            parse(b"a: [")
                .unwrap_err()
                .message
                .starts_with("error decoding patch: ")
        );
    }
}
