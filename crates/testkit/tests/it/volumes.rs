//! Claims and volumes.

use client::write;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::{Value, json};
use testkit::{Cluster, eventually, objects};

use crate::apps::rig::Rig;

const CLAIMS: &str = "v1/persistentvolumeclaims";

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

/// A volume of a class, and a claim that is bound to it.
async fn bound(rig: &Rig, name: &str, class: Value, source: Value) -> anyhow::Result<()> {
    let mut storage_class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": name}, "provisioner": "example.com/x"});
    let mut volume = json!({"apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": source["annotations"]},
        "spec": {"storageClassName": name, "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}});
    let mut claim = claim(name, name);
    claim["spec"]["resources"]["requests"]["storage"] = json!("1Gi");
    for (to, from) in [
        (&mut storage_class, &class),
        (&mut volume["spec"], &source["spec"]),
    ] {
        for (key, value) in from.as_object().into_iter().flatten() {
            to[key] = value.clone();
        }
    }
    rig.create("storage.k8s.io/v1/storageclasses", storage_class)
        .await?;
    rig.create("v1/persistentvolumes", volume).await?;
    rig.create(CLAIMS, claim).await?;
    let bound = |c: &Value| c["status"]["phase"] == "Bound";
    rig.until(CLAIMS, name, "to be bound", bound)
        .await
        .map(drop)
}

async fn ask_for(rig: &Rig, name: &str, size: &str) -> kube::Result<Value> {
    let more = json!({"spec": {"resources": {"requests": {"storage": size}}}});
    rig.merge(CLAIMS, name, more).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_grow_where_their_class_lets_them() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let ours = json!({"annotations": {"pv.kubernetes.io/provisioned-by": "styr.dev/host-path"},
        "spec": {"hostPath": {"path": "/v"}}});
    let theirs = json!({"spec": {"csi": {"driver": "csi.example.com", "volumeHandle": "h"}}});
    let grows = json!({"allowVolumeExpansion": true});
    bound(&rig, "fixed", json!({}), ours.clone()).await?;
    let refused = ask_for(&rig, "fixed", "2Gi").await;
    let refused = refused.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(
        refused.contains("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"),
        "{refused}"
    );

    bound(&rig, "ours", grows.clone(), ours).await?;
    ask_for(&rig, "ours", "2Gi").await?;
    let grown = rig
        .until(CLAIMS, "ours", "to have grown", |c| {
            c["status"]["capacity"]["storage"] == "2Gi"
        })
        .await?;
    let left = grown["status"]["conditions"].as_array();
    let mut left = left.into_iter().flatten();
    assert!(left.all(|c| c["type"] == "Unused"), "{grown}");
    let volume = rig.get("v1/persistentvolumes", "ours").await?;
    assert_eq!(volume["spec"]["capacity"]["storage"], "2Gi");

    bound(&rig, "theirs", grows, theirs).await?;
    ask_for(&rig, "theirs", "2Gi").await?;
    rig.until_all("v1/events", "", "to tell who resizes", |all| {
        let told = |reason: &str, message: &str| {
            let same = |e: &Value| e["reason"] == reason && e["message"] == message;
            all.iter().any(same)
        };
        told(
            "VolumeResizeSuccessful",
            "ExpandVolume succeeded for volume default/ours",
        ) && told(
            "ExternalExpanding",
            "waiting for an external controller to expand this PVC",
        )
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_is_bound_where_its_pod_is_already() -> anyhow::Result<()> {
    // As when the claim is deleted and made again behind the scheduler's back.
    let rig = Rig::start(&["n1", "n2"]).await?;
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": "late"}, "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer"});
    rig.create("storage.k8s.io/v1/storageclasses", class)
        .await?;
    for node in ["n1", "n2"] {
        let here = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [node]});
        let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": format!("on-{node}")},
            "spec": {"storageClassName": "late", "capacity": {"storage": "20Gi"},
                "accessModes": ["ReadWriteOnce"], "local": {"path": "/v"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}}}});
        rig.create("v1/persistentvolumes", volume).await?;
    }
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"nodeName": "n2", "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}});
    rig.create("v1/pods", pod).await?;
    rig.create(CLAIMS, claim("data", "late")).await?;
    let bound = |c: &Value| c["status"]["phase"] == "Bound";
    let bound = rig.until(CLAIMS, "data", "to be bound", bound).await?;
    assert_eq!(bound["spec"]["volumeName"], "on-n2");
    let selected = "volume.kubernetes.io/selected-node";
    assert_eq!(bound["metadata"]["annotations"][selected], "n2");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_comes_and_goes_with_the_pod_that_asks_for_it() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    // Somebody else's claim of the same name is not used.
    rig.create(CLAIMS, claim("p-scratch", "manual")).await?;
    for name in ["v1", "v2"] {
        let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
            "spec": {"storageClassName": "manual", "capacity": {"storage": "20Gi"},
                "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/v"}}});
        rig.create("v1/persistentvolumes", volume).await?;
    }
    let template =
        json!({"metadata": {"labels": {"of": "p"}}, "spec": claim("", "manual")["spec"]});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": template}}]}});
    let pod = rig.create("v1/pods", pod).await?;
    rig.until_all("v1/events", "", "to tell whose claim it is", |all| {
        let why = "ephemeral volume scratch: PVC default/p-scratch was not created for pod default/p (pod is not owner)";
        let told = |e: &Value| e["reason"] == "FailedBinding" && e["message"] == why;
        all.iter().any(told)
    })
    .await?;
    rig.delete(CLAIMS, "p-scratch", Value::Null).await?;
    let own = |c: &Value| c["metadata"]["ownerReferences"][0]["uid"] == pod["metadata"]["uid"];
    let made = rig
        .until(CLAIMS, "p-scratch", "to be the pod's", own)
        .await?;
    assert_eq!(made["metadata"]["labels"]["of"], "p");
    let runs = |p: &Value| p["status"]["phase"] == "Running";
    rig.until("v1/pods", "p", "to run", runs).await?;
    rig.delete("v1/pods", "p", Value::Null).await?;
    rig.until_gone(CLAIMS, "p-scratch").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attributes_stay_while_a_claim_names_them() -> anyhow::Result<()> {
    const CLASSES: &str = "storage.k8s.io/v1/volumeattributesclasses";
    let rig = Rig::start(&[]).await?;
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttributesClass",
        "metadata": {"name": "gold"}, "driverName": "d", "parameters": {"iops": "9"}});
    rig.create(CLASSES, class).await?;
    let mut named = claim("c", "manual");
    named["spec"]["volumeAttributesClassName"] = json!("gold");
    rig.create(CLAIMS, named).await?;
    rig.until(CLASSES, "gold", "to be protected", |c| {
        c["metadata"]["finalizers"] == json!(["kubernetes.io/vac-protection"])
    })
    .await?;
    rig.delete(CLASSES, "gold", Value::Null).await?;
    assert!(rig.get(CLASSES, "gold").await?["metadata"]["deletionTimestamp"].is_string());
    rig.delete(CLAIMS, "c", Value::Null).await?;
    rig.until_gone(CLASSES, "gold").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_emptied_by_a_pod_and_free_again() -> anyhow::Result<()> {
    const VOLUMES: &str = "v1/persistentvolumes";
    const PODS: &str = "v1/pods";
    let rig = Rig::start(&[]).await?;
    let mut volume = json!({"apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": "pv"}, "spec": {"storageClassName": "manual",
            "capacity": {"storage": "20Gi"}, "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Recycle", "hostPath": {"path": "/mnt/data"}}});
    let phase = |phase: &'static str| move |v: &Value| v["status"]["phase"] == phase;
    rig.create(VOLUMES, volume.clone()).await?;
    rig.create(CLAIMS, claim("c", "manual")).await?;
    rig.until(VOLUMES, "pv", "to be bound", phase("Bound"))
        .await?;
    rig.delete(CLAIMS, "c", Value::Null).await?;
    let name = "recycler-for-pv";
    for (ended, then) in [("Failed", "Failed"), ("Succeeded", "Available")] {
        let of_pod = |p: &Value| p["status"]["phase"] == "Pending";
        rig.until(PODS, name, "to empty the volume", of_pod).await?;
        let status = json!({"status": {"phase": ended, "message": "why"}});
        rig.merge(PODS, &format!("{name}/status"), status).await?;
        rig.until(VOLUMES, "pv", "to tell", phase(then)).await?;
    }
    rig.until(VOLUMES, "pv", "to be free", |v| {
        v["spec"]["claimRef"].is_null()
    })
    .await?;
    rig.until_gone(PODS, name).await?;
    // Nobody knows how to empty what a driver keeps.
    volume["metadata"]["name"] = "far".into();
    volume["spec"]["storageClassName"] = "far".into();
    volume["spec"]["hostPath"] = Value::Null;
    volume["spec"]["nfs"] = Value::Null;
    volume["spec"]["iscsi"] =
        json!({"targetPortal": "10.0.0.1:3260", "iqn": "iqn.2026-01.com.a:b", "lun": 0});
    rig.create(VOLUMES, volume).await?;
    rig.create(CLAIMS, claim("d", "far")).await?;
    rig.until(VOLUMES, "far", "to be bound", phase("Bound"))
        .await?;
    rig.delete(CLAIMS, "d", Value::Null).await?;
    rig.until(VOLUMES, "far", "to fail", phase("Failed"))
        .await?;
    rig.until_all("v1/events", "", "to tell of all", |all| {
        let told = |reason: &str, message: &str| {
            all.iter()
                .any(|e| e["reason"] == reason && e["message"] == message)
        };
        told("VolumeRecycled", "Volume recycled")
            && told(
                "VolumeFailedRecycle",
                "Recycle failed: failed to recycle volume: why",
            )
            && told(
                "VolumeFailedRecycle",
                "No recycler plugin found for the volume!",
            )
    })
    .await?;
    Ok(())
}
