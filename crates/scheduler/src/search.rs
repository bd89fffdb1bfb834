//! The search for nodes that will do, and what is remembered of it for the next pod.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    classes::{Classes, Kept},
    framework::{Cycle, CycleState, Diagnosis, PreFilter, Refusal, Status, Supposition, View},
    node::{NodeId, NodeInfo},
    pod::PodInfo,
    points::Point,
    profile::{Profile, Slot},
    world::World,
};

/// Below this many nodes all are looked at.
const MIN_NODES_TO_FIND: usize = 100;
/// In large clusters at least this share of the nodes, in percent, has to suit before the search ends.
const MIN_PERCENT: usize = 5;

/// The plugins whose answers are kept, by position.
#[derive(Default)]
pub(crate) struct Local {
    /// Those that are asked about a node before any other.
    pub(crate) filters: Vec<usize>,
    /// Those that score nodes.
    pub(crate) scorers: Vec<usize>,
}

impl Local {
    pub(crate) fn of(plugins: &[Slot]) -> Self {
        let at = |point: Point| {
            let all = plugins.iter().enumerate();
            all.filter(move |(_, s)| s.points.has(point))
        };
        Self {
            filters: at(Point::Filter)
                .take_while(|(_, s)| s.plugin.is_local())
                .map(|(at, _)| at)
                .collect(),
            scorers: at(Point::Score)
                .filter(|(_, s)| s.weight != 0 && s.plugin.is_local())
                .map(|(at, _)| at)
                .collect(),
        }
    }
}

/// What is remembered from pod to pod.
#[derive(Default)]
pub struct Memory {
    /// Where the next search begins, so that nodes take turns.
    next: usize,
    classes: Classes,
}

/// What came of looking for nodes.
#[derive(Default)]
pub struct Search {
    /// What the plugins remember.
    pub state: CycleState,
    /// The nodes that would do.
    pub feasible: Vec<NodeId>,
    /// Why the others would not.
    pub diagnosis: Diagnosis,
    /// The plugins whose Filter has a say, by position.
    pub(crate) filters: Vec<usize>,
    /// What was said of the others, until it is asked for.
    refused: Vec<(NodeId, Arc<Refusal>)>,
    /// The scores that local plugins give the nodes that would do, in their order.
    pub(crate) scores: Option<Vec<i64>>,
}

impl Search {
    /// Brings the reasons against nodes into the diagnosis.
    pub fn explain(&mut self) {
        for (node, refusal) in self.refused.drain(..) {
            self.diagnosis.plugins.insert(refusal.0);
            self.diagnosis.by_node.insert(node, refusal);
        }
    }

    /// Only these nodes would do.
    pub fn narrow(&mut self, nodes: Vec<NodeId>) {
        self.feasible = nodes;
        self.scores = None;
    }
}

impl Profile {
    /// Looks for nodes that will do.
    ///
    /// # Errors
    /// When a plugin fails.
    pub fn search(
        &self,
        world: &mut World,
        pod: &PodInfo,
        memory: &mut Memory,
    ) -> Result<Search, String> {
        world.arrange();
        let mut search = Search::default();
        search.diagnosis.nodes = world.node_count();
        for Slot { plugin, .. } in &self.plugins {
            plugin.prepare(world, &mut search.state, pod);
        }
        if let Some(only) = self.pre_filter(world, pod, &mut search)? {
            self.feasible(world, pod, memory, only.as_ref(), &mut search)?;
        }
        if search.feasible.is_empty() {
            search.explain();
        }
        Ok(search)
    }

