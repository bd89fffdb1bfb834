//! Corners of writes: what must hold before one happens, what happens without one, and who approves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use serde_json::{Value, json};

use crate::harness::*;

fn message(answer: &Answer) -> &str {
    answer.body["message"].as_str().unwrap_or_default()
}

async fn version(c: &Cluster, uri: &str) -> String {
    let object = c.get(uri).await.body;
    object["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test]
async fn what_must_hold_is_checked_by_every_verb() {
    let c = cluster().await;
    let made = c.create(MAPS, &config_map("a")).await;
    let uri = format!("{MAPS}/a");
    let stale = json!({"preconditions": {"resourceVersion": "1"}});
    let answer = c.send("DELETE", &uri, "application/json", &stale).await;
    let now = made["metadata"]["resourceVersion"].as_str().unwrap();
    assert_eq!(answer.code, 409);
    assert!(
        message(&answer).contains(&format!("Precondition failed: ResourceVersion in precondition: 1, ResourceVersion in object meta: {now}")),
        "{}",
        message(&answer)
    );
    let mut other = made.clone();
    other["metadata"]["uid"] = "someone-else".into();
    let answer = c.put(&uri, &other).await;
    assert_eq!(
        (answer.code, answer.body["reason"].as_str()),
        (409, Some("Conflict"))
    );
    assert!(
        message(&answer).contains(
            "Precondition failed: UID in precondition: someone-else, UID in object meta: "
        ),
        "{}",
        message(&answer)
    );
    let answer = c
        .merge(&uri, &json!({"metadata": {"uid": "someone-else"}}))
        .await;
    assert_eq!(answer.code, 422, "{}", answer.body);
    assert!(
        message(&answer)
            .contains("metadata.uid: Invalid value: \"someone-else\": field is immutable"),
        "{}",
        message(&answer)
    );
    let answer = c
        .merge(&uri, &json!({"metadata": {"resourceVersion": "1"}}))
        .await;
    assert_eq!(
        (answer.code, answer.body["reason"].as_str()),
        (409, Some("Conflict"))
    );
    let answer = c.merge(&uri, &json!({"metadata": {"name": "b"}})).await;
    assert!(matches!(answer.code, 400 | 422), "{}", answer.body);
    let mut misplaced = made.clone();
    misplaced["metadata"]["namespace"] = "kube-system".into();
    let answer = c.put(&uri, &misplaced).await;
    assert_eq!(
        (answer.code, message(&answer)),
        (
            400,
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    );
    let mut misnamed = made.clone();
    misnamed["metadata"]["name"] = "b".into();
    let answer = c.put(&uri, &misnamed).await;
    assert_eq!(
        (answer.code, message(&answer)),
        (
            400,
            "the name of the object (b) does not match the name on the URL (a)"
        )
    );
    let mut versioned = config_map("c");
    versioned["metadata"]["resourceVersion"] = "5".into();
    let answer = c.post(MAPS, &versioned).await;
    assert_eq!(answer.code, 500, "{}", answer.body);
    assert!(
        message(&answer).contains("resourceVersion should not be set on objects to be created"),
        "{}",
        message(&answer)
    );
    assert_eq!(c.get(&uri).await.body, made);
}

#[tokio::test]
async fn dry_runs_of_every_verb_and_subresource_leave_all_as_it_was() {
    let c = cluster().await;
    with_account(&c).await;
    c.create(PODS, &pod("p")).await;
    c.create(MAPS, &config_map("a")).await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    c.create(deployments, &deployment).await;
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let (p, a, d) = (
        format!("{PODS}/p"),
        format!("{MAPS}/a"),
        format!("{deployments}/d"),
    );
    let (merge, plain, apply) = (
        "application/merge-patch+json",
        "application/json",
        "application/apply-patch+yaml",
    );
    let mut next = config_map("a");
    next["data"] = json!({"x": "y"});
    let scale = json!({"metadata": {"name": "d", "namespace": "default"}, "spec": {"replicas": 7}});
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "e", "image": "i", "terminationMessagePolicy": "File", "imagePullPolicy": "Always"}]}});
    let before = [
        version(&c, &p).await,
        version(&c, &a).await,
        version(&c, &d).await,
    ];
    let none = Value::Null;
    let all: [(&str, String, &str, &Value, u16); 14] = [
        ("POST", MAPS.to_owned(), plain, &config_map("new"), 201),
        ("PUT", a.clone(), plain, &next, 200),
        ("PATCH", a.clone(), merge, &next, 200),
        ("PATCH", a.clone(), apply, &config_map("a"), 200),
        (
            "PATCH",
            format!("{MAPS}/new"),
            apply,
            &config_map("new"),
            201,
        ),
        ("DELETE", a.clone(), plain, &none, 200),
        ("DELETE", MAPS.to_owned(), plain, &none, 200),
        (
            "DELETE",
            a.clone(),
            plain,
            &json!({"propagationPolicy": "Foreground"}),
            200,
        ),
        (
            "PATCH",
            format!("{d}/status"),
            merge,
            &json!({"status": {"replicas": 3}}),
            200,
        ),
        ("PUT", format!("{d}/scale"), plain, &scale, 200),
        (
            "PATCH",
            format!("{d}/scale"),
            merge,
            &json!({"spec": {"replicas": 5}}),
            200,
        ),
        ("POST", format!("{p}/binding"), plain, &binding, 201),
        (
            "POST",
            format!("{p}/eviction"),
            plain,
            &json!({"metadata": {"name": "p"}}),
            201,
        ),
        (
            "PATCH",
            format!("{p}/ephemeralcontainers"),
            merge,
            &debug,
            200,
        ),
    ];
    for (method, uri, media, body, code) in all {
        let manager = if media == apply {
            "&fieldManager=m"
        } else {
            ""
        };
        let uri = format!("{uri}?dryRun=All{manager}");
        let answer = c.send(method, &uri, media, body).await;
        assert_eq!(answer.code, code, "{method} {uri}: {}", answer.body);
        let after = [
            version(&c, &p).await,
            version(&c, &a).await,
            version(&c, &d).await,
        ];
        assert_eq!(after, before, "{method} {uri}");
        assert_eq!(
            c.get(&format!("{MAPS}/new")).await.code,
            404,
            "{method} {uri}"
        );
    }
    let namespace = json!({"metadata": {"name": "x"}});
    c.create("/api/v1/namespaces", &namespace).await;
    assert_eq!(c.delete("/api/v1/namespaces/x?dryRun=All").await.code, 200);
    let kept = c.get("/api/v1/namespaces/x").await.body;
    assert!(kept["metadata"]["deletionTimestamp"].is_null());
    let request = json!({"metadata": {"name": "r"}, "spec": {"request": request_pem(), "signerName": "example.com/s", "usages": ["digital signature"]}});
    c.create(requests, &request).await;
    let approval = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "r", "message": "m"}]}});
    let told = c
        .merge(&format!("{requests}/r/approval?dryRun=All"), &approval)
        .await;
    assert_eq!(told.code, 200, "{}", told.body);
    let kept = c.get(&format!("{requests}/r")).await.body;
    assert!(kept["status"]["conditions"].is_null(), "{kept}");
}

