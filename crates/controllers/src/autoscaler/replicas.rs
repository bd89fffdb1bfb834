//! How many replicas a metric asks for. Pure. Amounts are in thousandths.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use crate::pods;

/// A pod that started within this time is only believed once it is ready.
const WARM_UP: SignedDuration = SignedDuration::from_mins(5);
/// A pod that became unready within this time of its start has never been ready.
const FIRST_READINESS: SignedDuration = SignedDuration::from_secs(30);

/// What was measured of one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The amount.
    pub value: i64,
    /// When it was measured.
    pub at: Timestamp,
    /// Over what time.
    pub window: SignedDuration,
}

/// What was measured, by name of the pod.
pub type Samples = BTreeMap<String, Sample>;

/// What the average shall be.
pub enum Target<'a> {
    /// So many percent of what the pods request.
    Utilization {
        /// The percentage.
        percent: i32,
        /// What each pod requests.
        requests: &'a BTreeMap<String, i64>,
    },
    /// So much for each pod.
    Average(i64),
}

/// How far off the mark a ratio may be without consequences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Above 1.
    pub up: f64,
    /// Below 1.
    pub down: f64,
}

impl Tolerance {
    fn covers(&self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What a metric asks for, and what it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Replicas.
    pub replicas: i32,
    /// The average of a pod, or the value of an object.
    pub value: i64,
    /// The average in percent of the requests.
    pub utilization: Option<i32>,
}

/// Judges samples of pods; `cpu`: start-up is not held against them.
pub fn of_pods(
    current: i32,
    samples: &Samples,
    pods: &[Pod],
    cpu: bool,
    target: &Target,
    tolerance: Tolerance,
    now: Timestamp,
) -> Result<Proposal, String> {
    if pods.is_empty() {
        return Err(NO_PODS.into());
    }
    let groups = Groups::of(pods, samples, cpu, now);
    let mut samples = samples.clone();
    samples.retain(|name, _| {
        !groups.ignored.contains(name.as_str()) && !groups.leaving.contains(name.as_str())
    });
    if samples.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".into());
    }
    let first = usage(&samples, target)?;
    let propose = |replicas: i32| Proposal {
        replicas,
        value: first.average,
        utilization: first.utilization,
    };
    let doubtful = !groups.ignored.is_empty() && first.ratio > 1.0;
    if !doubtful && groups.missing.is_empty() {
        if tolerance.covers(first.ratio) {
            return Ok(propose(current));
        }
        return Ok(propose(ceil(first.ratio * groups.ready as f64)));
    }
    // What is not known is taken to speak against the change.
    let assumed = |name: &str| match target {
        _ if first.ratio > 1.0 => 0,
        Target::Average(average) => *average,
        Target::Utilization { percent, requests } => {
            let request = requests.get(name).copied().unwrap_or(0);
            request * i64::from((*percent).max(100)) / 100
        }
    };
    let doubted = groups.ignored.iter().filter(|_| doubtful);
    // Where there is no change to speak against, there is nothing to assume.
    let missing = groups.missing.iter().filter(|_| first.ratio != 1.0);
    for name in missing.chain(doubted) {
        let sample = Sample {
            value: assumed(name),
            at: now,
            window: SignedDuration::ZERO,
        };
        samples.insert((*name).to_owned(), sample);
    }
    let second = usage(&samples, target)?.ratio;
    let turns = first.ratio < 1.0 && second > 1.0 || first.ratio > 1.0 && second < 1.0;
    if tolerance.covers(second) || turns {
        return Ok(propose(current));
    }
    let replicas = ceil(second * samples.len() as f64);
    let against = second < 1.0 && replicas > current || second > 1.0 && replicas < current;
    Ok(propose(if against { current } else { replicas }))
}

/// Pods by what their samples are worth.
#[derive(Default)]
struct Groups<'a> {
    ready: usize,
    ignored: BTreeSet<&'a str>,
    missing: BTreeSet<&'a str>,
    /// Those that go or have failed: what they use is no measure for the others.
    leaving: BTreeSet<&'a str>,
}

