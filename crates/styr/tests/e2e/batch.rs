//! Jobs, CronJobs and DaemonSets as a course teaches them, by what stock kubectl prints.

use std::time::Duration;

use crate::harness::{Cluster, has_kubectl, words};

const PATIENCE: Duration = Duration::from_secs(180);

fn job(name: &str, spec: &str, script: &str) -> String {
    format!(
        "
apiVersion: batch/v1
kind: Job
metadata: {{name: {name}}}
spec:
  {spec}
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [sh, -c, '{script}']
---
"
    )
}

/// Each of its pods fails once and is started again where it is.
const STUMBLING: &str = "
apiVersion: batch/v1
kind: Job
metadata: {name: stumbling}
spec:
  completions: 4
  parallelism: 2
  template:
    spec:
      restartPolicy: OnFailure
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [sh, -c, 'test -e /data/tried || { touch /data/tried; exit 1; }']
        volumeMounts: [{name: data, mountPath: /data}]
      volumes: [{name: data, emptyDir: {}}]
---
";

/// Pi to nine places, as integers of a shell can.
const MACHIN: &str = "t() { s=0; p=$((1000000000000 / $1)); k=1; while [ $p -ne 0 ]; do s=$((s + p / k)); p=$((-p / ($1 * $1))); k=$((k + 2)); done; echo $s; }; echo $(((16 * $(t 5) - 4 * $(t 239)) / 1000))";

/// Conformance: Jobs, completion after task failure
#[test]
fn jobs_complete_fail_and_are_cleaned_up() {
    if !has_kubectl("jobs_complete_fail_and_are_cleaned_up") {
        return;
    }
    let cluster = Cluster::up(&["busybox"]);
    let pi = MACHIN;
    let indexed = "completions: 4\n  parallelism: 2\n  completionMode: Indexed";
    cluster.apply(
        &[
            job("pi", "backoffLimit: 4", pi),
            job(
                "squares",
                indexed,
                "sleep 1; echo $((JOB_COMPLETION_INDEX * JOB_COMPLETION_INDEX))",
            ),
            job("broken", "backoffLimit: 1", "echo no luck; exit 3"),
            job("late", "activeDeadlineSeconds: 2", "sleep 3600"),
            job("swept", "ttlSecondsAfterFinished: 1", "true"),
            job("held", "suspend: true", "true"),
            STUMBLING.to_owned(),
        ]
        .concat(),
    );
    pi_is_computed(&cluster);
    indexes_are_worked_off(&cluster);
    failures_are_told(&cluster);
    stumbles_are_overcome(&cluster);
    cluster.kubectl(&["wait", "--for=delete", "job/swept", "--timeout=180s"]);
    cluster.eventually(PATIENCE, &["get", "pods", "-l", "job-name=swept"], |out| {
        out.contains("No resources found")
    });
    let held = cluster.kubectl(&["get", "job", "held"]);
    assert!(words(&held).contains("held Suspended 0/1"), "{held}");
    let go = r#"{"spec":{"suspend":false}}"#;
    cluster.kubectl(&["patch", "job", "held", "-p", go]);
    complete(&cluster, "held");
    let told = cluster.kubectl(&["describe", "job", "held"]);
    for text in ["Suspended", "Job suspended", "Resumed", "Job resumed"] {
        assert!(told.contains(text), "{text}: {told}");
    }
    cluster.kubectl(&["delete", "jobs", "--all"]);
    cluster.eventually(PATIENCE, &["get", "pods"], |out| {
        out.contains("No resources found")
    });
}

fn complete(cluster: &Cluster, name: &str) {
    let job = format!("job/{name}");
    cluster.kubectl(&["wait", "--for=condition=complete", &job, "--timeout=180s"]);
}

fn pi_is_computed(cluster: &Cluster) {
    complete(cluster, "pi");
    let shown = cluster.kubectl(&["get", "jobs", "pi"]);
    assert!(
        words(&shown).starts_with("NAME STATUS COMPLETIONS DURATION AGE pi Complete 1/1"),
        "{shown}"
    );
    let told = cluster.kubectl(&["describe", "jobs/pi"]);
    let flat = words(&told);
    for text in [
        "Parallelism: 1",
        "Completions: 1",
        "Completion Mode: NonIndexed",
        "Backoff Limit: 4",
        "Pods Statuses: 0 Active (0 Ready) / 1 Succeeded / 0 Failed",
        "job-controller Created pod: pi-",
        "job-controller Job completed",
    ] {
        assert!(flat.contains(text), "{text}: {told}");
    }
    let names = "jsonpath={.items..metadata.name}";
    let pod = cluster.kubectl(&["get", "pods", "--selector=job-name=pi", "-o", names]);
    for target in [pod.as_str(), "job/pi"] {
        assert_eq!(cluster.kubectl(&["logs", target]), "3141592653\n");
    }
}