fn request_pem() -> String {
    use base64::Engine;
    let mut params = rcgen::CertificateParams::default();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "jane");
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    base64::engine::general_purpose::STANDARD.encode(pem)
}

#[tokio::test]
async fn certificate_requests_are_approved_and_signed_apart() {
    let c = cluster().await;
    let all = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let request = json!({"metadata": {"name": "r"}, "spec": {"request": request_pem(), "signerName": "example.com/s", "usages": ["digital signature"]}});
    let made = c.create(all, &request).await;
    assert_eq!(made["spec"]["username"], "admin");
    let uri = format!("{all}/r");
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "r", "message": "m"});
    let with = |conditions: Value| {
        let mut next = made.clone();
        next["metadata"]
            .as_object_mut()
            .unwrap()
            .remove("resourceVersion");
        next["status"] = json!({"conditions": conditions});
        next
    };
    // The main resource changes neither.
    let plain = c
        .put(&uri, &with(json!([condition("Approved", "True")])))
        .await;
    assert_eq!(plain.code, 200, "{}", plain.body);
    assert!(
        plain.body["status"]["conditions"].is_null(),
        "{}",
        plain.body
    );
    // The status cannot approve.
    let status = c
        .put(
            &format!("{uri}/status"),
            &with(json!([condition("Approved", "True")])),
        )
        .await;
    assert!(
        status.code == 422 || status.body["status"]["conditions"].is_null(),
        "{}",
        status.body
    );
    let both = with(json!([
        condition("Approved", "True"),
        condition("Denied", "True")
    ]));
    let refused = c.put(&format!("{uri}/approval"), &both).await;
    assert_eq!(refused.code, 422, "{}", refused.body);
    assert!(
        message(&refused).contains("Approved and Denied conditions are mutually exclusive"),
        "{}",
        message(&refused)
    );
    let unsure = c
        .put(
            &format!("{uri}/approval"),
            &with(json!([condition("Approved", "False")])),
        )
        .await;
    assert_eq!(unsure.code, 422, "{}", unsure.body);
    assert!(
        message(&unsure).contains(
            "status.conditions[0].status: Unsupported value: \"False\": supported values: \"True\""
        ),
        "{}",
        message(&unsure)
    );

    let mut approved = with(json!([condition("Approved", "True")]));
    approved["status"]["certificate"] = "eA==".into();
    approved["spec"]["username"] = "mallory".into();
    let done = c.put(&format!("{uri}/approval"), &approved).await;
    assert_eq!(done.code, 200, "{}", done.body);
    assert_eq!(done.body["status"]["conditions"][0]["type"], "Approved");
    assert!(done.body["status"]["conditions"][0]["lastUpdateTime"].is_string());
    assert!(done.body["status"]["conditions"][0]["lastTransitionTime"].is_string());
    assert!(done.body["status"]["certificate"].is_null());
    assert_eq!(done.body["spec"]["username"], "admin");
    // What was decided stays.
    let back = c.put(&format!("{uri}/approval"), &with(json!([]))).await;
    assert_eq!(back.code, 422, "{}", back.body);
    assert!(
        message(&back).contains("updates may not remove a condition of type \"Approved\""),
        "{}",
        message(&back)
    );
    let garbage = c
        .merge(
            &format!("{uri}/status"),
            &json!({"status": {"certificate": "eA=="}}),
        )
        .await;
    assert_eq!(garbage.code, 422, "{}", garbage.body);
    let spec = c
        .merge(&uri, &json!({"spec": {"usages": ["client auth"]}}))
        .await;
    assert!(
        spec.code == 422 || spec.body["spec"]["usages"] == json!(["digital signature"]),
        "{}",
        spec.body
    );
}

