//! Gives workloads as many replicas as their metrics ask for.
//!
//! Metrics are asked for every fifteen seconds: nothing tells of their changes.

mod behavior;
mod judge;
mod metrics;
mod replicas;
pub(crate) mod scale;
mod zero;

use std::{
    cmp::Ordering,
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use api::selector::LabelSelector;
use client::{Cache, Change, Error, Key, Queue, Reconcile, Recorder, Requeue, Scope, write};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        autoscaling::v2::{
            HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition,
            HorizontalPodAutoscalerStatus, MetricStatus,
        },
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::json;

use crate::{Context, Controller};
use behavior::Memory;
use judge::{Subject, Unknown};
use metrics::Metrics;
use scale::{Named, Scale};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "horizontal-pod-autoscaler",
    run,
};

/// Time between looks at the metrics.
const PERIOD: Duration = Duration::from_secs(15);

const ABLE: &str = "AbleToScale";
const ACTIVE: &str = "ScalingActive";
const LIMITED: &str = "ScalingLimited";
const BELOW_LEAST: &str = "Current number of replicas below Spec.MinReplicas";
/// The event that no metric was of use.
const NOTHING_COMPUTED: &str = "FailedComputeMetricsReplicas";

struct Autoscalers {
    context: Context,
    recorder: Recorder,
    metrics: Metrics,
    autoscalers: Cache<HorizontalPodAutoscaler>,
    pods: Cache<Pod>,
    memories: Mutex<HashMap<Key, Memory>>,
    /// Which pods each autoscaler scales.
    selectors: Mutex<HashMap<Key, LabelSelector>>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let autoscalers = context.caches.get::<HorizontalPodAutoscaler>(Scope::all());
        let pods = context.caches.get::<Pod>(Scope::all());
        autoscalers.synced().await;
        pods.synced().await;
        let queue = Queue::default();
        let to = queue.clone();
        autoscalers.on_change(move |change| {
            if says_more_than_status(change) {
                to.add(change.key.clone());
            }
        });
        let reconciler = Autoscalers {
            context: context.clone(),
            recorder: context.recorder(),
            metrics: Metrics {
                client: context.client.clone(),
            },
            autoscalers,
            pods,
            memories: Mutex::default(),
            selectors: Mutex::default(),
        };
        context.work(reconciler, queue).await;
    })
}

/// Our own writes are no reason to look again.
fn says_more_than_status(change: &Change) -> bool {
    let spec = |entry: &Option<std::sync::Arc<client::Entry>>| {
        let decoded = entry.as_ref()?.decode::<HorizontalPodAutoscaler>().ok()?;
        Some((decoded.metadata.uid, decoded.spec))
    };
    spec(&change.old) != spec(&change.new)
}

impl Reconcile for Autoscalers {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(autoscaler) = self.autoscalers.get(key)? else {
            self.lock(&self.memories).remove(key);
            self.lock(&self.selectors).remove(key);
            return Ok(Requeue::OnChange);
        };
        let mut turn = Turn {
            now: self.context.now(),
            generation: autoscaler.metadata.generation,
            status: autoscaler.status.clone().unwrap_or_default(),
        };
        turn.status.observed_generation = turn.generation;
        self.scale(&autoscaler, key, &mut turn).await;
        self.write_status(&autoscaler, key, &turn.status).await?;
        Ok(Requeue::After(PERIOD))
    }
}

/// One look, and the status that comes of it.
struct Turn {
    now: Timestamp,
    /// Of the autoscaler that is looked at.
    generation: Option<i64>,
    status: HorizontalPodAutoscalerStatus,
}

impl Turn {
    fn set(&mut self, kind: &str, holds: bool, reason: &str, message: impl Into<String>) {
        let status = if holds { "True" } else { "False" };
        let all = self.status.conditions.get_or_insert_default();
        let since = all
            .iter()
            .find(|c| c.type_ == kind && c.status == status)
            .and_then(|c| c.last_transition_time.clone());
        let new = HorizontalPodAutoscalerCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_transition_time: since.or(Some(Time(self.now))),
            observed_generation: self.generation,
        };
        match all.iter_mut().find(|c| c.type_ == kind) {
            Some(old) => *old = new,
            None => all.push(new),
        }
    }
}

/// A number of replicas and why.
struct Wish {
    replicas: i32,
    reason: String,
}

