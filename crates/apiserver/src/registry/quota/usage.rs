//! What objects use, under the keys that quotas limit. Pure.

use std::collections::{BTreeMap, BTreeSet};

use api::{Kind, Quantity, meta, storage_class};
use serde_json::Value;

/// Amounts by quota key, such as `pods` or `requests.cpu`.
pub(super) type Amounts = BTreeMap<String, Quantity>;

/// Resources counted under their plain names, from before `count/` existed.
pub(super) const PLAIN: [&str; 7] = [
    "pods",
    "services",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "resourcequotas",
];
/// Resources whose requests may be named without `requests.`, and whose limits count.
const COMPUTE: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
const HUGE_PAGES: &str = "hugepages-";
/// Keys that every container of a pod must set when a quota limits them, sorted.
const REQUIRED: [&str; 6] = [
    "cpu",
    "limits.cpu",
    "limits.memory",
    "memory",
    "requests.cpu",
    "requests.memory",
];
/// What follows the name of a class of devices in the key that counts devices of it.
pub(super) const DEVICES: &str = ".deviceclass.resource.k8s.io/devices";
/// Most devices that can be allocated for one claim: what `All` may come to.
const DEVICES_MAX: i64 = 32;

fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(s) => s.parse().ok(),
        Value::Number(n) => n.to_string().parse().ok(),
        _ => None,
    }
}

/// The amounts of a list of resources.
pub(super) fn amounts(value: Option<&Value>) -> Amounts {
    let entries = value.and_then(Value::as_object).into_iter().flatten();
    entries
        .filter_map(|(k, v)| Some((k.clone(), quantity(v)?)))
        .collect()
}

fn add(into: &mut Amounts, key: impl Into<String>, amount: Quantity) {
    *into.entry(key.into()).or_default() += amount;
}

fn add_all(into: &mut Amounts, amounts: &Amounts) {
    for (key, amount) in amounts {
        add(into, key.as_str(), *amount);
    }
}

fn raise(into: &mut Amounts, amounts: &Amounts) {
    for (key, amount) in amounts {
        let most = into.entry(key.clone()).or_default();
        *most = (*most).max(*amount);
    }
}

fn count(number: usize) -> Quantity {
    Quantity::from_int(i64::try_from(number).unwrap_or(i64::MAX))
}

/// What an object uses, under every key a quota may limit.
pub(super) fn of(kind: &Kind, object: &Value) -> Amounts {
    let mut used = Amounts::new();
    let name = format!("count/{}", kind.qualified_resource());
    add(&mut used, name, count(1));
    match (kind.group.as_str(), kind.resource.as_str()) {
        ("", "pods") => of_pod(object, &mut used),
        ("", "services") => of_service(object, &mut used),
        ("", "persistentvolumeclaims") => of_claim(object, &mut used),
        ("", plain) if PLAIN.contains(&plain) => add(&mut used, plain, count(1)),
        ("resource.k8s.io", "resourceclaims") => of_devices(object, &mut used),
        _ => {}
    }
    used
}

/// By what is asked for: node ports may not be allocated yet.
fn of_service(service: &Value, used: &mut Amounts) {
    add(used, "services", count(1));
    let ports = meta::list_at(service, &["spec", "ports"]);
    let given = |p: &&Value| meta::int_at(p, &["nodePort"]).is_some_and(|p| p != 0);
    let allocates = meta::get(service, &["spec", "allocateLoadBalancerNodePorts"]);
    let node_ports = match meta::str_at(service, &["spec", "type"]) {
        "NodePort" => ports.len(),
        "LoadBalancer" if allocates == Some(&Value::Bool(false)) => {
            ports.iter().filter(given).count()
        }
        "LoadBalancer" => ports.len(),
        _ => return,
    };
    add(used, "services.nodeports", count(node_ports));
    if meta::str_at(service, &["spec", "type"]) == "LoadBalancer" {
        add(used, "services.loadbalancers", count(1));
    }
}

