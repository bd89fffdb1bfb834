//! Deployments.

use serde_json::{Value, json};

use super::rig::{Rig, image, leaving, name, number, ready, template, text, with_image, workload};

const DEPLOYMENTS: &str = "apps/v1/deployments";
const SETS: &str = "apps/v1/replicasets";
const REVISION: &str = "/metadata/annotations/deployment.kubernetes.io~1revision";

fn complete(d: &Value) -> bool {
    let wanted = number(d, "/spec/replicas");
    let counts = ["updatedReplicas", "replicas", "availableReplicas"];
    counts
        .iter()
        .all(|c| number(&d["status"], &format!("/{c}")) == wanted)
        && number(d, "/status/observedGeneration") >= number(d, "/metadata/generation")
}

/// A ReplicaSet of these pods that nobody owns.
fn orphan(name: &str, app: &str, image: &str, replicas: i32) -> Value {
    let mut set = workload("ReplicaSet", app, image, json!({"replicas": replicas}));
    set["metadata"]["name"] = json!(name);
    set["spec"]["template"]["metadata"]["labels"]["pod"] = json!("httpd");
    set["spec"]["selector"]["matchLabels"]["pod"] = json!("httpd");
    set
}

/// Conformance: Deployment RollingUpdate
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roll_out_adopts_old_pods_and_replaces_them() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let mut set = orphan("old", "sample", "httpd", 1);
    set["metadata"]["annotations"] =
        json!({"deployment.kubernetes.io/revision": "3546343826724305832"});
    rig.create(SETS, set).await?;
    rig.until_all("v1/pods", "app=sample", "to be ready", |all| {
        all.len() == 1 && ready(&all[0])
    })
    .await?;
    let d = workload("Deployment", "sample", "agnhost", json!({"replicas": 1}));
    rig.create(DEPLOYMENTS, d).await?;
    rig.until(DEPLOYMENTS, "sample", "to be numbered", |d| {
        text(d, REVISION) == "3546343826724305833" && complete(d)
    })
    .await?;
    let pods = rig
        .until_all("v1/pods", "app=sample", "to be of the new image", |all| {
            all.len() == 1 && image(&all[0]) == "agnhost"
        })
        .await?;
    let hash = text(&pods[0], "/metadata/labels/pod-template-hash").to_owned();
    assert!(!hash.is_empty());
    let sets = rig.list(SETS, "app=sample").await?;
    let old: Vec<_> = sets.iter().filter(|s| name(s) == "old").collect();
    assert_eq!((sets.len(), old.len()), (2, 1));
    assert_eq!(number(old[0], "/spec/replicas"), 0);
    assert_eq!(
        text(old[0], "/metadata/ownerReferences/0/kind"),
        "Deployment"
    );
    let new = sets.iter().find(|s| name(s) != "old").unwrap();
    assert_eq!(text(new, "/metadata/labels/pod-template-hash"), hash);
    assert_eq!(name(new), format!("sample-{hash}"));
    Ok(())
}

/// Conformance: Deployment Recreate
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_pods_are_gone_before_new_ones_come() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let spec = json!({"replicas": 2, "strategy": {"type": "Recreate"}});
    rig.create(DEPLOYMENTS, workload("Deployment", "web", "v1", spec))
        .await?;
    let done = rig
        .until(DEPLOYMENTS, "web", "to be complete", |d| {
            complete(d) && text(d, REVISION) == "1"
        })
        .await?;
    rig.strategic(DEPLOYMENTS, "web", with_image("v2")).await?;
    rig.until(DEPLOYMENTS, "web", "to be complete again", |d| {
        complete(d) && text(d, REVISION) == "2"
    })
    .await?;
    // Old and new pods never live at one time.
    let mut alive: Vec<(String, String)> = Vec::new();
    for (kind, pod) in rig.happened("v1/pods", &done).await? {
        alive.retain(|(n, _)| n != name(&pod));
        if kind != "DELETED" && !leaving(&pod) {
            alive.push((name(&pod).to_owned(), image(&pod).to_owned()));
        }
        let new = alive.iter().filter(|(_, i)| i == "v2").count();
        assert!(new == 0 || new == alive.len(), "{alive:?}");
    }
    for (_, d) in rig.happened(DEPLOYMENTS, &done).await? {
        let updated = number(&d, "/status/updatedReplicas");
        let old_run = updated > 0 && updated != number(&d, "/status/replicas");
        let of_new = text(&d, "/spec/template/spec/containers/0/image") == "v2"
            && number(&d, "/status/observedGeneration") == number(&d, "/metadata/generation");
        assert!(!(of_new && old_run), "{d}");
    }
    Ok(())
}

