//! Discovery documents: which groups, versions and resources a server has.
//!
//! Made from a list of kinds, so that custom kinds take part like built-in ones. Groups and versions
//! come in the order of the list, the first version of a group being the preferred one.

use serde_json::{Value, json};

use crate::kind::{Kind, join_group_version};

/// `/api`: versions of the core group. `server` is `host:port`, as clients reach it.
pub fn api_versions(server: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server}],
    })
}

/// `/apis`: every group but the core one.
pub fn group_list<'a>(kinds: impl IntoIterator<Item = &'a Kind>) -> Value {
    let groups: Vec<Value> = groups(kinds)
        .iter()
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, versions)| {
            group_body(name, &versions.iter().map(|(v, _)| *v).collect::<Vec<_>>())
        })
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`: one group; `None` if no kind is in it.
pub fn group<'a>(kinds: impl IntoIterator<Item = &'a Kind>, name: &str) -> Option<Value> {
    let all = groups(kinds);
    let (_, versions) = all.iter().find(|(n, _)| *n == name && !n.is_empty())?;
    let mut body = json!({"kind": "APIGroup", "apiVersion": "v1"});
    let rest = group_body(name, &versions.iter().map(|(v, _)| *v).collect::<Vec<_>>());
    if let (Value::Object(out), Value::Object(rest)) = (&mut body, rest) {
        out.extend(rest);
    }
    Some(body)
}

fn group_body(name: &str, versions: &[&str]) -> Value {
    let entry = |v: &&str| json!({"groupVersion": join_group_version(name, v), "version": v});
    json!({
        "name": name,
        "versions": versions.iter().map(entry).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(entry),
    })
}

type Versions<'a> = Vec<(&'a str, Vec<&'a Kind>)>;

fn groups<'a>(kinds: impl IntoIterator<Item = &'a Kind>) -> Vec<(&'a str, Versions<'a>)> {
    let mut out: Vec<(&str, Versions<'_>)> = Vec::new();
    for kind in kinds {
        let group = match out.iter().position(|(name, _)| *name == kind.group) {
            Some(i) => i,
            None => {
                out.push((&kind.group, Vec::new()));
                out.len() - 1
            }
        };
        let versions = &mut out[group].1;
        match versions.iter_mut().find(|(v, _)| *v == kind.version) {
            Some((_, list)) => list.push(kind),
            None => versions.push((&kind.version, vec![kind])),
        }
    }
    out
}

/// `/api/v1` or `/apis/<group>/<version>`: the resources of one version; `None` if no kind is in it.
pub fn resource_list<'a>(
    kinds: impl IntoIterator<Item = &'a Kind>,
    group: &str,
    version: &str,
) -> Option<Value> {
    let mut resources = Vec::new();
    let mut found = false;
    for kind in kinds
        .into_iter()
        .filter(|k| k.group == group && k.version == version)
    {
        found = true;
        push_resource(kind, &mut resources);
    }
    found.then(|| {
        json!({
            "kind": "APIResourceList", "apiVersion": "v1",
            "groupVersion": join_group_version(group, version), "resources": resources,
        })
    })
}

fn push_resource(kind: &Kind, out: &mut Vec<Value>) {
    let mut entry = json!({
        "name": kind.resource, "singularName": kind.singular, "namespaced": kind.namespaced,
        "kind": kind.kind, "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        entry["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        entry["categories"] = json!(kind.categories);
    }
    if !kind.storage_version_hash.is_empty() {
        entry["storageVersionHash"] = json!(kind.storage_version_hash);
    }
    out.push(entry);
    for sub in &kind.subresources {
        let mut entry = json!({"name": format!("{}/{}", kind.resource, sub.name), "singularName": "", "namespaced": kind.namespaced});
        if (sub.group.as_str(), sub.version.as_str())
            != (kind.group.as_str(), kind.version.as_str())
        {
            entry["group"] = json!(sub.group);
            entry["version"] = json!(sub.version);
        }
        entry["kind"] = json!(sub.kind);
        entry["verbs"] = json!(sub.verbs);
        out.push(entry);
    }
}

/// Aggregated discovery v2: everything in one document. `core` asks for the core group alone (`/api`),
/// otherwise every other group is listed (`/apis`).
pub fn aggregated_v2<'a>(kinds: impl IntoIterator<Item = &'a Kind>, core: bool) -> Value {
    aggregated(kinds, core, "apidiscovery.k8s.io/v2")
}

/// The same in the version that clients before 1.30 ask for.
pub fn aggregated_v2beta1<'a>(kinds: impl IntoIterator<Item = &'a Kind>, core: bool) -> Value {
    aggregated(kinds, core, "apidiscovery.k8s.io/v2beta1")
}

fn aggregated<'a>(
    kinds: impl IntoIterator<Item = &'a Kind>,
    core: bool,
    api_version: &str,
) -> Value {
    let version = |(version, kinds): &(&str, Vec<&Kind>)| {
        json!({
            "version": version, "freshness": "Current",
            "resources": kinds.iter().map(|k| aggregated_resource(k)).collect::<Vec<_>>(),
        })
    };
    let item = |(name, versions): &(&str, Versions<'_>)| {
        let metadata = if name.is_empty() {
            json!({})
        } else {
            json!({"name": name})
        };
        json!({"metadata": metadata, "versions": versions.iter().map(version).collect::<Vec<_>>()})
    };
    let items: Vec<Value> = groups(kinds)
        .iter()
        .filter(|(name, _)| name.is_empty() == core)
        .map(item)
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": api_version, "metadata": {}, "items": items})
}

fn aggregated_resource(kind: &Kind) -> Value {
    let gvk = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut out = json!({
        "resource": kind.resource,
        "responseKind": gvk(&kind.group, &kind.version, &kind.kind),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        out["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        out["categories"] = json!(kind.categories);
    }
    if !kind.subresources.is_empty() {
        let sub = |s: &crate::Subresource| json!({"subresource": s.name, "responseKind": gvk(&s.group, &s.version, &s.kind), "verbs": s.verbs});
        out["subresources"] = kind.subresources.iter().map(sub).collect();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents() {
        let kinds = crate::kinds();
        let list = group_list(kinds);
        assert_eq!(list["groups"][0]["name"], "apiregistration.k8s.io");
        let autoscaling = group(kinds, "autoscaling").unwrap();
        assert_eq!(
            autoscaling["preferredVersion"]["groupVersion"],
            "autoscaling/v2"
        );
        let core = resource_list(kinds, "", "v1").unwrap();
        let names: Vec<&str> = core["resources"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|r| r["name"].as_str())
            .collect();
        assert!(
            names.contains(&"pods")
                && names.contains(&"pods/log")
                && names.contains(&"services/proxy")
        );
        let v2 = aggregated_v2(kinds, false);
        assert!(
            v2["items"]
                .as_array()
                .unwrap()
                .iter()
                .any(|i| i["metadata"]["name"] == "apps")
        );
        assert_eq!(
            aggregated_v2(kinds, true)["items"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
        assert!(resource_list(kinds, "nope", "v1").is_none());
    }
}
