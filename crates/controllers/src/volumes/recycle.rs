//! Volumes of the deprecated policy `Recycle` are emptied by a pod, and are free again after that.
//!
//! ```text
//! Released ──> pod runs ──> it succeeded: Available
//!                      └──> it failed: Failed, and tried again later
//! ```

use client::{Change, Error, Key, Requeue, write};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeSpec, Pod};
use kube::{Api, api::PostParams};
use serde_json::{Value, json};

use super::{Binder, claim_key, plan::volume_ref, release};
use crate::{digest::is_over, pods};

/// Where the pods run that empty volumes.
const NAMESPACE: &str = "default";
const PREFIX: &str = "recycler-for-";
const IMAGE: &str = "registry.k8s.io/build-image/debian-base:bookworm-v1.0.6";
const SCRIPT: &str =
    "test -e /scrub && find /scrub -mindepth 1 -delete && test -z \"$(ls -A /scrub)\" || exit 1";
/// The reason of all events of what went wrong.
const FAILED: &str = "VolumeFailedRecycle";

/// The volume whose emptying has ended, well or not, as this change of a pod tells.
pub(super) fn told_by(change: &Change) -> Option<Key> {
    let volume = volume_of(&change.key)?;
    let was_over = change.old.as_deref().is_some_and(is_over);
    let ended = match change.new.as_deref() {
        Some(pod) => is_over(pod),
        None => !was_over,
    };
    ended.then_some(volume)
}

/// The volume that a pod empties.
fn volume_of(pod: &Key) -> Option<Key> {
    let name = pod.name.strip_prefix(PREFIX)?;
    (*pod.namespace == *NAMESPACE).then(|| Key::cluster(name))
}

/// How a volume is mounted to be emptied, and how long that may take: seconds at least, and for each GiB.
fn source(spec: &PersistentVolumeSpec) -> Option<(Value, i64, i64)> {
    if let Some(host) = &spec.host_path {
        return Some((json!({"hostPath": {"path": host.path}}), 60, 30));
    }
    let nfs = spec.nfs.as_ref()?;
    let source = json!({"nfs": {"server": nfs.server, "path": nfs.path}});
    Some((source, 300, 30))
}

/// The pod that empties a volume; `None`: nobody knows how to.
fn emptier(volume: &PersistentVolume) -> Option<Value> {
    const GIB: i64 = 1 << 30;
    let (mut source, least, each) = source(volume.spec.as_ref()?)?;
    let seconds = super::plan::capacity(volume).value() / GIB * each;
    source["name"] = "vol".into();
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    Some(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": format!("{PREFIX}{name}"), "namespace": NAMESPACE},
        "spec": {
            "activeDeadlineSeconds": seconds.max(least),
            "restartPolicy": "Never",
            "volumes": [source],
            "containers": [{
                "name": "pv-recycler",
                "image": IMAGE,
                "command": ["/bin/sh"],
                "args": ["-c", SCRIPT],
                "volumeMounts": [{"name": "vol", "mountPath": "/scrub"}],
            }],
        },
    }))
}

/// How it went; `None`: it goes on.
fn outcome(pod: &Pod) -> Option<Result<(), String>> {
    let message = pod.status.as_ref().and_then(|s| s.message.as_deref());
    match pods::phase(pod) {
        "Succeeded" => Some(Ok(())),
        "Failed" => {
            let message = message.filter(|m| !m.is_empty());
            Some(Err(message
                .unwrap_or("pod failed, pod.Status.Message unknown")
                .to_owned()))
        }
        _ => None,
    }
}

