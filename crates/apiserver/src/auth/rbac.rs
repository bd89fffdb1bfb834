//! Role-based access control over an in-memory index of the four RBAC kinds.
//!
//! The index follows the store's `/registry/rbac.authorization.k8s.io/` prefix; a decision takes
//! no I/O. A change is seen by decisions a moment after it is committed, as upstream.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, RwLock};

use serde::Deserialize;
use store::{Event, EventKind, KeyValue, ReadError, Store};

use super::follow::{self, Followed};
use super::rules::Rule;
use super::{Attributes, Decision, UserInfo};

const PREFIX: &str = "/registry/rbac.authorization.k8s.io/";

/// Decides requests by Roles, ClusterRoles and their bindings.
#[derive(Default)]
pub struct Rbac {
    index: RwLock<Index>,
}

#[derive(Default)]
struct Index {
    /// Rules by (namespace, name); cluster roles have the empty namespace.
    roles: HashMap<(String, String), Arc<Vec<Rule>>>,
    /// Bindings by namespace (empty for cluster role bindings).
    bindings: HashMap<String, Bindings>,
}

/// The bindings of one namespace. A request looks only at those that name its user or one of its groups: clusters have
/// thousands of bindings, and a user a handful.
#[derive(Default)]
struct Bindings {
    by_name: HashMap<String, Binding>,
    /// Names of bindings by the user they name; a service account is the user it acts as.
    users: HashMap<String, BTreeSet<String>>,
    /// Names of bindings by the group they name.
    groups: HashMap<String, BTreeSet<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Binding {
    role_ref: RoleRef,
    #[serde(default)]
    subjects: Vec<Subject>,
}

#[derive(Clone, Debug, Deserialize)]
struct RoleRef {
    kind: String,
    name: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Subject {
    kind: String,
    name: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Deserialize)]
struct Role {
    /// Null in a role whose rules were cleared.
    #[serde(default)]
    rules: Option<Vec<Rule>>,
}

/// Whom a subject means.
enum Who {
    User(String),
    Group(String),
}

impl Subject {
    fn who(&self, binding_namespace: &str) -> Option<Who> {
        match self.kind.as_str() {
            "User" => Some(Who::User(self.name.clone())),
            "Group" => Some(Who::Group(self.name.clone())),
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() {
                    binding_namespace
                } else {
                    &self.namespace
                };
                let name = &self.name;
                Some(Who::User(format!(
                    "system:serviceaccount:{namespace}:{name}"
                )))
            }
            _ => None,
        }
    }
}

impl Bindings {
    fn insert(&mut self, namespace: &str, name: &str, binding: Binding) {
        self.remove(namespace, name);
        for who in binding.subjects.iter().filter_map(|s| s.who(namespace)) {
            let names = match who {
                Who::User(user) => self.users.entry(user),
                Who::Group(group) => self.groups.entry(group),
            };
            names.or_default().insert(name.to_owned());
        }
        self.by_name.insert(name.to_owned(), binding);
    }

    fn remove(&mut self, namespace: &str, name: &str) {
        let Some(binding) = self.by_name.remove(name) else {
            return;
        };
        for who in binding.subjects.iter().filter_map(|s| s.who(namespace)) {
            let (index, key) = match who {
                Who::User(user) => (&mut self.users, user),
                Who::Group(group) => (&mut self.groups, group),
            };
            if let Some(names) = index.get_mut(&key) {
                names.remove(name);
                if names.is_empty() {
                    index.remove(&key);
                }
            }
        }
    }

    /// The bindings that name a user, each once, in order of their names.
    fn of(&self, user: &UserInfo) -> impl Iterator<Item = (&str, &Binding)> {
        let groups = user
            .groups
            .iter()
            .filter_map(|group| self.groups.get(group));
        let found = self.users.get(&user.name).into_iter().chain(groups);
        let mut names: Vec<&str> = found.flatten().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names
            .into_iter()
            .filter_map(|name| Some((name, self.by_name.get(name)?)))
    }
}

impl Index {
    fn set(&mut self, key: &[u8], value: Option<&[u8]>) {
        let Some((resource, namespace, name)) = parse_key(key) else {
            return;
        };
        match resource {
            "roles" | "clusterroles" => {
                let slot = (namespace.to_owned(), name.to_owned());
                match value.and_then(|v| serde_json::from_slice::<Role>(v).ok()) {
                    Some(role) => {
                        self.roles
                            .insert(slot, Arc::new(role.rules.unwrap_or_default()));
                    }
                    None => {
                        self.roles.remove(&slot);
                    }
                }
            }
            "rolebindings" | "clusterrolebindings" => {
                let bindings = self.bindings.entry(namespace.to_owned()).or_default();
                match value.and_then(|v| serde_json::from_slice::<Binding>(v).ok()) {
                    Some(binding) => bindings.insert(namespace, name, binding),
                    None => bindings.remove(namespace, name),
                }
            }
            _ => {}
        }
    }

