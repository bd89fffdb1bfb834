//! The list of kinds with rules of their own.

use api::Kind;

use crate::api_service::ApiService;
use crate::apps::{daemonset, deployment, replicaset, statefulset};
use crate::core::{config, endpoints, event, limits, namespace, node, pod, quota, service, volume};
use crate::strategy::{Custom, Entry, Generic, Strategy};
use crate::{
    autoscaling, batch, certificates, flowcontrol, networking, rbac, resource, small, storage,
};

const fn entry(group: &'static str, kind: &'static str, strategy: &'static dyn Strategy) -> Entry {
    Entry {
        group,
        kind,
        strategy,
    }
}

const ADMISSION: &str = "admissionregistration.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const STORAGE: &str = "storage.k8s.io";
const NETWORKING: &str = "networking.k8s.io";
const CERTIFICATES: &str = "certificates.k8s.io";
const FLOW: &str = "flowcontrol.apiserver.k8s.io";
const RESOURCE: &str = "resource.k8s.io";

/// Every kind with rules of its own: adding one is adding a line.
pub static ALL: &[Entry] = &[
    entry("", "Pod", &pod::Pod),
    entry("", "Node", &node::Node),
    entry("", "Service", &service::Service),
    entry("", "Endpoints", &endpoints::ENDPOINTS),
    entry("", "Namespace", &namespace::Namespace),
    entry("", "ConfigMap", &config::ConfigMap),
    entry("", "Secret", &config::Secret),
    entry("", "PersistentVolume", &volume::PersistentVolume),
    entry("", "PersistentVolumeClaim", &volume::PersistentVolumeClaim),
    entry("", "ServiceAccount", &small::SERVICE_ACCOUNTS),
    entry("", "Event", &event::Event),
    entry("", "ResourceQuota", &quota::QUOTAS),
    entry("", "LimitRange", &limits::LIMITS),
    entry("", "ComponentStatus", &small::COMPONENT_STATUSES),
    entry("", "PodTemplate", &small::POD_TEMPLATES),
    entry(
        "",
        "ReplicationController",
        &replicaset::REPLICATION_CONTROLLERS,
    ),
    entry("events.k8s.io", "Event", &event::Event),
    entry("apps", "Deployment", &deployment::Deployment),
    entry("apps", "ReplicaSet", &replicaset::REPLICA_SETS),
    entry("apps", "StatefulSet", &statefulset::StatefulSet),
    entry("apps", "DaemonSet", &daemonset::DAEMON_SETS),
    entry("apps", "ControllerRevision", &replicaset::REVISIONS),
    entry("batch", "Job", &batch::Job),
    entry("batch", "CronJob", &batch::CRON_JOBS),
    entry(
        "autoscaling",
        "HorizontalPodAutoscaler",
        &autoscaling::AUTOSCALERS,
    ),
    entry("policy", "PodDisruptionBudget", &small::BUDGETS),
    entry(
        "scheduling.k8s.io",
        "PriorityClass",
        &small::PRIORITY_CLASSES,
    ),
    entry("coordination.k8s.io", "Lease", &small::LEASES),
    entry("node.k8s.io", "RuntimeClass", &small::RUNTIME_CLASSES),
    entry("discovery.k8s.io", "EndpointSlice", &endpoints::SLICES),
    entry(NETWORKING, "Ingress", &networking::INGRESSES),
    entry(NETWORKING, "IngressClass", &networking::INGRESS_CLASSES),
    entry(NETWORKING, "NetworkPolicy", &networking::POLICIES),
    entry(NETWORKING, "IPAddress", &networking::IP_ADDRESSES),
    entry(NETWORKING, "ServiceCIDR", &networking::SERVICE_CIDRS),
    entry(RBAC, "Role", &rbac::ROLES),
    entry(RBAC, "ClusterRole", &rbac::ROLES),
    entry(RBAC, "RoleBinding", &rbac::BINDINGS),
    entry(RBAC, "ClusterRoleBinding", &rbac::BINDINGS),
    entry(STORAGE, "StorageClass", &storage::CLASSES),
    entry(STORAGE, "CSIDriver", &storage::DRIVERS),
    entry(STORAGE, "CSINode", &storage::NODES),
    entry(STORAGE, "CSIStorageCapacity", &storage::CAPACITIES),
    entry(STORAGE, "VolumeAttachment", &storage::ATTACHMENTS),
    entry(STORAGE, "VolumeAttributesClass", &storage::ATTRIBUTES),
    entry(ADMISSION, "MutatingWebhookConfiguration", &small::WEBHOOKS),
    entry(
        ADMISSION,
        "ValidatingWebhookConfiguration",
        &small::WEBHOOKS,
    ),
    entry(
        ADMISSION,
        "ValidatingAdmissionPolicy",
        &small::VALIDATING_POLICIES,
    ),
    entry(
        ADMISSION,
        "MutatingAdmissionPolicy",
        &small::MUTATING_POLICIES,
    ),
    entry(
        ADMISSION,
        "ValidatingAdmissionPolicyBinding",
        &small::POLICY_BINDINGS,
    ),
    entry(
        ADMISSION,
        "MutatingAdmissionPolicyBinding",
        &small::POLICY_BINDINGS,
    ),
    entry(
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        &crate::definition::Definition,
    ),
    entry("apiregistration.k8s.io", "APIService", &ApiService),
    entry(
        CERTIFICATES,
        "CertificateSigningRequest",
        &certificates::SigningRequest,
    ),
    entry(CERTIFICATES, "ClusterTrustBundle", &small::TRUST_BUNDLES),
    entry(
        CERTIFICATES,
        "PodCertificateRequest",
        &small::POD_CERTIFICATES,
    ),
    entry(FLOW, "FlowSchema", &flowcontrol::SCHEMAS),
    entry(FLOW, "PriorityLevelConfiguration", &flowcontrol::LEVELS),
    entry(RESOURCE, "ResourceClaim", &resource::CLAIMS),
    entry(
        RESOURCE,
        "ResourceClaimTemplate",
        &resource::CLAIM_TEMPLATES,
    ),
    entry(RESOURCE, "DeviceClass", &resource::DEVICE_CLASSES),
    entry(RESOURCE, "ResourceSlice", &resource::SLICES),
    entry(RESOURCE, "DeviceTaintRule", &resource::TAINT_RULES),
    entry(
        "storagemigration.k8s.io",
        "StorageVersionMigration",
        &small::MIGRATIONS,
    ),
];

