//! Jobs.

use serde_json::{Value, json};

use testkit::{Cluster, Parts};

use super::rig::{Hands, Rig, is_empty, leaving, name, number, text};

const JOBS: &str = "batch/v1/jobs";
const INDEX: &str = "/metadata/annotations/batch.kubernetes.io~1job-completion-index";

fn job(more: Value) -> Value {
    let mut job = json!({"apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": "work", "labels": {"app": "work"}},
        "spec": {"template": {"metadata": {"labels": {"app": "work"}}, "spec": {
            "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    for (key, value) in more.as_object().into_iter().flatten() {
        job["spec"][key] = value.clone();
    }
    job
}

fn indexed(more: Value) -> Value {
    let mut spec = json!({"completionMode": "Indexed", "parallelism": 2, "completions": 2});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    job(spec)
}

fn index(pod: &Value) -> &str {
    text(pod, INDEX)
}

fn runs(pod: &Value) -> bool {
    text(pod, "/status/phase") == "Running" && !leaving(pod)
}

/// A cluster whose time the test moves.
async fn timed() -> anyhow::Result<(Rig, Hands)> {
    let hands = Hands::at(&client::Clock::system().now().to_string())?;
    let parts = Parts {
        controllers: true,
        scheduler: true,
    };
    let cluster = Cluster::at(parts, hands.clock()).await?;
    Ok((Rig::on(cluster, &["n1"]).await?, hands))
}

/// Has the Job looked at after the wait that follows a failure.
async fn after_the_wait(rig: &Rig, hands: &Hands) -> anyhow::Result<()> {
    hands.advance(15);
    let patch = json!({"metadata": {"annotations": {"looked-at": "later"}}});
    rig.merge(JOBS, "work", patch).await?;
    Ok(())
}

/// Waits for pods of these indexes to run.
async fn running(rig: &Rig, indexes: &[&str]) -> anyhow::Result<Vec<Value>> {
    let mut all = rig
        .until_all("v1/pods", "app=work", "to run", |all| {
            let mut now: Vec<_> = all.iter().filter(|p| runs(p)).map(index).collect();
            now.sort_unstable();
            now == indexes
        })
        .await?;
    all.retain(runs);
    all.sort_by_key(|p| index(p).to_owned());
    Ok(all)
}

/// Waits for the Job to end in this way.
async fn ended(rig: &Rig, kind: &str, reason: &str) -> anyhow::Result<Value> {
    let holds = |j: &Value| {
        let all = j["status"]["conditions"].as_array();
        let same = |c: &Value| c["type"] == kind && c["status"] == "True" && c["reason"] == reason;
        all.is_some_and(|all| all.iter().any(same))
    };
    rig.until(JOBS, "work", &format!("to be {kind}: {reason}"), holds)
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_ends_when_enough_pods_succeed() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let mut spec = job(json!({"parallelism": 2, "completions": 4}));
    spec["spec"]["template"]["spec"]["restartPolicy"] = json!("OnFailure");
    rig.create(JOBS, spec).await?;
    for _ in 0..2 {
        for pod in running(&rig, &["", ""]).await? {
            rig.end(name(&pod), 0).await?;
        }
        rig.until_all("v1/pods", "app=work", "to go on", |all| {
            all.iter().filter(|p| runs(p)).count() == 2 || all.len() == 4
        })
        .await?;
    }
    let done = ended(&rig, "Complete", "CompletionsReached").await?;
    assert_eq!(
        (
            number(&done, "/status/succeeded"),
            number(&done, "/status/failed")
        ),
        (4, 0)
    );
    Ok(())
}

/// Conformance: Ensure Pods of an Indexed Job get a unique index.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_index_has_its_pod() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    rig.create(JOBS, indexed(json!({"completions": 4, "parallelism": 4})))
        .await?;
    for pod in running(&rig, &["0", "1", "2", "3"]).await? {
        let expected = format!("work-{}", index(&pod));
        assert_eq!(text(&pod, "/spec/hostname"), expected);
        assert!(name(&pod).starts_with(&format!("{expected}-")));
        assert_eq!(
            text(
                &pod,
                "/metadata/labels/batch.kubernetes.io~1job-completion-index"
            ),
            index(&pod)
        );
        let env = &pod["spec"]["containers"][0]["env"][0];
        assert_eq!(text(env, "/name"), "JOB_COMPLETION_INDEX");
        rig.end(name(&pod), 0).await?;
    }
    let done = ended(&rig, "Complete", "CompletionsReached").await?;
    assert_eq!(text(&done, "/status/completedIndexes"), "0-3");
    Ok(())
}

/// Conformance: Ensure pod failure policy allows to ignore failure matching on the DisruptionTarget condition
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_eviction_may_be_no_failure() -> anyhow::Result<()> {
    let (rig, hands) = timed().await?;
    let policy =
        json!({"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]});
    let spec =
        json!({"backoffLimit": 0, "podFailurePolicy": policy, "completions": 2, "parallelism": 2});
    rig.create(JOBS, job(spec)).await?;
    let pods = running(&rig, &["", ""]).await?;
    let evicted = name(&pods[0]).to_owned();
    let conditions =
        json!([{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]);
    let patch = json!({"status": {"conditions": conditions}});
    rig.strategic("v1/pods", &format!("{evicted}/status"), patch)
        .await?;
    rig.end(&evicted, 137).await?;
    rig.delete("v1/pods", &evicted, Value::Null).await?;
    rig.until_gone("v1/pods", &evicted).await?;
    after_the_wait(&rig, &hands).await?;
    for pod in running(&rig, &["", ""]).await? {
        rig.end(name(&pod), 0).await?;
    }
    let done = ended(&rig, "Complete", "CompletionsReached").await?;
    assert_eq!(
        (
            number(&done, "/status/succeeded"),
            number(&done, "/status/failed")
        ),
        (2, 0)
    );
    Ok(())
}

/// Conformance: Verify Pod Failure policy allows to fail job early on exit code.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exit_code_may_end_the_job() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let policy = json!({"rules": [{"action": "FailJob",
        "onExitCodes": {"operator": "In", "values": [1]}}]});
    rig.create(
        JOBS,
        job(json!({"backoffLimit": 6, "podFailurePolicy": policy,
        "completions": 2, "parallelism": 2})),
    )
    .await?;
    let pods = running(&rig, &["", ""]).await?;
    rig.end(name(&pods[0]), 1).await?;
    let done = ended(&rig, "Failed", "PodFailurePolicy").await?;
    let conditions = done["status"]["conditions"].as_array().unwrap();
    let failed = conditions.iter().find(|c| c["type"] == "Failed").unwrap();
    let expected = format!(
        "Container c for pod default/{} failed with exit code 1 matching FailJob rule at index 0",
        name(&pods[0])
    );
    assert_eq!(text(failed, "/message"), expected);
    rig.until_all("v1/pods", "app=work", "to stop", |all| {
        !all.iter().any(runs)
    })
    .await?;
    Ok(())
}

