//! `pods/eviction`: deletes a pod unless a disruption budget forbids it.
//!
//! A budget guards healthy pods. A pod that is not ready goes without one where the budget's policy says so, on
//! condition that it still is as it was looked at.

use std::sync::Arc;

use api::{Status, StatusCause, meta};
use http::StatusCode;
use serde_json::{Value, json};

use crate::ApiServer;
use crate::http::body::{Request, Response};
use crate::http::handler::Call;
use crate::http::respond;
use crate::registry::{DeleteOptions, Fail, Part, Resource, Write};

/// Looks at a pod that starts while it is being evicted.
const TRIES: u32 = 20;
/// Pods of one budget that were evicted and are not known to be gone.
const DISRUPTED_MAX: usize = 2000;
/// Seconds after which to ask again for what is being processed.
const RETRY_AFTER: i64 = 10;
const MANY_BUDGETS: &str = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";

impl ApiServer {
    /// `pods/eviction`: deletes a pod unless a disruption budget forbids it.
    pub(crate) async fn serve_eviction(
        &self,
        request: Request,
        call: &Call,
        resource: &Arc<Resource>,
    ) -> Result<Response, Fail> {
        let eviction = self
            .decode_as(request, call, "policy", "v1", "Eviction")
            .await?;
        let write = call.write(&self.registry, resource)?;
        let name = meta::name(&eviction);
        if !name.is_empty() && name != write.name {
            let why = format!(
                "name in URL does not match name in Eviction object: {name} vs {}",
                write.name
            );
            return Err(Box::new(Status::bad_request(why)));
        }
        let empty = Value::Null;
        let options =
            DeleteOptions::parse(eviction.get("deleteOptions").unwrap_or(&empty), &call.query)?;
        for _ in 0..TRIES {
            let stored = self
                .registry
                .get(resource, write.namespace, write.name)
                .await?;
            let pod = stored.value()?;
            let licence = self.licence(call, &write, &pod).await?;
            let mut options = options.clone();
            let asked = options.resource_version.is_some();
            if matches!(licence, Licence::NotStarted | Licence::NotReady(_)) {
                let version = || stored.revision.to_string();
                options.resource_version.get_or_insert_with(version);
            }
            match self.evict(call, &write, options).await {
                Ok(()) => {
                    let done = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
                    return Ok(respond::json(StatusCode::CREATED, &done, call.style));
                }
                Err(refused) if asked || refused.code != 409 => return Err(refused),
                Err(refused) => match licence {
                    // It may have started since: then a budget may guard it.
                    Licence::NotStarted => {}
                    Licence::NotReady(budget) => return Err(being_processed(&budget)),
                    Licence::Free | Licence::Taken => return Err(refused),
                },
            }
        }
        Err(being_processed(""))
    }

    /// Marks and deletes a pod.
    async fn evict(
        &self,
        call: &Call,
        write: &Write<'_>,
        mut options: DeleteOptions,
    ) -> Result<(), Fail> {
        if !call.dry_run()? {
            let marked = self.mark_evicted(write, &options).await?;
            if options.resource_version.is_some() {
                options.resource_version = Some(marked);
            }
        }
        self.registry.delete(write, &options).await.map(drop)
    }

    /// Says in the pod's status why it goes; answers the version it has then.
    async fn mark_evicted(
        &self,
        write: &Write<'_>,
        options: &DeleteOptions,
    ) -> Result<String, Fail> {
        let mark = Write {
            subresource: "status",
            ..*write
        };
        let now = api::time::format(write.now);
        let marked = self
            .registry
            .update(&mark, Part::Status, |current| {
                let version = meta::str_at(current, &["metadata", "resourceVersion"]);
                let known = options.resource_version.as_deref();
                if known.is_some_and(|known| known != version) {
                    let why = "the pod has changed since it was looked at";
                    return Err(Box::new(Status::conflict("", "pods", write.name, why)));
                }
                let mut pod = current.clone();
                let generation = meta::int_at(current, &["metadata", "generation"]);
                let mut conditions = meta::list_at(current, &["status", "conditions"]).to_vec();
                conditions.retain(|c| c["type"] != "DisruptionTarget");
                let mut target = json!({"type": "DisruptionTarget", "status": "True",
                    "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
                    "lastTransitionTime": now});
                if let Some(generation) = generation {
                    target["observedGeneration"] = generation.into();
                }
                conditions.push(target);
                meta::set(&mut pod, &["status", "conditions"], conditions.into());
                Ok(pod)
            })
            .await?;
        Ok(marked.revision.to_string())
    }

