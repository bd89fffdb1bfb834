//! Jobs and CronJobs.

mod rules;
mod selector;
mod status;

use api::cron::{self, Schedule};
use api::time::{self, Timestamp};
use api::{FieldError, meta, names};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::apps::default_template;
use crate::cells::{Cell, condition_is_true, render, since, text};
use crate::check::{IMMUTABLE, immutable, not_negative, one_of};
use crate::core::pod::validate_template;
use crate::simple::{FieldLabels, Simple};
use crate::strategy::{Ctx, Strategy};

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
        selector::generate(job);
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        let spec = obj.get("spec").unwrap_or(&Value::Null);
        let mut errors = selector::generated(obj);
        errors.extend(validate_job_spec(spec, "spec"));
        errors.extend(selector::validate(spec));
        errors.extend(host_names(obj));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let indexed = meta::str_at(new, &["spec", "completionMode"]) == "Indexed";
        let mut errors: Vec<FieldError> = Vec::new();
        errors.extend(if indexed {
            scaled_in_tandem(new, old)
        } else {
            immutable(new, old, &["spec", "completions"])
        });
        errors.extend(immutable(new, old, &["spec", "selector"]));
        errors.extend(template_stays(new, old));
        let fixed = [
            "completionMode",
            "podFailurePolicy",
            "backoffLimitPerIndex",
            "managedBy",
            "successPolicy",
        ];
        errors.extend(
            fixed
                .iter()
                .filter_map(|f| immutable(new, old, &["spec", f])),
        );
        errors
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        status::validate(new, old)
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

/// The pods of a Job with indexes have the name and an index as their host name.
fn host_names(job: &Value) -> Option<FieldError> {
    let spec = job.get("spec")?;
    let count =
        meta::int_at(spec, &["completions"]).filter(|n| *n > 0 && rules::is_indexed(spec))?;
    let name = meta::name(job);
    let longest = format!("{name}-{}", count - 1);
    let why = format!("will not able to create pod with invalid DNS label: {longest}");
    let odd = !names::dns1123_label(&longest).is_empty();
    odd.then(|| FieldError::invalid("metadata.name", name, why))
}

/// Completions of a Job with indexes change together with how many run at once.
fn scaled_in_tandem(new: &Value, old: &Value) -> Option<FieldError> {
    let of = |job, field: &str| meta::int_at(job, &["spec", field]);
    let is = of(new, "completions")?;
    let why = "can only be modified in tandem with spec.parallelism";
    let alone = of(old, "completions") != Some(is) && of(new, "parallelism") != Some(is);
    alone.then(|| FieldError::invalid("spec.completions", is, why))
}

/// The template does not change, but for where the pods of a suspended Job that never ran may go.
fn template_stays(new: &Value, old: &Value) -> Option<FieldError> {
    let template = |job| {
        meta::get(job, &["spec", "template"])
            .cloned()
            .unwrap_or_default()
    };
    let (is, mut was) = (template(new), template(old));
    let suspended = meta::bool_at(old, &["spec", "suspend"]);
    if suspended && meta::get(old, &["status", "startTime"]).is_none() {
        let free: [&[&str]; 6] = [
            &["metadata", "annotations"],
            &["metadata", "labels"],
            &["spec", "affinity", "nodeAffinity"],
            &["spec", "nodeSelector"],
            &["spec", "schedulingGates"],
            &["spec", "tolerations"],
        ];
        for path in free {
            match meta::get(&is, path) {
                Some(value) => meta::set(&mut was, path, value.clone()),
                None => drop(meta::remove(&mut was, path)),
            }
        }
        // No affinity is the same as an empty one.
        let empty = |affinity: &Value| affinity.as_object().is_some_and(serde_json::Map::is_empty);
        if meta::get(&is, &["spec", "affinity"]).is_none()
            && meta::get(&was, &["spec", "affinity"]).is_some_and(empty)
        {
            meta::remove(&mut was, &["spec", "affinity"]);
        }
    }
    (is != was).then(|| FieldError::invalid("spec.template", is, IMMUTABLE))
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
    if spec.get("maxFailedIndexes").is_some() && spec.get("backoffLimitPerIndex").is_none() {
        let why = "when maxFailedIndexes is specified";
        errors.push(FieldError::required(
            format!("{at}.backoffLimitPerIndex"),
            why,
        ));
    }
    errors.extend(rules::managed_by(spec, at));
    errors.extend(crate::check::one_of_if_set(
        meta::str_at(spec, &["completionMode"]),
        format!("{at}.completionMode"),
        &["NonIndexed", "Indexed"],
    ));
    errors.extend(rules::indexed(spec, at));
    errors.extend(rules::failure_policy(spec, at));
    errors.extend(rules::success_policy(spec, at));
    let replacements: &[&str] = if spec.get("podFailurePolicy").is_some() {
        &["Failed"]
    } else {
        &["Failed", "TerminatingOrFailed"]
    };
    errors.extend(crate::check::one_of_if_set(
        meta::str_at(spec, &["podReplacementPolicy"]),
        format!("{at}.podReplacementPolicy"),
        replacements,
    ));
    errors.extend(validate_template(
        spec.get("template"),
        &format!("{at}.template"),
    ));
    errors.extend(restart_policy(spec, at));
    errors
}

