//! Probes of running containers: one task for each probe of each container, which counts results
//! against the thresholds and reports a verdict when it changes.

mod grpc;
pub mod http;
mod tcp;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use client::EventType;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::agent::SharedAgent;
use crate::plan::{Progress, Termination, Verdict, started};
use crate::pod::{self, ContainerState, ContainerView, Observed};

/// Longest output of a probe put into an event, in bytes.
const MAX_OUTPUT: usize = 10 * 1024;
/// Time beyond its own timeout that the runtime gets to answer an exec probe.
const EXEC_MARGIN: Duration = Duration::from_secs(2);

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    /// Holds the others back until it succeeds once.
    Startup,
    /// Its failure restarts the container.
    Liveness,
    /// Decides whether the container gets requests.
    Readiness,
}

impl ProbeKind {
    fn title(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }

    fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            ProbeKind::Startup => container.startup_probe.as_ref(),
            ProbeKind::Liveness => container.liveness_probe.as_ref(),
            ProbeKind::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// A verdict on one container.
#[derive(Clone, Debug)]
pub struct Report {
    /// The container.
    pub container_id: String,
    /// Which probe.
    pub kind: ProbeKind,
    /// The verdict.
    pub verdict: Verdict,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Success,
    Failure(String),
    /// The probe could not be run: counts for nothing.
    Unknown(String),
}

type Key = (String, ProbeKind);

/// The probe tasks of one pod.
#[derive(Default)]
pub struct Probers {
    tasks: BTreeMap<Key, AbortOnDropHandle<()>>,
}

impl Probers {
    /// Starts the probes that are due and ends the ones whose container is gone.
    pub fn sync(
        &mut self,
        agent: &SharedAgent,
        pod: &Arc<Pod>,
        observed: &Observed,
        progress: &Progress,
        termination: Option<&Termination>,
        reports: &mpsc::Sender<Report>,
    ) {
        let wanted = wanted(pod, observed, progress, termination.is_some());
        let keep: BTreeSet<Key> = wanted
            .iter()
            .map(|(view, _, kind)| (view.id.clone(), *kind))
            .collect();
        self.tasks.retain(|key, _| keep.contains(key));
        let ip = observed.sandbox().and_then(|s| s.ips.first()).cloned();
        let ip = ip
            .or_else(|| agent.host_ips().first().cloned())
            .unwrap_or_default();
        for (view, container, kind) in wanted {
            let key = (view.id.clone(), kind);
            if self.tasks.contains_key(&key) {
                continue;
            }
            let Some(probe) = kind.of(container) else {
                continue;
            };
            let prober = Prober {
                agent: agent.clone(),
                pod: pod.clone(),
                container: container.clone(),
                probe: probe.clone(),
                kind,
                id: view.id.clone(),
                ip: ip.clone(),
                reports: reports.clone(),
            };
            let started_at = view.started_at.unwrap_or_else(crate::clock::now);
            let task = tokio::spawn(prober.run(started_at));
            self.tasks.insert(key, AbortOnDropHandle::new(task));
        }
    }
}

fn wanted<'a>(
    pod: &'a Pod,
    observed: &'a Observed,
    progress: &Progress,
    ending: bool,
) -> Vec<(&'a ContainerView, &'a Container, ProbeKind)> {
    let mut out = Vec::new();
    for (_, container) in pod::containers(pod) {
        let Some(view) = observed
            .latest(&container.name)
            .filter(|v| v.state == ContainerState::Running)
        else {
            continue;
        };
        let up = started(progress, container, view);
        let kinds = match (up, ending) {
            (true, true) => &[ProbeKind::Readiness][..],
            (true, false) => &[ProbeKind::Liveness, ProbeKind::Readiness],
            (false, true) => &[],
            (false, false) => &[ProbeKind::Startup],
        };
        let defined = kinds.iter().filter(|kind| kind.of(container).is_some());
        out.extend(defined.map(|kind| (view, container, *kind)));
    }
    out
}

struct Prober {
    agent: SharedAgent,
    pod: Arc<Pod>,
    container: Container,
    probe: Probe,
    kind: ProbeKind,
    id: String,
    ip: String,
    reports: mpsc::Sender<Report>,
}