    fn feasible(
        &self,
        world: &World,
        pod: &PodInfo,
        memory: &mut Memory,
        only: Option<&BTreeSet<String>>,
        search: &mut Search,
    ) -> Result<(), String> {
        let allowed = |node: &NodeInfo| only.is_none_or(|only| only.contains(node.name()));
        // Where room has been made for the pod, it goes if it can.
        if let Some(node) = world.nomination(pod.uid()).filter(|n| allowed(n))
            && self
                .filter(world, &search.state, &search.filters, pod, node)
                .is_none()
        {
            search.feasible.push(node.id);
            return Ok(());
        }
        let named: Option<Vec<NodeId>> = only.map(|only| {
            let nodes = only.iter().filter_map(|name| world.node_named(name));
            nodes.map(|n| n.id).collect()
        });
        let order = named.as_deref().unwrap_or(world.order());
        let total = order.len();
        let enough = enough(total, self.percentage);
        let Memory { next, classes } = memory;
        // Who names its nodes looks at few of them, each pod at others.
        let mut kept = match &named {
            // Where devices may stand for resources, what local plugins say depends on those too.
            None if pod.containers.is_empty() => {
                Some(classes.of(&self.name, pod, self.local.scorers.len()))
            }
            _ => None,
        };
        let others = self.others(&search.filters);
        let first = next.checked_rem(total).unwrap_or(0);
        search.feasible.reserve(enough.min(total));
        let mut seen = 0;
        while seen < total && search.feasible.len() < enough {
            let at = first + seen;
            let node = order[if at < total { at } else { at - total }];
            seen += 1;
            let refusal = match kept.as_deref_mut() {
                Some(kept) => self.look(world, search, pod, node, kept, &others),
                None => self
                    .filter(world, &search.state, &search.filters, pod, world.node(node))
                    .map(Arc::new),
            };
            let Some(refusal) = refusal else {
                search.feasible.push(node);
                continue;
            };
            if let Status::Error(error) = &refusal.1 {
                return Err(format!("running {:?} filter plugin: {error}", refusal.0));
            }
            search.refused.push((node, refusal));
        }
        if named.is_none() {
            *next = (*next + seen).checked_rem(total).unwrap_or(0);
        }
        if let Some(kept) = kept {
            let mut scores = Vec::with_capacity(search.feasible.len() * self.local.scorers.len());
            for id in &search.feasible {
                scores.extend_from_slice(kept.scores(*id));
            }
            search.scores = Some(scores);
        }
        Ok(())
    }

    /// Those of the filters whose answers are not kept.
    fn others(&self, filters: &[usize]) -> Vec<usize> {
        let is_other = |at: &&usize| !self.local.filters.contains(at);
        filters.iter().filter(is_other).copied().collect()
    }

    /// Why a node will not do: what local plugins say is looked up, `others` are asked.
    fn look(
        &self,
        world: &World,
        search: &Search,
        pod: &PodInfo,
        id: NodeId,
        kept: &mut Kept,
        others: &[usize],
    ) -> Option<Arc<Refusal>> {
        let view = View {
            world,
            state: &search.state,
            suppositions: &[],
        };
        let node = world.node(id);
        let refusal = kept.refusal(id, world.generation(id), |scores| {
            let filters = search.filters.iter();
            let local = filters.filter(|at| self.local.filters.contains(at));
            let refusal = self.filter_as_is(&view, local, pod, node);
            if refusal.is_none() {
                for (score, at) in scores.iter_mut().zip(&self.local.scorers) {
                    *score = self.plugins[*at].plugin.score(&view, pod, node);
                }
            }
            refusal
        });
        if !world.nominated_for(id).is_empty() {
            let (state, filters) = (&search.state, &search.filters);
            return self.filter(world, state, filters, pod, node).map(Arc::new);
        }
        if let Some(refusal) = refusal {
            return Some(Arc::clone(refusal));
        }
        self.filter_as_is(&view, others.iter(), pod, node)
            .map(Arc::new)
    }

