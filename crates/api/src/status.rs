//! `Status`, the error shape of the API, and field errors, both in upstream's words.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What is wrong with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// A value referred to does not exist.
    NotFound,
    /// A required value is missing.
    Required,
    /// A value occurs twice.
    Duplicate,
    /// A value breaks a rule.
    Invalid,
    /// A value breaks a rule, and is not shown because it is an object or a list.
    Unshown,
    /// A value is not one of the allowed ones.
    NotSupported,
    /// A value may not be set here.
    Forbidden,
    /// A string or list is too long.
    TooLong,
    /// A list has too many items.
    TooMany,
    /// Validation itself failed.
    Internal,
    /// A value has the wrong type.
    TypeInvalid,
}

impl ErrorKind {
    fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid | Self::Unshown => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid | Self::Unshown => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }

    fn shows_value(self) -> bool {
        !matches!(
            self,
            Self::Required | Self::Forbidden | Self::TooLong | Self::Internal | Self::Unshown
        )
    }
}

/// One broken rule, with the path of the field as upstream writes it (`spec.containers[0].name`).
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// What is wrong.
    pub kind: ErrorKind,
    /// Path of the field.
    pub path: String,
    /// The offending value.
    pub value: Value,
    /// How it is shown, where that is not its JSON.
    pub shown: Option<String>,
    /// More words; may be empty.
    pub detail: String,
}

