//! A pod gets a node where its claims of devices can be allocated, or have been.
//!
//! Filter finds devices, Reserve holds them, PreBind writes them into the claims ([`bind`]).
//! What pods ask for as extended resources becomes a claim of its own ([`extended`]).
//! Where no node will do because a claim nobody uses is allocated elsewhere, PostFilter lets it go.

mod bind;
mod extended;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use client::{Cache, Client, Clock, Error, Key, Scope};
use futures::{FutureExt, future::BoxFuture};
use jiff::SignedDuration;
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};
use serde::Deserialize;
use serde_json::Value;
use tokio_util::task::TaskTracker;

use self::extended::{Extended, Special};
use placement::node_selector as selector;

use super::Handle;
use crate::{
    devices::{
        Devices,
        allocator::{Refusal, Supply},
        claims,
        request::ALTERNATIVES_MAX,
    },
    extender::duration,
    framework::{
        Advice, Cycle, Diagnosis, Event, Happening, Plugin, PostFilter, PreFilter, Status,
        TryFilter, View, normalize_to_highest,
    },
    node::{NodeInfo, NodeSpec},
    pod::{DeviceClaim, PodInfo},
};

pub(super) const NAME: &str = "DynamicResources";
/// Longest search for devices on one node.
const FILTER_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait for devices to be prepared.
const BINDING_LIMIT: Duration = Duration::from_secs(600);

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Args {
    filter_timeout: Option<String>,
    binding_timeout: Option<String>,
}

/// How long things may take.
struct Limits {
    filter: Duration,
    binding: Duration,
}

fn limits(args: Value) -> Result<Limits, String> {
    let args: Args = super::args(args)?;
    let read = |field: &str, text: Option<String>, default| match text {
        None => Ok(default),
        Some(text) => duration(&text)
            .ok_or_else(|| format!("{field}: Invalid value: {text:?}: not a duration")),
    };
    let binding = read("bindingTimeout", args.binding_timeout, BINDING_LIMIT)?;
    if binding < Duration::from_secs(1) {
        return Err("bindingTimeout: must be at least 1 second".to_owned());
    }
    Ok(Limits {
        filter: read("filterTimeout", args.filter_timeout, FILTER_LIMIT)?,
        binding,
    })
}

pub(super) fn check(args: &Value) -> Result<(), String> {
    limits(args.clone()).map(drop)
}

pub(super) fn make(handle: &Handle, args: Value) -> super::Made {
    Ok(Box::new(DynamicResources {
        limits: limits(args)?,
        client: handle.client.clone(),
        devices: Arc::clone(&handle.devices),
        watched: handle.caches.get(Scope::all()),
        clock: handle.clock.clone(),
        tasks: handle.tasks.clone(),
        reserved: Mutex::default(),
    }))
}

struct DynamicResources {
    limits: Limits,
    client: Client,
    devices: Arc<Devices>,
    watched: Cache<ResourceClaim>,
    clock: Clock,
    tasks: TaskTracker,
    /// What is held for pods that have been given a node, by uid.
    reserved: Mutex<HashMap<Arc<str>, Vec<Reserved>>>,
}

/// A claim of a pod that has been given a node.
#[derive(Clone)]
struct Reserved {
    key: Key,
    claim: Arc<ResourceClaim>,
    /// What it is to get; `None`: it has got it.
    allocation: Option<AllocationResult>,
    /// The claim is still to be made.
    special: Option<Special>,
}

/// What is known of a pod's claims in a cycle.
struct State {
    claims: Vec<Arc<ResourceClaim>>,
    /// What is known of the claim of its extended resources, if it has any.
    extended: Option<Extended>,
    /// Those that are allocated, but of no use on some node.
    unavailable: Mutex<BTreeSet<usize>>,
    /// What those not yet allocated would get, in order, by node.
    found: Mutex<HashMap<String, Found>>,
}

