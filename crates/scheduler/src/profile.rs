//! Runs the plugins of one scheduler name over a pod: which node it goes to, or why to none.

use std::{cmp::Ordering, collections::BTreeSet};

use client::Jitter;

use crate::{
    framework::{Cycle, CycleState, Diagnosis, Happening, Plugin, PostFilter, PreFilter, Status},
    node::{NodeInfo, Snapshot},
    pod::{Footprint, PodInfo},
};

/// Below this many nodes all are looked at.
const MIN_NODES_TO_FIND: usize = 100;
/// In large clusters at least this share of the nodes, in percent, has to suit before the search ends.
const MIN_PERCENT: usize = 5;

/// The plugins of a scheduler name.
pub struct Profile {
    plugins: Vec<Box<dyn Plugin>>,
    jitter: Jitter,
}

/// What came of looking for a node.
pub enum Outcome {
    /// This one.
    Node(String),
    /// None.
    Unschedulable {
        /// Why.
        diagnosis: Diagnosis,
        /// The node on which room is to be made by evicting these.
        nominate: Option<(String, Vec<std::sync::Arc<Footprint>>)>,
    },
    /// A plugin failed.
    Error(String),
}

impl Profile {
    /// These plugins; `jitter` chooses between equal nodes.
    pub fn new(plugins: Vec<Box<dyn Plugin>>, jitter: Jitter) -> Self {
        Self { plugins, jitter }
    }