    /// `None`: rejected; otherwise the nodes to look at, `Some(None)` being all.
    pub(crate) fn pre_filter(
        &self,
        world: &World,
        pod: &PodInfo,
        search: &mut Search,
    ) -> Result<Option<Option<BTreeSet<String>>>, String> {
        let mut only: Option<BTreeSet<String>> = None;
        let mut narrowing = Vec::new();
        for (at, slot) in self.plugins.iter().enumerate() {
            let plugin = &slot.plugin;
            let filters = slot.points.has(Point::Filter);
            if !slot.points.has(Point::PreFilter) {
                search.filters.extend(filters.then_some(at));
                continue;
            }
            let mut cycle = Cycle {
                world,
                state: &mut search.state,
            };
            match plugin.pre_filter(&mut cycle, pod) {
                PreFilter::Continue => search.filters.extend(filters.then_some(at)),
                PreFilter::Skip => {}
                PreFilter::Only(nodes) => {
                    search.filters.extend(filters.then_some(at));
                    narrowing.push(plugin.name());
                    only = Some(match only {
                        Some(before) => before.intersection(&nodes).cloned().collect(),
                        None => nodes,
                    });
                }
                PreFilter::Reject(Status::Error(error)) => {
                    let name = plugin.name();
                    return Err(format!("running PreFilter plugin {name:?}: {error}"));
                }
                PreFilter::Reject(status) => {
                    search.diagnosis.pre_filter = Some(status);
                    search.diagnosis.rejected = true;
                    search.diagnosis.plugins.insert(plugin.name());
                    return Ok(None);
                }
            }
        }
        if !narrowing.is_empty() {
            search.diagnosis.plugins.extend(&narrowing);
            let names = narrowing.join(" ");
            let reason = if only.as_ref().is_some_and(BTreeSet::is_empty) {
                search.diagnosis.rejected = true;
                format!("node(s) didn't satisfy plugin(s) [{names}] simultaneously")
            } else {
                format!("node(s) didn't satisfy plugin(s) [{names}]")
            };
            search.diagnosis.pre_filter = Some(Status::unresolvable(reason));
            if search.diagnosis.rejected {
                return Ok(None);
            }
        }
        Ok(Some(only))
    }

    /// Why the node will not do, with or without the pods of at least the same priority for which
    /// room is being made there.
    fn filter(
        &self,
        world: &World,
        state: &CycleState,
        filters: &[usize],
        pod: &PodInfo,
        node: &NodeInfo,
    ) -> Option<Refusal> {
        let mut view = View {
            world,
            state,
            suppositions: &[],
        };
        let coming: Vec<Supposition> = world
            .nominated_for(node.id)
            .iter()
            .filter(|p| p.priority >= pod.footprint.priority && p.uid != *pod.uid())
            .map(|p| Supposition {
                pod: p.clone(),
                node: node.id,
                added: true,
            })
            .collect();
        if !coming.is_empty() {
            let mut full = node.clone();
            for supposed in &coming {
                full.add(supposed.pod.clone());
            }
            view.suppositions = &coming;
            let refusal = self.filter_as_is(&view, filters.iter(), pod, &full);
            if refusal.is_some() {
                return refusal;
            }
            view.suppositions = &[];
        }
        self.filter_as_is(&view, filters.iter(), pod, node)
    }

    pub(crate) fn filter_as_is<'a>(
        &self,
        view: &View<'_>,
        filters: impl Iterator<Item = &'a usize>,
        pod: &PodInfo,
        node: &NodeInfo,
    ) -> Option<Refusal> {
        for at in filters {
            let plugin = &self.plugins[*at].plugin;
            let status = plugin.filter(view, pod, node);
            if !status.is_success() {
                return Some((plugin.name(), status));
            }
        }
        None
    }
}

/// How many suitable nodes end the search.
fn enough(nodes: usize, percentage: Option<usize>) -> usize {
    if nodes < MIN_NODES_TO_FIND {
        return nodes;
    }
    let by_size = || 50_usize.saturating_sub(nodes / 125).max(MIN_PERCENT);
    let percent = percentage.unwrap_or_else(by_size);
    (nodes * percent / 100).max(MIN_NODES_TO_FIND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_clusters_are_sampled() {
        for (nodes, expected) in [(1, 1), (99, 99), (100, 100), (1000, 420), (10_000, 500)] {
            assert_eq!(enough(nodes, None), expected, "{nodes}");
        }
        assert_eq!(enough(1000, Some(100)), 1000);
    }
}
