//! Certificates that are asked for, bootstrap tokens, and the accounts of pods.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Method;
use serde_json::{Value, json};

use crate::apps::rig::{Rig, name, text};

const REQUESTS: &str = "certificates.k8s.io/v1/certificatesigningrequests";
const ACCOUNTS: &str = "v1/serviceaccounts";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";

/// A request in PEM, as the API takes it.
fn pem(user: &str, group: &str) -> anyhow::Result<String> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let subject = &mut params.distinguished_name;
    subject.push(rcgen::DnType::CommonName, user);
    subject.push(rcgen::DnType::OrganizationName, group);
    Ok(STANDARD.encode(params.serialize_request(&key)?.pem()?))
}

fn request(name: &str, signer: &str, pem: &str) -> Value {
    json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": name, "labels": {"test": "yes"}},
        "spec": {"request": pem, "signerName": signer, "expirationSeconds": 3600,
            "username": "somebody else", "usages": ["client auth", "digital signature"]}})
}

fn says<'a>(csr: &'a Value, kind: &str) -> Option<&'a Value> {
    let mut all = csr["status"]["conditions"].as_array()?.iter();
    all.find(|c| c["type"] == kind && c["status"] == "True")
}

fn approved() -> Value {
    json!({"status": {"conditions": [{"type": "Approved", "status": "True",
        "reason": "E2E", "message": "Set from an e2e test"}]}})
}

