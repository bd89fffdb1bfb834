//! Small kinds that others coordinate by: classes, leases, events, slices, templates, limits.

use serde_json::{Value, json};

use super::life::Life;
use super::world::*;

/// Conformance: IngressClass API
#[tokio::test]
async fn ingress_classes() {
    let object = json!({"spec": {"controller": "example.com/controller"}});
    Life::cluster(
        "networking.k8s.io/v1",
        "IngressClass",
        "ingressclasses",
        object,
    )
    .live()
    .await;
}

/// Conformance: Ingress API
#[tokio::test]
async fn ingresses() {
    let backend = json!({"service": {"name": "default-backend", "port": {"number": 80}}});
    let path = json!({"path": "/", "pathType": "Prefix", "backend": backend});
    let object = json!({"spec": {"defaultBackend": backend, "rules": [{"host": "foo.bar.com", "http": {"paths": [path]}}],
        "tls": [{"hosts": ["foo.bar.com"], "secretName": "secret"}]}});
    Life::namespaced("networking.k8s.io/v1", "Ingress", "ingresses", object)
        .status(json!({"loadBalancer": {"ingress": [{"ip": "169.1.1.1"}]}}))
        .live()
        .await;
}

/// Conformance: RuntimeClass API
#[tokio::test]
async fn runtime_classes() {
    Life::cluster(
        "node.k8s.io/v1",
        "RuntimeClass",
        "runtimeclasses",
        json!({"handler": "fake"}),
    )
    .live()
    .await;
}

/// Conformance: EndpointSlice API
#[tokio::test]
async fn endpoint_slices() {
    let object =
        json!({"addressType": "IPv4", "endpoints": [{"addresses": ["1.2.3.4", "5.6.7.8"]}]});
    Life::namespaced(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        "endpointslices",
        object,
    )
    .live()
    .await;
}

/// Conformance: Endpoint resource lifecycle
#[tokio::test]
async fn endpoints() {
    let object = json!({"subsets": [{"addresses": [{"ip": "10.0.0.24"}],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}]});
    Life::namespaced("v1", "Endpoints", "endpoints", object)
        .live()
        .await;
}

/// Conformance: IPAddress API
#[tokio::test]
async fn ip_addresses() {
    let parent =
        json!({"group": "mygroup", "resource": "myresources", "namespace": "foo", "name": "bar"});
    Life::cluster(
        "networking.k8s.io/v1",
        "IPAddress",
        "ipaddresses",
        json!({"spec": {"parentRef": parent}}),
    )
    .names(["255.255.255.255", "fe80::42:1dff:fe84:f9e2", "192.0.2.1"])
    .live()
    .await;
}

/// Conformance: ServiceCIDR API
#[tokio::test]
async fn service_cidrs() {
    let world = World::whole(&[]).await;
    let path = "/apis/networking.k8s.io/v1/servicecidrs";
    let own = world
        .until(&format!("{path}/kubernetes"), |c| {
            c["kind"] == "ServiceCIDR"
        })
        .await;
    let status = world.object(&format!("{path}/kubernetes/status")).await;
    assert_eq!(status["kind"], "ServiceCIDR");
    assert_eq!(status["metadata"]["uid"], own["metadata"]["uid"]);
    assert!(!world.items(path).await.is_empty());
    let mut events = world.watch(&format!("{path}?watch=true")).await;
    assert_eq!(name(&events.expect("ADDED").await), "kubernetes");
}

/// Conformance: lease API should be available
#[tokio::test]
async fn leases() {
    let spec = json!({"holderIdentity": "holder", "leaseDurationSeconds": 30, "leaseTransitions": 0,
        "acquireTime": "2026-01-01T00:00:00.000000Z", "renewTime": "2026-01-01T00:00:05.123456Z"});
    let world = World::api().await;
    let path = at("coordination.k8s.io/v1", "leases");
    let made = world
        .create(&path, json!({"metadata": {"name": "lease"}, "spec": spec}))
        .await;
    assert_eq!(made["spec"], spec);
    let update = |lease: &mut Value| {
        lease["spec"]["holderIdentity"] = "other".into();
        lease["spec"]["leaseTransitions"] = 1.into();
    };
    let updated = world.update(&format!("{path}/lease"), update).await;
    assert_eq!(
        (
            &updated["spec"]["holderIdentity"],
            &updated["spec"]["leaseTransitions"]
        ),
        (&json!("other"), &json!(1))
    );
    world.delete(&format!("{path}/lease")).await.ok(200);
    Life::namespaced(
        "coordination.k8s.io/v1",
        "Lease",
        "leases",
        json!({"spec": spec}),
    )
    .live_in(&world)
    .await;
}

