//! Who answers for a Service: EndpointSlices, and Endpoints for those who still read them.
//!
//! Both controllers share what they look at; each has its own queue and writes its own kind.

mod backends;
mod hints;
mod legacy;
mod mirror;
mod packing;
mod slices;
mod topology;
mod trigger;

use client::{Cache, Change, Key, Queue, Scope, Selector};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, Pod, Service};

use crate::{Context, Controller};

/// Writes EndpointSlices.
pub const SLICES: Controller = Controller {
    name: "endpointslice-controller",
    run: run_slices,
};
/// Writes Endpoints.
pub const LEGACY: Controller = Controller {
    name: "endpoint-controller",
    run: run_legacy,
};

/// Mirrors Endpoints that people write by hand.
pub const MIRRORING: Controller = Controller {
    name: "endpointslicemirroring-controller",
    run: mirror::run,
};

const ZONE: &str = "topology.kubernetes.io/zone";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// What both look at.
struct View {
    services: Cache<Service>,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
}

fn run_slices(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let queue = Queue::default();
        let view = watch(&context, &queue).await;
        slices::run(context, view, queue).await;
    })
}

fn run_legacy(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let queue = Queue::default();
        let view = watch(&context, &queue).await;
        legacy::run(context, view, queue).await;
    })
}

async fn watch(context: &Context, queue: &Queue<Key>) -> View {
    let services = context.caches.get::<Service>(Scope::all());
    let pods = context.caches.get::<Pod>(Scope::all());
    let nodes = context.caches.get::<Node>(Scope::all());
    nodes.synced().await;
    let to = queue.clone();
    services.on_change(move |change| to.add(change.key.clone()));
    services.synced().await;
    let (to, of) = (queue.clone(), services.clone());
    pods.on_change(move |change| {
        selecting(change, &of)
            .into_iter()
            .for_each(|key| to.add(key))
    });
    pods.synced().await;
    View {
        services,
        pods,
        nodes,
    }
}

/// The services that select the pod, as it was or as it is.
fn selecting(change: &Change, services: &Cache<Service>) -> Vec<Key> {
    let states: Vec<_> = [&change.old, &change.new].into_iter().flatten().collect();
    if states.iter().all(|e| e.labels.is_empty()) {
        return Vec::new();
    }
    let mut keys = Vec::new();
    for service in services.list_in(&change.key.namespace) {
        let Some(selector) = selector_of(&service) else {
            continue;
        };
        if states.iter().any(|e| e.matches(&selector)) {
            keys.push(Key::of(&service));
        }
    }
    keys
}

/// `None`: its endpoints are none of these controllers' business.
fn selector_of(service: &Service) -> Option<Selector> {
    let spec = service.spec.as_ref()?;
    let selector = spec.selector.as_ref().filter(|s| !s.is_empty())?;
    (spec.type_.as_deref() != Some("ExternalName")).then(|| Selector::of_labels(selector))
}
