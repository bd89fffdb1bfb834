//! What a plugin is, and what it is told.
//!
//! A pod passes these points, under upstream's names:
//!
//! ```text
//! PreEnqueue ─> queue (QueueSort) ─> PreFilter ─> Filter ─┬─> PreScore ─> Score ─> Reserve ─> Permit
//!                   ^                                     │                                     │
//!                   └──────────── PostFilter <── no node ─┘              Bind <── PreBind <─────┘
//! ```
//!
//! All but PreBind and Bind are quick and pure with respect to the snapshot; those two run in a
//! task of their own while the next pod is being scheduled.

use std::{
    any::Any,
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use client::Key;
use futures::future::BoxFuture;

use crate::{
    node::{NodeId, NodeInfo, NodeSpec},
    pod::{Footprint, PodInfo},
    world::World,
};

/// The highest score of a node.
pub const MAX_SCORE: i64 = 100;

/// What a plugin answers about a pod, or a pod on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Nothing is in the way.
    Success,
    /// Not here now; evicting pods might help.
    Unschedulable(Vec<String>),
    /// Not here, whatever is evicted.
    Unresolvable(Vec<String>),
    /// Something failed.
    Error(String),
}

impl Status {
    /// Not here now, for one reason.
    pub fn unschedulable(reason: impl Into<String>) -> Self {
        Self::Unschedulable(vec![reason.into()])
    }

    /// Not here, whatever is evicted, for one reason.
    pub fn unresolvable(reason: impl Into<String>) -> Self {
        Self::Unresolvable(vec![reason.into()])
    }

    /// Whether nothing is in the way.
    pub fn is_success(&self) -> bool {
        *self == Self::Success
    }

    /// The reasons.
    pub fn reasons(&self) -> &[String] {
        match self {
            Self::Success => &[],
            Self::Unschedulable(reasons) | Self::Unresolvable(reasons) => reasons,
            Self::Error(message) => std::slice::from_ref(message),
        }
    }
}

/// Which plugin said no, and what it said.
pub type Refusal = (&'static str, Status);

/// What PreFilter answers.
pub enum PreFilter {
    /// Filter is to be asked about each node.
    Continue,
    /// Filter need not be asked.
    Skip,
    /// Only these nodes can do; Filter is to be asked about them.
    Only(BTreeSet<String>),
    /// No node can do.
    Reject(Status),
}

/// A node on which evicting pods makes room.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The node.
    pub node: String,
    /// Who has to go.
    pub victims: Vec<Arc<Footprint>>,
    /// How many of them no disruption budget allows for.
    pub violations: usize,
}

/// What PostFilter answers.
#[derive(Clone, Debug, PartialEq)]
pub enum PostFilter {
    /// There are nodes on which room can be made; the best first.
    Candidates(Vec<Candidate>),
    /// It could not help, and says why.
    Failed(String),
}

/// Kinds of things that happen in the cluster and may make a pod schedulable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Happening {
    /// A node came.
    NodeAdd,
    /// Allocatable resources of a node changed.
    NodeAllocatable,
    /// Labels of a node changed.
    NodeLabels,
    /// Taints of a node, or its being cordoned, changed.
    NodeTaints,
    /// A pod got a node.
    PodAdd,
    /// A pod on a node changed.
    PodUpdate,
    /// A pod left its node.
    PodDelete,
    /// A claim, volume, storage class, or a node's storage driver came or changed.
    Volumes,
    /// Devices, or a class of them, came or changed.
    Devices,
    /// A claim of devices came or changed.
    DeviceClaims,
}

/// What a change of a claim of devices means.
#[derive(Clone, Debug)]
pub struct ClaimChange {
    /// The claim.
    pub key: Key,
    /// Its uid; empty: it is no more.
    pub uid: String,
    /// Whether its devices were let go.
    pub freed: bool,
    /// Whether it is new, or its status says something new.
    pub said_something: bool,
}

/// Something that happened, for those who want to look closer.
#[derive(Clone, Copy)]
pub enum Event<'a> {
    /// To a node.
    Node {
        /// As it was; `None`: it is new.
        old: Option<&'a NodeSpec>,
        /// As it is.
        new: &'a NodeSpec,
    },
    /// To a pod on a node.
    Pod {
        /// As it was; `None`: it came.
        old: Option<&'a Footprint>,
        /// As it is; `None`: it left.
        new: Option<&'a Footprint>,
    },
    /// To storage.
    Volumes,
    /// To devices or their classes.
    Devices,
    /// To a claim of devices.
    DeviceClaim(&'a ClaimChange),
}