/// What was found on a node.
struct Found {
    /// For the claims that are not allocated, in order, and the special one, if there is one.
    results: Vec<AllocationResult>,
    special: Option<Special>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_allocated(claim: &ResourceClaim) -> bool {
    claims::allocation(claim).is_some()
}

/// Whether the claim is held for the pod.
fn is_reserved_for(claim: &ResourceClaim, uid: &str) -> bool {
    let status = claim.status.as_ref();
    let reserved = status.and_then(|s| s.reserved_for.as_ref());
    reserved.into_iter().flatten().any(|r| r.uid == uid)
}

impl DynamicResources {
    /// The claims of a pod, or why it has to wait for them.
    fn claims_of(&self, pod: &PodInfo) -> Result<Vec<Arc<ResourceClaim>>, String> {
        let namespace = &pod.key.namespace;
        let of = |wanted: &DeviceClaim| {
            let (name, made) = match wanted {
                DeviceClaim::Named(name) => (name, false),
                DeviceClaim::Made(name) => (name, true),
                DeviceClaim::Awaited => {
                    return Err(format!(
                        "pod \"{}\": ResourceClaim not created yet",
                        pod.key
                    ));
                }
                DeviceClaim::Unknown(name) => {
                    return Err(format!(
                        "pod \"{}\", spec.resourceClaim \"{name}\": none of the supported fields are set",
                        pod.key
                    ));
                }
            };
            let key = Key::new(Arc::clone(namespace), name.as_str());
            let claim = self.devices.claims.get(&key);
            let claim = claim
                .ok_or_else(|| format!("resourceclaim.resource.k8s.io \"{name}\" not found"))?;
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(format!("resourceclaim \"{name}\" is being deleted"));
            }
            let mut owners = claim.metadata.owner_references.iter().flatten();
            let own = |uid: &str| *uid == **pod.uid();
            if made && !owners.any(|o| o.controller == Some(true) && own(&o.uid)) {
                return Err(format!(
                    "ResourceClaim {key} was not created for Pod {} (Pod is not owner)",
                    pod.key
                ));
            }
            Ok(claim)
        };
        pod.devices.iter().map(of).collect()
    }

    /// The claims of a pod, if each of them is allocated or can be.
    fn usable(&self, pod: &PodInfo) -> Result<Vec<Arc<ResourceClaim>>, String> {
        let all = self.claims_of(pod)?;
        for claim in all.iter().filter(|c| !is_allocated(c)) {
            if self.devices.claims.is_pending(claims::uid(claim)) {
                let key = Key::of(&**claim);
                return Err(format!(
                    "resource claim {key} is in the process of being allocated"
                ));
            }
            self.devices.asked(claim)?;
        }
        Ok(all)
    }

    /// Whether an allocated claim is of use on a node.
    fn is_available(&self, claim: &ResourceClaim, node: &NodeSpec) -> bool {
        let Some(allocation) = claims::allocation(claim) else {
            return true;
        };
        let terms = allocation.node_selector.as_ref();
        if terms.is_some_and(|t| !selector::matches(t, &node.name, &node.labels)) {
            return false;
        }
        match bind::is_prepared(claim) {
            Ok(true) => true,
            Ok(false) => !self.is_overdue(allocation),
            Err(_) => false,
        }
    }

    /// Whether its devices have been prepared for too long.
    fn is_overdue(&self, allocation: &AllocationResult) -> bool {
        let limit = SignedDuration::try_from(self.limits.binding).unwrap_or(SignedDuration::MAX);
        let since = allocation.allocation_timestamp.as_ref();
        since.is_some_and(|t| self.clock.now().duration_since(t.0) > limit)
    }

    /// What the claims that are not yet allocated would get on a node.
    fn find(
        &self,
        all: &[Arc<ResourceClaim>],
        special: Option<&Special>,
        node: &NodeSpec,
    ) -> Result<Vec<AllocationResult>, Status> {
        let wanting = all.iter().filter(|c| !is_allocated(c));
        let wanting = wanting.chain(special.map(|s| &s.claim));
        let asked = wanting.map(|c| self.devices.asked(c));
        let asked = asked.collect::<Result<Vec<_>, _>>();
        let asked = asked.map_err(Status::unresolvable)?;
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let start = self.clock.now();
        let limit = SignedDuration::try_from(self.limits.filter).unwrap_or(SignedDuration::MAX);
        let limited = !self.limits.filter.is_zero();
        let expired = || limited && self.clock.now().duration_since(start) > limit;
        let found = self.devices.allocate(node, &asked, &expired);
        found.map_err(|refusal| match refusal {
            Refusal::None => Status::unresolvable("cannot allocate all claims"),
            Refusal::Unclear => Status::unresolvable("invalid resource pools were encountered"),
            Refusal::Late => Status::unresolvable("timed out trying to allocate devices"),
            Refusal::Error(why) => Status::Error(why),
        })
    }

