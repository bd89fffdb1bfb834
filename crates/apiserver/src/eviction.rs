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
        let mut options =
            DeleteOptions::parse(eviction.get("deleteOptions").unwrap_or(&empty), &call.query)?;
        let stored = self
            .registry
            .get(resource, write.namespace, write.name)
            .await?;
        let pod = stored.value()?;
        if needs_budget(&pod) && !self.take_budget(call, &write, &pod).await? {
            let version = || stored.revision.to_string();
            options.resource_version.get_or_insert_with(version);
        }
        if !call.dry_run()? {
            let marked = self.mark_evicted(&write, &options).await?;
            if options.resource_version.is_some() {
                options.resource_version = Some(marked);
            }
        }
        self.registry.delete(&write, &options).await?;
        let done = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(respond::json(StatusCode::CREATED, &done, call.style))
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
                let mut conditions = meta::list_at(current, &["status", "conditions"]).to_vec();
                conditions.retain(|c| c["type"] != "DisruptionTarget");
                conditions.push(json!({"type": "DisruptionTarget", "status": "True",
                    "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
                    "lastTransitionTime": now}));
                meta::set(&mut pod, &["status", "conditions"], conditions.into());
                Ok(pod)
            })
            .await?;
        Ok(marked.revision.to_string())
    }

    /// Takes a disruption from the pod's budget; answers `false` where the pod goes without
    /// because it is not ready.
    async fn take_budget(&self, call: &Call, write: &Write<'_>, pod: &Value) -> Result<bool, Fail> {
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
            [] => return Ok(true),
            [one] if goes_without(one, pod) => return Ok(false),
            [one] => meta::name(one).to_owned(),
            _ => {
                return Err(Box::new(Status::internal(
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                )));
            }
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
        result.map(|_| true)
    }
}

/// Pods that are done, dying or never started can go without a budget.
fn needs_budget(pod: &Value) -> bool {
    !matches!(
        meta::str_at(pod, &["status", "phase"]),
        "Succeeded" | "Failed" | "Pending"
    ) && pod.pointer("/metadata/deletionTimestamp").is_none()
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
    let refuse = |message: String| {
        let cause = StatusCause {
            reason: "DisruptionBudget".into(),
            message,
            ..StatusCause::default()
        };
        let mut status = Status::too_many_requests(
            "Cannot evict pod as it would violate the pod's disruption budget.",
            if observed < generation { 10 } else { 0 },
        );
        status.details.get_or_insert_default().causes.push(cause);
        Box::new(status)
    };
    if observed < generation {
        return Err(refuse(format!(
            "The disruption budget {name} is still being processed by the server."
        )));
    }
    let allowed = meta::int_at(budget, &["status", "disruptionsAllowed"]).unwrap_or(0);
    if allowed <= 0 {
        let number = |field: &str| meta::int_at(budget, &["status", field]).unwrap_or(0);
        return Err(refuse(format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            number("desiredHealthy"),
            number("currentHealthy")
        )));
    }
    let mut taken = budget.clone();
    if !dry_run {
        meta::set(
            &mut taken,
            &["status", "disruptionsAllowed"],
            (allowed - 1).into(),
        );
        meta::set(&mut taken, &["status", "disruptedPods", pod], now.into());
    }
    Ok(taken)
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