    fn rules(&self, binding: &Binding, namespace: &str) -> Option<Arc<Vec<Rule>>> {
        let role_namespace = match binding.role_ref.kind.as_str() {
            "ClusterRole" => "",
            _ => namespace,
        };
        self.roles
            .get(&(role_namespace.to_owned(), binding.role_ref.name.clone()))
            .cloned()
    }

    /// Calls `visit` with every rule set that applies to `user` in `namespace` until it says stop.
    fn visit(
        &self,
        user: &UserInfo,
        namespace: &str,
        mut visit: impl FnMut(&str, &Binding, &[Rule]) -> bool,
    ) {
        let scopes = if namespace.is_empty() {
            &[""][..]
        } else {
            &["", namespace][..]
        };
        for scope in scopes {
            let bindings = self.bindings.get(*scope).into_iter();
            for (name, binding) in bindings.flat_map(|all| all.of(user)) {
                let Some(rules) = self.rules(binding, scope) else {
                    continue;
                };
                if visit(name, binding, &rules) {
                    return;
                }
            }
        }
    }
}

fn parse_key(key: &[u8]) -> Option<(&str, &str, &str)> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(PREFIX)?;
    let (resource, rest) = rest.split_once('/')?;
    match resource {
        "roles" | "rolebindings" => {
            let (namespace, name) = rest.split_once('/')?;
            Some((resource, namespace, name))
        }
        _ => Some((resource, "", rest)),
    }
}

impl Rbac {
    /// Reads the rules in `store` and follows their changes for as long as the store lives.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn start(store: Arc<dyn Store>) -> Result<(Arc<Self>, Followed), ReadError> {
        let this = Arc::new(Self::default());
        let followed = follow::start(this.clone(), store).await?;
        Ok((this, followed))
    }

    /// Decides `request`.
    pub fn authorize(&self, request: &Attributes) -> Decision {
        let index = self.read();
        let mut found = None;
        index.visit(&request.user, &request.namespace, |name, binding, rules| {
            if rules.iter().any(|rule| rule.grants(request)) {
                found = Some(format!(
                    "RBAC: allowed by binding {name:?} of {} {:?} to {:?}",
                    binding.role_ref.kind, binding.role_ref.name, request.user.name
                ));
            }
            found.is_some()
        });
        match found {
            Some(reason) => Decision::Allow(reason),
            None => Decision::NoOpinion(String::new()),
        }
    }

    /// Every rule that applies to `user` in `namespace`, for SelfSubjectRulesReview.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        let mut all = Vec::new();
        self.read().visit(user, namespace, |_, _, rules| {
            all.extend_from_slice(rules);
            false
        });
        all
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(|e| e.into_inner())
    }
}

impl follow::Index for Rbac {
    const PREFIX: &'static str = PREFIX;

    fn reset(&self, all: &[KeyValue]) {
        let mut index = Index::default();
        for kv in all {
            index.set(&kv.key, Some(&kv.value));
        }
        *self.write() = index;
    }