/// Conformance: Ensure that all indexes are executed for an indexed job with backoffLimitPerIndex despite some failing
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn indexes_fail_for_themselves() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    rig.create(JOBS, indexed(json!({"backoffLimitPerIndex": 0})))
        .await?;
    for pod in running(&rig, &["0", "1"]).await? {
        rig.end(name(&pod), i32::from(index(&pod) == "0")).await?;
    }
    let done = ended(&rig, "Failed", "FailedIndexes").await?;
    assert_eq!(text(&done, "/status/failedIndexes"), "0");
    assert_eq!(text(&done, "/status/completedIndexes"), "1");
    assert_eq!(
        (
            number(&done, "/status/succeeded"),
            number(&done, "/status/failed")
        ),
        (1, 1)
    );
    Ok(())
}

/// Conformance: Mark indexes as failed when the FailIndex action is matched in podFailurePolicy
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_may_give_an_index_up() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let policy = json!({"rules": [{"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [42]}}]});
    let spec = json!({"backoffLimitPerIndex": 6, "podFailurePolicy": policy});
    rig.create(JOBS, indexed(spec)).await?;
    for pod in running(&rig, &["0", "1"]).await? {
        rig.end(name(&pod), if index(&pod) == "0" { 42 } else { 0 })
            .await?;
    }
    let done = ended(&rig, "Failed", "FailedIndexes").await?;
    assert_eq!(text(&done, "/status/failedIndexes"), "0");
    assert_eq!(text(&done, "/status/completedIndexes"), "1");
    Ok(())
}

/// Conformance: Terminate job execution when the maxFailedIndexes is exceeded
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_failed_indexes_end_the_job() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let spec = json!({"backoffLimitPerIndex": 0, "maxFailedIndexes": 0, "completions": 4, "parallelism": 2});
    rig.create(JOBS, indexed(spec)).await?;
    let pods = running(&rig, &["0", "1"]).await?;
    rig.end(name(&pods[0]), 1).await?;
    let done = ended(&rig, "Failed", "MaxFailedIndexesExceeded").await?;
    assert_eq!(number(&done, "/status/active"), 0);
    assert!(text(&done, "/status/failedIndexes").starts_with('0'));
    Ok(())
}

/// Conformance: Ensure that job with successPolicy succeeded when all indexes succeeded
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn success_of_all_needs_no_policy() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let policy = json!({"rules": [{"succeededCount": 2}]});
    rig.create(JOBS, indexed(json!({"successPolicy": policy})))
        .await?;
    for pod in running(&rig, &["0", "1"]).await? {
        rig.end(name(&pod), 0).await?;
    }
    let holds = |j: &Value| {
        let all = j["status"]["conditions"].as_array();
        all.is_some_and(|all| {
            all.iter()
                .any(|c| c["type"] == "Complete" && c["status"] == "True")
        })
    };
    let done = rig.until(JOBS, "work", "to be complete", holds).await?;
    assert_eq!(text(&done, "/status/completedIndexes"), "0,1");
    assert!(done["status"]["conditions"].as_array().is_some_and(|all| {
        all.iter()
            .any(|c| c["type"] == "SuccessCriteriaMet" && c["status"] == "True")
    }));
    Ok(())
}

/// Conformance: Ensure that job with successPolicy succeededIndexes rule succeeded even when some indexes remain pending
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_may_speak_for_all() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let policy = json!({"rules": [{"succeededIndexes": "0"}]});
    rig.create(JOBS, indexed(json!({"successPolicy": policy})))
        .await?;
    let pods = running(&rig, &["0", "1"]).await?;
    rig.end(name(&pods[0]), 0).await?;
    let done = ended(&rig, "Complete", "SuccessPolicy").await?;
    assert_eq!(text(&done, "/status/completedIndexes"), "0");
    assert_eq!(
        (
            number(&done, "/status/active"),
            number(&done, "/status/terminating")
        ),
        (0, 0)
    );
    rig.until_all("v1/pods", "app=work", "to stop", |all| {
        !all.iter().any(runs)
    })
    .await?;
    Ok(())
}

