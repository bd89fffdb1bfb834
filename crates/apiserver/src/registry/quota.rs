//! Resource quotas, kept exact by the commits themselves.
//!
//! Whatever changes what a namespace uses (a create, an update, a delete, a pod that ends) writes the quota's
//! `status.used` in the same commit, on condition that the quota is as it was read. So usage never drifts and no
//! two writers can both take the last of something. Usage is counted anew only when the quota itself is written.

use std::collections::{BTreeMap, BTreeSet};

use api::{Kind, Quantity, Status, meta};
use serde_json::{Map, Value, json};
use store::{Expect, Mutation, RangeRequest, prefix_end};

use super::{Claims, Fail, Registry, Resource, Write, read_failure};

/// Amounts by quota key, such as `pods` or `requests.cpu`.
type Amounts = BTreeMap<String, Quantity>;

const QUOTAS: (&str, &str, &str) = ("", "v1", "resourcequotas");
/// Resources counted under their plain names, from before `count/` existed.
const PLAIN: [&str; 7] = [
    "pods",
    "services",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "resourcequotas",
];
/// Compute resources whose requests may be named without `requests.`.
const BARE_REQUESTS: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
/// Keys that every container of a pod must set when a quota limits them.
const REQUIRED: [&str; 6] = [
    "cpu",
    "memory",
    "limits.cpu",
    "limits.memory",
    "requests.cpu",
    "requests.memory",
];

fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(s) => s.parse().ok(),
        Value::Number(n) => n.to_string().parse().ok(),
        _ => None,
    }
}

fn amounts(value: Option<&Value>) -> Amounts {
    let entries = value.and_then(Value::as_object).into_iter().flatten();
    entries
        .filter_map(|(k, v)| Some((k.clone(), quantity(v)?)))
        .collect()
}

fn add(into: &mut Amounts, key: impl Into<String>, amount: Quantity) {
    *into.entry(key.into()).or_default() += amount;
}

fn one() -> Quantity {
    Quantity::from_int(1)
}

/// What an object uses, under every key a quota may limit.
fn usage(kind: &Kind, object: &Value) -> Amounts {
    let mut used = Amounts::new();
    add(
        &mut used,
        format!("count/{}", kind.qualified_resource()),
        one(),
    );
    if !kind.group.is_empty() {
        return used;
    }
    match kind.resource.as_str() {
        "pods" => pod_usage(object, &mut used),
        "services" => {
            add(&mut used, "services", one());
            service_usage(object, &mut used);
        }
        "persistentvolumeclaims" => {
            add(&mut used, "persistentvolumeclaims", one());
            claim_usage(object, &mut used);
        }
        plain if PLAIN.contains(&plain) => add(&mut used, plain, one()),
        _ => {}
    }
    used
}

fn service_usage(service: &Value, used: &mut Amounts) {
    let ports = meta::list_at(service, &["spec", "ports"]).iter();
    let node_ports = ports
        .filter(|p| meta::int_at(p, &["nodePort"]).is_some_and(|p| p != 0))
        .count();
    if node_ports > 0 {
        add(
            used,
            "services.nodeports",
            Quantity::from_int(i64::try_from(node_ports).unwrap_or(i64::MAX)),
        );
    }
    if meta::str_at(service, &["spec", "type"]) == "LoadBalancer" {
        add(used, "services.loadbalancers", one());
    }
}

fn claim_usage(claim: &Value, used: &mut Amounts) {
    let class = meta::str_at(claim, &["spec", "storageClassName"]);
    let prefix = format!("{class}.storageclass.storage.k8s.io");
    if !class.is_empty() {
        add(used, format!("{prefix}/persistentvolumeclaims"), one());
    }
    if let Some(size) =
        meta::get(claim, &["spec", "resources", "requests", "storage"]).and_then(quantity)
    {
        add(used, "requests.storage", size);
        if !class.is_empty() {
            add(used, format!("{prefix}/requests.storage"), size);
        }
    }
}

fn terminal(pod: &Value) -> bool {
    matches!(
        meta::str_at(pod, &["status", "phase"]),
        "Succeeded" | "Failed"
    )
}

fn pod_usage(pod: &Value, used: &mut Amounts) {
    if terminal(pod) {
        return;
    }
    add(used, "pods", one());
    for field in ["requests", "limits"] {
        for (resource, amount) in pod_amounts(pod, field) {
            if field == "requests" && BARE_REQUESTS.contains(&resource.as_str()) {
                add(used, resource.as_str(), amount);
            }
            add(used, format!("{field}.{resource}"), amount);
        }
    }
}

