//! What plans are made of: progress of a pod's worker, reasons, actions.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::admission::Refusal;
use crate::backoff::Backoff;

/// Reason of a container that waits because it crashed.
pub const CRASH_LOOP: &str = "CrashLoopBackOff";

/// Why a pod ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It was deleted (deletionTimestamp set) or is gone from the API.
    Deleted,
    /// activeDeadlineSeconds passed.
    DeadlineExceeded,
    /// All its containers are done for good, or the API says that it is.
    Completed,
    /// The node did not take it in.
    Refused,
}

/// A pod that ends: why, and how many seconds its containers get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Termination {
    /// Why.
    pub cause: Cause,
    /// Grace in seconds, at least 1.
    pub grace: i64,
}

/// Progress of something that is done once for the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Step {
    /// Not begun.
    #[default]
    Idle,
    /// Under way.
    Busy,
    /// Done.
    Done,
    /// Failed; try again then.
    Failed(Timestamp),
}

impl Step {
    pub(super) fn due(self, now: Timestamp) -> Due {
        match self {
            Step::Idle => Due::Now,
            Step::Failed(at) if at <= now => Due::Now,
            Step::Failed(at) => Due::At(at),
            Step::Busy | Step::Done => Due::Never,
        }
    }
}

pub(super) enum Due {
    Now,
    At(Timestamp),
    Never,
}

/// Why a container waits, as shown in its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// CamelCase reason (`ImagePullBackOff`, …).
    pub reason: String,
    /// Text for people.
    pub message: String,
}

/// What the worker knows about one container beyond the runtime.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerProgress {
    /// A task is starting it (image, create, start, postStart).
    pub busy: bool,
    /// Not to be tried before.
    pub retry_at: Option<Timestamp>,
    /// Why the last try failed or is put off.
    pub waiting: Option<Waiting>,
    /// Delay between restarts.
    pub backoff: Option<Backoff>,
    /// The dead container for which the back-off was announced.
    pub announced: Option<String>,
}

/// Verdict of a probe on one running container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// No result yet.
    #[default]
    Unknown,
    /// Success threshold reached.
    Success,
    /// Failure threshold reached.
    Failure,
}

/// Verdicts of the three probes of one running container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// Startup probe.
    pub startup: Verdict,
    /// Liveness probe.
    pub liveness: Verdict,
    /// Readiness probe.
    pub readiness: Verdict,
    /// Last output of a failing startup or liveness probe decides the grace period.
    pub grace: Option<i64>,
}

/// Everything the worker has under way or remembers about a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Why the node did not take the pod in.
    pub refusal: Option<Refusal>,
    /// Volumes.
    pub volumes: Step,
    /// Creation of a sandbox.
    pub sandbox: Step,
    /// By container name.
    pub containers: BTreeMap<String, ContainerProgress>,
    /// Container id to the grace in force of the stop under way.
    pub stops: BTreeMap<String, i64>,
    /// Sandboxes being stopped or removed, containers being removed.
    pub removals: BTreeSet<String>,
    /// By container id.
    pub verdicts: BTreeMap<String, Verdicts>,
    /// The last steps of an ending pod (volumes torn down).
    pub finish: Step,
    /// Removal of what remains of a deleted pod.
    pub purge: Step,
}

impl Progress {
    pub(super) fn starting(&self) -> bool {
        self.sandbox == Step::Busy
            || self.volumes == Step::Busy
            || self.containers.values().any(|c| c.busy)
    }
}

/// Why a running container is stopped; its text goes into the event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The pod ends.
    PodEnds,
    /// The container's name or image changed.
    SpecChanged,
    /// Liveness probe failed.
    Liveness,
    /// Startup probe failed.
    Startup,
    /// The sandbox it lived in is gone.
    SandboxGone,
}

/// One thing for the worker to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Prepare all volumes.
    SetUpVolumes,
    /// Make a sandbox.
    CreateSandbox {
        /// How many the pod had before.
        attempt: u32,
    },
    /// Start a container.
    StartContainer {
        /// Name in the spec.
        name: String,
        /// Restarts before this one.
        attempt: u32,
        /// Sandbox to start it in.
        sandbox: String,
    },
    /// Say that a container waits for its back-off.
    AwaitRestart {
        /// Name in the spec.
        name: String,
        /// The dead container.
        id: String,
        /// What its status shows.
        waiting: Waiting,
    },
    /// Stop a running container.
    StopContainer {
        /// Runtime id.
        id: String,
        /// Name in the spec.
        name: String,
        /// Grace in seconds.
        grace: i64,
        /// Why.
        reason: StopReason,
    },
    /// Remove a dead container and its log.
    RemoveContainer {
        /// Runtime id.
        id: String,
    },
    /// Stop a sandbox.
    StopSandbox {
        /// Runtime id.
        id: String,
    },
    /// Remove a stopped sandbox.
    RemoveSandbox {
        /// Runtime id.
        id: String,
    },
    /// Everything has stopped: tear volumes down.
    Finish,
    /// The pod was deleted: remove containers, sandboxes and folders.
    Purge,
}

/// What to do, and when to look again at the latest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In order.
    pub actions: Vec<Action>,
    /// When to plan again if nothing happens before.
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    pub(super) fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |old| old.min(at)));
    }

    pub(super) fn push(&mut self, action: Action) {
        self.actions.push(action);
    }
}
