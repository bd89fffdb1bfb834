//! Runs the plugins of one scheduler name over a pod: which node it goes to, or why to none.

use std::collections::{BTreeSet, HashMap};

use client::Jitter;

use crate::{
    config::{Chosen, ProfileConfig},
    extender::Extender,
    framework::{
        Candidate, Cycle, CycleState, Event, Happening, Plugin, PostFilter, Status, Supposition,
        View,
    },
    node::NodeInfo,
    plugins::{self, Handle},
    pod::PodInfo,
    points::{Point, Points},
    search::{Local, Search},
    why,
    world::World,
};

/// The plugins of a scheduler name.
pub struct Profile {
    /// The scheduler name.
    pub name: String,
    pub(crate) plugins: Vec<Slot>,
    jitter: Jitter,
    /// The share of the nodes that has to suit before a search ends, in percent; `None`: by size.
    pub(crate) percentage: Option<usize>,
    pub(crate) local: Local,
}

/// A plugin as configured.
pub(crate) struct Slot {
    pub(crate) plugin: Box<dyn Plugin>,
    pub(crate) points: Points,
    pub(crate) weight: i64,
}

/// What one plugin has against all nodes, and what each has against each node.
pub type Examination = (
    Option<(&'static str, Status)>,
    Vec<(String, Vec<why::Obstacle>)>,
);

/// Scores from elsewhere, by node.
pub type Scores = HashMap<String, i64>;

impl Profile {
    /// These plugins for a scheduler name; `jitter` chooses between equal nodes.
    pub fn new(name: &str, plugins: Vec<Box<dyn Plugin>>, jitter: Jitter) -> Self {
        let plugins: Vec<Slot> = plugins
            .into_iter()
            .map(|plugin| Slot {
                points: Points::ALL,
                weight: plugin.weight(),
                plugin,
            })
            .collect();
        Self {
            name: name.to_owned(),
            local: Local::of(&plugins),
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
        let plugins: Vec<Slot> = config
            .plugins
            .iter()
            .map(slot)
            .collect::<Result<_, String>>()?;
        Ok(Self {
            name: config.name.clone(),
            local: Local::of(&plugins),
            plugins,
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

    /// What every plugin has against each node, for those who explain; or what one has against all
    /// of them.
    ///
    /// # Errors
    /// When a plugin fails.
    pub fn examine(&self, world: &mut World, pod: &PodInfo) -> Result<Examination, String> {
        world.arrange();
        let mut search = Search::default();
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
            let refusal = self.filter_as_is(&view, filters.iter(), pod, node);
            refusal.map_or(Status::Success, |(_, status)| status)
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

    /// The best of the nodes that will do, all of which exist; `None`: there is none.
    /// `extra` are scores to be added.
    pub fn choose(
        &self,
        world: &World,
        pod: &PodInfo,
        search: &mut Search,
        extra: &Scores,
    ) -> Option<String> {
        let feasible = search.feasible.iter();
        let nodes: Vec<&NodeInfo> = feasible.map(|id| world.node(*id)).collect();
        if nodes.len() < 2 {
            return nodes.first().map(|n| n.name().to_owned());
        }
        let known = search.scores.take();
        let mut totals = self.totals(world, pod, &mut search.state, &nodes, known.as_deref());
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
        known: Option<&[i64]>,
    ) -> Vec<i64> {
        let mut totals = vec![0_i64; nodes.len()];
        let mut scores = vec![0_i64; nodes.len()];
        let scorers = &self.local.scorers;
        let scoring = self.plugins.iter().enumerate();
        let scoring = scoring.filter(|(_, s)| s.points.has(Point::Score));
        for (at, Slot { plugin, weight, .. }) in scoring {
            if *weight == 0 || !plugin.pre_score(&mut Cycle { world, state }, pod, nodes) {
                continue;
            }
            let view = View {
                world,
                state,
                suppositions: &[],
            };
            let local = scorers.iter().position(|s| *s == at).zip(known);
            match local {
                Some((column, known)) => {
                    let column = known.iter().skip(column).step_by(scorers.len());
                    scores.iter_mut().zip(column).for_each(|(s, k)| *s = *k);
                }
                None => {
                    for (score, node) in scores.iter_mut().zip(nodes) {
                        *score = plugin.score(&view, pod, node);
                    }
                }
            }
            plugin.normalize(&view, nodes, &mut scores);
            for (total, score) in totals.iter_mut().zip(&scores) {
                *total += score * weight;
            }
        }
        totals
    }

    /// Reserve and Permit; on refusal everything is given back.
    pub fn reserve(
        &self,
        world: &World,
        pod: &PodInfo,
        node: &str,
        state: &mut CycleState,
    ) -> Status {
        for Slot { plugin, points, .. } in &self.plugins {
            let mut cycle = Cycle {
                world,
                state: &mut *state,
            };
            let mut status = Status::Success;
            if points.has(Point::Reserve) {
                status = plugin.reserve(&mut cycle, pod, node);
            }
            if status.is_success() && points.has(Point::Permit) {
                let view = View {
                    world,
                    state: &*state,
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
            let done = plugin.pre_bind(pod, node).await;
            done.map_err(|e| failed("PreBind", plugin.name(), &e))?;
        }
        for extender in extenders {
            if let Some(bound) = extender.bind(pod, node).await {
                return bound.map_err(|e| client::Error::Other(e.to_string()));
            }
        }
        for plugin in self.at(Point::Bind) {
            if let Some(binding) = plugin.bind(pod, node) {
                return binding.await.map_err(|e| failed("Bind", plugin.name(), &e));
            }
        }
        Err(client::Error::Other("no plugin binds".into()))
    }
}

/// What went wrong in which plugin, in the words of whom it asked.
fn failed(point: &str, plugin: &str, error: &client::Error) -> client::Error {
    let why = match error {
        client::Error::Api(kube::Error::Api(status)) => status.message.clone(),
        other => other.to_string(),
    };
    client::Error::Other(format!("running {point} plugin {plugin:?}: {why}"))
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
