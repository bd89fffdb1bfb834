//! What configMap, secret, projected and downwardAPI volumes have in common: choose keys, write them
//! atomically.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Secret};

use super::atomic::{self, File, Payload};
use super::{Ready, Result, Setup, mounts};
use crate::downward;

/// Mode of files that name none.
pub const DEFAULT_MODE: i32 = 0o644;

/// Where the files live.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// On the node's disk.
    Disk,
    /// In memory: secrets do not touch the disk.
    Memory,
}

fn mode(own: Option<i32>, default: i32) -> u32 {
    u32::try_from(own.unwrap_or(default)).unwrap_or(0o644)
}

/// All data of a ConfigMap.
pub fn config_map_data(map: &ConfigMap) -> BTreeMap<&str, &[u8]> {
    let text = map
        .data
        .iter()
        .flatten()
        .map(|(k, v)| (k.as_str(), v.as_bytes()));
    let binary = map
        .binary_data
        .iter()
        .flatten()
        .map(|(k, v)| (k.as_str(), v.0.as_slice()));
    text.chain(binary).collect()
}

/// All data of a Secret.
pub fn secret_data(secret: &Secret) -> BTreeMap<&str, &[u8]> {
    secret
        .data
        .iter()
        .flatten()
        .map(|(k, v)| (k.as_str(), v.0.as_slice()))
        .collect()
}

/// The files that `items` choose from `data` (all if there are none), added to `out`.
///
/// # Errors
/// When a chosen key is missing and not `optional`.
pub fn choose(
    data: &BTreeMap<&str, &[u8]>,
    items: Option<&[KeyToPath]>,
    default_mode: i32,
    optional: bool,
    out: &mut Payload,
) -> Result<()> {
    let items = items.unwrap_or_default();
    if items.is_empty() {
        for (key, bytes) in data {
            out.insert(
                (*key).to_owned(),
                File {
                    bytes: bytes.to_vec(),
                    mode: mode(None, default_mode),
                },
            );
        }
        return Ok(());
    }
    for item in items {
        match data.get(item.key.as_str()) {
            Some(bytes) => {
                let file = File {
                    bytes: bytes.to_vec(),
                    mode: mode(item.mode, default_mode),
                };
                out.insert(item.path.clone(), file);
            }
            None if optional => {}
            None => return Err(format!("references non-existent config key: {}", item.key)),
        }
    }
    Ok(())
}

/// The files of downward API items, added to `out`.
///
/// # Errors
/// When a field or resource is not known.
pub fn downward(
    setup: &Setup<'_>,
    items: Option<&[DownwardAPIVolumeFile]>,
    default_mode: i32,
    out: &mut Payload,
) -> Result<()> {
    for item in items.unwrap_or_default() {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => downward::field(setup.pod, &field.field_path, setup.place)?,
            (None, Some(resource)) => downward::resource(setup.pod, resource, None, setup.place)?,
            (None, None) => String::new(),
        };
        let file = File {
            bytes: text.into_bytes(),
            mode: mode(item.mode, default_mode),
        };
        out.insert(item.path.clone(), file);
    }
    Ok(())
}

/// Writes `payload` to the volume's folder.
///
/// # Errors
/// The file system's.
pub async fn publish(
    setup: &Setup<'_>,
    kind: &str,
    medium: Medium,
    payload: Payload,
) -> Result<Ready> {
    let dir = setup.dir(kind);
    let group = setup.fs_group().and_then(|g| u32::try_from(g).ok());
    let path = dir.clone();
    tokio::task::spawn_blocking(move || write(&dir, medium, &payload, group))
        .await
        .map_err(|e| e.to_string())?
        .map_err(|e| e.to_string())?;
    Ok(Ready {
        path,
        read_only: true,
        ..Ready::default()
    })
}

fn write(dir: &Path, medium: Medium, payload: &Payload, group: Option<u32>) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    if medium == Medium::Memory {
        mounts::tmpfs(dir, None, 0o777)?;
    }
    atomic::write(dir, payload, group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_are_chosen_and_moded() {
        let map: ConfigMap = serde_json::from_value(
            json!({"data": {"a": "1", "b": "2"}, "binaryData": {"c": "AP8="}}),
        )
        .unwrap();
        let data = config_map_data(&map);
        let mut all = Payload::new();
        choose(&data, None, 0o600, false, &mut all).unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(
            (all["c"].bytes.as_slice(), all["c"].mode),
            (&[0, 255][..], 0o600)
        );

        let items: Vec<KeyToPath> = serde_json::from_value(
            json!([{"key": "a", "path": "x/y", "mode": 256}, {"key": "none", "path": "z"}]),
        )
        .unwrap();
        let mut some = Payload::new();
        choose(&data, Some(&items), 0o644, true, &mut some).unwrap();
        assert_eq!(some.len(), 1);
        assert_eq!(some["x/y"].mode, 0o400);
        let error = choose(&data, Some(&items), 0o644, false, &mut some).unwrap_err();
        assert_eq!(error, "references non-existent config key: none");
    }
}