/// Conformance: CertificateSigningRequest API
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_asked_for_approved_and_signed() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    for path in [
        "/apis",
        "/apis/certificates.k8s.io",
        "/apis/certificates.k8s.io/v1",
    ] {
        let found = rig.raw(Method::GET, path, Value::Null).await?.to_string();
        let wanted = if path.ends_with("v1") {
            "certificatesigningrequests/approval"
        } else {
            "certificates.k8s.io"
        };
        assert!(found.contains(wanted), "{path}");
    }
    let made = rig
        .create(REQUESTS, request("jane", CLIENT, &pem("jane", "dev")?))
        .await?;
    // Who asks is who is authenticated, whatever the request says.
    assert_eq!(text(&made, "/spec/username"), "testkit");
    let read = rig.get(REQUESTS, "jane").await?;
    assert_eq!(
        (
            text(&read, "/spec/signerName"),
            &read["spec"]["expirationSeconds"]
        ),
        (CLIENT, &json!(3600))
    );
    assert_eq!(rig.list(REQUESTS, "test=yes").await?.len(), 1);
    let patched = rig
        .merge(
            REQUESTS,
            "jane",
            json!({"metadata": {"annotations": {"patched": "true"}}}),
        )
        .await?;
    assert_eq!(text(&patched, "/metadata/annotations/patched"), "true");
    let mut update = patched;
    update["metadata"]["annotations"]["updated"] = json!("true");
    let updated = rig.replace(REQUESTS, "jane", update).await?;
    assert_eq!(text(&updated, "/metadata/annotations/updated"), "true");
    let seen = rig.happened(REQUESTS, &made).await?;
    assert!(
        seen.iter().any(
            |(kind, c)| kind == "MODIFIED" && c["metadata"]["annotations"]["updated"] == "true"
        )
    );

    assert!(rig.get(REQUESTS, "jane/approval").await?["status"]["conditions"].is_null());
    rig.merge(REQUESTS, "jane/approval", approved()).await?;
    let signed = rig
        .until(REQUESTS, "jane", "to be signed", |c| {
            c["status"]["certificate"].is_string()
        })
        .await?;
    assert_eq!(
        says(&signed, "Approved").map(|c| text(c, "/reason")),
        Some("E2E")
    );
    let certificate = STANDARD.decode(text(&signed, "/status/certificate"))?;
    assert!(certificate.starts_with(b"-----BEGIN CERTIFICATE-----"));
    let patch = json!({"metadata": {"annotations": {"patchedstatus": "true"}}});
    let status = rig.merge(REQUESTS, "jane/status", patch).await?;
    assert_eq!(text(&status, "/metadata/annotations/patchedstatus"), "true");

    // What a signer refuses fails, and what nobody signs here stays.
    let wrong = json!(["server auth"]);
    let mut refused = request("refused", CLIENT, &pem("jane", "dev")?);
    refused["spec"]["usages"] = wrong;
    rig.create(REQUESTS, refused).await?;
    rig.merge(REQUESTS, "refused/approval", approved()).await?;
    let failed = rig
        .until(REQUESTS, "refused", "to fail", |c| {
            says(c, "Failed").is_some()
        })
        .await?;
    let why = says(&failed, "Failed").unwrap_or(&Value::Null);
    assert_eq!(text(why, "/reason"), "SignerValidationFailure");
    assert_eq!(
        text(why, "/message"),
        "invalid usage for client certificate: server auth"
    );
    rig.create(
        REQUESTS,
        request("other", "example.com/signer", &pem("jane", "dev")?),
    )
    .await?;

    rig.delete(REQUESTS, "jane", Value::Null).await?;
    rig.until_gone(REQUESTS, "jane").await?;
    rig.delete_all(REQUESTS, "test=yes").await?;
    rig.until_all(REQUESTS, "test=yes", "to be gone", <[Value]>::is_empty)
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubelets_get_theirs_unasked_and_masters_are_not_made() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let kubelet = "kubernetes.io/kube-apiserver-client-kubelet";
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "join"},
        "subjects": [{"kind": "Group", "name": "joiners", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            "apiGroup": "rbac.authorization.k8s.io"}});
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    rig.raw(Method::POST, path, role).await?;
    let mut node = request("node", kubelet, &pem("system:node:n1", "system:nodes")?);
    node["spec"]["usages"] = json!(["client auth", "digital signature", "key encipherment"]);
    let create = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "ask"},
        "subjects": [{"kind": "Group", "name": "joiners", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "system:node-bootstrapper",
            "apiGroup": "rbac.authorization.k8s.io"}});
    rig.raw(Method::POST, path, create).await?;
    let joiner = rig.cluster.client_of("joiner", &["joiners"]);
    let body = serde_json::to_vec(&node)?;
    testkit::eventually("the request to be taken", || async {
        let request =
            http::Request::post("/apis/certificates.k8s.io/v1/certificatesigningrequests")
                .header("content-type", "application/json")
                .body(body.clone())?;
        let made: kube::Result<Value> = joiner.request(request).await;
        Ok(made.ok())
    })
    .await?;
    let signed = rig
        .until(REQUESTS, "node", "to be signed", |c| {
            c["status"]["certificate"].is_string()
        })
        .await?;
    let why = says(&signed, "Approved").unwrap_or(&Value::Null);
    assert_eq!(text(why, "/reason"), "AutoApproved");
    assert_eq!(text(&signed, "/spec/username"), "joiner");

    let masters = request("masters", CLIENT, &pem("jane", "system:masters")?);
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let refused = rig.raw(Method::POST, path, masters).await.unwrap_err();
    assert!(refused.to_string().contains(
        "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"
    ));
    // Approving takes the verb on the signer, not only the subresource.
    let asked = rig
        .create(REQUESTS, request("jane", CLIENT, &pem("jane", "dev")?))
        .await?;
    let rules = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "half"},
        "rules": [{"apiGroups": ["certificates.k8s.io"], "verbs": ["update", "patch", "get"],
            "resources": ["certificatesigningrequests", "certificatesigningrequests/approval"]}]});
    rig.raw(
        Method::POST,
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
        rules,
    )
    .await?;
    let bind = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "half"},
        "subjects": [{"kind": "User", "name": "half", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "half", "apiGroup": "rbac.authorization.k8s.io"}});
    rig.raw(
        Method::POST,
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        bind,
    )
    .await?;
    let half = rig.cluster.client_of("half", &[]);
    let said = testkit::eventually("the approval to be refused by admission", || async {
        let path = format!("{path}/{}/approval", name(&asked));
        let request = http::Request::patch(path)
            .header("content-type", "application/merge-patch+json")
            .body(approved().to_string().into_bytes())?;
        let answer: kube::Result<Value> = half.request(request).await;
        let said = answer.err().map(|e| e.to_string()).unwrap_or_default();
        Ok(said
            .contains("user not permitted to approve")
            .then_some(said))
    })
    .await?;
    assert!(said.contains(CLIENT), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bootstrap_tokens_sign_and_end() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let token = |id: &str, expiration: &str| {
        json!({"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
            "metadata": {"name": format!("bootstrap-token-{id}")},
            "stringData": {"token-id": id, "token-secret": "0123456789abcdef",
                "expiration": expiration, "usage-bootstrap-signing": "true"}})
    };
    let info = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cluster-info"},
        "data": {"kubeconfig": "apiVersion: v1\nkind: Config\n"}});
    rig.raw(
        Method::POST,
        "/api/v1/namespaces/kube-public/configmaps",
        info,
    )
    .await?;
    for (id, expiration) in [("abcdef", ""), ("012345", "2020-01-01T00:00:00Z")] {
        let path = "/api/v1/namespaces/kube-system/secrets";
        rig.raw(Method::POST, path, token(id, expiration)).await?;
    }
    let map = testkit::eventually("the description to be signed", || async {
        let path = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
        let map = rig.raw(Method::GET, path, Value::Null).await?;
        Ok(map["data"]["jws-kubeconfig-abcdef"]
            .is_string()
            .then_some(map))
    })
    .await?;
    assert!(text(&map, "/data/jws-kubeconfig-abcdef").contains(".."));
    testkit::eventually("the old token to go", || async {
        let path = "/api/v1/namespaces/kube-system/secrets/bootstrap-token-012345";
        let found = rig.raw(Method::GET, path, Value::Null).await;
        Ok(client::write::tolerate_missing(found)?
            .is_none()
            .then_some(()))
    })
    .await
}