fn core_event() -> Value {
    json!({"message": "This is a test event", "reason": "Test", "type": "Normal", "count": 1,
        "involvedObject": {"namespace": "default"}})
}

/// Conformance: Event, manage lifecycle of an Event
#[tokio::test]
async fn core_events() {
    let world = World::api().await;
    Life::namespaced("v1", "Event", "events", core_event())
        .live_in(&world)
        .await;
    let path = at("v1", "events");
    let mut event = core_event();
    event["metadata"] = json!({"name": "event-test", "labels": {"testevent-constant": "true"}});
    world.create(&path, event).await;
    let path = format!("{path}/event-test");
    let patch = json!({"message": "This is a test event - patched"});
    world.patch(&path, STRATEGIC, &patch).await.ok(200);
    assert_eq!(world.object(&path).await["message"], patch["message"]);
    world.delete(&path).await.ok(200);
    assert!(
        world
            .items("/api/v1/events?labelSelector=testevent-constant%3Dtrue")
            .await
            .is_empty()
    );
}

/// Conformance: Event, delete a collection
#[tokio::test]
async fn a_collection_of_core_events() {
    let world = World::api().await;
    let path = at("v1", "events");
    for number in 1..=3 {
        let mut event = core_event();
        event["metadata"] =
            json!({"name": format!("test-event-{number}"), "labels": {"testevent-set": "true"}});
        world.create(&path, event).await;
    }
    let set = format!("{path}?labelSelector=testevent-set%3Dtrue");
    assert_eq!(world.items(&set).await.len(), 3);
    world.delete(&set).await.ok(200);
    assert!(world.items(&set).await.is_empty());
}

fn new_event() -> Value {
    json!({"eventTime": "2026-01-01T00:00:00.000000Z", "note": "This is a test note", "action": "Do", "reason": "Test",
        "type": "Normal", "reportingController": "test-controller", "reportingInstance": "test-node",
        "regarding": {"namespace": "default"}})
}

/// Conformance: New Event resource lifecycle, testing a single event
#[tokio::test]
async fn new_events() {
    let world = World::api().await;
    let path = at("events.k8s.io/v1", "events");
    let mut event = new_event();
    event["metadata"] = json!({"name": "event-test", "labels": {"testevent-constant": "true"}});
    world.create(&path, event).await;
    let select =
        |source: &str, path: &str| format!("{path}?fieldSelector=reportingController%3D{source}");
    assert_eq!(
        world
            .items(&select("test-controller", "/apis/events.k8s.io/v1/events"))
            .await
            .len(),
        1
    );
    assert!(world.items(&select("other", &path)).await.is_empty());
    let one = format!("{path}/event-test");
    let series = json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:05.000000Z"}});
    let patched = world.patch(&one, STRATEGIC, &series).await.ok(200);
    assert_eq!(patched["series"], series["series"]);
    let updated = world
        .update(&one, |e| e["series"]["count"] = 100.into())
        .await;
    assert_eq!(updated["series"]["count"], 100);
    // The same event, seen as core/v1 has it.
    let core = world
        .object(&format!("{}/event-test", at("v1", "events")))
        .await;
    assert_eq!(
        (&core["message"], &core["reportingComponent"]),
        (&json!("This is a test note"), &json!("test-controller"))
    );
    world.delete(&one).await.ok(200);
    assert!(world.items(&path).await.is_empty());
}

/// Conformance: New Event resource lifecycle, testing a list of events
#[tokio::test]
async fn a_collection_of_new_events() {
    let life = Life::namespaced("events.k8s.io/v1", "Event", "events", new_event());
    life.live().await;
}

