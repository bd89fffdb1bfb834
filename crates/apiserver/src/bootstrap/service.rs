//! The range of cluster IPs, the `kubernetes` service and its endpoints: how pods reach this server.

use std::sync::Arc;

use api::meta;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{ensure, resource_of};
use crate::call::complete;
use crate::registry::{Fail, Myself, Part, Registry};

const NAME: &str = "kubernetes";
const NAMESPACE: &str = "default";

/// Makes or corrects the service and, unless the server is reachable on this machine alone, its endpoints.
pub(super) async fn run(registry: &Arc<Registry>) -> Result<(), Fail> {
    let config = registry.config();
    let first = match config.service_cidr {
        IpNet::V4(net) => net.hosts().next().map(|ip| ip.to_string()),
        IpNet::V6(net) => net.hosts().nth(1).map(|ip| ip.to_string()),
    };
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": first.unwrap_or_default(),
            "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": config.advertise_port}],
        },
    });
    range(registry, &config.service_cidr.to_string()).await?;
    reconcile(registry, service, &["spec", "ports"], Part::Main).await?;
    if config.advertise_address.is_loopback() {
        return Ok(());
    }
    let address = config.advertise_address.to_string();
    let port = json!({"name": "https", "port": config.advertise_port, "protocol": "TCP"});
    let endpoints = json!({
        "kind": "Endpoints",
        "apiVersion": "v1",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": address}], "ports": [port]}],
    });
    reconcile(registry, endpoints, &["subsets"], Part::Main).await?;
    let family = if config.advertise_address.is_ipv4() {
        "IPv4"
    } else {
        "IPv6"
    };
    let slice = json!({
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": NAME}},
        "addressType": family,
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [port],
    });
    reconcile(registry, slice.clone(), &["endpoints"], Part::Main).await?;
    reconcile(registry, slice, &["ports"], Part::Main).await
}

/// The range of cluster IPs as an object, which is ready from the start.
async fn range(registry: &Arc<Registry>, cidr: &str) -> Result<(), Fail> {
    let object = json!({
        "kind": "ServiceCIDR",
        "apiVersion": "networking.k8s.io/v1",
        "metadata": {"name": NAME},
        "spec": {"cidrs": [cidr]},
    });
    ensure(registry, object.clone()).await?;
    let resource = resource_of(registry, &object)?;
    let made = registry.find(&resource, "", NAME).await?;
    let ready = match made {
        Some(made) => !meta::list_at(&made.value()?, &["status", "conditions"]).is_empty(),
        None => false,
    };
    if ready {
        return Ok(());
    }
    let mut object = object;
    let condition = json!({
        "type": "Ready",
        "status": "True",
        "lastTransitionTime": api::time::format(registry.now()),
        "reason": "",
        "message": "Kubernetes default Service CIDR is ready",
    });
    meta::set(&mut object, &["status", "conditions"], json!([condition]));
    reconcile(registry, object, &["status"], Part::Status).await
}

/// Creates the object, or makes one field of it what it should be.
async fn reconcile(
    registry: &Arc<Registry>,
    object: Value,
    field: &[&str],
    part: Part,
) -> Result<(), Fail> {
    ensure(registry, object.clone()).await?;
    let resource = resource_of(registry, &object)?;
    let namespace = meta::namespace(&object).to_owned();
    let mut wanted = object;
    complete(&resource, &mut wanted);
    let myself = Myself::default();
    let write = myself.write(registry, &resource, &namespace, NAME);
    let update = registry.update(&write, part, |current| {
        let mut next = current.clone();
        if let Some(value) = meta::get(&wanted, field) {
            meta::set(&mut next, field, value.clone());
        }
        Ok(next)
    });
    update.await.map(drop)
}