/// Kinds that a PUT may make, as upstream has them.
#[tokio::test]
async fn some_kinds_are_made_by_replacing_them() {
    let c = cluster().await;
    let rule = json!({"rules": []});
    for (uri, body) in [
        ("/api/v1/namespaces/default/endpoints/x", json!({})),
        (
            "/api/v1/namespaces/default/services/x",
            json!({"spec": {"ports": [{"port": 80}]}}),
        ),
        (
            "/api/v1/namespaces/default/limitranges/x",
            json!({"spec": {"limits": []}}),
        ),
        (
            "/api/v1/namespaces/default/events/x",
            json!({"involvedObject": {"namespace": "default"}}),
        ),
        (
            "/apis/coordination.k8s.io/v1/namespaces/default/leases/x",
            json!({"spec": {}}),
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles/x",
            rule.clone(),
        ),
        ("/apis/rbac.authorization.k8s.io/v1/clusterroles/x", rule),
    ] {
        let mut body = body;
        body["metadata"] = json!({"name": "x"});
        let made = c.put(uri, &body).await;
        assert_eq!(made.code, 201, "{uri}: {}", made.body);
        assert_eq!(made.body["metadata"]["name"], "x");
        assert_eq!(c.put(uri, &made.body).await.code, 200, "{uri}");
    }
    for (uri, body) in [
        (format!("{MAPS}/x"), config_map("x")),
        (format!("{PODS}/x"), pod("x")),
        (
            "/api/v1/namespaces/default/secrets/x".to_owned(),
            json!({"metadata": {"name": "x"}}),
        ),
        (
            "/api/v1/namespaces/x".to_owned(),
            json!({"metadata": {"name": "x"}}),
        ),
        (
            "/api/v1/nodes/x".to_owned(),
            json!({"metadata": {"name": "x"}}),
        ),
    ] {
        let answer = c.put(&uri, &body).await;
        assert_eq!(answer.code, 404, "{uri}: {}", answer.body);
        assert!(
            message(&answer).ends_with("\"x\" not found"),
            "{}",
            message(&answer)
        );
    }
}

