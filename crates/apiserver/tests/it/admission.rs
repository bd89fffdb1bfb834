//! What admission fills in and refuses.

use serde_json::{Value, json};

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

#[tokio::test]
async fn ingresses_get_the_default_class() {
    let c = cluster().await;
    for (name, default) in [("other", "false"), ("nginx", "true")] {
        let class = json!({"metadata": {"name": name, "annotations":
            {"ingressclass.kubernetes.io/is-default-class": default}}, "spec": {"controller": "a.io/b"}});
        c.create("/apis/networking.k8s.io/v1/ingressclasses", &class)
            .await;
    }
    let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
    let ingresses = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
    let old = json!({"kubernetes.io/ingress.class": "old"});
    for (name, annotations, given, expected) in [
        ("a", json!({}), Value::Null, json!("nginx")),
        ("b", json!({}), json!("other"), json!("other")),
        ("c", old, Value::Null, Value::Null),
    ] {
        let ingress = json!({"metadata": {"name": name, "annotations": annotations},
            "spec": {"ingressClassName": given, "defaultBackend": backend}});
        let made = c.create(ingresses, &ingress).await;
        assert_eq!(made["spec"]["ingressClassName"], expected, "{name}");
    }
}

#[tokio::test]
async fn storage_is_protected_from_the_moment_it_is_made() {
    let c = cluster().await;
    let size = json!({"storage": "1Gi"});
    let cases = [
        (
            "/api/v1/persistentvolumes",
            json!({"metadata": {"name": "a"}, "spec": {"accessModes": ["ReadWriteOnce"],
                "capacity": size, "hostPath": {"path": "/tmp/a"}}}),
            "kubernetes.io/pv-protection",
        ),
        (
            "/api/v1/namespaces/default/persistentvolumeclaims",
            json!({"metadata": {"name": "a"}, "spec": {"accessModes": ["ReadWriteOnce"],
                "resources": {"requests": size}}}),
            "kubernetes.io/pvc-protection",
        ),
        (
            "/apis/storage.k8s.io/v1/volumeattributesclasses",
            json!({"metadata": {"name": "a"}, "driverName": "d", "parameters": {"a": "b"}}),
            "kubernetes.io/vac-protection",
        ),
    ];
    for (path, mut object, finalizer) in cases {
        let made = c.create(path, &object).await;
        assert_eq!(made["metadata"]["finalizers"], json!([finalizer]));
        let owners = made["metadata"]["managedFields"].to_string();
        assert!(!owners.contains("finalizers"), "{owners}");
        // It is added to others, but never twice.
        let all = json!(["example.com/a", finalizer]);
        for (name, given) in [("b", json!(["example.com/a"])), ("c", all.clone())] {
            object["metadata"] = json!({"name": name, "finalizers": given});
            let made = c.create(path, &object).await;
            assert_eq!(made["metadata"]["finalizers"], all);
        }
        // Who takes it away, may.
        let none = json!({"metadata": {"finalizers": null}});
        let one = format!("{path}/a");
        let changed = c.merge(&one, &none).await;
        assert!(changed.body["metadata"]["finalizers"].is_null());
    }
}

#[tokio::test]
async fn quotas_are_exact_under_concurrency() {
    let c = cluster().await;
    c.create(MAPS, &config_map("first")).await;
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "5", "count/secrets": "1"}}});
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    assert_eq!(
        c.create(quotas, &quota).await["status"]["used"],
        json!({"configmaps": "1", "count/secrets": "0"})
    );
    let maps: Vec<_> = (0..20).map(|i| config_map(&format!("m{i}"))).collect();
    let answers = futures::future::join_all(maps.iter().map(|m| c.post(MAPS, m))).await;
    assert_eq!(answers.iter().filter(|a| a.code == 201).count(), 4);
    let refused = answers.iter().find(|a| a.code == 403).unwrap();
    assert!(refused.body["message"].as_str().unwrap().ends_with("is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=5, limited: configmaps=5"));
    assert_eq!(c.delete(&format!("{MAPS}/first")).await.code, 200);
    assert_eq!(
        c.get(&format!("{quotas}/q")).await.body["status"]["used"]["configmaps"],
        "4"
    );
    c.create(MAPS, &config_map("last")).await;
}

#[tokio::test]
async fn pods_cost_what_their_runtime_class_costs() {
    let c = cluster().await;
    with_account(&c).await;
    let class = json!({"metadata": {"name": "vm"}, "handler": "vm", "overhead": {"podFixed": {"cpu": "250m"}},
        "scheduling": {"nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm", "operator": "Exists"}]}});
    c.create("/apis/node.k8s.io/v1/runtimeclasses", &class)
        .await;
    let mut p = pod("a");
    p["spec"]["runtimeClassName"] = "vm".into();
    p["spec"]["nodeSelector"] = json!({"disk": "ssd"});
    let made = c.create(PODS, &p).await;
    assert_eq!(made["spec"]["overhead"], json!({"cpu": "250m"}));
    assert_eq!(
        made["spec"]["nodeSelector"],
        json!({"disk": "ssd", "vm": "yes"})
    );
    assert_eq!(made["spec"]["tolerations"][0]["key"], "vm");
    let refused = async |name: &str, field: &str, value: Value| {
        let mut other = p.clone();
        other["metadata"]["name"] = name.into();
        other["spec"][field] = value;
        let answer = c.post(PODS, &other).await;
        assert_eq!(answer.code, 403);
        answer.body["message"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        refused("b", "runtimeClassName", "x".into()).await,
        "pods \"b\" is forbidden: pod rejected: RuntimeClass \"x\" not found"
    );
    let why = refused("c", "overhead", json!({"cpu": "1"})).await;
    assert!(
        why.ends_with("Pod's Overhead doesn't match RuntimeClass's defined Overhead"),
        "{why}"
    );
    let why = refused("d", "nodeSelector", json!({"vm": "no"})).await;
    assert!(
        why.contains("conflict: runtimeClass.scheduling.nodeSelector[vm] = yes"),
        "{why}"
    );
}
