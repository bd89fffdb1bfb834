//! Tables of situations and what to do in them.

use super::*;
use crate::backoff::Backoff;
use serde_json::{Value, json};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

/// The moment at which all plans here are made.
const NOW: i64 = 1000;

fn pod_with(spec: Value) -> Pod {
    let mut object = json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"containers": [{"name": "a", "image": "x"}]},
        "status": {"startTime": at(0).to_string()},
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

fn deleted(mut pod: Pod, grace: i64) -> Pod {
    pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        at(NOW),
    ));
    pod.metadata.deletion_grace_period_seconds = Some(grace);
    pod
}

fn sandbox(id: &str, ready: bool) -> SandboxView {
    SandboxView {
        id: id.into(),
        ready,
        attempt: 0,
        ips: if ready {
            vec!["10.0.0.1".into()]
        } else {
            Vec::new()
        },
    }
}

fn view(pod: &Pod, name: &str, state: ContainerState) -> ContainerView {
    let hash = pod::container(pod, name)
        .map(|(_, c)| pod::container_hash(&c))
        .unwrap_or_default();
    ContainerView {
        id: format!("{name}0"),
        name: name.into(),
        sandbox_id: "s".into(),
        hash,
        state,
        started_at: Some(at(NOW - 100)),
        finished_at: (state == ContainerState::Exited).then(|| at(NOW)),
        ..ContainerView::default()
    }
}

fn exited(pod: &Pod, name: &str, code: i32) -> ContainerView {
    ContainerView {
        exit_code: code,
        ..view(pod, name, ContainerState::Exited)
    }
}

fn running(pod: &Pod, name: &str) -> ContainerView {
    view(pod, name, ContainerState::Running)
}

fn seen(containers: Vec<ContainerView>) -> Observed {
    Observed {
        sandboxes: vec![sandbox("s", true)],
        containers,
    }
}

fn ready() -> Progress {
    Progress {
        volumes: Step::Done,
        sandbox: Step::Done,
        ..Progress::default()
    }
}

fn with_container(name: &str, change: impl FnOnce(&mut ContainerProgress)) -> Progress {
    let mut progress = ready();
    change(progress.containers.entry(name.into()).or_default());
    progress
}

fn view_of<'a>(pod: &'a Pod, observed: &'a Observed, progress: &'a Progress) -> View<'a> {
    View {
        pod,
        removed: false,
        observed,
        progress,
        now: at(NOW),
    }
}

fn run(pod: &Pod, observed: &Observed, progress: &Progress) -> Plan {
    plan(&view_of(pod, observed, progress))
}

/// Actions in a few words each.
fn words(plan: &Plan) -> Vec<String> {
    plan.actions
        .iter()
        .map(|action| match action {
            Action::SetUpVolumes => "volumes".into(),
            Action::CreateSandbox { attempt } => format!("sandbox {attempt}"),
            Action::StartContainer { name, attempt, .. } => format!("start {name} {attempt}"),
            Action::AwaitRestart { name, waiting, .. } => {
                format!("await {name} {}", waiting.reason)
            }
            Action::StopContainer {
                name,
                grace,
                reason,
                ..
            } => format!("stop {name} {grace} {reason:?}"),
            Action::RemoveContainer { id } => format!("remove {id}"),
            Action::StopSandbox { id } => format!("stop sandbox {id}"),
            Action::RemoveSandbox { id } => format!("remove sandbox {id}"),
            Action::Finish => "finish".into(),
            Action::Purge => "purge".into(),
        })
        .collect()
}

#[track_caller]
fn check(pod: &Pod, observed: &Observed, progress: &Progress, want: &[&str]) {
    assert_eq!(words(&run(pod, observed, progress)), want);
}