/// Conformance: RootCA ConfigMap test
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_authority_is_in_every_namespace_and_comes_back() -> anyhow::Result<()> {
    const MAPS: &str = "v1/configmaps";
    const MAP: &str = "kube-root-ca.crt";
    let rig = Rig::start(&[]).await?;
    let right = |m: &Value| text(m, "/data/ca.crt").starts_with("-----BEGIN CERTIFICATE-----");
    let first = rig.until(MAPS, MAP, "to be there", right).await?;
    rig.delete(MAPS, MAP, Value::Null).await?;
    rig.until(MAPS, MAP, "to come back", |m| {
        right(m) && m["metadata"]["uid"] != first["metadata"]["uid"]
    })
    .await?;
    client::write::retry_on_conflict(|| async {
        let mut map = rig.get(MAPS, MAP).await?;
        map["data"] = json!({"ca.crt": ""});
        rig.replace(MAPS, MAP, map).await
    })
    .await?;
    rig.until(MAPS, MAP, "to be put right", |m| m["data"] == first["data"])
        .await?;
    Ok(())
}

fn account(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": name, "labels": {"test": "yes"}}})
}

/// Conformance: ServiceAccount lifecycle test
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_lives() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let made = rig.create(ACCOUNTS, account("bot")).await?;
    let patched = rig
        .strategic(
            ACCOUNTS,
            "bot",
            json!({"automountServiceAccountToken": false}),
        )
        .await?;
    assert_eq!(patched["automountServiceAccountToken"], false);
    let all = rig
        .raw(
            Method::GET,
            "/api/v1/serviceaccounts?labelSelector=test%3Dyes",
            Value::Null,
        )
        .await?;
    assert_eq!(all["items"].as_array().map(Vec::len), Some(1));
    rig.delete_all(ACCOUNTS, "test=yes").await?;
    rig.until_gone(ACCOUNTS, "bot").await?;
    let seen: Vec<String> = rig
        .happened(ACCOUNTS, &made)
        .await?
        .into_iter()
        .map(|(k, _)| k)
        .collect();
    assert_eq!(seen, ["MODIFIED", "DELETED"]);
    Ok(())
}

