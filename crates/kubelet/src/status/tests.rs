//! Tables of situations and the status that shows them.

use super::*;
use crate::plan::{ContainerProgress, Waiting};
use crate::pod::SandboxView;
use serde_json::{Value, json};

const NOW: i64 = 2_000_000;

fn at(offset: i64) -> Timestamp {
    Timestamp::from_second(NOW + offset).unwrap()
}

fn pod_with(spec: Value) -> Pod {
    let mut object = json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 3},
        "spec": {"containers": [{"name": "a", "image": "x"}]},
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

fn view(name: &str, attempt: u32, state: ContainerState, exit_code: i32) -> ContainerView {
    let ended = state == ContainerState::Exited;
    ContainerView {
        id: format!("{name}{attempt}"),
        name: name.into(),
        sandbox_id: "s".into(),
        attempt,
        state,
        exit_code,
        started_at: Some(at(-60)),
        finished_at: ended.then(|| at(-5)),
        image: "docker.io/library/x:1".into(),
        image_id: "sha256:1".into(),
        ..ContainerView::default()
    }
}

fn running(name: &str) -> ContainerView {
    view(name, 0, ContainerState::Running, 0)
}

fn exited(name: &str, code: i32) -> ContainerView {
    view(name, 0, ContainerState::Exited, code)
}

fn seen(containers: Vec<ContainerView>) -> Observed {
    let sandbox = SandboxView {
        id: "s".into(),
        ready: true,
        attempt: 0,
        ips: vec!["10.0.0.1".into()],
    };
    Observed {
        sandboxes: vec![sandbox],
        containers,
    }
}

struct Case {
    pod: Pod,
    observed: Observed,
    progress: Progress,
    termination: Option<Termination>,
    previous: PodStatus,
}

impl Case {
    fn new(pod: Pod, observed: Observed) -> Case {
        Case {
            pod,
            observed,
            progress: Progress::default(),
            termination: None,
            previous: PodStatus::default(),
        }
    }

    fn ending(mut self, cause: Cause) -> Case {
        self.termination = Some(Termination { cause, grace: 1 });
        self
    }

    fn status(&self) -> PodStatus {
        status(&Facts {
            pod: &self.pod,
            observed: &self.observed,
            progress: &self.progress,
            termination: self.termination.as_ref(),
            previous: &self.previous,
            host_ips: &["192.0.2.1".to_owned()],
            runtime_name: "styr",
            now: at(0),
        })
    }

    fn phase(&self) -> String {
        self.status().phase.unwrap_or_default()
    }
}

fn first(status: &PodStatus) -> Value {
    serde_json::to_value(&status.container_statuses.as_ref().unwrap()[0]).unwrap()
}

fn condition(status: &PodStatus, kind: &str) -> (String, String, String) {
    let found = status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == kind)
        .unwrap();
    (
        found.status.clone(),
        found.reason.clone().unwrap_or_default(),
        found.message.clone().unwrap_or_default(),
    )
}

#[test]
fn phases() {
    let two = json!([{"name": "a"}, {"name": "b"}]);
    let with = |policy: &str| pod_with(json!({"restartPolicy": policy, "containers": two}));
    let both = |a, b| seen(vec![a, b]);
    for (policy, observed, want) in [
        ("Always", Observed::default(), "Pending"),
        ("Always", seen(vec![running("a")]), "Pending"),
        ("Always", both(running("a"), running("b")), "Running"),
        ("Always", both(running("a"), exited("b", 1)), "Running"),
        ("Always", both(exited("a", 0), exited("b", 1)), "Running"),
        ("OnFailure", both(exited("a", 0), exited("b", 1)), "Running"),
        (
            "OnFailure",
            both(exited("a", 0), exited("b", 0)),
            "Succeeded",
        ),
        ("Never", both(exited("a", 0), exited("b", 0)), "Succeeded"),
        ("Never", both(exited("a", 0), exited("b", 1)), "Failed"),
        ("Never", both(exited("a", 1), running("b")), "Running"),
    ] {
        let case = Case::new(with(policy), observed);
        assert_eq!(
            case.phase(),
            want,
            "{policy} {:?}",
            case.observed.containers
        );
    }
}

#[test]
fn phases_with_init_containers() {
    let pod = |policy: &str| {
        pod_with(json!({"restartPolicy": policy, "initContainers": [{"name": "i"}]}))
    };
    for (policy, containers, want) in [
        ("Always", vec![], "Pending"),
        ("Always", vec![running("i")], "Pending"),
        ("Always", vec![exited("i", 1)], "Pending"),
        ("Never", vec![exited("i", 1)], "Failed"),
        ("Always", vec![exited("i", 0)], "Pending"),
        ("Always", vec![running("a"), exited("i", 0)], "Running"),
    ] {
        let case = Case::new(pod(policy), seen(containers));
        assert_eq!(
            case.phase(),
            want,
            "{policy} {:?}",
            case.observed.containers
        );
    }
}

