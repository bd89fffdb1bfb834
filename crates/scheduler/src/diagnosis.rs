//! The words in which the scheduler says why no node will do: upstream's, to the letter.

use std::collections::BTreeMap;

use crate::framework::Diagnosis;

/// What is said when there is no node at all.
pub const NO_NODES: &str = "no nodes available to schedule pods";

/// Bytes of the message of an event.
const EVENT_MAX: usize = 1024;

/// As much of a message as an event holds.
pub fn cut(message: &str) -> String {
    const MORE: &str = " ...";
    if message.len() <= EVENT_MAX {
        return message.to_owned();
    }
    let end = message.floor_char_boundary(EVENT_MAX - MORE.len());
    format!("{}{MORE}", &message[..end])
}

/// The message of the event FailedScheduling and of the condition PodScheduled.
pub fn message(diagnosis: &Diagnosis) -> String {
    let mut text = format!("0/{} nodes are available:", diagnosis.nodes);
    match (&diagnosis.pre_filter, diagnosis.rejected) {
        (Some(status), true) => text.push_str(&format!(" {}.", status.reasons().join(", "))),
        (others, _) => {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for reason in diagnosis.by_node.values().flat_map(|r| r.1.reasons()) {
                *counts.entry(reason).or_default() += 1;
            }
            let absent = diagnosis.nodes.saturating_sub(diagnosis.by_node.len());
            if absent > 0 {
                for reason in others.iter().flat_map(|s| s.reasons()) {
                    *counts.entry(reason).or_default() += absent;
                }
            }
            let mut parts: Vec<String> = counts
                .into_iter()
                .map(|(reason, n)| format!("{n} {reason}"))
                .collect();
            parts.sort();
            if !parts.is_empty() {
                text.push_str(&format!(" {}.", parts.join(", ")));
            }
        }
    }
    if !diagnosis.post_filter.is_empty() {
        text.push_str(&format!(" {}", diagnosis.post_filter));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use super::*;
    use crate::framework::Status;

    #[test]
    fn counts_reasons_in_the_order_of_their_text() {
        let status = |reasons: &[&str]| {
            let reasons = reasons.iter().map(|r| r.to_string()).collect();
            Arc::new(("P", Status::Unschedulable(reasons)))
        };
        let diagnosis = Diagnosis {
            nodes: 3,
            by_node: HashMap::from([
                (0, status(&["Insufficient cpu", "Insufficient memory"])),
                (1, status(&["Insufficient cpu"])),
                (2, status(&["node(s) had untolerated taint(s)"])),
            ]),
            post_filter: "preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod.".into(),
            ..Diagnosis::default()
        };
        assert_eq!(
            message(&diagnosis),
            "0/3 nodes are available: 1 Insufficient memory, 1 node(s) had untolerated taint(s), \
             2 Insufficient cpu. preemption: 0/3 nodes are available: 3 No preemption victims \
             found for incoming pod."
        );
    }

    #[test]
    fn long_messages_are_cut_for_events() {
        assert_eq!(cut("short"), "short");
        let cut = cut(&"ä".repeat(1000));
        assert!(cut.len() <= EVENT_MAX && cut.ends_with("ä ..."));
    }

    #[test]
    fn a_rejection_by_pre_filter_stands_alone() {
        let diagnosis = Diagnosis {
            nodes: 2,
            pre_filter: Some(Status::unresolvable(
                "persistentvolumeclaim \"x\" not found",
            )),
            rejected: true,
            ..Diagnosis::default()
        };
        let expected = "0/2 nodes are available: persistentvolumeclaim \"x\" not found.";
        assert_eq!(message(&diagnosis), expected);
    }
}
