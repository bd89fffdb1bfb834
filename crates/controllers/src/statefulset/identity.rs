//! The pods of a StatefulSet by ordinal, and the claims that go with each. Pure.

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{
            PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
        },
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

use crate::{claim, pods};

/// The label of pods that holds their name, for Services of one pod.
pub const NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
/// The label of pods that holds their ordinal.
pub const INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";
/// The label of pods that names the revision of their template.
pub const REVISION_LABEL: &str = "controller-revision-hash";

/// The first ordinal.
pub fn first(set: &StatefulSet) -> u32 {
    let start = set.spec.ordinals.as_ref().and_then(|o| o.start);
    start.and_then(|s| u32::try_from(s).ok()).unwrap_or(0)
}

/// The number of replicas.
pub fn replicas(set: &StatefulSet) -> u32 {
    u32::try_from(set.spec.replicas.unwrap_or(1)).unwrap_or(0)
}

/// The ordinals that shall exist.
pub fn ordinals(set: &StatefulSet) -> std::ops::Range<u32> {
    let first = first(set);
    first..first.saturating_add(replicas(set))
}

fn set_name(set: &StatefulSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

/// The name of the pod of an ordinal.
pub fn pod_name(set: &StatefulSet, ordinal: u32) -> String {
    format!("{}-{ordinal}", set_name(set))
}

/// The ordinal in a pod's name; `None`: it is no pod of the set.
pub fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<u32> {
    let name = pod.metadata.name.as_deref()?;
    let number = name.strip_prefix(set_name(set))?.strip_prefix('-')?;
    let ordinal = number.parse().ok()?;
    (pod_name(set, ordinal) == name).then_some(ordinal)
}

/// The name of the revision a pod was made from.
pub fn revision(pod: &Pod) -> &str {
    let labels = pod.metadata.labels.as_ref();
    labels
        .and_then(|l| l.get(REVISION_LABEL))
        .map_or("", String::as_str)
}

/// Whether the labels of a pod say who it is.
pub fn is_labelled(pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|l| l.get(NAME_LABEL)) == pod.metadata.name.as_ref()
}

/// The labels that say who the pod of an ordinal is.
pub fn labels(set: &StatefulSet, ordinal: u32) -> [(String, String); 2] {
    [
        (NAME_LABEL.to_owned(), pod_name(set, ordinal)),
        (INDEX_LABEL.to_owned(), ordinal.to_string()),
    ]
}

/// Whether a pod has the claims of its ordinal for volumes: one that was adopted may have others.
pub fn has_claims(set: &StatefulSet, pod: &Pod, ordinal: u32) -> bool {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref());
    let mut templates = set.spec.volume_claim_templates.iter().flatten();
    templates.all(|template| {
        let wanted = volume(set, template, ordinal);
        let claim = |v: &Volume| Some(v.persistent_volume_claim.as_ref()?.claim_name.clone());
        let mut found = volumes.unwrap_or_default().iter();
        found.any(|v| v.name == wanted.name && claim(v) == claim(&wanted))
    })
}

/// Gives a pod the claims of its ordinal for volumes, in the place of others of their names.
fn store(set: &StatefulSet, pod: &mut Pod, ordinal: u32) {
    let templates = set.spec.volume_claim_templates.iter().flatten();
    let claimed: Vec<Volume> = templates.map(|t| volume(set, t, ordinal)).collect();
    if !claimed.is_empty() {
        let volumes = pod
            .spec
            .get_or_insert_default()
            .volumes
            .get_or_insert_default();
        volumes.retain(|v| claimed.iter().all(|c| c.name != v.name));
        volumes.extend(claimed);
    }
}

/// A pod of an ordinal as it should be: with its labels and claims.
pub fn conformed(set: &StatefulSet, pod: &Pod, ordinal: u32) -> Pod {
    let mut pod = pod.clone();
    let known = pod.metadata.labels.get_or_insert_default();
    known.extend(labels(set, ordinal));
    store(set, &mut pod, ordinal);
    pod
}

/// The pod of an ordinal, made from a template that is known as `revision`.
pub fn pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: u32) -> Pod {
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let owner = claim::owner_reference(set);
    let mut pod = pods::from_template(template, namespace, set_name(set), owner);
    let name = pod_name(set, ordinal);
    pod.metadata.name = Some(name.clone());
    let known = pod.metadata.labels.get_or_insert_default();
    known.extend(labels(set, ordinal));
    known.insert(REVISION_LABEL.to_owned(), revision.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain = set.spec.service_name.clone().filter(|s| !s.is_empty());
    store(set, &mut pod, ordinal);
    pod
}

fn volume(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: u32) -> Volume {
    Volume {
        name: template.metadata.name.clone().unwrap_or_default(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim_name(set, template, ordinal),
            read_only: None,
        }),
        ..Volume::default()
    }
}

fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: u32) -> String {
    let template = template.metadata.name.as_deref().unwrap_or_default();
    format!("{template}-{}-{ordinal}", set_name(set))
}

/// The claims of an ordinal.
pub fn claims(set: &StatefulSet, ordinal: u32) -> Vec<PersistentVolumeClaim> {
    let chosen = set.spec.selector.match_labels.as_ref();
    let templates = set.spec.volume_claim_templates.iter().flatten();
    templates
        .map(|template| {
            let meta = &template.metadata;
            let mut labels = meta.labels.clone().unwrap_or_default();
            labels.extend(chosen.cloned().unwrap_or_default());
            PersistentVolumeClaim {
                metadata: ObjectMeta {
                    name: Some(claim_name(set, template, ordinal)),
                    namespace: set.metadata.namespace.clone(),
                    labels: Some(labels),
                    annotations: meta.annotations.clone(),
                    ..ObjectMeta::default()
                },
                spec: template.spec.clone(),
                status: None,
            }
        })
        .collect()
}

/// With whom a claim goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// With nobody: it stays.
    None,
    /// With the set.
    Set,
    /// With its pod.
    Pod,
}

/// With whom the claims of a pod go, as the set's policy says.
pub fn keeper(set: &StatefulSet, ordinal: u32) -> Keeper {
    let policy = set.spec.persistent_volume_claim_retention_policy.as_ref();
    let deletes = |when: Option<&String>| when.is_some_and(|w| w == "Delete");
    let deleted = deletes(policy.and_then(|p| p.when_deleted.as_ref()));
    let scaled = deletes(policy.and_then(|p| p.when_scaled.as_ref()));
    match (scaled && !ordinals(set).contains(&ordinal), deleted) {
        (true, _) => Keeper::Pod,
        (false, true) => Keeper::Set,
        (false, false) => Keeper::None,
    }
}

fn owners_of(claim: &PersistentVolumeClaim) -> &[OwnerReference] {
    let owners = claim.metadata.owner_references.as_deref();
    owners.unwrap_or_default()
}

/// The owners a claim should have, if they are others than it has; `pod` is the one it goes with. One that
/// goes with an earlier set or pod of the name is left alone, and next to another controller nobody else is put.
pub fn owners(
    set: &StatefulSet,
    pod: &Pod,
    ordinal: u32,
    claim: &PersistentVolumeClaim,
) -> Option<Vec<OwnerReference>> {
    let current = owners_of(claim);
    let ours = [claim::owner_reference(set), claim::owner_reference(pod)];
    let is_named = |o: &OwnerReference, by: &OwnerReference| {
        (&o.api_version, &o.kind, &o.name) == (&by.api_version, &by.kind, &by.name)
    };
    let mut named = current
        .iter()
        .flat_map(|o| ours.iter().map(move |by| (o, by)));
    if named.any(|(o, by)| is_named(o, by) && o.uid != by.uid) {
        return None;
    }
    let mut wanted = current.to_vec();
    wanted.retain(|o| !ours.iter().any(|by| is_named(o, by)));
    let owner = match keeper(set, ordinal) {
        _ if has_conflict(set, pod, claim) => None,
        Keeper::None => None,
        Keeper::Set => Some(&ours[0]),
        Keeper::Pod => Some(&ours[1]),
    };
    wanted.extend(owner.cloned());
    let is_as_wanted = wanted.len() == current.len() && wanted.iter().all(|o| current.contains(o));
    (!is_as_wanted).then_some(wanted)
}

/// Whether a claim that the set's policy speaks of has a controller that is neither the set nor the pod.
pub fn has_conflict(set: &StatefulSet, pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let policy = set.spec.persistent_volume_claim_retention_policy.as_ref();
    let deletes = |when: Option<&String>| when.is_some_and(|w| w == "Delete");
    let speaks = deletes(policy.and_then(|p| p.when_deleted.as_ref()))
        || deletes(policy.and_then(|p| p.when_scaled.as_ref()));
    let ours = [set.metadata.uid.as_ref(), pod.metadata.uid.as_ref()];
    let mut owners = owners_of(claim).iter();
    speaks && owners.any(|o| o.controller == Some(true) && !ours.contains(&Some(&o.uid)))
}

