//! Configurations of admission and of fairness, as objects.

use serde_json::{Value, json};

use super::life::Life;

const REGISTRATION: &str = "admissionregistration.k8s.io/v1";
const FAIRNESS: &str = "flowcontrol.apiserver.k8s.io/v1";

fn rules() -> Value {
    json!({"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"],
        "resources": ["deployments"]}], "namespaceSelector": {"matchLabels": {"no": "such"}}})
}

/// Conformance: ValidatingAdmissionPolicy API
#[tokio::test]
async fn validating_policies() {
    let object =
        json!({"spec": {"matchConstraints": rules(), "validations": [{"expression": "true"}]}});
    let condition = json!({"type": "E2E", "status": "True", "reason": "E2E", "message": "set by a test",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    Life::cluster(
        REGISTRATION,
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
        object,
    )
    .status(json!({"conditions": [condition]}))
    .live()
    .await;
}

/// Conformance: ValidatingadmissionPolicyBinding API
#[tokio::test]
async fn validating_bindings() {
    let object = json!({"spec": {"policyName": "replicalimit", "validationActions": ["Deny"]}});
    Life::cluster(
        REGISTRATION,
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        object,
    )
    .live()
    .await;
}

/// Conformance: MutatingAdmissionPolicy API
#[tokio::test]
async fn mutating_policies() {
    let mutation = json!({"patchType": "ApplyConfiguration", "applyConfiguration": {
        "expression": "Object{metadata: Object.metadata{labels: {\"a\": \"b\"}}}"}});
    let object = json!({"spec": {"matchConstraints": rules(), "reinvocationPolicy": "Never", "mutations": [mutation]}});
    Life::cluster(
        REGISTRATION,
        "MutatingAdmissionPolicy",
        "mutatingadmissionpolicies",
        object,
    )
    .live()
    .await;
}

/// Conformance: MutatingAdmissionPolicyBinding API
#[tokio::test]
async fn mutating_bindings() {
    let object = json!({"spec": {"policyName": "labels"}});
    Life::cluster(
        REGISTRATION,
        "MutatingAdmissionPolicyBinding",
        "mutatingadmissionpolicybindings",
        object,
    )
    .live()
    .await;
}

/// Conformance: Priority and Fairness FlowSchema API
#[tokio::test]
async fn flow_schemas() {
    let object = json!({"spec": {"matchingPrecedence": 10000,
        "priorityLevelConfiguration": {"name": "global-default"},
        "distinguisherMethod": {"type": "ByUser"},
        "rules": [{"subjects": [{"kind": "User", "user": {"name": "example-e2e-non-existent-user"}}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}]}});
    let condition = json!({"type": "Dangling", "status": "False", "reason": "E2E", "message": "set by a test",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    Life::cluster(FAIRNESS, "FlowSchema", "flowschemas", object)
        .status(json!({"conditions": [condition]}))
        .live()
        .await;
}

/// Conformance: Priority and Fairness PriorityLevelConfiguration API
#[tokio::test]
async fn priority_levels() {
    let object = json!({"spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 2,
        "limitResponse": {"type": "Reject"}}}});
    let condition = json!({"type": "E2E", "status": "False", "reason": "E2E", "message": "set by a test",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    Life::cluster(
        FAIRNESS,
        "PriorityLevelConfiguration",
        "prioritylevelconfigurations",
        object,
    )
    .status(json!({"conditions": [condition]}))
    .live()
    .await;
}
