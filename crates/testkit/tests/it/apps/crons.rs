//! CronJobs, by a clock that the test moves.

use serde_json::{Value, json};
use testkit::{Cluster, Parts};

use super::rig::{Hands, Rig, name, text};

const CRONS: &str = "batch/v1/cronjobs";
const JOBS: &str = "batch/v1/jobs";

/// A cluster at a full minute, and its time.
struct Timed {
    rig: Rig,
    hands: Hands,
}

impl Timed {
    async fn start() -> anyhow::Result<Self> {
        let hands = Hands::at("2030-01-01T10:00:30Z")?;
        let parts = Parts {
            controllers: true,
            scheduler: false,
        };
        let cluster = Cluster::at(parts, hands.clock()).await?;
        let rig = Rig::on(cluster, &[]).await?;
        Ok(Self { rig, hands })
    }

    /// A minute goes by, and the CronJob is looked at.
    async fn minute(&self) -> anyhow::Result<()> {
        self.hands.advance(60);
        let now = self.hands.clock().now().to_string();
        let patch = json!({"metadata": {"annotations": {"looked-at": now}}});
        self.rig.merge(CRONS, "cron", patch).await?;
        Ok(())
    }

    async fn jobs(&self, count: usize) -> anyhow::Result<Vec<Value>> {
        let enough = |all: &[Value]| all.len() == count;
        let what = format!("to be {count}");
        let mut all = self.rig.until_all(JOBS, "", &what, enough).await?;
        all.sort_by_key(|j| name(j).to_owned());
        Ok(all)
    }
}

fn cron(more: Value) -> Value {
    let mut cron = json!({"apiVersion": "batch/v1", "kind": "CronJob",
        "metadata": {"name": "cron", "labels": {"special": "cron"}},
        "spec": {"schedule": "*/1 * * * ?", "jobTemplate": {"spec": {"template": {"spec": {
            "restartPolicy": "OnFailure", "containers": [{"name": "c", "image": "i"}]}}}}}});
    for (key, value) in more.as_object().into_iter().flatten() {
        cron["spec"][key] = value.clone();
    }
    cron
}

fn active(n: usize) -> impl Fn(&Value) -> bool {
    move |c| c["status"]["active"].as_array().map_or(0, Vec::len) == n
}

/// Lets everything that was going to happen happen.
async fn pause() {
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
}

/// Conformance: CronJob AllowConcurrent
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_may_overlap() -> anyhow::Result<()> {
    let timed = Timed::start().await?;
    timed.rig.create(CRONS, cron(json!({}))).await?;
    timed.minute().await?;
    timed.jobs(1).await?;
    timed.minute().await?;
    let jobs = timed.jobs(2).await?;
    timed
        .rig
        .until(CRONS, "cron", "to have two", active(2))
        .await?;
    for (job, minute) in jobs.iter().zip(["10:01", "10:02"]) {
        let at = "/metadata/annotations/batch.kubernetes.io~1cronjob-scheduled-timestamp";
        assert_eq!(text(job, at), format!("2030-01-01T{minute}:00Z"));
        assert_eq!(text(job, "/metadata/ownerReferences/0/kind"), "CronJob");
    }
    Ok(())
}

/// Conformance: CronJob Suspend
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_one_does_not_run() -> anyhow::Result<()> {
    let timed = Timed::start().await?;
    timed
        .rig
        .create(CRONS, cron(json!({"suspend": true})))
        .await?;
    for _ in 0..3 {
        timed.minute().await?;
        pause().await;
    }
    assert!(timed.jobs(0).await?.is_empty());
    assert!(active(0)(&timed.rig.get(CRONS, "cron").await?));
    Ok(())
}

/// Conformance: CronJob ForbidConcurrent
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_may_have_to_wait_for_the_one_before() -> anyhow::Result<()> {
    let timed = Timed::start().await?;
    timed
        .rig
        .create(CRONS, cron(json!({"concurrencyPolicy": "Forbid"})))
        .await?;
    timed.minute().await?;
    let first = timed.jobs(1).await?;
    timed
        .rig
        .until(CRONS, "cron", "to have one", active(1))
        .await?;
    timed.minute().await?;
    timed
        .rig
        .until_all("v1/events", "", "to tell of it", |all| {
            all.iter().any(|e| e["reason"] == "JobAlreadyActive")
        })
        .await?;
    assert_eq!(name(&timed.jobs(1).await?[0]), name(&first[0]));
    Ok(())
}

/// Conformance: CronJob ReplaceConcurrent
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_may_replace_the_one_before() -> anyhow::Result<()> {
    let timed = Timed::start().await?;
    timed
        .rig
        .create(CRONS, cron(json!({"concurrencyPolicy": "Replace"})))
        .await?;
    timed.minute().await?;
    let first = name(&timed.jobs(1).await?[0]).to_owned();
    timed
        .rig
        .until(CRONS, "cron", "to have one", active(1))
        .await?;
    timed.minute().await?;
    timed.rig.until_gone(JOBS, &first).await?;
    let second = timed.jobs(1).await?;
    assert_ne!(name(&second[0]), first);
    timed
        .rig
        .until(CRONS, "cron", "to have the other", |c| {
            text(c, "/status/active/0/name") == name(&second[0])
        })
        .await?;
    Ok(())
}

