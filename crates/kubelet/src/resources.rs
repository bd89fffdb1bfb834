//! QoS classes, cgroup names and the kernel's numbers for requests and limits. Pure.

use k8s_openapi::api::core::v1::{Container, Pod};
use oci::cri::v1::LinuxContainerResources;

use crate::pod;
use crate::quantity::{self, Amounts};

/// Length of a CFS period, in microseconds.
pub const CPU_PERIOD: i64 = 100_000;
const MIN_QUOTA: i64 = 1000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;

/// Quality-of-service class of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Limits equal requests for cpu and memory in every container.
    Guaranteed,
    /// Some request or limit.
    Burstable,
    /// None.
    BestEffort,
}

impl Qos {
    /// The name in status.qosClass.
    pub fn name(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

/// The class of `pod`.
pub fn qos(pod: &Pod) -> Qos {
    let spec = pod::spec(pod);
    let pod_level = spec.resources.as_ref();
    let all: Vec<_> = match pod_level {
        Some(resources) if resources.limits.is_some() || resources.requests.is_some() => {
            vec![(resources.requests.as_ref(), resources.limits.as_ref())]
        }
        _ => pod::containers(pod)
            .map(|(_, c)| {
                let resources = c.resources.as_ref();
                (
                    resources.and_then(|r| r.requests.as_ref()),
                    resources.and_then(|r| r.limits.as_ref()),
                )
            })
            .collect(),
    };
    let mut any = false;
    let mut guaranteed = !all.is_empty();
    for (requests, limits) in all {
        for name in ["cpu", "memory"] {
            let limit = quantity::milli_of(limits, name).filter(|m| *m > 0);
            let request = quantity::milli_of(requests, name)
                .filter(|m| *m > 0)
                .or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && limit == request;
        }
    }
    match (any, guaranteed) {
        (_, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
        (false, false) => Qos::BestEffort,
    }
}

/// The pod's cgroup under `root`.
pub fn cgroup_parent(root: &str, pod: &Pod) -> String {
    let class = qos(pod).name().to_lowercase();
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    format!("{root}/{class}/pod{uid}")
}

/// Relative weight for `milli` thousandths of a core.
pub fn shares(milli: i64) -> i64 {
    (milli * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// CFS quota for `milli` thousandths of a core; 0 means no limit.
pub fn quota(milli: i64) -> i64 {
    if milli <= 0 {
        return 0;
    }
    (milli * CPU_PERIOD / 1000).max(MIN_QUOTA)
}

/// How soon the kernel kills the container when memory is short: -997 (late) to 1000 (first).
pub fn oom_score_adj(pod: &Pod, container: &Container, capacity: i64) -> i64 {
    let critical = pod::spec(pod).priority.is_some_and(|p| p >= 2_000_000_000);
    if critical {
        return -997;
    }
    match qos(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let request = container
                .resources
                .as_ref()
                .and_then(|r| quantity::units_of(r.requests.as_ref(), "memory"))
                .unwrap_or(0);
            let capacity = capacity.max(1);
            (1000 - 1000 * request / capacity).clamp(3, 999)
        }
    }
}

/// The limits of one container.
pub fn container(pod: &Pod, container: &Container, capacity: i64) -> LinuxContainerResources {
    let resources = container.resources.as_ref();
    let requests = resources.and_then(|r| r.requests.as_ref());
    let limits = resources.and_then(|r| r.limits.as_ref());
    let mut out = linux(requests, limits);
    out.oom_score_adj = oom_score_adj(pod, container, capacity);
    out
}

fn linux(requests: Option<&Amounts>, limits: Option<&Amounts>) -> LinuxContainerResources {
    let limit = quantity::milli_of(limits, "cpu").unwrap_or(0);
    let request = quantity::milli_of(requests, "cpu").unwrap_or(limit);
    let hugepages = limits
        .into_iter()
        .flatten()
        .filter_map(|(name, amount)| {
            let size = name.strip_prefix("hugepages-")?;
            Some(oci::cri::v1::HugepageLimit {
                page_size: format!("{}B", size.trim_end_matches('i')),
                limit: u64::try_from(quantity::units(amount)).unwrap_or(0),
            })
        })
        .collect();
    LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: quota(limit),
        cpu_shares: shares(request),
        memory_limit_in_bytes: quantity::units_of(limits, "memory").unwrap_or(0),
        hugepage_limits: hugepages,
        ..LinuxContainerResources::default()
    }
}

/// The limits of the pod as a whole: sums of its containers, limited only if all are.
pub fn whole(pod: &Pod) -> LinuxContainerResources {
    let spec = pod::spec(pod);
    let declared = spec.resources.as_ref();
    let sum = |name: &str, limits: bool| -> Option<i64> {
        let own = declared.and_then(|r| {
            if limits {
                r.limits.as_ref()
            } else {
                r.requests.as_ref()
            }
        });
        if let Some(amount) = quantity::milli_of(own, name) {
            return Some(amount);
        }
        let of = |c: &Container| {
            let resources = c.resources.as_ref();
            let amounts = resources.and_then(|r| {
                if limits {
                    r.limits.as_ref()
                } else {
                    r.requests.as_ref()
                }
            });
            quantity::milli_of(amounts, name).filter(|m| *m > 0)
        };
        let mut running = Some(0);
        let mut peak = 0;
        for (role, c) in pod::containers(pod) {
            let amount = of(c);
            if amount.is_none() && limits {
                running = None;
            }
            match role {
                pod::Role::Init => {
                    peak = peak.max(running.unwrap_or(0) + amount.unwrap_or(0));
                }
                _ => running = running.map(|r| r + amount.unwrap_or(0)),
            }
        }
        running.map(|r| r.max(peak))
    };
    let to_units = |milli: i64| (milli + 999) / 1000;
    LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: quota(sum("cpu", true).unwrap_or(0)),
        cpu_shares: shares(sum("cpu", false).unwrap_or(0)),
        memory_limit_in_bytes: sum("memory", true).map_or(0, to_units),
        ..LinuxContainerResources::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn with(resources: &[Value]) -> Pod {
        let containers: Vec<_> = resources
            .iter()
            .enumerate()
            .map(|(n, r)| json!({"name": format!("c{n}"), "resources": r}))
            .collect();
        serde_json::from_value(
            json!({"metadata": {"name": "p", "uid": "u"}, "spec": {"containers": containers}}),
        )
        .unwrap()
    }

    #[test]
    fn classes() {
        let both = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let equal = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}});
        let some = json!({"requests": {"cpu": "100m"}});
        let cases: [(&[Value], Qos); 5] = [
            (&[json!({})], Qos::BestEffort),
            (std::slice::from_ref(&both), Qos::Guaranteed),
            (&[equal.clone(), both.clone()], Qos::Guaranteed),
            (&[equal, json!({})], Qos::Burstable),
            (&[some], Qos::Burstable),
        ];
        for (resources, want) in cases {
            assert_eq!(qos(&with(resources)), want, "{resources:?}");
        }
        assert_eq!(
            cgroup_parent("/styr-x", &with(&[both])),
            "/styr-x/guaranteed/podu"
        );
    }

    #[test]
    fn kernel_numbers() {
        assert_eq!((shares(0), shares(100), shares(2000)), (2, 102, 2048));
        assert_eq!((quota(0), quota(5), quota(500)), (0, 1000, 50_000));
        let pod = with(&[json!({"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}})]);
        let c = &pod::spec(&pod).containers[0];
        let got = container(&pod, c, 4 << 30);
        assert_eq!(
            (got.oom_score_adj, got.memory_limit_in_bytes),
            (750, 2 << 30)
        );
    }

    #[test]
    fn the_pod_is_limited_only_if_all_are() {
        let limited = json!({"limits": {"cpu": "500m", "memory": "1Gi"}});
        let pod = with(&[limited.clone(), limited.clone()]);
        let sum = whole(&pod);
        assert_eq!(
            (sum.cpu_quota, sum.memory_limit_in_bytes),
            (100_000, 2 << 30)
        );
        let open = whole(&with(&[limited, json!({})]));
        assert_eq!((open.cpu_quota, open.memory_limit_in_bytes), (0, 0));
    }
}
