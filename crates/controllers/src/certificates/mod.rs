//! CertificateSigningRequests: approves what kubelets may ask for, signs what was approved, and
//! deletes what nobody needs any more.
//!
//! ```text
//!  created ──> Approved (by a person, or for a kubelet) ──> signed ──> old ──> deleted
//!     └──────> Denied ─────────────────────────────────────────────────────────┘
//! ```

mod authority;
mod bundles;
mod pod_requests;
mod request;
mod rules;

use std::time::Duration;

use client::{Cache, Error, Key, Queue, Reconcile, Requeue, Scope, write};
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    ByteString,
    api::{
        authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
        certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::{Context, Controller};
pub use authority::{Authority, AuthorityError};
pub use bundles::CONTROLLER as TRUST;
pub use pod_requests::CONTROLLER as POD_CLEANING;
use request::Request;
use rules::Signer;

/// Approves kubelets' requests.
pub const APPROVING: Controller = Controller {
    name: "certificate-controller",
    run: run_approving,
};
/// Signs approved requests.
pub const SIGNING: Controller = Controller {
    name: "csrsigning",
    run: run_signing,
};
/// Deletes old requests.
pub const CLEANING: Controller = Controller {
    name: "csrcleaner",
    run: run_cleaning,
};

/// A signed, denied or failed request is kept this long.
const DECIDED_KEPT: SignedDuration = SignedDuration::from_hours(1);
/// A request that nobody decides about, or that is approved and nobody signs, is kept this long.
const PENDING_KEPT: SignedDuration = SignedDuration::from_hours(24);

fn condition<'a>(
    csr: &'a CertificateSigningRequest,
    kind: &str,
) -> Option<&'a CertificateSigningRequestCondition> {
    let mut all = csr.status.as_ref()?.conditions.iter().flatten();
    all.find(|c| c.type_ == kind && c.status != "False")
}

fn certificate(csr: &CertificateSigningRequest) -> Option<&[u8]> {
    let bytes = csr.status.as_ref()?.certificate.as_ref()?;
    (!bytes.0.is_empty()).then_some(bytes.0.as_slice())
}

fn api(context: &Context) -> Api<CertificateSigningRequest> {
    write::cluster(&context.client)
}

async fn watch(context: &Context) -> (Cache<CertificateSigningRequest>, Queue<Key>) {
    let requests = context
        .caches
        .get::<CertificateSigningRequest>(Scope::all());
    requests.synced().await;
    let queue = Queue::default();
    let to = queue.clone();
    requests.on_change(move |change| to.add(change.key.clone()));
    (requests, queue)
}

/// Conditions with one more.
fn with_condition(
    csr: &CertificateSigningRequest,
    kind: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Vec<CertificateSigningRequestCondition> {
    let status = csr.status.clone().unwrap_or_default();
    let mut all = status.conditions.unwrap_or_default();
    all.push(CertificateSigningRequestCondition {
        type_: kind.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    });
    all
}

struct Approving {
    context: Context,
    requests: Cache<CertificateSigningRequest>,
}

fn run_approving(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let (requests, queue) = watch(&context).await;
        let reconciler = Approving {
            context: context.clone(),
            requests,
        };
        context.work(reconciler, queue).await;
    })
}

impl Reconcile for Approving {
    type Key = Key;

    fn name(&self) -> &'static str {
        APPROVING.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(csr) = self.requests.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        let decided = condition(&csr, "Approved").or(condition(&csr, "Denied"));
        if certificate(&csr).is_some() || decided.is_some() {
            return Ok(Requeue::OnChange);
        }
        let Ok(asked) = Request::parse(&csr.spec.request.0) else {
            return Ok(Requeue::OnChange);
        };
        let mut tried = Vec::new();
        for (subresource, message) in rules::recognized(&csr.spec, &asked) {
            tried.push(subresource);
            if self.may(&csr, subresource).await? {
                let now = self.context.now();
                let conditions = with_condition(&csr, "Approved", "AutoApproved", message, now);
                let body = json!({"metadata": {"uid": csr.metadata.uid,
                    "resourceVersion": csr.metadata.resource_version},
                    "status": {"conditions": conditions}});
                let params = PatchParams::default();
                let patch = Patch::Merge(body);
                let api = api(&self.context);
                let written = api.patch_approval(&key.name, &params, &patch).await;
                if let Some(written) = write::tolerate_missing(written)? {
                    let revision = write::revision_of(&written);
                    self.requests.caught_up(revision).await?;
                }
                return Ok(Requeue::OnChange);
            }
        }
        if tried.is_empty() {
            return Ok(Requeue::OnChange);
        }
        // The permission may come later than the request.
        Err(Error::Other(format!(
            "recognized csr {:?} as [{}] but subject access review was not approved",
            key.name,
            tried.join(" ")
        )))
    }
}

impl Approving {
    /// Whether whoever asks may create such requests and have them approved.
    async fn may(&self, csr: &CertificateSigningRequest, what: &str) -> Result<bool, Error> {
        let spec = &csr.spec;
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: spec.username.clone(),
                uid: spec.uid.clone(),
                groups: spec.groups.clone(),
                extra: spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".into()),
                    resource: Some("certificatesigningrequests".into()),
                    subresource: Some(what.into()),
                    verb: Some("create".into()),
                    version: Some("*".into()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = write::cluster(&self.context.client);
        let answer = api.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|s| s.allowed))
    }
}