/// Requests or limits of a pod: containers (and sidecars) together, or one init container if that is more.
fn pod_amounts(pod: &Value, field: &str) -> Amounts {
    let of = |container: &Value| amounts(meta::get(container, &["resources", field]));
    let mut total = Amounts::new();
    for container in meta::list_at(pod, &["spec", "containers"]) {
        of(container)
            .into_iter()
            .for_each(|(k, v)| add(&mut total, k, v));
    }
    let inits = meta::list_at(pod, &["spec", "initContainers"]);
    let (sidecars, inits): (Vec<&Value>, Vec<&Value>) = inits
        .iter()
        .partition(|c| meta::str_at(c, &["restartPolicy"]) == "Always");
    for container in sidecars {
        of(container)
            .into_iter()
            .for_each(|(k, v)| add(&mut total, k, v));
    }
    for container in inits {
        for (k, v) in of(container) {
            let sum = total.entry(k).or_default();
            *sum = (*sum).max(v);
        }
    }
    amounts(meta::get(pod, &["spec", "overhead"]))
        .into_iter()
        .for_each(|(k, v)| add(&mut total, k, v));
    total
}

fn best_effort(pod: &Value) -> bool {
    let none = |list: &str| {
        meta::list_at(pod, &["spec", list]).iter().all(|c| {
            ["requests", "limits"]
                .iter()
                .all(|f| amounts(meta::get(c, &["resources", f])).is_empty())
        })
    };
    none("containers") && none("initContainers")
}

/// Whether a quota's scopes take in an object. Scopes speak of pods only.
fn in_scope(quota: &Value, kind: &Kind, object: &Value) -> bool {
    let scopes = meta::list_at(quota, &["spec", "scopes"]);
    let expressions = meta::list_at(quota, &["spec", "scopeSelector", "matchExpressions"]);
    if scopes.is_empty() && expressions.is_empty() {
        return true;
    }
    if !(kind.group.is_empty() && kind.resource == "pods") {
        return false;
    }
    let plain = scopes
        .iter()
        .filter_map(Value::as_str)
        .all(|s| has_scope(object, s));
    plain
        && expressions.iter().all(|e| {
            let scope = meta::str_at(e, &["scopeName"]);
            let class = meta::str_at(object, &["spec", "priorityClassName"]);
            let listed = meta::list_at(e, &["values"]).iter().any(|v| v == class);
            match (scope, meta::str_at(e, &["operator"])) {
                ("PriorityClass", "In") => listed,
                ("PriorityClass", "NotIn") => !listed,
                ("PriorityClass", "DoesNotExist") => class.is_empty(),
                ("PriorityClass", _) => !class.is_empty(),
                (scope, _) => has_scope(object, scope),
            }
        })
}

fn has_scope(pod: &Value, scope: &str) -> bool {
    let ends = meta::get(pod, &["spec", "activeDeadlineSeconds"]).is_some_and(|v| !v.is_null());
    match scope {
        "Terminating" => ends,
        "NotTerminating" => !ends,
        "BestEffort" => best_effort(pod),
        "NotBestEffort" => !best_effort(pod),
        "PriorityClass" => !meta::str_at(pod, &["spec", "priorityClassName"]).is_empty(),
        _ => false,
    }
}

fn show(amounts: &Amounts, keys: &BTreeSet<&String>) -> String {
    let zero = Quantity::default();
    let one = |k: &&String| format!("{k}={}", amounts.get(*k).unwrap_or(&zero));
    keys.iter().map(one).collect::<Vec<_>>().join(",")
}

/// What containers leave out although a quota limits it, as upstream says it; empty when nothing is.
fn unset(pod: &Value, hard: &Amounts) -> String {
    let mut parts = Vec::new();
    for key in REQUIRED.iter().filter(|k| hard.contains_key(**k)) {
        let (field, resource) = key.split_once('.').unwrap_or(("requests", key));
        let lists = ["containers", "initContainers"].map(|l| meta::list_at(pod, &["spec", l]));
        let without = |c: &&Value| meta::get(c, &["resources", field, resource]).is_none();
        let names: BTreeSet<&str> = lists
            .into_iter()
            .flatten()
            .filter(without)
            .map(|c| meta::str_at(c, &["name"]))
            .collect();
        if !names.is_empty() {
            parts.push(format!(
                "{key} for: {}",
                names.into_iter().collect::<Vec<_>>().join(",")
            ));
        }
    }
    parts.join("; ")
}