#[test]
fn a_new_pod_gets_volumes_then_a_sandbox_then_containers() {
    let pod = pod_with(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    let nothing = Observed::default();
    check(&pod, &nothing, &Progress::default(), &["volumes"]);
    let busy = Progress {
        volumes: Step::Busy,
        ..Progress::default()
    };
    check(&pod, &nothing, &busy, &[]);
    let volumes = Progress {
        volumes: Step::Done,
        ..Progress::default()
    };
    check(&pod, &nothing, &volumes, &["sandbox 0"]);
    let making = Progress {
        sandbox: Step::Busy,
        ..volumes
    };
    check(&pod, &nothing, &making, &[]);
    check(&pod, &seen(vec![]), &ready(), &["start a 0", "start b 0"]);
    check(
        &pod,
        &seen(vec![running(&pod, "a")]),
        &ready(),
        &["start b 0"],
    );
    check(
        &pod,
        &seen(vec![running(&pod, "a"), running(&pod, "b")]),
        &ready(),
        &[],
    );
}

#[test]
fn what_failed_is_tried_again_at_its_time() {
    let pod = pod_with(json!({}));
    let later = Progress {
        volumes: Step::Failed(at(NOW + 5)),
        ..Progress::default()
    };
    let plan = run(&pod, &Observed::default(), &later);
    assert_eq!((words(&plan), plan.wake_at), (vec![], Some(at(NOW + 5))));
    let due = Progress {
        volumes: Step::Failed(at(NOW)),
        ..Progress::default()
    };
    check(&pod, &Observed::default(), &due, &["volumes"]);
    let sandbox = Progress {
        volumes: Step::Done,
        sandbox: Step::Failed(at(NOW + 7)),
        ..Progress::default()
    };
    let plan = run(&pod, &Observed::default(), &sandbox);
    assert_eq!((words(&plan), plan.wake_at), (vec![], Some(at(NOW + 7))));
    let image = with_container("a", |c| c.retry_at = Some(at(NOW + 9)));
    let plan = run(&pod, &seen(vec![]), &image);
    assert_eq!((words(&plan), plan.wake_at), (vec![], Some(at(NOW + 9))));
}

#[test]
fn nothing_is_started_twice() {
    let pod = pod_with(json!({}));
    let busy = with_container("a", |c| c.busy = true);
    check(&pod, &seen(vec![]), &busy, &[]);
    let made = view(&pod, "a", ContainerState::Created);
    check(&pod, &seen(vec![made.clone()]), &busy, &[]);
    // Left over from before the agent died: it goes, another is made.
    check(&pod, &seen(vec![made]), &ready(), &["remove a0"]);
}

#[test]
fn after_a_restart_of_the_agent_running_containers_stay() {
    let pod = pod_with(
        json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a", "image": "x"}]}),
    );
    let observed = seen(vec![running(&pod, "a"), exited(&pod, "i", 0)]);
    check(&pod, &observed, &Progress::default(), &["volumes"]);
    // Even if the init container's remains were cleaned away.
    check(&pod, &seen(vec![running(&pod, "a")]), &ready(), &[]);
}

#[test]
fn restart_policies() {
    for (policy, code, want) in [
        ("Always", 0, &["start a 1"][..]),
        ("Always", 1, &["start a 1"]),
        ("OnFailure", 1, &["start a 1"]),
        // Done for good: the pod ends.
        ("OnFailure", 0, &["stop sandbox s"]),
        ("Never", 0, &["stop sandbox s"]),
        ("Never", 1, &["stop sandbox s"]),
    ] {
        let pod = pod_with(json!({"restartPolicy": policy}));
        check(&pod, &seen(vec![exited(&pod, "a", code)]), &ready(), want);
    }
}

#[test]
fn rules_of_a_container_come_before_the_policy() {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "a", "restartPolicy": "Never",
        "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}]});
    let pod = pod_with(spec);
    check(
        &pod,
        &seen(vec![exited(&pod, "a", 42)]),
        &ready(),
        &["start a 1"],
    );
    check(
        &pod,
        &seen(vec![exited(&pod, "a", 1)]),
        &ready(),
        &["stop sandbox s"],
    );
}

#[test]
fn a_pod_runs_on_while_one_of_its_containers_does() {
    let pod =
        pod_with(json!({"restartPolicy": "Never", "containers": [{"name": "a"}, {"name": "b"}]}));
    let observed = seen(vec![exited(&pod, "a", 1), running(&pod, "b")]);
    check(&pod, &observed, &ready(), &[]);
}

#[test]
fn a_crashing_container_waits() {
    let pod = pod_with(json!({}));
    let observed = seen(vec![exited(&pod, "a", 1)]);
    let armed = |second| with_container("a", |c| c.backoff = Some(Backoff::next(None, at(second))));
    let plan = run(&pod, &observed, &armed(NOW - 1));
    assert_eq!(words(&plan), ["await a CrashLoopBackOff"]);
    assert_eq!(plan.wake_at, Some(at(NOW + 10)));
    let Action::AwaitRestart { waiting, .. } = &plan.actions[0] else {
        panic!()
    };
    assert_eq!(
        waiting.message,
        "back-off 10s restarting failed container=a pod=p_n(u)"
    );
    // Forgotten after a long quiet time.
    check(&pod, &observed, &armed(NOW - 601), &["start a 1"]);
}

#[test]
fn init_containers_run_one_after_the_other() {
    let pod = pod_with(json!({"initContainers": [{"name": "i"}, {"name": "j"}]}));
    check(&pod, &seen(vec![]), &ready(), &["start i 0"]);
    check(&pod, &seen(vec![running(&pod, "i")]), &ready(), &[]);
    check(
        &pod,
        &seen(vec![exited(&pod, "i", 0)]),
        &ready(),
        &["start j 0"],
    );
    check(
        &pod,
        &seen(vec![exited(&pod, "i", 1)]),
        &ready(),
        &["start i 1"],
    );
    let both = vec![exited(&pod, "j", 0), exited(&pod, "i", 0)];
    check(&pod, &seen(both), &ready(), &["start a 0"]);
    let never = pod_with(json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}]}));
    check(
        &never,
        &seen(vec![exited(&never, "i", 1)]),
        &ready(),
        &["stop sandbox s"],
    );
}

