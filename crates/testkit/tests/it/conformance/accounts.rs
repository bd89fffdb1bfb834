//! Accounts, tokens, certificates, reviews, and what every namespace gets.

use serde_json::{Value, json};

use super::life::Life;
use super::world::*;

/// Conformance: ServiceAccount lifecycle test
#[tokio::test]
async fn service_accounts() {
    let world = World::api().await;
    let path = at("v1", "serviceaccounts");
    let labels = json!({"test-serviceaccount-static": "true"});
    let selected = format!("{path}?labelSelector=test-serviceaccount-static%3Dtrue");
    let mut events = world.watch(&format!("{selected}&watch=true")).await;
    world
        .create(&path, json!({"metadata": {"name": "a", "labels": labels}}))
        .await;
    events.expect("ADDED").await;
    let patch = json!({"automountServiceAccountToken": false});
    world
        .patch(&format!("{path}/a"), STRATEGIC, &patch)
        .await
        .ok(200);
    events.expect("MODIFIED").await;
    let all = world
        .items("/api/v1/serviceaccounts?labelSelector=test-serviceaccount-static%3Dtrue")
        .await;
    assert_eq!(all[0]["automountServiceAccountToken"], false);
    world.delete(&path).await.ok(200);
    events.expect("DELETED").await;
}

/// Conformance: ServiceAccount, update a ServiceAccount
#[tokio::test]
async fn service_accounts_are_updated() {
    let world = World::api().await;
    let path = at("v1", "serviceaccounts");
    let made = json!({"metadata": {"name": "a"}, "automountServiceAccountToken": false});
    assert_eq!(
        world.create(&path, made).await["automountServiceAccountToken"],
        false
    );
    let change = |a: &mut Value| a["automountServiceAccountToken"] = true.into();
    let updated = world.update(&format!("{path}/a"), change).await;
    assert_eq!(updated["automountServiceAccountToken"], true);
    Life::namespaced("v1", "ServiceAccount", "serviceaccounts", json!({}))
        .live_in(&world)
        .await;
}

/// Conformance: ServiceAccount, create and review token
#[tokio::test]
async fn tokens_are_made_and_reviewed() {
    let world = World::api().await;
    let path = at("v1", "serviceaccounts");
    let account = world
        .create(&path, json!({"metadata": {"name": "a"}}))
        .await;
    let request = json!({"spec": {"audiences": [], "expirationSeconds": 600}});
    let made = world.create(&format!("{path}/a/token"), request).await;
    let token = text(&made, "/status/token");
    assert!(!token.is_empty());
    let review = json!({"spec": {"token": token}});
    let review = world
        .create("/apis/authentication.k8s.io/v1/tokenreviews", review)
        .await;
    assert_eq!(review["status"]["authenticated"], true, "{review:#}");
    assert_eq!(text(&review, "/status/error"), "");
    let user = &review["status"]["user"];
    assert_eq!(user["username"], "system:serviceaccount:default:a");
    assert_eq!(user["uid"], account["metadata"]["uid"]);
    let groups = json!([
        "system:serviceaccounts",
        "system:serviceaccounts:default",
        "system:authenticated"
    ]);
    assert_eq!(user["groups"], groups);
}

/// Conformance: RootCA ConfigMap test
#[tokio::test]
async fn every_namespace_has_the_root_certificate() {
    let world = World::whole(&[]).await;
    let path = format!("{}/kube-root-ca.crt", at("v1", "configmaps"));
    let there = |map: &Value| !text(map, "/data/ca.crt").is_empty();
    let first = world.until(&path, there).await;
    world.delete(&path).await.ok(200);
    let second = world.until(&path, there).await;
    assert_ne!(first["metadata"]["uid"], second["metadata"]["uid"]);
    world.merge(&path, json!({"data": {"ca.crt": ""}})).await;
    world.until(&path, there).await;
}

/// Conformance: SubjectReview, API Operations
#[tokio::test]
async fn reviews_say_what_requests_find() {
    let world = World::api().await;
    world
        .create(
            &at("v1", "serviceaccounts"),
            json!({"metadata": {"name": "e2e"}}),
        )
        .await;
    let user = "system:serviceaccount:default:e2e";
    let groups = [
        "system:authenticated",
        "system:serviceaccounts",
        "system:serviceaccounts:default",
    ];
    let allowed = async |group: &str| {
        let spec = json!({"user": user, "groups": groups,
            "resourceAttributes": {"verb": "list", "resource": "configmaps", "namespace": "default", "version": "v1"}});
        let review = json!({"metadata": {"namespace": "default"}, "spec": spec});
        world.create(group, review).await["status"]["allowed"] == true
    };
    let reviews = [
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        "/apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews",
    ];
    let client = world.cluster.client_of(user, &groups);
    let listed = async || {
        let request = http::Request::get(at("v1", "configmaps"))
            .body(Vec::new())
            .unwrap();
        client.request::<Value>(request).await.is_ok()
    };
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    for expected in [false, true] {
        for review in reviews {
            assert_eq!(allowed(review).await, expected, "{review}");
        }
        assert_eq!(listed().await, expected);
        if !expected {
            let rules =
                json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]);
            world
                .create(
                    &format!("{rbac}/roles"),
                    json!({"metadata": {"name": "r"}, "rules": rules}),
                )
                .await;
            let role =
                json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"});
            let subject = json!({"kind": "ServiceAccount", "name": "e2e", "namespace": "default"});
            let binding =
                json!({"metadata": {"name": "b"}, "roleRef": role, "subjects": [subject]});
            world.create(&format!("{rbac}/rolebindings"), binding).await;
            testkit::eventually("the role to count", || async {
                Ok(allowed(reviews[0]).await.then_some(()))
            })
            .await
            .unwrap();
        }
    }
}