#[test]
fn the_end_of_a_deleted_pod() {
    let deleted =
        |containers| Case::new(pod_with(json!({})), seen(containers)).ending(Cause::Deleted);
    let mut case = deleted(vec![running("a")]);
    case.previous.phase = Some("Running".into());
    assert_eq!(case.phase(), "Running");
    assert_eq!(deleted(vec![exited("a", 0)]).phase(), "Succeeded");
    assert_eq!(deleted(vec![exited("a", 137)]).phase(), "Failed");
    // It never started: once it is torn down nobody waits for it any more.
    let mut never = deleted(vec![]);
    assert_eq!(never.phase(), "Pending");
    never.progress.finish = Step::Done;
    let status = never.status();
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!(
        first(&status)["state"]["terminated"]["reason"],
        "ContainerStatusUnknown"
    );
}

#[test]
fn a_passed_deadline_shows_when_nothing_runs() {
    let case = |containers| {
        Case::new(pod_with(json!({})), seen(containers)).ending(Cause::DeadlineExceeded)
    };
    let mut still = case(vec![running("a")]);
    still.previous.phase = Some("Running".into());
    assert_eq!(still.phase(), "Running");
    let status = case(vec![exited("a", 143)]).status();
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("DeadlineExceeded"))
    );
    // And stays.
    let mut later = Case::new(pod_with(json!({})), Observed::default()).ending(Cause::Completed);
    later.previous = status;
    assert_eq!(later.status().reason.as_deref(), Some("DeadlineExceeded"));
}