impl Event<'_> {
    /// The kinds of happening that this is, if it is any.
    pub fn kinds(&self) -> Vec<Happening> {
        match self {
            Self::Node { old: None, .. } => vec![Happening::NodeAdd],
            Self::Node {
                old: Some(old),
                new,
            } => [
                (
                    old.allocatable != new.allocatable,
                    Happening::NodeAllocatable,
                ),
                (old.labels != new.labels, Happening::NodeLabels),
                (
                    old.taints != new.taints || old.unschedulable != new.unschedulable,
                    Happening::NodeTaints,
                ),
            ]
            .into_iter()
            .filter_map(|(changed, what)| changed.then_some(what))
            .collect(),
            Self::Pod { old: None, .. } => vec![Happening::PodAdd],
            Self::Pod { new: None, .. } => vec![Happening::PodDelete],
            Self::Pod { .. } => vec![Happening::PodUpdate],
            Self::Volumes => vec![Happening::Volumes],
            Self::Devices => vec![Happening::Devices],
            Self::DeviceClaim(_) => vec![Happening::DeviceClaims],
        }
    }
}

/// What plugins remember about the pod being scheduled. They are few, and ask again for each node.
#[derive(Default)]
pub struct CycleState {
    data: Vec<(&'static str, Box<dyn Any + Send + Sync>)>,
}

impl CycleState {
    /// Remembers something under a plugin's name.
    pub fn write<T: Any + Send + Sync>(&mut self, plugin: &'static str, value: T) {
        self.data.retain(|(name, _)| *name != plugin);
        self.data.push((plugin, Box::new(value)));
    }

    /// What was remembered under a plugin's name.
    pub fn read<T: Any>(&self, plugin: &'static str) -> Option<&T> {
        let (_, value) = self.data.iter().find(|(name, _)| *name == plugin)?;
        value.downcast_ref()
    }

    /// What was remembered under a plugin's name, to be changed.
    pub fn read_mut<T: Any>(&mut self, plugin: &'static str) -> Option<&mut T> {
        let (_, value) = self.data.iter_mut().find(|(name, _)| *name == plugin)?;
        value.downcast_mut()
    }
}

/// A pod that is taken to have come to a node or to have left it.
#[derive(Clone, Debug)]
pub struct Supposition {
    /// The pod.
    pub pod: Arc<Footprint>,
    /// The node.
    pub node: NodeId,
    /// Whether it came.
    pub added: bool,
}

/// What change would admit a pod to a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Advice {
    /// What is missing, and what to do about it.
    pub text: String,
    /// How much it takes, to compare nodes that lack the same.
    pub effort: i64,
}

impl Advice {
    /// Advice that takes the same everywhere.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            effort: 0,
        }
    }
}

/// Why no node would do.
#[derive(Clone, Debug, Default)]
pub struct Diagnosis {
    /// How many nodes there are.
    pub nodes: usize,
    /// What was said of each node that was asked about.
    pub by_node: HashMap<NodeId, Arc<Refusal>>,
    /// What was said of all others (or all) by PreFilter.
    pub pre_filter: Option<Status>,
    /// Whether PreFilter rejected the pod, so that its message stands for all nodes.
    pub rejected: bool,
    /// The plugins that said no.
    pub plugins: BTreeSet<&'static str>,
    /// What PostFilter had to say.
    pub post_filter: String,
}

/// What a plugin may ask while it prepares for a pod.
pub struct Cycle<'a> {
    /// The cluster.
    pub world: &'a World,
    /// What the plugins remembered.
    pub state: &'a mut CycleState,
}

/// What a plugin may ask about one node.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The cluster.
    pub world: &'a World,
    /// What the plugins remembered.
    pub state: &'a CycleState,
    /// How the node at hand differs from the cluster: while preemption tries things out, and where
    /// room has been made for others.
    pub suppositions: &'a [Supposition],
}

/// Runs the Filter plugins for a pod on a changed node: how PostFilter tries things out.
pub type TryFilter<'a> = dyn Fn(&PodInfo, &NodeInfo, &[Supposition]) -> Status + 'a;

/// A scheduler plugin. Each point it does not care about keeps its default.
pub trait Plugin: Send + Sync {
    /// Its name, as in upstream's configuration.
    fn name(&self) -> &'static str;

    /// The weight of its scores, 0 if it gives none.
    fn weight(&self) -> i64 {
        0
    }

