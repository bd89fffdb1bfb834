//! Jobs and CronJobs.

mod rules;

use api::cron::{self, Schedule};
use api::time::{self, Timestamp};
use api::{FieldError, meta};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::apps::default_template;
use crate::cells::{Cell, condition_is_true, render, since, text};
use crate::check::{immutable, not_negative, one_of};
use crate::core::pod::validate_template;
use crate::simple::{FieldLabels, Simple};
use crate::strategy::{Ctx, Strategy};

const UID_LABEL: &str = "batch.kubernetes.io/controller-uid";
const NAME_LABEL: &str = "batch.kubernetes.io/job-name";
const BACKOFF_LIMIT: i64 = 6;
/// Longest name of a CronJob: its Jobs append eleven characters.
const CRON_NAME_MAX: usize = 52;

/// Rules of Jobs.
pub(crate) struct Job;

impl Strategy for Job {
    fn default(&self, obj: &mut Value) {
        default_template(obj, &["spec", "template"]);
        if let Some(spec) = obj.get_mut("spec").filter(|s| s.is_object()) {
            default_job_spec(spec);
        }
        let labels = meta::get(obj, &["metadata", "labels"]).and_then(Value::as_object);
        if labels.is_none_or(serde_json::Map::is_empty)
            && let Some(template) =
                meta::get(obj, &["spec", "template", "metadata", "labels"]).cloned()
        {
            meta::set(obj, &["metadata", "labels"], template);
        }
    }