#[test]
fn container_states() {
    let status = Case::new(pod_with(json!({})), seen(vec![])).status();
    assert_eq!(
        first(&status)["state"]["waiting"]["reason"],
        "ContainerCreating"
    );
    let with_init = pod_with(json!({"initContainers": [{"name": "i"}]}));
    let status = Case::new(with_init, seen(vec![running("i")])).status();
    assert_eq!(
        first(&status)["state"]["waiting"]["reason"],
        "PodInitializing"
    );

    let status = Case::new(pod_with(json!({})), seen(vec![running("a")])).status();
    let shown = first(&status);
    assert_eq!(shown["containerID"], "styr://a0");
    assert_eq!(
        (&shown["ready"], &shown["started"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(shown["imageID"], "sha256:1");
    assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.1"));
    assert_eq!(status.host_ip.as_deref(), Some("192.0.2.1"));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));

    for (code, reason, want) in [
        (0, "", "Completed"),
        (3, "", "Error"),
        (137, "OOMKilled", "OOMKilled"),
    ] {
        let ended = ContainerView {
            reason: reason.into(),
            message: "words".into(),
            ..exited("a", code)
        };
        let shown = first(&Case::new(pod_with(json!({})), seen(vec![ended])).status());
        let terminated = &shown["state"]["terminated"];
        assert_eq!(terminated["reason"], want);
        assert_eq!(
            (&terminated["exitCode"], &terminated["message"]),
            (&json!(code), &json!("words"))
        );
        assert_eq!(terminated["containerID"], "styr://a0");
    }
}

fn waits(reason: &str) -> Progress {
    let waiting = Some(Waiting {
        reason: reason.into(),
        message: "text".into(),
    });
    let container = ContainerProgress {
        waiting,
        ..ContainerProgress::default()
    };
    Progress {
        containers: [("a".to_owned(), container)].into(),
        ..Progress::default()
    }
}

#[test]
fn waiting_takes_the_place_of_the_last_end() {
    let mut case = Case::new(
        pod_with(json!({})),
        seen(vec![view("a", 2, ContainerState::Exited, 1)]),
    );
    case.progress = waits("CrashLoopBackOff");
    let shown = first(&case.status());
    assert_eq!(
        shown["state"]["waiting"],
        json!({"reason": "CrashLoopBackOff", "message": "text"})
    );
    assert_eq!(shown["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(shown["restartCount"], 2);
    // Not while it runs, not when it is done for good, not when the pod ends.
    for (spec, containers, ending) in [
        (json!({}), vec![running("a")], None),
        (
            json!({"restartPolicy": "Never"}),
            vec![exited("a", 1)],
            None,
        ),
        (json!({}), vec![exited("a", 1)], Some(Cause::Deleted)),
    ] {
        let mut case = Case::new(pod_with(spec), seen(containers));
        case.progress = waits("CrashLoopBackOff");
        case.termination = ending.map(|cause| Termination { cause, grace: 1 });
        assert!(first(&case.status())["state"]["waiting"].is_null());
    }
}

#[test]
fn the_container_before_is_the_last_state() {
    let containers = vec![view("a", 1, ContainerState::Running, 0), exited("a", 9)];
    let shown = first(&Case::new(pod_with(json!({})), seen(containers)).status());
    assert_eq!(shown["lastState"]["terminated"]["exitCode"], 9);
    assert_eq!(shown["restartCount"], 1);
}

#[test]
fn lost_containers_are_remembered() {
    let mut case = Case::new(pod_with(json!({})), seen(vec![running("a")]));
    case.previous = case.status();
    case.observed.containers.clear();
    let shown = first(&case.status());
    assert_eq!(shown["state"]["waiting"]["reason"], "ContainerCreating");
    assert_eq!(shown["lastState"]["terminated"]["exitCode"], 137);
    case.observed.containers.push(exited("a", 4));
    case.previous = case.status();
    case.observed.containers.clear();
    assert_eq!(first(&case.status())["state"]["terminated"]["exitCode"], 4);
}

#[test]
fn readiness_needs_probes() {
    let probed =
        pod_with(json!({"containers": [{"name": "a", "startupProbe": {}, "readinessProbe": {}}]}));
    let mut case = Case::new(probed, seen(vec![running("a")]));
    let flags = |case: &Case| {
        let shown = first(&case.status());
        (shown["started"].clone(), shown["ready"].clone())
    };
    assert_eq!(flags(&case), (json!(false), json!(false)));
    case.progress
        .verdicts
        .entry("a0".into())
        .or_default()
        .startup = Verdict::Success;
    assert_eq!(flags(&case), (json!(true), json!(false)));
    let unready = "containers with unready status: [a]".to_owned();
    let not_ready = ("False".to_owned(), "ContainersNotReady".to_owned(), unready);
    assert_eq!(condition(&case.status(), "Ready"), not_ready);
    assert_eq!(condition(&case.status(), "ContainersReady"), not_ready);
    case.progress
        .verdicts
        .entry("a0".into())
        .or_default()
        .readiness = Verdict::Success;
    assert_eq!(flags(&case), (json!(true), json!(true)));
    assert_eq!(condition(&case.status(), "Ready").0, "True");
}

#[test]
fn conditions_keep_their_time_while_they_hold() {
    let mut case = Case::new(pod_with(json!({})), seen(vec![running("a")]));
    case.previous = case.status();
    let old = Time(at(-500));
    for condition in case.previous.conditions.iter_mut().flatten() {
        condition.last_transition_time = Some(old.clone());
    }
    let since = |status: &PodStatus, kind: &str| {
        let found = status.conditions.iter().flatten().find(|c| c.type_ == kind);
        found.and_then(|c| c.last_transition_time.clone()).unwrap()
    };
    assert_eq!(since(&case.status(), "Ready"), old);
    case.observed.containers = vec![exited("a", 1)];
    assert_eq!(since(&case.status(), "Ready"), Time(at(0)));
    assert_eq!(since(&case.status(), "PodScheduled"), old);
}

#[test]
fn what_holds_a_pod_back_is_named() {
    let pod = pod_with(json!({"initContainers": [{"name": "i"}, {"name": "j"}]}));
    let status = Case::new(pod, seen(vec![exited("i", 0)])).status();
    let (holds, reason, message) = condition(&status, "Initialized");
    assert_eq!(
        (holds.as_str(), reason.as_str()),
        ("False", "ContainersNotInitialized")
    );
    assert_eq!(message, "containers with incomplete status: [j]");
    assert_eq!(condition(&status, "PodReadyToStartContainers").0, "True");

    let gated = pod_with(json!({"readinessGates": [{"conditionType": "example.com/lb"}]}));
    let status = Case::new(gated, seen(vec![running("a")])).status();
    let (holds, reason, message) = condition(&status, "Ready");
    assert_eq!(
        (holds.as_str(), reason.as_str()),
        ("False", "ReadinessGatesNotReady")
    );
    assert_eq!(
        message,
        "corresponding condition of pod readiness gate \"example.com/lb\" does not exist."
    );

    let done = pod_with(json!({"restartPolicy": "Never"}));
    let status = Case::new(done, seen(vec![exited("a", 0)])).status();
    assert_eq!(
        condition(&status, "Ready"),
        ("False".into(), "PodCompleted".into(), String::new())
    );
    assert!(
        status
            .conditions
            .iter()
            .flatten()
            .all(|c| c.observed_generation == Some(3))
    );
}

#[test]
fn times_are_whole_seconds_as_the_api_stores_them() {
    let odd = Timestamp::from_millisecond(NOW * 1000 + 345).unwrap();
    let view = ContainerView {
        started_at: Some(odd),
        ..running("a")
    };
    let status = Case::new(pod_with(json!({})), seen(vec![view])).status();
    let sent: PodStatus = serde_json::from_value(serde_json::to_value(&status).unwrap()).unwrap();
    assert_eq!(sent, status);
}