impl Autoscalers {
    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> std::sync::MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn scale(&self, autoscaler: &HorizontalPodAutoscaler, key: &Key, turn: &mut Turn) {
        let target = &autoscaler.spec.scale_target_ref;
        let client = &self.context.client;
        let version = target.api_version.as_deref().unwrap_or("v1");
        let found = match scale::resource_of(client, version, &target.kind).await {
            Ok(resource) => scale::get(client, &resource, &key.namespace, &target.name)
                .await
                .map(|scale| (resource, scale)),
            Err(why) => Err(why),
        };
        let (resource, scale) = match found {
            Ok(found) => found,
            Err(why) => {
                self.recorder
                    .warning(autoscaler, "FailedGetScale", why.as_str());
                let message = format!(
                    "the HPA controller was unable to get the target's current scale: {why}"
                );
                turn.set(ABLE, false, "FailedGetScale", message);
                return;
            }
        };
        let message = "the HPA controller was able to get the target's current scale";
        turn.set(ABLE, true, "SucceededGetScale", message);
        turn.status.current_replicas = Some(scale.wanted);
        turn.status.current_metrics = None;
        self.lock(&self.memories)
            .entry(key.clone())
            .or_default()
            .start(scale.wanted, turn.now);
        let Some(wish) = self.wish(autoscaler, key, &scale, turn).await else {
            return;
        };
        if wish.replicas == scale.wanted {
            turn.status.desired_replicas = scale.wanted;
            return;
        }
        self.rescale(autoscaler, key, &resource, &scale, &wish, turn)
            .await;
    }

    async fn rescale(
        &self,
        autoscaler: &HorizontalPodAutoscaler,
        key: &Key,
        resource: &Named,
        scale: &Scale,
        wish: &Wish,
        turn: &mut Turn,
    ) {
        let name = &autoscaler.spec.scale_target_ref.name;
        let Wish { replicas, reason } = wish;
        let client = &self.context.client;
        if let Err(e) = scale::set(client, resource, &key.namespace, name, *replicas).await {
            let why = e.words();
            let message = format!("New size: {replicas}; reason: {reason}; error: {why}");
            self.recorder.warning(autoscaler, "FailedRescale", message);
            let message =
                format!("the HPA controller was unable to update the target scale: {why}");
            turn.set(ABLE, false, "FailedUpdateScale", message);
            return;
        }
        let message =
            format!("the HPA controller was able to update the target scale to {replicas}");
        turn.set(ABLE, true, "SucceededRescale", message);
        let (asleep, why, said) = zero::verdict(autoscaler, scale.wanted, *replicas);
        turn.set(zero::CONDITION, asleep, why, said);
        let message = format!("New size: {replicas}; reason: {reason}");
        self.recorder
            .normal(autoscaler, "SuccessfulRescale", message);
        let mut memories = self.lock(&self.memories);
        let memory = memories.entry(key.clone()).or_default();
        memory.change(scale.wanted, *replicas, turn.now);
        turn.status.desired_replicas = *replicas;
        turn.status.last_scale_time = Some(Time(turn.now));
    }

    /// How many replicas there shall be; `None`: that cannot be told.
    async fn wish(
        &self,
        autoscaler: &HorizontalPodAutoscaler,
        key: &Key,
        scale: &Scale,
        turn: &mut Turn,
    ) -> Option<Wish> {
        let (least, most) = (
            autoscaler.spec.min_replicas.unwrap_or(1),
            autoscaler.spec.max_replicas,
        );
        let wish = |replicas: i32, reason: &str| {
            Some(Wish {
                replicas,
                reason: reason.into(),
            })
        };
        if scale.wanted == 0 {
            if !zero::may_wake(autoscaler, &turn.status) {
                let message = "scaling is disabled since the replica count of the target is zero";
                turn.set(ACTIVE, false, "ScalingDisabled", message);
                return wish(0, "");
            }
        } else if scale.wanted > most {
            return wish(most, "Current number of replicas above Spec.MaxReplicas");
        } else if scale.wanted < least {
            return wish(least, BELOW_LEAST);
        }
        let (desired, metric) = self.ask(autoscaler, key, scale, turn).await?;
        let reason = match desired.cmp(&scale.wanted) {
            Ordering::Greater => format!("{metric} above target"),
            // It sleeps, and the least that it may have is not zero any more.
            Ordering::Equal if desired == 0 => BELOW_LEAST.into(),
            _ => "All metrics below target".into(),
        };
        let mut memories = self.lock(&self.memories);
        let settled = behavior::settle(
            autoscaler.spec.behavior.as_ref(),
            memories.entry(key.clone()).or_default(),
            scale.wanted,
            desired,
            (least, most),
            turn.now,
        );
        turn.set(ABLE, true, settled.able.0, settled.able.1);
        let (limited, why, message) = settled.limited;
        turn.set(LIMITED, limited, why, message);
        // Only one that sleeps can be below the least here.
        Some(Wish {
            replicas: settled.replicas.max(least),
            reason,
        })
    }

