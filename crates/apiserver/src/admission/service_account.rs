//! Pods run as a service account and, unless told not to, find its token, the cluster's CA and their namespace mounted.

use api::meta;
use rand::Rng;
use serde_json::{Value, json};

use super::{Admitted, Plugin, Review};
use crate::registry::sparse::Path;
use crate::registry::{Fail, metadata};

/// Where the token, CA and namespace are mounted.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Lifetime of the projected token in seconds: one hour, and 7 seconds that mark it as ours (upstream does so).
const TOKEN_SECONDS: i64 = 3607;
const ACCOUNTS: (&str, &str, &str) = ("", "v1", "serviceaccounts");
/// What is asked of an account for each pod.
const LOOKED_AT: &[Path<'_>] = &[&["automountServiceAccountToken"], &["imagePullSecrets"]];
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The plugin.
pub struct ServiceAccount;

impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.creates("", "pods")
    }

    fn mutate<'a>(&'a self, review: &'a Review<'a>, object: &'a mut Value) -> Admitted<'a> {
        Box::pin(async move {
            if meta::annotation(object, MIRROR).is_some() {
                return check_mirror(review, object);
            }
            let name = match meta::str_at(object, &["spec", "serviceAccountName"]) {
                "" => "default".to_owned(),
                name => name.to_owned(),
            };
            meta::set(
                object,
                &["spec", "serviceAccountName"],
                name.as_str().into(),
            );
            meta::set(object, &["spec", "serviceAccount"], name.as_str().into());
            let account = review
                .registry
                .read_part(ACCOUNTS, review.namespace, &name, LOOKED_AT)
                .await?;
            let account = account.ok_or_else(|| {
                let why = format!(
                    "error looking up service account {}/{name}: serviceaccount {name:?} not found",
                    review.namespace
                );
                review.forbidden(&why)
            })?;
            if automounts(object, &account) {
                let suffix = metadata::generated_name("", || rand::rng().random());
                mount_token(object, &format!("kube-api-access-{suffix}"));
            }
            let secrets = meta::list_at(&account, &["imagePullSecrets"]).to_vec();
            if meta::list_at(object, &["spec", "imagePullSecrets"]).is_empty()
                && !secrets.is_empty()
            {
                meta::set(object, &["spec", "imagePullSecrets"], secrets.into());
            }
            Ok(())
        })
    }
}

fn check_mirror(review: &Review<'_>, pod: &Value) -> Result<(), Fail> {
    if !meta::str_at(pod, &["spec", "serviceAccountName"]).is_empty() {
        return Err(review.forbidden("a mirror pod may not reference service accounts"));
    }
    Ok(())
}

fn automounts(pod: &Value, account: &Value) -> bool {
    let wish = |v: &Value, path: &[&str]| meta::get(v, path).and_then(Value::as_bool);
    wish(pod, &["spec", "automountServiceAccountToken"])
        .or_else(|| wish(account, &["automountServiceAccountToken"]))
        .unwrap_or(true)
}

/// Mounts the API access volume into every container that has nothing at its path.
fn mount_token(pod: &mut Value, volume: &str) {
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        let containers = pod
            .pointer_mut(&format!("/spec/{list}"))
            .and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let mut mounts = meta::list_at(container, &["volumeMounts"]).to_vec();
            if mounts
                .iter()
                .any(|m| meta::str_at(m, &["mountPath"]) == MOUNT_PATH)
            {
                continue;
            }
            mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
            meta::set(container, &["volumeMounts"], mounts.into());
            mounted = true;
        }
    }
    if !mounted {
        return;
    }
    let mut volumes = meta::list_at(pod, &["spec", "volumes"]).to_vec();
    volumes.push(json!({
        "name": volume,
        "projected": {
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [
                    {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
                ]}},
            ],
            "defaultMode": 420,
        },
    }));
    meta::set(pod, &["spec", "volumes"], volumes.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_with_its_own_mount_is_left_alone() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "x", "mountPath": MOUNT_PATH}]}]}});
        mount_token(&mut pod, "kube-api-access-1");
        assert_eq!(
            pod["spec"]["containers"][0]["volumeMounts"][0]["name"],
            "kube-api-access-1"
        );
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"][0]["name"], "x");
        assert_eq!(pod["spec"]["volumes"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn the_pods_wish_counts_more_than_the_accounts() {
        let off = json!({"automountServiceAccountToken": false});
        assert!(!automounts(&json!({"spec": {}}), &off));
        assert!(automounts(
            &json!({"spec": {"automountServiceAccountToken": true}}),
            &off
        ));
        assert!(automounts(&json!({}), &json!({})));
    }
}