/// Conformance: CronJob API Operations
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_operations_are_served() -> anyhow::Result<()> {
    let timed = Timed::start().await?;
    let rig = &timed.rig;
    let made = rig.create(CRONS, cron(json!({"suspend": true}))).await?;
    assert_eq!(
        rig.get(CRONS, "cron").await?["metadata"]["uid"],
        made["metadata"]["uid"]
    );
    assert_eq!(rig.list(CRONS, "special=cron").await?.len(), 1);
    let all = rig
        .raw(http::Method::GET, "/apis/batch/v1/cronjobs", Value::Null)
        .await?;
    assert_eq!(all["items"].as_array().map(Vec::len), Some(1));
    let patched = rig
        .merge(
            CRONS,
            "cron",
            json!({"metadata": {"annotations": {"patched": "true"}}}),
        )
        .await?;
    assert_eq!(text(&patched, "/metadata/annotations/patched"), "true");
    let mut update = patched;
    update["metadata"]["annotations"]["updated"] = json!("true");
    let updated = rig.replace(CRONS, "cron", update).await?;
    assert_eq!(text(&updated, "/metadata/annotations/updated"), "true");
    let seen = rig.happened(CRONS, &made).await?;
    assert!(
        seen.iter().any(
            |(kind, c)| kind == "MODIFIED" && c["metadata"]["annotations"]["updated"] == "true"
        )
    );

    let at = "2030-01-01T10:00:00Z";
    let patch = json!({"metadata": {"annotations": {"patchedstatus": "true"}},
        "status": {"lastScheduleTime": at}});
    let patched = rig.merge(CRONS, "cron/status", patch).await?;
    assert_eq!(text(&patched, "/status/lastScheduleTime"), at);
    assert_eq!(
        text(&patched, "/metadata/annotations/patchedstatus"),
        "true"
    );
    let later = "2030-01-01T10:00:10Z";
    let mut update = patched;
    update["status"]["lastScheduleTime"] = json!(later);
    let updated = rig.replace(CRONS, "cron/status", update).await?;
    assert_eq!(text(&updated, "/status/lastScheduleTime"), later);
    let read = rig.get(CRONS, "cron/status").await?;
    assert_eq!(read["metadata"]["uid"], made["metadata"]["uid"]);

    let mut temporary = cron(json!({"suspend": true}));
    temporary["metadata"]["name"] = json!("temporary");
    rig.create(CRONS, temporary).await?;
    rig.delete(CRONS, "temporary", Value::Null).await?;
    rig.until_gone(CRONS, "temporary").await?;
    rig.delete_all(CRONS, "special=cron").await?;
    rig.until_all(CRONS, "special=cron", "to be gone", <[Value]>::is_empty)
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_missed_runs_only_the_last_is_made_up() -> anyhow::Result<()> {
    let timed = Timed::start().await?;
    timed.rig.create(CRONS, cron(json!({}))).await?;
    timed
        .rig
        .until(CRONS, "cron", "to be there", Value::is_object)
        .await?;
    timed.hands.advance(540);
    timed.minute().await?;
    let jobs = timed.jobs(1).await?;
    let at = "/metadata/annotations/batch.kubernetes.io~1cronjob-scheduled-timestamp";
    assert_eq!(text(&jobs[0], at), "2030-01-01T10:10:00Z");
    pause().await;
    assert_eq!(timed.jobs(1).await?.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_too_late_is_missed_and_zones_are_kept() -> anyhow::Result<()> {
    let timed = Timed::start().await?;
    // Noon in Berlin is eleven o'clock here.
    let mut berlin = cron(json!({"schedule": "1 11 * * *", "timeZone": "Europe/Berlin"}));
    berlin["metadata"]["name"] = json!("berlin");
    timed.rig.create(CRONS, berlin).await?;
    let late = json!({"schedule": "0 10 * * *", "startingDeadlineSeconds": 10});
    timed.rig.create(CRONS, cron(late)).await?;
    timed.minute().await?;
    let poke = json!({"metadata": {"annotations": {"looked-at": "now"}}});
    timed.rig.merge(CRONS, "berlin", poke).await?;
    let jobs = timed.jobs(1).await?;
    assert!(name(&jobs[0]).starts_with("berlin-"), "{}", jobs[0]);
    let at = "/metadata/annotations/batch.kubernetes.io~1cronjob-scheduled-timestamp";
    assert_eq!(text(&jobs[0], at), "2030-01-01T11:01:00+01:00");
    Ok(())
}