fn indexes_are_worked_off(cluster: &Cluster) {
    complete(cluster, "squares");
    let path = "jsonpath={.status.completedIndexes} {.status.succeeded}";
    assert_eq!(
        cluster.kubectl(&["get", "job", "squares", "-o", path]),
        "0-3 4"
    );
    for index in 0..4 {
        let label = format!("job-name=squares,batch.kubernetes.io/job-completion-index={index}");
        assert_eq!(
            cluster.kubectl(&["logs", "-l", &label]),
            format!("{}\n", index * index)
        );
        let name = cluster.kubectl(&["get", "pods", "-l", &label, "-o", "name"]);
        assert!(name.starts_with(&format!("pod/squares-{index}-")), "{name}");
    }
    // Never more than two at once: the second pair started when one of the first had ended.
    let path = "jsonpath={range .items[*].status.containerStatuses[0].state.terminated}{.startedAt} {.finishedAt}{\"\\n\"}{end}";
    let times = cluster.kubectl(&["get", "pods", "-l", "job-name=squares", "-o", path]);
    let spans: Vec<(&str, &str)> = times.lines().filter_map(|l| l.split_once(' ')).collect();
    assert_eq!(spans.len(), 4, "{times}");
    for (start, _) in &spans {
        let at_once = spans.iter().filter(|(a, b)| a <= start && start < b);
        assert!(at_once.count() <= 2, "{times}");
    }
}

fn stumbles_are_overcome(cluster: &Cluster) {
    complete(cluster, "stumbling");
    let path = "jsonpath={.status.succeeded} {.status.failed}";
    let counted = cluster.kubectl(&["get", "job", "stumbling", "-o", path]);
    assert_eq!(counted, "4 ");
    let path = "jsonpath={.items[*].status.containerStatuses[0].restartCount}";
    let pods = ["get", "pods", "-l", "job-name=stumbling", "-o", path];
    assert_eq!(cluster.kubectl(&pods), "1 1 1 1");
}

fn failures_are_told(cluster: &Cluster) {
    for (name, reason, message) in [
        (
            "broken",
            "BackoffLimitExceeded",
            "Job has reached the specified backoff limit",
        ),
        (
            "late",
            "DeadlineExceeded",
            "Job was active longer than specified deadline",
        ),
    ] {
        let job = format!("job/{name}");
        cluster.kubectl(&["wait", "--for=condition=failed", &job, "--timeout=180s"]);
        let path = "jsonpath={.status.conditions[?(@.type==\"Failed\")].reason}: {.status.conditions[?(@.type==\"Failed\")].message}";
        let why = cluster.kubectl(&["get", &job, "-o", path]);
        assert_eq!(why, format!("{reason}: {message}"));
        cluster.eventually(PATIENCE, &["describe", &job], |out| {
            words(out).contains(&format!("Warning {reason} ")) && out.contains(message)
        });
        let shown = cluster.kubectl(&["get", &job]);
        assert!(
            words(&shown).contains(&format!("{name} Failed 0/1")),
            "{shown}"
        );
    }
    let failed = ["get", "pods", "-l", "job-name=broken", "--no-headers"];
    let pods = cluster.kubectl(&failed);
    assert_eq!(
        pods.matches("Error").count(),
        2,
        "one try and one more: {pods}"
    );
    cluster.eventually(PATIENCE, &["get", "pods", "-l", "job-name=late"], |out| {
        out.contains("No resources found")
    });
}

const CRON: &str = "
apiVersion: batch/v1
kind: CronJob
metadata: {name: hello}
spec:
  schedule: '* * * * *'
  timeZone: Etc/UTC
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: OnFailure
          containers:
          - name: main
            image: busybox
            imagePullPolicy: IfNotPresent
            command: [sh, -c, 'date; echo Hello from the Kubernetes cluster']
";

#[test]
fn a_cron_job_runs_by_hand_and_by_the_clock() {
    if !has_kubectl("a_cron_job_runs_by_hand_and_by_the_clock") {
        return;
    }
    let cluster = Cluster::up(&["busybox"]);
    cluster.apply(CRON);
    let shown = cluster.kubectl(&["get", "cronjob", "hello"]);
    assert!(
        words(&shown).contains("hello * * * * * Etc/UTC False"),
        "{shown}"
    );
    let said = cluster.kubectl(&["create", "job", "--from=cronjob/hello", "by-hand"]);
    assert_eq!(said, "job.batch/by-hand created\n");
    complete(&cluster, "by-hand");
    let log = cluster.kubectl(&["logs", "job/by-hand"]);
    assert!(
        log.ends_with("Hello from the Kubernetes cluster\n"),
        "{log}"
    );
    let path = "jsonpath={.metadata.ownerReferences[0].kind} {.metadata.annotations}";
    let made = cluster.kubectl(&["get", "job", "by-hand", "-o", path]);
    assert_eq!(
        made,
        "CronJob {\"cronjob.kubernetes.io/instantiate\":\"manual\"}"
    );

    let told = cluster.eventually(PATIENCE, &["describe", "cronjob", "hello"], |out| {
        let flat = words(out);
        flat.contains("cronjob-controller Created job hello-")
            && flat.contains("cronjob-controller Saw completed job: hello-")
            && flat.contains(", condition: Complete")
    });
    let flat = words(&told);
    for text in [
        "Schedule: * * * * *",
        "Concurrency Policy: Allow",
        "Suspend: False",
        "Successful Job History Limit: 3",
        "Failed Job History Limit: 1",
        "Normal SuccessfulCreate",
        "Normal SawCompletedJob",
    ] {
        assert!(flat.contains(text), "{text}: {told}");
    }
    let paused = r#"{"spec":{"suspend":true}}"#;
    cluster.kubectl(&["patch", "cronjob", "hello", "-p", paused]);
    let shown = cluster.kubectl(&["get", "cronjob", "hello"]);
    assert!(
        words(&shown).contains("hello * * * * * Etc/UTC True"),
        "{shown}"
    );
    cluster.kubectl(&["delete", "cronjob", "hello"]);
    cluster.eventually(PATIENCE, &["get", "jobs,pods"], |out| {
        out.contains("No resources found")
    });
}

