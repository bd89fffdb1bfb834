//! Watches of ConfigMaps.

use serde_json::{Value, json};

use super::world::*;

const KEY: &str = "watch-this-configmap";

fn maps() -> String {
    at("v1", "configmaps")
}

async fn make(world: &World, called: &str, label: &str) -> Value {
    let labels = json!({KEY: label});
    world
        .create(
            &maps(),
            json!({"metadata": {"name": called, "labels": labels}}),
        )
        .await
}

async fn mutate(world: &World, called: &str, number: u32) -> Value {
    let change = |map: &mut Value| map["data"]["mutation"] = number.to_string().into();
    world.update(&format!("{}/{called}", maps()), change).await
}

async fn relabel(world: &World, called: &str, label: &str) -> Value {
    let change = |map: &mut Value| map["metadata"]["labels"][KEY] = label.into();
    world.update(&format!("{}/{called}", maps()), change).await
}

async fn watch(world: &World, from: &str, labels: &[&str]) -> Events {
    let selector = format!("{KEY}%20in%20({})", labels.join("%2C"));
    let path = maps();
    world
        .watch(&format!(
            "{path}?watch=true&resourceVersion={from}&labelSelector={selector}"
        ))
        .await
}

/// Conformance: watch-configmaps-with-multiple-watchers
#[tokio::test]
async fn each_watcher_sees_what_it_selects() {
    let world = World::api().await;
    let mut a = watch(&world, "", &["A"]).await;
    let mut b = watch(&world, "", &["B"]).await;
    let mut both = watch(&world, "", &["A", "B"]).await;
    let mut made = vec![("ADDED", make(&world, "map-a", "A").await)];
    made.push(("MODIFIED", mutate(&world, "map-a", 1).await));
    made.push(("MODIFIED", mutate(&world, "map-a", 2).await));
    for (kind, object) in &made {
        assert_eq!(a.expect(kind).await, *object);
        assert_eq!(both.expect(kind).await, *object);
    }
    world.delete(&format!("{}/map-a", maps())).await.ok(200);
    a.expect("DELETED").await;
    both.expect("DELETED").await;
    let second = make(&world, "map-b", "B").await;
    // The first that B sees is its own: nothing of A came before.
    assert_eq!(b.expect("ADDED").await, second);
    assert_eq!(both.expect("ADDED").await, second);
    world.delete(&format!("{}/map-b", maps())).await.ok(200);
    b.expect("DELETED").await;
    both.expect("DELETED").await;
    let third = make(&world, "map-c", "A").await;
    assert_eq!(a.expect("ADDED").await, third);
}

/// Conformance: watch-configmaps-from-resource-version
#[tokio::test]
async fn a_watch_starts_in_the_past() {
    let world = World::api().await;
    make(&world, "map", "from").await;
    let first = mutate(&world, "map", 1).await;
    let second = mutate(&world, "map", 2).await;
    world.delete(&format!("{}/map", maps())).await.ok(200);
    let mut events = watch(&world, version(&first), &["from"]).await;
    assert_eq!(events.expect("MODIFIED").await, second);
    events.expect("DELETED").await;
}

/// Conformance: watch-configmaps-closed-and-restarted
#[tokio::test]
async fn a_watch_restarts_where_it_ended() {
    let world = World::api().await;
    let mut broken = watch(&world, "", &["restarted"]).await;
    let made = make(&world, "map", "restarted").await;
    mutate(&world, "map", 1).await;
    assert_eq!(broken.expect("ADDED").await, made);
    let last = broken.expect("MODIFIED").await;
    drop(broken);
    let second = mutate(&world, "map", 2).await;
    let mut events = watch(&world, version(&last), &["restarted"]).await;
    world.delete(&format!("{}/map", maps())).await.ok(200);
    assert_eq!(events.expect("MODIFIED").await, second);
    events.expect("DELETED").await;
}

/// Conformance: watch-configmaps-label-changed
#[tokio::test]
async fn what_leaves_a_selection_is_deleted_for_its_watchers() {
    let world = World::api().await;
    let mut events = watch(&world, "", &["changed"]).await;
    let made = make(&world, "map", "changed").await;
    let first = mutate(&world, "map", 1).await;
    relabel(&world, "map", "wrong").await;
    assert_eq!(events.expect("ADDED").await, made);
    assert_eq!(events.expect("MODIFIED").await, first);
    events.expect("DELETED").await;
    mutate(&world, "map", 2).await;
    let restored = relabel(&world, "map", "changed").await;
    let third = mutate(&world, "map", 3).await;
    world.delete(&format!("{}/map", maps())).await.ok(200);
    assert_eq!(events.expect("ADDED").await, restored);
    assert_eq!(events.expect("MODIFIED").await, third);
    events.expect("DELETED").await;
}

/// Conformance: watch-consistency
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_watches_tell_one_story() {
    const WRITES: usize = 60;
    let world = World::api().await;
    let start = version(&world.object(&maps()).await).to_owned();
    let from = |version: &str| format!("{}?watch=true&resourceVersion={version}", maps());
    let writes = async {
        for number in 0..WRITES {
            let path = format!("{}/cm-{}", maps(), number % 5);
            match number % 3 {
                0 => drop(make_or_keep(&world, number % 5).await),
                1 => drop(
                    world
                        .patch(&path, MERGE, &json!({"data": {"n": number.to_string()}}))
                        .await,
                ),
                _ => drop(world.delete(&path).await),
            }
        }
        make(&world, "the-end", "x").await;
    };
    let watches = async {
        let mut first = world.watch(&from(&start)).await;
        let mut versions: Vec<String> = Vec::new();
        let mut others = Vec::new();
        loop {
            let object = first.next().await["object"].take();
            versions.push(version(&object).to_owned());
            if name(&object) == "the-end" {
                break;
            }
            others.push(world.watch(&from(version(&object))).await);
        }
        for (number, mut other) in others.into_iter().enumerate() {
            for wanted in &versions[number + 1..] {
                assert_eq!(version(&other.next().await["object"]), wanted);
            }
        }
    };
    tokio::join!(writes, watches);
}

async fn make_or_keep(world: &World, number: usize) -> Answer {
    world
        .post(
            &maps(),
            &json!({"metadata": {"name": format!("cm-{number}")}}),
        )
        .await
}