/// The quota with its usage changed; `None` if the change does not concern it.
fn charge(
    quota: &Value,
    kind: &Kind,
    old: Option<&Value>,
    new: Option<&Value>,
) -> Result<Option<Value>, String> {
    let hard = amounts(meta::get(quota, &["spec", "hard"]));
    let of = |object: Option<&Value>| {
        let object = object.filter(|o| in_scope(quota, kind, o));
        let mut used = object.map(|o| usage(kind, o)).unwrap_or_default();
        used.retain(|k, _| hard.contains_key(k));
        used
    };
    let (before, after) = (of(old), of(new));
    if before == after {
        return Ok(None);
    }
    let name = meta::name(quota);
    let pod = kind.group.is_empty() && kind.resource == "pods";
    if let Some(pod) = new.filter(|_| pod && old.is_none()) {
        let unset = unset(pod, &hard);
        if !unset.is_empty() {
            return Err(format!("failed quota: {name}: must specify {unset}"));
        }
    }
    let mut used = amounts(meta::get(quota, &["status", "used"]));
    let zero = Quantity::default();
    let was = used.clone();
    let (mut exceeded, mut asked) = (BTreeSet::new(), Amounts::new());
    for key in hard.keys() {
        let change = *after.get(key).unwrap_or(&zero) - *before.get(key).unwrap_or(&zero);
        let sum = *used.get(key).unwrap_or(&zero) + change;
        if change > zero {
            asked.insert(key.clone(), change);
            if sum > hard[key] {
                exceeded.insert(key);
            }
        }
        used.insert(key.clone(), sum.max(zero));
    }
    if !exceeded.is_empty() {
        return Err(format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            show(&asked, &exceeded),
            show(&was, &exceeded),
            show(&hard, &exceeded)
        ));
    }
    let mut charged = quota.clone();
    set_used(&mut charged, &used);
    Ok(Some(charged))
}

fn set_used(quota: &mut Value, used: &Amounts) {
    let used: Map<String, Value> = used
        .iter()
        .map(|(k, v)| (k.clone(), v.to_string().into()))
        .collect();
    let hard = meta::get(quota, &["spec", "hard"])
        .cloned()
        .unwrap_or_else(|| json!({}));
    meta::set(quota, &["status", "hard"], hard);
    meta::set(quota, &["status", "used"], used.into());
}

impl Registry {
    /// Adds to `claims` what the change of an object means to the quotas of its namespace.
    ///
    /// # Errors
    /// 403 in upstream's words when a quota would be exceeded.
    pub(super) async fn claim_quota(
        &self,
        write: &Write<'_>,
        old: Option<&Value>,
        new: Option<&mut Value>,
        claims: &mut Claims,
    ) -> Result<(), Fail> {
        if write.namespace.is_empty() {
            return Ok(());
        }
        let resource = write.resource;
        let quota_itself = resource.is("", "resourcequotas");
        let mut new = new;
        if quota_itself && let Some(quota) = new.as_deref_mut() {
            let given = meta::get(quota, &["status", "hard"]).cloned();
            self.count_anew(quota, old.is_none(), write.namespace)
                .await?;
            // Whoever writes the status may say what he likes about the limits, not about the usage.
            if let Some(given) = given.filter(|_| write.subresource == "status") {
                meta::set(quota, &["status", "hard"], given);
            }
        }
        let quotas = self.resource(QUOTAS.0, QUOTAS.1, QUOTAS.2)?;
        let start = quotas.prefix(write.namespace);
        let range = RangeRequest {
            end: prefix_end(&start),
            start,
            limit: 0,
            at: None,
        };
        let new = new.map(|v| &*v);
        let own = new.or(old).map(meta::name).unwrap_or_default();
        for kv in self.store.range(range).await.map_err(read_failure)?.kvs {
            let quota = self.open(&kv)?.value()?;
            if quota_itself && meta::name(&quota) == own {
                continue;
            }
            let charged = charge(&quota, resource.stored(), old, new).map_err(|why| {
                let kind = &resource.kind;
                let name = new.or(old).map(meta::name).unwrap_or_default();
                Box::new(Status::forbidden(&kind.group, &kind.resource, name, &why))
            })?;
            if let Some(charged) = charged {
                claims
                    .expect
                    .push((kv.key.clone(), Expect::ModRevision(kv.mod_revision)));
                claims.mutations.push(Mutation::Put {
                    key: kv.key,
                    value: codec::canonical(&charged),
                });
            }
        }
        Ok(())
    }

