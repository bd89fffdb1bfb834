//! Resource quotas, kept exact by the commits themselves.
//!
//! Whatever changes what a namespace uses (a create, an update, a delete, a pod that ends) writes the quota's
//! `status.used` in the same commit, on condition that the quota is as it was read. So usage never drifts and no
//! two writers can both take the last of something. Usage is counted anew only when the quota itself is written.

mod scopes;
mod usage;

use std::collections::BTreeSet;

use api::{Kind, Quantity, Status, meta};
use serde_json::{Map, Value, json};
use store::{Expect, Mutation, RangeRequest, prefix_end};

use super::{Claims, Fail, Registry, Resource, Write, read_failure};
use usage::{Amounts, DEVICES, PLAIN, amounts};

const QUOTAS: (&str, &str, &str) = ("", "v1", "resourcequotas");
fn show(amounts: &Amounts, keys: &BTreeSet<&String>) -> String {
    let zero = Quantity::default();
    let one = |k: &&String| format!("{k}={}", amounts.get(*k).unwrap_or(&zero));
    keys.iter().map(one).collect::<Vec<_>>().join(",")
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
        let object = object.filter(|o| scopes::takes_in(quota, kind, o));
        let mut used = object.map(|o| usage::of(kind, o)).unwrap_or_default();
        used.retain(|k, _| hard.contains_key(k));
        used
    };
    let name = meta::name(quota);
    let born = new.filter(|_| kind.group.is_empty() && kind.resource == "pods" && old.is_none());
    if let Some(pod) = born.filter(|pod| scopes::takes_in(quota, kind, pod)) {
        let unset = usage::unset(pod, &hard);
        if !unset.is_empty() {
            return Err(format!("failed quota: {name}: must specify {unset}"));
        }
    }
    let (before, after) = (of(old), of(new));
    if before == after {
        return Ok(None);
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
                if scopes::takes_in(quota, resource.stored(), &object) {
                    for (key, amount) in usage::of(resource.stored(), &object) {
                        used.entry(key).and_modify(|sum| *sum += amount);
                    }
                }
            }
        }
        if born {
            for key in ["resourcequotas", "count/resourcequotas"] {
                used.entry(key.to_owned())
                    .and_modify(|sum| *sum += Quantity::from_int(1));
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
                None if key.ends_with(DEVICES) => "resourceclaims.resource.k8s.io",
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
    fn what_is_limited_must_be_said_even_if_nothing_is_used() {
        let mut quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"limits.cpu": "1"}}});
        assert_eq!(
            charge(&quota, pods(), None, Some(&pod("1"))).unwrap_err(),
            "failed quota: q: must specify limits.cpu for: c"
        );
        quota["spec"]["scopes"] = json!(["Terminating"]);
        assert_eq!(charge(&quota, pods(), None, Some(&pod("1"))).unwrap(), None);
    }
}
