//! A cluster whose objects are JSON, written and looked at by the paths of their resources, such
//! as `apps/v1/deployments`: a test reads like the manifest it is about.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use anyhow::Context;
use client::{Client, Clock};
use http::{Method, Request};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use testkit::{Cluster, FakeNode, eventually};

/// Where everything is made.
const NAMESPACE: &str = "default";

/// A cluster with nodes that pretend.
pub struct Rig {
    pub cluster: Cluster,
    pub client: Client,
    _nodes: Vec<FakeNode>,
}

/// `apps/v1/deployments` in the namespace of the tests.
fn collection(resource: &str) -> String {
    let (version, plural) = resource.rsplit_once('/').unwrap_or(("v1", resource));
    let root = if version == "v1" { "/api" } else { "/apis" };
    let cluster_wide = [
        "nodes",
        "namespaces",
        "certificatesigningrequests",
        "persistentvolumes",
        "storageclasses",
        "csidrivers",
        "csinodes",
        "volumeattachments",
        "deviceclasses",
        "devicetaintrules",
        "resourceslices",
        "customresourcedefinitions",
        "storageversionmigrations",
    ];
    if cluster_wide.contains(&plural) {
        format!("{root}/{version}/{plural}")
    } else {
        format!("{root}/{version}/namespaces/{NAMESPACE}/{plural}")
    }
}

/// A clock that starts at a time and that the test moves.
#[derive(Clone)]
pub struct Hands(Arc<AtomicI64>);

impl Hands {
    pub fn at(start: &str) -> anyhow::Result<Self> {
        let start: Timestamp = start.parse()?;
        let ahead = start.duration_since(Clock::system().now()).as_millis();
        Ok(Self(Arc::new(AtomicI64::new(i64::try_from(ahead)?))))
    }

    /// What the cluster goes by.
    pub fn clock(&self) -> Clock {
        let (by, machine) = (Arc::clone(&self.0), Clock::system());
        Clock::from_fn(move || {
            machine.now() + SignedDuration::from_millis(by.load(Ordering::Relaxed))
        })
    }

    pub fn advance(&self, seconds: i64) {
        self.0.fetch_add(seconds * 1000, Ordering::Relaxed);
    }
}

impl Rig {
    /// With these nodes.
    pub async fn start(nodes: &[&str]) -> anyhow::Result<Self> {
        Self::on(Cluster::start().await?, nodes).await
    }

