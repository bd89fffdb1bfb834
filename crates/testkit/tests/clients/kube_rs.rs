//! kube-rs: a custom resource of a derived type, its Controller with a finalizer, watchers and reflectors of
//! both kinds of lists, over TLS.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::{CustomResourceExt, ObjectMeta, PartialObjectMeta, Selector};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::finalizer::{self, finalizer};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{WatchStreamExt, events, watcher};
use kube::{Client, CustomResource, KubeSchema, Resource, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::json;
use testkit::{Cluster, eventually};

/// A document that a controller copies into a ConfigMap.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default)]
#[kube(
    group = "kube.rs",
    version = "v1",
    kind = "Document",
    namespaced,
    status = "DocumentStatus",
    shortname = "doc",
    category = "all",
    selectable = ".spec.title",
    derive = "Default",
    printcolumn(name = "Title", type_ = "string", json_path = ".spec.title"),
    scale(
        spec_replicas_path = ".spec.copies",
        status_replicas_path = ".status.copies"
    ),
    validation = Rule::new("self.metadata.name != 'forbidden'").message("no such name")
)]
#[serde(rename_all = "camelCase")]
struct DocumentSpec {
    #[x_kube(validation = Rule::new("self != ''").message("must have a title"))]
    title: String,
    #[serde(default)]
    hide: bool,
    #[serde(default = "one")]
    copies: i32,
    content: Option<String>,
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Set)]
    tags: Vec<String>,
}

fn one() -> i32 {
    1
}

#[derive(Serialize, Deserialize, KubeSchema, Debug, Clone, Default)]
struct DocumentStatus {
    hidden: bool,
    copied: Option<String>,
    copies: Option<i32>,
}

fn spec(title: &str) -> DocumentSpec {
    DocumentSpec {
        title: title.to_owned(),
        copies: one(),
        ..DocumentSpec::default()
    }
}

struct Context {
    client: Client,
    recorder: events::Recorder,
}

/// What is there while its document is; the finalizer takes it away.
const SHADOW: &str = "shadow";

type Finalized = finalizer::Error<kube::Error>;

async fn reconcile(document: Arc<Document>, context: Arc<Context>) -> Result<Action, Finalized> {
    let namespace = document.namespace().unwrap_or_default();
    let documents = Api::<Document>::namespaced(context.client.clone(), &namespace);
    finalizer(
        &documents,
        "kube.rs/shadow",
        document,
        async |event| match event {
            finalizer::Event::Apply(document) => copy(&document, &context).await,
            finalizer::Event::Cleanup(_) => {
                let maps = Api::<ConfigMap>::namespaced(context.client.clone(), &namespace);
                maps.delete(SHADOW, &DeleteParams::default()).await?;
                Ok(Action::await_change())
            }
        },
    )
    .await
}

async fn copy(document: &Document, context: &Context) -> Result<Action, kube::Error> {
    let namespace = document.namespace().unwrap_or_default();
    let apply = PatchParams::apply("copier").force();
    let maps = Api::<ConfigMap>::namespaced(context.client.clone(), &namespace);
    let owner = document.controller_owner_ref(&()).into_iter().collect();
    for (name, owners) in [(document.name_any(), Some(owner)), (SHADOW.into(), None)] {
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                owner_references: owners,
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(
                "title".to_owned(),
                document.spec.title.clone(),
            )])),
            ..ConfigMap::default()
        };
        maps.patch(&name, &apply, &Patch::Apply(&map)).await?;
    }
    let status = json!({"apiVersion": "kube.rs/v1", "kind": "Document", "status": {
        "hidden": document.spec.hide, "copied": document.spec.title, "copies": document.spec.copies}});
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
    let about = document.object_ref(&());
    context.recorder.publish(&event, &about).await?;
    Ok(Action::await_change())
}

struct User {
    client: Client,
    documents: Api<Document>,
    maps: Api<ConfigMap>,
    _served: testkit::Served,
    _cluster: Cluster,
}

