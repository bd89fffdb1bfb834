//! Jobs and what runs them by the clock.

use client::{Client, write};
use k8s_openapi::api::{
    batch::v1::{CronJob, Job, JobStatus},
    core::v1::{Event, Pod},
};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use testkit::{Cluster, eventually, objects};

fn job(name: &str, spec: Value) -> Value {
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"template": {"spec": {"restartPolicy": "Never",
            "containers": [{"name": "c", "image": "i"}]}}},
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        job["spec"][key] = value.clone();
    }
    job
}

/// Lets a running pod end with this exit code.
async fn end(client: &Client, pod: &Pod, code: i32) -> anyhow::Result<()> {
    let pods = write::namespaced::<Pod>(client, "default");
    let now = api::time::format(client::Clock::system().now());
    let phase = if code == 0 { "Succeeded" } else { "Failed" };
    let patch = Patch::Merge(json!({"status": {
        "phase": phase,
        "containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": code, "finishedAt": now}}}],
    }}));
    let name = pod.metadata.name.clone().unwrap_or_default();
    let written = pods
        .patch_status(&name, &PatchParams::default(), &patch)
        .await;
    write::tolerate_missing(written)?;
    Ok(())
}

/// Waits for so many running pods of a Job.
async fn running(client: &Client, name: &str, count: usize) -> anyhow::Result<Vec<Pod>> {
    let pods = write::namespaced::<Pod>(client, "default");
    let of_job = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={name}"));
    eventually(&format!("{count} running pods of {name}"), || async {
        let mut all = pods.list(&of_job).await?.items;
        all.retain(|p| {
            let phase = p.status.as_ref().and_then(|s| s.phase.as_deref());
            phase == Some("Running") && p.metadata.deletion_timestamp.is_none()
        });
        all.sort_by_key(|p| p.metadata.name.clone());
        Ok((all.len() == count).then_some(all))
    })
    .await
}