    /// Counts what the namespace uses of everything the quota limits; a quota that is `born` just
    /// now counts itself.
    async fn count_anew(&self, quota: &mut Value, born: bool, namespace: &str) -> Result<(), Fail> {
        let hard = amounts(meta::get(quota, &["spec", "hard"]));
        let mut used: Amounts = hard
            .keys()
            .map(|k| (k.clone(), Quantity::default()))
            .collect();
        for resource in self.counted(&hard) {
            let start = resource.prefix(namespace);
            let range = RangeRequest {
                end: prefix_end(&start),
                start,
                limit: 0,
                at: None,
            };
            for kv in self.store.range(range).await.map_err(read_failure)?.kvs {
                let object = self.open(&kv)?.value()?;
                if in_scope(quota, resource.stored(), &object) {
                    for (key, amount) in usage(resource.stored(), &object) {
                        used.entry(key).and_modify(|sum| *sum += amount);
                    }
                }
            }
        }
        if born {
            for key in ["resourcequotas", "count/resourcequotas"] {
                used.entry(key.to_owned()).and_modify(|sum| *sum += one());
            }
        }
        set_used(quota, &used);
        Ok(())
    }

    /// The resources that keys of a quota are about.
    fn counted(&self, hard: &Amounts) -> Vec<std::sync::Arc<Resource>> {
        let resources = self.resources();
        let mut names: BTreeSet<String> = BTreeSet::new();
        for key in hard.keys() {
            let name = match key.strip_prefix("count/") {
                Some(counted) => counted,
                None if PLAIN.contains(&key.as_str()) => key,
                None if key.starts_with("services.") => "services",
                None if key == "requests.storage" || key.contains(".storageclass.") => {
                    "persistentvolumeclaims"
                }
                None => "pods",
            };
            names.insert(name.to_owned());
        }
        let wanted = |k: &&Kind| {
            k.is_storage_version() && k.is_stored() && names.contains(&k.qualified_resource())
        };
        let kinds = resources.kinds().iter().filter(wanted);
        kinds
            .filter_map(|k| resources.find(&k.group, &k.version, &k.resource))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods() -> &'static Kind {
        api::kind("", "v1", "pods").unwrap()
    }

    fn pod(cpu: &str) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
    }

    #[test]
    fn a_quota_is_charged_and_refuses() {
        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "2", "requests.cpu": "1"}},
            "status": {"used": {"pods": "1", "requests.cpu": "600m"}}});
        let charged = charge(&quota, pods(), None, Some(&pod("400m")))
            .unwrap()
            .unwrap();
        assert_eq!(
            charged["status"]["used"],
            json!({"pods": "2", "requests.cpu": "1"})
        );
        assert_eq!(
            charge(&quota, pods(), None, Some(&pod("500m"))).unwrap_err(),
            "exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1"
        );
        let bare = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}});
        assert_eq!(
            charge(&quota, pods(), None, Some(&bare)).unwrap_err(),
            "failed quota: q: must specify requests.cpu for: c"
        );
        let mut done = pod("400m");
        done["status"] = json!({"phase": "Succeeded"});
        let freed = charge(&charged, pods(), Some(&pod("400m")), Some(&done))
            .unwrap()
            .unwrap();
        assert_eq!(
            freed["status"]["used"],
            json!({"pods": "1", "requests.cpu": "600m"})
        );
        assert_eq!(charge(&quota, pods(), Some(&done), None).unwrap(), None);
    }

    #[test]
    fn scopes_speak_of_pods() {
        let quota = json!({"spec": {"scopes": ["BestEffort"], "hard": {"pods": "1"}}});
        assert!(!in_scope(&quota, pods(), &pod("1")));
        assert!(in_scope(
            &quota,
            pods(),
            &json!({"spec": {"containers": [{"name": "c"}]}})
        ));
        assert!(!in_scope(
            &quota,
            api::kind("", "v1", "secrets").unwrap(),
            &json!({})
        ));
    }
}