impl FieldError {
    fn new(
        kind: ErrorKind,
        path: impl Into<String>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            path: path.into(),
            value: value.into(),
            shown: None,
            detail: detail.into(),
        }
    }

    /// The same of a struct, which upstream shows with its fields in the order of their declaration.
    pub fn showing(mut self, fields: &[(&str, Value)]) -> Self {
        let text: Vec<String> = fields.iter().map(|(k, v)| format!("{k:?}:{v}")).collect();
        self.shown = Some(format!("{{{}}}", text.join(",")));
        self
    }

    /// A required value is missing.
    pub fn required(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Required, path, Value::Null, detail)
    }

    /// A value breaks a rule.
    pub fn invalid(
        path: impl Into<String>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self::new(ErrorKind::Invalid, path, value, detail)
    }

    /// An object or list breaks a rule.
    pub fn unshown(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unshown, path, Value::Null, detail)
    }

    /// A value may not be set or changed.
    pub fn forbidden(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Forbidden, path, Value::Null, detail)
    }

    /// A value occurs twice.
    pub fn duplicate(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(ErrorKind::Duplicate, path, value, "")
    }

    /// A value is none of the allowed ones, which are named in the message.
    pub fn not_supported(
        path: impl Into<String>,
        value: impl Into<Value>,
        allowed: &[&str],
    ) -> Self {
        let quoted: Vec<String> = allowed.iter().map(|a| format!("{a:?}")).collect();
        let detail = if quoted.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", quoted.join(", "))
        };
        Self::new(ErrorKind::NotSupported, path, value, detail)
    }

    /// A string is longer than `max` bytes.
    pub fn too_long(path: impl Into<String>, max: usize) -> Self {
        Self::new(
            ErrorKind::TooLong,
            path,
            Value::Null,
            format!("may not be more than {max} bytes"),
        )
    }

    /// A list of `actual` items is longer than `max`.
    pub fn too_many(path: impl Into<String>, actual: usize, max: usize) -> Self {
        Self::new(
            ErrorKind::TooMany,
            path,
            actual,
            format!("must have at most {max} items"),
        )
    }

    /// A value referred to does not exist.
    pub fn not_found(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(ErrorKind::NotFound, path, value, "")
    }

    /// A value has the wrong type.
    pub fn type_invalid(
        path: impl Into<String>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self::new(ErrorKind::TypeInvalid, path, value, detail)
    }

    /// The message without the path.
    pub fn body(&self) -> String {
        let mut text = self.kind.text().to_owned();
        if self.kind.shows_value() {
            text.push_str(&match (&self.shown, &self.value) {
                (Some(shown), _) => format!(": {shown}"),
                (None, Value::String(s)) => format!(": {s:?}"),
                (None, other) => format!(": {other}"),
            });
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

/// One cause of a failure.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusCause {
    /// Machine-readable cause.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The cause in words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Path of the field at fault.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// What a failure is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StatusDetails {
    /// Name of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Its kind, or its resource.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Its UID.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Each thing that is wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<StatusCause>,
    /// Seconds to wait before trying again; 0 says nothing.
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: i64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// The answer to a request that has no object to answer with: mostly failures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// `Success` or `Failure`.
    pub status: String,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// For machines, in CamelCase.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<StatusDetails>>,
    /// HTTP status code.
    pub code: u16,
    /// Token to go on with, where a list's own has expired; goes into the metadata.
    #[serde(skip)]
    pub next: String,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() {
        resource.to_owned()
    } else {
        format!("{resource}.{group}")
    }
}

fn about(group: &str, kind: &str, name: &str) -> StatusDetails {
    StatusDetails {
        name: name.to_owned(),
        group: group.to_owned(),
        kind: kind.to_owned(),
        ..Default::default()
    }
}

impl Status {
    /// A failure of that code, reason and message without details.
    pub fn failure(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self {
            status: "Failure".into(),
            message: message.into(),
            reason: reason.into(),
            details: None,
            code,
            next: String::new(),
        }
    }

    fn with(mut self, details: StatusDetails) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    /// The answer to a delete that is done.
    pub fn success(group: &str, resource: &str, name: &str, uid: &str) -> Self {
        let details = StatusDetails {
            uid: uid.to_owned(),
            ..about(group, resource, name)
        };
        Self {
            status: "Success".into(),
            details: Some(Box::new(details)),
            code: 200,
            ..Default::default()
        }
    }

    /// The JSON object sent to clients.
    pub fn to_value(&self) -> Value {
        let mut out = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}});
        if !self.next.is_empty() {
            out["metadata"]["continue"] = self.next.as_str().into();
        }
        if let (Value::Object(out), Ok(Value::Object(body))) =
            (&mut out, serde_json::to_value(self))
        {
            // Upstream leaves the code out of successes.
            out.extend(
                body.into_iter()
                    .filter(|(k, _)| k != "code" || self.status == "Failure"),
            );
        }
        out
    }

    /// 404: the object does not exist.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        Self::failure(
            404,
            "NotFound",
            format!("{} {name:?} not found", qualified(group, resource)),
        )
        .with(about(group, resource, name))
    }

    /// 404: no such path, group, version or resource.
    pub fn no_resource() -> Self {
        Self::failure(
            404,
            "NotFound",
            "the server could not find the requested resource",
        )
        .with(StatusDetails::default())
    }

    /// 409: an object of that name exists.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        Self::failure(
            409,
            "AlreadyExists",
            format!("{} {name:?} already exists", qualified(group, resource)),
        )
        .with(about(group, resource, name))
    }

    /// 409: the name that the server made is taken; another attempt is likely to succeed.
    pub fn generated_name_exists(group: &str, resource: &str, name: &str) -> Self {
        let mut status = Self::already_exists(group, resource, name);
        status.message += ", the server was not able to generate a unique name for the object";
        status.details.get_or_insert_default().retry_after_seconds = 1;
        status
    }

    /// 409: the request does not fit the current state, for the given reason.
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {name:?}: {why}",
            qualified(group, resource)
        );
        Self::failure(409, "Conflict", message).with(about(group, resource, name))
    }

    /// 409: another write came first.
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        Self::conflict(
            group,
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 422: fields break rules.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let causes = errors
            .iter()
            .map(|e| StatusCause {
                reason: e.kind.reason().into(),
                message: e.body(),
                field: e.path.clone(),
            })
            .collect();
        let mut texts: Vec<String> = Vec::new();
        for text in errors.iter().map(FieldError::to_string) {
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let joined = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let details = StatusDetails {
            causes,
            ..about(group, kind, name)
        };
        Self::failure(
            422,
            "Invalid",
            format!("{} {name:?} is invalid: {joined}", qualified(group, kind)),
        )
        .with(details)
    }

    /// 403: not allowed, for the given reason. Name and resource may be empty.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = match (resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{} is forbidden: {why}", qualified(group, resource)),
            (false, false) => format!(
                "{} {name:?} is forbidden: {why}",
                qualified(group, resource)
            ),
        };
        Self::failure(403, "Forbidden", message).with(about(group, resource, name))
    }

    /// 401: nobody knows who is asking.
    pub fn unauthorized() -> Self {
        Self::failure(401, "Unauthorized", "Unauthorized")
    }

    /// 400: the request makes no sense.
    pub fn bad_request(why: impl Into<String>) -> Self {
        Self::failure(400, "BadRequest", why)
    }

    /// 405: the path knows no such method.
    pub fn method_not_allowed() -> Self {
        Self::failure(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
        .with(StatusDetails::default())
    }

    /// 410: the resource version asked for is gone.
    pub fn expired(why: impl Into<String>) -> Self {
        Self::failure(410, "Expired", why)
    }

    /// 410 with reason Gone: the object existed once.
    pub fn gone(why: impl Into<String>) -> Self {
        Self::failure(410, "Gone", why)
    }

    /// 410: a watch asked for a revision that is compacted away.
    pub fn too_old_resource_version(requested: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {requested} ({oldest})"))
    }

    /// 504: a revision that is not there yet was asked for.
    pub fn too_large_resource_version(requested: u64, current: u64) -> Self {
        let message =
            format!("Timeout: Too large resource version: {requested}, current: {current}");
        let cause = StatusCause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            ..Default::default()
        };
        let details = StatusDetails {
            causes: vec![cause],
            retry_after_seconds: 1,
            ..Default::default()
        };
        Self::failure(504, "Timeout", message).with(details)
    }

    /// 429: try again later.
    pub fn too_many_requests(why: impl Into<String>, retry_after_seconds: i64) -> Self {
        Self::failure(429, "TooManyRequests", why).with(StatusDetails {
            retry_after_seconds,
            ..Default::default()
        })
    }

    /// 500: our fault.
    pub fn internal(why: impl std::fmt::Display) -> Self {
        let cause = StatusCause {
            message: why.to_string(),
            ..Default::default()
        };
        let details = StatusDetails {
            causes: vec![cause],
            ..Default::default()
        };
        Self::failure(
            500,
            "InternalError",
            format!("Internal error occurred: {why}"),
        )
        .with(details)
    }

    /// 503: not able to serve now.
    pub fn service_unavailable(why: impl Into<String>) -> Self {
        Self::failure(503, "ServiceUnavailable", why)
    }

    /// 413: the body is larger than allowed.
    pub fn too_large(why: impl std::fmt::Display) -> Self {
        Self::failure(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: {why}"),
        )
    }

    /// 415: the body is of a type that is not accepted.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::failure(415, "UnsupportedMediaType", message)
    }

    /// 406: no acceptable type can be sent.
    pub fn not_acceptable(offered: &[&str]) -> Self {
        Self::failure(
            406,
            "NotAcceptable",
            format!(
                "only the following media types are accepted: {}",
                offered.join(", ")
            ),
        )
    }

    /// 504: it took too long.
    pub fn timeout(why: impl std::fmt::Display) -> Self {
        Self::failure(504, "Timeout", format!("Timeout: {why}")).with(StatusDetails::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        assert_eq!(
            Status::not_found("apps", "deployments", "x").message,
            "deployments.apps \"x\" not found"
        );
        assert_eq!(
            Status::forbidden("", "pods", "", "no").message,
            "pods is forbidden: no"
        );
        let errors = [
            FieldError::required("spec.a", "must be set"),
            FieldError::invalid("spec.b", "x", "bad"),
            FieldError::invalid("spec.c", 3, ""),
        ];
        let status = Status::invalid("apps", "Deployment", "x", &errors);
        assert_eq!(
            status.message,
            r#"Deployment.apps "x" is invalid: [spec.a: Required value: must be set, spec.b: Invalid value: "x": bad, spec.c: Invalid value: 3]"#
        );
        assert_eq!(
            status.to_value()["details"]["causes"][0]["reason"],
            "FieldValueRequired"
        );
        assert_eq!(status.to_value()["code"], 422);
        let one = Status::invalid(
            "",
            "Pod",
            "p",
            &[FieldError::not_supported(
                "spec.restartPolicy",
                "x",
                &["Always", "Never"],
            )],
        );
        assert_eq!(
            one.message,
            r#"Pod "p" is invalid: spec.restartPolicy: Unsupported value: "x": supported values: "Always", "Never""#
        );
    }
}
