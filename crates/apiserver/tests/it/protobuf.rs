//! Answers in protobuf: the form that Go controllers and node agents ask for first.

use codec::protobuf::to_json;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::custom::{TABS, define, definition, version};
use crate::harness::*;

const PACKED: &str = "application/vnd.kubernetes.protobuf";

async fn ask(
    c: &Cluster,
    method: &str,
    uri: &str,
    accept: &str,
    body: &Value,
) -> (u16, String, Vec<u8>) {
    let bytes = if body.is_null() {
        Vec::new()
    } else {
        serde_json::to_vec(body).unwrap()
    };
    let request = http::Request::builder()
        .method(method)
        .uri(uri)
        .header("accept", accept)
        .header("content-type", "application/json")
        .body(bytes)
        .unwrap();
    let (parts, body) = c.raw(request).await.into_parts();
    let media = parts.headers["content-type"].to_str().unwrap().to_owned();
    let bytes = body.collect().await.unwrap().to_bytes().to_vec();
    (parts.status.as_u16(), media, bytes)
}

#[tokio::test]
async fn objects_lists_and_failures_come_packed() {
    let c = cluster().await;
    let (code, media, body) = ask(&c, "POST", MAPS, PACKED, &config_map("a")).await;
    assert_eq!((code, media.as_str()), (201, PACKED));
    let made = to_json(&body).unwrap();
    assert_eq!(
        (&made["kind"], &made["data"]["a"]),
        (&json!("ConfigMap"), &json!("b"))
    );
    assert!(made["metadata"]["resourceVersion"].is_string());
    let plain = c.get(&format!("{MAPS}/a")).await.body;
    let (_, _, body) = ask(
        &c,
        "GET",
        &format!("{MAPS}/a"),
        &format!("{PACKED},application/json"),
        &Value::Null,
    )
    .await;
    assert_eq!(to_json(&body).unwrap(), plain);

    let (_, media, body) = ask(&c, "GET", MAPS, PACKED, &Value::Null).await;
    let list = to_json(&body).unwrap();
    assert_eq!(
        (media.as_str(), &list["kind"]),
        (PACKED, &json!("ConfigMapList"))
    );
    assert_eq!(list["items"][0]["data"]["a"], "b");
    assert_eq!(list["metadata"], c.get(MAPS).await.body["metadata"]);

    let (code, media, body) = ask(&c, "GET", &format!("{MAPS}/none"), PACKED, &Value::Null).await;
    let status = to_json(&body).unwrap();
    assert_eq!((code, media.as_str()), (404, PACKED));
    assert_eq!(status["message"], "configmaps \"none\" not found");
    assert_eq!(status["details"]["kind"], "configmaps");

    let (_, media, body) = ask(&c, "GET", "/api/v1", PACKED, &Value::Null).await;
    assert_eq!(
        (media.as_str(), &to_json(&body).unwrap()["kind"]),
        (PACKED, &json!("APIResourceList"))
    );
    let (_, media, _) = ask(&c, "GET", "/version", PACKED, &Value::Null).await;
    assert_eq!(media, "application/json");
}

#[tokio::test]
async fn tables_are_never_packed_but_metadata_is() {
    let c = cluster().await;
    c.create(MAPS, &config_map("a")).await;
    let table = format!("{PACKED};as=Table;v=v1;g=meta.k8s.io");
    let (code, _, _) = ask(&c, "GET", MAPS, &table, &Value::Null).await;
    assert_eq!(code, 406);
    let (_, media, _) = ask(
        &c,
        "GET",
        MAPS,
        &format!("{table},application/json"),
        &Value::Null,
    )
    .await;
    assert_eq!(media, "application/json");
    let partial = format!("{PACKED};as=PartialObjectMetadataList;v=v1;g=meta.k8s.io");
    let (_, _, body) = ask(&c, "GET", MAPS, &partial, &Value::Null).await;
    let list = to_json(&body).unwrap();
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!(list["items"][0]["metadata"]["name"], "a");
    let beta = format!("{PACKED};as=PartialObjectMetadataList;v=v1beta1;g=meta.k8s.io");
    let (_, _, body) = ask(&c, "GET", MAPS, &beta, &Value::Null).await;
    assert_eq!(to_json(&body).unwrap()["items"][0]["metadata"]["name"], "a");
}

#[tokio::test]
async fn custom_resources_are_packed_as_metadata_only() {
    let c = cluster().await;
    define(&c, &definition(&[version("v1", true)])).await;
    let (code, media, body) = ask(&c, "GET", TABS, PACKED, &Value::Null).await;
    assert_eq!((code, media.as_str()), (406, "application/json"));
    let status: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        status["message"],
        "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"
    );
    let partial = format!("{PACKED};as=PartialObjectMetadataList;v=v1;g=meta.k8s.io");
    let (code, media, _) = ask(&c, "GET", TABS, &partial, &Value::Null).await;
    assert_eq!((code, media.as_str()), (200, PACKED));
}

/// Takes the next frame of a packed watch: its type, and its object.
fn frame(bytes: &mut Vec<u8>) -> Option<(String, Value)> {
    let length = u32::from_be_bytes(bytes.get(..4)?.try_into().unwrap()) as usize;
    let whole: Vec<u8> = bytes.get(4..4 + length)?.to_vec();
    bytes.drain(..4 + length);
    let kind_end = 2 + whole[1] as usize;
    let kind = String::from_utf8(whole[2..kind_end].to_vec()).unwrap();
    let start = whole.windows(4).position(|w| w == b"k8s\0").unwrap();
    Some((kind, to_json(&whole[start..]).unwrap()))
}

#[tokio::test]
async fn watches_send_frames() {
    let c = cluster().await;
    c.create(MAPS, &config_map("a")).await;
    let uri = format!(
        "{MAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1"
    );
    let (code, media, mut body) = ask(&c, "GET", &uri, PACKED, &Value::Null).await;
    assert_eq!(code, 200);
    assert_eq!(media, "application/vnd.kubernetes.protobuf;stream=watch");
    let (kind, object) = frame(&mut body).unwrap();
    assert_eq!(
        (kind.as_str(), &object["metadata"]["name"]),
        ("ADDED", &json!("a"))
    );
    let (kind, object) = frame(&mut body).unwrap();
    assert_eq!(
        (kind.as_str(), &object["kind"]),
        ("BOOKMARK", &json!("ConfigMap"))
    );
    assert_eq!(
        object["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );

    let (code, _, body) = ask(&c, "GET", &uri, "application/yaml", &Value::Null).await;
    assert_eq!(code, 406);
    assert!(String::from_utf8_lossy(&body).contains(
        "only the following media types are accepted: application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"
    ));
}