/// Conformance: ServiceAccount, update a ServiceAccount
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_is_updated() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    rig.create(ACCOUNTS, account("bot")).await?;
    client::write::retry_on_conflict(|| async {
        let mut account = rig.get(ACCOUNTS, "bot").await?;
        account["automountServiceAccountToken"] = json!(true);
        rig.replace(ACCOUNTS, "bot", account).await
    })
    .await?;
    assert_eq!(
        rig.get(ACCOUNTS, "bot").await?["automountServiceAccountToken"],
        true
    );
    Ok(())
}

/// Conformance: ServiceAccount, create and review token
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_made_and_reviewed() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let account = rig.create(ACCOUNTS, account("bot")).await?;
    let path = "/api/v1/namespaces/default/serviceaccounts/bot/token";
    let asked = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"expirationSeconds": 3600}});
    let token = rig.raw(Method::POST, path, asked).await?;
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token["status"]["token"]}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let answer = rig.raw(Method::POST, path, review).await?;
    let status = &answer["status"];
    assert_eq!(status["authenticated"], true, "{answer}");
    assert!(status["error"].is_null() || status["error"] == "");
    assert_eq!(
        text(status, "/user/username"),
        "system:serviceaccount:default:bot"
    );
    assert_eq!(status["user"]["uid"], account["metadata"]["uid"]);
    let groups: Vec<&str> = status["user"]["groups"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for group in [
        "system:serviceaccounts",
        "system:serviceaccounts:default",
        "system:authenticated",
    ] {
        assert!(groups.contains(&group), "{groups:?}");
    }
    assert_eq!(status["audiences"].as_array().map(Vec::len), Some(1));
    Ok(())
}

/// Conformance: SubjectReview, API Operations
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permissions_are_reviewed() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    rig.create(ACCOUNTS, account("bot")).await?;
    let user = "system:serviceaccount:default:bot";
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "bot"}, "subjects": [{"kind": "ServiceAccount", "name": "bot", "namespace": "default"}],
        "roleRef": {"kind": "ClusterRole", "name": "view", "apiGroup": "rbac.authorization.k8s.io"}});
    let wanted = json!({"namespace": "default", "verb": "list", "resource": "configmaps"});
    let reviews = BTreeMap::from([
        (
            "SubjectAccessReview",
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        ),
        (
            "LocalSubjectAccessReview",
            "/apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews",
        ),
    ]);
    let allowed = async |kind: &str, path: &str| {
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": kind,
            "metadata": {"namespace": if kind.starts_with("Local") { "default" } else { "" }},
            "spec": {"user": user, "resourceAttributes": wanted}});
        let answer = rig.raw(Method::POST, path, review).await?;
        anyhow::Ok(answer["status"]["allowed"] == true)
    };
    for (kind, path) in &reviews {
        assert!(!allowed(kind, path).await?, "{kind}");
    }
    rig.create("rbac.authorization.k8s.io/v1/rolebindings", role)
        .await?;
    for (kind, path) in &reviews {
        testkit::eventually(&format!("{kind} to allow it"), || async {
            Ok(allowed(kind, path).await?.then_some(()))
        })
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_may_hold_a_token_that_lasts() -> anyhow::Result<()> {
    const SECRETS: &str = "v1/secrets";
    let rig = Rig::start(&[]).await?;
    rig.create(ACCOUNTS, account("bot")).await?;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
        "metadata": {"name": "bot", "annotations": {"kubernetes.io/service-account.name": "bot"}}});
    rig.create(SECRETS, secret).await?;
    let filled = rig
        .until(SECRETS, "bot", "to hold a token", |s| {
            s["data"]["token"].is_string()
        })
        .await?;
    assert!(
        STANDARD
            .decode(text(&filled, "/data/ca.crt"))?
            .starts_with(b"-----BEGIN")
    );
    assert_eq!(
        STANDARD.decode(text(&filled, "/data/namespace"))?,
        b"default"
    );
    let token = String::from_utf8(STANDARD.decode(text(&filled, "/data/token"))?)?;
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let answer = rig.raw(Method::POST, path, review.clone()).await?;
    assert_eq!(
        text(&answer, "/status/user/username"),
        "system:serviceaccount:default:bot"
    );
    let noted = |s: &Value| {
        let label = &s["metadata"]["labels"]["kubernetes.io/legacy-token-last-used"];
        label
            .as_str()
            .is_some_and(|day| day.len() == "2026-01-01".len())
    };
    rig.until(SECRETS, "bot", "to say when it was used", noted)
        .await?;
    let mark = |value: Value| json!({"metadata": {"labels": {"kubernetes.io/legacy-token-invalid-since": value}}});
    rig.merge(SECRETS, "bot", mark(json!("2026-01-01"))).await?;
    let answer = rig.raw(Method::POST, path, review.clone()).await?;
    assert_ne!(answer["status"]["authenticated"], true, "marked invalid");
    rig.merge(SECRETS, "bot", mark(Value::Null)).await?;
    let answer = rig.raw(Method::POST, path, review.clone()).await?;
    assert_eq!(answer["status"]["authenticated"], true);
    // One that is asked for anew takes the place of the old one.
    rig.merge(SECRETS, "bot", json!({"data": {"token": null}}))
        .await?;
    let anew = |s: &Value| {
        s["data"]["token"]
            .as_str()
            .is_some_and(|t| t != text(&filled, "/data/token"))
    };
    rig.until(SECRETS, "bot", "to hold another token", anew)
        .await?;
    let answer = rig.raw(Method::POST, path, review.clone()).await?;
    assert_ne!(answer["status"]["authenticated"], true, "replaced");
    // It goes with its account, and its token with it.
    rig.delete(ACCOUNTS, "bot", Value::Null).await?;
    rig.until_gone(SECRETS, "bot").await?;
    let answer = rig.raw(Method::POST, path, review).await?;
    assert_ne!(answer["status"]["authenticated"], true);
    Ok(())
}