/// Conformance: ConfigMap lifecycle
#[tokio::test]
async fn config_maps() {
    let world = World::api().await;
    Life::namespaced(
        "v1",
        "ConfigMap",
        "configmaps",
        json!({"data": {"valueName": "value"}}),
    )
    .live_in(&world)
    .await;
    let path = at("v1", "configmaps");
    let labels = json!({"test-configmap-static": "true"});
    world
        .create(
            &path,
            json!({"metadata": {"name": "m", "labels": labels}, "data": {"valueName": "value"}}),
        )
        .await;
    let patch = json!({"metadata": {"labels": {"test-configmap": "patched"}}, "data": {"valueName": "value1"}});
    world
        .patch(&format!("{path}/m"), STRATEGIC, &patch)
        .await
        .ok(200);
    let got = world.object(&format!("{path}/m")).await;
    assert_eq!(
        (
            &got["data"]["valueName"],
            &got["metadata"]["labels"]["test-configmap"]
        ),
        (&json!("value1"), &json!("patched"))
    );
}

/// Conformance: ConfigMap, with empty-key
#[tokio::test]
async fn config_maps_have_no_empty_key() {
    let world = World::api().await;
    let object = json!({"metadata": {"name": "m"}, "data": {"": "value-1"}});
    let message = world
        .post(&at("v1", "configmaps"), &object)
        .await
        .refused(422);
    assert!(
        message.contains("ConfigMap \"m\" is invalid: data[]: Invalid value: \"\""),
        "{message}"
    );
}

/// Conformance: Secrets, with empty-key
#[tokio::test]
async fn secrets_have_no_empty_key() {
    let world = World::api().await;
    let object = json!({"metadata": {"name": "s"}, "data": {"": "dmFsdWUtMQ=="}});
    let message = world.post(&at("v1", "secrets"), &object).await.refused(422);
    assert!(
        message.contains("Secret \"s\" is invalid: data[]: Invalid value: \"\""),
        "{message}"
    );
}

/// Conformance: Secret patching
#[tokio::test]
async fn secrets() {
    let world = World::api().await;
    let path = at("v1", "secrets");
    let labels = json!({"testsecret-constant": "true"});
    world
        .create(&path, json!({"metadata": {"name": "s", "labels": labels}, "data": {"key": "dmFsdWU="}, "type": "Opaque"}))
        .await;
    let patch =
        json!({"metadata": {"labels": {"testsecret": "true"}}, "data": {"key": "dmFsdWUx"}});
    world
        .patch(&format!("{path}/s"), STRATEGIC, &patch)
        .await
        .ok(200);
    let all = world
        .items("/api/v1/secrets?labelSelector=testsecret-constant%3Dtrue")
        .await;
    assert_eq!(all.len(), 1);
    assert_eq!(
        (
            &all[0]["data"]["key"],
            &all[0]["metadata"]["labels"]["testsecret"]
        ),
        (&json!("dmFsdWUx"), &json!("true"))
    );
    world
        .delete(&format!("{path}?labelSelector=testsecret%3Dtrue"))
        .await
        .ok(200);
    assert!(
        world
            .items("/api/v1/secrets?labelSelector=testsecret-constant%3Dtrue")
            .await
            .is_empty()
    );
    Life::namespaced(
        "v1",
        "Secret",
        "secrets",
        json!({"data": {"key": "dmFsdWU="}}),
    )
    .live_in(&world)
    .await;
}

/// Conformance: ConfigMap Volume, immutability
/// Conformance: Secrets Volume, immutability
#[tokio::test]
async fn immutable_data_stays() {
    let world = World::api().await;
    for (plural, before, after) in [("configmaps", "a", "b"), ("secrets", "YQ==", "Yg==")] {
        let path = at("v1", plural);
        world
            .create(
                &path,
                json!({"metadata": {"name": "m"}, "data": {"k": before}}),
            )
            .await;
        let one = format!("{path}/m");
        world.merge(&one, json!({"data": {"k": after}})).await;
        world.merge(&one, json!({"immutable": true})).await;
        for (change, field) in [
            (
                json!({"immutable": null}),
                "immutable: Forbidden: field is immutable when `immutable` is set",
            ),
            (
                json!({"data": {"k": before}}),
                "data: Forbidden: field is immutable when `immutable` is set",
            ),
        ] {
            let message = world.patch(&one, MERGE, &change).await.refused(422);
            assert!(message.contains(field), "{message}");
        }
        world
            .merge(&one, json!({"metadata": {"labels": {"still": "free"}}}))
            .await;
        world.delete(&one).await.ok(200);
    }
}