impl User {
    /// One with the definition of documents.
    async fn new() -> anyhow::Result<Self> {
        let cluster = Cluster::start().await?;
        let served = cluster.serve().await?;
        let file = kube::config::Kubeconfig::read_from(served.kubeconfig())?;
        let config = kube::Config::from_custom_kubeconfig(file, &Default::default()).await?;
        let client = Client::try_from(config)?;
        let definitions = Api::<CustomResourceDefinition>::all(client.clone());
        let apply = PatchParams::apply("tests").force();
        let name = Document::crd_name();
        definitions
            .patch(name, &apply, &Patch::Apply(Document::crd()))
            .await?;
        let wait = await_condition(definitions, name, conditions::is_crd_established());
        tokio::time::timeout(Duration::from_secs(120), wait).await??;
        Ok(Self {
            documents: Api::namespaced(client.clone(), "default"),
            maps: Api::namespaced(client.clone(), "default"),
            client,
            _served: served,
            _cluster: cluster,
        })
    }

    async fn title(&self, of: &str, wanted: &str) -> anyhow::Result<()> {
        eventually(wanted, || async {
            let map = self.maps.get_opt(of).await?;
            let data = map.and_then(|m| m.data).unwrap_or_default();
            Ok((data.get("title").map(String::as_str) == Some(wanted)).then_some(()))
        })
        .await
    }

    async fn create(&self, name: &str, title: &str) -> kube::Result<Document> {
        let document = Document::new(name, spec(title));
        self.documents
            .create(&PostParams::default(), &document)
            .await
    }
}