    /// How far up in the lists of alternatives the devices of a node are.
    fn preference(&self, state: &State, node: &str) -> i64 {
        let found = locked(&state.found);
        let Some(Found { results, .. }) = found.get(node) else {
            return 0;
        };
        let wanting = state.claims.iter().filter(|c| !is_allocated(c));
        let each = wanting.zip(results).map(|(claim, result)| {
            let devices = result.devices.as_ref().and_then(|d| d.results.as_ref());
            let taken: BTreeSet<&str> = devices
                .into_iter()
                .flatten()
                .map(|r| r.request.as_str())
                .collect();
            let Ok(asked) = self.devices.asked(claim) else {
                return 0;
            };
            let lists = asked.requests.iter().filter(|r| r.listed);
            lists
                .flat_map(|r| r.alternatives.iter().enumerate())
                .filter(|(_, wanted)| taken.contains(wanted.reference.as_str()))
                .map(|(i, _)| ALTERNATIVES_MAX.saturating_sub(i) as i64)
                .sum()
        });
        each.sum()
    }
}

impl Plugin for DynamicResources {
    fn name(&self) -> &'static str {
        NAME
    }

    fn weight(&self) -> i64 {
        2
    }

    fn happenings(&self) -> &'static [Happening] {
        &[
            Happening::NodeAdd,
            Happening::NodeLabels,
            Happening::DeviceClaims,
            Happening::Devices,
        ]
    }

    fn helps(&self, pod: &PodInfo, event: &Event<'_>) -> bool {
        let Event::DeviceClaim(change) = event else {
            return true;
        };
        // While one of its claims is not there, no other one helps.
        let Ok(own) = self.claims_of(pod) else {
            return false;
        };
        let its_own = || own.iter().any(|c| claims::uid(c) == change.uid);
        change.freed || change.said_something && its_own()
    }

    fn pre_enqueue(&self, pod: &PodInfo) -> Status {
        if pod.devices.is_empty() {
            return Status::Success;
        }
        match self.claims_of(pod) {
            Ok(_) => Status::Success,
            Err(why) => Status::unresolvable(why),
        }
    }

    fn pre_filter(&self, cycle: &mut Cycle<'_>, pod: &PodInfo) -> PreFilter {
        if pod.devices.is_empty() && pod.containers.is_empty() {
            return PreFilter::Skip;
        }
        let extended = self.extended(pod);
        match self.usable(pod) {
            Ok(claims) if claims.is_empty() && extended.is_none() => PreFilter::Skip,
            Ok(claims) => {
                let state = State {
                    claims,
                    extended,
                    unavailable: Mutex::default(),
                    found: Mutex::default(),
                };
                cycle.state.write(NAME, state);
                PreFilter::Continue
            }
            Err(why) => PreFilter::Reject(Status::unresolvable(why)),
        }
    }

    fn filter(&self, view: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> Status {
        let (Some(state), Some(spec)) = (view.state.read::<State>(NAME), &node.spec) else {
            return Status::Success;
        };
        let special = match &state.extended {
            None => Ok(None),
            Some(Extended::Wanted) => self.special(pod, spec),
            Some(Extended::Left(_)) => Err(Status::unresolvable(
                "cannot schedule extended resource claim",
            )),
        };
        let special = match special {
            Ok(special) => special,
            Err(status) => return status,
        };
        let results = match self.find(&state.claims, special.as_ref(), spec) {
            Ok(results) => results,
            Err(status) => return status,
        };
        let all = state.claims.iter().enumerate();
        let useless = all.filter(|(_, c)| !self.is_available(c, spec));
        let useless: Vec<usize> = useless.map(|(i, _)| i).collect();
        if !useless.is_empty() {
            locked(&state.unavailable).extend(useless);
            return Status::unresolvable("resourceclaim not available on the node");
        }
        if !results.is_empty() {
            let found = Found { results, special };
            locked(&state.found).insert(spec.name.clone(), found);
        }
        Status::Success
    }

    fn advice(&self, view: &View<'_>, _: &PodInfo, node: &NodeInfo) -> Option<Advice> {
        let (state, spec) = (view.state.read::<State>(NAME)?, node.spec.as_ref()?);
        let wanting = state.claims.iter().filter(|c| !is_allocated(c));
        let asked = wanting.map(|c| self.devices.asked(c));
        let asked = asked.collect::<Result<Vec<_>, _>>().ok()?;
        let supplies = self.devices.survey(spec, &asked).ok()?;
        let missing = |s: &Supply| {
            let wants = s.wants.unwrap_or(s.matching).max(1);
            wants.saturating_sub(s.free)
        };
        let short: Vec<&Supply> = supplies.iter().filter(|s| missing(s) > 0).collect();
        let each = short.iter().map(|s| {
            let wants = s
                .wants
                .map_or("all devices".to_owned(), |n| format!("{n} device(s)"));
            format!(
                "request {} wants {wants} of class {}: of {} on the node {} match, {} of them free",
                s.request, s.class, s.devices, s.matching, s.free
            )
        });
        let text = each.collect::<Vec<_>>().join("; ");
        let effort = short.iter().map(|s| missing(s) as i64).sum();
        (!text.is_empty()).then_some(Advice { text, effort })
    }

    fn post_filter(
        &self,
        view: &View<'_>,
        pod: &PodInfo,
        _: &Diagnosis,
        _: &TryFilter<'_>,
    ) -> Option<PostFilter> {
        let failed = |why: &str| Some(PostFilter::Failed(why.to_owned()));
        let Some(state) = view.state.read::<State>(NAME) else {
            return failed("no new claims to deallocate");
        };
        let unavailable = locked(&state.unavailable);
        let mut claims = unavailable.iter().map(|i| &state.claims[*i]);
        let idle = claims.find(|c| bind::is_idle(c, pod.uid()));
        let Some(idle) = idle else {
            if let Some(Extended::Left(claim)) = &state.extended {
                self.delete_later(Arc::clone(claim));
                return failed("deletion of ResourceClaim completed");
            }
            return failed("still not schedulable");
        };
        let (client, idle) = (self.client.clone(), Arc::clone(idle));
        self.tasks.spawn(async move {
            if let Err(error) = bind::deallocate(&client, &idle).await {
                tracing::warn!(claim = %Key::of(&*idle), %error, "not deallocated");
            }
        });
        failed("deallocation of ResourceClaim completed")
    }

    fn pre_score(&self, cycle: &mut Cycle<'_>, _: &PodInfo, _: &[&NodeInfo]) -> bool {
        let state = cycle.state.read::<State>(NAME);
        state.is_some_and(|s| !locked(&s.found).is_empty())
    }

    fn score(&self, view: &View<'_>, _: &PodInfo, node: &NodeInfo) -> i64 {
        let state = view.state.read::<State>(NAME);
        state.map_or(0, |state| self.preference(state, node.name()))
    }

    fn normalize(&self, _: &View<'_>, _: &[&NodeInfo], scores: &mut [i64]) {
        normalize_to_highest(scores, false);
    }

    fn reserve(&self, cycle: &mut Cycle<'_>, pod: &PodInfo, node: &str) -> Status {
        let Some(state) = cycle.state.read::<State>(NAME) else {
            return Status::Success;
        };
        let found = locked(&state.found).remove(node);
        let (results, special) = found.map_or_else(Default::default, |f| (f.results, f.special));
        let mut found = results.into_iter();
        let mut held = Vec::new();
        for claim in &state.claims {
            let key = Key::of(&**claim);
            let mut allocation = None;
            if !is_allocated(claim) {
                allocation = found.next();
                let Some(new) = &allocation else {
                    return Status::Error("claim allocation not found for node".to_owned());
                };
                self.devices.claims.pend(&key, claims::uid(claim), new);
            }
            held.push(Reserved {
                key,
                claim: Arc::clone(claim),
                allocation,
                special: None,
            });
        }
        if let (Some(special), Some(allocation)) = (special, found.next()) {
            let claim = Arc::clone(&special.claim);
            let key = Key::of(&*claim);
            let uid = claims::uid(&claim);
            self.devices.claims.pend(&key, uid, &allocation);
            held.push(Reserved {
                key,
                claim,
                allocation: Some(allocation),
                special: Some(special),
            });
        }
        locked(&self.reserved).insert(Arc::clone(pod.uid()), held);
        Status::Success
    }

    fn unreserve(&self, pod: &PodInfo, _: &str) {
        let held = locked(&self.reserved).remove(pod.uid());
        for one in held.into_iter().flatten() {
            self.devices.claims.settle(claims::uid(&one.claim));
            match &one.special {
                None => self.let_go_later(pod, one),
                Some(special) => {
                    self.devices.claims.settle(claims::uid(&special.claim));
                    if !Arc::ptr_eq(&special.claim, &one.claim) {
                        self.delete_later(one.claim);
                    }
                }
            }
        }
    }

    fn pre_bind<'a>(&'a self, pod: &'a PodInfo, node: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        if pod.devices.is_empty() && pod.containers.is_empty() {
            return std::future::ready(Ok(())).boxed();
        }
        self.bind_claims(pod, node).boxed()
    }
}
