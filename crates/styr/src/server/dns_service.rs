//! The Service `kube-dns` in `kube-system`, as every cluster has it, whose endpoint is the DNS
//! server in this process instead of a pod.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::config::{Cluster, DNS_PORT};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";
/// Port of DNS itself.
const PORT: u16 = 53;

/// Makes the Service and its EndpointSlice, or brings them up to date.
///
/// # Errors
/// When the API refuses.
pub async fn publish(client: &client::Client, cluster: &Cluster) -> anyhow::Result<()> {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    put(&services, NAME, service(cluster)).await?;
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    put(&slices, NAME, slice(cluster)).await
}

async fn put<K>(api: &Api<K>, name: &str, wanted: Value) -> anyhow::Result<()>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let mut object: K = serde_json::from_value(wanted)?;
    let parameters = PostParams::default();
    match api.get_opt(name).await? {
        None => api.create(&parameters, &object).await?,
        Some(existing) => {
            object.meta_mut().resource_version = existing.resource_version();
            api.replace(name, &parameters, &object).await?
        }
    };
    Ok(())
}

fn ports(port: u16) -> Value {
    json!([
        {"name": "dns", "protocol": "UDP", "port": port},
        {"name": "dns-tcp", "protocol": "TCP", "port": port},
    ])
}

fn service(cluster: &Cluster) -> Value {
    let address = cluster.dns_ip().to_string();
    json!({
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS", "kubernetes.io/cluster-service": "true"},
        },
        // Without a selector: the endpoint below is no pod.
        "spec": {"clusterIP": address, "clusterIPs": [address], "ports": ports(PORT)},
    })
}

fn slice(cluster: &Cluster) -> Value {
    json!({
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": NAME, "endpointslice.kubernetes.io/managed-by": "styr"},
        },
        "addressType": "IPv4",
        "endpoints": [{
            "addresses": [cluster.node_ip().to_string()],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": cluster.choices.node_name,
        }],
        "ports": ports(DNS_PORT),
    })
}