/// Whether a claim still goes with a pod of this name that is no more.
pub fn is_stale(claim: &PersistentVolumeClaim, name: &str) -> bool {
    let mut owners = owners_of(claim).iter();
    owners.any(|o| o.kind == "Pod" && o.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(spec: Value) -> StatefulSet {
        let mut set = json!({
            "metadata": {"name": "web", "namespace": "n", "uid": "s"},
            "spec": {"replicas": 2, "serviceName": "svc", "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [],
                    "volumes": [{"name": "data", "emptyDir": {}}]}},
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]},
        });
        for (key, value) in spec.as_object().unwrap() {
            set["spec"][key] = value.clone();
        }
        serde_json::from_value(set).unwrap()
    }

    fn named(name: &str, uid: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "uid": uid}})).unwrap()
    }

    #[test]
    fn names_and_ordinals() {
        let set = set(json!({"ordinals": {"start": 3}}));
        assert_eq!(ordinals(&set), 3..5);
        for (name, expected) in [
            ("web-0", Some(0)),
            ("web-12", Some(12)),
            ("web-012", None),
            ("web-", None),
            ("web-x", None),
            ("webb-1", None),
            ("web-1-1", None),
        ] {
            assert_eq!(ordinal(&set, &named(name, "u")), expected, "{name}");
        }
    }

    #[test]
    fn a_pod_knows_who_it_is_and_brings_its_claims() {
        let set = set(json!({}));
        let pod = pod(&set, &set.spec.template, "web-abc", 1);
        let labels = pod.metadata.labels.as_ref().unwrap();
        assert_eq!(labels[NAME_LABEL], "web-1");
        assert_eq!(labels[INDEX_LABEL], "1");
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("web-"));
        assert_eq!((revision(&pod), is_labelled(&pod)), ("web-abc", true));
        let spec = pod.spec.unwrap();
        assert_eq!(
            (spec.hostname.as_deref(), spec.subdomain.as_deref()),
            (Some("web-1"), Some("svc"))
        );
        let volumes = spec.volumes.unwrap();
        assert_eq!(volumes.len(), 1);
        let claim = volumes[0].persistent_volume_claim.as_ref().unwrap();
        assert_eq!(claim.claim_name, "data-web-1");
        let claims = claims(&set, 1);
        assert_eq!(claims[0].metadata.name.as_deref(), Some("data-web-1"));
        assert_eq!(claims[0].metadata.labels.as_ref().unwrap()["a"], "b");
    }

    #[test]
    fn claims_of_others_are_left_to_them() {
        let policy = json!({"whenDeleted": "Delete", "whenScaled": "Delete"});
        let set = set(json!({"persistentVolumeClaimRetentionPolicy": policy}));
        let pod = named("web-0", "p");
        let owned = |owners: Vec<OwnerReference>| {
            let mut claim = claims(&set, 0).remove(0);
            claim.metadata.owner_references = Some(owners);
            claim
        };
        let ours = claim::owner_reference(&set);
        let foreign = OwnerReference {
            kind: "Disk".into(),
            name: "d".into(),
            uid: "d".into(),
            ..ours.clone()
        };
        let bystander = OwnerReference {
            controller: None,
            ..foreign.clone()
        };
        let former = OwnerReference {
            uid: "former".into(),
            ..ours.clone()
        };
        for (given, wanted, conflict) in [
            (vec![], Some(vec![ours.clone()]), false),
            (vec![ours.clone(), bystander.clone()], None, false),
            (
                vec![bystander.clone()],
                Some(vec![bystander, ours.clone()]),
                false,
            ),
            (vec![foreign.clone()], None, true),
            (vec![foreign.clone(), ours], Some(vec![foreign]), true),
            // Whoever made it goes: nobody touches it.
            (vec![former], None, true),
        ] {
            let claim = owned(given.clone());
            assert_eq!(owners(&set, &pod, 0, &claim), wanted, "{given:?}");
            assert_eq!(has_conflict(&set, &pod, &claim), conflict, "{given:?}");
        }
    }

    #[test]
    fn claims_go_with_whom_the_policy_says() {
        for (deleted, scaled, ordinal, expected) in [
            ("Retain", "Retain", 0, Keeper::None),
            ("Retain", "Retain", 5, Keeper::None),
            ("Delete", "Retain", 0, Keeper::Set),
            ("Delete", "Retain", 5, Keeper::Set),
            ("Retain", "Delete", 0, Keeper::None),
            ("Retain", "Delete", 5, Keeper::Pod),
            ("Delete", "Delete", 0, Keeper::Set),
            ("Delete", "Delete", 5, Keeper::Pod),
        ] {
            let policy = json!({"whenDeleted": deleted, "whenScaled": scaled});
            let set = set(json!({"persistentVolumeClaimRetentionPolicy": policy}));
            assert_eq!(
                keeper(&set, ordinal),
                expected,
                "{deleted} {scaled} {ordinal}"
            );
            let pod = named(&pod_name(&set, ordinal), "p");
            let mut claim = claims(&set, ordinal).remove(0);
            let mut steps = 0;
            while let Some(owners) = owners(&set, &pod, ordinal, &claim) {
                claim.metadata.owner_references = Some(owners);
                steps += 1;
                assert!(steps < 3);
            }
            let count = claim.metadata.owner_references.iter().flatten().count();
            assert_eq!(count, usize::from(expected != Keeper::None));
            assert_eq!(
                is_stale(&claim, &pod_name(&set, ordinal)),
                expected == Keeper::Pod
            );
        }
    }
}
