//! The scale of whatever has one.

use client::{Client, Error, Resource};
use serde_json::{Value, json};

use super::judge::words;

/// How many replicas there are and shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scale {
    /// The uid of whatever is scaled.
    pub uid: String,
    /// Asked for.
    pub wanted: i32,
    /// There.
    pub present: i32,
    /// Which pods they are, as it stands in URLs.
    pub selector: String,
}

/// A resource as the metrics APIs name it too.
pub struct Named(Resource);

impl Named {
    /// `services`, or `deployments.apps`.
    pub fn qualified(&self) -> String {
        let Resource { group, plural, .. } = &self.0;
        if group.is_empty() {
            plural.clone()
        } else {
            format!("{plural}.{group}")
        }
    }

    fn path(&self, namespace: &str, name: &str) -> String {
        format!("{}/{name}/scale", self.0.path(namespace))
    }
}

/// The resource of a kind: known, or as the server says.
pub async fn resource_of(client: &Client, version: &str, kind: &str) -> Result<Named, String> {
    let (group, number) = version.split_once('/').unwrap_or(("", version));
    let named = |plural: &str| {
        Named(Resource {
            group: group.to_owned(),
            version: number.to_owned(),
            plural: plural.to_owned(),
        })
    };
    if let Some(known) = api::kind_by_gvk(group, number, kind) {
        return Ok(named(&known.resource));
    }
    let list = if group.is_empty() {
        client.list_core_api_resources(number).await
    } else {
        client.list_api_group_resources(version).await
    };
    let served = match list {
        Ok(list) => list.resources,
        // Nothing of this version is served.
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(error) => return Err(words(error)),
    };
    let found = served
        .iter()
        .find(|r| r.kind == kind && !r.name.contains('/'));
    found
        .map(|r| named(&r.name))
        .ok_or_else(|| format!("no matches for kind {kind:?} in group {group:?}"))
}

/// The present scale.
pub async fn get(
    client: &Client,
    resource: &Named,
    namespace: &str,
    name: &str,
) -> Result<Scale, String> {
    let request = http::Request::get(resource.path(namespace, name))
        .body(Vec::new())
        .map_err(|e| e.to_string())?;
    let scale: Value = client.request(request).await.map_err(words)?;
    Ok(read(&scale))
}

fn read(scale: &Value) -> Scale {
    let number = |value: &Value| {
        let n = value.as_i64().unwrap_or(0);
        i32::try_from(n).unwrap_or(i32::MAX)
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Scale {
        uid: text(&scale["metadata"]["uid"]),
        wanted: number(&scale["spec"]["replicas"]),
        present: number(&scale["status"]["replicas"]),
        selector: text(&scale["status"]["selector"]),
    }
}

/// Asks for so many replicas.
pub async fn set(
    client: &Client,
    resource: &Named,
    namespace: &str,
    name: &str,
    replicas: i32,
) -> Result<(), Error> {
    let patch = json!({"spec": {"replicas": replicas}}).to_string();
    let request = http::Request::patch(resource.path(namespace, name))
        .header("content-type", "application/merge-patch+json")
        .body(patch.into_bytes())
        .map_err(|e| Error::Other(e.to_string()))?;
    let _: Value = client.request(request).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_read() {
        let scale = json!({"metadata": {"uid": "u"}, "spec": {"replicas": 3}, "status": {"replicas": 2, "selector": "a=b"}});
        let expected = Scale {
            uid: "u".into(),
            wanted: 3,
            present: 2,
            selector: "a=b".into(),
        };
        assert_eq!(read(&scale), expected);
        assert_eq!(read(&json!({})).wanted, 0);
    }
}
