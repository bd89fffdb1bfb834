//! ControllerRevisions.

use http::Method;
use serde_json::{Value, json};

use super::rig::{Rig, name, number, text, with_image, workload};

const SETS: &str = "apps/v1/daemonsets";
const REVISIONS: &str = "apps/v1/controllerrevisions";

/// Conformance: ControllerRevision, resource lifecycle
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_lives() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let set = workload("DaemonSet", "agent", "v1", json!({}));
    rig.create(SETS, set).await?;
    rig.until(SETS, "agent", "to be there", |s| {
        number(s, "/status/numberReady") == 1
    })
    .await?;
    let first = rig
        .until_all(REVISIONS, "app=agent", "to be one", |all| all.len() == 1)
        .await?
        .remove(0);
    assert_eq!(number(&first, "/revision"), 1);
    assert_eq!(text(&first, "/metadata/ownerReferences/0/name"), "agent");
    let read = rig.get(REVISIONS, name(&first)).await?;
    assert_eq!(read["metadata"]["uid"], first["metadata"]["uid"]);

    let label = json!({"metadata": {"labels": {name(&first): "patched"}}});
    let patched = rig.strategic(REVISIONS, name(&first), label).await?;
    assert_eq!(patched["metadata"]["labels"][name(&first)], "patched");

    // One like it, of a higher number.
    let second = json!({"apiVersion": "apps/v1", "kind": "ControllerRevision",
        "metadata": {"name": format!("{}-2", name(&first)), "labels": {"app": "agent"},
            "ownerReferences": first["metadata"]["ownerReferences"]},
        "data": first["data"], "revision": number(&first, "/revision") + 1});
    let second = rig.create(REVISIONS, second).await?;
    let both = rig.until_all(REVISIONS, "app=agent", "to be two", |all| all.len() == 2);
    both.await?;
    rig.delete(REVISIONS, name(&first), Value::Null).await?;
    rig.until_gone(REVISIONS, name(&first)).await?;

    let updated = client::write::retry_on_conflict(|| async {
        let mut revision = rig.get(REVISIONS, name(&second)).await?;
        revision["metadata"]["labels"]["new"] = json!("updated");
        rig.replace(REVISIONS, name(&second), revision).await
    })
    .await?;
    assert_eq!(text(&updated, "/metadata/labels/new"), "updated");

    rig.strategic(SETS, "agent", with_image("v2")).await?;
    rig.until_all(REVISIONS, "app=agent", "to know the new template", |all| {
        all.iter()
            .any(|r| number(r, "/revision") > number(&second, "/revision"))
    })
    .await?;
    rig.delete_all(REVISIONS, "new=updated").await?;
    rig.until_gone(REVISIONS, name(&second)).await?;
    let path = "/apis/apps/v1/controllerrevisions?labelSelector=app%3Dagent";
    let all = rig.raw(Method::GET, path, Value::Null).await?;
    assert!(all["items"].as_array().is_some_and(|all| !all.is_empty()));
    Ok(())
}