    /// Whether Filter and Score look at nothing but the node and what [`crate::classes`] takes for the
    /// class of the pod, so that one answer does for all pods of a class while the node stays as it is.
    fn is_local(&self) -> bool {
        false
    }

    /// What may make a pod schedulable that it said no to.
    fn happenings(&self) -> &'static [Happening] {
        &[]
    }

    /// Whether one of these events really may: a closer look.
    fn helps(&self, _pod: &PodInfo, _event: &Event<'_>) -> bool {
        true
    }

    /// Whether the pod may enter the queue at all.
    fn pre_enqueue(&self, _pod: &PodInfo) -> Status {
        Status::Success
    }

    /// The rank of a pod in the queue, least first; `None`: it does not sort. One plugin sorts.
    fn queue_sort(&self, _pod: &PodInfo) -> Option<i64> {
        None
    }

    /// Has the cluster counted for what this pod asks.
    fn prepare(&self, _world: &mut World, _state: &mut CycleState, _pod: &PodInfo) {}

    /// Prepares Filter.
    fn pre_filter(&self, _cycle: &mut Cycle<'_>, _pod: &PodInfo) -> PreFilter {
        PreFilter::Continue
    }

    /// Whether the node will do.
    fn filter(&self, _view: &View<'_>, _pod: &PodInfo, _node: &NodeInfo) -> Status {
        Status::Success
    }

    /// What change would admit the pod to a node that Filter said no to.
    fn advice(&self, _view: &View<'_>, _pod: &PodInfo, _node: &NodeInfo) -> Option<Advice> {
        None
    }

    /// Tries to help when no node will do; `None`: it never does.
    fn post_filter(
        &self,
        _view: &View<'_>,
        _pod: &PodInfo,
        _diagnosis: &Diagnosis,
        _try: &TryFilter<'_>,
    ) -> Option<PostFilter> {
        None
    }

    /// Prepares Score for these nodes; `false`: Score need not be asked.
    fn pre_score(&self, _cycle: &mut Cycle<'_>, _pod: &PodInfo, _nodes: &[&NodeInfo]) -> bool {
        self.weight() > 0
    }

    /// How well the node suits the pod: more is better.
    fn score(&self, _view: &View<'_>, _pod: &PodInfo, _node: &NodeInfo) -> i64 {
        0
    }

    /// Brings the scores of all nodes into 0 to [`MAX_SCORE`].
    fn normalize(&self, _view: &View<'_>, _nodes: &[&NodeInfo], _scores: &mut [i64]) {}

    /// Takes what the pod needs on its node, within the scheduler.
    fn reserve(&self, _cycle: &mut Cycle<'_>, _pod: &PodInfo, _node: &str) -> Status {
        Status::Success
    }

    /// Gives back what [`Plugin::reserve`] took.
    fn unreserve(&self, _pod: &PodInfo, _node: &str) {}

    /// Whether the pod may be bound.
    fn permit(&self, _view: &View<'_>, _pod: &PodInfo, _node: &str) -> Status {
        Status::Success
    }

    /// Does what has to be done in the cluster before the pod is bound.
    fn pre_bind<'a>(
        &'a self,
        _pod: &'a PodInfo,
        _node: &'a str,
    ) -> BoxFuture<'a, Result<(), client::Error>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Binds the pod; `None`: it does not bind. One plugin binds.
    fn bind<'a>(
        &'a self,
        _pod: &'a PodInfo,
        _node: &'a str,
    ) -> Option<BoxFuture<'a, Result<(), client::Error>>> {
        None
    }
}

/// Scales scores so that the lowest becomes 0 and the highest [`MAX_SCORE`].
pub fn normalize_between(scores: &mut [i64]) {
    let highest = scores.iter().copied().max().unwrap_or(0);
    let lowest = scores.iter().copied().min().unwrap_or(0);
    for score in scores.iter_mut() {
        *score = match highest - lowest {
            0 => 0,
            span => (MAX_SCORE as f64 * (*score - lowest) as f64 / span as f64) as i64,
        };
    }
}

/// Scales scores so that the highest becomes [`MAX_SCORE`]; `reverse`: the lowest wins.
pub fn normalize_to_highest(scores: &mut [i64], reverse: bool) {
    let highest = scores.iter().copied().max().unwrap_or(0);
    for score in scores.iter_mut() {
        let share = if highest == 0 {
            0
        } else {
            MAX_SCORE * *score / highest
        };
        *score = match (reverse, highest) {
            (true, 0) => MAX_SCORE,
            (true, _) => MAX_SCORE - share,
            (false, _) => share,
        };
    }
}
