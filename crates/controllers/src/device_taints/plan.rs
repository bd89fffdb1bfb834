//! Whom the taints of devices drive away, and when; and what rules that taint devices do. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use client::Key;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::resource::v1::{
    DeviceRequestAllocationResult as Allocated, DeviceTaint, DeviceTaintRule, ResourceClaim,
    ResourceSlice,
};
use placement::taints::tolerates_device;

const NO_EXECUTE: &str = "NoExecute";

/// The taints that devices have, from their drivers and from rules.
#[derive(Debug, Default)]
pub struct Taints<'a> {
    /// The newest slices of each pool.
    slices: BTreeMap<(&'a str, &'a str), Vec<&'a ResourceSlice>>,
    rules: &'a [DeviceTaintRule],
}

impl<'a> Taints<'a> {
    /// Of all slices and rules.
    pub fn of(slices: &'a [ResourceSlice], rules: &'a [DeviceTaintRule]) -> Self {
        let mut pools: BTreeMap<(&str, &str), Vec<&ResourceSlice>> = BTreeMap::new();
        for slice in slices {
            let pool = (slice.spec.driver.as_str(), slice.spec.pool.name.as_str());
            pools.entry(pool).or_default().push(slice);
        }
        for pool in pools.values_mut() {
            let newest = pool.iter().map(|s| s.spec.pool.generation).max();
            pool.retain(|s| Some(s.spec.pool.generation) == newest);
        }
        Self {
            slices: pools,
            rules,
        }
    }

    /// Those of a device that drive pods away, with the rule they come from if it is one.
    fn driving(&self, device: &Allocated) -> Vec<(&'a DeviceTaint, Option<&'a DeviceTaintRule>)> {
        let pool = self.slices.get(&(&*device.driver, &*device.pool));
        let devices = pool.into_iter().flatten();
        let devices = devices.flat_map(|s| s.spec.devices.iter().flatten());
        let known = devices.filter(|d| d.name == device.device);
        let own = known.flat_map(|d| d.taints.iter().flatten());
        let given = self.rules.iter().filter(|r| {
            let Allocated {
                driver,
                pool,
                device,
                ..
            } = device;
            selects(r, driver, pool, device)
        });
        let all = own
            .map(|t| (t, None))
            .chain(given.map(|r| (&r.spec.taint, Some(r))));
        all.filter(|(t, _)| t.effect == NO_EXECUTE).collect()
    }

    /// How many published devices a rule selects.
    pub fn published(&self, rule: &DeviceTaintRule) -> usize {
        let of_pool = |((driver, pool), slices): (&(&str, &str), &Vec<&ResourceSlice>)| {
            let devices = slices.iter().flat_map(|s| s.spec.devices.iter().flatten());
            devices
                .filter(|d| selects(rule, driver, pool, &d.name))
                .count()
        };
        self.slices.iter().map(of_pool).sum()
    }
}

/// Whether a rule is about a device; one that says nothing is about none.
fn selects(rule: &DeviceTaintRule, driver: &str, pool: &str, device: &str) -> bool {
    let is = |wanted: &Option<String>, name: &str| wanted.as_ref().is_none_or(|w| w == name);
    let selector = rule.spec.device_selector.as_ref();
    selector.is_some_and(|s| is(&s.driver, driver) && is(&s.pool, pool) && is(&s.device, device))
}

/// When those who use a claim have to go, and the rules by which.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Due {
    /// The earliest time.
    pub at: Option<Timestamp>,
    /// The uids of the rules.
    pub rules: BTreeSet<String>,
}

impl Due {
    /// Both together.
    pub fn add(&mut self, other: Self) {
        self.at = [self.at, other.at].into_iter().flatten().min();
        self.rules.extend(other.rules);
    }
}

/// The devices that a claim has.
pub fn devices(claim: &ResourceClaim) -> &[Allocated] {
    let allocation = claim.status.as_ref().and_then(|s| s.allocation.as_ref());
    let devices = allocation.and_then(|a| a.devices.as_ref());
    devices
        .and_then(|d| d.results.as_deref())
        .unwrap_or_default()
}

/// When the pods of a claim have to go.
pub fn due(claim: &ResourceClaim, taints: &Taints<'_>, now: Timestamp) -> Due {
    let mut due = Due::default();
    for device in devices(claim) {
        for (taint, rule) in taints.driving(device) {
            let Some(wait) = tolerated(device, taint) else {
                continue;
            };
            let since = taint.time_added.as_ref().map_or(now, |t| t.0);
            due.add(Due {
                at: Some(since.saturating_add(wait).unwrap_or(since)),
                rules: rule
                    .and_then(|r| r.metadata.uid.clone())
                    .into_iter()
                    .collect(),
            });
        }
    }
    due
}