    /// Whether a pod may go, taking a disruption from its budget where that guards it.
    async fn licence(&self, call: &Call, write: &Write<'_>, pod: &Value) -> Result<Licence, Fail> {
        let deleting = pod.pointer("/metadata/deletionTimestamp").is_some();
        match meta::str_at(pod, &["status", "phase"]) {
            "Succeeded" | "Failed" => return Ok(Licence::Free),
            _ if deleting => return Ok(Licence::Free),
            "Pending" => return Ok(Licence::NotStarted),
            _ => {}
        }
        let budgets = self
            .registry
            .read_all(("policy", "v1", "poddisruptionbudgets"), write.namespace)
            .await?;
        let matching: Vec<&Value> = budgets
            .iter()
            .filter(|b| {
                let selector = meta::get(b, &["spec", "selector"])
                    .cloned()
                    .unwrap_or_default();
                api::selector::LabelSelector::from_value(&selector)
                    .is_ok_and(|s| s.matches_object(pod))
            })
            .collect();
        let budget = match matching.as_slice() {
            [] => return Ok(Licence::Free),
            [one] if goes_without(one, pod) => {
                return Ok(Licence::NotReady(meta::name(one).to_owned()));
            }
            [one] => meta::name(one).to_owned(),
            _ => return Err(Box::new(Status::failure(500, "", MANY_BUDGETS))),
        };
        let resource = self
            .registry
            .resource("policy", "v1", "poddisruptionbudgets")?;
        let take = Write {
            resource: &resource,
            name: &budget,
            subresource: "status",
            ..*write
        };
        let (pod_name, now) = (meta::name(pod).to_owned(), api::time::format(write.now));
        let dry_run = call.dry_run()?;
        let result = self
            .registry
            .update(&take, Part::Exact, |current| {
                disrupt(current, &pod_name, &now, dry_run)
            })
            .await;
        result.map(|_| Licence::Taken)
    }
}

/// On what grounds a pod may go.
enum Licence {
    /// Nothing guards it.
    Free,
    /// It has not started: nothing guards it as long as that is so.
    NotStarted,
    /// It is not ready, which this budget lets go as long as that is so.
    NotReady(String),
    /// A disruption was taken from its budget.
    Taken,
}

/// Whether a pod that is not ready may go although the budget has nothing to spare.
fn goes_without(budget: &Value, pod: &Value) -> bool {
    let ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
    if meta::list_at(pod, &["status", "conditions"])
        .iter()
        .any(ready)
    {
        return false;
    }
    let number = |field: &str| meta::int_at(budget, &["status", field]).unwrap_or(0);
    match meta::str_at(budget, &["spec", "unhealthyPodEvictionPolicy"]) {
        "AlwaysAllow" => true,
        _ => {
            let wanted = number("desiredHealthy");
            wanted > 0 && number("currentHealthy") >= wanted
        }
    }
}

/// Takes one disruption of a budget, or says why there is none.
fn disrupt(budget: &Value, pod: &str, now: &str, dry_run: bool) -> Result<Value, Fail> {
    let observed = meta::int_at(budget, &["status", "observedGeneration"]).unwrap_or(0);
    let generation = meta::int_at(budget, &["metadata", "generation"]).unwrap_or(0);
    let name = meta::name(budget);
    let number = |field: &str| meta::int_at(budget, &["status", field]).unwrap_or(0);
    if observed < generation {
        return Err(being_processed(name));
    }
    let forbidden = |why| {
        let refused = Status::forbidden("policy", "poddisruptionbudget", name, why);
        Err(Box::new(refused))
    };
    let allowed = number("disruptionsAllowed");
    if allowed < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    let disrupted = meta::get(budget, &["status", "disruptedPods"]).and_then(Value::as_object);
    if disrupted.is_some_and(|pods| pods.len() > DISRUPTED_MAX) {
        return forbidden(
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        );
    }
    if allowed == 0 {
        return Err(refused(why_none(budget), 0));
    }
    let mut taken = budget.clone();
    if dry_run {
        return Ok(taken);
    }
    let left = allowed - 1;
    meta::set(&mut taken, &["status", "disruptionsAllowed"], left.into());
    meta::set(&mut taken, &["status", "disruptedPods", pod], now.into());
    if left == 0 {
        let mut conditions = meta::list_at(budget, &["status", "conditions"]).to_vec();
        conditions.retain(|c| c["type"] != "DisruptionAllowed");
        conditions.push(json!({"type": "DisruptionAllowed", "status": "False",
            "reason": "InsufficientPods", "message": "", "observedGeneration": observed,
            "lastTransitionTime": now}));
        meta::set(&mut taken, &["status", "conditions"], conditions.into());
    }
    Ok(taken)
}

/// Why a budget has nothing to spare. What it counted is not to be trusted where its controller
/// could not tell how many pods there should be.
fn why_none(budget: &Value) -> String {
    let name = meta::name(budget);
    let number = |field: &str| meta::int_at(budget, &["status", field]).unwrap_or(0);
    let (wanted, healthy) = (number("desiredHealthy"), number("currentHealthy"));
    let denies = |c: &&Value| {
        c["type"] == "DisruptionAllowed"
            && c["status"] == "False"
            && !meta::str_at(c, &["message"]).is_empty()
    };
    let conditions = meta::list_at(budget, &["status", "conditions"]);
    let said = conditions.iter().find(denies).map(|c| {
        let part = |field: &str| meta::str_at(c, &[field]);
        (part("reason"), part("message"))
    });
    let none = format!("The disruption budget {name} does not allow evicting pods currently");
    match said {
        Some(("SyncFailed", message)) => format!("{none} because it failed sync: {message}"),
        _ if healthy <= wanted => format!(
            "The disruption budget {name} needs {wanted} healthy pods and has {healthy} currently"
        ),
        Some((reason, message)) => format!("{none} ({reason}): {message}"),
        None => none,
    }
}

