//! Makes pods go whose devices got a taint that they do not tolerate, and says of the rules that
//! taint devices what they do.
//!
//! ```text
//! taint (of a driver or a rule) ──> claims with the device ──> pods that the claims are kept for
//!                                                                │ at once, or when tolerated no more
//!                                                                └──> deleted
//! ```

mod plan;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use client::{Cache, Entry, Error, Key, Queue, Reconcile, Recorder, Requeue, Scope, write};
use futures::future::BoxFuture;
use jiff::SignedDuration;
use k8s_openapi::{
    api::{
        core::v1::Pod,
        resource::v1::{DeviceTaintRule, ResourceClaim, ResourceSlice},
    },
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use serde_json::json;

use crate::{Context, Controller, pod_control, pods, resourceclaims};
use plan::{Due, Taints};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "device-taint-eviction-controller",
    run,
};

const CONDITION: &str = "EvictionInProgress";
/// What a rule does is said at most this often.
const STATUS_PERIOD: SignedDuration = SignedDuration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Target {
    Pod(Key),
    Rule(Key),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => write!(f, "pod {key}"),
            Self::Rule(key) => write!(f, "rule {key}"),
        }
    }
}

/// What is remembered; forgetting it costs a word.
#[derive(Default)]
struct Memory {
    /// Pods that are to go later.
    due: BTreeSet<Key>,
    /// How many pods went because of a rule, by its uid.
    evicted: HashMap<String, usize>,
}

#[derive(Clone)]
struct Evicter {
    context: Context,
    recorder: Recorder,
    pods: Cache<Pod>,
    claims: Cache<ResourceClaim>,
    slices: Cache<ResourceSlice>,
    rules: Cache<DeviceTaintRule>,
    memory: Arc<Mutex<Memory>>,
    queue: Queue<Target>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let caches = &context.caches;
        let evicter = Evicter {
            recorder: context.recorder(),
            pods: caches.get(Scope::all()),
            claims: caches.get(Scope::all()),
            slices: caches.get(Scope::all()),
            rules: caches.get(Scope::all()),
            memory: Arc::default(),
            queue: Queue::default(),
            context: context.clone(),
        };
        evicter.pods.synced().await;
        evicter.claims.synced().await;
        evicter.slices.synced().await;
        evicter.rules.synced().await;
        evicter.watch();
        let queue = evicter.queue.clone();
        context.work(evicter, queue).await;
    })
}

/// Few devices ever drive pods away: decoding each slice would cost more than looking for the word.
fn drives(slice: &Entry) -> bool {
    slice.mentions("\"NoExecute\"")
}

impl Evicter {
    /// What may matter to whom.
    fn watch(&self) {
        let this = self.clone();
        self.pods.on_change(move |change| {
            if change
                .latest()
                .is_some_and(|e| resourceclaims::mentions_claims(e))
            {
                this.queue.add(Target::Pod(change.key.clone()));
                this.look_at_rules();
            }
        });
        let this = self.clone();
        self.claims.on_change(move |change| {
            for entry in [&change.old, &change.new].into_iter().flatten() {
                this.look_at_users(entry);
            }
            this.look_at_rules();
        });
        let this = self.clone();
        self.slices.on_change(move |change| {
            let mut states = [&change.old, &change.new].into_iter().flatten();
            if states.any(|e| drives(e)) {
                this.look_at_all();
            }
        });
        let this = self.clone();
        self.rules.on_change(move |change| {
            let now = change.new.as_ref().map(|e| &*e.uid);
            if let Some(gone) = change.old.as_ref().filter(|e| Some(&*e.uid) != now) {
                this.memory().evicted.remove(&*gone.uid);
            }
            this.queue.add(Target::Rule(change.key.clone()));
            this.look_at_all();
        });
    }

    /// At the pods that a claim is kept for.
    fn look_at_users(&self, claim: &Entry) {
        let claim: Option<ResourceClaim> = claim.decode().ok();
        let Some((namespace, status)) =
            claim.and_then(|c| Some((c.metadata.namespace?, c.status?)))
        else {
            return;
        };
        for user in status.reserved_for.into_iter().flatten() {
            let key = Key::new(namespace.as_str(), user.name);
            self.queue.add(Target::Pod(key));
        }
    }

    fn look_at_all(&self) {
        for claim in self.claims.entries() {
            self.look_at_users(&claim);
        }
    }

