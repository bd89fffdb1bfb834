//! What tests of this crate share: a server that says what a test wants it to, and counts writes; objects.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use client::Client;
use http::{Method, Request, Response, StatusCode};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::client::Body;
use serde_json::{Value, json};

/// A list as servers answer it.
pub(crate) fn list(items: Value) -> Value {
    json!({"metadata": {"resourceVersion": "5"}, "items": items})
}

/// What servers answer of an object that is not there.
pub(crate) fn missing() -> Value {
    json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": "not found"})
}

/// A server that answers reads with what `answer` says of the path and of whether it is a watch's (a Status with its
/// code), else with an empty list. Watches tell nothing; writes change nothing and are counted.
pub(crate) fn stand_in(
    answer: impl Fn(&str, bool) -> Option<Value> + Clone + Send + 'static,
) -> (Client, Arc<AtomicU32>) {
    let writes = Arc::new(AtomicU32::new(0));
    let written = Arc::clone(&writes);
    let service = tower::service_fn(move |request: Request<Body>| {
        let watches = request.uri().query().is_some_and(|q| q.contains("watch="));
        let body = if request.method() == Method::GET {
            answer(request.uri().path(), watches).unwrap_or_else(|| list(json!([])))
        } else {
            written.fetch_add(1, Ordering::Relaxed);
            json!({"metadata": {}})
        };
        async move {
            if watches {
                std::future::pending::<()>().await;
            }
            let mut response = Response::new(body.to_string());
            if body["kind"] == "Status"
                && let Some(code) = body["code"].as_u64()
            {
                *response.status_mut() = StatusCode::from_u16(code.try_into().unwrap()).unwrap();
            }
            Ok::<_, Infallible>(response)
        }
    });
    (client::in_process(service), writes)
}

/// A volume of a size, with more in its specification.
pub(crate) fn pv(name: &str, size: &str, extra: Value) -> PersistentVolume {
    let mut volume = json!({
        "metadata": {"name": name, "labels": {"disk": name}},
        "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"],
            "storageClassName": "manual", "persistentVolumeReclaimPolicy": "Retain"},
        "status": {"phase": "Available"},
    });
    for (key, value) in extra.as_object().unwrap() {
        volume["spec"][key] = value.clone();
    }
    serde_json::from_value(volume).unwrap()
}

/// A claim of 5 GiB, with more in its specification.
pub(crate) fn pvc(extra: Value) -> PersistentVolumeClaim {
    let mut claim = json!({
        "metadata": {"name": "c", "namespace": "n", "uid": "u"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "manual",
            "resources": {"requests": {"storage": "5Gi"}}},
    });
    for (key, value) in extra.as_object().unwrap() {
        claim["spec"][key] = value.clone();
    }
    serde_json::from_value(claim).unwrap()
}
