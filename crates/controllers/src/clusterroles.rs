//! Gathers the rules of ClusterRoles that others are made of.

use client::{Cache, Entry, Error, Key, Queue, Reconcile, Requeue, Scope, Selector, write};
use futures::future::BoxFuture;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::{Context, Controller};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "clusterrole-aggregation-controller",
    run,
};

struct Roles {
    context: Context,
    roles: Cache<ClusterRole>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let roles = context.caches.get::<ClusterRole>(Scope::all());
        roles.synced().await;
        let queue = Queue::default();
        let (to, of) = (queue.clone(), roles.clone());
        roles.on_change(move |change| {
            to.add(change.key.clone());
            for entry in of.entries() {
                if gathers(&entry) {
                    to.add(entry.key.clone());
                }
            }
        });
        let reconciler = Roles {
            context: context.clone(),
            roles,
        };
        context.work(reconciler, queue).await;
    })
}

/// Whether a role may have a rule of aggregation; few do.
fn gathers(role: &Entry) -> bool {
    role.mentions("\"aggregationRule\"")
}

/// The rules that `role` is made of, by the names of the roles they come from; `None`: it is
/// made of no others.
fn gather(role: &ClusterRole, all: &[ClusterRole]) -> Result<Option<Vec<PolicyRule>>, Error> {
    let Some(rule) = &role.aggregation_rule else {
        return Ok(None);
    };
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in rule.cluster_role_selectors.iter().flatten() {
        let selector = Selector::of(selector).map_err(|e| Error::Other(e.to_string()))?;
        let mut chosen: Vec<&ClusterRole> = all
            .iter()
            .filter(|r| r.metadata.name != role.metadata.name)
            .filter(|r| selector.matches(r.metadata.labels.as_ref()))
            .collect();
        chosen.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        for new in chosen.into_iter().flat_map(|r| r.rules.iter().flatten()) {
            if !rules.contains(new) {
                rules.push(new.clone());
            }
        }
    }
    Ok(Some(rules))
}

/// What this controller has to say about a role: its rules alone. The uid keeps a role that is gone from
/// coming back.
fn wanted(role: &ClusterRole, rules: &[PolicyRule]) -> Value {
    let mut all = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": role.metadata.name, "uid": role.metadata.uid},
    });
    if !rules.is_empty() {
        all["rules"] = json!(rules);
    }
    all
}

impl Reconcile for Roles {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(role) = self.roles.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        if role.aggregation_rule.is_none() {
            return Ok(Requeue::OnChange);
        }
        let Some(rules) = gather(&role, &self.roles.list())? else {
            return Ok(Requeue::OnChange);
        };
        if role.rules.as_deref().unwrap_or_default() == rules {
            return Ok(Requeue::OnChange);
        }
        let api = write::cluster::<ClusterRole>(&self.context.client);
        let params = PatchParams::apply(CONTROLLER.name).force();
        let wanted = Patch::Apply(wanted(&role, &rules));
        match api.patch(&key.name, &params, &wanted).await {
            Ok(written) => self.roles.caught_up(write::revision_of(&written)).await?,
            // It is gone, or another one by now, which has a change of its own.
            Err(e) if client::is_conflict(&e) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(Requeue::OnChange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(name: &str, label: &str, verbs: &[&str]) -> ClusterRole {
        let rules: Vec<Value> = verbs.iter().map(|v| json!({"verbs": [v]})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"to": label}}, "rules": rules,
        }))
        .unwrap()
    }

    #[test]
    fn rules_are_gathered_by_name_without_doubles() {
        let admin: ClusterRole = serde_json::from_value(json!({
            "metadata": {"name": "admin", "labels": {"to": "admin"}},
            "aggregationRule": {"clusterRoleSelectors": [
                {"matchLabels": {"to": "admin"}}, {"matchLabels": {"to": "edit"}}]},
            "rules": [{"verbs": ["old"]}],
        }))
        .unwrap();
        let all = [
            role("z", "admin", &["get", "list"]),
            role("a", "admin", &["watch", "get"]),
            role("e", "edit", &["list", "patch"]),
            role("v", "view", &["never"]),
            admin.clone(),
        ];
        let rules = gather(&admin, &all).unwrap().unwrap();
        let verbs: Vec<_> = rules.iter().map(|r| r.verbs[0].as_str()).collect();
        assert_eq!(verbs, ["watch", "get", "list", "patch"]);
        assert_eq!(gather(&all[0], &all).unwrap(), None);
        let entry = |role: &ClusterRole| {
            client::cache::parse_entry(&serde_json::to_vec(role).unwrap()).unwrap()
        };
        assert!(gathers(&entry(&admin)));
        assert!(!gathers(&entry(&all[0])));
    }
}