fn is_invalid<T: std::fmt::Debug>(answer: kube::Result<T>, text: &str) {
    match answer {
        Err(kube::Error::Api(status)) if status.code == 422 => {
            assert!(status.message.contains(text), "{}", status.message);
        }
        answer => panic!("not refused: {answer:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_of_kube_rs_controls() -> anyhow::Result<()> {
    let user = User::new().await?;
    let context = Context {
        client: user.client.clone(),
        recorder: events::Recorder::new(user.client.clone(), "copier".into()),
    };
    let controller = Controller::new(user.documents.clone(), watcher::Config::default())
        .owns(user.maps.clone(), watcher::Config::default())
        .run(
            reconcile,
            |_, error, _| {
                eprintln!("tried again after: {error}");
                Action::requeue(Duration::from_secs(1))
            },
            Arc::new(context),
        )
        .for_each(|_| async {});
    let controller = tokio::spawn(controller);

    user.create("d", "one").await?;
    user.title("d", "one").await?;
    let change = Patch::Merge(json!({"spec": {"title": "two", "hide": true}}));
    let plain = PatchParams::default();
    user.documents.patch("d", &plain, &change).await?;
    user.title("d", "two").await?;
    // Deleting what is owned wakes the controller.
    user.maps.delete("d", &DeleteParams::default()).await?;
    user.title("d", "two").await?;
    eventually("the status", || async {
        let found = user.documents.get_status("d").await?;
        let status = found.status.clone().unwrap_or_default();
        let held = !found.finalizers().is_empty();
        Ok((held && status.hidden && status.copied.as_deref() == Some("two")).then_some(()))
    })
    .await?;
    let foreground = DeleteParams::foreground();
    user.documents.delete("d", &foreground).await?;
    eventually("the copies to go", || async {
        let left = user.maps.list(&ListParams::default()).await?;
        let ours = |m: &ConfigMap| ["d", SHADOW].contains(&m.name_any().as_str());
        let gone = user.documents.get_opt("d").await?.is_none();
        Ok((gone && !left.iter().any(ours)).then_some(()))
    })
    .await?;
    controller.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn derived_definitions_are_kept_to() -> anyhow::Result<()> {
    let user = User::new().await?;
    let made = user.create("d", "one").await?;
    assert_eq!((made.spec.copies, made.metadata.generation), (1, Some(1)));
    is_invalid(user.create("e", "").await, "must have a title");
    is_invalid(user.create("forbidden", "one").await, "no such name");
    let wrong = Patch::Merge(json!({"spec": {"title": 7}}));
    let plain = PatchParams::default();
    let refused = user.documents.patch("d", &plain, &wrong).await;
    is_invalid(refused, "spec.title: Invalid value: \"integer\"");
    user.create("f", "other").await?;
    let titled = ListParams::default().fields("spec.title=one");
    let found = user.documents.list(&titled).await?;
    assert_eq!(
        found.iter().map(ResourceExt::name_any).collect::<Vec<_>>(),
        ["d"]
    );

    let tags = |tag: &str| {
        Patch::Apply(
            json!({"apiVersion": "kube.rs/v1", "kind": "Document", "spec": {"tags": [tag]}}),
        )
    };
    for (manager, tag) in [("a", "x"), ("b", "y")] {
        let apply = PatchParams::apply(manager);
        user.documents.patch("d", &apply, &tags(tag)).await?;
    }
    let both = user.documents.get("d").await?;
    assert_eq!(both.spec.tags, ["x", "y"], "a set of two appliers");
    let title = Patch::Apply(
        json!({"apiVersion": "kube.rs/v1", "kind": "Document", "spec": {"title": "three"}}),
    );
    let apply = PatchParams::apply("a");
    let conflict = user.documents.patch("d", &apply, &title).await;
    assert!(matches!(conflict, Err(kube::Error::Api(status)) if status.is_conflict()));
    let scale = Patch::Merge(json!({"spec": {"replicas": 4}}));
    let scaled = user.documents.patch_scale("d", &plain, &scale).await?;
    assert_eq!(scaled.spec.unwrap_or_default().replicas, Some(4));
    assert_eq!(user.documents.get("d").await?.spec.copies, 4);
    let entry = user.documents.entry("g").await?;
    let mut entry = entry.or_insert(|| Document::new("g", spec("entered")));
    entry.commit(&PostParams::default()).await?;
    assert_eq!(user.documents.get("g").await?.spec.title, "entered");
    Ok(())
}

/// The events of a watcher and the store of a reflector, until an object of that title is there.
async fn reflected(user: &User, config: watcher::Config) -> anyhow::Result<()> {
    let (store, writer) = reflector::store::<Document>();
    let stream = watcher(user.documents.clone(), config.clone());
    let stream = reflector::reflector(writer, stream.default_backoff()).applied_objects();
    let mut stream = Box::pin(stream);
    let before = user
        .documents
        .list(&ListParams::default())
        .await?
        .items
        .len();
    for _ in 0..before {
        stream.try_next().await?;
    }
    let change = Patch::Merge(json!({"metadata": {"labels": {"seen": "true"}}}));
    user.documents
        .patch("d0", &PatchParams::default(), &change)
        .await?;
    while let Some(document) = stream.try_next().await? {
        if document.labels().contains_key("seen") {
            break;
        }
    }
    assert_eq!(store.len(), before);
    let found = store.get(&ObjectRef::new("d0").within("default"));
    assert!(found.is_some_and(|d| d.labels().contains_key("seen")));
    let seen = Selector::from_iter([("seen", "true")]);
    assert_eq!(store.state_filter_selector(&seen).len(), 1);

    let labelled = config.labels("seen=true");
    let metadata = Api::<PartialObjectMeta<Document>>::namespaced(user.client.clone(), "default");
    let metadata = watcher(metadata, labelled);
    let mut metadata = Box::pin(metadata.applied_objects());
    let first: Option<PartialObjectMeta<Document>> = metadata.try_next().await?;
    assert_eq!(first.map(|d| d.name_any()).as_deref(), Some("d0"));
    let change = Patch::Merge(json!({"metadata": {"labels": null}}));
    user.documents
        .patch("d0", &PatchParams::default(), &change)
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_and_reflectors_follow_with_lists_and_with_streams() -> anyhow::Result<()> {
    let user = User::new().await?;
    for n in 0..12 {
        user.create(&format!("d{n}"), "one").await?;
    }
    let paged = watcher::Config::default().page_size(5);
    let configs = [paged, watcher::Config::default().streaming_lists()];
    for config in configs {
        let limit = Duration::from_secs(120);
        tokio::time::timeout(limit, reflected(&user, config)).await??;
    }
    Ok(())
}