/// Conformance: Service account tokens auto mount optionally
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_mounted_unless_somebody_opts_out() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    for (name, mounts) in [("mount", true), ("nomount", false)] {
        let mut account = account(name);
        account["automountServiceAccountToken"] = json!(mounts);
        rig.create(ACCOUNTS, account).await?;
    }
    let default = "default";
    for (account, spec, expected) in [
        (default, None, true),
        ("mount", None, true),
        ("nomount", None, false),
        (default, Some(true), true),
        ("mount", Some(true), true),
        ("nomount", Some(true), true),
        (default, Some(false), false),
        ("mount", Some(false), false),
        ("nomount", Some(false), false),
    ] {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "p-"},
            "spec": {"serviceAccountName": account, "containers": [{"name": "c", "image": "i"}]}});
        if let Some(spec) = spec {
            pod["spec"]["automountServiceAccountToken"] = json!(spec);
        }
        let made = rig.create("v1/pods", pod).await?;
        let mounts = made["spec"]["containers"][0]["volumeMounts"].as_array();
        let path = "/var/run/secrets/kubernetes.io/serviceaccount";
        let mounted = mounts.is_some_and(|all| all.iter().any(|m| m["mountPath"] == path));
        assert_eq!(mounted, expected, "{account} {spec:?}");
    }
    Ok(())
}

/// Conformance (partly): OIDC Discovery (ServiceAccountIssuerDiscovery)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_find_out_how_tokens_are_verified() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let bot = "system:serviceaccount:default:bot";
    let client = rig.cluster.client_of(bot, &["system:serviceaccounts"]);
    let get = async |path: &str| -> anyhow::Result<Value> {
        Ok(client
            .request(http::Request::get(path).body(Vec::new())?)
            .await?)
    };
    let found = get("/.well-known/openid-configuration").await?;
    assert_eq!(
        text(&found, "/issuer"),
        "https://kubernetes.default.svc.cluster.local"
    );
    assert!(text(&found, "/jwks_uri").ends_with("/openid/v1/jwks"));
    let keys = get("/openid/v1/jwks").await?;
    assert_eq!(text(&keys, "/keys/0/use"), "sig");
    Ok(())
}