const AGENT: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: main, image: 'busybox:1.36', command: [sleep, '3600']}
";

#[test]
fn a_daemon_set_is_on_every_node_and_rolls_over_them() {
    if !has_kubectl("a_daemon_set_is_on_every_node_and_rolls_over_them") {
        return;
    }
    let cluster = Cluster::up(&["busybox"]);
    cluster.styr_ok(&["simulate", "--nodes", "2"]);
    cluster.apply(AGENT);
    let rolled_out = || {
        let said = cluster.kubectl(&["rollout", "status", "ds/agent", "--timeout=180s"]);
        let end = "daemon set \"agent\" successfully rolled out\n";
        assert!(said.ends_with(end), "{said}");
    };
    let everywhere = |count: usize| {
        let counts = format!("agent {count} {count} {count} {count} {count} <none>");
        cluster.eventually(PATIENCE, &["get", "daemonset", "agent"], |out| {
            words(out).contains(&counts)
        });
    };
    rolled_out();
    everywhere(3);
    // A node that comes gets one, a node that goes takes its own with it.
    cluster.styr_ok(&["simulate", "--nodes", "3"]);
    everywhere(4);
    let nodes = "jsonpath={.items[*].spec.nodeName}";
    let nodes = cluster.kubectl(&["get", "pods", "-l", "app=agent", "-o", nodes]);
    for index in 0..3 {
        assert!(nodes.contains(&format!("sim-{index}")), "{nodes}");
    }
    cluster.styr_ok(&["simulate", "--nodes", "2"]);
    everywhere(3);

    cluster.kubectl(&["set", "image", "ds/agent", "main=busybox:1.28"]);
    rolled_out();
    let images = "jsonpath={.items[*].spec.containers[0].image}";
    let images = || cluster.kubectl(&["get", "pods", "-l", "app=agent", "-o", images]);
    assert_eq!(images(), ["busybox:1.28"; 3].join(" "));
    let history = cluster.kubectl(&["rollout", "history", "ds/agent"]);
    assert!(
        words(&history).ends_with("CHANGE-CAUSE 1 <none> 2 <none>"),
        "{history}"
    );
    let said = cluster.kubectl(&["rollout", "undo", "ds/agent"]);
    assert_eq!(said, "daemonset.apps/agent rolled back\n");
    rolled_out();
    assert_eq!(images(), ["busybox:1.36"; 3].join(" "));
    let history = cluster.kubectl(&["rollout", "history", "ds/agent"]);
    assert!(
        words(&history).ends_with("CHANGE-CAUSE 2 <none> 3 <none>"),
        "{history}"
    );

    // Only on nodes of a label, and as the labels change.
    cluster.kubectl(&["label", "node", "sim-0", "disk=ssd"]);
    let select = r#"{"spec":{"template":{"spec":{"nodeSelector":{"disk":"ssd"}}}}}"#;
    cluster.kubectl(&["patch", "ds", "agent", "-p", select]);
    cluster.eventually(PATIENCE, &["get", "daemonset", "agent"], |out| {
        words(out).contains("agent 1 1 1 1 1 disk=ssd")
    });
    cluster.kubectl(&["label", "node", "sim-0", "disk-"]);
    cluster.eventually(PATIENCE, &["get", "daemonset", "agent"], |out| {
        words(out).contains("agent 0 0 0 0 0 disk=ssd")
    });
    let told = cluster.kubectl(&["describe", "ds", "agent"]);
    let flat = words(&told);
    for text in [
        "Desired Number of Nodes Scheduled: 0",
        "Number of Nodes Misscheduled: 0",
        "Normal SuccessfulCreate",
        "daemonset-controller Created pod: agent-",
        "Normal SuccessfulDelete",
        "daemonset-controller Deleted pod: agent-",
    ] {
        assert!(flat.contains(text), "{text}: {told}");
    }
    cluster.kubectl(&["delete", "ds", "agent"]);
    cluster.eventually(PATIENCE, &["get", "pods"], |out| {
        out.contains("No resources found")
    });
}
