//! Explains a pod that waits: for each node, what every plugin has against it and what change
//! would admit the pod. It asks the plugins themselves, over a snapshot of its own, so that it says
//! what the scheduler would.

use std::{collections::BTreeMap, fmt, sync::Arc};

use client::{Caches, Client, Jitter, write};
use k8s_openapi::api::core::v1::Pod;

use crate::{
    config::Configuration,
    framework::{Advice, Status},
    node::NodeInfo,
    plugins::Handle,
    pod::PodInfo,
    profile::{Profile, Profiles},
    watch::{self, Shared},
};

/// Nodes of a group that are named.
const NAMED: usize = 3;

/// Why a pod cannot be explained.
#[derive(Debug, thiserror::Error)]
pub enum WhyError {
    /// There is no such pod.
    #[error("pods \"{0}\" not found in namespace \"{1}\"")]
    NotFound(String, String),
    /// The API refused.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// The configuration makes no sense.
    #[error("{0}")]
    Configuration(String),
}

/// What a pod waits for.
#[derive(Debug, PartialEq)]
pub enum Why {
    /// Nothing: it has this node.
    Bound(String),
    /// It has ended, or is being deleted.
    Over(&'static str),
    /// These gates.
    Gated(Vec<String>),
    /// A scheduler of this name, which is not ours.
    OtherScheduler(String),
    /// A node.
    Nodes(Nodes),
}

/// What the nodes lack.
#[derive(Debug, Default, PartialEq)]
pub struct Nodes {
    /// How many there are.
    pub total: usize,
    /// Those that would do.
    pub fitting: Vec<String>,
    /// What stands against all nodes, with the plugin.
    pub everywhere: Option<(String, String)>,
    /// The others, by what stands against them.
    pub groups: Vec<Group>,
}

/// Nodes with the same obstacles.
#[derive(Debug, PartialEq)]
pub struct Group {
    /// Their names.
    pub nodes: Vec<String>,
    /// The obstacles.
    pub obstacles: Vec<Obstacle>,
}

/// What a plugin has against a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Obstacle {
    /// The plugin.
    pub plugin: &'static str,
    /// In the scheduler's words.
    pub reasons: Vec<String>,
    /// What change would admit the pod, where it takes least.
    pub advice: Option<Advice>,
}

