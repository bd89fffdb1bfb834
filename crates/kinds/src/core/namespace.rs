//! Namespaces.

use api::time::Timestamp;
use api::{FieldError, meta, names};
use serde_json::{Value, json};

use crate::cells::{Cell, render};
use crate::metadata::masked;
use crate::strategy::{Ctx, Strategy};

const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Finalizers that need no domain in front.
const FINALIZERS: &[&str] = &["foregroundDeletion", "kubernetes", "orphan"];
const NOT_QUALIFIED: &str = "name is neither a standard finalizer name nor is it fully qualified";

/// Rules of Namespaces.
pub(crate) struct Namespace;

impl Strategy for Namespace {
    fn default(&self, namespace: &mut Value) {
        let name = meta::name(namespace).to_owned();
        if !name.is_empty() && meta::label(namespace, NAME_LABEL) != Some(&name) {
            meta::set(namespace, &["metadata", "labels", NAME_LABEL], name.into());
        }
    }

    fn prepare_create(&self, namespace: &mut Value, _ctx: &Ctx<'_>) {
        self.default(namespace);
        namespace["status"] = json!({"phase": "Active"});
        // Keeps the namespace while its contents are being deleted.
        let finalizers = meta::object_at(namespace, &["spec"])
            .entry("finalizers")
            .or_insert_with(|| json!([]));
        if let Some(list) = finalizers.as_array_mut()
            && !list.contains(&json!("kubernetes"))
        {
            list.push(json!("kubernetes"));
        }
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, _ctx: &Ctx<'_>) {
        // Finalizers of the spec change through the finalize subresource only.
        crate::generic::put_back(new, old, "spec");
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        masked(name, prefix, names::dns1123_label)
    }

    fn validate(&self, namespace: &Value) -> Vec<FieldError> {
        let list = meta::list_at(namespace, &["spec", "finalizers"])
            .iter()
            .filter_map(Value::as_str);
        let at = "spec.finalizers";
        let told = |f: &str| {
            let mut why = names::qualified_name(f);
            if !f.contains('/') && !FINALIZERS.contains(&f) {
                why.push(NOT_QUALIFIED.to_owned());
            }
            crate::check::named(why, at, f)
        };
        list.flat_map(told).collect()
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
        let phase = meta::str_at(new, &["status", "phase"]);
        let goes = meta::get(new, &["metadata", "deletionTimestamp"]).is_some();
        let (wanted, why) = if goes {
            (
                "Terminating",
                "may only be 'Terminating' if `deletionTimestamp` is not empty",
            )
        } else {
            (
                "Active",
                "may only be 'Active' if `deletionTimestamp` is empty",
            )
        };
        let odd = phase != wanted;
        let error = odd.then(|| FieldError::invalid("status.Phase", phase, why));
        error.into_iter().collect()
    }

    fn row(&self, namespace: &Value, now: Timestamp) -> Option<Vec<Value>> {
        Some(render(
            &[Cell::Name, Cell::Text(&["status", "phase"]), Cell::Age],
            namespace,
            now,
        ))
    }

    fn field_labels(&self) -> crate::simple::FieldLabels {
        &[
            ("status.phase", &["status", "phase"]),
            ("name", &["metadata", "name"]),
        ]
    }
}
