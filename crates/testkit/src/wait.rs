//! Waiting for what the cluster does by itself, and making objects from text.

use std::{fmt::Debug, future::Future, time::Duration};

use anyhow::{Context, bail};
use client::Client;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

/// How long a test waits for something to come true.
const LIMIT: Duration = Duration::from_secs(120);
/// Wait between looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks until `look` answers `Some`, for at most two minutes, which a busy machine may need.
///
/// # Errors
/// When that time is over: says `what` was waited for.
pub async fn eventually<T, F, L>(what: &str, mut look: L) -> anyhow::Result<T>
where
    L: FnMut() -> F,
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    let start = Instant::now();
    let mut last = None;
    while start.elapsed() < LIMIT {
        match look().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(PAUSE).await;
    }
    match last {
        Some(error) => Err(error.context(format!("waited in vain for {what}"))),
        None => bail!("waited in vain for {what}"),
    }
}

/// Creates objects of any kind, given as JSON with `apiVersion` and `kind`.
///
/// # Errors
/// When a kind is unknown or the server refuses an object.
pub async fn objects(client: &Client, all: &[Value]) -> anyhow::Result<()> {
    for object in all {
        let text = |pointer: &str| {
            object
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let (group, version) = text("/apiVersion")
            .split_once('/')
            .unwrap_or(("", text("/apiVersion")));
        let kind = api::kind_by_gvk(group, version, text("/kind"))
            .with_context(|| format!("unknown kind in {object}"))?;
        let resource = client::Resource {
            group: group.into(),
            version: version.into(),
            plural: kind.resource.to_string(),
        };
        let namespace = match (kind.namespaced, text("/metadata/namespace")) {
            (false, _) => "",
            (true, "") => "default",
            (true, named) => named,
        };
        let request = kube::core::Request::new(resource.path(namespace))
            .create(&Default::default(), serde_json::to_vec(object)?)?;
        let _: Value = client
            .request(request)
            .await
            .with_context(|| format!("creating {object}"))?;
    }
    Ok(())
}

/// Decodes JSON; for tests that write objects down.
///
/// # Errors
/// When it is no `K`.
pub fn object<K: DeserializeOwned + Debug>(value: Value) -> anyhow::Result<K> {
    Ok(serde_json::from_value(value)?)
}