impl Binder {
    /// Empties a volume that its claim has let go of.
    pub(super) async fn recycle(
        &self,
        key: &Key,
        volume: &PersistentVolume,
    ) -> Result<Requeue, Error> {
        let users = self.names_of_users(volume);
        if !users.is_empty() {
            let message = format!("Volume is used by pods: {}", users.join(","));
            self.recorder.normal(volume, FAILED, message);
            return Ok(Requeue::OnChange);
        }
        let Some(new) = emptier(volume) else {
            let why = "No recycler plugin found for the volume!";
            self.fail(key, volume, FAILED, why).await?;
            return Ok(Requeue::OnChange);
        };
        let api: Api<Pod> = write::namespaced(&self.context.client, NAMESPACE);
        let name = format!("{PREFIX}{}", key.name);
        let Some(pod) = write::tolerate_missing(api.get(&name).await)? else {
            let new = serde_json::from_value(new).map_err(|e| Error::Other(e.to_string()))?;
            let made = api.create(&PostParams::default(), &new).await;
            return match made {
                Ok(_) => Ok(Requeue::OnChange),
                Err(e) => {
                    let why = Error::from(e).words();
                    let why = format!("unexpected error creating recycler pod:  {why}");
                    Err(self.failed_to_recycle(key, volume, &why).await?)
                }
            };
        };
        let Some(outcome) = outcome(&pod) else {
            return Ok(Requeue::OnChange);
        };
        write::delete(&api, &name, pod.metadata.uid.as_deref()).await?;
        if let Err(why) = outcome {
            let why = format!("failed to recycle volume: {why}");
            return Err(self.failed_to_recycle(key, volume, &why).await?);
        }
        self.recorder
            .normal(volume, "VolumeRecycled", "Volume recycled");
        self.set_free(key, volume).await?;
        Ok(Requeue::OnChange)
    }

    /// Says why it failed; answers the error that brings the next try.
    async fn failed_to_recycle(
        &self,
        key: &Key,
        volume: &PersistentVolume,
        why: &str,
    ) -> Result<Error, Error> {
        let why = format!("Recycle failed: {why}");
        self.fail(key, volume, FAILED, &why).await?;
        Ok(Error::Other(why))
    }

    /// Pods that have not ended of the claim that is gone; none if there is another one of its name by now.
    fn names_of_users(&self, volume: &PersistentVolume) -> Vec<String> {
        let Some(claim) = volume_ref(volume).map(claim_key) else {
            return Vec::new();
        };
        if self.claims.contains(&claim) {
            return Vec::new();
        }
        let mut users = self.users.of(&claim);
        users.retain(|pod| !pods::is_terminal(pod));
        let mut names: Vec<String> = users.iter().map(|p| Key::of(p).to_string()).collect();
        names.sort_unstable();
        names
    }

    /// Nobody has the volume any more.
    async fn set_free(&self, key: &Key, volume: &PersistentVolume) -> Result<(), Error> {
        let api: Api<PersistentVolume> = write::cluster(&self.context.client);
        write::patch(&api, &key.name, &release::unbound(volume)).await?;
        self.volume_phase(key, volume, "Available").await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pv;

    #[test]
    fn volumes_are_emptied_by_pods() {
        let folder = pv("v", "5Gi", json!({"hostPath": {"path": "/data"}}));
        let pod = emptier(&folder).unwrap();
        assert_eq!(pod["metadata"]["name"], "recycler-for-v");
        assert_eq!(pod["spec"]["activeDeadlineSeconds"], 150);
        let volume = json!({"name": "vol", "hostPath": {"path": "/data"}});
        assert_eq!(pod["spec"]["volumes"], json!([volume]));
        let share = json!({"nfs": {"server": "s", "path": "/p"}});
        let pod = emptier(&pv("v", "5Gi", share)).unwrap();
        assert_eq!(pod["spec"]["activeDeadlineSeconds"], 300);
        assert!(serde_json::from_value::<Pod>(pod).is_ok());
        let driver = json!({"csi": {"driver": "d", "volumeHandle": "h"}});
        assert_eq!(emptier(&pv("v", "5Gi", driver)), None);
        assert_eq!(
            volume_of(&Key::new("default", "recycler-for-v")),
            Some(Key::cluster("v"))
        );
        assert_eq!(volume_of(&Key::new("n", "recycler-for-v")), None);
    }

    #[test]
    fn how_it_went_is_known_when_the_pod_has_ended() {
        let of = |status: Value| {
            outcome(&serde_json::from_value(json!({"metadata": {}, "status": status})).unwrap())
        };
        assert_eq!(of(json!({"phase": "Running"})), None);
        assert_eq!(of(json!({"phase": "Succeeded"})), Some(Ok(())));
        for (status, why) in [
            (json!({"phase": "Failed", "message": "no"}), "no"),
            (
                json!({"phase": "Failed"}),
                "pod failed, pod.Status.Message unknown",
            ),
        ] {
            assert_eq!(of(status), Some(Err(why.to_owned())));
        }
    }
}