impl<'a> Groups<'a> {
    fn of(pods: &'a [Pod], samples: &Samples, cpu: bool, now: Timestamp) -> Self {
        let mut groups = Self::default();
        for pod in pods {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            if pod.metadata.deletion_timestamp.is_some() || pods::phase(pod) == "Failed" {
                groups.leaving.insert(name);
                continue;
            }
            let sample = samples.get(name);
            match sample {
                _ if pods::phase(pod) == "Pending" => {
                    groups.ignored.insert(name);
                }
                None => {
                    groups.missing.insert(name);
                }
                Some(sample) if cpu && is_starting(pod, sample, now) => {
                    groups.ignored.insert(name);
                }
                Some(_) => groups.ready += 1,
            }
        }
        groups
    }
}

fn is_starting(pod: &Pod, sample: &Sample, now: Timestamp) -> bool {
    let start = pod.status.as_ref().and_then(|s| s.start_time.as_ref());
    let (Some(start), Some(ready)) = (start, pods::condition(pod, "Ready")) else {
        return true;
    };
    let since = ready
        .last_transition_time
        .as_ref()
        .map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    let unready = ready.status == "False";
    if now.duration_since(start.0) < WARM_UP {
        unready || sample.at.duration_since(since) < sample.window
    } else {
        unready && since.duration_since(start.0) < FIRST_READINESS
    }
}

struct Usage {
    ratio: f64,
    average: i64,
    utilization: Option<i32>,
}

fn usage(samples: &Samples, target: &Target) -> Result<Usage, String> {
    match target {
        Target::Average(wanted) => {
            let sum: i64 = samples.values().map(|s| s.value).sum();
            let average = sum / i64::try_from(samples.len()).unwrap_or(i64::MAX).max(1);
            Ok(Usage {
                ratio: average as f64 / (*wanted).max(1) as f64,
                average,
                utilization: None,
            })
        }
        Target::Utilization { percent, requests } => {
            let known = samples
                .iter()
                .filter_map(|(name, s)| Some((s.value, *requests.get(name)?)));
            let (mut used, mut requested, mut count) = (0_i64, 0_i64, 0_i64);
            for (value, request) in known {
                used += value;
                requested += request;
                count += 1;
            }
            if requested == 0 {
                return Err("no metrics returned matched known pods".into());
            }
            let utilization = i32::try_from(used * 100 / requested).unwrap_or(i32::MAX);
            Ok(Usage {
                ratio: f64::from(utilization) / f64::from((*percent).max(1)),
                average: used / count.max(1),
                utilization: Some(utilization),
            })
        }
    }
}

fn ceil(replicas: f64) -> i32 {
    // Saturates: a float is cast to the nearest number there is.
    replicas.ceil() as i32
}

/// What each pod requests of a resource; the pod itself, all its containers, or the one that is
/// meant must say so.
pub fn requests(
    pods: &[Pod],
    resource: &str,
    container: Option<&str>,
) -> Result<BTreeMap<String, i64>, String> {
    let mut all = BTreeMap::new();
    for pod in pods {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let spec = pod.spec.as_ref();
        let whole = spec.and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get(resource));
        if let Some(amount) = whole.filter(|_| container.is_none()) {
            all.insert(name, milli(&amount.0).unwrap_or(0));
            continue;
        }
        let init = spec.and_then(|s| s.init_containers.as_deref());
        let stays = |c: &&_| is_sidecar(c);
        let sidecars = init.unwrap_or_default().iter().filter(stays);
        let main = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
        let mut sum = 0;
        for c in main.iter().chain(sidecars) {
            if container.is_some_and(|wanted| wanted != c.name) {
                continue;
            }
            let request = c.resources.as_ref().and_then(|r| r.requests.as_ref());
            let request = request.and_then(|r| r.get(resource));
            let Some(amount) = request.and_then(|q| milli(&q.0)) else {
                let c = &c.name;
                return Err(format!(
                    "missing request for {resource} in container {c} of Pod {name}"
                ));
            };
            sum += amount;
        }
        all.insert(name, sum);
    }
    Ok(all)
}