#[tokio::test]
async fn collections_are_deleted_by_selectors_and_within_limits() {
    let c = cluster().await;
    for (name, app) in [("a", "x"), ("b", "y"), ("c", "x"), ("d", "x")] {
        let mut map = config_map(name);
        map["metadata"]["labels"] = json!({"app": app});
        if name == "d" {
            map["metadata"]["finalizers"] = json!(["example.com/hold"]);
        }
        c.create(MAPS, &map).await;
    }
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap();
        let name = |i: &Value| i["metadata"]["name"].as_str().unwrap().to_owned();
        items.iter().map(name).collect()
    };
    let told = c
        .delete(&format!(
            "{MAPS}?fieldSelector=metadata.name%3Db&dryRun=All"
        ))
        .await;
    assert_eq!((told.code, names(&told.body)), (200, vec!["b".to_owned()]));
    assert_eq!(told.body["kind"], "ConfigMapList");
    let gone = c
        .delete(&format!(
            "{MAPS}?labelSelector=app%3Dx,app&fieldSelector=metadata.name!%3Dc"
        ))
        .await;
    assert_eq!(names(&gone.body), ["a", "d"]);
    let left = c.get(MAPS).await.body;
    assert_eq!(names(&left), ["b", "c", "d"]);
    assert!(left["items"][2]["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(
        c.delete(&format!("{MAPS}?labelSelector=%3D")).await.code,
        400
    );
    let policy = json!({"propagationPolicy": "Foreground"});
    let answer = c
        .send(
            "DELETE",
            &format!("{MAPS}?labelSelector=app%3Dy"),
            "application/json",
            &policy,
        )
        .await;
    assert_eq!(answer.code, 200);
    let b = c.get(&format!("{MAPS}/b")).await.body;
    assert_eq!(b["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    let odd = json!({"propagationPolicy": "Sideways"});
    let answer = c.send("DELETE", MAPS, "application/json", &odd).await;
    assert_eq!(answer.code, 422, "{}", answer.body);
}

/// A name that is taken when the object is written gives way to another one, a bounded number of times.
#[tokio::test]
async fn generated_names_are_tried_anew() {
    /// Letters of a generated name.
    const LETTERS: u32 = 5;
    let rolls = Arc::new(AtomicU32::new(0));
    let dice = rolls.clone();
    // Two names are drawn in turn: the second draw of each is taken.
    let c = cluster_with(|config| {
        config.roll = Arc::new(move || (dice.fetch_add(1, Relaxed) / LETTERS / 2).min(9));
    })
    .await;
    let map = json!({"metadata": {"generateName": "x-"}});
    let mut names = Vec::new();
    for _ in 0..10 {
        names.push(c.create(MAPS, &map).await["metadata"]["name"].clone());
    }
    assert_eq!(
        names[..3],
        [json!("x-bbbbb"), json!("x-ccccc"), json!("x-ddddd")]
    );
    // The dice show the same from here on.
    let before = rolls.load(Relaxed);
    let answer = c.post(MAPS, &map).await;
    assert_eq!(
        (answer.code, &answer.body["reason"]),
        (409, &json!("AlreadyExists"))
    );
    let name = names[9].as_str().unwrap();
    assert_eq!(
        message(&answer),
        format!(
            "configmaps {name:?} already exists, the server was not able to generate a unique name for the object"
        )
    );
    assert_eq!(answer.body["details"]["retryAfterSeconds"], 1);
    assert_eq!(rolls.load(Relaxed) - before, 8 * LETTERS);
}

/// A given name is kept beside a prefix.
#[tokio::test]
async fn names_are_given_or_generated() {
    let c = cluster().await;
    let given = json!({"metadata": {"generateName": "x-", "name": "fixed"}});
    let taken = c.post(MAPS, &given).await;
    assert_eq!(taken.body["metadata"]["name"], "fixed");
    let twice = c.post(MAPS, &given).await;
    assert_eq!(
        (twice.code, message(&twice)),
        (
            409,
            "configmaps \"fixed\" already exists, the server was not able to generate a unique name for the object"
        )
    );
    let long = json!({"metadata": {"generateName": "y".repeat(80)}});
    let made = c.create(MAPS, &long).await;
    assert_eq!(made["metadata"]["name"].as_str().map(str::len), Some(63));
    let none = c.post(MAPS, &json!({"metadata": {}})).await;
    assert_eq!(none.code, 422);
    assert!(
        message(&none).contains("metadata.name: Required value: name or generateName is required"),
        "{}",
        message(&none)
    );
}

/// Clients written against upstream's types rely on a role to say that it has no rules.
#[tokio::test]
async fn a_role_without_rules_says_so() {
    let c = cluster().await;
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let role = json!({"metadata": {"name": "r"},
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}});
    let says_so = |role: &Value| role.get("rules").is_some_and(Value::is_null);
    let made = c.create(roles, &role).await;
    assert!(says_so(&made), "{made}");
    let uri = format!("{roles}/r");
    let changed = c
        .merge(&uri, &json!({"metadata": {"labels": {"c": "d"}}}))
        .await
        .body;
    assert!(says_so(&changed), "{changed}");
    assert_eq!(c.put(&uri, &changed).await.body, changed);
    let rules = json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]});
    assert_eq!(c.merge(&uri, &rules).await.body["rules"], rules["rules"]);
}
