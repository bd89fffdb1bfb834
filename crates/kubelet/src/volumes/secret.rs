//! `secret`: the keys of a Secret as files in memory, kept current.

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Volume;

use super::atomic::Payload;
use super::content::{self, Medium};
use super::{Kind, Ready, Result, Setup};

/// The kind.
pub struct SecretKind;

impl Kind for SecretKind {
    fn takes(&self, volume: &Volume) -> bool {
        volume.secret.is_some()
    }

    fn set_up<'a>(&'a self, setup: Setup<'a>) -> BoxFuture<'a, Result<Ready>> {
        Box::pin(set_up(setup))
    }
}

async fn set_up(setup: Setup<'_>) -> Result<Ready> {
    let source = setup.volume.secret.clone().unwrap_or_default();
    let name = source.secret_name.unwrap_or_default();
    let optional = source.optional == Some(true);
    let mut held = setup.host.secrets.hold(setup.namespace(), &name);
    let mut payload = Payload::new();
    match held.get().await {
        Some(secret) => {
            let data = content::secret_data(&secret);
            let mode = source.default_mode.unwrap_or(content::DEFAULT_MODE);
            content::choose(&data, source.items.as_deref(), mode, optional, &mut payload)
                .map_err(|e| e.replace("config key", "secret key"))?;
        }
        None if optional => {}
        None => return Err(format!("secret \"{name}\" not found")),
    }
    let mut ready = content::publish(&setup, "secret", Medium::Memory, payload).await?;
    ready.depends.secrets.push(held);
    Ok(ready)
}