    fn apply(&self, events: &[Event]) {
        let mut index = self.write();
        for event in events {
            let value = match event.kind {
                EventKind::Put => Some(&event.kv.value[..]),
                EventKind::Delete => None,
            };
            index.set(&event.kv.key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rbac(objects: &[(&str, serde_json::Value)]) -> Rbac {
        let rbac = Rbac::default();
        for (path, value) in objects {
            let key = format!("{PREFIX}{path}");
            let bytes = serde_json::to_vec(value).unwrap();
            rbac.write().set(key.as_bytes(), Some(&bytes));
        }
        rbac
    }

    fn ask(user: UserInfo, verb: &str, namespace: &str, resource: &str) -> Attributes {
        Attributes {
            user: user.into(),
            verb: verb.into(),
            namespace: namespace.into(),
            resource: resource.into(),
            ..Attributes::default()
        }
    }

    #[test]
    fn a_role_binding_grants_only_in_its_namespace() {
        let rbac = rbac(&[
            (
                "clusterroles/edit",
                json!({"rules":[{"verbs":["create"],"apiGroups":[""],"resources":["pods"]}]}),
            ),
            (
                "rolebindings/dev/b",
                json!({"roleRef":{"kind":"ClusterRole","name":"edit"},"subjects":[{"kind":"Group","name":"devs"}]}),
            ),
        ]);
        let jane = UserInfo::new("jane", &["devs"]);
        assert!(
            rbac.authorize(&ask(jane.clone(), "create", "dev", "pods"))
                .allowed()
        );
        assert!(
            !rbac
                .authorize(&ask(jane.clone(), "create", "prod", "pods"))
                .allowed()
        );
        assert!(!rbac.authorize(&ask(jane, "create", "", "pods")).allowed());
        let joe = UserInfo::new("joe", &[]);
        assert!(!rbac.authorize(&ask(joe, "create", "dev", "pods")).allowed());
    }

    #[test]
    fn a_service_account_subject_defaults_to_the_bindings_namespace() {
        let rbac = rbac(&[
            (
                "roles/dev/r",
                json!({"rules":[{"verbs":["get"],"apiGroups":[""],"resources":["pods"]}]}),
            ),
            (
                "rolebindings/dev/b",
                json!({"roleRef":{"kind":"Role","name":"r"},"subjects":[{"kind":"ServiceAccount","name":"app"}]}),
            ),
        ]);
        let here = UserInfo::new("system:serviceaccount:dev:app", &[]);
        let elsewhere = UserInfo::new("system:serviceaccount:prod:app", &[]);
        assert!(rbac.authorize(&ask(here, "get", "dev", "pods")).allowed());
        assert!(
            !rbac
                .authorize(&ask(elsewhere, "get", "dev", "pods"))
                .allowed()
        );
    }

    #[test]
    fn deleting_a_binding_takes_the_grant_away() {
        let rbac = rbac(&[
            (
                "clusterroles/all",
                json!({"rules":[{"verbs":["*"],"apiGroups":["*"],"resources":["*"]}]}),
            ),
            (
                "clusterrolebindings/b",
                json!({"roleRef":{"kind":"ClusterRole","name":"all"},"subjects":[{"kind":"User","name":"jane"}]}),
            ),
        ]);
        let request = ask(UserInfo::new("jane", &[]), "delete", "x", "pods");
        assert!(rbac.authorize(&request).allowed());
        let key = format!("{PREFIX}clusterrolebindings/b");
        rbac.write().set(key.as_bytes(), None);
        assert!(!rbac.authorize(&request).allowed());
    }

    #[test]
    fn a_binding_of_other_subjects_is_another() {
        let grants = json!({"rules":[{"verbs":["get"],"apiGroups":[""],"resources":["pods"]}]});
        let rbac = rbac(&[("clusterroles/r", grants)]);
        let key = format!("{PREFIX}clusterrolebindings/b");
        let bind = |subjects: serde_json::Value| {
            let binding = json!({"roleRef":{"kind":"ClusterRole","name":"r"},"subjects":subjects});
            let bytes = serde_json::to_vec(&binding).unwrap();
            rbac.write().set(key.as_bytes(), Some(&bytes));
        };
        let may = |name: &str, groups: &[&str]| {
            let request = ask(UserInfo::new(name, groups), "get", "n", "pods");
            rbac.authorize(&request).allowed()
        };
        let user = |name: &str| json!({"kind":"User","name":name});
        let group = |name: &str| json!({"kind":"Group","name":name});
        bind(json!([user("jane"), user("joe"), group("devs")]));
        assert!(may("jane", &[]) && may("joe", &[]) && may("ann", &["devs"]) && !may("ann", &[]));
        // A group is no user of that name.
        assert!(!may("devs", &["jane"]));
        bind(json!([user("joe"), group("ops")]));
        assert!(
            !may("jane", &[]) && may("joe", &[]) && !may("ann", &["devs"]) && may("ann", &["ops"])
        );
        let joe = UserInfo::new("joe", &["ops"]);
        assert_eq!(
            rbac.rules_for(&joe, "n").len(),
            1,
            "named twice, counted once"
        );
    }

    #[test]
    fn a_binding_to_a_missing_role_grants_nothing_and_null_rules_are_none() {
        let rbac = rbac(&[
            ("clusterroles/empty", json!({"rules":null})),
            (
                "clusterrolebindings/a",
                json!({"roleRef":{"kind":"ClusterRole","name":"gone"},"subjects":[{"kind":"User","name":"jane"}]}),
            ),
            (
                "clusterrolebindings/b",
                json!({"roleRef":{"kind":"ClusterRole","name":"empty"},"subjects":[{"kind":"User","name":"jane"}]}),
            ),
        ]);
        let request = ask(UserInfo::new("jane", &[]), "get", "", "nodes");
        assert!(!rbac.authorize(&request).allowed());
    }
}