/// For how long a taint is tolerated; `None`: for ever.
fn tolerated(device: &Allocated, taint: &DeviceTaint) -> Option<SignedDuration> {
    let all = device.tolerations.iter().flatten();
    let matching = all.filter(|t| tolerates_device(t, taint));
    let mut shortest: Option<i64> = None;
    for toleration in matching {
        // Whoever tolerates all effects does so for ever.
        let limited = toleration.effect.as_deref() == Some(NO_EXECUTE);
        let seconds = toleration.toleration_seconds.filter(|_| limited)?.max(0);
        shortest = Some(shortest.map_or(seconds, |s| s.min(seconds)));
    }
    Some(SignedDuration::from_secs(shortest.unwrap_or(0)))
}

/// Whether a claim is kept for a pod.
pub fn is_reserved_for(claim: &ResourceClaim, uid: &str) -> bool {
    let users = claim.status.as_ref().and_then(|s| s.reserved_for.as_ref());
    let mut users = users.into_iter().flatten();
    users.any(|u| u.resource == "pods" && u.uid == uid)
}

/// What there is to say about a rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effects {
    /// Published devices that it selects.
    pub published: usize,
    /// Allocated devices that it selects.
    pub allocated: usize,
    /// Pods that have to go because of it, by namespace.
    pub pods: BTreeMap<String, BTreeSet<String>>,
}

/// What a rule does, or would do if it drove pods away. `users` are the pods that run, by uid.
pub fn effects(
    rule: &DeviceTaintRule,
    slices: &[ResourceSlice],
    claims: &[ResourceClaim],
    users: &HashMap<String, Key>,
    now: Timestamp,
) -> Effects {
    let mut alone = rule.clone();
    alone.spec.taint.effect = NO_EXECUTE.into();
    let rules = [alone];
    let taints = Taints::of(&[], &rules);
    let mut effects = Effects {
        published: Taints::of(slices, &rules).published(rule),
        ..Effects::default()
    };
    for claim in claims {
        let selected = devices(claim)
            .iter()
            .filter(|d| !taints.driving(d).is_empty());
        effects.allocated += selected.count();
        if due(claim, &taints, now).at.is_none() {
            continue;
        }
        let reserved = claim.status.as_ref().and_then(|s| s.reserved_for.as_ref());
        for user in reserved.into_iter().flatten() {
            if let Some(key) = users.get(&user.uid) {
                let pods = effects.pods.entry(key.namespace.to_string()).or_default();
                pods.insert(user.uid.clone());
            }
        }
    }
    effects
}

