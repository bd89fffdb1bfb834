//! Deployments, their pods, and who answers for them.

use client::write;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{ConfigMap, Endpoints, Event, Pod, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use testkit::{Cluster, eventually, objects};

fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": image,
                    "ports": [{"name": "http", "containerPort": 8080}]}]}}},
    })
}

async fn available(cluster: &Cluster, name: &str, image: &str, count: i32) -> anyhow::Result<()> {
    let api = write::namespaced::<Deployment>(&cluster.client(), "default");
    let waited = eventually(
        &format!("{count} of {name} to be available with {image}"),
        || async {
            let d = api.get(name).await?;
            let status = d.status.unwrap_or_default();
            let current = status.observed_generation == d.metadata.generation
                && status.replicas.unwrap_or(0) == count
                && status.updated_replicas.unwrap_or(0) == count
                && status.available_replicas.unwrap_or(0) == count;
            Ok(current.then_some(()))
        },
    )
    .await;
    if waited.is_err() {
        for prefix in ["apps/", "pods/", "events/"] {
            println!("{}", cluster.dump(prefix).await);
        }
    }
    waited
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_runs_rolls_scales_and_goes() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _node = cluster.add_node("n1").await?;
    let client = cluster.client();
    objects(&client, &[deployment("web", 3, "v1")]).await?;
    available(&cluster, "web", "v1", 3).await?;

    let api = write::namespaced::<Deployment>(&client, "default");
    let image = |image: &str| {
        Patch::Strategic(json!({"spec": {"template": {"spec": {
            "containers": [{"name": "c", "image": image}]}}}}))
    };
    api.patch("web", &PatchParams::default(), &image("v2"))
        .await?;
    available(&cluster, "web", "v2", 3).await?;
    let sets = write::namespaced::<ReplicaSet>(&client, "default");
    let all = sets.list(&ListParams::default()).await?.items;
    assert_eq!(all.len(), 2);
    let d = api.get("web").await?;
    let revision = &d.metadata.annotations.as_ref().unwrap()["deployment.kubernetes.io/revision"];
    assert_eq!(revision, "2");

    let scale = Patch::Merge(json!({"spec": {"replicas": 5}}));
    api.patch("web", &PatchParams::default(), &scale).await?;
    available(&cluster, "web", "v2", 5).await?;
    let events = write::namespaced::<Event>(&client, "default");
    eventually("the events of all this", || async {
        let all = events.list(&ListParams::default()).await?.items;
        let has = |reason: &str| all.iter().any(|e| e.reason.as_deref() == Some(reason));
        let wanted = [
            "ScalingReplicaSet",
            "SuccessfulCreate",
            "SuccessfulDelete",
            "Scheduled",
        ];
        Ok(wanted.into_iter().all(has).then_some(()))
    })
    .await?;
    cluster.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_know_who_answers() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _node = cluster.add_node("n1").await?;
    let client = cluster.client();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
    });
    objects(&client, &[service, deployment("web", 2, "v1")]).await?;
    let slices = write::namespaced::<EndpointSlice>(&client, "default");
    let of_web = ListParams::default().labels("kubernetes.io/service-name=web");
    eventually("two ready endpoints", || async {
        let all = slices.list(&of_web).await?.items;
        let ready = all.iter().flat_map(|s| s.endpoints.iter().flatten());
        let ready = ready.filter(|e| e.conditions.as_ref().and_then(|c| c.ready) == Some(true));
        let ports_known = all
            .iter()
            .any(|s| s.ports.iter().flatten().any(|p| p.port == Some(8080)));
        Ok((ready.count() == 2 && ports_known && all.len() == 1).then_some(()))
    })
    .await?;
    let endpoints = write::namespaced::<Endpoints>(&client, "default");
    eventually("two addresses", || async {
        let all = endpoints.get("web").await?.subsets.unwrap_or_default();
        Ok(
            (all.len() == 1 && all[0].addresses.as_ref().is_some_and(|a| a.len() == 2))
                .then_some(()),
        )
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_fit_nowhere_say_why_and_go_when_they_do() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let client = cluster.client();
    let pod = |name: &str, spec: Value| {
        let mut spec = spec;
        spec["containers"][0]["name"] = json!("c");
        spec["containers"][0]["image"] = json!("i");
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    };
    let cpu = |n: &str| json!({"containers": [{"resources": {"requests": {"cpu": n}}}]});
    objects(&client, &[pod("early", cpu("1"))]).await?;
    let pods = write::namespaced::<Pod>(&client, "default");
    let message = |name: &'static str| {
        let pods = pods.clone();
        async move {
            let pod = pods.get(name).await?;
            let all = pod.status.and_then(|s| s.conditions).unwrap_or_default();
            let found = all.into_iter().find(|c| c.type_ == "PodScheduled");
            anyhow::Ok(
                found
                    .filter(|c| c.reason.as_deref() == Some("Unschedulable"))
                    .and_then(|c| c.message),
            )
        }
    };
    let said = eventually("a verdict", || message("early")).await?;
    assert_eq!(said, "no nodes available to schedule pods");

    let _node = cluster.add_node("n1").await?;
    eventually("the pod to have a node", || async {
        Ok(pods.get("early").await?.spec.and_then(|s| s.node_name))
    })
    .await?;
    objects(
        &client,
        &[
            pod("huge", cpu("64")),
            pod(
                "lost",
                json!({"nodeSelector": {"a": "b"}, "containers": [{}]}),
            ),
        ],
    )
    .await?;
    let said = eventually("a verdict", || message("huge")).await?;
    assert_eq!(
        said,
        "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, \
         preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
    );
    let said = eventually("a verdict", || message("lost")).await?;
    assert!(
        said.starts_with(
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
        ),
        "{said}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_namespace_gets_its_account_and_authority() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let client = cluster.client();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "new"}});
    objects(&client, &[namespace]).await?;
    for namespace in ["default", "kube-system", "new"] {
        let accounts = write::namespaced::<ServiceAccount>(&client, namespace);
        let maps = write::namespaced::<ConfigMap>(&client, namespace);
        eventually("the default account", || async {
            Ok(accounts.get_opt("default").await?)
        })
        .await?;
        let map = eventually("the authority", || async {
            Ok(maps.get_opt("kube-root-ca.crt").await?)
        })
        .await?;
        assert!(map.data.unwrap()["ca.crt"].starts_with("-----BEGIN"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_pods_come_and_go() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _node = cluster.add_node("n1").await?;
    let client = cluster.client();
    let start = std::time::Instant::now();
    objects(&client, &[deployment("many", 100, "v1")]).await?;
    available(&cluster, "many", "v1", 100).await?;
    println!("100 pods available after {:?}", start.elapsed());
    let api = write::namespaced::<Deployment>(&client, "default");
    let scale = Patch::Merge(json!({"spec": {"replicas": 0}}));
    api.patch("many", &PatchParams::default(), &scale).await?;
    let pods = write::namespaced::<Pod>(&client, "default");
    eventually("all pods to go", || async {
        Ok(pods
            .list(&ListParams::default())
            .await?
            .items
            .is_empty()
            .then_some(()))
    })
    .await?;
    println!("and gone after {:?}", start.elapsed());
    Ok(())
}

/// Conformance: EndpointSlice Mirroring
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_written_by_hand_are_mirrored() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let client = cluster.client();
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "outside"},
        "spec": {"ports": [{"port": 80}]}});
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "outside"},
        "subsets": [{"addresses": [{"ip": "10.1.2.3"}], "ports": [{"port": 80}]}]});
    objects(&client, &[service, endpoints]).await?;
    let slices = write::namespaced::<EndpointSlice>(&client, "default");
    let of_it = ListParams::default().labels(
        "kubernetes.io/service-name=outside,endpointslice.kubernetes.io/managed-by=endpointslicemirroring-controller.k8s.io",
    );
    let wait = |expected: &'static [&'static str]| {
        let (slices, of_it) = (slices.clone(), of_it.clone());
        async move {
            eventually(&format!("the slices of {expected:?}"), || async {
                let all = slices.list(&of_it).await?.items;
                let port = |s: &EndpointSlice| {
                    let ports = s.ports.iter().flatten();
                    s.address_type == "IPv4" && ports.map(|p| p.port).eq([Some(80)])
                };
                let right = all.iter().all(port) && all.len() == expected.len();
                let all = all.iter().flat_map(|s| s.endpoints.iter().flatten());
                let addresses: Vec<_> = all.flat_map(|e| e.addresses.clone()).collect();
                Ok((right && addresses == expected).then_some(()))
            })
            .await
        }
    };
    wait(&["10.1.2.3"]).await?;
    let api = write::namespaced::<Endpoints>(&client, "default");
    let moved = json!({"subsets": [{"addresses": [{"ip": "10.1.2.4"}], "ports": [{"port": 80}]}]});
    api.patch("outside", &PatchParams::default(), &Patch::Merge(moved))
        .await?;
    wait(&["10.1.2.4"]).await?;
    api.delete("outside", &Default::default()).await?;
    wait(&[]).await
}

