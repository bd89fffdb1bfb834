//! Which volume a claim gets, and what becomes of a volume whose claim has gone. Pure.

use std::{collections::BTreeMap, str::FromStr};

use api::{quantity::Quantity, storage_class};
use client::{EventType, Selector};
use k8s_openapi::{
    api::{
        core::v1::{
            NodeSelector, NodeSelectorRequirement, ObjectReference, PersistentVolume,
            PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeSpec,
        },
        storage::v1::StorageClass,
    },
    apimachinery::pkg::{api::resource::Quantity as Text, apis::meta::v1::ObjectMeta},
};

/// On a claim whose binding is settled.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On an object whose side of the binding was written here, not by a user.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a volume: who made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: the node its first pod will run on.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// The node a claim's first pod will run on.
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// What the pods that name a claim say about where it is needed.
#[derive(Debug, Default)]
pub struct Consumers {
    /// Those that have no node yet.
    pub waiting: Vec<String>,
    /// The node of one that has.
    pub node: Option<String>,
}

/// What is to be done about a claim.
#[derive(Debug, PartialEq)]
pub enum ClaimAct {
    /// Bind it to this volume, as far as that is not done yet.
    Bind(Box<PersistentVolume>),
    /// It has to wait, for this reason if it is worth an event.
    Wait(Option<(EventType, &'static str, String)>),
    /// A volume has to be made for it.
    Provision,
    /// It is needed on this node, which nobody has noted on it.
    Select(String),
    /// Its volume is gone or somebody else's.
    Lost(&'static str, &'static str),
}

/// Decides about a claim. `node` is the one that its first pod will run on.
pub fn claim(
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
    volumes: &[PersistentVolume],
    node: Option<&Node>,
    consumers: Consumers,
) -> ClaimAct {
    let name = claim_spec(claim)
        .and_then(|s| s.volume_name.as_deref())
        .unwrap_or_default();
    let named = volumes
        .iter()
        .find(|v| v.metadata.name.as_deref() == Some(name));
    if has(&claim.metadata, BIND_COMPLETED) {
        return settled(claim, name, named);
    }
    if name.is_empty() {
        return choose(claim, class, volumes, node, consumers);
    }
    match named {
        Some(volume) => match volume_ref(volume) {
            Some(other) if !refers_to(other, claim) => {
                let message = format!("volume \"{name}\" already bound to a different claim.");
                ClaimAct::Wait(Some((EventType::Warning, "FailedBinding", message)))
            }
            // Whoever has reserved it for the claim knows what it is.
            Some(_) => ClaimAct::Bind(Box::new(volume.clone())),
            None => match mismatch(volume, claim) {
                Some(why) => {
                    let message = format!("Cannot bind to requested volume \"{name}\": {why}");
                    ClaimAct::Wait(Some((EventType::Warning, "VolumeMismatch", message)))
                }
                None => ClaimAct::Bind(Box::new(volume.clone())),
            },
        },
        None => ClaimAct::Wait(None),
    }
}

/// Why a volume is not what a claim asks for.
fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    let (offer, wanted) = (volume.spec.as_ref()?, claim_spec(claim)?);
    if volume.metadata.deletion_timestamp.is_some() {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        return Some(format!("the volume is marked for deletion \"{name}\""));
    }
    let attributes = |t: &Option<String>| t.clone().filter(|name| !name.is_empty());
    let why = if capacity(volume) < request(wanted) {
        "requested PV is too small"
    } else if class_of_volume(volume) != class_of_claim(claim) {
        "storageClassName does not match"
    } else if attributes(&offer.volume_attributes_class_name)
        != attributes(&wanted.volume_attributes_class_name)
    {
        "volumeAttributesClassName does not match"
    } else if mode(offer.volume_mode.as_ref()) != mode(wanted.volume_mode.as_ref()) {
        "incompatible volumeMode"
    } else if !offers_modes(offer, wanted) {
        "incompatible accessMode"
    } else {
        return None;
    };
    Some(why.to_owned())
}

fn offers_modes(volume: &PersistentVolumeSpec, claim: &PersistentVolumeClaimSpec) -> bool {
    let offered = volume.access_modes.as_deref().unwrap_or_default();
    let mut wanted = claim.access_modes.iter().flatten();
    wanted.all(|m| offered.contains(m))
}

fn request(claim: &PersistentVolumeClaimSpec) -> Quantity {
    storage(claim.resources.as_ref().and_then(|r| r.requests.as_ref()))
}

fn settled(
    claim: &PersistentVolumeClaim,
    name: &str,
    volume: Option<&PersistentVolume>,
) -> ClaimAct {
    const LOST: &str = "ClaimLost";
    if name.is_empty() {
        return ClaimAct::Lost(
            LOST,
            "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
        );
    }
    let Some(volume) = volume else {
        return ClaimAct::Lost(
            LOST,
            "Bound claim has lost its PersistentVolume. Data on the volume is lost!",
        );
    };
    match volume_ref(volume) {
        Some(other) if other.uid != claim.metadata.uid => ClaimAct::Lost(
            "ClaimMisbound",
            "Two claims are bound to the same volume, this one is bound incorrectly",
        ),
        _ => ClaimAct::Bind(Box::new(volume.clone())),
    }
}

fn choose(
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
    volumes: &[PersistentVolume],
    node: Option<&Node>,
    consumers: Consumers,
) -> ClaimAct {
    let late = class.and_then(|c| c.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer");
    let waits = late && node.is_none();
    if let Some(volume) = best(claim, volumes, node, waits) {
        return ClaimAct::Bind(Box::new(volume.clone()));
    }
    if waits {
        return wait(consumers);
    }
    let wanted = class_of_claim(claim);
    if wanted.is_empty() {
        let message =
            "no persistent volumes available for this claim and no storage class is set".into();
        return ClaimAct::Wait(Some((EventType::Normal, "FailedBinding", message)));
    }
    match class {
        None => ClaimAct::Wait(Some((
            EventType::Warning,
            "ProvisioningFailed",
            format!("storageclass.storage.k8s.io \"{wanted}\" not found"),
        ))),
        Some(class) if class.provisioner == "kubernetes.io/no-provisioner" => ClaimAct::Wait(None),
        Some(_) => ClaimAct::Provision,
    }
}

/// What becomes of a claim that is bound only when a pod needs it.
///
/// The scheduler notes the node on the claim before it gives that node to the pod, but what it knows of
/// claims may be old: one that was deleted and made again meanwhile has a pod that is never scheduled
/// again, and would wait for it for ever.
fn wait(consumers: Consumers) -> ClaimAct {
    let (reason, message) = match (consumers.node, consumers.waiting.as_slice()) {
        (Some(node), _) => return ClaimAct::Select(node),
        (None, []) => (
            "WaitForFirstConsumer",
            "waiting for first consumer to be created before binding".to_owned(),
        ),
        (None, [pod]) => (
            "WaitForPodScheduled",
            format!("waiting for pod {pod} to be scheduled"),
        ),
        (None, all) => (
            "WaitForPodScheduled",
            format!("waiting for pods {} to be scheduled", all.join(",")),
        ),
    };
    ClaimAct::Wait(Some((EventType::Normal, reason, message)))
}

/// The volume reserved for the claim, or the smallest free one that satisfies it.
fn best<'a>(
    claim: &PersistentVolumeClaim,
    volumes: &'a [PersistentVolume],
    node: Option<&Node>,
    only_reserved: bool,
) -> Option<&'a PersistentVolume> {
    let spec = claim_spec(claim)?;
    let selector = spec.selector.as_ref().and_then(|s| Selector::of(s).ok());
    let request = request(spec);
    let mut fitting: Vec<&PersistentVolume> = volumes
        .iter()
        .filter(|v| v.metadata.deletion_timestamp.is_none())
        .filter(|v| class_of_volume(v) == class_of_claim(claim))
        .filter(|v| {
            v.spec
                .as_ref()
                .is_some_and(|s| suits(s, spec) && capacity(v) >= request)
        })
        .collect();
    // Wherever it is: one that was made for the claim while it was to be on another node is its volume, and the pod has
    // to go there.
    let reserved = fitting
        .iter()
        .find(|v| volume_ref(v).is_some_and(|r| refers_to(r, claim)))
        .copied();
    if reserved.is_some() || only_reserved {
        return reserved;
    }
    fitting.retain(|v| {
        let phase = v.status.as_ref().and_then(|s| s.phase.as_deref());
        volume_ref(v).is_none()
            && phase == Some("Available")
            && node.is_none_or(|n| reaches(v, n))
            && selector
                .as_ref()
                .is_none_or(|s| s.matches(v.metadata.labels.as_ref()))
    });
    fitting.sort_by_key(|v| (capacity(v), v.metadata.name.clone()));
    fitting.first().copied()
}

