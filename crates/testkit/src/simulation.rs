//! Asks for simulated nodes and waits for them.

use client::{Client, write};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::{ListParams, Patch, PatchParams};

use crate::eventually;

pub(crate) async fn ask(client: &Client, nodes: u32, profile: &str) -> anyhow::Result<()> {
    let maps = write::namespaced::<ConfigMap>(client, sim::NAMESPACE);
    let map = sim::Settings::config_map(nodes, profile);
    let patch = Patch::Apply(map);
    let params = PatchParams::apply("testkit").force();
    maps.patch(sim::NAME, &params, &patch).await?;
    let all = write::cluster::<Node>(client);
    let ours = ListParams::default().labels(&format!("{}=true", sim::LABEL));
    eventually(&format!("{nodes} simulated nodes"), || async {
        let listed = all.list(&ours).await?.items;
        let ready = listed.iter().filter(|n| is_usable(n)).count();
        Ok((listed.len() == nodes as usize && ready == listed.len()).then_some(()))
    })
    .await
}

fn is_usable(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    !taints
        .into_iter()
        .any(|t| t.key == "node.kubernetes.io/not-ready")
}