/// Conformance (partly): OIDC Discovery (ServiceAccountIssuerDiscovery)
#[tokio::test]
async fn the_issuer_of_tokens_is_discovered() {
    let world = World::api().await;
    let document = world.object("/.well-known/openid-configuration").await;
    assert_eq!(
        document["issuer"],
        "https://kubernetes.default.svc.cluster.local"
    );
    assert_eq!(document["response_types_supported"], json!(["id_token"]));
    assert_eq!(document["subject_types_supported"], json!(["public"]));
    let keys = world.object("/openid/v1/jwks").await;
    assert!(!keys["keys"].as_array().unwrap().is_empty());
}

/// Conformance: CertificateSigningRequest API
#[tokio::test]
async fn certificate_signing_requests() {
    let world = World::api().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["e2e.example.com".to_owned()]).unwrap();
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    let encode = |text: &str| {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(text)
    };
    let spec = json!({"request": encode(&pem), "signerName": "example.com/e2e", "expirationSeconds": 3600,
        "usages": ["digital signature", "key encipherment", "server auth"]});
    let life = Life::cluster(
        "certificates.k8s.io/v1",
        "CertificateSigningRequest",
        "certificatesigningrequests",
        json!({"spec": spec}),
    );
    life.live_in(&world).await;
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let by_signer = format!("{path}?fieldSelector=spec.signerName%3Dexample.com%2Fe2e");
    let made = world
        .create(
            path,
            json!({"metadata": {"generateName": "e2e-example-csr-"}, "spec": spec}),
        )
        .await;
    assert_eq!(made["spec"]["username"], "conformance");
    assert_eq!(world.items(&by_signer).await.len(), 1);
    let one = format!("{path}/{}", name(&made));
    let approval = format!("{one}/approval");
    assert_eq!(
        world.object(&approval).await["metadata"]["uid"],
        made["metadata"]["uid"]
    );
    let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "E2E", "message": "Set from an e2e test"});
    let patch = json!({"metadata": {"annotations": {"patchedapproval": "true"}}, "status": {"conditions": [condition("ApprovalPatch")]}});
    let patched = world.merge(&approval, patch).await;
    assert_eq!(patched["status"]["conditions"][0]["type"], "ApprovalPatch");
    assert_eq!(
        patched["metadata"]["annotations"]["patchedapproval"],
        "true"
    );
    let add = |kind: &'static str| {
        move |c: &mut Value| {
            c["status"]["conditions"]
                .as_array_mut()
                .unwrap()
                .push(condition(kind))
        }
    };
    let approved = world.update(&approval, add("Approved")).await;
    assert_eq!(approved["status"]["conditions"][1]["type"], "Approved");
    let status = format!("{one}/status");
    assert_eq!(
        world.object(&status).await["kind"],
        "CertificateSigningRequest"
    );
    let patch = json!({"metadata": {"annotations": {"patchedstatus": "true"}}, "status": {"certificate": encode(&certificate)}});
    let patched = world.merge(&status, patch).await;
    assert_eq!(patched["status"]["certificate"], encode(&certificate));
    assert_eq!(patched["metadata"]["annotations"]["patchedstatus"], "true");
    let updated = world.update(&status, add("StatusUpdate")).await;
    assert_eq!(updated["status"]["conditions"][2]["type"], "StatusUpdate");
    world.delete(&by_signer).await.ok(200);
    assert!(world.items(&by_signer).await.is_empty());
}

/// Conformance: Namespace patching
#[tokio::test]
async fn namespaces_are_patched() {
    let world = World::api().await;
    world
        .create("/api/v1/namespaces", json!({"metadata": {"name": "n"}}))
        .await;
    let patch = json!({"metadata": {"labels": {"testLabel": "testValue"}}});
    world
        .patch("/api/v1/namespaces/n", STRATEGIC, &patch)
        .await
        .ok(200);
    let got = world.object("/api/v1/namespaces/n").await;
    assert_eq!(
        got["metadata"]["labels"],
        json!({"kubernetes.io/metadata.name": "n", "testLabel": "testValue"})
    );
}

/// Conformance: Namespace, apply update to a namespace
#[tokio::test]
async fn namespaces_are_updated() {
    let world = World::api().await;
    world
        .create("/api/v1/namespaces", json!({"metadata": {"name": "n"}}))
        .await;
    let change = |n: &mut Value| n["metadata"]["labels"]["n"] = "updated".into();
    let updated = world.update("/api/v1/namespaces/n", change).await;
    assert_eq!(updated["metadata"]["labels"]["n"], "updated");
}