    /// With these nodes in a cluster that runs.
    pub async fn on(cluster: Cluster, names: &[&str]) -> anyhow::Result<Self> {
        let mut nodes = Vec::new();
        for name in names {
            nodes.push(cluster.add_node(name).await?);
        }
        let client = cluster.client();
        Ok(Self {
            cluster,
            client,
            _nodes: nodes,
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: Value,
    ) -> kube::Result<Value> {
        let bytes = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind)
            .body(bytes)
            .map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }

    /// Any request with a JSON body.
    pub async fn raw(&self, method: Method, path: &str, body: Value) -> kube::Result<Value> {
        self.send(method, path, "application/json", body).await
    }

    pub async fn create(&self, resource: &str, object: Value) -> anyhow::Result<Value> {
        let made = self
            .raw(Method::POST, &collection(resource), object.clone())
            .await;
        made.with_context(|| format!("creating {object}"))
    }

    pub async fn get(&self, resource: &str, name: &str) -> kube::Result<Value> {
        let path = format!("{}/{name}", collection(resource));
        self.raw(Method::GET, &path, Value::Null).await
    }

    pub async fn list(&self, resource: &str, labels: &str) -> kube::Result<Vec<Value>> {
        let labels = labels.replace('=', "%3D").replace(',', "%2C");
        let path = format!("{}?labelSelector={labels}", collection(resource));
        let mut list = self.raw(Method::GET, &path, Value::Null).await?;
        let items = list["items"].as_array_mut().map(std::mem::take);
        Ok(items.unwrap_or_default())
    }

    pub async fn merge(&self, resource: &str, name: &str, patch: Value) -> kube::Result<Value> {
        let path = format!("{}/{name}", collection(resource));
        self.send(Method::PATCH, &path, "application/merge-patch+json", patch)
            .await
    }

    pub async fn strategic(&self, resource: &str, name: &str, patch: Value) -> kube::Result<Value> {
        let path = format!("{}/{name}", collection(resource));
        let kind = "application/strategic-merge-patch+json";
        self.send(Method::PATCH, &path, kind, patch).await
    }

    pub async fn replace(&self, resource: &str, name: &str, object: Value) -> kube::Result<Value> {
        let path = format!("{}/{name}", collection(resource));
        self.raw(Method::PUT, &path, object).await
    }

    pub async fn delete(&self, resource: &str, name: &str, options: Value) -> kube::Result<Value> {
        let path = format!("{}/{name}", collection(resource));
        self.raw(Method::DELETE, &path, options).await
    }

    /// Deletes all of these labels.
    pub async fn delete_all(&self, resource: &str, labels: &str) -> kube::Result<Value> {
        let labels = labels.replace('=', "%3D");
        let path = format!("{}?labelSelector={labels}", collection(resource));
        let options = json!({"propagationPolicy": "Background"});
        self.raw(Method::DELETE, &path, options).await
    }

    /// What happened to the objects of a resource since a revision: type and object.
    pub async fn happened(
        &self,
        resource: &str,
        since: &Value,
    ) -> anyhow::Result<Vec<(String, Value)>> {
        let since = since["metadata"]["resourceVersion"].as_str().unwrap_or("0");
        let path = format!(
            "{}?watch=true&timeoutSeconds=1&resourceVersion={since}",
            collection(resource)
        );
        let text = self
            .client
            .request_text(Request::get(path).body(Vec::new())?)
            .await?;
        let event = |line: &str| {
            let event: Value = serde_json::from_str(line).ok()?;
            Some((event["type"].as_str()?.to_owned(), event["object"].clone()))
        };
        Ok(text.lines().filter_map(event).collect())
    }

    /// Waits until an object is as told.
    pub async fn until(
        &self,
        resource: &str,
        name: &str,
        what: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let waited = eventually(&format!("{name} {what}"), || async {
            let found = client::write::tolerate_missing(self.get(resource, name).await)?;
            Ok(found.filter(&holds))
        })
        .await;
        if waited.is_err() {
            println!("{:#}", self.get(resource, name).await.unwrap_or_default());
            println!("{}", self.cluster.dump("events/").await);
        }
        waited
    }

    /// Waits until the objects of these labels are as told.
    pub async fn until_all(
        &self,
        resource: &str,
        labels: &str,
        what: &str,
        holds: impl Fn(&[Value]) -> bool,
    ) -> anyhow::Result<Vec<Value>> {
        let waited = eventually(&format!("{resource} {what}"), || async {
            let found = self.list(resource, labels).await?;
            Ok(holds(&found).then_some(found))
        })
        .await;
        if waited.is_err() {
            for one in self.list(resource, labels).await? {
                println!("{one}");
            }
            println!("{}", self.cluster.dump("events/").await);
        }
        waited
    }

    /// Waits until an object is gone.
    pub async fn until_gone(&self, resource: &str, name: &str) -> anyhow::Result<()> {
        eventually(&format!("{name} to be gone"), || async {
            let found = client::write::tolerate_missing(self.get(resource, name).await)?;
            Ok(found.is_none().then_some(()))
        })
        .await
    }

    /// Says of a running pod whether it is ready.
    pub async fn set_ready(&self, pod: &str, ready: bool) -> kube::Result<Value> {
        let status = if ready { "True" } else { "False" };
        let now = api::time::format(client::Clock::system().now());
        let condition =
            |kind: &str| json!({"type": kind, "status": status, "lastTransitionTime": now});
        let patch =
            json!({"status": {"conditions": [condition("Ready"), condition("ContainersReady")]}});
        self.strategic("v1/pods", &format!("{pod}/status"), patch)
            .await
    }

    /// Lets a pod end with an exit code.
    pub async fn end(&self, pod: &str, code: i32) -> anyhow::Result<()> {
        let phase = if code == 0 { "Succeeded" } else { "Failed" };
        let now = api::time::format(client::Clock::system().now());
        let patch = json!({"status": {"phase": phase, "containerStatuses": [{"name": "c",
            "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": code, "finishedAt": now}}}]}});
        let written = self.merge("v1/pods", &format!("{pod}/status"), patch).await;
        client::write::tolerate_missing(written)?;
        Ok(())
    }

    /// Updates and patches a status as the conformance tests do: by a condition of their own.
    pub async fn change_status(&self, resource: &str, name: &str) -> anyhow::Result<()> {
        let status = format!("{name}/status");
        let condition = |kind: &str| {
            json!([{"type": kind, "status": "True", "reason": "E2E", "message": "Set from e2e test",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}])
        };
        let has = |kind: &'static str| {
            move |v: &Value| {
                let all = v["status"]["conditions"].as_array();
                all.is_some_and(|all| {
                    all.iter()
                        .any(|c| c["type"] == kind && c["reason"] == "E2E")
                })
            }
        };
        client::write::retry_on_conflict(|| async {
            let mut object = self.get(resource, &status).await?;
            object["status"]["conditions"] = condition("StatusUpdate");
            self.replace(resource, &status, object).await
        })
        .await?;
        let updated = self
            .until(
                resource,
                name,
                "to have the condition StatusUpdate",
                has("StatusUpdate"),
            )
            .await?;
        let patch = json!({"status": {"conditions": condition("StatusPatched")}});
        self.merge(resource, &status, patch).await?;
        let happened = self.happened(resource, &updated).await?;
        let seen =
            |(kind, object): &(String, Value)| kind == "MODIFIED" && has("StatusPatched")(object);
        anyhow::ensure!(happened.iter().any(seen), "no such event: {happened:?}");
        Ok(())
    }

    /// Reads, updates and patches a scale.
    pub async fn change_scale(&self, resource: &str, name: &str) -> anyhow::Result<()> {
        let path = format!("{name}/scale");
        let mut scale = self.get(resource, &path).await?;
        anyhow::ensure!(scale["spec"]["replicas"] == 1, "{scale}");
        scale["metadata"]["resourceVersion"] = Value::Null;
        scale["spec"]["replicas"] = json!(2);
        let scale = self.replace(resource, &path, scale).await?;
        anyhow::ensure!(scale["spec"]["replicas"] == 2, "{scale}");
        let wants = |n: i32| move |v: &Value| v["spec"]["replicas"] == n;
        self.until(resource, name, "to want 2", wants(2)).await?;
        let patch = json!({"spec": {"replicas": 4}});
        self.merge(resource, &path, patch).await?;
        let runs = |v: &Value| v["status"]["readyReplicas"] == 4 && wants(4)(v);
        self.until(resource, name, "to run 4", runs).await?;
        Ok(())
    }
}

