//! `persistentVolumeClaim`: the PersistentVolume that a claim is bound to, if it is a path of this
//! node (`hostPath`, `local`).

use std::path::PathBuf;

use futures::future::BoxFuture;
use k8s_openapi::{
    api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Api;

use super::{Kind, Ready, Result, Setup, host_path, ownership};

/// The kind.
pub struct Claim;

impl Kind for Claim {
    fn takes(&self, volume: &Volume) -> bool {
        volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
    }

    fn set_up<'a>(&'a self, setup: Setup<'a>) -> BoxFuture<'a, Result<Ready>> {
        Box::pin(set_up(setup))
    }
}

/// The claim's name, and whether the pod may only read it. A generic ephemeral volume has a claim
/// of the pod's and the volume's name.
fn claim_of(setup: &Setup<'_>) -> (String, bool) {
    match &setup.volume.persistent_volume_claim {
        Some(source) => (source.claim_name.clone(), source.read_only == Some(true)),
        None => {
            let pod = setup.pod.metadata.name.as_deref().unwrap_or_default();
            (format!("{pod}-{}", setup.volume.name), false)
        }
    }
}

async fn set_up(setup: Setup<'_>) -> Result<Ready> {
    let (name, read_only) = claim_of(&setup);
    let client = setup.host.client.clone();
    let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), setup.namespace());
    let claim = claims
        .get_opt(&name)
        .await
        .map_err(|e| format!("error processing PVC {}/{name}: {e}", setup.namespace()))?
        .ok_or_else(|| {
            format!(
                "error processing PVC {}/{name}: persistentvolumeclaim \"{name}\" not found",
                setup.namespace()
            )
        })?;
    if claim.metadata.deletion_timestamp.is_some() && claim.metadata.finalizers.is_none() {
        return Err(format!(
            "error processing PVC {}/{name}: PVC is being deleted",
            setup.namespace()
        ));
    }
    if let Some(why) = not_made_for(setup.volume, setup.pod, &claim) {
        return Err(why);
    }
    let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let volume = claim
        .spec
        .as_ref()
        .and_then(|s| s.volume_name.clone())
        .filter(|v| bound && !v.is_empty());
    let Some(volume) = volume else {
        return Err(format!(
            "error processing PVC {}/{name}: PVC is not bound",
            setup.namespace()
        ));
    };
    let volume = Api::<PersistentVolume>::all(client)
        .get(&volume)
        .await
        .map_err(|e| format!("failed to fetch PV {volume} from API server: {e}"))?;
    let path = path_of(&volume)?;
    // The node's administrator owns hostPath data; `local` volumes follow fsGroup as upstream's do.
    let is_local = volume.spec.as_ref().is_some_and(|s| s.local.is_some());
    if let Some(group) = setup.fs_group().and_then(|g| u32::try_from(g).ok())
        && is_local
        && !read_only
        && !ownership::matches(&path, group)
    {
        let path = path.clone();
        tokio::task::spawn_blocking(move || ownership::set_group(&path, group, false))
            .await
            .map_err(|e| e.to_string())?
            .map_err(|e| e.to_string())?;
    }
    Ok(Ready {
        path,
        read_only,
        ..Ready::default()
    })
}

/// Why the claim of a volume that comes and goes with its pod is not the pod's: somebody else may have made one
/// of its name.
fn not_made_for(volume: &Volume, pod: &Pod, claim: &PersistentVolumeClaim) -> Option<String> {
    volume.ephemeral.as_ref()?;
    let pod = &pod.metadata;
    let mut owners = claim.metadata.owner_references.iter().flatten();
    if owners.any(|o| o.controller == Some(true) && Some(&o.uid) == pod.uid.as_ref()) {
        return None;
    }
    let name = |meta: &ObjectMeta| meta.name.clone().unwrap_or_default();
    let namespace = pod.namespace.as_deref().unwrap_or_default();
    Some(format!(
        "PVC {namespace}/{} was not created for pod {namespace}/{} (pod is not owner)",
        name(&claim.metadata),
        name(pod)
    ))
}

fn path_of(volume: &PersistentVolume) -> Result<PathBuf> {
    let spec = volume.spec.clone().unwrap_or_default();
    if let Some(source) = spec.host_path {
        let path = PathBuf::from(source.path);
        host_path::check(&path, source.type_.as_deref().unwrap_or_default())?;
        return Ok(path);
    }
    if let Some(source) = spec.local {
        let path = PathBuf::from(source.path);
        host_path::check(&path, "Directory")
            .map_err(|_| format!("path \"{}\" does not exist", path.display()))?;
        return Ok(path);
    }
    Err("no volume plugin matched".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_claim_that_others_made_is_not_the_pods() {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}}),
        )
        .unwrap();
        let claim = |owners: Value| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {"name": "p-v", "ownerReferences": owners}}))
                .unwrap()
        };
        let owner = |uid: &str| json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true}]);
        let volume = |kind: &str, source: Value| -> Volume {
            serde_json::from_value(json!({"name": "v", kind: source})).unwrap()
        };
        let made = volume("ephemeral", json!({}));
        let named = volume("persistentVolumeClaim", json!({"claimName": "p-v"}));
        let why = "PVC n/p-v was not created for pod n/p (pod is not owner)";
        for (volume, owners, expected) in [
            (&made, owner("u"), None),
            (&made, owner("before"), Some(why)),
            (&made, json!([]), Some(why)),
            (&named, json!([]), None),
        ] {
            let found = not_made_for(volume, &pod, &claim(owners.clone()));
            assert_eq!(found.as_deref(), expected, "{volume:?} {owners}");
        }
    }
}