fn of_claim(claim: &Value, used: &mut Amounts) {
    add(used, "persistentvolumeclaims", count(1));
    let class = storage_class::of(claim);
    let prefix = format!("{class}.storageclass.storage.k8s.io");
    if !class.is_empty() {
        add(used, format!("{prefix}/persistentvolumeclaims"), count(1));
    }
    let asked = meta::get(claim, &["spec", "resources", "requests", "storage"]).and_then(quantity);
    // More than is asked for may be there, if a growth was given up.
    let given = meta::get(claim, &["status", "allocatedResources", "storage"]).and_then(quantity);
    if let Some(size) = asked.map(|asked| given.map_or(asked, |given| asked.max(given))) {
        let size = Quantity::from_int(size.value());
        add(used, "requests.storage", size);
        if !class.is_empty() {
            add(used, format!("{prefix}/requests.storage"), size);
        }
    }
}

/// The most devices of each class that a claim may be allocated.
fn of_devices(claim: &Value, used: &mut Amounts) {
    let devices = |request: &Value| {
        let number = match meta::str_at(request, &["allocationMode"]) {
            "ExactCount" => meta::int_at(request, &["count"]).unwrap_or(0),
            "All" => DEVICES_MAX,
            _ => 0,
        };
        let class = meta::str_at(request, &["deviceClassName"]);
        (format!("{class}{DEVICES}"), Quantity::from_int(number))
    };
    for request in meta::list_at(claim, &["spec", "devices", "requests"]) {
        let mut most = Amounts::new();
        let exactly = request.get("exactly").into_iter();
        for choice in exactly.chain(meta::list_at(request, &["firstAvailable"])) {
            raise(&mut most, &Amounts::from([devices(choice)]));
        }
        add_all(used, &most);
    }
}

fn of_pod(pod: &Value, used: &mut Amounts) {
    let phase = meta::str_at(pod, &["status", "phase"]);
    if matches!(phase, "Succeeded" | "Failed") {
        return;
    }
    add(used, "pods", count(1));
    for (resource, amount) in pod_amounts(pod, "requests") {
        let compute = COMPUTE.contains(&resource.as_str());
        if compute || resource.starts_with(HUGE_PAGES) {
            add(used, resource.as_str(), amount);
        }
        add(used, format!("requests.{resource}"), amount);
    }
    for (resource, amount) in pod_amounts(pod, "limits") {
        if COMPUTE.contains(&resource.as_str()) {
            add(used, format!("limits.{resource}"), amount);
        }
    }
}

/// Requests or limits of a pod: what it says for the whole of it, or its containers together.
fn pod_amounts(pod: &Value, field: &str) -> Amounts {
    let asked = |container: &Value| amounts(meta::get(container, &["resources", field]));
    let mut total = Amounts::new();
    let refused = is_resize_refused(pod);
    if !refused {
        raise(&mut total, &together(pod, asked));
    }
    // What containers have while they are resized, or are promised, counts as well.
    for look in [actuated, promised] {
        let has = |container: &Value| {
            let status = status_of(pod, meta::str_at(container, &["name"]));
            let known = status.and_then(|status| look(status, field));
            match known {
                Some(list) => amounts(Some(list)),
                None if refused => Amounts::new(),
                None => asked(container),
            }
        };
        raise(&mut total, &together(pod, has));
    }
    for (resource, amount) in amounts(meta::get(pod, &["spec", "resources", field])) {
        if resource == "cpu" || resource == "memory" || resource.starts_with(HUGE_PAGES) {
            total.insert(resource, amount);
        }
    }
    for (resource, amount) in amounts(meta::get(pod, &["spec", "overhead"])) {
        let limited = total.get(&resource).is_some_and(|limit| !limit.is_zero());
        if field == "requests" || limited {
            add(&mut total, resource, amount);
        }
    }
    total
}

fn actuated<'a>(status: &'a Value, field: &str) -> Option<&'a Value> {
    let list = meta::get(status, &["resources", field]);
    list.or_else(|| promised(status, field))
}

fn promised<'a>(status: &'a Value, field: &str) -> Option<&'a Value> {
    let list = status.get("allocatedResources");
    list.filter(|_| field == "requests")
}

fn is_resize_refused(pod: &Value) -> bool {
    let mut conditions = meta::list_at(pod, &["status", "conditions"]).iter();
    let pending = conditions.find(|c| c["type"] == "PodResizePending");
    pending.is_some_and(|c| c["reason"] == "Infeasible")
}