fn is_sidecar(container: &k8s_openapi::api::core::v1::Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// An amount in thousandths.
pub fn milli(text: &str) -> Option<i64> {
    let quantity: api::Quantity = text.parse().ok()?;
    Some(quantity.milli_value())
}

const NO_PODS: &str = "no pods returned by selector while calculating replica count";

/// Judges a value that belongs to all pods together; `ready`: how many are, if there are pods.
pub fn of_value(
    current: i32,
    ready: Option<i32>,
    value: i64,
    wanted: i64,
    tolerance: Tolerance,
) -> Result<Proposal, String> {
    let ratio = value as f64 / wanted.max(1) as f64;
    let replicas = match ready {
        _ if current == 0 => ceil(ratio),
        _ if tolerance.covers(ratio) => current,
        Some(ready) => ceil(ratio * f64::from(ready)),
        None => return Err(format!("unable to calculate ready pods: {NO_PODS}")),
    };
    Ok(Proposal {
        replicas,
        value,
        utilization: None,
    })
}

/// Judges a value that is to be shared by the replicas there are.
pub fn of_shared(replicas: i32, value: i64, wanted: i64, tolerance: Tolerance) -> Proposal {
    let (wanted, count) = (wanted.max(1) as f64, f64::from(replicas.max(1)));
    let ratio = value as f64 / (wanted * count);
    // What nobody shares is above any mark.
    let proposed = if replicas > 0 && tolerance.covers(ratio) {
        replicas
    } else {
        ceil(value as f64 / wanted)
    };
    Proposal {
        replicas: proposed,
        value: (value as f64 / count).ceil() as i64,
        utilization: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    const FIRM: Tolerance = Tolerance { up: 0.1, down: 0.1 };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(name: &str, phase: &str, ready: bool) -> Pod {
        let status = if ready { "True" } else { "False" };
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
            "status": {"phase": phase, "startTime": at(0).to_string(),
                "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": at(10).to_string()}]},
        }))
        .unwrap()
    }

    fn samples(values: &[(&str, i64)]) -> Samples {
        let sample = |value: i64| Sample {
            value,
            at: at(1000),
            window: SignedDuration::from_secs(30),
        };
        values
            .iter()
            .map(|(name, value)| ((*name).to_owned(), sample(*value)))
            .collect()
    }

    fn judge(pods: &[Pod], values: &[(&str, i64)], percent: i32) -> Result<Proposal, String> {
        let requests = requests(pods, "cpu", None)?;
        let target = Target::Utilization {
            percent,
            requests: &requests,
        };
        let current = i32::try_from(pods.len()).unwrap();
        of_pods(
            current,
            &samples(values),
            pods,
            true,
            &target,
            FIRM,
            at(1000),
        )
    }

    #[test]
    fn replicas_follow_use() {
        let up = |name: &str| pod(name, "Running", true);
        let never = |name: &str| pod(name, "Running", false);
        let three = [up("a"), up("b"), up("c")];
        let starting = [up("a"), up("b"), never("c")];
        for (pods, values, percent, expected, utilization) in [
            (&three, vec![("a", 300), ("b", 500), ("c", 700)], 30, 5, 50),
            (&three, vec![("a", 300), ("b", 500), ("c", 700)], 50, 3, 50),
            (&three, vec![("a", 300), ("b", 500), ("c", 700)], 48, 3, 50),
            (&three, vec![("a", 100), ("b", 100), ("c", 100)], 50, 1, 10),
            // One is missing: on the way up it uses nothing, on the way down all.
            (&three, vec![("a", 900), ("b", 900)], 30, 6, 90),
            (&three, vec![("a", 100), ("b", 100)], 50, 3, 10),
            // One has never been ready: on the way up it uses nothing.
            (
                &starting,
                vec![("a", 900), ("b", 900), ("c", 900)],
                30,
                6,
                90,
            ),
            (
                &starting,
                vec![("a", 100), ("b", 100), ("c", 900)],
                50,
                1,
                10,
            ),
        ] {
            let found = judge(pods, &values, percent).unwrap();
            assert_eq!(
                (found.replicas, found.utilization),
                (expected, Some(utilization)),
                "{values:?} {percent}"
            );
        }
        assert!(judge(&[], &[], 50).unwrap_err().starts_with("no pods"));
        assert!(
            judge(&three, &[], 50)
                .unwrap_err()
                .starts_with("did not receive")
        );
        let bare: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}}),
        )
        .unwrap();
        assert_eq!(
            requests(&[bare], "cpu", None).unwrap_err(),
            "missing request for cpu in container c of Pod p"
        );
    }

    #[test]
    fn what_is_missing_moves_nothing_by_itself() {
        let up = |name: &str| pod(name, "Running", true);
        let pods = [up("a"), up("b"), up("c")];
        let found = judge(&pods, &[("a", 500), ("b", 500)], 50).unwrap();
        assert_eq!(found.replicas, 3, "right on the mark");
    }

    #[test]
    fn pods_that_go_are_no_measure() {
        let mut going = pod("c", "Running", true);
        going.metadata.deletion_timestamp = Some(Time(at(900)));
        let failed = pod("d", "Failed", false);
        let pods = [
            pod("a", "Running", true),
            pod("b", "Running", true),
            going,
            failed,
        ];
        let values = [("a", 500), ("b", 500), ("c", 9000), ("d", 9000)];
        let found = judge(&pods, &values, 50).unwrap();
        assert_eq!((found.replicas, found.utilization), (4, Some(50)));
    }

    #[test]
    fn what_a_pod_requests_as_a_whole_counts() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"},
            "spec": {"resources": {"requests": {"cpu": "3"}}, "containers": [
                {"name": "c", "resources": {"requests": {"cpu": "1"}}}, {"name": "d"}]}}))
        .unwrap();
        let pods = [pod];
        assert_eq!(requests(&pods, "cpu", None).unwrap()["p"], 3000);
        assert_eq!(requests(&pods, "cpu", Some("c")).unwrap()["p"], 1000);
    }

    #[test]
    fn averages_and_values() {
        let pods = [pod("a", "Running", true), pod("b", "Pending", false)];
        let target = Target::Average(10_000);
        let values = samples(&[("a", 40_000)]);
        let found = of_pods(2, &values, &pods, false, &target, FIRM, at(1000)).unwrap();
        assert_eq!((found.replicas, found.value), (4, 40_000));

        for (current, ready, value, wanted, expected) in [
            (4, Some(4), 20_000, 10_000, Ok(8)),
            (4, Some(2), 20_000, 10_000, Ok(4)),
            (4, Some(4), 10_500, 10_000, Ok(4)),
            (4, None, 10_500, 10_000, Ok(4)),
            (4, None, 20_000, 10_000, Err(())),
            (0, None, 25_000, 10_000, Ok(3)),
        ] {
            let found = of_value(current, ready, value, wanted, FIRM);
            assert_eq!(found.map(|f| f.replicas).map_err(drop), expected);
        }
        for (replicas, value, wanted, expected, average) in [
            (4, 80_000, 10_000, 8, 20_000),
            (4, 41_000, 10_000, 4, 10_250),
            (4, 5_000, 10_000, 1, 1_250),
            (0, 10_000, 10_000, 1, 10_000),
            (0, 0, 10_000, 0, 0),
        ] {
            let found = of_shared(replicas, value, wanted, FIRM);
            assert_eq!((found.replicas, found.value), (expected, average));
        }
    }
}