fn with_sidecar() -> Pod {
    pod_with(json!({"restartPolicy": "Never", "initContainers": [
        {"name": "s1", "restartPolicy": "Always"}, {"name": "i"}, {"name": "s2", "restartPolicy": "Always", "startupProbe": {}}]}))
}

#[test]
fn sidecars_start_in_order_and_stay() {
    let pod = with_sidecar();
    check(&pod, &seen(vec![]), &ready(), &["start s1 0"]);
    check(
        &pod,
        &seen(vec![running(&pod, "s1")]),
        &ready(),
        &["start i 0"],
    );
    let after_init = vec![exited(&pod, "i", 0), running(&pod, "s1")];
    check(&pod, &seen(after_init.clone()), &ready(), &["start s2 0"]);
    let mut all = vec![running(&pod, "s2")];
    all.extend(after_init);
    // Its startup probe has not succeeded yet.
    check(&pod, &seen(all.clone()), &ready(), &[]);
    let mut progress = ready();
    progress.verdicts.entry("s20".into()).or_default().startup = Verdict::Success;
    check(&pod, &seen(all.clone()), &progress, &["start a 0"]);
    // A sidecar is restarted beside running main containers, whatever the pod's policy.
    let dead = vec![
        running(&pod, "a"),
        running(&pod, "s2"),
        exited(&pod, "i", 0),
        exited(&pod, "s1", 0),
    ];
    check(&pod, &seen(dead), &ready(), &["start s1 1"]);
}

#[test]
fn sidecars_end_last_and_in_reverse() {
    let pod = with_sidecar();
    let sidecars = vec![
        running(&pod, "s2"),
        exited(&pod, "i", 0),
        running(&pod, "s1"),
    ];
    let mut done = vec![exited(&pod, "a", 0)];
    done.extend(sidecars.clone());
    check(&pod, &seen(done), &ready(), &["stop s2 30 PodEnds"]);
    let mut still = vec![running(&pod, "a")];
    still.extend(sidecars);
    check(
        &deleted(pod.clone(), 7),
        &seen(still),
        &ready(),
        &["stop a 7 PodEnds"],
    );
    let last = vec![
        exited(&pod, "a", 0),
        exited(&pod, "s2", 0),
        running(&pod, "s1"),
    ];
    check(
        &deleted(pod, 7),
        &seen(last),
        &ready(),
        &["stop s1 7 PodEnds"],
    );
}

#[test]
fn deletion_step_by_step() {
    let pod = deleted(pod_with(json!({})), 5);
    let observed = seen(vec![running(&pod, "a")]);
    check(&pod, &observed, &ready(), &["stop a 5 PodEnds"]);
    let mut stopping = ready();
    stopping.stops.insert("a0".into(), 5);
    check(&pod, &observed, &stopping, &[]);
    // Deleted again with less grace.
    check(
        &deleted(pod.clone(), 1),
        &observed,
        &stopping,
        &["stop a 1 PodEnds"],
    );
    let stopped = seen(vec![exited(&pod, "a", 0)]);
    check(&pod, &stopped, &ready(), &["stop sandbox s"]);
    let mut removing = ready();
    removing.removals.insert("s".into());
    check(&pod, &stopped, &removing, &[]);
    let quiet = Observed {
        sandboxes: vec![sandbox("s", false)],
        containers: vec![exited(&pod, "a", 0)],
    };
    check(&pod, &quiet, &ready(), &["finish"]);
    let finished = Progress {
        finish: Step::Done,
        ..ready()
    };
    check(&pod, &quiet, &finished, &["purge"]);
    let purged = Progress {
        purge: Step::Done,
        ..finished
    };
    check(&pod, &Observed::default(), &purged, &[]);
}