/// Status, reason and message of the condition of a rule.
pub fn told(effect: &str, effects: &Effects, evicted: usize) -> (bool, &'static str, String) {
    let many = |count: usize, one: &str, more: &str| match count {
        1 => format!("1 {one}"),
        count => format!("{count} {more}"),
    };
    let pods: usize = effects.pods.values().map(BTreeSet::len).sum();
    let places = many(effects.pods.len(), "namespace", "different namespaces");
    let (status, reason, mut message) = match effect {
        NO_EXECUTE if pods > 0 => {
            let pods = many(pods, "pod needs", "pods need");
            let message = format!("{pods} to be evicted in {places}.");
            (true, "PodsPendingEviction", message)
        }
        NO_EXECUTE if evicted > 0 => (false, "Completed", String::new()),
        NO_EXECUTE => (false, "NotStarted", String::new()),
        "None" => {
            let published = many(effects.published, "published device", "published devices");
            let allocated = many(effects.allocated, "allocated device", "allocated devices");
            let pods = many(pods, "pod", "pods");
            let message = format!(
                "{published} selected. {allocated} selected. {pods} would be evicted in {places} if the effect was NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to trigger an update."
            );
            (false, "NoEffect", message)
        }
        _ => {
            let message = "Eviction only happens for the NoExecute effect.".to_owned();
            (false, "OtherEffect", message)
        }
    };
    if evicted > 0 {
        let start = if message.is_empty() { "" } else { " " };
        let pods = many(evicted, "pod", "pods");
        message += &format!("{start}{pods} evicted since starting the controller.");
    }
    (status, reason, message)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn taint(effect: &str) -> Value {
        json!({"key": "k", "value": "v", "effect": effect, "timeAdded": at(100).to_string()})
    }

    fn slice(generation: i64, taints: Value) -> ResourceSlice {
        serde_json::from_value(json!({"metadata": {}, "spec": {"driver": "d",
            "pool": {"name": "p", "generation": generation, "resourceSliceCount": 1},
            "devices": [{"name": "gpu", "taints": taints}]}}))
        .unwrap()
    }

    fn rule(selector: Value, effect: &str) -> DeviceTaintRule {
        serde_json::from_value(json!({"metadata": {"uid": "r"},
            "spec": {"deviceSelector": selector, "taint": taint(effect)}}))
        .unwrap()
    }

    fn claim(tolerations: Value) -> ResourceClaim {
        serde_json::from_value(
            json!({"metadata": {"name": "c", "namespace": "n"}, "spec": {},
            "status": {"reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}],
                "allocation": {"devices": {"results": [{"request": "one", "driver": "d",
                    "pool": "p", "device": "gpu", "tolerations": tolerations}]}}}}),
        )
        .unwrap()
    }

    #[test]
    fn pods_go_when_a_device_has_a_taint_that_is_not_tolerated() {
        let tolerates = |seconds: Value| json!([{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]);
        let none = json!([]);
        let (hard, soft) = (json!([taint("NoExecute")]), json!([taint("NoSchedule")]));
        for (slices, rules, tolerations, expected) in [
            (
                vec![slice(1, hard.clone())],
                vec![],
                none.clone(),
                Some(100),
            ),
            (vec![slice(1, soft)], vec![], none.clone(), None),
            (
                vec![slice(1, hard.clone()), slice(2, none.clone())],
                vec![],
                none.clone(),
                None,
            ),
            (
                vec![slice(1, hard.clone())],
                vec![],
                tolerates(Value::Null),
                None,
            ),
            (
                vec![slice(1, hard.clone())],
                vec![],
                tolerates(json!(60)),
                Some(160),
            ),
            (
                vec![slice(1, hard.clone())],
                vec![],
                tolerates(json!(-5)),
                Some(100),
            ),
            (
                vec![slice(1, hard)],
                vec![],
                json!([{"operator": "Exists", "tolerationSeconds": 60}]),
                None,
            ),
            (
                vec![],
                vec![rule(json!({"driver": "d"}), "NoExecute")],
                none.clone(),
                Some(100),
            ),
            (
                vec![],
                vec![rule(json!({}), "NoExecute")],
                none.clone(),
                Some(100),
            ),
            (
                vec![],
                vec![rule(Value::Null, "NoExecute")],
                none.clone(),
                None,
            ),
            (
                vec![],
                vec![rule(json!({"device": "x"}), "NoExecute")],
                none.clone(),
                None,
            ),
            (
                vec![],
                vec![rule(json!({"driver": "d"}), "None")],
                none,
                None,
            ),
        ] {
            let taints = Taints::of(&slices, &rules);
            let found = due(&claim(tolerations.clone()), &taints, at(500));
            assert_eq!(
                found.at,
                expected.map(at),
                "{slices:?} {rules:?} {tolerations}"
            );
            assert_eq!(
                found.rules.is_empty(),
                rules.is_empty() || expected.is_none()
            );
        }
    }

    #[test]
    fn rules_say_what_they_do() {
        let users = HashMap::from([("u".to_owned(), Key::new("n", "p"))]);
        let slices = [slice(1, json!([]))];
        let claims = [claim(json!([]))];
        let tell = |rule: &DeviceTaintRule, users: &HashMap<String, Key>, evicted: usize| {
            let effects = effects(rule, &slices, &claims, users, at(500));
            told(&rule.spec.taint.effect, &effects, evicted)
        };
        let all = json!({"driver": "d"});
        let nobody = HashMap::new();
        let text = |t: &str| t.to_owned();
        for (effect, users, evicted, expected) in [
            (
                "NoExecute",
                &users,
                0,
                (
                    true,
                    "PodsPendingEviction",
                    text("1 pod needs to be evicted in 1 namespace."),
                ),
            ),
            ("NoExecute", &nobody, 0, (false, "NotStarted", text(""))),
            (
                "NoExecute",
                &nobody,
                2,
                (
                    false,
                    "Completed",
                    text("2 pods evicted since starting the controller."),
                ),
            ),
            (
                "NoSchedule",
                &users,
                0,
                (
                    false,
                    "OtherEffect",
                    text("Eviction only happens for the NoExecute effect."),
                ),
            ),
            (
                "None",
                &users,
                0,
                (
                    false,
                    "NoEffect",
                    text(
                        "1 published device selected. 1 allocated device selected. 1 pod would be evicted in 1 namespace if the effect was NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to trigger an update.",
                    ),
                ),
            ),
        ] {
            assert_eq!(
                tell(&rule(all.clone(), effect), users, evicted),
                expected,
                "{effect}"
            );
        }
    }
}