/// Conformance: Ensure that job with successPolicy succeededCount rule succeeded even when some indexes remain pending
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_success_may_be_enough() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let policy = json!({"rules": [{"succeededCount": 1}]});
    rig.create(JOBS, indexed(json!({"successPolicy": policy})))
        .await?;
    let pods = running(&rig, &["0", "1"]).await?;
    rig.end(name(&pods[1]), 0).await?;
    let done = ended(&rig, "Complete", "SuccessPolicy").await?;
    assert_eq!(text(&done, "/status/completedIndexes"), "1");
    assert_eq!(number(&done, "/status/succeeded"), 1);
    Ok(())
}

/// Conformance: Jobs, active pods, graceful termination
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_pods_go_with_it() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    rig.create(JOBS, job(json!({"parallelism": 2, "completions": 4})))
        .await?;
    running(&rig, &["", ""]).await?;
    let options = json!({"propagationPolicy": "Background"});
    rig.delete(JOBS, "work", options).await?;
    rig.until_gone(JOBS, "work").await?;
    rig.until_all("v1/pods", "app=work", "to be gone", <[Value]>::is_empty)
        .await?;
    Ok(())
}

/// Conformance: Jobs, orphan pods, re-adoption
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_adopts_and_releases() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let made = rig
        .create(JOBS, job(json!({"parallelism": 2, "completions": 4})))
        .await?;
    let pods = running(&rig, &["", ""]).await?;
    let pod = name(&pods[0]).to_owned();
    rig.merge(
        "v1/pods",
        &pod,
        json!({"metadata": {"ownerReferences": null}}),
    )
    .await?;
    rig.until("v1/pods", &pod, "to be adopted", |p| {
        text(p, "/metadata/ownerReferences/0/uid") == text(&made, "/metadata/uid")
            && text(p, "/metadata/ownerReferences/0/kind") == "Job"
    })
    .await?;
    rig.merge("v1/pods", &pod, json!({"metadata": {"labels": null}}))
        .await?;
    rig.until("v1/pods", &pod, "to be released", |p| {
        is_empty(&p["metadata"]["ownerReferences"]) && is_empty(&p["metadata"]["finalizers"])
    })
    .await?;
    running(&rig, &["", ""]).await?;
    Ok(())
}

