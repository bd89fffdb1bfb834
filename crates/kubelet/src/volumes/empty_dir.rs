//! `emptyDir`: a folder that lives as long as the pod, on disk or in memory.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Volume;

use super::{Kind, Ready, Result, Setup, mounts, ownership};
use crate::quantity;

/// Mode of the folder unless the volume names one.
const MODE: u32 = 0o777;

/// The kind.
pub struct EmptyDir;

impl Kind for EmptyDir {
    fn takes(&self, volume: &Volume) -> bool {
        volume.empty_dir.is_some()
    }

    fn set_up<'a>(&'a self, setup: Setup<'a>) -> BoxFuture<'a, Result<Ready>> {
        Box::pin(async move { set_up(&setup).map_err(|e| e.to_string()) })
    }
}

fn set_up(setup: &Setup<'_>) -> std::io::Result<Ready> {
    let source = setup.volume.empty_dir.clone().unwrap_or_default();
    let path = setup.dir("empty-dir");
    let mode = source
        .mode
        .and_then(|m| u32::try_from(m).ok())
        .unwrap_or(MODE);
    match source.medium.as_deref().unwrap_or_default() {
        "" => {}
        "Memory" => {
            std::fs::create_dir_all(&path)?;
            mounts::tmpfs(&path, source.size_limit.as_ref().map(quantity::units), mode)?;
        }
        other => {
            return Err(std::io::Error::other(format!(
                "unknown storage medium \"{other}\""
            )));
        }
    }
    // A second set-up must not undo what the pod did to its folder.
    let fresh = !path.exists();
    std::fs::create_dir_all(&path)?;
    if fresh {
        std::fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }
    if let Some(group) = setup.fs_group().and_then(|g| u32::try_from(g).ok())
        && !ownership::matches(&path, group)
    {
        ownership::set_group(&path, group, false)?;
    }
    Ok(Ready {
        path,
        ..Ready::default()
    })
}