/// Mode and access modes.
fn suits(volume: &PersistentVolumeSpec, claim: &PersistentVolumeClaimSpec) -> bool {
    mode(volume.volume_mode.as_ref()) == mode(claim.volume_mode.as_ref())
        && offers_modes(volume, claim)
}

/// The class that a claim asks for; empty: none.
pub fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let spec = claim_spec(claim).and_then(|s| s.storage_class_name.as_deref());
    storage_class::named(claim.metadata.annotations.as_ref(), spec)
}

fn class_of_volume(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    let class = spec.and_then(|s| s.storage_class_name.as_deref());
    storage_class::named(volume.metadata.annotations.as_ref(), class)
}

fn storage(list: Option<&BTreeMap<String, Text>>) -> Quantity {
    list.and_then(|l| l.get("storage"))
        .and_then(|q| Quantity::from_str(&q.0).ok())
        .unwrap_or_default()
}

/// How much a volume holds.
pub fn capacity(volume: &PersistentVolume) -> Quantity {
    storage(volume.spec.as_ref().and_then(|s| s.capacity.as_ref()))
}

fn claim_spec(claim: &PersistentVolumeClaim) -> Option<&PersistentVolumeClaimSpec> {
    claim.spec.as_ref()
}

/// The claim a volume is reserved for or bound to.
pub fn volume_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