/// Conformance: Deployment RevisionHistoryLimit
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_replica_sets_beyond_the_history_go() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    rig.create(SETS, orphan("cleanup-controller", "cleanup", "httpd", 1))
        .await?;
    rig.until_all("v1/pods", "app=cleanup", "to be ready", |all| {
        all.len() == 1 && ready(&all[0])
    })
    .await?;
    let spec = json!({"replicas": 1, "revisionHistoryLimit": 0});
    rig.create(
        DEPLOYMENTS,
        workload("Deployment", "cleanup", "agnhost", spec),
    )
    .await?;
    rig.until_gone(SETS, "cleanup-controller").await?;
    rig.until(DEPLOYMENTS, "cleanup", "to be complete", complete)
        .await?;
    assert_eq!(rig.list(SETS, "app=cleanup").await?.len(), 1);
    Ok(())
}

/// Conformance: Deployment Rollover
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roll_out_may_overtake_another() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    rig.create(SETS, orphan("rollover-controller", "rollover", "httpd", 1))
        .await?;
    rig.until(SETS, "rollover-controller", "to be available", |s| {
        number(s, "/status/availableReplicas") == 1
    })
    .await?;
    let spec = json!({"replicas": 1, "minReadySeconds": 1,
        "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}});
    rig.create(
        DEPLOYMENTS,
        workload("Deployment", "rollover", "broken", spec),
    )
    .await?;
    let d = rig
        .until(DEPLOYMENTS, "rollover", "to have both", |d| {
            number(d, "/status/replicas") == 2 && number(d, "/status/updatedReplicas") == 1
        })
        .await?;
    // The old pod stays while the new one does not start.
    assert_eq!(number(&d, "/status/readyReplicas"), 1);
    assert_eq!(
        number(
            &rig.get(SETS, "rollover-controller").await?,
            "/spec/replicas"
        ),
        1
    );
    let sets = rig.list(SETS, "app=rollover").await?;
    let first = sets
        .iter()
        .find(|s| name(s) != "rollover-controller")
        .unwrap();
    rig.strategic(DEPLOYMENTS, "rollover", with_image("agnhost"))
        .await?;
    rig.until(DEPLOYMENTS, "rollover", "to be complete", complete)
        .await?;
    for old in ["rollover-controller", name(first)] {
        rig.until(SETS, old, "to be empty", |s| {
            number(s, "/spec/replicas") == 0 && number(s, "/status/replicas") == 0
        })
        .await?;
    }
    Ok(())
}

/// Conformance: Deployment, completes the scaling of a Deployment subresource
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_scale_is_read_and_written() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let d = workload("Deployment", "web", "v1", json!({"replicas": 1}));
    rig.create(DEPLOYMENTS, d).await?;
    rig.until(DEPLOYMENTS, "web", "to be complete", complete)
        .await?;
    rig.change_scale(DEPLOYMENTS, "web").await
}