/// Conformance: Jobs, apply changes to status
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_status_is_a_resource_of_its_own() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    rig.create(JOBS, job(json!({"parallelism": 2, "completions": 4})))
        .await?;
    running(&rig, &["", ""]).await?;
    rig.until(JOBS, "work", "to count", |j| {
        number(j, "/status/active") == 2
    })
    .await?;
    let patch = json!({"metadata": {"annotations": {"patchedstatus": "true"}},
        "status": {"conditions": [{"type": "CustomConditionType", "status": "True",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let patched = rig.merge(JOBS, "work/status", patch).await?;
    assert_eq!(
        text(&patched, "/metadata/annotations/patchedstatus"),
        "true"
    );
    assert_eq!(
        text(&patched, "/status/conditions/0/type"),
        "CustomConditionType"
    );
    let updated = client::write::retry_on_conflict(|| async {
        let mut job = rig.get(JOBS, "work").await?;
        job["status"]["conditions"][0]["reason"] = json!("StatusUpdate");
        rig.replace(JOBS, "work/status", job).await
    })
    .await?;
    assert_eq!(
        text(&updated, "/status/conditions/0/reason"),
        "StatusUpdate"
    );
    let status = rig.get(JOBS, "work/status").await?;
    assert_eq!(status["metadata"]["uid"], updated["metadata"]["uid"]);
    Ok(())
}

/// Conformance: Jobs, manage lifecycle
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_lives() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let made = rig
        .create(
            JOBS,
            job(json!({"suspend": true, "parallelism": 1, "completions": 1})),
        )
        .await?;
    ended(&rig, "Suspended", "JobSuspended").await?;
    let patch = json!({"metadata": {"labels": {"e2e": "patched"}}});
    rig.strategic(JOBS, "work", patch).await?;
    assert_eq!(rig.list(JOBS, "e2e=patched").await?.len(), 1);
    client::write::retry_on_conflict(|| async {
        let mut job = rig.get(JOBS, "work").await?;
        job["spec"]["suspend"] = json!(false);
        job["metadata"]["annotations"] = json!({"updated": "true"});
        rig.replace(JOBS, "work", job).await
    })
    .await?;
    let pods = running(&rig, &[""]).await?;
    rig.end(name(&pods[0]), 0).await?;
    ended(&rig, "Complete", "CompletionsReached").await?;
    rig.delete_all(JOBS, "e2e=patched").await?;
    rig.until_gone(JOBS, "work").await?;
    let seen = rig.happened(JOBS, &made).await?;
    for kind in ["MODIFIED", "DELETED"] {
        assert!(seen.iter().any(|(k, _)| k == kind), "{kind}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_elastic_job_follows_its_size_and_others_manage_theirs() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let mut theirs = job(json!({"managedBy": "example.com/other"}));
    theirs["metadata"]["name"] = json!("theirs");
    rig.create(JOBS, theirs).await?;
    rig.create(JOBS, indexed(json!({}))).await?;
    running(&rig, &["0", "1"]).await?;
    rig.merge(
        JOBS,
        "work",
        json!({"spec": {"completions": 3, "parallelism": 3}}),
    )
    .await?;
    running(&rig, &["0", "1", "2"]).await?;
    rig.merge(
        JOBS,
        "work",
        json!({"spec": {"completions": 1, "parallelism": 1}}),
    )
    .await?;
    for pod in running(&rig, &["0"]).await? {
        rig.end(name(&pod), 0).await?;
    }
    let done = ended(&rig, "Complete", "CompletionsReached").await?;
    assert_eq!(text(&done, "/status/completedIndexes"), "0");
    let theirs = rig.get(JOBS, "theirs").await?;
    assert!(
        theirs["status"]
            .as_object()
            .is_none_or(serde_json::Map::is_empty),
        "{theirs}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaving_pod_may_have_to_end_before_it_is_replaced() -> anyhow::Result<()> {
    let (rig, hands) = timed().await?;
    rig.create(
        JOBS,
        job(json!({"podReplacementPolicy": "Failed", "parallelism": 1})),
    )
    .await?;
    let first = name(&running(&rig, &[""]).await?[0]).to_owned();
    let hold = json!({"metadata": {"finalizers": ["batch.kubernetes.io/job-tracking", "example.com/hold"]}});
    rig.merge("v1/pods", &first, hold).await?;
    // It is being deleted, but its containers still run.
    rig.delete("v1/pods", &first, json!({"gracePeriodSeconds": 600}))
        .await?;
    rig.until(JOBS, "work", "to see it leave", |j| {
        number(j, "/status/terminating") == 1 && number(j, "/status/active") == 0
    })
    .await?;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(
        rig.list("v1/pods", "app=work").await?.len(),
        1,
        "it did not wait"
    );
    rig.end(&first, 1).await?;
    rig.until(JOBS, "work", "to see it end", |j| {
        number(j, "/status/failed") == 1
    })
    .await?;
    after_the_wait(&rig, &hands).await?;
    let next = running(&rig, &[""]).await?;
    assert_ne!(name(&next[0]), first);
    rig.until(JOBS, "work", "to count it", |j| {
        number(j, "/status/failed") == 1
    })
    .await?;
    Ok(())
}