fn status_of<'a>(pod: &'a Value, container: &str) -> Option<&'a Value> {
    let lists = ["containerStatuses", "initContainerStatuses"];
    let mut all = lists
        .into_iter()
        .flat_map(|list| meta::list_at(pod, &["status", list]));
    all.find(|s| s["name"] == container)
}

/// Containers and those that run beside them, or one that runs before them, if that is more, with those that
/// run by then.
fn together(pod: &Value, of: impl Fn(&Value) -> Amounts) -> Amounts {
    let (mut total, mut beside, mut before) = (Amounts::new(), Amounts::new(), Amounts::new());
    for container in meta::list_at(pod, &["spec", "containers"]) {
        add_all(&mut total, &of(container));
    }
    for container in meta::list_at(pod, &["spec", "initContainers"]) {
        let mut now = of(container);
        if meta::str_at(container, &["restartPolicy"]) == "Always" {
            add_all(&mut total, &now);
            add_all(&mut beside, &now);
        } else {
            add_all(&mut now, &beside);
            raise(&mut before, &now);
        }
    }
    raise(&mut total, &before);
    total
}

/// Whether a pod says what it needs as a whole.
fn says_for_all(pod: &Value) -> bool {
    let supported =
        |name: &&String| matches!(name.as_str(), "cpu" | "memory") || name.starts_with(HUGE_PAGES);
    ["requests", "limits"].iter().any(|field| {
        let list = meta::get(pod, &["spec", "resources", field]).and_then(Value::as_object);
        list.is_some_and(|list| list.keys().any(|name| supported(&name)))
    })
}

