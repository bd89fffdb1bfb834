//! What server-side apply costs: applying a Deployment, tracking an update of it, tracking a new config map.

use std::hint::black_box;
use std::time::{Duration, Instant};

use api::time::Timestamp;
use codec::apply::{Context, Reset};
use serde_json::{Value, json};

/// How often each thing is measured.
const ROUNDS: u32 = 2_000;

fn context<T>(group: &str, kind: &str, f: impl FnOnce(&Context<'_>) -> T) -> Option<T> {
    let kind = api::kind_by_gvk(group, "v1", kind)?;
    let reset = Reset::fields(&[&["status"]]);
    Some(f(&Context {
        api_version: &kind.api_version(),
        kind: &kind.kind,
        schema: kind.schema.get()?,
        subresource: "",
        reset: &reset,
        versions: &|_, _| None,
        now: Timestamp::UNIX_EPOCH,
    }))
}

/// A Deployment of one container that sets about fifty fields.
fn deployment(image: &str) -> Value {
    let env: Vec<Value> = (0..10)
        .map(|i| json!({"name": format!("E{i}"), "value": "v"}))
        .collect();
    let probe = json!({"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}, "periodSeconds": 10, "timeoutSeconds": 1});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "n", "labels": {"a": "b", "c": "d"}},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {
            "containers": [{"name": "c", "image": image, "imagePullPolicy": "Always", "command": ["x"], "args": ["y"], "env": env,
                "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 443, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}},
                "livenessProbe": probe, "readinessProbe": probe, "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                "securityContext": {"runAsUser": 1, "capabilities": {"drop": ["ALL"]}}, "workingDir": "/", "tty": false}],
            "volumes": [{"name": "v", "emptyDir": {}}]}}}})
}

fn time(what: &str, mut f: impl FnMut()) {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed()
        })
        .collect();
    times.sort();
    println!("{what}: {:?}", times[times.len() / 2]);
}

fn main() {
    let (one, two) = (deployment("i"), deployment("j"));
    let apply = |live: Option<&Value>, config: &Value| {
        context("apps", "Deployment", |c| c.apply(live, config, "m", true)).and_then(Result::ok)
    };
    let Some(live) = apply(None, &one) else {
        return;
    };
    time("apply a new deployment", || {
        drop(black_box(apply(None, &one)))
    });
    time("apply it again", || {
        drop(black_box(apply(Some(&live), &one)))
    });
    time("apply it with another image", || {
        drop(black_box(apply(Some(&live), &two)))
    });
    let mut many = deployment("i");
    let container = &many["spec"]["template"]["spec"]["containers"][0];
    let containers: Vec<Value> = (0..50)
        .map(|i| {
            let mut c = container.clone();
            c["name"] = format!("c{i}").into();
            c
        })
        .collect();
    many["spec"]["template"]["spec"]["containers"] = containers.into();
    let wide = apply(None, &many);
    time("apply a deployment of 50 containers again", || {
        drop(black_box(apply(wide.as_ref(), &many)));
    });
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = 4.into();
    time("update a deployment", || {
        let mut new = scaled.clone();
        context("apps", "Deployment", |c| {
            c.track(Some(&live), &mut new, "u")
        });
        black_box(new);
    });
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "n"}, "data": {"a": "x".repeat(1000)}});
    let text = map.to_string();
    time("parse a config map", || {
        drop(black_box(serde_json::from_str::<Value>(&text)))
    });
    time("create a config map", || {
        let mut new = map.clone();
        context("", "ConfigMap", |c| c.track(None, &mut new, "u"));
        black_box(new);
    });
}