/// Results in a row.
#[derive(Debug, Default, PartialEq)]
struct Tally {
    successes: i32,
    failures: i32,
}

impl Tally {
    /// Counts an attempt; a verdict if a threshold is reached.
    fn count(&mut self, success: bool, probe: &Probe) -> Option<Verdict> {
        if success {
            self.failures = 0;
            self.successes = self.successes.saturating_add(1);
            (self.successes >= probe.success_threshold.unwrap_or(1).max(1))
                .then_some(Verdict::Success)
        } else {
            self.successes = 0;
            self.failures = self.failures.saturating_add(1);
            (self.failures >= probe.failure_threshold.unwrap_or(3).max(1))
                .then_some(Verdict::Failure)
        }
    }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    let given = value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0);
    Duration::from_secs(given.unwrap_or(default))
}

impl Prober {
    async fn run(self, started_at: Timestamp) {
        let delay = i64::from(self.probe.initial_delay_seconds.unwrap_or(0).max(0));
        crate::clock::sleep_until(started_at + SignedDuration::from_secs(delay)).await;
        let period = seconds(self.probe.period_seconds, 10);
        let mut tally = Tally::default();
        let mut told = Verdict::Unknown;
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let verdict = match self.attempt().await {
                Outcome::Success => tally.count(true, &self.probe),
                Outcome::Failure(output) => {
                    self.complain(format!("{} probe failed: {output}", self.kind.title()));
                    tally.count(false, &self.probe)
                }
                Outcome::Unknown(error) => {
                    let title = self.kind.title();
                    self.complain(format!(
                        "{title} probe errored and resulted in unknown state: {error}"
                    ));
                    None
                }
            };
            let Some(verdict) = verdict else { continue };
            if verdict != told {
                told = verdict;
                let report = Report {
                    container_id: self.id.clone(),
                    kind: self.kind,
                    verdict,
                };
                if self.reports.send(report).await.is_err() {
                    return;
                }
            }
            // A container that is about to be restarted, or that has started, is not asked again.
            let done = match self.kind {
                ProbeKind::Startup => true,
                ProbeKind::Liveness => verdict == Verdict::Failure,
                ProbeKind::Readiness => false,
            };
            if done {
                return;
            }
        }
    }

    fn complain(&self, mut message: String) {
        if message.len() > MAX_OUTPUT {
            let mut end = MAX_OUTPUT;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
        }
        self.agent.container_event(
            &self.pod,
            &self.container.name,
            EventType::Warning,
            "Unhealthy",
            message,
        );
    }

    async fn attempt(&self) -> Outcome {
        let timeout = seconds(self.probe.timeout_seconds, 1);
        if let Some(exec) = &self.probe.exec {
            return self
                .exec(exec.command.as_deref().unwrap_or_default(), timeout)
                .await;
        }
        if let Some(get) = &self.probe.http_get {
            let target = match http::Target::of(&self.pod, &self.container, get, &self.ip) {
                Ok(target) => target,
                Err(error) => return Outcome::Unknown(error),
            };
            return match http::get(&target, timeout).await {
                Ok(answer) if (200..400).contains(&answer.status) => Outcome::Success,
                Ok(answer) => Outcome::Failure(format!(
                    "HTTP probe failed with statuscode: {}",
                    answer.status
                )),
                Err(error) => Outcome::Failure(error),
            };
        }
        if let Some(socket) = &self.probe.tcp_socket {
            let host = socket
                .host
                .as_deref()
                .filter(|h| !h.is_empty())
                .unwrap_or(&self.ip);
            return match port(&self.container, &socket.port) {
                Ok(port) => tcp::check(host, port, timeout)
                    .await
                    .map_or_else(Outcome::Failure, |()| Outcome::Success),
                Err(error) => Outcome::Unknown(error),
            };
        }
        if let Some(call) = &self.probe.grpc {
            let port = u16::try_from(call.port).unwrap_or(0);
            let service = call.service.as_deref().unwrap_or_default();
            return grpc::check(&self.ip, port, service, timeout)
                .await
                .map_or_else(Outcome::Failure, |()| Outcome::Success);
        }
        Outcome::Unknown("missing probe handler".to_owned())
    }

    async fn exec(&self, command: &[String], timeout: Duration) -> Outcome {
        let late = || {
            let text = command.join(" ");
            Outcome::Failure(format!(
                "command timed out: \"{text}\" timed out after {}s",
                timeout.as_secs()
            ))
        };
        let run = self.agent.cri.exec_sync(&self.id, command, timeout);
        match tokio::time::timeout(timeout + EXEC_MARGIN, run).await {
            Ok(Ok(done)) if done.exit_code == 0 => Outcome::Success,
            Ok(Ok(done)) => Outcome::Failure(String::from_utf8_lossy(&done.output).into_owned()),
            Ok(Err(error)) if error.0.code() == tonic::Code::DeadlineExceeded => late(),
            Ok(Err(error)) => Outcome::Unknown(error.to_string()),
            Err(_) => late(),
        }
    }
}

