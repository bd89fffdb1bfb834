//! Whatever bytes come, the answer is the client's fault, never the server's.

use http::Request;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::harness::*;

/// Requests of each sort.
const ROUNDS: usize = 150;
/// Repeats a failure when set to the seed that it printed.
const SEED: &str = "GARBAGE_SEED";

fn seed() -> u64 {
    let given = std::env::var(SEED).ok().and_then(|s| s.parse().ok());
    given.unwrap_or_else(|| rand::rng().random())
}

/// A valid document with some bytes changed, taken out or doubled; sometimes nothing but noise.
fn garbled(rng: &mut StdRng, valid: &[u8]) -> Vec<u8> {
    if rng.random_bool(0.1) {
        let length = rng.random_range(0..200);
        return (0..length).map(|_| rng.random()).collect();
    }
    let mut bytes = valid.to_vec();
    for _ in 0..rng.random_range(1..6) {
        if bytes.is_empty() {
            break;
        }
        let at = rng.random_range(0..bytes.len());
        match rng.random_range(0..5) {
            0 => bytes[at] = rng.random(),
            1 => bytes[at] = b"{}[]\",:0-~\\"[rng.random_range(0..11)],
            2 => drop(bytes.remove(at)),
            3 => bytes.truncate(at),
            _ => {
                let end = rng.random_range(at..bytes.len()).min(at + 32);
                let piece = bytes[at..end].to_vec();
                let to = rng.random_range(0..=bytes.len());
                bytes.splice(to..to, piece);
            }
        }
    }
    bytes
}

async fn blame(c: &Cluster, method: &str, uri: &str, media: &str, body: Vec<u8>, seed: u64) {
    let Ok(request) = Request::builder()
        .method(method)
        .uri(uri)
        .header("content-type", media)
        .body(body.clone())
    else {
        return;
    };
    let response = c.raw(request).await;
    let code = response.status().as_u16();
    // A field that apply's types do not know is an internal error upstream, too.
    if code == 500 && media.contains("apply") {
        let why = read(response).await.body["message"].clone();
        let why = why.as_str().unwrap_or_default();
        if why.starts_with("failed to create typed patch object") {
            return;
        }
    }
    let body = String::from_utf8_lossy(&body);
    assert!(
        code < 500,
        "{code} for {method} {uri} {media} {body:?} ({SEED}={seed})"
    );
}

#[tokio::test]
async fn bodies() {
    let (c, seed) = (cluster().await, seed());
    let mut rng = StdRng::seed_from_u64(seed);
    with_account(&c).await;
    let mut pod = pod("p");
    pod["metadata"]["labels"] = json!({"a": "b"});
    pod["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "100m", "memory": "1Gi"}});
    let mut typed = pod.clone();
    typed["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    let packed = codec::protobuf::encode(&typed).unwrap();
    let yaml = "kind: Pod\napiVersion: v1\nmetadata: &m {name: p, labels: {a: b}}\nspec:\n  containers:\n  - name: c\n    image: busybox\n";
    for _ in 0..ROUNDS {
        let forms = [
            ("application/json", pod.to_string().into_bytes()),
            ("application/yaml", yaml.as_bytes().to_vec()),
            ("application/vnd.kubernetes.protobuf", packed.clone()),
        ];
        for (media, valid) in forms {
            let body = garbled(&mut rng, &valid);
            let uri = format!("{PODS}?dryRun=All&fieldValidation=Strict");
            blame(&c, "POST", &uri, media, body, seed).await;
        }
    }
}

#[tokio::test]
async fn patches() {
    let (c, seed) = (cluster().await, seed());
    let mut rng = StdRng::seed_from_u64(seed);
    let deployment = json!({"metadata": {"name": "d", "labels": {"a": "b"}}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i", "env": [{"name": "A", "value": "1"}]}]}}}});
    let all = "/apis/apps/v1/namespaces/default/deployments";
    c.create(all, &deployment).await;
    let containers =
        json!([{"name": "c", "$patch": "merge", "env": [{"name": "A", "$patch": "delete"}]}]);
    let strategic = json!({"metadata": {"$retainKeys": ["name"], "$deleteFromPrimitiveList/finalizers": ["x"]},
        "spec": {"template": {"spec": {"$setElementOrder/containers": [{"name": "c"}], "containers": containers}}}});
    let json_patch = json!([{"op": "test", "path": "/metadata/name", "value": "d"}, {"op": "copy", "from": "/spec", "path": "/metadata/annotations"},
        {"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "j"}, {"op": "remove", "path": "/metadata/labels/a~1b"}]);
    let mut applied = deployment.clone();
    applied["kind"] = "Deployment".into();
    applied["apiVersion"] = "apps/v1".into();
    let sorts: [(&str, &Value); 4] = [
        ("application/strategic-merge-patch+json", &strategic),
        ("application/json-patch+json", &json_patch),
        ("application/merge-patch+json", &strategic),
        ("application/apply-patch+yaml", &applied),
    ];
    for _ in 0..ROUNDS {
        for (media, valid) in sorts {
            let body = garbled(&mut rng, valid.to_string().as_bytes());
            let uri = format!("{all}/d?dryRun=All&fieldManager=m&force=true");
            blame(
                &c,
                "PATCH",
                if media.contains("apply") {
                    &uri
                } else {
                    &uri[..uri.len() - 11]
                },
                media,
                body,
                seed,
            )
            .await;
        }
    }
}

#[tokio::test]
async fn queries() {
    let (c, seed) = (cluster().await, seed());
    let mut rng = StdRng::seed_from_u64(seed);
    let token = "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MTIsInN0YXJ0IjoiYSJ9";
    let valid = [
        "labelSelector=a%20in%20(b,c),!d,e!%3Df,g%3E5".to_owned(),
        "fieldSelector=metadata.name%3Da,metadata.namespace!%3Db".to_owned(),
        format!("limit=1&continue={token}"),
        "resourceVersion=5&resourceVersionMatch=NotOlderThan".to_owned(),
        "watch=true&timeoutSeconds=1&sendInitialEvents=true".to_owned(),
    ];
    for _ in 0..ROUNDS {
        for query in &valid {
            let noise = garbled(&mut rng, query.as_bytes());
            let text: String = noise
                .iter()
                .filter(|b| b.is_ascii_graphic() && **b != b'#')
                .map(|b| *b as char)
                .collect();
            if text.contains("resourceVersion=") {
                // A version that is not there yet is waited for, which is a 504.
                continue;
            }
            blame(&c, "GET", &format!("{MAPS}?{text}"), "", Vec::new(), seed).await;
        }
    }
}
