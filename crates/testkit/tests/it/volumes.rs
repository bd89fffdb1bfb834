//! Claims and volumes.

use client::write;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::{Value, json};
use testkit::{Cluster, eventually, objects};

fn phase<T>(status: Option<T>, of: impl FnOnce(T) -> Option<String>) -> String {
    status.and_then(of).unwrap_or_default()
}

fn claim(name: &str, class: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "20Gi"}}},
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_gets_its_volume_a_pod_gets_both_and_all_are_let_go() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _node = cluster.add_node("n1").await?;
    let client = cluster.client();
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": "mysql-pv-volume", "labels": {"type": "local"}},
        "spec": {"storageClassName": "manual", "capacity": {"storage": "20Gi"},
            "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/mnt/data"}},
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "db"},
        "spec": {"containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "mysql-pv-claim"}}]},
    });
    objects(&client, &[pod, volume, claim("mysql-pv-claim", "manual")]).await?;
    let claims = write::namespaced::<PersistentVolumeClaim>(&client, "default");
    let volumes = write::cluster::<PersistentVolume>(&client);
    let pods = write::namespaced::<Pod>(&client, "default");
    let bound = eventually("the claim to be bound", || async {
        let claim = claims.get("mysql-pv-claim").await?;
        Ok((phase(claim.status.clone(), |s| s.phase) == "Bound").then_some(claim))
    })
    .await?;
    assert_eq!(
        bound.spec.and_then(|s| s.volume_name).as_deref(),
        Some("mysql-pv-volume")
    );
    let capacity = bound.status.and_then(|s| s.capacity).unwrap_or_default();
    assert_eq!(capacity["storage"].0, "20Gi");
    eventually("the pod to run", || async {
        Ok((phase(pods.get("db").await?.status, |s| s.phase) == "Running").then_some(()))
    })
    .await?;

    claims.delete("mysql-pv-claim", &Default::default()).await?;
    let held = claims.get("mysql-pv-claim").await?;
    assert!(
        held.metadata.deletion_timestamp.is_some(),
        "in use: it stays for now"
    );
    pods.delete("db", &Default::default()).await?;
    eventually("the claim to go", || async {
        Ok(claims
            .get_opt("mysql-pv-claim")
            .await?
            .is_none()
            .then_some(()))
    })
    .await?;
    eventually("the volume to be released", || async {
        let volume = volumes.get("mysql-pv-volume").await?;
        Ok((phase(volume.status, |s| s.phase) == "Released").then_some(()))
    })
    .await?;
    Ok(())
}