/// A number in an object; 0 where there is none.
pub fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

/// A text in an object; empty where there is none.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    let found = object.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_default()
}

/// The name of an object.
pub fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// The image of a pod's container.
pub fn image(pod: &Value) -> &str {
    text(pod, "/spec/containers/0/image")
}

/// Whether an object is to be deleted.
pub fn leaving(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// Whether a pod runs and is ready.
pub fn ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
    !leaving(pod) && conditions.is_some_and(|all| all.iter().any(ready))
}

/// A pod template with a label `app`.
pub fn template(app: &str, image: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}},
        "spec": {"containers": [{"name": "c", "image": image}]}})
}

/// A workload of `apps/v1` with a label `app` on itself and its pods.
pub fn workload(kind: &str, app: &str, image: &str, more: Value) -> Value {
    let mut all = json!({"apiVersion": "apps/v1", "kind": kind,
        "metadata": {"name": app, "labels": {"app": app}},
        "spec": {"selector": {"matchLabels": {"app": app}}, "template": template(app, image)}});
    for (key, value) in more.as_object().into_iter().flatten() {
        all["spec"][key] = value.clone();
    }
    all
}

/// The patch that changes the image of a template.
pub fn with_image(image: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}})
}

/// Whether a list is not there or has nothing in it.
pub fn is_empty(list: &Value) -> bool {
    list.as_array().is_none_or(Vec::is_empty)
}