/// A port by number, or by its name in the container's spec.
fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref() == Some(name))
            .map(|p| p.container_port)
            .or_else(|| name.parse().ok()),
    };
    number
        .and_then(|n| u16::try_from(n).ok())
        .filter(|n| *n > 0)
        .ok_or_else(|| format!("couldn't find port: {port:?}"))
}

/// What went wrong with a connection, as Go says it.
fn go_error(error: &std::io::Error) -> String {
    use std::io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionRefused => "connect: connection refused".into(),
        Kind::ConnectionReset => "read: connection reset by peer".into(),
        Kind::HostUnreachable => "connect: no route to host".into(),
        Kind::NetworkUnreachable => "connect: network is unreachable".into(),
        Kind::TimedOut => "i/o timeout".into(),
        _ => error.to_string(),
    }
}

/// `host:port`, with brackets around IPv6.
fn address(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn probe(value: serde_json::Value) -> Probe {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn thresholds() {
        let p = probe(json!({"failureThreshold": 2, "successThreshold": 2}));
        let mut tally = Tally::default();
        let verdicts: Vec<_> = [true, true, true, false, true, false, false]
            .map(|ok| tally.count(ok, &p))
            .into();
        let (s, f) = (Some(Verdict::Success), Some(Verdict::Failure));
        assert_eq!(verdicts, [None, s, s, None, None, None, f]);
        let defaults = probe(json!({}));
        let mut tally = Tally::default();
        assert_eq!(
            [false, false, false].map(|ok| tally.count(ok, &defaults)),
            [None, None, f]
        );
    }

    #[test]
    fn ports_by_name_and_number() {
        let c: Container = serde_json::from_value(
            json!({"name": "c", "ports": [{"name": "web", "containerPort": 80}]}),
        )
        .unwrap();
        assert_eq!(port(&c, &IntOrString::Int(8080)), Ok(8080));
        assert_eq!(port(&c, &IntOrString::String("web".into())), Ok(80));
        assert!(port(&c, &IntOrString::String("none".into())).is_err());
    }

    #[test]
    fn what_is_probed_when() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "c",
            "startupProbe": {}, "livenessProbe": {}, "readinessProbe": {}}]}}))
        .unwrap();
        let view = ContainerView {
            id: "1".into(),
            name: "c".into(),
            state: ContainerState::Running,
            ..ContainerView::default()
        };
        let observed = Observed {
            containers: vec![view],
            ..Observed::default()
        };
        let mut progress = Progress::default();
        let kinds = |progress: &Progress, ending| {
            wanted(&pod, &observed, progress, ending)
                .into_iter()
                .map(|(_, _, k)| k)
                .collect::<Vec<_>>()
        };
        assert_eq!(kinds(&progress, false), [ProbeKind::Startup]);
        assert_eq!(kinds(&progress, true), []);
        progress.verdicts.entry("1".into()).or_default().startup = Verdict::Success;
        assert_eq!(
            kinds(&progress, false),
            [ProbeKind::Liveness, ProbeKind::Readiness]
        );
        assert_eq!(kinds(&progress, true), [ProbeKind::Readiness]);
    }
}
