//! StatefulSets and their claims.

use client::write;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, StatefulSet},
    core::v1::{Event, PersistentVolumeClaim, Pod},
};
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use testkit::{Cluster, eventually, objects};

fn set(name: &str, spec: Value) -> Value {
    let mut set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name},
        "spec": {"replicas": 3, "serviceName": name, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "v1"}]}}},
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        set["spec"][key] = value.clone();
    }
    set
}

async fn settled(cluster: &Cluster, name: &str, replicas: i32) -> anyhow::Result<StatefulSet> {
    let sets = write::namespaced::<StatefulSet>(&cluster.client(), "default");
    let waited = eventually(&format!("{replicas} of {name}"), || async {
        let set = sets.get(name).await?;
        let status = set.status.clone().unwrap_or_default();
        let done = status.observed_generation == set.metadata.generation
            && status.replicas == replicas
            && status.available_replicas == Some(replicas)
            && status.updated_replicas.unwrap_or(0) == replicas
            && status.current_revision == status.update_revision;
        Ok(done.then_some(set))
    })
    .await;
    if waited.is_err() {
        for prefix in ["apps/", "pods/", "persistentvolumeclaims/"] {
            println!("{}", cluster.dump(prefix).await);
        }
    }
    waited
}

async fn names(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let pods = write::namespaced::<Pod>(&cluster.client(), "default");
    let all = pods.list(&ListParams::default()).await?.items;
    let mut names: Vec<_> = all.into_iter().filter_map(|p| p.metadata.name).collect();
    names.sort();
    Ok(names)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_grows_rolls_and_shrinks_in_order() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _node = cluster.add_node("n1").await?;
    let client = cluster.client();
    objects(&client, &[set("web", json!({}))]).await?;
    settled(&cluster, "web", 3).await?;
    assert_eq!(names(&cluster).await?, ["web-0", "web-1", "web-2"]);

    let sets = write::namespaced::<StatefulSet>(&client, "default");
    let image = Patch::Strategic(json!({"spec": {"template": {"spec": {
        "containers": [{"name": "c", "image": "v2"}]}}}}));
    sets.patch("web", &PatchParams::default(), &image).await?;
    let rolled = settled(&cluster, "web", 3).await?;
    let pods = write::namespaced::<Pod>(&client, "default");
    for name in ["web-0", "web-1", "web-2"] {
        let pod = pods.get(name).await?;
        let spec = pod.spec.unwrap_or_default();
        assert_eq!(spec.containers[0].image.as_deref(), Some("v2"));
        assert_eq!(spec.hostname.as_deref(), Some(name));
        assert_eq!(spec.subdomain.as_deref(), Some("web"));
        let labels = pod.metadata.labels.unwrap_or_default();
        let status = rolled.status.as_ref();
        assert_eq!(
            labels.get("controller-revision-hash"),
            status.and_then(|s| s.update_revision.as_ref())
        );
    }
    let revisions = write::namespaced::<ControllerRevision>(&client, "default");
    assert_eq!(revisions.list(&ListParams::default()).await?.items.len(), 2);
    let few = Patch::Merge(json!({"spec": {"replicas": 1}}));
    sets.patch("web", &PatchParams::default(), &few).await?;
    settled(&cluster, "web", 1).await?;
    assert_eq!(names(&cluster).await?, ["web-0"]);
    let events = write::namespaced::<Event>(&client, "default");
    eventually("the events of the set", || async {
        let all = events.list(&ListParams::default()).await?.items;
        let said = |text: &str| all.iter().any(|e| e.message.as_deref() == Some(text));
        Ok((said("Create Pod web-2 in StatefulSet web successful")
            && said("Delete Pod web-1 in StatefulSet web successful"))
        .then_some(()))
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_come_with_pods_and_go_as_the_policy_says() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let client = cluster.client();
    let spec = json!({
        "replicas": 2, "podManagementPolicy": "Parallel",
        "persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete", "whenDeleted": "Retain"},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
            "storageClassName": "", "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}}],
    });
    objects(&client, &[set("db", spec)]).await?;
    let claims = write::namespaced::<PersistentVolumeClaim>(&client, "default");
    let wait = |wanted: &'static [&'static str]| {
        let (claims, cluster) = (claims.clone(), &cluster);
        async move {
            let waited = eventually("the claims", || async {
                let all = claims.list(&ListParams::default()).await?.items;
                let mut names: Vec<_> = all.into_iter().filter_map(|c| c.metadata.name).collect();
                names.sort();
                Ok((names == wanted).then_some(()))
            })
            .await;
            if waited.is_err() {
                println!("{}", cluster.dump("persistentvolumeclaims/").await);
                println!("{}", cluster.dump("pods/").await);
            }
            waited
        }
    };
    wait(&["data-db-0", "data-db-1"]).await?;
    eventually("both pods", || async {
        Ok((names(&cluster).await? == ["db-0", "db-1"]).then_some(()))
    })
    .await?;
    let sets = write::namespaced::<StatefulSet>(&client, "default");
    let few = Patch::Merge(json!({"spec": {"replicas": 1}}));
    sets.patch("db", &PatchParams::default(), &few).await?;
    wait(&["data-db-0"]).await?;
    sets.delete("db", &Default::default()).await?;
    eventually("the pods to go", || async {
        Ok(names(&cluster).await?.is_empty().then_some(()))
    })
    .await?;
    wait(&["data-db-0"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_is_deleted_before_its_pod_starts_is_made_again() -> anyhow::Result<()> {
    // Without a node the pod waits, and what waits protects no claim.
    let cluster = Cluster::start().await?;
    let client = cluster.client();
    let template = json!({"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let spec = json!({"replicas": 1, "volumeClaimTemplates": [template]});
    objects(&client, &[set("db", spec)]).await?;
    let pods = write::namespaced::<Pod>(&client, "default");
    let claims = write::namespaced::<PersistentVolumeClaim>(&client, "default");
    let pod = eventually("the pod", || async { Ok(pods.get_opt("db-0").await?) }).await?;
    let claim = claims.get("data-db-0").await?;
    claims.delete("data-db-0", &Default::default()).await?;
    eventually("another claim", || async {
        let found = claims.get_opt("data-db-0").await?;
        Ok(found.filter(|c| c.metadata.uid != claim.metadata.uid))
    })
    .await?;
    let same = pods.get("db-0").await?;
    assert_eq!(same.metadata.uid, pod.metadata.uid);
    Ok(())
}

/// Else nobody could tell why a pod does not come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_goes_is_told_of_and_waited_for() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let client = cluster.client();
    let claim = json!({"storageClassName": "", "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}});
    let held = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data-db-0", "finalizers": ["example.com/hold"]}, "spec": claim});
    objects(&client, &[held]).await?;
    let claims = write::namespaced::<PersistentVolumeClaim>(&client, "default");
    // The controllers no longer protect a claim that they know to go: before that, a pod may come all the same.
    let held_by = |count: usize| {
        let claims = claims.clone();
        async move {
            let finalizers = claims.get("data-db-0").await?.metadata.finalizers;
            Ok((finalizers.unwrap_or_default().len() == count).then_some(()))
        }
    };
    claims.delete("data-db-0", &Default::default()).await?;
    eventually("its deletion to be known", || held_by(1)).await?;
    let spec = json!({"replicas": 1,
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim}]});
    objects(&client, &[set("db", spec)]).await?;
    let events = write::namespaced::<Event>(&client, "default");
    eventually("the event of the claim", || async {
        let all = events.list(&ListParams::default()).await?.items;
        let text = "Create Pod db-0 in StatefulSet db failed error: pvc data-db-0 is being deleted";
        let said = |e: &Event| {
            e.message.as_deref() == Some(text) && e.reason.as_deref() == Some("FailedCreate")
        };
        Ok(all.iter().any(said).then_some(()))
    })
    .await?;
    assert_eq!(names(&cluster).await?, [""; 0]);
    let free = Patch::Merge(json!({"metadata": {"finalizers": []}}));
    claims
        .patch("data-db-0", &PatchParams::default(), &free)
        .await?;
    let pods = write::namespaced::<Pod>(&client, "default");
    let pod = eventually("the pod", || async { Ok(pods.get_opt("db-0").await?) }).await?;
    assert_eq!(pod.metadata.generate_name.as_deref(), Some("db-"));
    Ok(())
}