/// Waits for a condition of a Job to be true.
async fn condition(
    cluster: &Cluster,
    name: &str,
    kind: &str,
) -> anyhow::Result<(JobStatus, String)> {
    let jobs = write::namespaced::<Job>(&cluster.client(), "default");
    let found = eventually(&format!("{name} to be {kind}"), || async {
        let status = jobs.get(name).await?.status.unwrap_or_default();
        let all = status.conditions.clone().unwrap_or_default();
        let found = all.iter().find(|c| c.type_ == kind && c.status == "True");
        Ok(found.map(|c| (status.clone(), c.reason.clone().unwrap_or_default())))
    })
    .await;
    if found.is_err() {
        for prefix in ["batch/", "pods/", "events/"] {
            println!("{}", cluster.dump(prefix).await);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_runs_its_pods_to_completion() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _node = cluster.add_node("n1").await?;
    let client = cluster.client();
    let spec = json!({"completions": 3, "parallelism": 2});
    objects(&client, &[job("plain", spec)]).await?;
    for left in [2, 2, 1] {
        let pods = running(&client, "plain", left).await?;
        end(&client, &pods[0], 0).await?;
        if left == 1 {
            break;
        }
    }
    let (status, reason) = condition(&cluster, "plain", "Complete").await?;
    assert_eq!(reason, "CompletionsReached");
    assert_eq!(
        (status.succeeded, status.failed, status.active),
        (Some(3), None, None)
    );
    assert!(status.completion_time.is_some() && status.start_time.is_some());
    let pods = write::namespaced::<Pod>(&client, "default");
    let all = pods.list(&ListParams::default()).await?.items;
    let kept = |p: &Pod| {
        p.metadata
            .finalizers
            .as_ref()
            .is_some_and(|f| !f.is_empty())
    };
    assert_eq!((all.len(), all.iter().filter(|p| kept(p)).count()), (3, 0));
    let events = write::namespaced::<Event>(&client, "default");
    eventually("the events of the job", || async {
        let all = events.list(&ListParams::default()).await?.items;
        let has = |reason: &str| all.iter().any(|e| e.reason.as_deref() == Some(reason));
        Ok((has("SuccessfulCreate") && has("Completed")).then_some(()))
    })
    .await?;

    let jobs = write::namespaced::<Job>(&client, "default");
    jobs.delete("plain", &DeleteParams::background()).await?;
    eventually("the pods to go with their job", || async {
        Ok(pods
            .list(&ListParams::default())
            .await?
            .items
            .is_empty()
            .then_some(()))
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_end_a_job_by_limit_and_by_policy() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _node = cluster.add_node("n1").await?;
    let client = cluster.client();
    let policy = json!({"rules": [
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [3]}},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]});
    let jobs = [
        job(
            "limited",
            json!({"backoffLimit": 0, "completions": 2, "parallelism": 2}),
        ),
        job(
            "ruled",
            json!({"podFailurePolicy": policy, "completions": 2, "parallelism": 2}),
        ),
        job("late", json!({"activeDeadlineSeconds": 1})),
    ];
    objects(&client, &jobs).await?;
    let pods = running(&client, "limited", 2).await?;
    end(&client, &pods[0], 1).await?;
    let (status, reason) = condition(&cluster, "limited", "Failed").await?;
    assert_eq!(reason, "BackoffLimitExceeded");
    assert_eq!((status.failed, status.active), (Some(2), None));

    let pods = running(&client, "ruled", 2).await?;
    end(&client, &pods[0], 42).await?;
    let (_, reason) = condition(&cluster, "ruled", "Failed").await?;
    assert_eq!(reason, "PodFailurePolicy");
    let (_, reason) = condition(&cluster, "late", "Failed").await?;
    assert_eq!(reason, "DeadlineExceeded");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn indexes_complete_each_and_a_policy_may_call_it_a_success() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _node = cluster.add_node("n1").await?;
    let client = cluster.client();
    let indexed = |more: Value| {
        let mut spec = json!({"completions": 4, "parallelism": 4, "completionMode": "Indexed"});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        spec
    };
    let policy = json!({"successPolicy": {"rules": [{"succeededIndexes": "1"}]}});
    let per_index = json!({"backoffLimitPerIndex": 0});
    objects(
        &client,
        &[
            job("each", indexed(json!({}))),
            job("leader", indexed(policy)),
            job("partly", indexed(per_index)),
        ],
    )
    .await?;
    for pod in running(&client, "each", 4).await? {
        end(&client, &pod, 0).await?;
    }
    let (status, _) = condition(&cluster, "each", "Complete").await?;
    assert_eq!(status.completed_indexes.as_deref(), Some("0-3"));

    let pods = running(&client, "leader", 4).await?;
    assert_eq!(
        pods[1].spec.as_ref().and_then(|s| s.hostname.as_deref()),
        Some("leader-1")
    );
    end(&client, &pods[1], 0).await?;
    let (status, reason) = condition(&cluster, "leader", "Complete").await?;
    assert_eq!(reason, "SuccessPolicy");
    assert_eq!(status.completed_indexes.as_deref(), Some("1"));

    for (place, pod) in running(&client, "partly", 4).await?.iter().enumerate() {
        end(&client, pod, i32::from(place == 2)).await?;
    }
    let (status, reason) = condition(&cluster, "partly", "Failed").await?;
    assert_eq!(reason, "FailedIndexes");
    assert_eq!(status.completed_indexes.as_deref(), Some("0,1,3"));
    assert_eq!(status.failed_indexes.as_deref(), Some("2"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_job_waits() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _node = cluster.add_node("n1").await?;
    let client = cluster.client();
    objects(&client, &[job("later", json!({"suspend": true}))]).await?;
    condition(&cluster, "later", "Suspended").await?;
    let jobs = write::namespaced::<Job>(&client, "default");
    let resume = Patch::Merge(json!({"spec": {"suspend": false}}));
    jobs.patch("later", &PatchParams::default(), &resume)
        .await?;
    let pods = running(&client, "later", 1).await?;
    let pause = Patch::Merge(json!({"spec": {"suspend": true}}));
    jobs.patch("later", &PatchParams::default(), &pause).await?;
    running(&client, "later", 0).await?;
    jobs.patch("later", &PatchParams::default(), &resume)
        .await?;
    let again = running(&client, "later", 1).await?;
    assert_ne!(pods[0].metadata.name, again[0].metadata.name);
    end(&client, &again[0], 0).await?;
    let (status, _) = condition(&cluster, "later", "Complete").await?;
    assert_eq!((status.succeeded, status.failed), (Some(1), None));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cron_job_starts_its_job_and_follows_it() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _node = cluster.add_node("n1").await?;
    let client = cluster.client();
    let cron = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "tick"},
        "spec": {"schedule": "@every 1s", "concurrencyPolicy": "Forbid",
            "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never",
                "containers": [{"name": "c", "image": "i"}]}}}}},
    });
    objects(&client, &[cron]).await?;
    let crons = write::namespaced::<CronJob>(&client, "default");
    let active = eventually("a run", || async {
        let status = crons.get("tick").await?.status.unwrap_or_default();
        let active = status.active.unwrap_or_default();
        Ok(active.first().and_then(|r| r.name.clone()))
    })
    .await?;
    assert!(active.starts_with("tick-"), "{active}");
    let pods = running(&client, &active, 1).await?;
    end(&client, &pods[0], 0).await?;
    eventually("the run to be noted", || async {
        let status = crons.get("tick").await?.status.unwrap_or_default();
        Ok(status.last_successful_time)
    })
    .await?;
    crons.delete("tick", &DeleteParams::background()).await?;
    let jobs = write::namespaced::<Job>(&client, "default");
    eventually("everything to go", || async {
        let all = jobs.list(&ListParams::default()).await?.items;
        Ok(all.is_empty().then_some(()))
    })
    .await
}