#[test]
fn a_deletion_waits_for_what_is_being_made() {
    let pod = deleted(pod_with(json!({})), 5);
    let making = Progress {
        sandbox: Step::Busy,
        ..ready()
    };
    check(&pod, &Observed::default(), &making, &[]);
    check(
        &pod,
        &seen(vec![]),
        &with_container("a", |c| c.busy = true),
        &[],
    );
    check(&pod, &Observed::default(), &ready(), &["finish"]);
}

#[test]
fn a_pod_that_vanished_is_removed() {
    let pod = pod_with(json!({"terminationGracePeriodSeconds": 12}));
    let observed = seen(vec![running(&pod, "a")]);
    let progress = Progress::default();
    let plan = plan(&View {
        removed: true,
        ..view_of(&pod, &observed, &progress)
    });
    assert_eq!(words(&plan), ["stop a 12 PodEnds"]);
    assert_eq!(
        deleted(pod, 0).metadata.deletion_grace_period_seconds,
        Some(0)
    );
}

#[test]
fn why_pods_end() {
    let cause = |pod: &Pod, observed: &Observed| {
        let progress = ready();
        termination(&view_of(pod, observed, &progress)).map(|t| (t.cause, t.grace))
    };
    let pod = pod_with(json!({"terminationGracePeriodSeconds": 4}));
    let up = seen(vec![running(&pod, "a")]);
    assert_eq!(cause(&pod, &up), None);
    assert_eq!(
        cause(&deleted(pod.clone(), 0), &up),
        Some((Cause::Deleted, 1))
    );
    let timed = pod_with(json!({"activeDeadlineSeconds": NOW}));
    assert_eq!(cause(&timed, &up), Some((Cause::DeadlineExceeded, 30)));
    let mut done = pod.clone();
    done.status.get_or_insert_default().phase = Some("Failed".into());
    assert_eq!(cause(&done, &up), Some((Cause::Completed, 4)));
    let once = pod_with(json!({"restartPolicy": "Never"}));
    assert_eq!(
        cause(&once, &seen(vec![exited(&once, "a", 0)])),
        Some((Cause::Completed, 30))
    );
    assert_eq!(cause(&once, &Observed::default()), None);
}

#[test]
fn the_deadline_wakes() {
    let pod = pod_with(json!({"activeDeadlineSeconds": NOW + 50}));
    let plan = run(&pod, &seen(vec![running(&pod, "a")]), &ready());
    assert_eq!(plan.wake_at, Some(at(NOW + 50)));
}

#[test]
fn running_containers_are_stopped_for_four_reasons_only() {
    let spec = |image: &str| {
        pod_with(json!({"containers": [{"name": "a", "image": image,
            "livenessProbe": {"terminationGracePeriodSeconds": 3}, "startupProbe": {}}]}))
    };
    let pod = spec("x");
    let observed = seen(vec![running(&pod, "a")]);
    check(&pod, &observed, &ready(), &[]);
    check(&spec("y"), &observed, &ready(), &["stop a 30 SpecChanged"]);
    let mut progress = ready();
    progress.verdicts.entry("a0".into()).or_default().liveness = Verdict::Failure;
    check(&pod, &observed, &progress, &["stop a 3 Liveness"]);
    let mut progress = ready();
    progress.verdicts.entry("a0".into()).or_default().startup = Verdict::Failure;
    check(&pod, &observed, &progress, &["stop a 30 Startup"]);
    progress.stops.insert("a0".into(), 30);
    check(&pod, &observed, &progress, &[]);
    let mut gone = observed;
    gone.sandboxes[0].ready = false;
    check(&pod, &gone, &ready(), &["stop a 30 SandboxGone"]);
}

#[test]
fn a_dead_sandbox_is_replaced() {
    let pod = pod_with(json!({}));
    let dead = Observed {
        sandboxes: vec![sandbox("s", false)],
        containers: vec![exited(&pod, "a", 137)],
    };
    check(&pod, &dead, &ready(), &["sandbox 1"]);
    // Without an address it is of no use, except on the host's network.
    let mut mute = seen(vec![]);
    mute.sandboxes[0].ips.clear();
    check(&pod, &mute, &ready(), &["stop sandbox s"]);
    check(
        &pod_with(json!({"hostNetwork": true})),
        &mute,
        &ready(),
        &["start a 0"],
    );
    // In the new sandbox everything begins again, init containers too; restarts go on counting.
    let init = pod_with(json!({"initContainers": [{"name": "i"}]}));
    let old = vec![exited(&init, "a", 137), exited(&init, "i", 0)];
    let fresh = Observed {
        sandboxes: vec![sandbox("t", true), sandbox("s", false)],
        containers: old,
    };
    check(&init, &fresh, &ready(), &["start i 1"]);
}

