//! Lists in chunks, tables, discovery, versions.

use serde_json::{Value, json};
use testkit::{Cluster, Parts};

use super::definitions::Definition;
use super::world::*;

const TEMPLATES: usize = 400;

async fn templates(world: &World) -> String {
    let path = at("v1", "podtemplates");
    for number in 0..TEMPLATES {
        let object = json!({"metadata": {"name": format!("template-{number:04}")}, "template": template(&json!({}))});
        world.create(&path, object).await;
    }
    path
}

/// The names of a page follow those found before; what remains adds up.
fn check_page(list: &Value, found: usize, limit: usize) -> usize {
    let items = list["items"].as_array().unwrap();
    assert!(items.len() <= limit);
    for (number, item) in items.iter().enumerate() {
        assert_eq!(name(item), format!("template-{:04}", found + number));
    }
    let remaining = list["metadata"]["remainingItemCount"].as_u64();
    if text(list, "/metadata/continue").is_empty() {
        assert_eq!(remaining, None);
    } else {
        let remaining = usize::try_from(remaining.unwrap()).unwrap();
        assert_eq!(remaining + items.len() + found, TEMPLATES);
    }
    items.len()
}

/// Conformance: API Chunking, server should return chunks of results for list calls
#[tokio::test]
async fn lists_come_in_chunks() {
    let world = World::api().await;
    let path = templates(&world).await;
    for limits in [[1, 40, 7], [13, 29, 31], [40, 40, 40]] {
        let (mut found, mut token, mut version_of_first) = (0, String::new(), String::new());
        for limit in limits.iter().cycle() {
            let page = world
                .object(&format!("{path}?limit={limit}&continue={token}"))
                .await;
            found += check_page(&page, found, *limit);
            if version_of_first.is_empty() {
                version_of_first = version(&page).to_owned();
            }
            assert_eq!(version(&page), version_of_first);
            token = text(&page, "/metadata/continue").to_owned();
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(found, TEMPLATES);
    }
    assert_eq!(
        world
            .items(&format!("{path}?limit={}", TEMPLATES + 1))
            .await
            .len(),
        TEMPLATES
    );
}

/// Conformance: API Chunking, server should support continue listing from the last key even if the original version has been compacted away
#[tokio::test]
async fn lists_go_on_after_their_version_is_gone() {
    let mut options = store::Options::default();
    options.history.segment_events = 10;
    let parts = Parts {
        controllers: false,
        scheduler: false,
    };
    let cluster = Cluster::over(
        store::Embedded::in_memory_with(options),
        parts,
        client::Clock::system(),
    )
    .await
    .unwrap();
    let world = World::of(cluster);
    let path = templates(&world).await;
    let limit = TEMPLATES / 10;
    let first = world.object(&format!("{path}?limit={limit}")).await;
    let mut found = check_page(&first, 0, limit);
    for number in 0..20 {
        let patch = json!({"metadata": {"annotations": {"n": number.to_string()}}});
        world.merge(&format!("{path}/template-0000"), patch).await;
    }
    let token = text(&first, "/metadata/continue");
    let expired = world
        .get(&format!("{path}?limit={limit}&continue={token}"))
        .await;
    assert_eq!(
        (expired.code, &expired.body["reason"]),
        (410, &json!("Expired"))
    );
    let token = text(&expired.body, "/metadata/continue");
    assert!(!token.is_empty(), "{}", expired.body);
    let mut page = world
        .object(&format!("{path}?limit={limit}&continue={token}"))
        .await;
    assert_ne!(version(&page), version(&first));
    let second = version(&page).to_owned();
    loop {
        found += check_page(&page, found, limit);
        assert_eq!(version(&page), second);
        let token = text(&page, "/metadata/continue");
        if token.is_empty() {
            break;
        }
        page = world
            .object(&format!("{path}?limit={limit}&continue={token}"))
            .await;
    }
    assert_eq!(found, TEMPLATES);
}

/// Conformance: API metadata HTTP return
#[tokio::test]
async fn what_has_no_table_is_not_acceptable() {
    let world = World::api().await;
    let review = json!({"spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}});
    let request = http::Request::post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
        .header("content-type", "application/json")
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(serde_json::to_vec(&review).unwrap())
        .unwrap();
    let answer = world.answer(request).await;
    assert_eq!(answer.body["reason"], "NotAcceptable", "{}", answer.body);
    let message = answer.refused(406);
    assert!(
        message.starts_with("only the following media types are accepted:"),
        "{message}"
    );
}

/// Conformance: Confirm a server version
#[tokio::test]
async fn the_version_is_told() {
    let world = World::api().await;
    let version = world.object("/version").await;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    assert!(digits(text(&version, "/major")), "{version}");
    assert!(
        digits(text(&version, "/minor").trim_end_matches('+')),
        "{version}"
    );
}

/// Conformance: Discovery, confirm the PreferredVersion for each api group
#[tokio::test]
async fn every_group_has_a_preferred_version() {
    let world = World::api().await;
    let all = world.object("/apis").await;
    for group in all["groups"].as_array().unwrap() {
        let own = world
            .object(&format!("/apis/{}", text(group, "/name")))
            .await;
        let preferred = &own["preferredVersion"];
        assert!(
            own["versions"].as_array().unwrap().contains(preferred),
            "{own}"
        );
        assert_eq!(preferred, &group["preferredVersion"]);
    }
}

/// Conformance: Discovery, confirm the groupVerion and a resourcefrom each apiGroup
#[tokio::test]
async fn every_group_has_resources() {
    let world = World::api().await;
    for (group_version, plural) in BUILT_IN {
        let list = world.object(&root(group_version)).await;
        assert_eq!(list["groupVersion"], *group_version);
        let resources = list["resources"].as_array().unwrap();
        assert!(resources.iter().any(|r| r["name"] == *plural), "{plural}");
    }
    let all = world.object("/apis").await;
    for group in all["groups"].as_array().unwrap() {
        for served in group["versions"].as_array().unwrap() {
            let group_version = text(served, "/groupVersion");
            let list = world.object(&root(group_version)).await;
            assert_eq!(list["groupVersion"], group_version);
            assert!(!list["resources"].as_array().unwrap().is_empty());
        }
    }
}

/// A resource of each group that upstream looks for.
const BUILT_IN: &[(&str, &str)] = &[
    ("v1", "namespaces"),
    (
        "admissionregistration.k8s.io/v1",
        "validatingwebhookconfigurations",
    ),
    ("apiextensions.k8s.io/v1", "customresourcedefinitions"),
    ("apiregistration.k8s.io/v1", "apiservices"),
    ("apps/v1", "deployments"),
    ("authentication.k8s.io/v1", "tokenreviews"),
    ("authorization.k8s.io/v1", "selfsubjectaccessreviews"),
    ("autoscaling/v1", "horizontalpodautoscalers"),
    ("autoscaling/v2", "horizontalpodautoscalers"),
    ("batch/v1", "jobs"),
    ("certificates.k8s.io/v1", "certificatesigningrequests"),
    ("coordination.k8s.io/v1", "leases"),
    ("discovery.k8s.io/v1", "endpointslices"),
    ("events.k8s.io/v1", "events"),
    ("networking.k8s.io/v1", "ingresses"),
    ("node.k8s.io/v1", "runtimeclasses"),
    ("policy/v1", "poddisruptionbudgets"),
    ("scheduling.k8s.io/v1", "priorityclasses"),
    ("storage.k8s.io/v1", "csinodes"),
];

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Whether an aggregated discovery document has the resource.
fn has(list: &Value, group_version: &str, plural: &str) -> bool {
    let (group, version) = group_version
        .rsplit_once('/')
        .unwrap_or(("", group_version));
    let named = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    named(list, "items")
        .iter()
        .filter(|g| text(g, "/metadata/name") == group)
        .flat_map(|g| named(g, "versions"))
        .filter(|v| v["version"] == version)
        .flat_map(|v| named(&v, "resources"))
        .any(|r| r["resource"] == plural)
}

async fn aggregated(world: &World, path: &str, accept: &str) -> Value {
    let answer = world.accept(path, accept).await;
    assert_eq!(
        answer.headers["content-type"],
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    );
    answer.ok(200)
}

async fn has_built_in(world: &World, accept: &str) {
    let (core, groups) = (
        aggregated(world, "/api", accept).await,
        aggregated(world, "/apis", accept).await,
    );
    for (group_version, plural) in BUILT_IN {
        let list = if *group_version == "v1" {
            &core
        } else {
            &groups
        };
        assert!(has(list, group_version, plural), "{group_version} {plural}");
    }
}

/// Conformance: Aggregated Discovery Endpoint Accept Headers
#[tokio::test]
async fn discovery_is_aggregated_when_asked_for() {
    has_built_in(&World::api().await, AGGREGATED).await;
}

/// What client-go asks for: the aggregated form first, the old one where there is none.
const CLIENT_GO: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";

/// Conformance: Aggregated Discovery Interface
#[tokio::test]
async fn clients_get_aggregated_discovery() {
    has_built_in(&World::api().await, CLIENT_GO).await;
}

async fn has_custom(accept: &str) {
    let world = World::api().await;
    let definition = Definition::open("testcrds", "Testcrd", "Namespaced");
    definition.establish(&world).await;
    let list = aggregated(&world, "/apis", accept).await;
    assert!(has(&list, &definition.group_version(), "testcrds"));
}

/// Conformance: Aggregated Discovery Endpoint Accept Headers CRDs
#[tokio::test]
async fn aggregated_discovery_has_custom_resources() {
    has_custom(AGGREGATED).await;
}

/// Conformance: Aggregated Discovery Interface CRDs
#[tokio::test]
async fn clients_discover_custom_resources() {
    has_custom(CLIENT_GO).await;
}