fn restart_policy(spec: &Value, at: &str) -> Option<FieldError> {
    let path = format!("{at}.template.spec.restartPolicy");
    match meta::str_at(spec, &["template", "spec", "restartPolicy"]) {
        "" | "Always" => {
            let why = "valid values: \"OnFailure\", \"Never\"";
            Some(FieldError::required(path, why))
        }
        "OnFailure" if spec.get("podFailurePolicy").is_some() => {
            let why = "only \"Never\" is supported when podFailurePolicy is specified";
            Some(FieldError::invalid(path, "OnFailure", why))
        }
        "OnFailure" | "Never" => None,
        other => Some(FieldError::not_supported(
            path,
            other,
            &["OnFailure", "Never"],
        )),
    }
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
    let schedule = meta::str_at(spec, &["schedule"]);
    let mut errors = Vec::new();
    if schedule.is_empty() {
        errors.push(FieldError::required("spec.schedule", ""));
    } else if let Err(why) = Schedule::parse(schedule, TimeZone::UTC) {
        errors.push(FieldError::invalid(
            "spec.schedule",
            schedule,
            why.to_string(),
        ));
    }
    errors.extend(not_negative(spec, "spec", &["startingDeadlineSeconds"]));
    errors.extend(time_zone(spec));
    errors.extend(one_of(
        meta::str_at(spec, &["concurrencyPolicy"]),
        "spec.concurrencyPolicy",
        &["Allow", "Forbid", "Replace"],
    ));
    let at = "spec.jobTemplate.spec";
    let job = meta::get(spec, &["jobTemplate", "spec"]).unwrap_or(&Value::Null);
    errors.extend(validate_job_spec(job, at));
    if let Some(selector) = job.get("selector") {
        let why = "`selector` will be auto-generated";
        let at = format!("{at}.selector");
        errors.push(FieldError::invalid(at, selector.clone(), why));
    }
    if meta::bool_at(job, &["manualSelector"]) {
        let at = format!("{at}.manualSelector");
        errors.push(FieldError::not_supported(at, true, &["nil", "false"]));
    }
    let limits = ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"];
    errors.extend(not_negative(spec, "spec", &limits));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_rules, assert_updates, changed};

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
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}})
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
        told_of_jobs(&job);
    }

    fn told_of_jobs(job: &Value) {
        let labels = "spec.template.metadata.labels";
        assert_rules(
            job,
            |job| Job.validate(job),
            &[
                (
                    json!({"/spec/template/metadata/labels/job-name": "other"}),
                    &[&format!(
                        "{labels}[job-name]: Invalid value: {{\"batch.kubernetes.io/controller-uid\":\"u\",\"batch.kubernetes.io/job-name\":\"j\",\"controller-uid\":\"u\",\"job-name\":\"other\"}}: must be 'j'"
                    )],
                ),
                (
                    json!({"/spec/selector": {"matchLabels": {"a": "b"}}}),
                    &[
                        "spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\"}}: `selector` not auto-generated",
                        &format!("{labels}: Invalid value: …"),
                    ],
                ),
                (
                    json!({"/spec/manualSelector": true, "/spec/selector": null}),
                    &[
                        "spec.selector: Required value",
                        &format!("{labels}: Invalid value: …"),
                    ],
                ),
                (
                    json!({"/spec/template/spec/restartPolicy": "Always"}),
                    &[
                        "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
                    ],
                ),
                (
                    json!({"/spec/maxFailedIndexes": 1}),
                    &[
                        "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
                        "spec.maxFailedIndexes: Invalid value: 1: requires indexed completion mode",
                    ],
                ),
                (
                    json!({"/metadata/name": "j".repeat(62), "/spec/manualSelector": true, "/spec/completionMode": "Indexed", "/spec/completions": 10}),
                    &["metadata.name: Invalid value: …"],
                ),
            ],
        );
        assert_updates(
            job,
            |new, old| Job.validate_update(new, old),
            &[
                (json!({"/spec/parallelism": 5, "/spec/suspend": true}), &[]),
                (
                    json!({"/spec/template/spec/containers/0/image": "x"}),
                    &["spec.template: Invalid value: {…"],
                ),
                (
                    json!({"/spec/template/spec/nodeSelector": {"a": "b"}}),
                    &["spec.template: Invalid value: {…"],
                ),
                (
                    json!({"/spec/completions": 5}),
                    &["spec.completions: Invalid value: 5: field is immutable"],
                ),
                (
                    json!({"/spec/managedBy": "a/b"}),
                    &["spec.managedBy: Invalid value: \"a/b\": field is immutable"],
                ),
            ],
        );
        let waiting = changed(
            job,
            &json!({"/spec/suspend": true, "/spec/completionMode": "Indexed"}),
        );
        assert_updates(
            &waiting,
            |new, old| Job.validate_update(new, old),
            &[
                (
                    json!({"/spec/template/spec/nodeSelector": {"a": "b"}, "/spec/template/spec/affinity": {"nodeAffinity": {}}}),
                    &[],
                ),
                (
                    json!({"/spec/template/spec/affinity": {"podAffinity": {}}}),
                    &["spec.template: Invalid value: {…"],
                ),
                (json!({"/spec/completions": 5, "/spec/parallelism": 5}), &[]),
                (
                    json!({"/spec/completions": 5}),
                    &[
                        "spec.completions: Invalid value: 5: can only be modified in tandem with spec.parallelism",
                    ],
                ),
            ],
        );
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