/// What containers leave out although a quota limits it, as upstream says it; empty when nothing is.
pub(super) fn unset(pod: &Value, hard: &Amounts) -> String {
    if says_for_all(pod) {
        return String::new();
    }
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
            let names: Vec<&str> = names.into_iter().collect();
            parts.push(format!("{key} for: {}", names.join(",")));
        }
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What an object uses beside itself.
    fn used(group: &str, resource: &str, object: &Value) -> BTreeMap<String, String> {
        let kind = api::kind(group, "v1", resource).unwrap();
        let mut used = of(kind, object);
        let own = format!("count/{}", kind.qualified_resource());
        assert_eq!(used.remove(&own), Some(count(1)));
        let shown = used.into_iter().map(|(k, v)| (k, v.to_string()));
        shown.collect()
    }

    fn expected<const N: usize>(all: [(&str, &str); N]) -> BTreeMap<String, String> {
        all.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }

    fn container(name: &str, requests: Value) -> Value {
        json!({"name": name, "resources": {"requests": requests}})
    }

    #[test]
    fn those_that_run_before_count_with_those_that_run_by_then() {
        let mut mesh = container("mesh", json!({"cpu": "1"}));
        mesh["restartPolicy"] = "Always".into();
        let late = container("late", json!({"cpu": "4"}));
        let early = container("early", json!({"cpu": "4500m"}));
        let own = container("own", json!({"cpu": "2"}));
        for (init, cpu) in [
            (vec![], "2"),
            (vec![&mesh], "3"),
            (vec![&mesh, &late], "5"),
            (vec![&late, &mesh], "4"),
            (vec![&early, &mesh, &late], "5"),
        ] {
            let pod = json!({"spec": {"containers": [own], "initContainers": init}});
            let all = expected([("pods", "1"), ("cpu", cpu), ("requests.cpu", cpu)]);
            assert_eq!(used("", "pods", &pod), all, "{init:?}");
        }
    }

    #[test]
    fn a_pod_uses_what_it_asks_for_as_a_whole_and_what_it_still_has() {
        let own = json!({"name": "c", "resources": {
            "requests": {"cpu": "1", "hugepages-2Mi": "4Mi", "a.io/gpu": "1"},
            "limits": {"cpu": "2", "hugepages-2Mi": "4Mi", "a.io/gpu": "1"}}});
        let mut pod =
            json!({"spec": {"containers": [own], "overhead": {"cpu": "100m", "memory": "1Mi"}}});
        let mut all = expected([
            ("pods", "1"),
            ("cpu", "1100m"),
            ("requests.cpu", "1100m"),
            ("limits.cpu", "2100m"),
            ("memory", "1Mi"),
            ("requests.memory", "1Mi"),
            ("hugepages-2Mi", "4Mi"),
            ("requests.hugepages-2Mi", "4Mi"),
            ("requests.a.io/gpu", "1"),
        ]);
        assert_eq!(used("", "pods", &pod), all);
        let has = json!({"name": "c", "allocatedResources": {"cpu": "1"},
            "resources": {"requests": {"cpu": "3"}}});
        pod["status"] = json!({"containerStatuses": [has]});
        for key in ["cpu", "requests.cpu"] {
            all.insert(key.to_owned(), "3100m".to_owned());
        }
        assert_eq!(used("", "pods", &pod), all);
        pod["spec"]["resources"] = json!({"requests": {"cpu": "5", "a.io/gpu": "7"}});
        for key in ["cpu", "requests.cpu"] {
            all.insert(key.to_owned(), "5100m".to_owned());
        }
        assert_eq!(used("", "pods", &pod), all);
        pod["status"]["phase"] = "Failed".into();
        assert_eq!(used("", "pods", &pod), expected([]));
    }

    #[test]
    fn containers_have_to_say_what_is_limited_unless_the_pod_does() {
        let hard = amounts(Some(
            &json!({"limits.cpu": "1", "memory": "1Gi", "pods": "1"}),
        ));
        let mut pod = json!({"spec": {"containers": [{"name": "b"}, {"name": "a"}]}});
        assert_eq!(unset(&pod, &hard), "limits.cpu for: a,b; memory for: a,b");
        pod["spec"]["resources"] = json!({"limits": {"cpu": "1"}});
        assert_eq!(unset(&pod, &hard), "");
    }

    #[test]
    fn services_use_the_node_ports_that_they_ask_for() {
        let ports = json!([{"port": 1}, {"port": 2, "nodePort": 30000}]);
        for (kind, allocates, node_ports) in [
            ("ClusterIP", Value::Null, None),
            ("NodePort", Value::Null, Some("2")),
            ("LoadBalancer", Value::Null, Some("2")),
            ("LoadBalancer", json!(true), Some("2")),
            ("LoadBalancer", json!(false), Some("1")),
        ] {
            let service = json!({"spec": {"type": kind, "ports": ports,
                "allocateLoadBalancerNodePorts": allocates}});
            let used = used("", "services", &service);
            let found = used.get("services.nodeports").map(String::as_str);
            assert_eq!(found, node_ports, "{kind} {allocates}");
            let balanced = used.contains_key("services.loadbalancers");
            assert_eq!(balanced, kind == "LoadBalancer");
        }
    }

    #[test]
    fn claims_use_what_they_ask_for_or_still_have() {
        let claim = json!({"metadata": {"annotations": {(storage_class::ANNOTATION): "gold"}},
            "spec": {"resources": {"requests": {"storage": "1500m"}}},
            "status": {"allocatedResources": {"storage": "1"}}});
        let mut all = expected([
            ("persistentvolumeclaims", "1"),
            (
                "gold.storageclass.storage.k8s.io/persistentvolumeclaims",
                "1",
            ),
            ("requests.storage", "2"),
            ("gold.storageclass.storage.k8s.io/requests.storage", "2"),
        ]);
        assert_eq!(used("", "persistentvolumeclaims", &claim), all);
        let mut given = claim.clone();
        given["status"]["allocatedResources"]["storage"] = "5".into();
        all.values_mut()
            .filter(|v| *v == "2")
            .for_each(|v| *v = "5".into());
        assert_eq!(used("", "persistentvolumeclaims", &given), all);
    }

    #[test]
    fn devices_count_at_their_most() {
        let exactly = |class: &str, count: i64| json!({"deviceClassName": class, "allocationMode": "ExactCount", "count": count});
        let all = json!({"deviceClassName": "b", "allocationMode": "All"});
        let claim = json!({"spec": {"devices": {"requests": [
            {"name": "r", "exactly": exactly("a", 2)},
            {"name": "s", "exactly": all},
            {"name": "t", "firstAvailable": [exactly("a", 1), exactly("a", 3), exactly("b", 1)]},
        ]}}});
        let found = used("resource.k8s.io", "resourceclaims", &claim);
        let a = "a.deviceclass.resource.k8s.io/devices";
        let b = "b.deviceclass.resource.k8s.io/devices";
        assert_eq!(found, expected([(a, "5"), (b, "33")]));
    }
}