/// 429: the budget has nothing to spare, for this reason.
fn refused(why: String, retry_after: i64) -> Fail {
    let cause = StatusCause {
        reason: "DisruptionBudget".into(),
        message: why,
        ..StatusCause::default()
    };
    let mut status = Status::too_many_requests(
        "Cannot evict pod as it would violate the pod's disruption budget.",
        retry_after,
    );
    status.details.get_or_insert_default().causes.push(cause);
    Box::new(status)
}

/// 429: nobody knows yet what the budget has to spare.
fn being_processed(budget: &str) -> Fail {
    let why = format!("The disruption budget {budget} is still being processed by the server.");
    refused(why, RETRY_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_spent_one_by_one() {
        let b = json!({"metadata": {"name": "b", "generation": 1}, "status": {"observedGeneration": 1, "disruptionsAllowed": 1}});
        let after = disrupt(&b, "p", "t", false).unwrap();
        assert_eq!(after["status"]["disruptionsAllowed"], 0);
        assert_eq!(after["status"]["disruptedPods"]["p"], "t");
        let condition = &after["status"]["conditions"][0];
        assert_eq!(
            (&condition["status"], &condition["reason"]),
            (&json!("False"), &json!("InsufficientPods"))
        );
        let refused = disrupt(&after, "q", "t", false).unwrap_err();
        assert_eq!(refused.code, 429);
        assert_eq!(
            refused.message,
            "Cannot evict pod as it would violate the pod's disruption budget."
        );
        let stale = json!({"metadata": {"name": "b", "generation": 2}, "status": {"observedGeneration": 1, "disruptionsAllowed": 1}});
        assert!(
            disrupt(&stale, "q", "t", false)
                .unwrap_err()
                .details
                .unwrap()
                .causes[0]
                .message
                .contains("still being processed")
        );
    }

    #[test]
    fn a_budget_says_why_it_has_nothing_to_spare() {
        let none = "The disruption budget b does not allow evicting pods currently";
        for (healthy, reason, message, expected) in [
            (
                1,
                "SyncFailed",
                "why",
                format!("{none} because it failed sync: why"),
            ),
            (
                1,
                "InsufficientPods",
                "",
                "The disruption budget b needs 2 healthy pods and has 1 currently".to_owned(),
            ),
            (3, "Odd", "why", format!("{none} (Odd): why")),
            (3, "InsufficientPods", "", none.to_owned()),
        ] {
            let budget = json!({"metadata": {"name": "b"}, "status": {
                "desiredHealthy": 2, "currentHealthy": healthy, "conditions": [
                    {"type": "DisruptionAllowed", "status": "False", "reason": reason, "message": message}]}});
            assert_eq!(why_none(&budget), expected);
        }
    }

    #[test]
    fn a_budget_that_cannot_be_trusted_gives_nothing() {
        let many: serde_json::Map<_, _> = (0..=DISRUPTED_MAX)
            .map(|i| (format!("p{i}"), json!("t")))
            .collect();
        for (status, why) in [
            (
                json!({"disruptionsAllowed": -1}),
                "pdb disruptions allowed is negative",
            ),
            (
                json!({"disruptionsAllowed": 1, "disruptedPods": many}),
                "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
            ),
        ] {
            let budget = json!({"metadata": {"name": "b"}, "status": status});
            let refused = disrupt(&budget, "p", "t", false).unwrap_err();
            let expected = format!("poddisruptionbudget.policy \"b\" is forbidden: {why}");
            assert_eq!((refused.code, refused.message), (403, expected));
        }
    }

    #[test]
    fn pods_that_are_not_ready_may_go_without() {
        let budget = |policy: &str, current: i32, wanted: i32| {
            json!({"spec": {"unhealthyPodEvictionPolicy": policy},
                "status": {"currentHealthy": current, "desiredHealthy": wanted}})
        };
        let sick = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        let well = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        for (budget, pod, expected) in [
            (budget("AlwaysAllow", 0, 2), &sick, true),
            (budget("AlwaysAllow", 2, 2), &well, false),
            (budget("IfHealthyBudget", 1, 2), &sick, false),
            (budget("IfHealthyBudget", 2, 2), &sick, true),
            (budget("", 2, 2), &sick, true),
            (budget("", 0, 0), &sick, false),
        ] {
            assert_eq!(goes_without(&budget, pod), expected, "{budget} {pod}");
        }
    }
}