    /// The plugin that keeps the pod out of the queue, if any.
    pub fn gate(&self, pod: &PodInfo) -> Option<&'static str> {
        self.plugins
            .iter()
            .find(|p| !p.pre_enqueue(pod).is_success())
            .map(|p| p.name())
    }

    /// Which pod comes first.
    pub fn order(&self, a: &PodInfo, b: &PodInfo) -> Ordering {
        self.plugins
            .iter()
            .find_map(|p| p.queue_sort(a, b))
            .unwrap_or(Ordering::Equal)
    }

    /// Whether `what` may make a pod schedulable that these plugins said no to.
    pub fn may_help(&self, rejected_by: &BTreeSet<&'static str>, what: Happening) -> bool {
        rejected_by.is_empty()
            || self
                .plugins
                .iter()
                .filter(|p| rejected_by.contains(p.name()))
                .any(|p| p.happenings().contains(&what))
    }

    /// Looks for a node. `start` is where the search begins, so that nodes take turns.
    pub fn schedule(&self, snapshot: &Snapshot, pod: &PodInfo, start: usize) -> Outcome {
        let mut cycle = Cycle {
            snapshot,
            state: CycleState::default(),
        };
        let mut diagnosis = Diagnosis {
            nodes: snapshot.nodes.len(),
            ..Diagnosis::default()
        };
        let feasible = match self.feasible(&mut cycle, pod, start, &mut diagnosis) {
            Ok(feasible) => feasible,
            Err(error) => return Outcome::Error(error),
        };
        if feasible.is_empty() {
            let nominate = self.ask_for_help(&cycle, pod, &mut diagnosis);
            return Outcome::Unschedulable {
                diagnosis,
                nominate,
            };
        }
        Outcome::Node(self.best(&mut cycle, pod, &feasible))
    }

    fn feasible<'a>(
        &self,
        cycle: &mut Cycle<'a>,
        pod: &PodInfo,
        start: usize,
        diagnosis: &mut Diagnosis,
    ) -> Result<Vec<&'a NodeInfo>, String> {
        let snapshot = cycle.snapshot;
        let only = match self.pre_filter(cycle, pod, diagnosis)? {
            Some(only) => only,
            None => return Ok(Vec::new()),
        };
        let total = snapshot.nodes.len();
        let enough = enough(total);
        let mut feasible = Vec::new();
        for i in 0..total {
            let node = &snapshot.nodes[(start + i) % total];
            let name = node
                .spec
                .as_ref()
                .map(|s| s.name.as_str())
                .unwrap_or_default();
            if only.as_ref().is_some_and(|only| !only.contains(name)) {
                continue;
            }
            match self.filter(cycle, pod, node) {
                (_, Status::Success) => feasible.push(node.as_ref()),
                (_, Status::Error(error)) => return Err(error),
                (plugin, status) => {
                    diagnosis.plugins.insert(plugin);
                    diagnosis.by_node.insert(name.to_owned(), status);
                }
            }
            if feasible.len() >= enough {
                break;
            }
        }
        Ok(feasible)
    }

    /// `None`: rejected; otherwise the nodes to look at, `Some(None)` being all.
    fn pre_filter(
        &self,
        cycle: &mut Cycle<'_>,
        pod: &PodInfo,
        diagnosis: &mut Diagnosis,
    ) -> Result<Option<Option<BTreeSet<String>>>, String> {
        let mut only: Option<BTreeSet<String>> = None;
        for plugin in &self.plugins {
            match plugin.pre_filter(cycle, pod) {
                PreFilter::Continue => {}
                PreFilter::Skip => cycle.state.skip_filter(plugin.name()),
                PreFilter::Only(nodes) => {
                    let reason = format!("node(s) didn't satisfy plugin(s) [{}]", plugin.name());
                    diagnosis.pre_filter = Some(Status::unresolvable(reason));
                    diagnosis.plugins.insert(plugin.name());
                    only = Some(match only {
                        Some(before) => before.intersection(&nodes).cloned().collect(),
                        None => nodes,
                    });
                }
                PreFilter::Reject(Status::Error(error)) => return Err(error),
                PreFilter::Reject(status) => {
                    diagnosis.pre_filter = Some(status);
                    diagnosis.rejected = true;
                    diagnosis.plugins.insert(plugin.name());
                    return Ok(None);
                }
            }
        }
        Ok(Some(only))
    }

    fn filter(&self, cycle: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> (&'static str, Status) {
        for plugin in &self.plugins {
            if cycle.state.skips_filter(plugin.name()) {
                continue;
            }
            let status = plugin.filter(cycle, pod, node);
            if !status.is_success() {
                return (plugin.name(), status);
            }
        }
        ("", Status::Success)
    }

    fn ask_for_help(
        &self,
        cycle: &Cycle<'_>,
        pod: &PodInfo,
        diagnosis: &mut Diagnosis,
    ) -> Option<(String, Vec<std::sync::Arc<Footprint>>)> {
        if diagnosis.nodes == 0 {
            return None;
        }
        let try_filter = |pod: &PodInfo, node: &NodeInfo| self.filter(cycle, pod, node).1;
        let mut words = Vec::new();
        for plugin in &self.plugins {
            match plugin.post_filter(cycle, pod, diagnosis, &try_filter) {
                None => {}
                Some(PostFilter::Nominate { node, victims }) => return Some((node, victims)),
                Some(PostFilter::Failed(why)) => words.push(why),
            }
        }
        diagnosis.post_filter = words.join(", ");
        None
    }

    fn best(&self, cycle: &mut Cycle<'_>, pod: &PodInfo, feasible: &[&NodeInfo]) -> String {
        let name = |i: usize| {
            feasible[i]
                .spec
                .as_ref()
                .map(|s| s.name.clone())
                .unwrap_or_default()
        };
        if feasible.len() == 1 {
            return name(0);
        }
        let mut totals = vec![0_i64; feasible.len()];
        for plugin in &self.plugins {
            if !plugin.pre_score(cycle, pod, feasible) || plugin.weight() == 0 {
                continue;
            }
            let mut scores: Vec<i64> = feasible
                .iter()
                .map(|node| plugin.score(cycle, pod, node))
                .collect();
            plugin.normalize(cycle, pod, &mut scores);
            for (total, score) in totals.iter_mut().zip(scores) {
                *total += score * plugin.weight();
            }
        }
        let highest = totals.iter().copied().max().unwrap_or(0);
        let best: Vec<usize> = (0..totals.len())
            .filter(|&i| totals[i] == highest)
            .collect();
        let choice = (self.jitter.next() * best.len() as f64) as usize;
        name(best[choice.min(best.len() - 1)])
    }

    /// Reserve and Permit; on refusal everything is given back.
    pub fn reserve(&self, snapshot: &Snapshot, pod: &PodInfo, node: &str) -> Status {
        let mut cycle = Cycle {
            snapshot,
            state: CycleState::default(),
        };
        for plugin in &self.plugins {
            let mut status = plugin.reserve(&mut cycle, pod, node);
            if status.is_success() {
                status = plugin.permit(&cycle, pod, node);
            }
            if !status.is_success() {
                self.unreserve(pod, node);
                return status;
            }
        }
        Status::Success
    }

    /// Gives back what was reserved.
    pub fn unreserve(&self, pod: &PodInfo, node: &str) {
        self.plugins
            .iter()
            .rev()
            .for_each(|p| p.unreserve(pod, node));
    }

    /// PreBind and Bind.
    ///
    /// # Errors
    /// Whatever a plugin reports.
    pub async fn bind(&self, pod: &PodInfo, node: &str) -> Result<(), client::Error> {
        for plugin in &self.plugins {
            plugin.pre_bind(pod, node).await?;
        }
        for plugin in &self.plugins {
            if let Some(binding) = plugin.bind(pod, node) {
                return binding.await;
            }
        }
        Err(client::Error::Other("no plugin binds".into()))
    }
}

/// How many suitable nodes end the search.
fn enough(nodes: usize) -> usize {
    if nodes < MIN_NODES_TO_FIND {
        return nodes;
    }
    let percent = 50_usize.saturating_sub(nodes / 125).max(MIN_PERCENT);
    (nodes * percent / 100).max(MIN_NODES_TO_FIND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_clusters_are_sampled() {
        for (nodes, expected) in [(1, 1), (99, 99), (100, 100), (1000, 420), (10_000, 500)] {
            assert_eq!(enough(nodes), expected, "{nodes}");
        }
    }
}