    fn look_at_rules(&self) {
        for rule in self.rules.entries() {
            self.queue.add(Target::Rule(rule.key.clone()));
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reconcile for Evicter {
    type Key = Target;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, target: &Target) -> Result<Requeue, Error> {
        match target {
            Target::Pod(key) => self.pod(key).await,
            Target::Rule(key) => self.rule(key).await,
        }
    }
}

impl Evicter {
    async fn pod(&self, key: &Key) -> Result<Requeue, Error> {
        let pod = self.pods.get(key)?.filter(|p| {
            let leaves = p.metadata.deletion_timestamp.is_some() || pods::is_terminal(p);
            !leaves && !pods::node(p).is_empty()
        });
        let Some(pod) = pod else {
            self.memory().due.remove(key);
            return Ok(Requeue::OnChange);
        };
        let now = self.context.now();
        let due = self.due(key, &pod)?;
        let Some(at) = due.at else {
            if self.memory().due.remove(key) {
                let message = "Cancelling deletion";
                self.recorder
                    .normal(&pod, "DeviceTaintManagerEviction", message);
            }
            return Ok(Requeue::OnChange);
        };
        let left = at.duration_since(now);
        if left.is_positive() {
            self.memory().due.insert(key.clone());
            return Ok(left.try_into().map_or(Requeue::OnChange, Requeue::After));
        }
        self.recorder
            .normal(&pod, "DeviceTaintManagerEviction", "Marking for deletion");
        let why = (
            "DeletionByDeviceTaintManager",
            "Device Taint manager: deleting due to NoExecute taint",
        );
        pod_control::evict(&self.context, &pod, why).await?;
        let uid = pod.metadata.uid.as_deref();
        let goes = |e: Option<&Entry>| e.is_none_or(|e| e.deleting || Some(&*e.uid) != uid);
        self.pods.until(key, goes).await?;
        let mut memory = self.memory();
        memory.due.remove(key);
        for rule in due.rules {
            *memory.evicted.entry(rule).or_default() += 1;
        }
        Ok(Requeue::OnChange)
    }

    /// When a pod has to go because of any of its claims.
    fn due(&self, key: &Key, pod: &Pod) -> Result<Due, Error> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let (slices, rules) = (self.driving_slices(), self.rules.list());
        let taints = Taints::of(&slices, &rules);
        let mut all = Due::default();
        let status = pod.status.as_ref();
        let extended = status.and_then(|s| s.extended_resource_claim_status.as_ref());
        let extended = extended.map(|s| s.resource_claim_name.clone());
        for name in resourceclaims::claim_names(pod).into_iter().chain(extended) {
            let claim = self.claims.get(&Key::new(key.namespace.clone(), name))?;
            if let Some(claim) = claim.filter(|c| plan::is_reserved_for(c, uid)) {
                all.add(plan::due(&claim, &taints, self.context.now()));
            }
        }
        Ok(all)
    }

    /// The slices of pools with devices that drive pods away. A newer slice of such a pool may
    /// drive nobody away, and is among them.
    fn driving_slices(&self) -> Vec<ResourceSlice> {
        let entries = self.slices.entries();
        if !entries.iter().any(|e| drives(e)) {
            return Vec::new();
        }
        client::cache::decode_all(&entries)
    }

    async fn rule(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(rule) = self.rules.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        let status = rule.status.clone().unwrap_or_default();
        let all = status.conditions.unwrap_or_default();
        let known = all.iter().find(|c| c.type_ == CONDITION);
        let current = known.filter(|c| c.observed_generation == rule.metadata.generation);
        let effect = rule.spec.taint.effect.as_str();
        let now = self.context.now();
        if let Some(known) = current {
            if effect == "None" {
                return Ok(Requeue::OnChange);
            }
            let left = STATUS_PERIOD - now.duration_since(known.last_transition_time.0);
            if let Some(left) = Duration::try_from(left).ok().filter(|l| !l.is_zero()) {
                return Ok(Requeue::After(left));
            }
        }
        let claims = self.claims.list();
        let slices = self.slices.list();
        let users = self.users(&claims);
        let effects = plan::effects(&rule, &slices, &claims, &users, now);
        let uid = rule.metadata.uid.clone().unwrap_or_default();
        let evicted = self.memory().evicted.get(&uid).copied().unwrap_or(0);
        let (holds, reason, message) = plan::told(effect, &effects, evicted);
        let status = if holds { "True" } else { "False" };
        let is_said = current.is_some_and(|c| {
            (c.status.as_str(), c.reason.as_str(), c.message.as_str()) == (status, reason, &message)
        });
        if is_said {
            return Ok(Requeue::OnChange);
        }
        let condition = Condition {
            type_: CONDITION.into(),
            status: status.into(),
            reason: reason.into(),
            message,
            observed_generation: rule.metadata.generation,
            last_transition_time: Time(now),
        };
        let mut all: Vec<Condition> = all.into_iter().filter(|c| c.type_ != CONDITION).collect();
        all.push(condition);
        let body = json!({"metadata": {"uid": uid}, "status": {"conditions": all}});
        let api = write::cluster::<DeviceTaintRule>(&self.context.client);
        if let Some(written) = write::patch_status(&api, &key.name, &body).await? {
            self.rules.caught_up(write::revision_of(&written)).await?;
        }
        Ok(Requeue::OnChange)
    }

    /// The pods that claims are kept for and that run, by uid.
    fn users(&self, claims: &[ResourceClaim]) -> HashMap<String, Key> {
        let mut users = HashMap::new();
        for claim in claims {
            let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
            let reserved = claim.status.as_ref().and_then(|s| s.reserved_for.as_ref());
            for user in reserved.into_iter().flatten() {
                let key = Key::new(namespace, user.name.as_str());
                let pod = self.pods.entry(&key);
                if pod.is_some_and(|p| *p.uid == user.uid && !p.deleting && p.node.is_some()) {
                    users.insert(user.uid.clone(), key);
                }
            }
        }
        users
    }
}