    /// The most that any metric asks for, and which.
    async fn ask(
        &self,
        autoscaler: &HorizontalPodAutoscaler,
        key: &Key,
        scale: &Scale,
        turn: &mut Turn,
    ) -> Option<(i32, String)> {
        let pods = match self.select(autoscaler, key, scale, turn) {
            Ok(pods) => pods,
            Err(why) => {
                self.recorder.warning(autoscaler, NOTHING_COMPUTED, why);
                return None;
            }
        };
        let subject = Subject {
            autoscaler,
            scale,
            pods: &pods,
            now: turn.now,
        };
        let specs = autoscaler.spec.metrics.as_deref().unwrap_or_default();
        let mut best: Option<(i32, String)> = None;
        let mut failures: Vec<Unknown> = Vec::new();
        let mut statuses: Vec<MetricStatus> = Vec::new();
        for spec in specs {
            match subject.judge(&self.metrics, spec).await {
                Ok(judged) => {
                    statuses.push(judged.status);
                    if best
                        .as_ref()
                        .is_none_or(|(most, _)| judged.replicas > *most)
                    {
                        best = Some((judged.replicas, judged.name));
                    }
                }
                Err(unknown) => {
                    let why = unknown
                        .message
                        .trim_start_matches("the HPA was unable to compute the replica count: ");
                    self.recorder.warning(autoscaler, unknown.reason, why);
                    failures.push(unknown);
                    // People find the status of a metric by its place.
                    statuses.push(MetricStatus::default());
                }
            }
        }
        turn.status.current_metrics = (!statuses.is_empty()).then_some(statuses);
        // What is unknown might have asked for more: it forbids only to shrink.
        let best = best.filter(|(most, _)| failures.is_empty() || *most >= scale.wanted);
        if let (None, Some(first)) = (&best, failures.first()) {
            turn.set(ACTIVE, false, first.reason, first.message.as_str());
            let (failed, all) = (failures.len(), specs.len());
            let message = format!(
                "invalid metrics ({failed} invalid out of {all}), first error is: {}",
                first.summary
            );
            self.recorder.warning(autoscaler, NOTHING_COMPUTED, message);
        }
        let (most, name) = best?;
        let message =
            format!("the HPA was able to successfully calculate a replica count from {name}");
        turn.set(ACTIVE, true, "ValidMetricFound", message);
        Some((most, name))
    }

    /// The pods that are scaled; in words if that cannot be told.
    fn select(
        &self,
        autoscaler: &HorizontalPodAutoscaler,
        key: &Key,
        scale: &Scale,
        turn: &mut Turn,
    ) -> Result<Vec<Pod>, String> {
        if scale.selector.is_empty() {
            let message = "selector is required";
            self.recorder
                .warning(autoscaler, "SelectorRequired", message);
            let message = "the HPA target's scale is missing a selector";
            turn.set(ACTIVE, false, "InvalidSelector", message);
            return Err("selector is required".into());
        }
        let selector = match LabelSelector::parse(&scale.selector) {
            Ok(selector) => selector,
            Err(why) => {
                let message = format!(
                    "couldn't convert selector into a corresponding internal selector object: {why}"
                );
                self.recorder
                    .warning(autoscaler, "InvalidSelector", message.as_str());
                turn.set(ACTIVE, false, "InvalidSelector", message.as_str());
                return Err(message);
            }
        };
        let mut entries = self.pods.entries_in(&key.namespace);
        entries.retain(|e| selector.matches_with(|label| e.label(label)));
        let mut selectors = self.lock(&self.selectors);
        selectors.insert(key.clone(), selector);
        let mut rivals: Vec<String> = selectors
            .iter()
            .filter(|(k, _)| k.namespace == key.namespace)
            .filter(|(_, s)| entries.iter().any(|e| s.matches_with(|l| e.label(l))))
            .map(|(k, _)| k.to_string())
            .collect();
        drop(selectors);
        if rivals.len() > 1 {
            rivals.sort();
            let message = format!(
                "pods by selector {} are controlled by multiple HPAs: [{}]",
                scale.selector,
                rivals.join(" ")
            );
            self.recorder
                .warning(autoscaler, "AmbiguousSelector", message.as_str());
            turn.set(ACTIVE, false, "AmbiguousSelector", message.as_str());
            return Err(message);
        }
        Ok(client::cache::decode_all(&entries))
    }

    async fn write_status(
        &self,
        autoscaler: &HorizontalPodAutoscaler,
        key: &Key,
        status: &HorizontalPodAutoscalerStatus,
    ) -> Result<(), Error> {
        let Some(patch) = write::merge_patch(autoscaler.status.as_ref(), status) else {
            return Ok(());
        };
        let body = json!({"metadata": {"uid": autoscaler.metadata.uid}, "status": patch});
        let api =
            write::namespaced::<HorizontalPodAutoscaler>(&self.context.client, &key.namespace);
        let written = write::patch_status(&api, &key.name, &body).await?;
        self.autoscalers
            .caught_up(written.as_ref().map_or(0, write::revision_of))
            .await
    }
}