/// Conformance: PodTemplate lifecycle
#[tokio::test]
async fn pod_templates() {
    let object = json!({"template": template(&json!({"a": "b"}))});
    let world = World::api().await;
    Life::namespaced("v1", "PodTemplate", "podtemplates", object)
        .live_in(&world)
        .await;
}

/// Conformance: PodTemplate, delete a collection
#[tokio::test]
async fn a_collection_of_pod_templates() {
    let world = World::api().await;
    let path = at("v1", "podtemplates");
    for number in 1..=3 {
        let metadata = json!({"name": format!("test-podtemplate-{number}"), "labels": {"podtemplate-set": "true"}});
        world
            .create(&path, json!({"metadata": metadata, "template": template(&json!({"podtemplate-set": "true"}))}))
            .await;
    }
    let set = format!("{path}?labelSelector=podtemplate-set%3Dtrue");
    assert_eq!(world.items(&set).await.len(), 3);
    world.delete(&set).await.ok(200);
    assert!(world.items(&set).await.is_empty());
}

/// Conformance: PodTemplate, replace
#[tokio::test]
async fn pod_templates_are_replaced() {
    let world = World::api().await;
    let path = at("v1", "podtemplates");
    world
        .create(
            &path,
            json!({"metadata": {"name": "t"}, "template": template(&json!({}))}),
        )
        .await;
    let annotate = |t: &mut Value| t["metadata"]["annotations"] = json!({"updated": "true"});
    let updated = world.update(&format!("{path}/t"), annotate).await;
    assert_eq!(updated["metadata"]["annotations"]["updated"], "true");
}

/// Conformance: LimitRange, list, patch and delete a LimitRange by collection
#[tokio::test]
async fn limit_ranges() {
    let limit = json!({"type": "Container", "max": {"cpu": "500m"}, "min": {"cpu": "50m"}, "defaultRequest": {"cpu": "50m"}});
    let world = World::api().await;
    Life::namespaced(
        "v1",
        "LimitRange",
        "limitranges",
        json!({"spec": {"limits": [limit]}}),
    )
    .live_in(&world)
    .await;
    let path = at("v1", "limitranges");
    world
        .create(
            &path,
            json!({"metadata": {"name": "l"}, "spec": {"limits": [limit]}}),
        )
        .await;
    let patch = json!({"metadata": {"labels": {"l": "patched"}}, "spec": {"limits": [{"type": "Container", "defaultRequest": {"cpu": "100m"}}]}});
    let patched = world
        .patch(&format!("{path}/l"), STRATEGIC, &patch)
        .await
        .ok(200);
    assert_eq!(
        patched["spec"]["limits"][0]["defaultRequest"]["cpu"],
        "100m"
    );
    world
        .delete("/api/v1/namespaces/default/limitranges?labelSelector=l%3Dpatched")
        .await
        .ok(200);
    assert!(world.items("/api/v1/limitranges").await.is_empty());
}

/// Conformance: Scheduler, Verify PriorityClass endpoints
#[tokio::test]
async fn priority_classes() {
    let world = World::api().await;
    let path = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let life = Life::cluster(
        "scheduling.k8s.io/v1",
        "PriorityClass",
        "priorityclasses",
        json!({"value": 1, "description": "x"}),
    );
    life.live_in(&world).await;
    world
        .create(path, json!({"metadata": {"name": "p1"}, "value": 1}))
        .await;
    let mut changed = world.object(&format!("{path}/p1")).await;
    changed["value"] = 2.into();
    let message = world
        .put(&format!("{path}/p1"), &changed)
        .await
        .refused(422);
    assert!(
        message.contains("value: Forbidden: may not be changed in an update"),
        "{message}"
    );
    let patch = json!({"value": 2});
    world
        .patch(
            &format!("{path}/p1"),
            JSON,
            &json!([{"op": "replace", "path": "/value", "value": 2}]),
        )
        .await
        .refused(422);
    world
        .patch(&format!("{path}/p1"), MERGE, &patch)
        .await
        .refused(422);
}

/// Conformance: ControllerRevision, resource lifecycle
#[tokio::test]
async fn controller_revisions() {
    let object = json!({"data": {"spec": {"template": {"$patch": "replace"}}}, "revision": 1});
    Life::namespaced(
        "apps/v1",
        "ControllerRevision",
        "controllerrevisions",
        object,
    )
    .live()
    .await;
}
