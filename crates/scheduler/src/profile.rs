//! Runs the plugins of one scheduler name over a pod: which node it goes to, or why to none.

use std::collections::{BTreeSet, HashMap};

use client::Jitter;

use crate::{
    config::{Chosen, ProfileConfig},
    extender::Extender,
    framework::{
        Candidate, Cycle, CycleState, Diagnosis, Event, Happening, Plugin, PostFilter, PreFilter,
        Status, Supposition, View,
    },
    node::{NodeId, NodeInfo},
    plugins::{self, Handle},
    pod::PodInfo,
    points::{Point, Points},
    why,
    world::World,
};

/// Below this many nodes all are looked at.
const MIN_NODES_TO_FIND: usize = 100;
/// In large clusters at least this share of the nodes, in percent, has to suit before the search ends.
const MIN_PERCENT: usize = 5;

/// The plugins of a scheduler name.
pub struct Profile {
    /// The scheduler name.
    pub name: String,
    plugins: Vec<Slot>,
    jitter: Jitter,
    /// The share of the nodes that has to suit before a search ends, in percent; `None`: by size.
    percentage: Option<usize>,
}

/// A plugin as configured.
struct Slot {
    plugin: Box<dyn Plugin>,
    points: Points,
    weight: i64,
}

/// What one plugin has against all nodes, and what each has against each node.
pub type Examination = (
    Option<(&'static str, Status)>,
    Vec<(String, Vec<why::Obstacle>)>,
);

/// Scores from elsewhere, by node.
pub type Scores = HashMap<String, i64>;

/// What came of looking for nodes.
pub struct Search {
    /// What the plugins remember.
    pub state: CycleState,
    /// The nodes that would do.
    pub feasible: Vec<NodeId>,
    /// Why the others would not.
    pub diagnosis: Diagnosis,
    /// The plugins whose Filter has a say, by position.
    filters: Vec<usize>,
}

impl Profile {
    /// These plugins for a scheduler name; `jitter` chooses between equal nodes.
    pub fn new(name: &str, plugins: Vec<Box<dyn Plugin>>, jitter: Jitter) -> Self {
        let plugins = plugins
            .into_iter()
            .map(|plugin| Slot {
                points: Points::ALL,
                weight: plugin.weight(),
                plugin,
            })
            .collect();
        Self {
            name: name.to_owned(),
            plugins,
            jitter,
            percentage: None,
        }
    }

    /// The profile that a configuration describes.
    ///
    /// # Errors
    /// When a plugin refuses its arguments.
    pub fn configured(
        config: &ProfileConfig,
        handle: &Handle,
        jitter: Jitter,
    ) -> Result<Self, String> {
        let slot = |chosen: &Chosen| {
            let plugin = plugins::make(chosen.name, handle, chosen.args.clone())?;
            Ok(Slot {
                points: chosen.points,
                weight: chosen.weight.unwrap_or(plugin.weight()),
                plugin,
            })
        };
        Ok(Self {
            name: config.name.clone(),
            plugins: config
                .plugins
                .iter()
                .map(slot)
                .collect::<Result<_, String>>()?,
            jitter,
            percentage: config.percentage,
        })
    }

    /// The plugins enabled at a point.
    fn at(&self, point: Point) -> impl DoubleEndedIterator<Item = &dyn Plugin> {
        let slots = self.plugins.iter().filter(move |s| s.points.has(point));
        slots.map(|s| &*s.plugin)
    }

    /// The plugin that keeps the pod out of the queue, if any.
    pub fn gate(&self, pod: &PodInfo) -> Option<&'static str> {
        self.at(Point::PreEnqueue)
            .find(|p| !p.pre_enqueue(pod).is_success())
            .map(|p| p.name())
    }

    /// The rank of a pod in the queue: less comes first.
    pub fn rank(&self, pod: &PodInfo) -> i64 {
        self.at(Point::QueueSort)
            .find_map(|p| p.queue_sort(pod))
            .unwrap_or(0)
    }

    /// Whether something of this kind may make a pod schedulable that this plugin said no to.
    pub fn cares(&self, plugin: &str, what: Happening) -> bool {
        self.plugins
            .iter()
            .map(|s| &s.plugin)
            .find(|p| p.name() == plugin)
            .is_none_or(|p| p.happenings().contains(&what))
    }

    /// Whether `event` may make a pod schedulable that these plugins said no to.
    pub fn may_help(
        &self,
        pod: &PodInfo,
        rejected_by: &BTreeSet<&'static str>,
        kinds: &[Happening],
        event: &Event<'_>,
    ) -> bool {
        rejected_by.is_empty()
            || self
                .plugins
                .iter()
                .map(|s| &s.plugin)
                .filter(|p| rejected_by.contains(p.name()))
                .filter(|p| p.happenings().iter().any(|h| kinds.contains(h)))
                .any(|p| p.helps(pod, event))
    }

    /// Looks for nodes that will do. `next` is where the search begins, so that nodes take turns.
    ///
    /// # Errors
    /// When a plugin fails.
    pub fn search(
        &self,
        world: &mut World,
        pod: &PodInfo,
        next: &mut usize,
    ) -> Result<Search, String> {
        world.arrange();
        let mut search = Search {
            state: CycleState::default(),
            feasible: Vec::new(),
            diagnosis: Diagnosis {
                nodes: world.node_count(),
                ..Diagnosis::default()
            },
            filters: Vec::new(),
        };
        for Slot { plugin, .. } in &self.plugins {
            plugin.prepare(world, &mut search.state, pod);
        }
        if let Some(only) = self.pre_filter(world, pod, &mut search)? {
            self.feasible(world, pod, next, only.as_ref(), &mut search)?;
        }
        Ok(search)
    }

    fn feasible(
        &self,
        world: &World,
        pod: &PodInfo,
        next: &mut usize,
        only: Option<&BTreeSet<String>>,
        search: &mut Search,
    ) -> Result<(), String> {
        let allowed = |node: &NodeInfo| only.is_none_or(|only| only.contains(node.name()));
        // Where room has been made for the pod, it goes if it can.
        if let Some(node) = world.nomination(pod.uid()).filter(|n| allowed(n))
            && self
                .filter(world, &search.state, &search.filters, pod, node)
                .1
                == Status::Success
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
        let mut seen = 0;
        while seen < total && search.feasible.len() < enough {
            let node = world.node(order[(*next + seen) % total]);
            seen += 1;
            match self.filter(world, &search.state, &search.filters, pod, node) {
                (_, Status::Success) => search.feasible.push(node.id),
                (_, Status::Error(error)) => return Err(error),
                (plugin, status) => {
                    search.diagnosis.plugins.insert(plugin);
                    search.diagnosis.by_node.insert(node.id, (plugin, status));
                }
            }
        }
        if named.is_none() && total > 0 {
            *next = (*next + seen) % total;
        }
        Ok(())
    }

    /// `None`: rejected; otherwise the nodes to look at, `Some(None)` being all.
    fn pre_filter(
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
                PreFilter::Reject(Status::Error(error)) => return Err(error),
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

    /// Whether the node will do, with and without the pods of at least the same priority for which
    /// room is being made there.
    fn filter(
        &self,
        world: &World,
        state: &CycleState,
        filters: &[usize],
        pod: &PodInfo,
        node: &NodeInfo,
    ) -> (&'static str, Status) {
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
            let (plugin, status) = self.filter_as_is(&view, filters, pod, &full);
            if !status.is_success() {
                return (plugin, status);
            }
            view.suppositions = &[];
        }
        self.filter_as_is(&view, filters, pod, node)
    }

    fn filter_as_is(
        &self,
        view: &View<'_>,
        filters: &[usize],
        pod: &PodInfo,
        node: &NodeInfo,
    ) -> (&'static str, Status) {
        for at in filters {
            let plugin = &self.plugins[*at].plugin;
            let status = plugin.filter(view, pod, node);
            if !status.is_success() {
                return (plugin.name(), status);
            }
        }
        ("", Status::Success)
    }

    /// What every plugin has against each node, for those who explain; or what one has against all
    /// of them.
    ///
    /// # Errors
    /// When a plugin fails.
    pub fn examine(&self, world: &mut World, pod: &PodInfo) -> Result<Examination, String> {
        world.arrange();
        let mut search = Search {
            state: CycleState::default(),
            feasible: Vec::new(),
            diagnosis: Diagnosis::default(),
            filters: Vec::new(),
        };
        for Slot { plugin, .. } in &self.plugins {
            plugin.prepare(world, &mut search.state, pod);
        }
        let Some(only) = self.pre_filter(world, pod, &mut search)? else {
            let plugin = search.diagnosis.plugins.first().copied().unwrap_or("");
            let status = search.diagnosis.pre_filter.unwrap_or(Status::Success);
            return Ok((Some((plugin, status)), Vec::new()));
        };
        let view = View {
            world,
            state: &search.state,
            suppositions: &[],
        };
        let alone = world.node_count() == 1;
        let mut verdicts = Vec::new();
        for node in world.nodes() {
            let mut obstacles = Vec::new();
            if only
                .as_ref()
                .is_some_and(|only| !only.contains(node.name()))
            {
                let named = search.diagnosis.plugins.first().copied().unwrap_or("");
                let status = search.diagnosis.pre_filter.clone();
                let status = status.unwrap_or(Status::Success);
                obstacles.push(why::obstacle(named, &status, None, node, alone));
            }
            for at in &search.filters {
                let plugin = &self.plugins[*at].plugin;
                let status = plugin.filter(&view, pod, node);
                if !status.is_success() {
                    let advice = plugin.advice(&view, pod, node);
                    obstacles.push(why::obstacle(plugin.name(), &status, advice, node, alone));
                }
            }
            verdicts.push((node.name().to_owned(), obstacles));
        }
        Ok((None, verdicts))
    }

    /// Asks the PostFilter plugins how to make room, when no node will do: the best way first.
    pub fn ask_for_help(
        &self,
        world: &World,
        pod: &PodInfo,
        search: &mut Search,
    ) -> Vec<Candidate> {
        if search.diagnosis.nodes == 0 {
            return Vec::new();
        }
        let Search {
            state,
            diagnosis,
            filters,
            ..
        } = search;
        let view = View {
            world,
            state,
            suppositions: &[],
        };
        let try_filter = |pod: &PodInfo, node: &NodeInfo, suppositions: &[Supposition]| {
            let view = View {
                suppositions,
                ..view
            };
            self.filter_as_is(&view, filters, pod, node).1
        };
        let mut words = Vec::new();
        for plugin in self.at(Point::PostFilter) {
            match plugin.post_filter(&view, pod, diagnosis, &try_filter) {
                None => {}
                Some(PostFilter::Candidates(candidates)) => return candidates,
                Some(PostFilter::Failed(why)) => words.push(why),
            }
        }
        diagnosis.post_filter = words.join(", ");
        Vec::new()
    }

    /// The best of the nodes that will do; `None`: there is none (any more).
    /// `extra` are scores to be added.
    pub fn choose(
        &self,
        world: &World,
        pod: &PodInfo,
        search: &mut Search,
        extra: &Scores,
    ) -> Option<String> {
        let nodes: Vec<&NodeInfo> = search
            .feasible
            .iter()
            .map(|id| world.node(*id))
            .filter(|n| n.spec.is_some())
            .collect();
        if nodes.len() < 2 {
            return nodes.first().map(|n| n.name().to_owned());
        }
        let mut totals = self.totals(world, pod, &mut search.state, &nodes);
        if !extra.is_empty() {
            for (total, node) in totals.iter_mut().zip(&nodes) {
                *total += extra.get(node.name()).copied().unwrap_or(0);
            }
        }
        let highest = totals.iter().copied().max().unwrap_or(0);
        let best: Vec<usize> = (0..totals.len())
            .filter(|&i| totals[i] == highest)
            .collect();
        let choice = (self.jitter.next() * best.len() as f64) as usize;
        let best = best[choice.min(best.len() - 1)];
        Some(nodes[best].name().to_owned())
    }

    fn totals(
        &self,
        world: &World,
        pod: &PodInfo,
        state: &mut CycleState,
        nodes: &[&NodeInfo],
    ) -> Vec<i64> {
        let mut totals = vec![0_i64; nodes.len()];
        let mut scores = vec![0_i64; nodes.len()];
        let scoring = self.plugins.iter().filter(|s| s.points.has(Point::Score));
        for Slot { plugin, weight, .. } in scoring {
            if *weight == 0 || !plugin.pre_score(&mut Cycle { world, state }, pod, nodes) {
                continue;
            }
            let view = View {
                world,
                state,
                suppositions: &[],
            };
            for (score, node) in scores.iter_mut().zip(nodes) {
                *score = plugin.score(&view, pod, node);
            }
            plugin.normalize(&view, nodes, &mut scores);
            for (total, score) in totals.iter_mut().zip(&scores) {
                *total += score * weight;
            }
        }
        totals
    }

    /// Reserve and Permit; on refusal everything is given back.
    pub fn reserve(&self, world: &World, pod: &PodInfo, node: &str) -> Status {
        let mut state = CycleState::default();
        for Slot { plugin, points, .. } in &self.plugins {
            let mut cycle = Cycle {
                world,
                state: &mut state,
            };
            let mut status = Status::Success;
            if points.has(Point::Reserve) {
                status = plugin.reserve(&mut cycle, pod, node);
            }
            if status.is_success() && points.has(Point::Permit) {
                let view = View {
                    world,
                    state: &state,
                    suppositions: &[],
                };
                status = plugin.permit(&view, pod, node);
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
        self.at(Point::Reserve)
            .rev()
            .for_each(|p| p.unreserve(pod, node));
    }

    /// PreBind and Bind, by an extender if one does.
    ///
    /// # Errors
    /// Whatever a plugin reports.
    pub async fn bind(
        &self,
        pod: &PodInfo,
        node: &str,
        extenders: &[Extender],
    ) -> Result<(), client::Error> {
        for plugin in self.at(Point::PreBind) {
            plugin.pre_bind(pod, node).await?;
        }
        for extender in extenders {
            if let Some(bound) = extender.bind(pod, node).await {
                return bound.map_err(|e| client::Error::Other(e.to_string()));
            }
        }
        for plugin in self.at(Point::Bind) {
            if let Some(binding) = plugin.bind(pod, node) {
                return binding.await;
            }
        }
        Err(client::Error::Other("no plugin binds".into()))
    }
}

/// The profiles, by scheduler name.
pub struct Profiles(Vec<Profile>);

impl Profiles {
    /// These.
    pub fn new(profiles: Vec<Profile>) -> Self {
        Self(profiles)
    }

    /// The one of a scheduler name.
    pub fn named(&self, name: &str) -> Option<&Profile> {
        self.0.iter().find(|p| p.name == name)
    }

    /// The one a pod asks for.
    pub fn of(&self, pod: &PodInfo) -> Option<&Profile> {
        self.named(&pod.scheduler)
    }

    /// Whether something of this kind may make a pod schedulable that a plugin of this name said
    /// no to, in any profile.
    pub fn any_cares(&self, plugin: &str, what: Happening) -> bool {
        self.0.iter().any(|p| p.cares(plugin, what))
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
