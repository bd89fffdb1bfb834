//! Which run of a CronJob is due, what stands in its way, and which Jobs are history. Pure.

use api::cron::{Schedule, zone};
use client::EventType;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        batch::v1::{CronJob, CronJobStatus, Job},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};

use crate::claim;

/// The annotation of a Job that tells which run it is.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed runs than these are worth a word.
const MISSED_MAX: usize = 100;

type Tale = (EventType, &'static str, String);

/// What is to be done, in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What to tell.
    pub events: Vec<Tale>,
    /// The status as the Jobs say.
    pub status: CronJobStatus,
    /// Jobs that make way for the next run, by place.
    pub replace: Vec<usize>,
    /// The run to be started.
    pub start: Option<Box<Start>>,
    /// Jobs that are history, by place.
    pub expired: Vec<usize>,
    /// When to look again at the latest.
    pub wait: Option<SignedDuration>,
}

/// A run to be started.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    /// When it was due.
    pub due: Timestamp,
    /// Its Job.
    pub job: Job,
}

/// Decides from the Jobs that belong to `cron`.
pub fn plan(cron: &CronJob, jobs: &[Job], now: Timestamp) -> Plan {
    let mut plan = Plan {
        status: cron.status.clone().unwrap_or_default(),
        ..Plan::default()
    };
    follow(&mut plan, jobs);
    if cron.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    plan.expired = expired(cron, jobs);
    let spec = &cron.spec;
    let zone = match zone(spec.time_zone.as_deref()) {
        Ok(zone) => zone,
        Err(why) => {
            let name = spec.time_zone.as_deref().unwrap_or_default();
            let message = format!("invalid timeZone: {name:?}: {why}");
            plan.events
                .push((EventType::Warning, "UnknownTimeZone", message));
            return plan;
        }
    };
    if spec.suspend == Some(true) {
        return plan;
    }
    if spec.schedule.contains("TZ") {
        let message = format!(
            "CRON_TZ or TZ used in schedule {:?} is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details",
            spec.schedule
        );
        plan.events
            .push((EventType::Warning, "UnsupportedSchedule", message));
    }
    let schedule = match Schedule::parse(&spec.schedule, zone.clone()) {
        Ok(schedule) => schedule,
        Err(why) => {
            let message = format!("unparseable schedule: {:?} : {why}", spec.schedule);
            plan.events
                .push((EventType::Warning, "UnparseableSchedule", message));
            return plan;
        }
    };
    if schedule.next(now).is_none() {
        let message = format!(
            "invalid schedule: {} : time difference between two schedules is less than 1 second",
            spec.schedule
        );
        plan.events
            .push((EventType::Warning, "InvalidSchedule", message));
        return plan;
    }
    let due = due(cron, &schedule, now);
    let next = schedule.next(due.latest.unwrap_or(due.since));
    plan.wait = next.map(|next| next.duration_since(now).max(SignedDuration::ZERO));
    if due.missed > MISSED_MAX {
        let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.events
            .push((EventType::Warning, "TooManyMissedTimes", message.into()));
    }
    if let Some(at) = due.latest {
        start(cron, jobs, at, &zone, now, &mut plan);
    }
    plan
}

/// Follows the Jobs that run: the status lists them until they end or vanish.
fn follow(plan: &mut Plan, jobs: &[Job]) {
    let active = plan.status.active.take().unwrap_or_default();
    for job in jobs {
        let uid = job.metadata.uid.as_deref();
        let listed = active.iter().any(|r| r.uid.as_deref() == uid);
        let name = job.metadata.name.as_deref().unwrap_or_default();
        match (outcome(job), listed) {
            (None, false) => {
                let message =
                    format!("Saw a job that the controller did not create or forgot: {name}");
                plan.events
                    .push((EventType::Warning, "UnexpectedJob", message));
            }
            (Some(how), true) => {
                let message = format!("Saw completed job: {name}, condition: {how}");
                plan.events
                    .push((EventType::Normal, "SawCompletedJob", message));
            }
            _ => {}
        }
        let completed = job.status.as_ref().and_then(|s| s.completion_time.clone());
        if outcome(job) == Some("Complete") && completed > plan.status.last_successful_time {
            plan.status.last_successful_time = completed;
        }
    }
    let mut still = Vec::new();
    for reference in active {
        let job = jobs.iter().find(|j| j.metadata.uid == reference.uid);
        match job {
            Some(job) if outcome(job).is_none() => still.push(reference),
            Some(_) => {}
            None => {
                let name = reference.name.unwrap_or_default();
                let message = format!("Active job went missing: {name}");
                plan.events.push((EventType::Normal, "MissingJob", message));
            }
        }
    }
    plan.status.active = (!still.is_empty()).then_some(still);
}

