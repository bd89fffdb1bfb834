//! A job's pods are counted once each, and it ends when enough have.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Invariant;
use crate::world::{Change, World, controller, has_condition, list, number, text};

/// The check.
#[derive(Default)]
pub struct Jobs {
    /// Uids of pods that succeeded, and their indexes, by the uid of their job.
    succeeded: BTreeMap<String, BTreeSet<(String, String)>>,
}

/// Whether the job has not let go of it: who succeeds after that is not counted.
fn is_tracked(pod: &Value) -> bool {
    let finalizers = list(pod, "/metadata/finalizers");
    finalizers
        .iter()
        .any(|f| f == "batch.kubernetes.io/job-tracking")
}

impl Invariant for Jobs {
    fn see(&mut self, _: &World, change: &Change<'_>) -> Result<(), String> {
        match (change.kind, change.old, change.new) {
            ("Pod", _, Some(pod))
                if text(pod, "/status/phase") == "Succeeded" && is_tracked(pod) =>
            {
                if let Some(owner) = controller(pod).filter(|o| o["kind"] == "Job") {
                    let job = owner["uid"].as_str().unwrap_or_default().to_owned();
                    let annotations = &pod["metadata"]["annotations"];
                    let index = &annotations["batch.kubernetes.io/job-completion-index"];
                    let index = index.as_str().unwrap_or_default().to_owned();
                    let uid = text(pod, "/metadata/uid").to_owned();
                    self.succeeded.entry(job).or_default().insert((uid, index));
                }
                Ok(())
            }
            ("Job", Some(old), Some(new)) => {
                for count in ["/status/succeeded", "/status/failed"] {
                    // A suspended job, or one started anew, keeps its counts too.
                    if number(new, count).unwrap_or(0) < number(old, count).unwrap_or(0) {
                        return Err(format!("job {:?} counts less in {count}", change.name));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn unsettled(&mut self, world: &World) -> Vec<String> {
        let mut all = Vec::new();
        for (name, job) in world.all("Job") {
            if !has_condition(job, "Complete") {
                all.push(format!("job {name:?} is not complete"));
                continue;
            }
            if number(job, "/spec/ttlSecondsAfterFinished").is_some() {
                all.push(format!("job {name:?} is to go by itself"));
            }
            let counted = number(job, "/status/succeeded").unwrap_or(0);
            let wanted = number(job, "/spec/completions").unwrap_or(0);
            let none = BTreeSet::new();
            let pods = self
                .succeeded
                .get(text(job, "/metadata/uid"))
                .unwrap_or(&none);
            let indexes: BTreeSet<&String> = pods.iter().map(|(_, index)| index).collect();
            let indexed = text(job, "/spec/completionMode") == "Indexed";
            let found = if indexed { indexes.len() } else { pods.len() };
            if usize::try_from(counted) != Ok(found) || counted < wanted {
                all.push(format!(
                    "job {name:?} counts {counted} of {wanted}; {found} succeeded"
                ));
            }
        }
        all
    }
}
