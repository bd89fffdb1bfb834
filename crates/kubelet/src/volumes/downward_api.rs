//! `downwardAPI`: fields of the pod as files, kept current with its labels and annotations.

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Volume;

use super::atomic::Payload;
use super::content::{self, Medium};
use super::{Kind, Ready, Result, Setup};

/// The kind.
pub struct DownwardApi;

impl Kind for DownwardApi {
    fn takes(&self, volume: &Volume) -> bool {
        volume.downward_api.is_some()
    }

    fn set_up<'a>(&'a self, setup: Setup<'a>) -> BoxFuture<'a, Result<Ready>> {
        Box::pin(set_up(setup))
    }
}

async fn set_up(setup: Setup<'_>) -> Result<Ready> {
    let source = setup.volume.downward_api.clone().unwrap_or_default();
    let mode = source.default_mode.unwrap_or(content::DEFAULT_MODE);
    let mut payload = Payload::new();
    content::downward(&setup, source.items.as_deref(), mode, &mut payload)?;
    let mut ready = content::publish(&setup, "downward-api", Medium::Memory, payload).await?;
    ready.depends.metadata = true;
    Ok(ready)
}
