//! What other API servers serve, told together with what this one serves.

use api::meta;
use serde_json::{Map, Value, json};

use super::{Remote, Routes};

fn version_entry(remote: &Remote) -> Value {
    json!({"groupVersion": format!("{}/{}", remote.group, remote.version), "version": remote.version})
}

fn has_version(versions: &Value, version: &str) -> bool {
    versions
        .as_array()
        .into_iter()
        .flatten()
        .any(|v| v["version"] == version)
}

/// Adds a version to the body of a group.
fn join(group: &mut Value, remote: &Remote) {
    if has_version(&group["versions"], &remote.version) {
        return;
    }
    if let Some(versions) = group["versions"].as_array_mut() {
        versions.push(version_entry(remote));
    }
}

fn group_of(remote: &Remote) -> Value {
    let entry = version_entry(remote);
    json!({"name": remote.group, "versions": [entry], "preferredVersion": entry})
}

/// Adds the groups of other servers to an APIGroupList.
pub(crate) fn merge_list(list: &mut Value, routes: &Routes) {
    let Some(groups) = list["groups"].as_array_mut() else {
        return;
    };
    for remote in routes.all() {
        match groups.iter_mut().find(|g| g["name"] == *remote.group) {
            Some(group) => join(group, remote),
            None => groups.push(group_of(remote)),
        }
    }
}

/// Adds the versions of other servers to an APIGroup, which may be theirs alone.
pub(crate) fn merge_group(found: Option<Value>, name: &str, routes: &Routes) -> Option<Value> {
    routes
        .all()
        .filter(|r| r.group == name)
        .fold(found, |found, remote| {
            let mut group = found.unwrap_or_else(|| {
                let mut alone = json!({"kind": "APIGroup", "apiVersion": "v1"});
                if let (Value::Object(out), Value::Object(body)) = (&mut alone, group_of(remote)) {
                    out.extend(body);
                }
                alone
            });
            join(&mut group, remote);
            Some(group)
        })
}

/// Adds the resources of other servers to an APIGroupDiscoveryList.
pub(crate) fn merge_aggregated(list: &mut Value, routes: &Routes) {
    let Some(items) = list["items"].as_array_mut() else {
        return;
    };
    for remote in routes.all() {
        let version = json!({
            "version": remote.version,
            "freshness": if remote.available { "Current" } else { "Stale" },
            "resources": aggregated(remote),
        });
        let found = items
            .iter_mut()
            .find(|i| i["metadata"]["name"] == *remote.group);
        match found {
            Some(item) if has_version(&item["versions"], &remote.version) => {}
            Some(item) => {
                if let Some(versions) = item["versions"].as_array_mut() {
                    versions.push(version);
                }
            }
            None => items.push(json!({"metadata": {"name": remote.group}, "versions": [version]})),
        }
    }
}

/// The resources of an APIResourceList in their aggregated form.
fn aggregated(remote: &Remote) -> Vec<Value> {
    let listed = remote.resources.as_ref();
    let entries = listed.map_or(&[][..], |l| meta::list_at(l, &["resources"]));
    let mut out: Vec<Map<String, Value>> = Vec::new();
    for entry in entries {
        let name = meta::str_at(entry, &["name"]);
        let or = |field: &str, fallback: &str| -> Value {
            match meta::str_at(entry, &[field]) {
                "" => fallback.into(),
                text => text.into(),
            }
        };
        let mut made = Map::new();
        let kind = json!({"group": or("group", &remote.group), "version": or("version", &remote.version), "kind": entry["kind"]});
        made.insert("responseKind".into(), kind);
        made.insert("verbs".into(), entry["verbs"].clone());
        if let Some((resource, sub)) = name.split_once('/') {
            made.insert("subresource".into(), sub.into());
            let parent = out.iter_mut().find(|r| r["resource"] == resource);
            let subs = parent.map(|p| p.entry("subresources").or_insert_with(|| json!([])));
            if let Some(Value::Array(subs)) = subs {
                subs.push(Value::Object(made));
            }
            continue;
        }
        made.insert("resource".into(), name.into());
        let namespaced = meta::bool_at(entry, &["namespaced"]);
        let scope = if namespaced { "Namespaced" } else { "Cluster" };
        made.insert("scope".into(), scope.into());
        made.insert("singularResource".into(), entry["singularName"].clone());
        for field in ["shortNames", "categories"] {
            if let Some(list) = entry.get(field) {
                made.insert(field.into(), list.clone());
            }
        }
        out.push(made);
    }
    out.into_iter().map(Value::Object).collect()
}

/// Adds the documents of other servers to the index of OpenAPI v3.
pub(crate) fn merge_openapi(index: &mut Value, routes: &Routes) {
    let Some(paths) = index["paths"].as_object_mut() else {
        return;
    };
    for remote in routes.all().filter(|r| r.available) {
        let path = format!("apis/{}/{}", remote.group, remote.version);
        let url = format!("/openapi/v3/{path}");
        paths
            .entry(path)
            .or_insert_with(|| json!({"serverRelativeURL": url}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes() -> Routes {
        let service = json!({"metadata": {"name": "v1.m.io"}, "spec": {"group": "m.io", "version": "v1",
            "service": {"namespace": "n", "name": "s", "port": 443}}});
        let mut remote = Remote::of(&service, None).unwrap();
        remote.available = true;
        remote.resources = Some(json!({"resources": [
            {"name": "nodes", "singularName": "", "namespaced": false, "kind": "NodeMetrics", "verbs": ["get"], "shortNames": ["nm"]},
            {"name": "nodes/status", "kind": "NodeMetrics", "verbs": ["get"]},
        ]}));
        Routes::new(vec![remote])
    }

    #[test]
    fn groups_are_joined() {
        let mut list = json!({"groups": [{"name": "apps", "versions": []}]});
        merge_list(&mut list, &routes());
        assert_eq!(
            list["groups"][1]["preferredVersion"]["groupVersion"],
            "m.io/v1"
        );
        let alone = merge_group(None, "m.io", &routes()).unwrap();
        assert_eq!(alone["versions"].as_array().unwrap().len(), 1);
        assert!(merge_group(None, "n.io", &routes()).is_none());
        let other = json!({"name": "m.io", "versions": [{"version": "v2"}]});
        let both = merge_group(Some(other), "m.io", &routes()).unwrap();
        assert_eq!(both["versions"][1]["version"], "v1");
        let mut items = json!({"items": []});
        merge_aggregated(&mut items, &routes());
        let version = &items["items"][0]["versions"][0];
        assert_eq!(version["freshness"], "Current");
        assert_eq!(version["resources"][0]["scope"], "Cluster");
        assert_eq!(
            version["resources"][0]["subresources"][0]["subresource"],
            "status"
        );
        let mut index = json!({"paths": {}});
        merge_openapi(&mut index, &routes());
        assert!(index["paths"]["apis/m.io/v1"].is_object());
    }
}