/// How a Job has ended.
pub fn outcome(job: &Job) -> Option<&str> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    let ended = |c: &&k8s_openapi::api::batch::v1::JobCondition| {
        c.status == "True" && matches!(c.type_.as_str(), "Complete" | "Failed")
    };
    conditions.iter().find(ended).map(|c| c.type_.as_str())
}

struct Due {
    /// Runs are counted from here.
    since: Timestamp,
    /// The last run that should have started by now.
    latest: Option<Timestamp>,
    missed: usize,
}

fn due(cron: &CronJob, schedule: &Schedule, now: Timestamp) -> Due {
    let created = cron.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let last = cron
        .status
        .as_ref()
        .and_then(|s| s.last_schedule_time.as_ref());
    let mut since = last.map(|t| t.0).or(created).unwrap_or(now);
    if let Some(deadline) = cron.spec.starting_deadline_seconds {
        let earliest = now.checked_sub(SignedDuration::from_secs(deadline));
        since = since.max(earliest.unwrap_or(since));
    }
    let mut due = Due {
        since,
        latest: None,
        missed: 0,
    };
    let first = schedule.next(since).filter(|t| *t <= now);
    let mut at = first;
    while let Some(time) = at.filter(|t| *t <= now) {
        due.latest = Some(time);
        due.missed += 1;
        if due.missed > MISSED_MAX {
            due.latest = latest(schedule, time, now);
            break;
        }
        at = schedule.next(time);
    }
    due
}

/// The last time until `now`, known to be at `earliest` or after it: looks back twice as far
/// until there is one.
fn latest(schedule: &Schedule, earliest: Timestamp, now: Timestamp) -> Option<Timestamp> {
    if let Schedule::Every(distance) = schedule {
        let times = now.duration_since(earliest).as_secs() / distance.as_secs();
        let past = SignedDuration::from_secs(times * distance.as_secs());
        return earliest.checked_add(past).ok();
    }
    let mut back = SignedDuration::from_mins(2);
    loop {
        let from = now.checked_sub(back).ok().filter(|t| *t > earliest);
        let mut found = None;
        let mut at = schedule.next(from.unwrap_or(earliest));
        while let Some(time) = at.filter(|t| *t <= now) {
            found = Some(time);
            at = schedule.next(time);
        }
        if from.is_none() {
            return found.or(Some(earliest));
        }
        if found.is_some() {
            return found;
        }
        back *= 2;
    }
}

fn start(
    cron: &CronJob,
    jobs: &[Job],
    at: Timestamp,
    zone: &jiff::tz::TimeZone,
    now: Timestamp,
    plan: &mut Plan,
) {
    let deadline = cron.spec.starting_deadline_seconds;
    let late = |seconds: i64| now.duration_since(at) > SignedDuration::from_secs(seconds);
    if deadline.is_some_and(late) {
        let when = at.strftime("%a, %d %b %Y %H:%M:%S +0000");
        let message = format!("Missed scheduled time to start a job: {when}");
        plan.events
            .push((EventType::Warning, "MissSchedule", message));
        return;
    }
    let active = plan.status.active.clone().unwrap_or_default();
    let job = job(cron, at, zone);
    let last = plan.status.last_schedule_time.as_ref();
    if active.iter().any(|r| r.name == job.metadata.name) || last.is_some_and(|t| t.0 == at) {
        return;
    }
    match cron.spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.events
                .push((EventType::Normal, "JobAlreadyActive", message.into()));
            return;
        }
        Some("Replace") => {
            let listed = |j: &Job| active.iter().any(|r| r.uid == j.metadata.uid);
            plan.replace = (0..jobs.len()).filter(|&i| listed(&jobs[i])).collect();
        }
        _ => {}
    }
    plan.start = Some(Box::new(Start { due: at, job }));
}

