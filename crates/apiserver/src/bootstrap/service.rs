//! The `kubernetes` service and its endpoints: how pods reach this server.

use std::sync::Arc;

use api::meta;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{ensure, myself, resource_of};
use crate::dispatch::complete;
use crate::registry::{Fail, Owner, Part, Registry, Warnings, Write};

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
    reconcile(registry, service, &["spec", "ports"]).await?;
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
    reconcile(registry, endpoints, &["subsets"]).await?;
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
    reconcile(registry, slice.clone(), &["endpoints"]).await?;
    reconcile(registry, slice, &["ports"]).await
}

/// Creates the object, or makes one field of it what it should be.
async fn reconcile(registry: &Arc<Registry>, object: Value, field: &[&str]) -> Result<(), Fail> {
    ensure(registry, object.clone()).await?;
    let resource = resource_of(registry, &object)?;
    let mut wanted = object;
    complete(&resource, &mut wanted);
    let (user, warnings, owner) = (myself(), Warnings::default(), Owner::server());
    let write = Write {
        resource: &resource,
        namespace: NAMESPACE,
        name: NAME,
        subresource: "",
        user: &user,
        dry_run: false,
        now: registry.now(),
        warnings: &warnings,
        owner: Some(&owner),
    };
    let update = registry.update(&write, Part::Main, |current| {
        let mut next = current.clone();
        if let Some(value) = meta::get(&wanted, field) {
            meta::set(&mut next, field, value.clone());
        }
        Ok(next)
    });
    update.await.map(drop)
}
