//! What is too large, too deep or too clever is refused, clearly and at once.

use std::time::{Duration, Instant};

use http::Request;
use serde_json::json;

use crate::harness::*;

async fn send(c: &Cluster, media: &str, body: Vec<u8>) -> Answer {
    let request = Request::builder()
        .method("POST")
        .uri(MAPS)
        .header("content-type", media)
        .body(body)
        .unwrap();
    read(c.raw(request).await).await
}

fn message(answer: &Answer) -> &str {
    answer.body["message"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn bodies_have_a_largest_size() {
    let c = cluster().await;
    let answer = send(&c, "application/json", vec![b' '; 3 * 1024 * 1024 + 1]).await;
    assert_eq!(
        (answer.code, &answer.body["reason"]),
        (413, &json!("RequestEntityTooLarge"))
    );
    assert_eq!(
        message(&answer),
        "Request entity too large: limit is 3145728"
    );
    let mut large = config_map("large");
    large["data"]["a"] = "x".repeat(1024 * 1024 + 1).into();
    let answer = c.post(MAPS, &large).await;
    assert_eq!(answer.code, 422, "{}", message(&answer));
}

#[tokio::test]
async fn bodies_have_a_largest_depth() {
    let c = cluster().await;
    let deep = format!("{}{}", "{\"a\":".repeat(200_000), "1");
    assert_eq!(
        send(&c, "application/json", deep.into_bytes()).await.code,
        400
    );
    let lists = "[".repeat(500_000);
    assert_eq!(
        send(&c, "application/yaml", lists.into_bytes()).await.code,
        400
    );
    c.create(MAPS, &config_map("a")).await;
    let deep = format!(
        "[{{\"op\":\"add\",\"path\":\"/data/x\",\"value\":{}",
        "[".repeat(200_000)
    );
    let request = Request::builder()
        .method("PATCH")
        .uri(format!("{MAPS}/a"))
        .header("content-type", "application/json-patch+json")
        .body(deep.into_bytes())
        .unwrap();
    assert_eq!(read(c.raw(request).await).await.code, 400);
}

/// Ten lines that would grow to billions of words.
#[tokio::test]
async fn aliases_of_yaml_cannot_multiply_without_end() {
    let c = cluster().await;
    let mut bomb = String::from(
        "kind: ConfigMap\napiVersion: v1\nmetadata: {name: a}\na0: &a0 [x,x,x,x,x,x,x,x,x,x]\n",
    );
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        bomb.push_str(&format!(
            "a{level}: &a{level} [{}]\n",
            [before.as_str(); 10].join(",")
        ));
    }
    // Billions of words would take hours.
    let patience = Duration::from_secs(60);
    let started = Instant::now();
    let answer = send(&c, "application/yaml", bomb.into_bytes()).await;
    assert_eq!(answer.code, 400, "{}", message(&answer));
    assert!(started.elapsed() < patience);
}

#[tokio::test]
async fn keys_that_occur_twice_are_told_with_their_lines() {
    let c = cluster().await;
    let text = "kind: ConfigMap\napiVersion: v1\nmetadata:\n  name: a\ndata:\n  k: \"1\"\n  k: \"2\"\nodd: 1\n";
    let ask = async |validation: &str, media: &str| {
        let (method, uri) = if media.contains("apply") {
            (
                "PATCH",
                format!("{MAPS}/a?fieldManager=m&fieldValidation={validation}"),
            )
        } else {
            (
                "POST",
                format!("{MAPS}?dryRun=All&fieldValidation={validation}"),
            )
        };
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("content-type", media);
        read(c.raw(request.body(text.into()).unwrap()).await).await
    };
    let strict = ask("Strict", "application/yaml").await;
    assert_eq!(strict.code, 400);
    assert!(
        message(&strict).ends_with("strict decoding error: yaml: unmarshal errors:\n  line 7: key \"k\" already set in map, unknown field \"odd\""),
        "{}",
        message(&strict)
    );
    let warned = ask("Warn", "application/yaml").await;
    assert_eq!((warned.code, &warned.body["data"]["k"]), (201, &json!("2")));
    let warnings: Vec<&str> = warned
        .headers
        .get_all("warning")
        .iter()
        .filter_map(|w| w.to_str().ok())
        .collect();
    assert!(
        warnings[0].contains("line 7: key \\\"k\\\" already set in map"),
        "{warnings:?}"
    );
    let applied = ask("Strict", "application/apply-patch+yaml").await;
    assert_eq!(
        (applied.code, message(&applied)),
        (
            400,
            "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  line 7: key \"k\" already set in map"
        )
    );
}

#[tokio::test]
async fn documents_need_not_be_sent_twice() {
    let c = cluster().await;
    let ask = async |uri: &str, name: &str, value: &str| {
        let request = Request::builder().uri(uri).header(name, value);
        read(c.raw(request.body(Vec::new()).unwrap()).await).await
    };
    let first = ask("/openapi/v2", "accept", "application/json").await;
    let etag = first.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(ask("/openapi/v2", "if-none-match", &etag).await.code, 304);
    c.create(MAPS, &config_map("a")).await;
    let odd = ask(&format!("{MAPS}/a"), "accept", "text/plain").await;
    assert_eq!(odd.code, 406);
    assert_eq!(odd.body["reason"], "NotAcceptable");
}