#[test]
fn counting_goes_on_from_the_status_when_the_runtime_forgot() {
    let mut pod = pod_with(json!({}));
    let status = json!([{"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 3, "containerID": "styr://old"}]);
    pod.status.get_or_insert_default().container_statuses = serde_json::from_value(status).unwrap();
    check(&pod, &seen(vec![]), &ready(), &["start a 4"]);
}

#[test]
fn one_dead_container_is_kept() {
    let pod = pod_with(json!({}));
    let numbered = |n: u32, view: ContainerView| ContainerView {
        id: format!("a{n}"),
        attempt: n,
        ..view
    };
    let observed = seen(vec![
        numbered(3, running(&pod, "a")),
        numbered(2, exited(&pod, "a", 1)),
        numbered(1, exited(&pod, "a", 1)),
        numbered(0, exited(&pod, "a", 1)),
    ]);
    check(&pod, &observed, &ready(), &["remove a1", "remove a0"]);
    let mut removing = ready();
    removing.removals.insert("a1".into());
    check(&pod, &observed, &removing, &["remove a0"]);
}

#[test]
fn old_sandboxes_go_when_empty() {
    let pod = pod_with(json!({}));
    let mut observed = Observed {
        sandboxes: vec![sandbox("t", true), sandbox("s", false)],
        containers: vec![],
    };
    observed.containers.push(ContainerView {
        sandbox_id: "t".into(),
        ..running(&pod, "a")
    });
    check(&pod, &observed, &ready(), &["remove sandbox s"]);
    observed.containers.push(ContainerView {
        sandbox_id: "s".into(),
        ..exited(&pod, "a", 1)
    });
    check(&pod, &observed, &ready(), &[]);
}

#[test]
fn ephemeral_containers_run_once() {
    let spec = json!({"initContainers": [{"name": "i"}],
        "ephemeralContainers": [{"name": "d", "image": "x", "targetContainerName": "a"}]});
    let pod = pod_with(spec);
    assert_eq!(pod::debug_target(&pod, "d"), Some("a"));
    check(&pod, &Observed::default(), &ready(), &["sandbox 0"]);
    check(&pod, &seen(vec![]), &ready(), &["start d 0", "start i 0"]);
    let up = vec![running(&pod, "d"), running(&pod, "a"), exited(&pod, "i", 0)];
    check(&pod, &seen(up), &ready(), &[]);
    let ended = vec![
        exited(&pod, "d", 1),
        running(&pod, "a"),
        exited(&pod, "i", 0),
    ];
    check(&pod, &seen(ended), &ready(), &[]);
    let both = vec![running(&pod, "d"), running(&pod, "a")];
    check(
        &deleted(pod, 5),
        &seen(both),
        &ready(),
        &["stop d 5 PodEnds", "stop a 5 PodEnds"],
    );
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    fn state() -> impl Strategy<Value = (ContainerState, i32)> {
        prop_oneof![
            Just((ContainerState::Running, 0)),
            Just((ContainerState::Created, 0)),
            (0_i32..3).prop_map(|code| (ContainerState::Exited, code)),
        ]
    }

    proptest! {
        /// Whatever the runtime shows: no container is both started and stopped, none is started
        /// beside a running one of its name, and a pod that ends starts nothing.
        #[test]
        fn plans_are_sane(
            views in prop::collection::vec((0_usize..3, state()), 0..6),
            policy in prop::sample::select(vec!["Always", "OnFailure", "Never"]),
            deleting in any::<bool>(),
            sandboxed in any::<bool>(),
        ) {
            let mut pod = pod_with(json!({"restartPolicy": policy,
                "initContainers": [{"name": "i"}], "containers": [{"name": "a"}, {"name": "b"}]}));
            if deleting {
                pod = deleted(pod, 3);
            }
            let names = ["i", "a", "b"];
            let containers = views.iter().enumerate().map(|(n, (name, (state, code)))| ContainerView {
                id: n.to_string(), exit_code: *code, ..view(&pod, names[*name], *state)
            });
            let observed = Observed { sandboxes: vec![sandbox("s", sandboxed)], containers: containers.collect() };
            let plan = run(&pod, &observed, &ready());
            for action in &plan.actions {
                if let Action::StartContainer { name, .. } = action {
                    prop_assert!(!deleting && sandboxed);
                    prop_assert!(observed.latest(name).is_none_or(|c| !c.alive()));
                }
                if let Action::RemoveContainer { id } = action {
                    prop_assert!(observed.by_id(id).is_some_and(|c| !c.alive()));
                }
            }
        }
    }
}
