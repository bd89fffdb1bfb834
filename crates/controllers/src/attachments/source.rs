//! What pods, claims, volumes and attachments say of each other. Pure.

use aws_lc_rs::digest;
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume},
    storage::v1::VolumeAttachment,
};

/// What nodes call volumes of drivers begins with this.
pub const DEVICE_PREFIX: &str = "kubernetes.io/csi/";
/// Our attachments are called this, followed by a hash in 64 digits.
const NAME_PREFIX: &str = "csi-";
const NAME_LEN: usize = NAME_PREFIX.len() + 64;

/// Where a volume comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Source<'a> {
    /// The driver.
    pub driver: &'a str,
    /// What the driver calls it.
    handle: &'a str,
}

impl<'a> Source<'a> {
    /// Of a volume that a driver provides.
    pub fn of(volume: &'a PersistentVolume) -> Option<Self> {
        let csi = volume.spec.as_ref()?.csi.as_ref()?;
        Some(Self {
            driver: &csi.driver,
            handle: &csi.volume_handle,
        })
    }

    /// What nodes call the volume.
    pub fn device(self) -> String {
        format!("{DEVICE_PREFIX}{}^{}", self.driver, self.handle)
    }

    /// The attachment of the volume to a node; drivers know the name, too.
    pub fn attachment_name(self, node: &str) -> String {
        let text = format!("{}{}{node}", self.handle, self.driver);
        let hash = digest::digest(&digest::SHA256, text.as_bytes());
        let digits: String = hash.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        format!("{NAME_PREFIX}{digits}")
    }
}

/// Whether an attachment was made here and not by somebody else.
pub fn is_ours(attachment: &VolumeAttachment) -> bool {
    let name = attachment.metadata.name.as_deref().unwrap_or_default();
    let by_volume = attachment.spec.source.persistent_volume_name.is_some();
    by_volume && name.starts_with(NAME_PREFIX) && name.len() == NAME_LEN
}

/// Whether a volume can be attached to one node only.
pub fn is_exclusive(volume: &PersistentVolume) -> bool {
    let modes = volume.spec.as_ref().and_then(|s| s.access_modes.as_deref());
    let shared = |m: &String| matches!(m.as_str(), "ReadWriteMany" | "ReadOnlyMany");
    modes.is_some_and(|modes| !modes.is_empty() && !modes.iter().any(shared))
}

/// The volume that a claim is bound to.
pub fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
    let name = claim.spec.as_ref()?.volume_name.as_deref();
    name.filter(|name| phase == Some("Bound") && !name.is_empty())
}

/// Whether a volume is the claim's: anybody can name anybody's volume in a claim.
pub fn belongs_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    reference.is_some_and(|r| r.uid.is_some() && r.uid == claim.metadata.uid)
}

/// A claim that a pod mounts.
#[derive(Clone, Debug, PartialEq)]
pub struct MountedClaim {
    /// Its name.
    pub name: String,
    /// Whether it was made for the pod.
    ephemeral: bool,
}

impl MountedClaim {
    /// Whether this claim is the one that is meant: one made for another pod has its name by chance.
    pub fn is(&self, claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
        !self.ephemeral || crate::claim::is_of(claim, pod)
    }
}

/// The claims that a pod mounts.
pub fn claims_of(pod: &Pod) -> Vec<MountedClaim> {
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let of_volume = |volume: &Volume| {
        let claim = volume.persistent_volume_claim.as_ref();
        let ephemeral = claim.is_none();
        let named = claim.map(|c| c.claim_name.clone());
        let made = || Some(format!("{pod_name}-{}", volume.name));
        let name = named.or_else(|| volume.ephemeral.as_ref().and_then(|_| made()))?;
        Some(MountedClaim { name, ephemeral })
    };
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
    let volumes = volumes.into_iter().flatten();
    volumes.filter_map(of_volume).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_those_that_drivers_know() {
        let (one, other) = ("vol-1", "vol-2");
        let source = |handle| Source {
            driver: "ebs.csi.aws.com",
            handle,
        };
        let name = source(one).attachment_name("node-1");
        assert_eq!(name.len(), NAME_LEN);
        assert_ne!(name, source(other).attachment_name("node-1"));
        assert_ne!(name, source(one).attachment_name("node-2"));
        let device = "kubernetes.io/csi/ebs.csi.aws.com^vol-1";
        assert_eq!(source(one).device(), device);
    }

    #[test]
    fn only_volumes_that_are_never_shared_are_exclusive() {
        for (modes, expected) in [
            (json!(["ReadWriteOnce"]), true),
            (json!(["ReadWriteOncePod"]), true),
            (json!(["ReadWriteOnce", "ReadOnlyMany"]), false),
            (json!(["ReadWriteMany"]), false),
            (json!([]), false),
        ] {
            let volume = json!({"spec": {"accessModes": modes}});
            let volume = serde_json::from_value(volume).unwrap();
            assert_eq!(is_exclusive(&volume), expected, "{modes}");
        }
    }

    #[test]
    fn volumes_of_others_are_not_attached_for_a_claim_that_names_them() {
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "metadata": {"uid": "u"}, "spec": {"volumeName": "v"}, "status": {"phase": "Bound"}}))
        .unwrap();
        assert_eq!(volume_name(&claim), Some("v"));
        for (reference, expected) in [
            (json!({"uid": "u"}), true),
            (json!({"uid": "other"}), false),
            (json!(null), false),
        ] {
            let volume = json!({"metadata": {}, "spec": {"claimRef": reference}});
            let volume = serde_json::from_value(volume).unwrap();
            assert_eq!(belongs_to(&volume, &claim), expected, "{reference}");
        }
    }

    #[test]
    fn a_claim_made_for_another_pod_is_not_the_pods() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"},
            "spec": {"containers": [], "volumes": [
                {"name": "a", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "b", "ephemeral": {}},
                {"name": "c", "emptyDir": {}}]}}))
        .unwrap();
        let claims = claims_of(&pod);
        let names: Vec<&str> = claims.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["data", "p-b"]);
        let claim = |owner: &str| -> PersistentVolumeClaim {
            let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": owner, "controller": true});
            serde_json::from_value(json!({"metadata": {"ownerReferences": [owner]}})).unwrap()
        };
        assert!(claims[0].is(&claim("other"), &pod));
        assert!(claims[1].is(&claim("u"), &pod));
        assert!(!claims[1].is(&claim("other"), &pod));
    }
}
