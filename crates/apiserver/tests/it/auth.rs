//! Bearer tokens: of bootstrap Secrets, and of accounts as long as what they are bound to lives.

use apiserver::http::body;
use apiserver::http::handler::Peer;
use http::Request;
use serde_json::{Value, json};

use crate::harness::*;

const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
const TOKEN: &str = "abcdef.0123456789abcdef";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// Who the server takes the bearer of `token` for; the code of a refusal otherwise.
async fn who(c: &Cluster, token: &str) -> Result<Value, u16> {
    let request = Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {token}"))
        .body(body::full("{}"))
        .unwrap();
    let peer = Peer::Socket {
        user: None,
        address: ([127, 0, 0, 1], 1).into(),
    };
    let answer = read(c.server.handle(request, peer).await).await;
    match answer.code {
        201 => Ok(answer.body["status"]["userInfo"].clone()),
        code => Err(code),
    }
}

#[tokio::test]
async fn a_bootstrap_token_is_good_while_its_secret_says_so() {
    let c = cluster().await;
    assert_eq!(who(&c, TOKEN).await, Err(401));
    let secret = json!({"type": "bootstrap.kubernetes.io/token", "metadata": {"name": "bootstrap-token-abcdef"},
        "stringData": {"token-id": "abcdef", "token-secret": "0123456789abcdef",
            "usage-bootstrap-authentication": "true",
            "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token"}});
    c.create(SECRETS, &secret).await;
    let user = who(&c, TOKEN).await.unwrap();
    assert_eq!(user["username"], "system:bootstrap:abcdef");
    assert_eq!(
        user["groups"],
        json!([
            "system:bootstrappers",
            "system:bootstrappers:kubeadm:default-node-token",
            "system:authenticated"
        ])
    );
    assert_eq!(who(&c, "abcdef.0123456789abcdeg").await, Err(401));

    let review = c
        .post(REVIEWS, &json!({"spec": {"token": TOKEN}}))
        .await
        .body;
    let status = &review["status"];
    assert_eq!(status["authenticated"], true, "{review}");
    assert_eq!(status["audiences"].as_array().map(Vec::len), Some(1));
    let elsewhere = json!({"spec": {"token": TOKEN, "audiences": ["vault"]}});
    let review = c.post(REVIEWS, &elsewhere).await.body;
    assert!(review["status"]["authenticated"].is_null(), "{review}");

    let uri = format!("{SECRETS}/bootstrap-token-abcdef");
    let ends = |at: &str| json!({"stringData": {"expiration": at}});
    c.merge(&uri, &ends("2001-01-01T00:00:00Z")).await;
    assert_eq!(who(&c, TOKEN).await, Err(401));
    c.merge(&uri, &ends("2999-01-01T00:00:00Z")).await;
    assert!(who(&c, TOKEN).await.is_ok());
    let unused = json!({"stringData": {"usage-bootstrap-authentication": "false"}});
    c.merge(&uri, &unused).await;
    assert_eq!(who(&c, TOKEN).await, Err(401));
    let masters = json!({"stringData": {"usage-bootstrap-authentication": "true", "auth-extra-groups": "system:masters"}});
    c.merge(&uri, &masters).await;
    assert_eq!(who(&c, TOKEN).await, Err(401));
    c.delete(&uri).await;
    assert_eq!(who(&c, TOKEN).await, Err(401));
}

/// A token of the default account bound to `of`, and the answer to it.
async fn bound(c: &Cluster, of: Value) -> Answer {
    let asked = json!({"spec": {"boundObjectRef": of}});
    let uri = "/api/v1/namespaces/default/serviceaccounts/default/token";
    c.post(uri, &asked).await
}

#[tokio::test]
async fn a_token_dies_with_what_it_is_bound_to() {
    let c = cluster().await;
    with_account(&c).await;
    c.create(PODS, &pod("p")).await;
    let secret = json!({"metadata": {"name": "s"}});
    let secrets = "/api/v1/namespaces/default/secrets";
    c.create(secrets, &secret).await;
    c.create("/api/v1/nodes", &json!({"metadata": {"name": "n"}}))
        .await;
    for (kind, uri, name, again) in [
        ("Pod", PODS, "p", pod("p")),
        ("Secret", secrets, "s", secret),
        (
            "Node",
            "/api/v1/nodes",
            "n",
            json!({"metadata": {"name": "n"}}),
        ),
    ] {
        let of = json!({"kind": kind, "apiVersion": "v1", "name": name});
        let issued = bound(&c, of).await;
        assert_eq!(issued.code, 201, "{}", issued.body);
        let token = issued.body["status"]["token"].as_str().unwrap();
        let user = who(&c, token).await.unwrap();
        assert_eq!(user["username"], "system:serviceaccount:default:default");
        if kind != "Secret" {
            let noted = format!("authentication.kubernetes.io/{}-name", kind.to_lowercase());
            assert_eq!(user["extra"][&noted], json!([name]));
        }
        assert_eq!(c.delete(&format!("{uri}/{name}")).await.code, 200);
        assert_eq!(who(&c, token).await, Err(401), "{kind}");
        c.create(uri, &again).await;
        assert_eq!(who(&c, token).await, Err(401), "another {kind} of the name");
    }
    let missing = bound(&c, json!({"kind": "Pod", "apiVersion": "v1", "name": "x"})).await;
    assert_eq!(missing.code, 404);
    let odd = bound(
        &c,
        json!({"kind": "Job", "apiVersion": "batch/v1", "name": "x"}),
    )
    .await;
    assert_eq!(odd.code, 400);
    let other = json!({"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": "another"});
    assert_eq!(bound(&c, other).await.code, 409);
}
