//! Static defaults: values that depend on nothing but their field being absent.
//!
//! The facts name a schema, a path below it and a value. They apply wherever an object of that
//! schema occurs, so a pod template inside a CronJob gets the same values as a Pod.

use std::collections::HashMap;
use std::sync::OnceLock;

use api::{Kind, Schema, Shape};
use serde_json::{Map, Value};

const DEFAULTS: &str = api::DEFAULTS_JSON;

struct Rule {
    path: Vec<String>,
    value: Value,
}

/// Schemas whose numbers are no pointers upstream: zero counts as absent.
const ZERO_IS_ABSENT: &[&str] = &["io.k8s.api.core.v1.Probe"];

/// Structs that are no pointers upstream, so that what is below them is defaulted even when nobody wrote them;
/// clients patch below `resources`.
const ALWAYS_PRESENT: &[(&str, &str)] = &[
    ("io.k8s.api.core.v1.Container", "resources"),
    ("io.k8s.api.core.v1.Pod", "spec"),
    ("io.k8s.api.core.v1.PodTemplateSpec", "spec"),
    ("io.k8s.api.core.v1.ReplicationController", "spec"),
    ("io.k8s.api.core.v1.Service", "spec"),
    ("io.k8s.api.apps.v1.DaemonSet", "spec"),
    ("io.k8s.api.apps.v1.DaemonSetSpec", "template"),
    ("io.k8s.api.apps.v1.Deployment", "spec"),
    ("io.k8s.api.apps.v1.DeploymentSpec", "template"),
    ("io.k8s.api.apps.v1.ReplicaSet", "spec"),
    ("io.k8s.api.apps.v1.ReplicaSetSpec", "template"),
    ("io.k8s.api.apps.v1.StatefulSet", "spec"),
    ("io.k8s.api.apps.v1.StatefulSetSpec", "template"),
    ("io.k8s.api.batch.v1.Job", "spec"),
    ("io.k8s.api.batch.v1.JobSpec", "template"),
    ("io.k8s.api.batch.v1.CronJob", "spec"),
    ("io.k8s.api.batch.v1.CronJobSpec", "jobTemplate"),
    ("io.k8s.api.batch.v1.JobTemplateSpec", "spec"),
];

fn rules() -> &'static HashMap<String, Vec<Rule>> {
    static RULES: OnceLock<HashMap<String, Vec<Rule>>> = OnceLock::new();
    RULES.get_or_init(|| {
        let raw: HashMap<String, Map<String, Value>> =
            serde_json::from_str(DEFAULTS).unwrap_or_default();
        let rule = |(path, value): (String, Value)| Rule {
            path: path.split('.').map(str::to_owned).collect(),
            value,
        };
        let entries = raw
            .into_iter()
            .map(|(schema, entries)| (schema, entries.into_iter().map(rule).collect()));
        let mut all: HashMap<String, Vec<Rule>> = entries.collect();
        for (schema, field) in ALWAYS_PRESENT {
            let present = rule(((*field).to_owned(), Value::Object(Map::new())));
            all.entry((*schema).to_owned()).or_default().push(present);
        }
        all
    })
}

/// Fills in the static defaults of an object and of everything in it. Idempotent.
pub fn default(kind: &Kind, obj: &mut Value) {
    if let Some(custom) = &kind.custom {
        if let Some(schema) = &custom.schema {
            api::custom::fill(obj, schema);
        }
        return;
    }
    if let Some(schema) = kind.schema.get() {
        fill(obj, schema);
    }
}

fn fill(value: &mut Value, schema: &Schema) {
    let Value::Object(map) = value else { return };
    for rule in rules().get(&schema.name).into_iter().flatten() {
        apply(
            map,
            &rule.path,
            &rule.value,
            ZERO_IS_ABSENT.contains(&schema.name.as_str()),
        );
    }
    for field in &schema.fields {
        if let Some(default) = &field.default
            && !map.contains_key(&*field.name)
        {
            map.insert(field.name.to_string(), default.clone());
        }
    }
    for (key, child) in map.iter_mut() {
        if let Some(field) = schema.field(key) {
            descend(child, &field.shape);
        }
    }
}

fn descend(value: &mut Value, shape: &Shape) {
    match (shape, value) {
        (Shape::Object(reference), value) => {
            if let Some(schema) = reference.get() {
                fill(value, schema);
            }
        }
        (Shape::Array(item), Value::Array(items)) => {
            items.iter_mut().for_each(|v| descend(v, item))
        }
        (Shape::Map(item), Value::Object(map)) => map.values_mut().for_each(|v| descend(v, item)),
        _ => {}
    }
}

fn apply(map: &mut Map<String, Value>, path: &[String], value: &Value, zero_is_absent: bool) {
    let [key, rest @ ..] = path else { return };
    if !rest.is_empty() {
        let child = map
            .entry(key.clone())
            .or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(child) = child {
            apply(child, rest, value, zero_is_absent);
        }
        return;
    }
    let absent = match map.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::String(s)) => s.is_empty() && value.as_str().is_some_and(|v| !v.is_empty()),
        Some(Value::Number(n)) => zero_is_absent && n.as_i64() == Some(0),
        _ => false,
    };
    if absent {
        map.insert(key.clone(), value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn defaulted(group: &str, resource: &str, mut obj: Value) -> Value {
        let kind = api::kind(group, "v1", resource).unwrap();
        default(kind, &mut obj);
        let once = obj.clone();
        default(kind, &mut obj);
        assert_eq!(obj, once, "idempotent");
        obj
    }

    #[test]
    fn pods_and_templates() {
        let spec = json!({"containers": [{"name": "a", "ports": [{"containerPort": 80}], "livenessProbe": {"httpGet": {"port": 80}, "periodSeconds": 0}}], "restartPolicy": ""});
        let pod = defaulted("", "pods", json!({"spec": spec}));
        assert_eq!(pod["spec"]["restartPolicy"], "Always");
        assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 30);
        assert_eq!(pod["spec"]["enableServiceLinks"], true);
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["ports"][0]["protocol"], "TCP");
        assert_eq!(container["livenessProbe"]["periodSeconds"], 10);
        assert_eq!(
            container["livenessProbe"]["httpGet"],
            json!({"port": 80, "path": "/", "scheme": "HTTP"})
        );
        assert_eq!(container["resources"], json!({}));
        let bare = defaulted("apps", "deployments", json!({"spec": {"replicas": 3}}));
        assert_eq!(bare["spec"]["template"]["spec"]["restartPolicy"], "Always");
        let cron = defaulted(
            "batch",
            "cronjobs",
            json!({"spec": {"jobTemplate": {"spec": {"template": {"spec": spec}}}}}),
        );
        let template = &cron["spec"]["jobTemplate"]["spec"]["template"]["spec"];
        assert_eq!(template["dnsPolicy"], "ClusterFirst");
        assert!(
            template.get("enableServiceLinks").is_none(),
            "only Pods have it filled in"
        );
        assert_eq!(cron["spec"]["concurrencyPolicy"], "Allow");
    }

    #[test]
    fn deployments() {
        let deployment = defaulted(
            "apps",
            "deployments",
            json!({"spec": {"replicas": 0, "template": {"spec": {"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}}}}),
        );
        assert_eq!(deployment["spec"]["replicas"], 0);
        assert_eq!(deployment["spec"]["strategy"]["type"], "RollingUpdate");
        assert_eq!(deployment["spec"]["revisionHistoryLimit"], 10);
        assert_eq!(
            deployment["spec"]["template"]["spec"]["volumes"][0]["secret"]["defaultMode"],
            420
        );
    }
}