impl Nodes {
    /// What each node lacks, as the plugins of `profile` see it.
    pub(crate) fn of(
        profile: &Profile,
        world: &mut crate::world::World,
        pod: &PodInfo,
    ) -> Result<Self, String> {
        let (rejected, verdicts) = profile.examine(world, pod)?;
        let mut found = Self {
            total: world.node_count(),
            everywhere: rejected.map(|(plugin, s)| (plugin.to_owned(), s.reasons().join(", "))),
            ..Self::default()
        };
        let mut groups: BTreeMap<Vec<(&'static str, Vec<String>)>, Group> = BTreeMap::new();
        for (node, obstacles) in verdicts {
            if obstacles.is_empty() {
                found.fitting.push(node);
                continue;
            }
            let alike = obstacles.iter().map(|o| (o.plugin, o.reasons.clone()));
            match groups.get_mut(&alike.clone().collect::<Vec<_>>()) {
                Some(group) => {
                    group.nodes.push(node);
                    for (known, new) in group.obstacles.iter_mut().zip(obstacles) {
                        let effort =
                            |o: &Obstacle| o.advice.as_ref().map_or(i64::MAX, |a| a.effort);
                        if effort(&new) < effort(known) {
                            *known = new;
                        }
                    }
                }
                None => {
                    let nodes = vec![node];
                    groups.insert(alike.collect(), Group { nodes, obstacles });
                }
            }
        }
        found.groups = groups.into_values().collect();
        found
            .groups
            .sort_by_key(|g| (g.obstacles.len(), std::cmp::Reverse(g.nodes.len())));
        Ok(found)
    }
}

/// What each plugin has against a node.
pub(crate) fn obstacle(
    plugin: &'static str,
    status: &Status,
    advice: Option<Advice>,
    node: &NodeInfo,
    alone: bool,
) -> Obstacle {
    let advice = advice.map(|mut advice| {
        if !alone && !advice.text.contains(node.name()) {
            advice.text = format!("on {}: {}", node.name(), advice.text);
        }
        advice
    });
    Obstacle {
        plugin,
        reasons: status.reasons().to_vec(),
        advice,
    }
}

/// Looks at the cluster behind `client` and explains the pod.
///
/// # Errors
/// When there is no such pod, or the API refuses.
pub async fn why(
    client: Client,
    configuration: &Configuration,
    namespace: &str,
    name: &str,
) -> Result<Why, WhyError> {
    let api = write::namespaced::<Pod>(&client, namespace);
    let Some(pod) = api.get_opt(name).await? else {
        return Err(WhyError::NotFound(name.into(), namespace.into()));
    };
    if let Some(answer) = before_scheduling(&pod) {
        return Ok(answer);
    }
    let Some(info) = PodInfo::of(&pod) else {
        return Err(WhyError::NotFound(name.into(), namespace.into()));
    };
    let caches = Caches::new(client.clone());
    let handle = Handle::new(client, caches.clone());
    let made = configuration
        .profiles
        .iter()
        .map(|p| Profile::configured(p, &handle, Jitter::none()));
    let profiles = made.collect::<Result<_, _>>();
    let profiles = Profiles::new(profiles.map_err(WhyError::Configuration)?);
    let shared = Arc::new(Shared::new(profiles, configuration.backoff));
    watch::start(&shared, &caches).await;
    let Some(profile) = shared.profiles.of(&info) else {
        return Ok(Why::OtherScheduler(info.scheduler));
    };
    let nodes = shared.with(|state| Nodes::of(profile, &mut state.world, &info));
    nodes.map(Why::Nodes).map_err(WhyError::Configuration)
}

/// What there is to say without looking at nodes.
fn before_scheduling(pod: &Pod) -> Option<Why> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.clone().filter(|n| !n.is_empty()) {
        return Some(Why::Bound(node));
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return Some(Why::Over("it is being deleted"));
    }
    let gates: Vec<String> = spec
        .scheduling_gates
        .iter()
        .flatten()
        .map(|g| g.name.clone())
        .collect();
    (!gates.is_empty()).then_some(Why::Gated(gates))
}

/// Some of the names, and how many more there are.
fn some(names: &[String]) -> String {
    let shown = names[..names.len().min(NAMED)].join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bound(node) => writeln!(f, "It waits for no node: it is bound to {node}."),
            Self::Over(why) => writeln!(f, "It gets no node: {why}."),
            Self::Gated(gates) => {
                writeln!(
                    f,
                    "It is gated: whoever added these scheduling gates has to remove them:"
                )?;
                gates.iter().try_for_each(|g| writeln!(f, "  {g}"))
            }
            Self::OtherScheduler(name) => writeln!(
                f,
                "It asks for the scheduler {name:?}, which is none of this cluster's profiles: start that scheduler, or recreate the pod without spec.schedulerName."
            ),
            Self::Nodes(nodes) => nodes.fmt(f),
        }
    }
}

impl fmt::Display for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.total == 0 {
            return writeln!(f, "There are no nodes.");
        }
        if let Some((plugin, reason)) = &self.everywhere {
            writeln!(f, "No node will do, whatever it is like:")?;
            return writeln!(f, "  {plugin}: {reason}");
        }
        match self.fitting.len() {
            0 => writeln!(f, "None of {} nodes will do.", self.total)?,
            n => writeln!(
                f,
                "{n} of {} nodes would do now: {}. The scheduler has yet to try again.",
                self.total,
                some(&self.fitting)
            )?,
        }
        for group in &self.groups {
            writeln!(f)?;
            writeln!(f, "{}", some(&group.nodes))?;
            for obstacle in &group.obstacles {
                writeln!(f, "  {}: {}", obstacle.plugin, obstacle.reasons.join(", "))?;
                if let Some(advice) = &obstacle.advice {
                    writeln!(f, "    {}", advice.text)?;
                }
            }
        }
        Ok(())
    }
}
