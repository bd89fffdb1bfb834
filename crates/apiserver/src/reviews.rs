//! Kinds that are asked and answered but never stored: reviews of tokens and permissions, and bindings.

use std::sync::Arc;

use api::{Status, meta};
use http::StatusCode;
use serde_json::{Value, json};

use crate::ApiServer;
use crate::auth::{Attributes, UserInfo};
use crate::dispatch::not_allowed;
use crate::http::body::{Request, Response};
use crate::http::handler::Call;
use crate::http::respond;
use crate::registry::{Fail, Resource};

impl ApiServer {
    /// Serves a resource that is not stored.
    pub(crate) async fn serve_virtual(
        self: &Arc<Self>,
        request: Request,
        call: &Call,
        resource: &Arc<Resource>,
    ) -> Result<Response, Fail> {
        let kind = &resource.kind;
        if !kind.has_verb(&call.info.verb) {
            return Err(not_allowed());
        }
        match kind.kind.as_str() {
            "Binding" => {
                let pods = self.registry.resource("", "v1", "pods")?;
                return self.serve_binding(request, call, &pods).await;
            }
            "ComponentStatus" => return self.component_statuses(request.headers(), call, resource),
            _ => {}
        }
        call.form(request.headers(), &resource.kind, &[])?;
        let input = call.input(request).await?;
        let mut review = call.decode(resource, &input)?;
        let status = match kind.kind.as_str() {
            "TokenReview" => self.token_review(&review).await,
            "SelfSubjectReview" => json!({"userInfo": user_json(&call.user)}),
            "SubjectAccessReview" => self.access_review(&asked_user(&review)?, &review).await?,
            "LocalSubjectAccessReview" => {
                let namespace = meta::str_at(&review, &["spec", "resourceAttributes", "namespace"]);
                if namespace != call.info.namespace {
                    let why = format!(
                        "spec.resourceAttributes.namespace must match namespace: {}",
                        call.info.namespace
                    );
                    return Err(Box::new(Status::bad_request(why)));
                }
                self.access_review(&asked_user(&review)?, &review).await?
            }
            "SelfSubjectAccessReview" => self.access_review(&call.user, &review).await?,
            "SelfSubjectRulesReview" => {
                self.rules_review(&call.user, meta::str_at(&review, &["spec", "namespace"]))
            }
            _ => return Err(not_allowed()),
        };
        review["status"] = status;
        Ok(respond::json(StatusCode::CREATED, &review, call.style))
    }

    async fn token_review(&self, review: &Value) -> Value {
        let token = meta::str_at(review, &["spec", "token"]);
        let audiences: Vec<String> = meta::list_at(review, &["spec", "audiences"])
            .iter()
            .filter_map(|a| a.as_str().map(str::to_owned))
            .collect();
        let now = self.registry.now();
        match self.authenticator.token_user(token, &audiences, now).await {
            Some((user, of_token)) => {
                let issuer = [self.registry.config().tokens.issuer().to_owned()];
                let asked = if audiences.is_empty() {
                    &issuer[..]
                } else {
                    &audiences[..]
                };
                let common: Vec<&String> = asked.iter().filter(|a| of_token.contains(a)).collect();
                json!({"authenticated": true, "user": user_json(&user), "audiences": common})
            }
            None => {
                json!({"user": {}, "error": "[invalid bearer token, service account token is not valid]"})
            }
        }
    }

    async fn access_review(&self, user: &Arc<UserInfo>, review: &Value) -> Result<Value, Fail> {
        let attributes = asked_attributes(user, review)?;
        let decision = self.authorizer.decide(&attributes).await;
        let mut status = json!({"allowed": decision.allowed()});
        if !decision.reason().is_empty() {
            status["reason"] = decision.reason().into();
        }
        Ok(status)
    }

    fn rules_review(&self, user: &UserInfo, namespace: &str) -> Value {
        let mut resources = Vec::new();
        let mut paths = Vec::new();
        if user.in_group(crate::auth::MASTERS) {
            resources.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
            paths.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
        }
        for rule in self.authorizer.rbac.rules_for(user, namespace) {
            let value = serde_json::to_value(&rule).unwrap_or_default();
            if rule.non_resource_urls.is_empty() {
                resources.push(value)
            } else {
                paths.push(value)
            }
        }
        json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
    }
}

fn user_json(user: &UserInfo) -> Value {
    let mut out = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        out["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        out["extra"] = json!(user.extra);
    }
    out
}

fn strings(list: &[Value]) -> Vec<String> {
    list.iter()
        .filter_map(|v| v.as_str().map(str::to_owned))
        .collect()
}

fn asked_user(review: &Value) -> Result<Arc<UserInfo>, Fail> {
    let user = UserInfo {
        name: meta::str_at(review, &["spec", "user"]).to_owned(),
        uid: meta::str_at(review, &["spec", "uid"]).to_owned(),
        groups: strings(meta::list_at(review, &["spec", "groups"])),
        ..UserInfo::default()
    };
    if user.name.is_empty() && user.groups.is_empty() {
        let why = api::FieldError::invalid(
            "spec.user",
            "",
            "at least one of user or group must be specified",
        );
        return Err(Box::new(Status::invalid(
            "authorization.k8s.io",
            "SubjectAccessReview",
            "",
            &[why],
        )));
    }
    Ok(Arc::new(user))
}

fn asked_attributes(user: &Arc<UserInfo>, review: &Value) -> Result<Attributes, Fail> {
    let empty = Value::Null;
    let resource = review.pointer("/spec/resourceAttributes").unwrap_or(&empty);
    let path = review
        .pointer("/spec/nonResourceAttributes")
        .unwrap_or(&empty);
    let text = |v: &Value, field: &str| meta::str_at(v, &[field]).to_owned();
    match (resource.is_null(), path.is_null()) {
        (false, true) => Ok(Attributes {
            user: user.clone(),
            verb: text(resource, "verb"),
            group: text(resource, "group"),
            version: text(resource, "version"),
            resource: text(resource, "resource"),
            subresource: text(resource, "subresource"),
            namespace: text(resource, "namespace"),
            name: text(resource, "name"),
            ..Attributes::default()
        }),
        (true, false) => Ok(Attributes {
            user: user.clone(),
            verb: text(path, "verb"),
            path: text(path, "path"),
            ..Attributes::default()
        }),
        _ => {
            let why = api::FieldError::invalid(
                "spec.resourceAttributes",
                resource.clone(),
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            );
            Err(Box::new(Status::invalid(
                "authorization.k8s.io",
                "SubjectAccessReview",
                "",
                &[why],
            )))
        }
    }
}