    fn prepare_create(&self, job: &mut Value, _ctx: &Ctx<'_>) {
        if meta::bool_at(job, &["spec", "manualSelector"]) {
            return;
        }
        // Labels that came from the template follow it.
        let template = ["spec", "template", "metadata", "labels"];
        let labels = |path: &[&str]| {
            meta::get(job, path).filter(|l| l.as_object().is_some_and(|m| !m.is_empty()))
        };
        let follows = labels(&["metadata", "labels"]) == labels(&template);
        let (uid, name) = (meta::uid(job).to_owned(), meta::name(job).to_owned());
        // The older labels without a prefix are still set beside the newer ones.
        for (label, value) in [
            ("controller-uid", &uid),
            ("job-name", &name),
            (UID_LABEL, &uid),
            (NAME_LABEL, &name),
        ] {
            meta::set(
                job,
                &["spec", "template", "metadata", "labels", label],
                value.as_str().into(),
            );
        }
        meta::set(
            job,
            &["spec", "selector", "matchLabels", UID_LABEL],
            uid.into(),
        );
        if let Some(labels) = meta::get(job, &template).cloned().filter(|_| follows) {
            meta::set(job, &["metadata", "labels"], labels);
        }
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        validate_job_spec(obj.get("spec").unwrap_or(&Value::Null), "spec")
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors: Vec<FieldError> = Vec::new();
        let suspended = meta::bool_at(old, &["spec", "suspend"])
            && meta::get(old, &["status", "startTime"]).is_none();
        let indexed = meta::str_at(old, &["spec", "completionMode"]) == "Indexed";
        let mut fixed: Vec<&[&str]> = vec![
            &["spec", "selector"],
            &["spec", "completionMode"],
            &["spec", "podFailurePolicy"],
            &["spec", "successPolicy"],
            &["spec", "managedBy"],
            &["spec", "backoffLimitPerIndex"],
        ];
        if !indexed {
            fixed.push(&["spec", "completions"]);
        }
        if !suspended {
            // A suspended job that never ran may still change where its pods go.
            fixed.push(&["spec", "template"]);
        }
        errors.extend(
            fixed
                .into_iter()
                .filter_map(|path| immutable(new, old, path)),
        );
        errors
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        crate::apps::template_warnings(obj)
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Option<Vec<Value>> {
        let mut cells = vec![
            meta::name(obj).into(),
            job_status(obj).into(),
            completions(obj).into(),
            duration(obj, now).into(),
            crate::cells::age(obj, now).into(),
        ];
        cells.extend(render(JOB_TAIL, obj, now));
        Some(cells)
    }

    fn field_labels(&self) -> FieldLabels {
        &[("status.successful", &["status", "succeeded"])]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

const JOB_TAIL: &[Cell] = &[
    Cell::Containers(&["spec", "template", "spec"]),
    Cell::Images(&["spec", "template", "spec"]),
    Cell::Selector(&["spec", "selector"]),
];

fn default_job_spec(spec: &mut Value) {
    let set = |spec: &mut Value, field: &str, value: Value| {
        meta::object_at(spec, &[]).entry(field).or_insert(value);
    };
    if spec.get("completions").is_none() && spec.get("parallelism").is_none() {
        set(spec, "completions", json!(1));
    }
    set(spec, "parallelism", json!(1));
    let limit = if spec.get("backoffLimitPerIndex").is_some() {
        i64::from(i32::MAX)
    } else {
        BACKOFF_LIMIT
    };
    set(spec, "backoffLimit", limit.into());
    let policy = if spec.get("podFailurePolicy").is_some() {
        "Failed"
    } else {
        "TerminatingOrFailed"
    };
    set(spec, "podReplacementPolicy", policy.into());
}

fn validate_job_spec(spec: &Value, at: &str) -> Vec<FieldError> {
    let numbers = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    let mut errors = not_negative(spec, at, &numbers);
    errors.extend(validate_template(
        spec.get("template"),
        &format!("{at}.template"),
    ));
    let policy = meta::str_at(spec, &["template", "spec", "restartPolicy"]);
    if policy != "OnFailure" && policy != "Never" {
        let path = format!("{at}.template.spec.restartPolicy");
        if policy == "Always" {
            errors.push(FieldError::not_supported(
                path,
                policy,
                &["OnFailure", "Never"],
            ));
        } else {
            errors.push(FieldError::required(
                path,
                "valid values: \"OnFailure\", \"Never\"",
            ));
        }
    }
    errors.extend(crate::check::one_of_if_set(
        meta::str_at(spec, &["completionMode"]),
        format!("{at}.completionMode"),
        &["NonIndexed", "Indexed"],
    ));
    errors.extend(rules::indexed(spec, at));
    errors.extend(rules::failure_policy(spec, at));
    errors.extend(rules::success_policy(spec, at));
    errors.extend(crate::check::one_of_if_set(
        meta::str_at(spec, &["podReplacementPolicy"]),
        format!("{at}.podReplacementPolicy"),
        &["Failed", "TerminatingOrFailed"],
    ));
    errors
}

fn completions(job: &Value) -> String {
    let number = |path: &[&str]| meta::int_at(job, path);
    let done = number(&["status", "succeeded"]).unwrap_or(0);
    match (
        number(&["spec", "completions"]),
        number(&["spec", "parallelism"]).unwrap_or(0),
    ) {
        (Some(wanted), _) => format!("{done}/{wanted}"),
        (None, parallel) if parallel > 1 => format!("{done}/1 of {parallel}"),
        (None, _) => format!("{done}/1"),
    }
}

fn duration(job: &Value, now: Timestamp) -> String {
    let Some(start) = time::parse(meta::str_at(job, &["status", "startTime"])) else {
        return String::new();
    };
    let end = time::parse(meta::str_at(job, &["status", "completionTime"])).unwrap_or(now);
    time::human_duration(end.as_second() - start.as_second())
}

fn job_status(job: &Value) -> &'static str {
    let is = |name| condition_is_true(job, name);
    if is("Complete") {
        "Complete"
    } else if is("Failed") {
        "Failed"
    } else if meta::get(job, &["metadata", "deletionTimestamp"]).is_some() {
        "Terminating"
    } else if is("Suspended") {
        "Suspended"
    } else if is("FailureTarget") {
        "FailureTarget"
    } else if is("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

/// Rules of CronJobs.
pub(crate) static CRON_JOBS: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::Text(&["spec", "schedule"]),
        Cell::TextOr(&["spec", "timeZone"], "<none>"),
        Cell::With(|o, _| {
            if meta::bool_at(o, &["spec", "suspend"]) {
                "True"
            } else {
                "False"
            }
            .into()
        }),
        Cell::Len(&["status", "active"]),
        Cell::With(|o, now| {
            if text(o, &["status", "lastScheduleTime"]).is_empty() {
                "<none>".into()
            } else {
                since(o, &["status", "lastScheduleTime"], now).into()
            }
        }),
        Cell::Age,
        Cell::Containers(&["spec", "jobTemplate", "spec", "template", "spec"]),
        Cell::Images(&["spec", "jobTemplate", "spec", "template", "spec"]),
        Cell::Selector(&["spec", "jobTemplate", "spec", "selector"]),
    ],
    generation: true,
    default: |obj| default_template(obj, &["spec", "jobTemplate", "spec", "template"]),
    validate: validate_cron_job,
    validate_create: |obj| {
        let mut errors = zone_in_schedule(obj, false);
        if meta::name(obj).len() > CRON_NAME_MAX {
            let why = "must be no more than 52 characters";
            errors.push(FieldError::invalid("metadata.name", meta::name(obj), why));
        }
        errors
    },
    validate_update: |new, old| {
        let known = meta::str_at(old, &["spec", "schedule"]).contains("TZ");
        zone_in_schedule(new, known)
    },
    ..Simple::BASE
};

/// Zones are named beside schedules, not in them, but for those that were there already.
fn zone_in_schedule(obj: &Value, known: bool) -> Vec<FieldError> {
    let schedule = meta::str_at(obj, &["spec", "schedule"]);
    let why = match (schedule.contains("TZ"), known) {
        (true, false) => "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        (true, true) if meta::get(obj, &["spec", "timeZone"]).is_some() => {
            "cannot use both timeZone field and TZ or CRON_TZ in schedule"
        }
        _ => return Vec::new(),
    };
    vec![FieldError::invalid("spec.schedule", schedule, why)]
}

/// Longest part of the name of a time zone, in characters.
const ZONE_PART_MAX: usize = 14;

fn time_zone(spec: &Value) -> Option<FieldError> {
    let name = spec.get("timeZone")?.as_str()?;
    let refuse = |why: String| Some(FieldError::invalid("spec.timeZone", name, why));
    if name.is_empty() {
        return refuse("timeZone must be nil or non-empty string".to_owned());
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+');
    let odd = |part: &str| {
        matches!(part, "." | "..")
            || part.starts_with('-')
            || !(1..=ZONE_PART_MAX).contains(&part.len())
            || !part.chars().all(plain)
    };
    if name.split('/').any(odd) {
        return refuse(format!("unknown time zone {name}"));
    }
    if name.eq_ignore_ascii_case("Local") {
        let why =
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        return refuse(why.to_owned());
    }
    let unknown = cron::zone(Some(name)).err()?;
    refuse(unknown.to_string())
}

fn validate_cron_job(obj: &Value) -> Vec<FieldError> {
    let spec = obj.get("spec").unwrap_or(&Value::Null);
    let mut errors = not_negative(
        spec,
        "spec",
        &[
            "startingDeadlineSeconds",
            "successfulJobsHistoryLimit",
            "failedJobsHistoryLimit",
        ],
    );
    let schedule = meta::str_at(spec, &["schedule"]);
    if schedule.is_empty() {
        errors.push(FieldError::required("spec.schedule", ""));
    } else if let Err(why) = Schedule::parse(schedule, TimeZone::UTC) {
        errors.push(FieldError::invalid(
            "spec.schedule",
            schedule,
            why.to_string(),
        ));
    }
    errors.extend(time_zone(spec));
    errors.extend(one_of(
        meta::str_at(spec, &["concurrencyPolicy"]),
        "spec.concurrencyPolicy",
        &["Allow", "Forbid", "Replace"],
    ));
    errors.extend(validate_job_spec(
        meta::get(spec, &["jobTemplate", "spec"]).unwrap_or(&Value::Null),
        "spec.jobTemplate.spec",
    ));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs() {
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"metadata": {}, "spec": {"restartPolicy": "Never", "dnsPolicy": "ClusterFirst",
            "containers": [{"name": "c", "image": "i:1", "terminationMessagePolicy": "File"}]}}}});
        Job.default(&mut job);
        let kind = api::kind("batch", "v1", "jobs").unwrap();
        Job.prepare_create(
            &mut job,
            &Ctx {
                kind,
                subresource: "",
                now: Timestamp::UNIX_EPOCH,
            },
        );
        assert_eq!(job["spec"]["completions"], 1);
        assert_eq!(job["spec"]["backoffLimit"], 6);
        assert_eq!(
            job["spec"]["selector"],
            json!({"matchLabels": {UID_LABEL: "u"}})
        );
        assert_eq!(
            job["spec"]["template"]["metadata"]["labels"]["job-name"],
            "j"
        );
        assert_eq!(Job.validate(&job), vec![]);
        let row = Job.row(&job, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(
            row[..4],
            [json!("j"), json!("Running"), json!("0/1"), json!("")]
        );
        let mut changed = job.clone();
        changed["spec"]["template"]["spec"]["containers"][0]["image"] = json!("x");
        assert_eq!(Job.validate_update(&changed, &job)[0].path, "spec.template");
    }

    #[test]
    fn schedules_and_zones() {
        let of = |spec: Value| -> Vec<String> {
            let mut job = json!({"metadata": {"name": "c"}, "spec": spec});
            job["spec"]["concurrencyPolicy"] = "Allow".into();
            let mut errors = validate_cron_job(&job);
            errors.extend((CRON_JOBS.validate_create)(&job));
            let told = errors.iter().map(ToString::to_string);
            told.filter(|e| !e.contains("jobTemplate")).collect()
        };
        assert_eq!(
            of(json!({"schedule": "*/5 * * * *", "timeZone": "Europe/Berlin"})),
            [""; 0]
        );
        for (schedule, why) in [
            ("", "Required value"),
            (
                "error",
                "Invalid value: \"error\": expected exactly 5 fields, found 1: [\"error\"]",
            ),
            (
                "61 * * * *",
                "Invalid value: \"61 * * * *\": end of range (61) above maximum (59): 61",
            ),
            (
                "TZ=UTC 0 * * * *",
                "Invalid value: \"TZ=UTC 0 * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
            ),
        ] {
            assert_eq!(
                of(json!({"schedule": schedule})),
                [format!("spec.schedule: {why}")]
            );
        }
        for (zone, why) in [
            ("", "timeZone must be nil or non-empty string"),
            (
                "local",
                "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
            ),
            ("Nowhere/Else", "unknown time zone Nowhere/Else"),
            ("../etc", "unknown time zone ../etc"),
        ] {
            let told = of(json!({"schedule": "@daily", "timeZone": zone}));
            assert_eq!(
                told,
                [format!("spec.timeZone: Invalid value: {zone:?}: {why}")]
            );
        }
        let old = json!({"spec": {"schedule": "TZ=UTC 0 * * * *"}});
        assert_eq!((CRON_JOBS.validate_update)(&old, &old), []);
        let both = json!({"spec": {"schedule": "TZ=UTC 0 * * * *", "timeZone": "UTC"}});
        assert_eq!((CRON_JOBS.validate_update)(&both, &old).len(), 1);
    }
}