struct Signing {
    context: Context,
    requests: Cache<CertificateSigningRequest>,
}

fn run_signing(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        if context.config.authority.is_none() {
            return context.shutdown.cancelled().await;
        }
        let (requests, queue) = watch(&context).await;
        let reconciler = Signing {
            context: context.clone(),
            requests,
        };
        context.work(reconciler, queue).await;
    })
}

impl Reconcile for Signing {
    type Key = Key;

    fn name(&self) -> &'static str {
        SIGNING.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(csr) = self.requests.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        let waits = condition(&csr, "Approved").is_some()
            && condition(&csr, "Denied").is_none()
            && condition(&csr, "Failed").is_none()
            && certificate(&csr).is_none();
        let signer = Signer::named(&csr.spec.signer_name).filter(|_| waits);
        let (Some(signer), Some(authority)) = (signer, &self.context.config.authority) else {
            return Ok(Requeue::OnChange);
        };
        let now = self.context.now();
        let asked = match Request::parse(&csr.spec.request.0) {
            Ok(asked) => asked,
            Err(why) => {
                let message = format!("unable to parse csr {:?}: {why}", key.name);
                return Err(Error::Other(message));
            }
        };
        let usages = csr.spec.usages.clone().unwrap_or_default();
        let status = match signer.refuses(&asked, &usages) {
            Some(why) => {
                let reason = "SignerValidationFailure";
                json!({"conditions": with_condition(&csr, "Failed", reason, &why, now)})
            }
            None => {
                let signed = authority.sign(&asked, &usages, csr.spec.expiration_seconds, now);
                let pem = signed.map_err(|e| Error::Other(e.to_string()))?;
                json!({"certificate": ByteString(pem.into_bytes())})
            }
        };
        let body = json!({"metadata": {"uid": csr.metadata.uid,
            "resourceVersion": csr.metadata.resource_version}, "status": status});
        let written = write::patch_status(&api(&self.context), &key.name, &body).await?;
        if let Some(written) = written {
            self.requests
                .caught_up(write::revision_of(&written))
                .await?;
        }
        Ok(Requeue::OnChange)
    }
}

struct Cleaning {
    context: Context,
    requests: Cache<CertificateSigningRequest>,
}

fn run_cleaning(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let (requests, queue) = watch(&context).await;
        let reconciler = Cleaning {
            context: context.clone(),
            requests,
        };
        context.work(reconciler, queue).await;
    })
}

/// When a request has had its time.
fn due(csr: &CertificateSigningRequest) -> Option<Timestamp> {
    let created = csr.metadata.creation_timestamp.as_ref()?.0;
    let status = csr.status.as_ref();
    let is_new = status.is_none_or(|s| s.conditions.as_ref().is_none_or(Vec::is_empty));
    let signed = certificate(csr);
    // Whoever signs for others may take longer than we do.
    let approved_kept = match signed {
        Some(_) => DECIDED_KEPT,
        None => PENDING_KEPT,
    };
    let kept = |kind: &str, kept: SignedDuration| {
        let since = condition(csr, kind)?.last_update_time.as_ref()?.0;
        since.checked_add(kept).ok()
    };
    let unanswered = || created.checked_add(PENDING_KEPT).ok();
    [
        kept("Approved", approved_kept),
        kept("Denied", DECIDED_KEPT),
        kept("Failed", DECIDED_KEPT),
        is_new.then(unanswered).flatten(),
        signed.and_then(request::expiry),
    ]
    .into_iter()
    .flatten()
    .min()
}

impl Reconcile for Cleaning {
    type Key = Key;

    fn name(&self) -> &'static str {
        CLEANING.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let cached = self.requests.get(key)?;
        let Some((csr, due)) = cached.and_then(|c| due(&c).map(|due| (c, due))) else {
            return Ok(Requeue::OnChange);
        };
        let left = due.duration_since(self.context.now());
        if left.is_positive() {
            let left = Duration::try_from(left).unwrap_or_default();
            return Ok(Requeue::After(left));
        }
        let uid = csr.metadata.uid.as_deref();
        write::delete(&api(&self.context), &key.name, uid).await?;
        Ok(Requeue::OnChange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_their_time() {
        let at = |second: i64| Timestamp::from_second(second).unwrap().to_string();
        for (conditions, certificate, expected) in [
            (json!([]), "", 100 + 24 * 3600),
            (json!(["Approved"]), "", 200 + 24 * 3600),
            (json!(["Approved"]), "cGVt", 200 + 3600),
            (json!(["Denied"]), "", 200 + 3600),
            (json!(["Approved", "Failed"]), "", 200 + 3600),
        ] {
            let all = conditions
                .as_array()
                .unwrap()
                .iter()
                .map(|kind| json!({"type": kind, "status": "True", "lastUpdateTime": at(200)}));
            let csr: CertificateSigningRequest = serde_json::from_value(json!({
                "metadata": {"name": "r", "creationTimestamp": at(100)},
                "spec": {"request": "", "signerName": "s/n"},
                "status": {"conditions": all.collect::<Vec<_>>(), "certificate": certificate},
            }))
            .unwrap();
            assert_eq!(
                due(&csr).map(Timestamp::as_second),
                Some(expected),
                "{conditions}"
            );
        }
    }
}