/// Conformance: Deployment Proportional Scaling
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaling_during_a_roll_out_is_shared() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let spec = json!({"replicas": 10,
        "strategy": {"rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}});
    rig.create(DEPLOYMENTS, workload("Deployment", "web", "v1", spec))
        .await?;
    rig.until(DEPLOYMENTS, "web", "to be complete", complete)
        .await?;
    let first = name(&rig.list(SETS, "app=web").await?[0]).to_owned();
    rig.strategic(DEPLOYMENTS, "web", with_image("broken"))
        .await?;
    let sizes = |first: String, old: i64, new: i64| {
        move |all: &[Value]| {
            all.len() == 2
                && all.iter().all(|s| {
                    let wanted = if name(s) == first { old } else { new };
                    number(s, "/spec/replicas") == wanted && number(s, "/status/replicas") == wanted
                })
        }
    };
    let shares = sizes(first.clone(), 8, 5);
    let sets = rig
        .until_all(SETS, "app=web", "to be 8 and 5", shares)
        .await?;
    let old = sets.iter().find(|s| name(s) == first).unwrap();
    assert_eq!(number(old, "/status/availableReplicas"), 8);
    // The Deployment tells it a moment later.
    rig.until(DEPLOYMENTS, "web", "to have 8", |d| {
        number(d, "/status/availableReplicas") == 8
    })
    .await?;
    rig.merge(DEPLOYMENTS, "web", json!({"spec": {"replicas": 30}}))
        .await?;
    let shares = sizes(first, 20, 13);
    rig.until_all(SETS, "app=web", "to be 20 and 13", shares)
        .await?;
    Ok(())
}

/// Conformance: Deployment, completes the lifecycle of a Deployment
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_lives() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let d = workload("Deployment", "web", "agnhost", json!({"replicas": 2}));
    let made = rig.create(DEPLOYMENTS, d.clone()).await?;
    let settled = |n: i64, image: &'static str| {
        move |d: &Value| {
            complete(d)
                && number(d, "/status/readyReplicas") == n
                && number(d, "/status/unavailableReplicas") == 0
                && text(d, "/spec/template/spec/containers/0/image") == image
        }
    };
    rig.until(DEPLOYMENTS, "web", "to be ready", settled(2, "agnhost"))
        .await?;
    let mut patch = with_image("pause");
    patch["metadata"]["labels"]["test-deployment"] = json!("patched");
    patch["spec"]["replicas"] = json!(1);
    patch["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(2);
    rig.strategic(DEPLOYMENTS, "web", patch).await?;
    rig.until(
        DEPLOYMENTS,
        "web",
        "to follow the patch",
        settled(1, "pause"),
    )
    .await?;
    assert_eq!(
        rig.list(DEPLOYMENTS, "test-deployment=patched")
            .await?
            .len(),
        1
    );
    let mut update = d;
    update["spec"]["template"] = template("web", "httpd");
    update["metadata"]["labels"]["test-deployment"] = json!("updated");
    rig.replace(DEPLOYMENTS, "web", update).await?;
    rig.until(
        DEPLOYMENTS,
        "web",
        "to follow the update",
        settled(2, "httpd"),
    )
    .await?;
    let patch = json!({"metadata": {"labels": {"test-deployment": "patched-status"}},
        "status": {"readyReplicas": 0, "availableReplicas": 0}});
    let patched = rig.strategic(DEPLOYMENTS, "web/status", patch).await?;
    assert_eq!(number(&patched, "/status/readyReplicas"), 0);
    rig.until(DEPLOYMENTS, "web", "to count again", settled(2, "httpd"))
        .await?;
    rig.delete_all(DEPLOYMENTS, "app=web").await?;
    rig.until_gone(DEPLOYMENTS, "web").await?;
    let seen = rig.happened(DEPLOYMENTS, &made).await?;
    for kind in ["MODIFIED", "DELETED"] {
        assert!(seen.iter().any(|(k, _)| k == kind), "{kind}");
    }
    Ok(())
}

/// Conformance: Deployment, status sub-resource
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_status_is_a_resource_of_its_own() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let d = workload("Deployment", "web", "v1", json!({"replicas": 1}));
    rig.create(DEPLOYMENTS, d).await?;
    rig.until(DEPLOYMENTS, "web", "to be complete", complete)
        .await?;
    rig.change_status(DEPLOYMENTS, "web").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roll_back_takes_the_old_replica_set_and_a_new_number() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let d = workload("Deployment", "web", "v1", json!({"replicas": 2}));
    rig.create(DEPLOYMENTS, d).await?;
    let at = |number: &'static str| move |d: &Value| complete(d) && text(d, REVISION) == number;
    rig.until(DEPLOYMENTS, "web", "to be at 1", at("1")).await?;
    rig.strategic(DEPLOYMENTS, "web", with_image("v2")).await?;
    rig.until(DEPLOYMENTS, "web", "to be at 2", at("2")).await?;
    rig.strategic(DEPLOYMENTS, "web", with_image("v1")).await?;
    rig.until(DEPLOYMENTS, "web", "to be at 3", at("3")).await?;
    let sets = rig.list(SETS, "app=web").await?;
    let history = "/metadata/annotations/deployment.kubernetes.io~1revision-history";
    let first = sets.iter().find(|s| text(s, REVISION) == "3").unwrap();
    assert_eq!((sets.len(), text(first, history)), (2, "1"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roll_out_without_progress_says_so_and_a_pause_holds_it() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let spec = json!({"replicas": 1, "progressDeadlineSeconds": 1});
    rig.create(DEPLOYMENTS, workload("Deployment", "late", "broken", spec))
        .await?;
    let d = workload(
        "Deployment",
        "held",
        "v1",
        json!({"replicas": 1, "paused": true}),
    );
    rig.create(DEPLOYMENTS, d).await?;
    let says = |kind: &'static str, reason: &'static str, message: &'static str| {
        move |d: &Value| {
            let all = d["status"]["conditions"].as_array();
            let same = |c: &Value| {
                c["type"] == kind && c["reason"] == reason && text(c, "/message").ends_with(message)
            };
            all.is_some_and(|all| all.iter().any(same))
        }
    };
    let paused = says("Progressing", "DeploymentPaused", "Deployment is paused");
    rig.until(DEPLOYMENTS, "held", "to say that it is paused", paused)
        .await?;
    assert!(rig.list(SETS, "app=held").await?.is_empty());
    rig.merge(DEPLOYMENTS, "held", json!({"spec": {"paused": false}}))
        .await?;
    let done = says(
        "Progressing",
        "NewReplicaSetAvailable",
        "has successfully progressed.",
    );
    rig.until(DEPLOYMENTS, "held", "to go on", done).await?;
    let timed_out = says(
        "Progressing",
        "ProgressDeadlineExceeded",
        "has timed out progressing.",
    );
    rig.until(DEPLOYMENTS, "late", "to say that it is late", timed_out)
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_set_that_is_refused_is_told() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"},
        "spec": {"hard": {"count/replicasets.apps": "0"}}});
    rig.create("v1/resourcequotas", quota).await?;
    rig.until("v1/resourcequotas", "none", "to be counted", |q| {
        q["status"]["hard"].is_object()
    })
    .await?;
    let d = workload("Deployment", "web", "v1", json!({"replicas": 1}));
    rig.create(DEPLOYMENTS, d).await?;
    let progressing = |d: &Value| {
        let all = d["status"]["conditions"].as_array().into_iter().flatten();
        let found = all.clone().find(|c| c["type"] == "Progressing");
        found.cloned().unwrap_or_default()
    };
    let told = rig
        .until(DEPLOYMENTS, "web", "to say why", |d| {
            text(&progressing(d), "/reason") == "ReplicaSetCreateError"
        })
        .await?;
    let message = text(&progressing(&told), "/message").to_owned();
    assert!(
        message.starts_with("Failed to create new replica set \"web-")
            && message.contains("exceeded quota: none"),
        "{message}"
    );
    rig.delete("v1/resourcequotas", "none", Value::Null).await?;
    rig.until(DEPLOYMENTS, "web", "to be complete", complete)
        .await?;
    Ok(())
}
