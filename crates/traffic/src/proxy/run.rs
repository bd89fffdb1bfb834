//! The shell around the pure parts: watches, gathers changes for a moment, applies them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use client::{Cache, Caches, Key, Scope};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use net::link::{Links, Route};
use net::nft::{Event, Monitor};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::apply::Applier;
use super::model::{Frontends, Place, frontends};
use super::{Config, Error};
use crate::watch::ServiceWatch;

/// How long changes are gathered before they are applied together.
const GATHER: Duration = Duration::from_millis(5);
/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Runs the proxy until `shutdown`; the table stays. The bridge must exist. `ready` is told once the kernel's table
/// holds every Service.
///
/// # Errors
/// Only when the host's network cannot be used at all; refused changes are tried again.
pub async fn run(
    caches: Caches,
    config: Config,
    ready: oneshot::Sender<()>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let watch = ServiceWatch::start(&caches);
    let here = Here::start(&caches, &config.node_name, &watch);
    let unreachable = config.unreachable;
    let opened = tokio::task::spawn_blocking(move || {
        route_services(&config)?;
        Ok::<_, net::Error>((Applier::open(config)?, Monitor::open()?))
    });
    let (mut applier, monitor) = opened.await??;
    let mut monitor = Some(monitor);
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        _ = async { tokio::join!(watch.synced(), here.node.synced()) } => {}
    }
    let mut ready = Some(ready);
    let mut pause = RETRY.0;
    let mut events = Vec::new();
    loop {
        // The first pass replaces the table even if there is no Service.
        let changed = changes(&watch, &here.place(), unreachable);
        let heard = std::mem::take(&mut events);
        let applied = tokio::task::spawn_blocking(move || {
            let applied = applier.update(changed).and_then(|()| applier.heard(&heard));
            (applier, applied)
        });
        let (back, applied) = applied.await?;
        applier = back;
        if let Err(error) = applied {
            // The applier keeps what was wanted and replaces the whole table the next time.
            tracing::error!(%error, "cannot change the service table; trying again in {pause:?}");
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY.1),
            }
            continue;
        }
        pause = RETRY.0;
        if let Some(ready) = ready.take() {
            // Nobody may be waiting.
            let _ = ready.send(());
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = watch.changed() => tokio::time::sleep(GATHER).await,
            heard = listen(&mut monitor) => {
                // Whoever changes one thing often goes on to change more.
                tokio::time::sleep(GATHER).await;
                events = heard;
            }
        }
    }
}

/// Label that tells a node's zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// This node, as the cluster has it; Services follow its zone.
struct Here {
    name: String,
    node: Cache<Node>,
}

impl Here {
    fn start(caches: &Caches, name: &str, watch: &ServiceWatch) -> Self {
        let node = caches.get::<Node>(Scope::all().fields(format!("metadata.name={name}")));
        let all_change = watch.all_change();
        node.on_change(move |change| {
            let zone = |entry: &Option<_>| zone_of(entry.as_deref());
            if zone(&change.old) != zone(&change.new) {
                all_change();
            }
        });
        Self {
            name: name.to_owned(),
            node,
        }
    }

    fn place(&self) -> Place {
        let node = self.node.entry(&Key::cluster(self.name.as_str()));
        Place {
            node: self.name.clone(),
            zone: zone_of(node.as_deref()),
        }
    }
}

fn zone_of(node: Option<&client::Entry>) -> Option<String> {
    node?.label(ZONE_LABEL).map(str::to_owned)
}

fn changes(
    watch: &ServiceWatch,
    place: &Place,
    unreachable: Option<Ipv4Net>,
) -> BTreeMap<Key, Frontends> {
    let changed = watch.take().into_iter().map(|key| {
        let found = watch.look_up(&key);
        let wanted = found.map(|(service, mut slices)| {
            if let Some(range) = unreachable {
                slices.iter_mut().for_each(|slice| leave_out(slice, range));
            }
            frontends(&service, &slices, place)
        });
        (key, wanted.unwrap_or_default())
    });
    changed.collect()
}

/// Takes endpoints in `range` out of a slice.
fn leave_out(slice: &mut EndpointSlice, range: Ipv4Net) {
    let outside = |address: &String| match address.parse::<Ipv4Addr>() {
        Ok(address) => !range.contains(&address),
        Err(_) => true,
    };
    if let Some(endpoints) = &mut slice.endpoints {
        endpoints.retain(|endpoint| endpoint.addresses.iter().all(outside));
    }
}

/// What others changed; never returns once listening has failed.
async fn listen(monitor: &mut Option<Monitor>) -> Vec<Event> {
    if let Some(listening) = monitor {
        match listening.next().await {
            Ok(events) => return events,
            Err(error) => {
                tracing::warn!(%error, "others' changes to nftables are no longer noticed")
            }
        }
        *monitor = None;
    }
    std::future::pending().await
}

/// Routes the service range into the bridge, so that this host's own connections find a source address and a way there.
fn route_services(config: &Config) -> Result<(), net::Error> {
    let mut links = Links::open()?;
    let bridge = links
        .find(&config.bridge)?
        .ok_or_else(|| net::Error::NoLink(config.bridge.clone()))?;
    let source = links
        .addresses()?
        .into_iter()
        .find(|a| a.index == bridge.index)
        .map(|a| a.net.addr());
    links.set_route(&Route {
        destination: config.service_cidr,
        gateway: None,
        index: bridge.index,
        source,
        metric: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_that_answer_nobody_are_left_out() {
        let mut slice: EndpointSlice = serde_json::from_value(serde_json::json!({
            "addressType": "IPv4", "endpoints": [
                {"addresses": ["10.42.0.7"]}, {"addresses": ["100.64.3.2"]}, {"addresses": ["web.example"]}],
        }))
        .unwrap();
        leave_out(&mut slice, "100.64.0.0/10".parse().unwrap());
        let left = slice.endpoints.unwrap();
        assert_eq!(left.len(), 2);
        assert!(left.iter().all(|e| e.addresses != ["100.64.3.2"]));
    }
}