/// The rules of a kind; built-in kinds not listed have the generic ones, custom kinds those of custom kinds.
pub fn strategy(kind: &Kind) -> &'static dyn Strategy {
    if kind.custom.is_some() {
        return &Custom;
    }
    if let Some(entry) = ALL
        .iter()
        .find(|e| e.kind == kind.kind && e.group == kind.group)
    {
        return entry.strategy;
    }
    &Generic
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_entry_is_a_served_kind() {
        for entry in ALL {
            assert!(
                api::kinds()
                    .iter()
                    .any(|k| k.group == entry.group && k.kind == entry.kind),
                "{}/{}",
                entry.group,
                entry.kind
            );
        }
    }

    #[test]
    fn rows_have_a_cell_for_each_column() {
        let obj = json!({"metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"}});
        let now = "2026-01-01T00:00:01Z".parse().unwrap();
        for kind in api::kinds() {
            if let Some(row) = strategy(kind).row(&obj, now) {
                // Kinds without an age column in the facts may offer one.
                assert!(
                    row.len() >= kind.columns.len() && row.len() <= kind.columns.len() + 1,
                    "{} {}",
                    kind.kind,
                    row.len()
                );
            }
            assert_eq!(crate::row(kind, &obj, now).len(), kind.columns.len());
        }
    }

    #[test]
    fn hooks_take_anything() {
        let empty = json!({});
        let odd = json!({"metadata": 1, "spec": [], "status": "x", "data": 3});
        for kind in api::kinds() {
            let rules = strategy(kind);
            for obj in [&empty, &odd] {
                let ctx = crate::Ctx {
                    kind,
                    subresource: "",
                    now: api::time::Timestamp::UNIX_EPOCH,
                };
                let mut new = obj.clone();
                rules.default(&mut new);
                crate::prepare_create(&mut new, &ctx);
                let _ = crate::validate_create(kind, &new);
                crate::prepare_update(&mut new, obj, &ctx);
                let _ = crate::validate_update(kind, &new, obj);
                let _ = crate::row(kind, &new, ctx.now);
            }
        }
    }
}