/// Ended pods neither join a set nor leave it: they are of no use to it, and go with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_have_ended_stay_with_whom_they_are() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let client = cluster.client();
    let template = |app: &str| {
        json!({"metadata": {"labels": {"app": app}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}})
    };
    let mut stranger = template("other");
    stranger["apiVersion"] = json!("v1");
    stranger["kind"] = json!("Pod");
    stranger["metadata"]["name"] = json!("stranger");
    let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template("web")}});
    objects(&client, &[stranger, set]).await?;
    let pods = write::namespaced::<Pod>(&client, "default");
    let owned = ListParams::default().labels("app=web");
    // The one pod of the set that is not among those known.
    let next = |known: Vec<String>| {
        let (pods, owned) = (pods.clone(), owned.clone());
        async move {
            eventually("a new pod of the set", || async {
                let all = pods.list(&owned).await?.items;
                let mut names = all.into_iter().filter_map(|p| p.metadata.name);
                Ok(names.find(|name| !known.contains(name)))
            })
            .await
        }
    };
    let params = PatchParams::default();
    let failed = Patch::Merge(json!({"status": {"phase": "Failed"}}));
    let label = |app: &str| Patch::Merge(json!({"metadata": {"labels": {"app": app}}}));
    let first = next(Vec::new()).await?;
    for (name, app) in [("stranger", "web"), (first.as_str(), "other")] {
        pods.patch_status(name, &params, &failed).await?;
        pods.patch(name, &params, &label(app)).await?;
    }
    // Whoever makes up for the second one's loss has seen all that came before.
    let second = next(vec!["stranger".into()]).await?;
    pods.delete(&second, &Default::default()).await?;
    next(vec!["stranger".into(), second]).await?;
    let owners = |pod: Pod| pod.metadata.owner_references.map_or(0, |o| o.len());
    assert_eq!(owners(pods.get("stranger").await?), 0);
    assert_eq!(owners(pods.get(&first).await?), 1);
    Ok(())
}
