//! Who may do what, by what is committed rather than by what has got about.

use http::Request;
use serde_json::{Value, json};
use tower::Service;

use crate::harness::*;

async fn code(transport: &apiserver::InProcess, method: &str, uri: &str, body: &Value) -> u16 {
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header("content-type", "application/merge-patch+json")
        .body(apiserver::http::body::full(body.to_string()))
        .unwrap();
    let answer = transport.clone().call(request).await.unwrap();
    answer.status().as_u16()
}

#[tokio::test]
async fn a_node_may_act_on_a_pod_the_moment_it_is_bound() {
    let c = cluster().await;
    with_account(&c).await;
    let node = c.user("system:node:n1", &["system:nodes"]);
    for n in 0..20 {
        let (name, map) = (format!("p{n}"), format!("m{n}"));
        c.create(MAPS, &config_map(&map)).await;
        let map = format!("{MAPS}/{map}");
        assert_eq!(code(&node, "GET", &map, &Value::Null).await, 403);
        let mut pod = pod(&name);
        pod["spec"]["nodeName"] = "n1".into();
        pod["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": format!("m{n}")}}]);
        c.create(PODS, &pod).await;
        // Nothing is waited for in between: an agent is as fast as the event that tells it of the pod.
        let status = json!({"status": {"phase": "Pending"}});
        let uri = format!("{PODS}/{name}/status");
        assert_eq!(code(&node, "PATCH", &uri, &status).await, 200, "{n}");
        assert_eq!(code(&node, "GET", &map, &Value::Null).await, 200, "{n}");
    }
}

#[tokio::test]
async fn a_binding_counts_the_moment_it_is_made() {
    let c = cluster().await;
    let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    for n in 0..20 {
        let (name, jane) = (format!("r{n}"), format!("jane{n}"));
        let user = c.user(&jane, &[]);
        assert_eq!(code(&user, "GET", MAPS, &Value::Null).await, 403);
        let rules = json!([{"verbs": ["list"], "apiGroups": [""], "resources": ["configmaps"]}]);
        let role = json!({"metadata": {"name": name}, "rules": rules});
        c.create(&format!("{roles}/roles"), &role).await;
        let group = "rbac.authorization.k8s.io";
        let binding = json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
            "subjects": [{"apiGroup": group, "kind": "User", "name": jane}],
        });
        c.create(&format!("{roles}/rolebindings"), &binding).await;
        assert_eq!(code(&user, "GET", MAPS, &Value::Null).await, 200, "{n}");
    }
}
