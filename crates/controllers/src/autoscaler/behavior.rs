//! How fast the number of replicas may change, and how long a recommendation is remembered.
//! Pure.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// Without rules, the highest recommendation of this time counts on the way down.
const STABILIZATION: i32 = 300;
/// Without rules, replicas may at most double, but always become this many.
const LIMIT_LEAST: i32 = 4;
/// Remembered recommendations and changes; older ones go first.
const REMEMBERED_MAX: usize = 1000;
/// Longest time that rules may look back.
const MEMORY: SignedDuration = SignedDuration::from_hours(1);

/// What an autoscaler recommended and did lately. Kept in memory only: after a restart the
/// first recommendation is the number of replicas there are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    recommendations: VecDeque<(Timestamp, i32)>,
    /// By how much replicas changed.
    changes: VecDeque<(Timestamp, i32)>,
}

impl Memory {
    /// Starts with what there is.
    pub fn start(&mut self, current: i32, now: Timestamp) {
        if self.recommendations.is_empty() {
            self.recommendations.push_back((now, current));
        }
    }

    fn recommend(&mut self, replicas: i32, now: Timestamp) {
        remember(&mut self.recommendations, replicas, now);
    }

    /// Notes a change that was made.
    pub fn change(&mut self, from: i32, to: i32, now: Timestamp) {
        remember(&mut self.changes, to - from, now);
    }

    fn within(&self, seconds: i32, now: Timestamp) -> impl Iterator<Item = i32> {
        let window = SignedDuration::from_secs(seconds.into());
        self.recommendations
            .iter()
            .filter(move |(at, _)| now.duration_since(*at) < window)
            .map(|(_, replicas)| *replicas)
    }

    fn changed_within(&self, seconds: i32, now: Timestamp) -> i32 {
        let window = SignedDuration::from_secs(seconds.into());
        self.changes
            .iter()
            .filter(|(at, _)| now.duration_since(*at) < window)
            .map(|(_, by)| by)
            .sum()
    }
}

fn remember(list: &mut VecDeque<(Timestamp, i32)>, value: i32, now: Timestamp) {
    list.push_back((now, value));
    let old = |at: Timestamp| now.duration_since(at) > MEMORY;
    while list.len() > REMEMBERED_MAX || list.front().is_some_and(|(at, _)| old(*at)) {
        list.pop_front();
    }
}

/// A number of replicas between limits, and what the conditions say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The number.
    pub replicas: i32,
    /// Reason and message of the condition AbleToScale.
    pub able: (&'static str, &'static str),
    /// Whether limits changed the number; reason and message of the condition ScalingLimited.
    pub limited: (bool, &'static str, &'static str),
}

const READY: (&str, &str) = ("ReadyForNewScale", "recommended size matches current size");
const UP_STABLE: (&str, &str) = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const DOWN_STABLE: (&str, &str) = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const UP_FAST: (&str, &str) = (
    "ScaleUpLimit",
    "the desired replica count is increasing faster than the maximum scale rate",
);
const DOWN_FAST: (&str, &str) = (
    "ScaleDownLimit",
    "the desired replica count is decreasing faster than the maximum scale rate",
);
const TOO_MANY: (&str, &str) = (
    "TooManyReplicas",
    "the desired replica count is more than the maximum replica count",
);
const TOO_FEW: (&str, &str) = (
    "TooFewReplicas",
    "the desired replica count is less than the minimum replica count",
);
const WITHIN: (&str, &str) = (
    "DesiredWithinRange",
    "the desired count is within the acceptable range",
);

/// Brings what the metrics ask for within the limits.
pub fn settle(
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    memory: &mut Memory,
    current: i32,
    desired: i32,
    (least, most): (i32, i32),
    now: Timestamp,
) -> Settled {
    let (stable, able) = match behavior {
        None => {
            let recent = memory.within(STABILIZATION, now).max();
            let stable = recent.unwrap_or(desired).max(desired);
            (stable, DOWN_STABLE)
        }
        Some(behavior) => stabilize(behavior, memory, current, desired, now),
    };
    memory.recommend(desired, now);
    let able = if stable == desired { READY } else { able };
    let (replicas, (reason, message)) = match behavior {
        None => within_defaults(current, stable, least, most),
        Some(behavior) => within_rates(behavior, memory, current, stable, (least, most), now),
    };
    Settled {
        replicas,
        able,
        limited: (replicas != stable, reason, message),
    }
}