/// Whether a volume's reference means this claim; one without a uid means whichever has the name.
pub fn refers_to(reference: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    let uid = reference.uid.as_deref().unwrap_or_default();
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && (uid.is_empty() || Some(uid) == claim.metadata.uid.as_deref())
}

/// Whether an annotation is there.
pub fn has(meta: &ObjectMeta, annotation: &str) -> bool {
    meta.annotations
        .as_ref()
        .is_some_and(|a| a.contains_key(annotation))
}

fn reaches(volume: &PersistentVolume, node: &Node) -> bool {
    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref());
    affinity
        .and_then(|a| a.required.as_ref())
        .is_none_or(|r| node_matches(r, node))
}

fn node_matches(selector: &NodeSelector, node: &Node) -> bool {
    let holds = |r: &NodeSelectorRequirement, value: Option<&String>| {
        let values = r.values.as_deref().unwrap_or_default();
        match r.operator.as_str() {
            "In" => value.is_some_and(|v| values.contains(v)),
            "NotIn" => value.is_none_or(|v| !values.contains(v)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    };
    selector.node_selector_terms.iter().any(|term| {
        let labels = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        let name = |key: &str| (key == "metadata.name").then_some(&node.name);
        !(labels.is_empty() && fields.is_empty())
            && labels.iter().all(|r| holds(r, node.labels.get(&r.key)))
            && fields.iter().all(|r| holds(r, name(&r.key)))
    })
}

/// The mode of a volume or claim.
pub fn mode(of: Option<&String>) -> &str {
    of.map_or("Filesystem", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{pv, pvc};
    use serde_json::json;

    fn chosen(claim_: &PersistentVolumeClaim, volumes: &[PersistentVolume]) -> String {
        match claim(claim_, None, volumes, None, Consumers::default()) {
            ClaimAct::Bind(v) => v.metadata.name.unwrap(),
            ClaimAct::Wait(Some((_, _, message))) => message,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn the_smallest_that_satisfies_wins_and_a_reserved_one_before_all() {
        let mine = json!({"claimRef": {"namespace": "n", "name": "c"}});
        let other = json!({"claimRef": {"namespace": "n", "name": "d"}});
        let volumes = [
            pv("large", "20Gi", json!({})),
            pv("right", "8Gi", json!({})),
            pv("small", "1Gi", json!({})),
            pv("classless", "5Gi", json!({"storageClassName": ""})),
            pv("block", "5Gi", json!({"volumeMode": "Block"})),
            pv("taken", "5Gi", other),
        ];
        assert_eq!(chosen(&pvc(json!({})), &volumes), "right");
        let many = pvc(json!({"accessModes": ["ReadWriteMany"], "storageClassName": ""}));
        let none = "no persistent volumes available for this claim and no storage class is set";
        assert_eq!(chosen(&many, &volumes), none);
        let picky = pvc(json!({"selector": {"matchLabels": {"disk": "large"}}}));
        assert_eq!(chosen(&picky, &volumes), "large");
        let mut with = volumes.to_vec();
        with.push(pv("reserved", "50Gi", mine));
        assert_eq!(chosen(&pvc(json!({})), &with), "reserved");
    }

    #[test]
    fn a_volume_that_is_named_has_to_satisfy_all_the_same() {
        let taken = json!({"claimRef": {"namespace": "n", "name": "d"}});
        let mine = json!({"claimRef": {"namespace": "n", "name": "c"}});
        let volumes = [
            pv("large", "20Gi", json!({})),
            pv("small", "1Gi", json!({})),
            pv("classless", "5Gi", json!({"storageClassName": ""})),
            pv("block", "5Gi", json!({"volumeMode": "Block"})),
            pv("shared", "5Gi", json!({"accessModes": ["ReadOnlyMany"]})),
            pv("taken", "5Gi", taken),
            pv("reserved", "1Gi", mine),
        ];
        let mismatch =
            |name: &str, why: &str| format!("Cannot bind to requested volume \"{name}\": {why}");
        for (name, expected) in [
            ("large", "large".to_owned()),
            ("reserved", "reserved".to_owned()),
            ("small", mismatch("small", "requested PV is too small")),
            (
                "classless",
                mismatch("classless", "storageClassName does not match"),
            ),
            ("block", mismatch("block", "incompatible volumeMode")),
            ("shared", mismatch("shared", "incompatible accessMode")),
            (
                "taken",
                "volume \"taken\" already bound to a different claim.".to_owned(),
            ),
        ] {
            assert_eq!(
                chosen(&pvc(json!({"volumeName": name})), &volumes),
                expected
            );
        }
    }

    #[test]
    fn the_older_annotations_name_classes_too() {
        let annotated =
            |class: &str| Some([(storage_class::ANNOTATION.to_owned(), class.to_owned())].into());
        let mut old = pv("old", "5Gi", json!({}));
        old.metadata.annotations = annotated("past");
        let volumes = [old, pv("new", "5Gi", json!({}))];
        let mut claim = pvc(json!({}));
        assert_eq!(chosen(&claim, &volumes), "new");
        claim.metadata.annotations = annotated("past");
        assert_eq!(chosen(&claim, &volumes), "old");
        claim.spec.get_or_insert_default().storage_class_name = None;
        assert_eq!(class_of_claim(&claim), "past");
        claim.spec.get_or_insert_default().volume_name = Some("new".into());
        let why = "Cannot bind to requested volume \"new\": storageClassName does not match";
        assert_eq!(chosen(&claim, &volumes), why);
    }

    #[test]
    fn classes_decide_when_and_how() {
        let class = |mode: &str| -> StorageClass {
            serde_json::from_value(json!({"metadata": {"name": "manual"}, "provisioner": "p",
                "volumeBindingMode": mode}))
            .unwrap()
        };
        let node = |name: &str| Node {
            name: name.into(),
            labels: BTreeMap::new(),
        };
        let local = pv(
            "local",
            "5Gi",
            json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["m"]}]}]}}}),
        );
        let (late, soon) = (class("WaitForFirstConsumer"), class("Immediate"));
        let all = std::slice::from_ref(&local);
        let of = |class: &StorageClass, node: Option<&Node>, all: &[PersistentVolume]| {
            claim(
                &pvc(json!({})),
                Some(class),
                all,
                node,
                Consumers::default(),
            )
        };
        assert!(matches!(
            of(&late, None, all),
            ClaimAct::Wait(Some((EventType::Normal, "WaitForFirstConsumer", _)))
        ));
        assert!(matches!(
            of(&late, Some(&node("m")), all),
            ClaimAct::Bind(_)
        ));
        assert_eq!(of(&late, Some(&node("x")), all), ClaimAct::Provision);
        // Another node was chosen after the volume had been made for the claim.
        let reference = json!({"namespace": "n", "name": "c", "uid": "u"});
        let mut made = local.clone();
        made.spec.get_or_insert_default().claim_ref = serde_json::from_value(reference).ok();
        let act = of(&late, Some(&node("x")), std::slice::from_ref(&made));
        assert_eq!(act, ClaimAct::Bind(Box::new(made)));
        assert_eq!(of(&soon, None, &[]), ClaimAct::Provision);
        assert!(matches!(
            claim(&pvc(json!({})), None, &[], None, Consumers::default()),
            ClaimAct::Wait(Some((EventType::Warning, "ProvisioningFailed", _)))
        ));
        for (waiting, on, expected) in [
            (vec!["a"], None, Ok("waiting for pod a to be scheduled")),
            (
                vec!["a", "b"],
                None,
                Ok("waiting for pods a,b to be scheduled"),
            ),
            (vec![], Some("m"), Err("m")),
            (vec!["a"], Some("m"), Err("m")),
        ] {
            let consumers = Consumers {
                waiting: waiting.into_iter().map(str::to_owned).collect(),
                node: on.map(str::to_owned),
            };
            let expected = match expected {
                Ok(message) => {
                    let why = (EventType::Normal, "WaitForPodScheduled", message.to_owned());
                    ClaimAct::Wait(Some(why))
                }
                Err(node) => ClaimAct::Select(node.to_owned()),
            };
            let act = claim(&pvc(json!({})), Some(&late), all, None, consumers);
            assert_eq!(act, expected);
        }
    }

    #[test]
    fn settled_claims_notice_losses() {
        let mut settled = pvc(json!({"volumeName": "v"}));
        settled.metadata.annotations = Some([(BIND_COMPLETED.to_owned(), "yes".to_owned())].into());
        let mut volume = pv(
            "v",
            "5Gi",
            json!({"claimRef": {"namespace": "n", "name": "c", "uid": "u"}}),
        );
        assert!(matches!(
            claim(
                &settled,
                None,
                std::slice::from_ref(&volume),
                None,
                Consumers::default()
            ),
            ClaimAct::Bind(_)
        ));
        volume
            .spec
            .as_mut()
            .unwrap()
            .claim_ref
            .as_mut()
            .unwrap()
            .uid = Some("other".into());
        let act = claim(
            &settled,
            None,
            std::slice::from_ref(&volume),
            None,
            Consumers::default(),
        );
        assert!(matches!(act, ClaimAct::Lost("ClaimMisbound", _)));
        assert!(matches!(
            claim(&settled, None, &[], None, Consumers::default()),
            ClaimAct::Lost("ClaimLost", _)
        ));
    }
}
