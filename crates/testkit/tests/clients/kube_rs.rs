//! kube-rs: a custom resource of its own type and a Controller over TLS.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::core::{NamespaceResourceScope, ObjectMeta};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{events, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use testkit::{Cluster, eventually};

/// A document that a controller copies into a ConfigMap.
#[derive(Serialize, Deserialize, Debug, Clone, Default)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    metadata: ObjectMeta,
    spec: DocumentSpec,
    status: Option<DocumentStatus>,
}

#[derive(Serialize, Deserialize, Debug, Clone, Default)]
struct DocumentSpec {
    title: String,
    #[serde(default)]
    hide: bool,
    content: Option<String>,
}

impl Resource for Document {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;
    fn kind(_: &()) -> Cow<'_, str> {
        "Document".into()
    }
    fn group(_: &()) -> Cow<'_, str> {
        "kube.rs".into()
    }
    fn version(_: &()) -> Cow<'_, str> {
        "v1".into()
    }
    fn plural(_: &()) -> Cow<'_, str> {
        "documents".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

fn document(name: &str, spec: DocumentSpec) -> Document {
    let mut document = Document {
        api_version: "kube.rs/v1".into(),
        kind: "Document".into(),
        spec,
        ..Document::default()
    };
    document.metadata.name = Some(name.to_owned());
    document
}

fn definition() -> Value {
    let schema = json!({"type": "object", "required": ["spec"], "properties": {
        "spec": {"type": "object", "required": ["title"], "properties": {"title": {"type": "string"},
            "hide": {"type": "boolean", "default": false}, "content": {"type": "string", "nullable": true}}},
        "status": {"type": "object", "nullable": true, "required": ["hidden"], "properties": {
            "hidden": {"type": "boolean"}, "copied": {"type": "string", "nullable": true}}}}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "documents.kube.rs"},
        "spec": {"group": "kube.rs", "scope": "Namespaced",
            "names": {"plural": "documents", "singular": "document", "kind": "Document", "shortNames": ["doc"]},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": schema}}]},
    })
}

#[derive(Serialize, Deserialize, Debug, Clone, Default)]
struct DocumentStatus {
    hidden: bool,
    copied: Option<String>,
}

struct Context {
    client: Client,
    recorder: events::Recorder,
}

async fn reconcile(document: Arc<Document>, context: Arc<Context>) -> Result<Action, kube::Error> {
    let namespace = document.namespace().unwrap_or_default();
    let owner = document.controller_owner_ref(&()).into_iter().collect();
    let mut map = ConfigMap::default();
    map.metadata.name = Some(document.name_any());
    map.metadata.owner_references = Some(owner);
    map.data = Some(BTreeMap::from([(
        "title".to_owned(),
        document.spec.title.clone(),
    )]));
    let apply = PatchParams::apply("copier").force();
    let maps = Api::<ConfigMap>::namespaced(context.client.clone(), &namespace);
    maps.patch(&document.name_any(), &apply, &Patch::Apply(&map))
        .await?;
    let status = json!({"apiVersion": "kube.rs/v1", "kind": "Document", "status": {
        "hidden": document.spec.hide, "copied": document.spec.title}});
    let documents = Api::<Document>::namespaced(context.client.clone(), &namespace);
    documents
        .patch_status(&document.name_any(), &apply, &Patch::Apply(&status))
        .await?;
    let event = events::Event {
        type_: events::EventType::Normal,
        reason: "Copied".into(),
        note: Some("copied".into()),
        action: "Copying".into(),
        secondary: None,
    };
    context
        .recorder
        .publish(&event, &document.object_ref(&()))
        .await?;
    Ok(Action::await_change())
}

async fn client(served: &testkit::Served) -> anyhow::Result<Client> {
    let file = kube::config::Kubeconfig::read_from(served.kubeconfig())?;
    let config = kube::Config::from_custom_kubeconfig(file, &Default::default()).await?;
    Ok(Client::try_from(config)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_of_kube_rs_controls() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let served = cluster.serve().await?;
    let client = client(&served).await?;
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    let apply = PatchParams::apply("tests").force();
    definitions
        .patch("documents.kube.rs", &apply, &Patch::Apply(definition()))
        .await?;
    let established = conditions::is_crd_established();
    let wait = await_condition(definitions.clone(), "documents.kube.rs", established);
    tokio::time::timeout(Duration::from_secs(20), wait).await??;

    let documents = Api::<Document>::namespaced(client.clone(), "default");
    let maps = Api::<ConfigMap>::namespaced(client.clone(), "default");
    let context = Context {
        client: client.clone(),
        recorder: events::Recorder::new(client.clone(), "copier".into()),
    };
    let controller = Controller::new(documents.clone(), watcher::Config::default())
        .owns(maps.clone(), watcher::Config::default())
        .run(
            reconcile,
            |_, _, _| Action::requeue(Duration::from_secs(1)),
            Arc::new(context),
        )
        .for_each(|_| async {});
    let controller = tokio::spawn(controller);

    let spec = DocumentSpec {
        title: "one".into(),
        hide: true,
        content: None,
    };
    documents
        .create(&PostParams::default(), &document("d", spec))
        .await?;
    let title = async |wanted: &str| {
        eventually(wanted, || async {
            let Some(map) = maps.get_opt("d").await? else {
                return Ok(None);
            };
            Ok((map
                .data
                .unwrap_or_default()
                .get("title")
                .map(String::as_str)
                == Some(wanted))
            .then_some(()))
        })
        .await
    };
    title("one").await?;
    let change = Patch::Merge(json!({"spec": {"title": "two"}}));
    documents
        .patch("d", &PatchParams::default(), &change)
        .await?;
    title("two").await?;
    // Deleting what is owned wakes the controller.
    maps.delete("d", &DeleteParams::default()).await?;
    title("two").await?;
    eventually("the status", || async {
        let status = documents.get_status("d").await?.status.unwrap_or_default();
        Ok((status.hidden && status.copied.as_deref() == Some("two")).then_some(()))
    })
    .await?;
    let wrong = Patch::Merge(json!({"spec": {"title": 7}}));
    let refused = documents.patch("d", &PatchParams::default(), &wrong).await;
    assert!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 422));
    documents.delete("d", &DeleteParams::foreground()).await?;
    eventually("the copy to go", || async {
        Ok(maps.get_opt("d").await?.is_none().then_some(()))
    })
    .await?;
    controller.abort();
    Ok(())
}
