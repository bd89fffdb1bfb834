//! What admission fills in and refuses.

use serde_json::json;

use crate::harness::*;

#[tokio::test]
async fn pods_get_account_token_priority_and_tolerations() {
    let c = cluster().await;
    let early = c.post(PODS, &pod("p")).await;
    assert_eq!(early.code, 403);
    assert_eq!(
        early.body["message"],
        "pods \"p\" is forbidden: error looking up service account default/default: serviceaccount \"default\" not found"
    );
    with_account(&c).await;
    let p = c.create(PODS, &pod("p")).await;
    assert_eq!(p["spec"]["serviceAccountName"], "default");
    let mount = &p["spec"]["containers"][0]["volumeMounts"][0];
    assert_eq!(
        mount["mountPath"],
        "/var/run/secrets/kubernetes.io/serviceaccount"
    );
    assert_eq!(mount["name"], p["spec"]["volumes"][0]["name"]);
    assert_eq!(p["spec"]["priority"], 0);
    assert_eq!(p["spec"]["tolerations"].as_array().unwrap().len(), 2);
    let mut critical = pod("q");
    critical["spec"]["priorityClassName"] = "system-cluster-critical".into();
    assert_eq!(
        c.create(PODS, &critical).await["spec"]["priority"],
        2_000_000_000
    );
    critical["metadata"]["name"] = "r".into();
    critical["spec"]["priorityClassName"] = "nothing".into();
    assert_eq!(
        c.post(PODS, &critical).await.body["message"],
        "pods \"r\" is forbidden: no PriorityClass with name nothing was found"
    );
}

#[tokio::test]
async fn limit_ranges_fill_and_refuse() {
    let c = cluster().await;
    with_account(&c).await;
    let range = json!({"metadata": {"name": "l"}, "spec": {"limits": [
        {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}, "max": {"cpu": "1"}}]}});
    c.create("/api/v1/namespaces/default/limitranges", &range)
        .await;
    let p = c.create(PODS, &pod("p")).await;
    assert_eq!(
        p["spec"]["containers"][0]["resources"]["requests"]["cpu"],
        "100m"
    );
    let mut big = pod("q");
    big["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "2"}});
    assert_eq!(
        c.post(PODS, &big).await.body["message"],
        "pods \"q\" is forbidden: maximum cpu usage per Container is 1, but limit is 2"
    );
}

#[tokio::test]
async fn claims_get_the_default_class_and_nodes_their_taint() {
    let c = cluster().await;
    let class = json!({"metadata": {"name": "fast", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "x"});
    c.create("/apis/storage.k8s.io/v1/storageclasses", &class)
        .await;
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let made = c
        .create("/api/v1/namespaces/default/persistentvolumeclaims", &claim)
        .await;
    assert_eq!(made["spec"]["storageClassName"], "fast");
    let node = c
        .create("/api/v1/nodes", &json!({"metadata": {"name": "n"}}))
        .await;
    assert_eq!(
        node["spec"]["taints"][0]["key"],
        "node.kubernetes.io/not-ready"
    );
}