/// The Job of a run.
fn job(cron: &CronJob, at: Timestamp, zone: &jiff::tz::TimeZone) -> Job {
    let template = &cron.spec.job_template;
    let meta = template.metadata.as_ref();
    let name = cron.metadata.name.as_deref().unwrap_or_default();
    let when = at.to_zoned(zone.clone());
    let when = when.strftime(if when.offset().is_zero() {
        "%Y-%m-%dT%H:%M:%SZ"
    } else {
        "%Y-%m-%dT%H:%M:%S%:z"
    });
    let mut annotations = meta.and_then(|m| m.annotations.clone()).unwrap_or_default();
    annotations.insert(SCHEDULED.into(), when.to_string());
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{}", at.as_second().div_euclid(60))),
            namespace: cron.metadata.namespace.clone(),
            labels: meta.and_then(|m| m.labels.clone()),
            annotations: Some(annotations),
            owner_references: Some(vec![claim::owner_reference(cron)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// How the status names a Job that runs.
pub fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".into()),
        kind: Some("Job".into()),
        name: job.metadata.name.clone(),
        namespace: job.metadata.namespace.clone(),
        uid: job.metadata.uid.clone(),
        resource_version: job.metadata.resource_version.clone(),
        ..ObjectReference::default()
    }
}

/// Ended Jobs beyond those that are to be kept, the oldest.
fn expired(cron: &CronJob, jobs: &[Job]) -> Vec<usize> {
    let started = |i: usize| {
        let status = jobs[i].status.as_ref();
        let start: Option<Time> = status.and_then(|s| s.start_time.clone());
        let name = jobs[i].metadata.name.clone();
        (start.is_none(), start, name)
    };
    let beyond = |how: &str, limit: Option<i32>| {
        let Some(limit) = limit.and_then(|l| usize::try_from(l).ok()) else {
            return Vec::new();
        };
        let mut all: Vec<usize> = (0..jobs.len())
            .filter(|&i| outcome(&jobs[i]) == Some(how))
            .filter(|&i| jobs[i].metadata.deletion_timestamp.is_none())
            .collect();
        all.sort_by_cached_key(|&i| started(i));
        let excess = all.len().saturating_sub(limit);
        all.truncate(excess);
        all
    };
    let mut doomed = beyond("Complete", cron.spec.successful_jobs_history_limit);
    doomed.extend(beyond("Failed", cron.spec.failed_jobs_history_limit));
    doomed
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn cron(spec: Value, status: Value) -> CronJob {
        let mut cron = json!({
            "metadata": {"name": "c", "namespace": "n", "uid": "c", "creationTimestamp": "2026-01-01T00:00:30Z"},
            "spec": {"schedule": "*/10 * * * *", "concurrencyPolicy": "Allow",
                "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0,
                "jobTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {"template": {}}}},
            "status": status,
        });
        for (key, value) in spec.as_object().unwrap() {
            cron["spec"][key] = value.clone();
        }
        serde_json::from_value(cron).unwrap()
    }

    fn at(time: &str) -> Timestamp {
        format!("2026-01-01T{time}Z").parse().unwrap()
    }

    fn ended(name: &str, how: &str, start: &str) -> Job {
        serde_json::from_value(json!({
            "metadata": {"name": name, "uid": name},
            "status": {"startTime": at(start).to_string(), "completionTime": at(start).to_string(),
                "conditions": [{"type": how, "status": "True"}]},
        }))
        .unwrap()
    }

    fn running(name: &str) -> Job {
        serde_json::from_value(json!({"metadata": {"name": name, "uid": name}})).unwrap()
    }

    fn reasons(plan: &Plan) -> Vec<&str> {
        plan.events.iter().map(|(_, reason, _)| *reason).collect()
    }

    #[test]
    fn runs_are_due_once_and_missed_ones_are_made_up_for_once() {
        let last = |time: &str| json!({"lastScheduleTime": at(time).to_string()});
        for (spec, status, now, due, wait, told) in [
            (json!({}), json!({}), "00:09:00", None, 60, vec![]),
            (
                json!({}),
                json!({}),
                "00:10:00",
                Some("00:10:00"),
                600,
                vec![],
            ),
            (json!({}), last("00:10:00"), "00:10:01", None, 599, vec![]),
            (
                json!({}),
                json!({}),
                "00:45:00",
                Some("00:40:00"),
                300,
                vec![],
            ),
            (
                json!({}),
                json!({}),
                "22:45:00",
                Some("22:40:00"),
                300,
                vec!["TooManyMissedTimes"],
            ),
            (
                json!({"startingDeadlineSeconds": 100}),
                json!({}),
                "00:45:00",
                None,
                300,
                vec![],
            ),
            (
                json!({"startingDeadlineSeconds": 100}),
                json!({}),
                "00:41:00",
                Some("00:40:00"),
                540,
                vec![],
            ),
            (
                json!({"schedule": "@every 7m"}),
                last("00:10:00"),
                "00:25:30",
                Some("00:24:00"),
                330,
                vec![],
            ),
        ] {
            let case = format!("{spec} {status} {now}");
            let plan = plan(&cron(spec, status), &[], at(now));
            let started = plan.start.as_ref().map(|s| s.due);
            assert_eq!(started, due.map(at), "{case}");
            assert_eq!(plan.wait.unwrap().as_secs(), wait, "{case}");
            assert_eq!(reasons(&plan), told, "{case}");
        }
        let suspended = plan(
            &cron(json!({"suspend": true}), json!({})),
            &[],
            at("00:10:00"),
        );
        assert_eq!((suspended.start, suspended.wait), (None, None));
        let asleep = cron(json!({"suspend": true, "schedule": "x"}), json!({}));
        assert_eq!(plan(&asleep, &[], at("00:10:00")).events, []);
        for (spec, reason) in [
            (json!({"schedule": "x"}), "UnparseableSchedule"),
            (json!({"timeZone": "No/Where"}), "UnknownTimeZone"),
            (json!({"schedule": "59 23 31 2 *"}), "InvalidSchedule"),
            (
                json!({"schedule": "TZ=Asia/Tokyo 0 9 * * *"}),
                "UnsupportedSchedule",
            ),
        ] {
            assert_eq!(
                reasons(&plan(&cron(spec, json!({})), &[], at("00:10:00"))),
                [reason]
            );
        }
    }

    #[test]
    fn a_run_names_itself() {
        let start = |zone: &str| {
            let cron = cron(json!({"timeZone": zone}), json!({}));
            plan(&cron, &[], at("00:10:00")).start.unwrap().job
        };
        let london = start("Europe/London").metadata.annotations.unwrap();
        assert_eq!(london[SCHEDULED], "2026-01-01T00:10:00Z", "at no distance");
        let job = start("Asia/Tokyo");
        assert_eq!(job.metadata.name.as_deref(), Some("c-29453770"));
        assert_eq!(job.metadata.labels.unwrap()["a"], "b");
        assert_eq!(
            job.metadata.annotations.unwrap()[SCHEDULED],
            "2026-01-01T09:10:00+09:00"
        );
    }

    #[test]
    fn what_runs_stands_in_the_way_or_not() {
        let active = json!({"active": [{"name": "one", "uid": "one"}],
            "lastScheduleTime": at("00:00:00").to_string()});
        for (policy, starts, replaces, told) in [
            ("Allow", true, vec![], vec![]),
            ("Forbid", false, vec![], vec!["JobAlreadyActive"]),
            ("Replace", true, vec![0], vec![]),
        ] {
            let cron = cron(json!({"concurrencyPolicy": policy}), active.clone());
            let plan = plan(&cron, &[running("one")], at("00:10:00"));
            assert_eq!(
                (plan.start.is_some(), plan.replace.clone()),
                (starts, replaces),
                "{policy}"
            );
            assert_eq!(reasons(&plan), told);
        }
    }

    #[test]
    fn ended_jobs_leave_the_status_and_become_history() {
        let active = json!({"active": [{"name": "x", "uid": "x"}, {"name": "gone", "uid": "gone"}],
            "lastScheduleTime": at("00:10:00").to_string()});
        let jobs = [
            ended("x", "Complete", "00:10:05"),
            ended("y", "Complete", "00:00:05"),
            ended("z", "Failed", "00:00:05"),
            running("stranger"),
        ];
        let plan = plan(&cron(json!({}), active), &jobs, at("00:11:00"));
        assert_eq!(
            reasons(&plan),
            ["SawCompletedJob", "UnexpectedJob", "MissingJob"]
        );
        assert_eq!(plan.status.active, None);
        assert_eq!(
            plan.status.last_successful_time.map(|t| t.0),
            Some(at("00:10:05"))
        );
        assert_eq!(plan.expired, [1, 2]);
    }
}
