//! Names of resources, and what upstream lets be asked for of each.

use api::{FieldError, Quantity, names};

use crate::check::{NOT_NEGATIVE, named};

/// Resources without a prefix that the cluster knows.
const STANDARD: &[&str] = &[
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
    "storage",
];

/// Resources that are counted.
const COUNTED: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];

/// How much there is, or may be, of a resource.
pub(crate) fn amount(name: &str, amount: &Quantity, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut refuse = |why| errors.push(FieldError::invalid(at, amount.to_string(), why));
    if amount.is_negative() {
        refuse(NOT_NEGATIVE);
    }
    let extended = !is_native(name) && !name.starts_with("requests.");
    if (extended || COUNTED.contains(&name)) && !amount.is_integer() {
        refuse("must be an integer");
    }
    errors
}

/// Whether quotas count or sum it under this name.
pub(crate) fn is_counted_or_summed(name: &str) -> bool {
    // What claims ask for is summed as `requests.storage`.
    name != "storage" && STANDARD.contains(&name)
}

/// Pages of a size of their own.
pub(crate) fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Whether the resource is the cluster's own and not one that somebody added.
pub(crate) fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether more of it can be promised than there is.
pub(crate) fn is_shared(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

/// The name of any resource.
pub(crate) fn resource_name(name: &str, at: &str) -> Vec<FieldError> {
    let errors = named(names::qualified_name(name), at, name);
    let huge = is_huge_page(name) || name.starts_with("requests.hugepages-");
    if errors.is_empty() && !name.contains('/') && !huge && !STANDARD.contains(&name) {
        let why = "must be a standard resource type or fully qualified";
        return vec![FieldError::invalid(at, name, why)];
    }
    errors
}

/// The name of a resource that a container asks for.
pub(crate) fn container_resource(name: &str, at: &str) -> Vec<FieldError> {
    let mut errors = resource_name(name, at);
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || is_huge_page(name);
    let extended = || {
        !name.starts_with("requests.")
            && names::qualified_name(&format!("requests.{name}")).is_empty()
    };
    let why = if !name.contains('/') && !standard {
        "must be a standard resource for containers"
    } else if !is_native(name) && !extended() {
        "doesn't follow extended resource name standard"
    } else {
        return errors;
    };
    errors.push(FieldError::invalid(at, name, why));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_texts;

    #[test]
    fn names_of_resources() {
        let standard =
            "r: Invalid value: \"money\": must be a standard resource type or fully qualified";
        let container = "must be a standard resource for containers";
        for (name, expected) in [
            ("cpu", vec![]),
            ("hugepages-2Mi", vec![]),
            ("example.com/gpu", vec![]),
            ("pods", vec![format!("r: Invalid value: \"pods\": {container}")]),
            ("money", vec![standard.to_owned(), format!("r: Invalid value: \"money\": {container}")]),
            ("requests.example.com/gpu", vec![
                "r: Invalid value: \"requests.example.com/gpu\": doesn't follow extended resource name standard".to_owned()]),
        ] {
            let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
            assert_texts(&container_resource(name, "r"), &expected, &name);
        }
        assert!(
            is_shared("kubernetes.io/batch-cpu")
                && !is_shared("a.io/b")
                && !is_shared("hugepages-1Gi")
        );
    }
}
