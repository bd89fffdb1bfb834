//! What plugins say of a node is said once for all pods of one template.
//!
//! Pods of one template ask the same of every node, and placing one of them changes one node. So what *local* plugins
//! ([`Plugin::is_local`](crate::framework::Plugin::is_local)) say is kept by class of pods and node until the node
//! changes; a pod finds all other nodes looked at already. Plugins that look at other pods or places are asked afresh.
//!
//! Invariant: what is kept of a node is what its local plugins would say now, as long as the node is of the generation
//! at which it was kept.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeAffinity, Toleration};
use placement::{host_ports::HostPort, resources::Resources};

use crate::{framework::Refusal, node::NodeId, pod::PodInfo};

/// Classes kept; the one that was asked for longest ago makes room.
const CLASSES_MAX: usize = 16;

/// Everything of a pod that local plugins look at.
struct Class {
    profile: String,
    requested: Resources,
    scored: Resources,
    ports: Vec<HostPort>,
    node_name: Option<String>,
    node_selector: Vec<(String, String)>,
    node_affinity: Option<Arc<NodeAffinity>>,
    tolerations: Vec<Toleration>,
}

impl Class {
    fn of(profile: &str, pod: &PodInfo) -> Self {
        Self {
            profile: profile.to_owned(),
            requested: pod.footprint.requested.clone(),
            scored: pod.footprint.scored.clone(),
            ports: pod.footprint.ports.clone(),
            node_name: pod.node_name.clone(),
            node_selector: pod.node_selector.clone(),
            node_affinity: pod.node_affinity.clone(),
            tolerations: pod.tolerations.clone(),
        }
    }

    fn has(&self, profile: &str, pod: &PodInfo) -> bool {
        self.requested == pod.footprint.requested
            && self.scored == pod.footprint.scored
            && self.profile == profile
            && self.ports == pod.footprint.ports
            && self.node_name == pod.node_name
            && self.node_selector == pod.node_selector
            && self.node_affinity == pod.node_affinity
            && self.tolerations == pod.tolerations
    }
}

/// What is kept of a node.
#[derive(Clone, Default)]
struct Row {
    /// The generation of the node; 0: nothing is kept.
    generation: u64,
    /// Why it will not do.
    refusal: Option<Arc<Refusal>>,
}

/// What is kept for a class.
pub struct Kept {
    class: Class,
    rows: Vec<Row>,
    /// The scores of each node that will do, one for each plugin.
    scores: Vec<i64>,
    scorers: usize,
}

impl Kept {
    /// Why the node, which is of this generation, will not do. `ask` asks the plugins, which also give their scores if it will.
    pub fn refusal(
        &mut self,
        node: NodeId,
        generation: u64,
        ask: impl FnOnce(&mut [i64]) -> Option<Refusal>,
    ) -> Option<&Arc<Refusal>> {
        let at = node as usize;
        if self.rows.len() <= at {
            self.rows.resize(at + 1, Row::default());
            self.scores.resize((at + 1) * self.scorers, 0);
        }
        let row = &mut self.rows[at];
        if row.generation != generation || generation == 0 {
            let scores = &mut self.scores[at * self.scorers..(at + 1) * self.scorers];
            row.refusal = ask(scores).map(Arc::new);
            row.generation = generation;
        }
        row.refusal.as_ref()
    }

    /// The scores of a node that was found to do.
    pub fn scores(&self, node: NodeId) -> &[i64] {
        let at = node as usize;
        &self.scores[at * self.scorers..(at + 1) * self.scorers]
    }
}

/// What is kept, by class of pods; the class asked for last is last.
#[derive(Default)]
pub struct Classes(Vec<Kept>);

impl Classes {
    /// What is kept for pods like this one; `scorers`: how many plugins score.
    pub fn of(&mut self, profile: &str, pod: &PodInfo, scorers: usize) -> &mut Kept {
        let known = self.0.iter().rposition(|k| k.class.has(profile, pod));
        let kept = match known {
            Some(at) => self.0.remove(at),
            None => {
                if self.0.len() >= CLASSES_MAX {
                    self.0.remove(0);
                }
                Kept {
                    class: Class::of(profile, pod),
                    rows: Vec::new(),
                    scores: Vec::new(),
                    scorers,
                }
            }
        };
        self.0.push(kept);
        let last = self.0.len() - 1;
        &mut self.0[last]
    }
}
