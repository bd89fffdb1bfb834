//! Objects that are written anew so that all are stored in one version.

use serde_json::{Value, json};

use crate::apps::rig::Rig;

const DEFINITIONS: &str = "apiextensions.k8s.io/v1/customresourcedefinitions";
const MIGRATIONS: &str = "storagemigration.k8s.io/v1/storageversionmigrations";

fn versions(stored: &str) -> Value {
    let version = |name: &str| {
        json!({"name": name, "served": true, "storage": name == stored, "schema": {"openAPIV3Schema": {
            "type": "object", "x-kubernetes-preserve-unknown-fields": true}}})
    };
    json!([version("v1"), version("v2")])
}

fn condition<'a>(object: &'a Value, kind: &str, is: &str) -> Option<&'a Value> {
    let all = object["status"]["conditions"].as_array()?;
    all.iter().find(|c| c["type"] == kind && c["status"] == is)
}

/// The condition of an object, once it is true or false.
async fn told(
    rig: &Rig,
    resource: &str,
    name: &str,
    kind: &str,
    is: &str,
) -> anyhow::Result<Value> {
    let says = |object: &Value| condition(object, kind, is).is_some();
    let object = rig
        .until(resource, name, &format!("to be {kind}"), says)
        .await?;
    Ok(condition(&object, kind, is).cloned().unwrap_or_default())
}

async fn migrate(rig: &Rig, name: &str, resource: &str) -> anyhow::Result<()> {
    let migration = json!({"apiVersion": "storagemigration.k8s.io/v1", "kind": "StorageVersionMigration",
        "metadata": {"name": name}, "spec": {"resource": {"group": "example.com", "resource": resource}}});
    rig.create(MIGRATIONS, migration).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_forgets_the_versions_that_nothing_is_stored_in() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "shirts.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "shirts", "kind": "Shirt"}, "versions": versions("v1")}});
    rig.create(DEFINITIONS, definition).await?;
    told(
        &rig,
        DEFINITIONS,
        "shirts.example.com",
        "Established",
        "True",
    )
    .await?;
    let shirt = json!({"apiVersion": "example.com/v1", "kind": "Shirt", "metadata": {"name": "a"}});
    let made = rig.create("example.com/v1/shirts", shirt).await?;
    let change = json!({"spec": {"versions": versions("v2")}});
    rig.merge(DEFINITIONS, "shirts.example.com", change).await?;
    migrate(&rig, "first", "shirts").await?;
    told(&rig, MIGRATIONS, "first", "Succeeded", "True").await?;
    let mark = told(
        &rig,
        DEFINITIONS,
        "shirts.example.com",
        "StorageMigrating",
        "False",
    )
    .await?;
    assert_eq!(
        mark["message"],
        "The migration has succeeded and the stored versions have been updated"
    );
    let definition = rig.get(DEFINITIONS, "shirts.example.com").await?;
    assert_eq!(definition["status"]["storedVersions"], json!(["v2"]));
    let now = rig.get("example.com/v2/shirts", "a").await?;
    let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
    assert_ne!(version(&now), version(&made), "it was written");
    assert_eq!(
        now["metadata"]["managedFields"],
        made["metadata"]["managedFields"]
    );
    // Nobody knows what is not served.
    migrate(&rig, "lost", "socks").await?;
    let why = told(&rig, MIGRATIONS, "lost", "Failed", "True").await?;
    assert_eq!(why["message"], "resource does not exist in discovery");
    Ok(())
}