fn stabilize(
    behavior: &HorizontalPodAutoscalerBehavior,
    memory: &Memory,
    current: i32,
    desired: i32,
    now: Timestamp,
) -> (i32, (&'static str, &'static str)) {
    let window = |rules: Option<&HPAScalingRules>, default: i32| {
        rules
            .and_then(|r| r.stabilization_window_seconds)
            .unwrap_or(default)
    };
    let up = window(behavior.scale_up.as_ref(), 0);
    let down = window(behavior.scale_down.as_ref(), STABILIZATION);
    let lowest = memory.within(up, now).min().unwrap_or(desired).min(desired);
    let highest = memory
        .within(down, now)
        .max()
        .unwrap_or(desired)
        .max(desired);
    let stable = current.max(lowest).min(highest);
    let why = if desired >= current {
        UP_STABLE
    } else {
        DOWN_STABLE
    };
    (stable, why)
}

fn within_defaults(
    current: i32,
    desired: i32,
    least: i32,
    most: i32,
) -> (i32, (&'static str, &'static str)) {
    let fast = current.saturating_mul(2).max(LIMIT_LEAST);
    let (most, too_many) = if most > fast {
        (fast, UP_FAST)
    } else {
        (most, TOO_MANY)
    };
    if desired < least {
        (least, TOO_FEW)
    } else if desired > most {
        (most, too_many)
    } else {
        (desired, WITHIN)
    }
}

fn within_rates(
    behavior: &HorizontalPodAutoscalerBehavior,
    memory: &Memory,
    current: i32,
    desired: i32,
    (least, most): (i32, i32),
    now: Timestamp,
) -> (i32, (&'static str, &'static str)) {
    if desired > current {
        let fast = rate(behavior.scale_up.as_ref(), memory, current, true, now).max(current);
        let (most, why) = if most > fast {
            (fast, UP_FAST)
        } else {
            (most, TOO_MANY)
        };
        if desired > most {
            return (most, why);
        }
    } else if desired < current {
        let fast = rate(behavior.scale_down.as_ref(), memory, current, false, now).min(current);
        let (least, why) = if least < fast {
            (fast, DOWN_FAST)
        } else {
            (least, TOO_FEW)
        };
        if desired < least {
            return (least, why);
        }
    }
    (desired, WITHIN)
}

