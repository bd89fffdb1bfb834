//! Who asks, and may they: authentication and authorization of every request.
//!
//! Authentication tries client certificates, then bearer tokens, and falls back to
//! `system:anonymous`. Authorization asks the node authorizer, then RBAC; members of
//! `system:masters` always pass. Nothing here knows a kind's handler: a request is reduced to
//! [`Attributes`] first.

use std::collections::BTreeMap;
use std::sync::Arc;

pub mod authenticate;
pub mod bootstrap;
pub mod bootstrap_token;
mod follow;
pub mod impersonate;
pub mod node;
pub mod policy;
pub mod rbac;
pub mod rules;
pub mod secret_token;
pub mod tokens;

pub use authenticate::{Authenticator, Credentials, Unauthenticated};
pub use bootstrap::bootstrap_rbac;
pub use node::NodeAuthorizer;
pub use rbac::Rbac;
pub use tokens::{BoundObject, TokenIssuer, TokenRequest};

/// Group whose members may do everything, whatever RBAC says.
pub const MASTERS: &str = "system:masters";
/// Group every authenticated user belongs to.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Group of requests without credentials.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Name of requests without credentials.
pub const ANONYMOUS: &str = "system:anonymous";

/// The identity a request acts as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// Unique name, such as `system:node:a` or a certificate's common name.
    pub name: String,
    /// Identifier that differs between two users of one name over time; empty when unknown.
    pub uid: String,
    /// Groups the user is in.
    pub groups: Vec<String>,
    /// Further facts from the authenticator.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// An authenticated user with these groups besides `system:authenticated`.
    pub fn new(name: impl Into<String>, groups: &[&str]) -> Self {
        let mut all: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        if !groups.contains(&AUTHENTICATED) {
            all.push(AUTHENTICATED.to_owned());
        }
        Self {
            name: name.into(),
            groups: all,
            ..Self::default()
        }
    }

    /// The identity of a request without credentials.
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.to_owned(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            ..Self::default()
        }
    }

    /// Whether the user is in `group`.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// What is asked of the authorizer: one verb on one resource or path.
#[derive(Clone, Debug, Default)]
pub struct Attributes {
    /// Who asks.
    pub user: Arc<UserInfo>,
    /// Lower-case verb: `get`, `list`, `watch`, `create`, … or the HTTP method in lower case
    /// for paths that are no resources.
    pub verb: String,
    /// API group, empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural resource name, empty for paths that are no resources.
    pub resource: String,
    /// Subresource, or empty.
    pub subresource: String,
    /// Namespace, or empty.
    pub namespace: String,
    /// Object name, or empty.
    pub name: String,
    /// Request path; decides when `resource` is empty.
    pub path: String,
}

impl Attributes {
    /// `resource` or `resource/subresource`, as rules spell it.
    pub fn resource_with_subresource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }

    /// Upstream's wording of a refusal, for `Status::forbidden`'s detail.
    pub fn denied_text(&self) -> String {
        let user = &self.user.name;
        if self.resource.is_empty() {
            return format!("User {user:?} cannot {} path {:?}", self.verb, self.path);
        }
        let place = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", self.namespace)
        };
        format!(
            "User {user:?} cannot {} resource {:?} in API group {:?} {place}",
            self.verb,
            self.resource_with_subresource(),
            self.group,
        )
    }
}

/// An authorizer's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The request may go on.
    Allow(String),
    /// This authorizer does not allow it; another may.
    NoOpinion(String),
}

impl Decision {
    /// Whether the request may go on.
    pub fn allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    /// Why.
    pub fn reason(&self) -> &str {
        match self {
            Self::Allow(reason) | Self::NoOpinion(reason) => reason,
        }
    }
}

/// The chain of authorizers every request passes.
#[derive(Clone)]
pub struct Authorizer {
    /// Role-based rules.
    pub rbac: Arc<Rbac>,
    /// Rules of node identities.
    pub nodes: Arc<NodeAuthorizer>,
    /// How far the two have come.
    followed: Arc<[follow::Followed; 2]>,
}

impl Authorizer {
    /// Starts the authorizers' indexes over `store` and keeps them current.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn start(store: Arc<dyn store::Store>) -> Result<Self, store::ReadError> {
        let (rbac, rules) = Rbac::start(store.clone()).await?;
        let (nodes, pods) = NodeAuthorizer::start(store).await?;
        Ok(Self {
            rbac,
            nodes,
            followed: Arc::new([rules, pods]),
        })
    }

    /// Decides one request by everything that is committed. The indexes come a moment after the store; who acts on an
    /// answer or an event at once (an agent on a pod that was just bound to its node) must not be refused for that.
    pub async fn decide(&self, request: &Attributes) -> Decision {
        let decision = self.authorize(request);
        if decision.allowed() {
            return decision;
        }
        let [rules, pods] = &*self.followed;
        match futures::join!(rules.caught_up(), pods.caught_up()) {
            (false, false) => decision,
            _ => self.authorize(request),
        }
    }

    /// Decides one request by what is known already.
    pub fn authorize(&self, request: &Attributes) -> Decision {
        if request.user.in_group(MASTERS) {
            return Decision::Allow(String::new());
        }
        let node = self.nodes.authorize(request);
        if node.allowed() {
            return node;
        }
        match self.rbac.authorize(request) {
            Decision::NoOpinion(reason) if reason.is_empty() => node,
            decision => decision,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_worded_as_upstream_does() {
        let mut request = Attributes {
            user: UserInfo::new("jane", &[]).into(),
            verb: "list".into(),
            resource: "pods".into(),
            namespace: "default".into(),
            ..Attributes::default()
        };
        assert_eq!(
            request.denied_text(),
            "User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
        );
        request.resource.clear();
        request.verb = "get".into();
        request.path = "/metrics".into();
        assert_eq!(
            request.denied_text(),
            "User \"jane\" cannot get path \"/metrics\""
        );
    }
}
