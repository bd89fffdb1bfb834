//! `projected`: service account tokens, ConfigMaps, Secrets and pod fields in one folder, all kept
//! current.

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{ServiceAccountTokenProjection, Volume, VolumeProjection};

use super::atomic::{File, Payload};
use super::content::{self, Medium};
use super::{Depends, Kind, Ready, Result, Setup};

/// The kind.
pub struct Projected;

impl Kind for Projected {
    fn takes(&self, volume: &Volume) -> bool {
        volume.projected.is_some()
    }

    fn set_up<'a>(&'a self, setup: Setup<'a>) -> BoxFuture<'a, Result<Ready>> {
        Box::pin(set_up(setup))
    }
}

async fn set_up(setup: Setup<'_>) -> Result<Ready> {
    let source = setup.volume.projected.clone().unwrap_or_default();
    let mode = source.default_mode.unwrap_or(content::DEFAULT_MODE);
    let mut payload = Payload::new();
    let mut depends = Depends::default();
    for one in source.sources.iter().flatten() {
        add(&setup, one, mode, &mut payload, &mut depends).await?;
    }
    let mut ready = content::publish(&setup, "projected", Medium::Memory, payload).await?;
    ready.depends = depends;
    Ok(ready)
}

async fn add(
    setup: &Setup<'_>,
    source: &VolumeProjection,
    mode: i32,
    payload: &mut Payload,
    depends: &mut Depends,
) -> Result<()> {
    if let Some(map) = &source.config_map {
        let mut held = setup.host.config_maps.hold(setup.namespace(), &map.name);
        let optional = map.optional == Some(true);
        let found = held.get().await;
        depends.config_maps.push(held);
        match found {
            Some(found) => {
                let data = content::config_map_data(&found);
                content::choose(&data, map.items.as_deref(), mode, optional, payload)?;
            }
            None if optional => {}
            None => return Err(format!("configmap \"{}\" not found", map.name)),
        }
    }
    if let Some(secret) = &source.secret {
        let mut held = setup.host.secrets.hold(setup.namespace(), &secret.name);
        let optional = secret.optional == Some(true);
        let found = held.get().await;
        depends.secrets.push(held);
        match found {
            Some(found) => {
                let data = content::secret_data(&found);
                content::choose(&data, secret.items.as_deref(), mode, optional, payload)?;
            }
            None if optional => {}
            None => return Err(format!("secret \"{}\" not found", secret.name)),
        }
    }
    if let Some(fields) = &source.downward_api {
        content::downward(setup, fields.items.as_deref(), mode, payload)?;
        depends.metadata = true;
    }
    if let Some(token) = &source.service_account_token {
        add_token(setup, token, mode, payload, depends).await?;
    }
    if source.cluster_trust_bundle.is_some() || source.pod_certificate.is_some() {
        return Err("clusterTrustBundle and podCertificate sources are not supported".to_owned());
    }
    Ok(())
}

async fn add_token(
    setup: &Setup<'_>,
    source: &ServiceAccountTokenProjection,
    mode: i32,
    payload: &mut Payload,
    depends: &mut Depends,
) -> Result<()> {
    let tokens = &setup.host.tokens;
    let token = tokens
        .get(&setup.host.client, setup.pod, source)
        .await
        .map_err(|e| format!("failed to fetch token: {e}"))?;
    let mode = if setup.fs_group().is_some() {
        0o600
    } else {
        mode
    };
    let file = File {
        bytes: token.token.into_bytes(),
        mode: u32::try_from(mode).unwrap_or(0o644),
    };
    payload.insert(source.path.clone(), file);
    depends.refresh_at = [depends.refresh_at, Some(token.refresh_at)]
        .into_iter()
        .flatten()
        .min();
    Ok(())
}