/// As far as the policies let replicas go now.
fn rate(
    rules: Option<&HPAScalingRules>,
    memory: &Memory,
    current: i32,
    up: bool,
    now: Timestamp,
) -> i32 {
    let select = rules.and_then(|r| r.select_policy.as_deref());
    if select == Some("Disabled") {
        return current;
    }
    let proposals = rules
        .and_then(|r| r.policies.as_deref())
        .unwrap_or_default()
        .iter()
        .map(|policy| {
            let start = current - memory.changed_within(policy.period_seconds, now);
            let sign = if up { 1 } else { -1 };
            match policy.type_.as_str() {
                "Percent" => {
                    let part = f64::from(start) * (1.0 + f64::from(sign * policy.value) / 100.0);
                    if up { part.ceil() as i32 } else { part as i32 }
                }
                _ => start.saturating_add(sign * policy.value),
            }
        });
    // The greatest change: the highest number on the way up, the lowest on the way down.
    let highest = up != (select == Some("Min"));
    let chosen = if highest {
        proposals.max()
    } else {
        proposals.min()
    };
    chosen.unwrap_or(if up { i32::MAX } else { i32::MIN })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn behavior(up: Value, down: Value) -> HorizontalPodAutoscalerBehavior {
        serde_json::from_value(json!({"scaleUp": up, "scaleDown": down})).unwrap()
    }

    #[test]
    fn without_rules_growth_doubles_and_shrinking_waits() {
        for (current, desired, least, most, expected, reason) in [
            (3, 5, 1, 10, 5, "DesiredWithinRange"),
            (1, 9, 1, 10, 4, "ScaleUpLimit"),
            (3, 9, 1, 10, 6, "ScaleUpLimit"),
            (8, 20, 1, 10, 10, "TooManyReplicas"),
            (8, 1, 2, 10, 2, "TooFewReplicas"),
        ] {
            let mut memory = Memory::default();
            let found = settle(None, &mut memory, current, desired, (least, most), at(0));
            assert_eq!((found.replicas, found.limited.1), (expected, reason));
            assert_eq!(found.limited.0, reason != "DesiredWithinRange");
        }
        let mut memory = Memory::default();
        memory.start(8, at(0));
        let soon = settle(None, &mut memory, 8, 2, (1, 10), at(100));
        assert_eq!((soon.replicas, soon.able.0), (8, "ScaleDownStabilized"));
        let late = settle(None, &mut memory, 8, 2, (1, 10), at(300));
        assert_eq!((late.replicas, late.able.0), (2, "ReadyForNewScale"));
    }

    #[test]
    fn rules_bound_the_rate() {
        let pods = |value: i32, period: i32| json!({"type": "Pods", "value": value, "periodSeconds": period});
        let percent = |value: i32| json!({"type": "Percent", "value": value, "periodSeconds": 60});
        let rules = |policies: Value, select: &str| json!({"policies": policies, "selectPolicy": select, "stabilizationWindowSeconds": 0});
        for (up, down, current, desired, expected) in [
            (rules(json!([pods(2, 60)]), "Max"), Value::Null, 3, 9, 5),
            (
                rules(json!([pods(2, 60), percent(100)]), "Max"),
                Value::Null,
                3,
                9,
                6,
            ),
            (
                rules(json!([pods(2, 60), percent(100)]), "Min"),
                Value::Null,
                3,
                9,
                5,
            ),
            (
                rules(json!([pods(2, 60)]), "Disabled"),
                Value::Null,
                3,
                9,
                3,
            ),
            (Value::Null, rules(json!([pods(2, 60)]), "Max"), 9, 1, 7),
            (
                Value::Null,
                rules(json!([pods(2, 60), percent(50)]), "Max"),
                9,
                1,
                4,
            ),
            (
                Value::Null,
                rules(json!([pods(2, 60), percent(50)]), "Min"),
                9,
                1,
                7,
            ),
            (
                Value::Null,
                rules(json!([percent(10)]), "Disabled"),
                9,
                1,
                9,
            ),
        ] {
            let case = format!("{up} {down} {current} {desired}");
            let behavior = behavior(up, down);
            let mut memory = Memory::default();
            let found = settle(
                Some(&behavior),
                &mut memory,
                current,
                desired,
                (1, 10),
                at(0),
            );
            assert_eq!(found.replicas, expected, "{case}");
        }
        // What changed within the period counts.
        let behavior = behavior(rules(json!([pods(2, 60)]), "Max"), Value::Null);
        let mut memory = Memory::default();
        memory.change(3, 5, at(0));
        let soon = settle(Some(&behavior), &mut memory, 5, 9, (1, 10), at(30));
        assert_eq!(soon.replicas, 5);
        let later = settle(Some(&behavior), &mut memory, 5, 9, (1, 10), at(60));
        assert_eq!(later.replicas, 7);
    }

    #[test]
    fn stabilization_takes_the_most_careful_recommendation() {
        let all = json!({"policies": [{"type": "Percent", "value": 1000, "periodSeconds": 1}],
            "selectPolicy": "Max", "stabilizationWindowSeconds": 60});
        let behavior = behavior(all.clone(), all);
        let mut memory = Memory::default();
        memory.recommend(5, at(0));
        let up = settle(Some(&behavior), &mut memory, 4, 9, (1, 10), at(30));
        assert_eq!((up.replicas, up.able.0), (5, "ScaleUpStabilized"));
        let down = settle(Some(&behavior), &mut memory, 7, 2, (1, 10), at(40));
        assert_eq!((down.replicas, down.able.0), (7, "ScaleDownStabilized"));
        let free = settle(Some(&behavior), &mut memory, 7, 2, (1, 10), at(200));
        assert_eq!(free.replicas, 2);
    }
}
