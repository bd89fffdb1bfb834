//! `configMap`: the keys of a ConfigMap as files, kept current.

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Volume;

use super::atomic::Payload;
use super::content::{self, Medium};
use super::{Kind, Ready, Result, Setup};

/// The kind.
pub struct ConfigMapKind;

impl Kind for ConfigMapKind {
    fn takes(&self, volume: &Volume) -> bool {
        volume.config_map.is_some()
    }

    fn set_up<'a>(&'a self, setup: Setup<'a>) -> BoxFuture<'a, Result<Ready>> {
        Box::pin(set_up(setup))
    }
}

async fn set_up(setup: Setup<'_>) -> Result<Ready> {
    let source = setup.volume.config_map.clone().unwrap_or_default();
    let optional = source.optional == Some(true);
    let mut held = setup.host.config_maps.hold(setup.namespace(), &source.name);
    let mut payload = Payload::new();
    match held.get().await {
        Some(map) => {
            let data = content::config_map_data(&map);
            let mode = source.default_mode.unwrap_or(content::DEFAULT_MODE);
            content::choose(&data, source.items.as_deref(), mode, optional, &mut payload)
                .map_err(|e| format!("configmap {e}"))?;
        }
        None if optional => {}
        None => return Err(format!("configmap \"{}\" not found", source.name)),
    }
    let mut ready = content::publish(&setup, "configmap", Medium::Disk, payload).await?;
    ready.depends.config_maps.push(held);
    Ok(ready)
}
