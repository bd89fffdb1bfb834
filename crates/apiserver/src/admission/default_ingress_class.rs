//! Ingresses that name no class get the default one.

use api::meta;
use serde_json::Value;

use super::default_storage_class::newest_default;
use super::{Admitted, Plugin, Review};

const DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
/// Names the class of an ingress, as it once was.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const CLASS: [&str; 2] = ["spec", "ingressClassName"];

/// The plugin.
pub struct DefaultIngressClass;

impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.creates("networking.k8s.io", "ingresses")
    }

    fn mutate<'a>(&'a self, review: &'a Review<'a>, object: &'a mut Value) -> Admitted<'a> {
        Box::pin(async move {
            let named = meta::get(object, &CLASS).is_some()
                || meta::annotation(object, CLASS_ANNOTATION).is_some();
            if named {
                return Ok(());
            }
            let classes = ("networking.k8s.io", "v1", "ingressclasses");
            let classes = review.registry.read_all(classes, "").await?;
            if let Some(name) = newest_default(&classes, &[DEFAULT]) {
                meta::set(object, &CLASS, name.into());
            }
            Ok(())
        })
    }
}
