//! The manifests over plain HTTP, for machines without a kubectl: what `kubectl` would send for them.

use std::collections::HashSet;

use serde_json::{Value, json};
use testkit::{Cluster, Parts, eventually};

use crate::documents::*;
use crate::tools::script;

const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

struct Asked<'a> {
    client: kube::Client,
    document: &'a Document,
    collection: String,
}

impl<'a> Asked<'a> {
    fn new(cluster: &Cluster, document: &'a Document) -> Self {
        let kind = document.known().unwrap();
        let resource = client::Resource {
            group: kind.group.to_string(),
            version: kind.version.to_string(),
            plural: kind.resource.to_string(),
        };
        let namespace = match (kind.namespaced, document.at("/metadata/namespace")) {
            (false, _) => "",
            (true, "") => "default",
            (true, named) => named,
        };
        Self {
            client: cluster.client(),
            document,
            collection: resource.path(namespace),
        }
    }

    fn object(&self) -> String {
        format!("{}/{}", self.collection, self.document.at("/metadata/name"))
    }

    async fn ask(&self, verb: &str, path: String, media: &str, body: &Value) -> Value {
        let request = http::Request::builder()
            .method(verb)
            .uri(&path)
            .header("content-type", media);
        let body = match body {
            Value::Null => Vec::new(),
            body => serde_json::to_vec(body).unwrap(),
        };
        let answer = self.client.request(request.body(body).unwrap()).await;
        answer.unwrap_or_else(|error| panic!("{verb} {path}: {error}"))
    }

    async fn applied(&self, manager: &str) -> Value {
        let path = format!("{}?fieldManager={manager}&force=true", self.object());
        self.ask("PATCH", path, APPLY, &self.document.object).await
    }

    async fn create(&self) {
        let (json, written) = ("application/json", &self.document.object);
        let strict = format!("{}?fieldValidation=Strict", self.collection);
        let made = self.ask("POST", strict, json, written).await;
        let got = self.get().await;
        assert_eq!(got["metadata"]["uid"], made["metadata"]["uid"]);
        assert_eq!(got["spec"], made["spec"]);
        if self.document.at("/kind") == "CustomResourceDefinition" {
            let established = || async {
                let conditions = self.get().await["status"]["conditions"].take();
                Ok((conditions.as_array().map(Vec::len) == Some(2)).then_some(()))
            };
            eventually("the definition", established).await.unwrap();
        }
    }

    async fn get(&self) -> Value {
        let json = "application/json";
        self.ask("GET", self.object(), json, &Value::Null).await
    }

    /// Said again in any way, it changes nothing.
    async fn repeat(&self) {
        let (json, written) = ("application/json", &self.document.object);
        self.applied("one").await;
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        let before = self.applied("two").await;
        let again = self.applied("two").await;
        let replaced = self.ask("PUT", self.object(), json, &before).await;
        let mut after = vec![again, replaced];
        if !shares_a_port(written) {
            after.push(self.ask("PATCH", self.object(), STRATEGIC, written).await);
        }
        for after in after {
            assert_eq!(version(&after), version(&before), "{}", self.object());
        }
    }

    async fn end(&self) {
        let json = "application/json";
        if replaceable(self.document) {
            let mut written = self.document.object.clone();
            let version = self.get().await["metadata"]["resourceVersion"].take();
            written["metadata"]["resourceVersion"] = version;
            self.ask("PUT", self.object(), json, &written).await;
        }
        self.ask("DELETE", self.object(), json, &json!({})).await;
    }
}

/// Strategic merges know ports of Services by their number alone, upstream's as well.
fn shares_a_port(service: &Value) -> bool {
    let ports = service["spec"]["ports"].as_array();
    let mut numbers = HashSet::new();
    let mut ports = ports.into_iter().flatten();
    ports.any(|port| !numbers.insert(port["port"].as_u64()))
}

#[tokio::test]
async fn manifests_said_again_change_nothing() {
    let parts = Parts {
        controllers: false,
        scheduler: false,
    };
    let cluster = Cluster::with(parts).await.unwrap();
    let all = documents(&script("manifests"));
    prepare(&cluster, &all).await;
    let asked: Vec<Asked> = all.iter().map(|d| Asked::new(&cluster, d)).collect();
    for document in &asked {
        document.create().await;
    }
    for document in &asked {
        document.repeat().await;
    }
    for document in &asked {
        document.end().await;
    }
}
