//! In the end the endpoints of a service are its ready pods, each once.

use super::Invariant;
use crate::world::{World, has_condition, list, text};

/// The check.
pub struct Endpoints;

impl Invariant for Endpoints {
    fn unsettled(&mut self, world: &World) -> Vec<String> {
        let mut all = Vec::new();
        for ((namespace, name), service) in world.all("Service") {
            let Some(app) = service.pointer("/spec/selector/app") else {
                continue;
            };
            let pods = world.all("Pod").filter(|((ns, _), pod)| {
                ns == namespace
                    && pod.pointer("/metadata/labels/app") == Some(app)
                    && has_condition(pod, "Ready")
            });
            let mut wanted: Vec<&str> = pods.map(|(_, pod)| text(pod, "/status/podIP")).collect();
            let slices = world.all("EndpointSlice").filter(|((ns, _), slice)| {
                ns == namespace
                    && slice["metadata"]["labels"]["kubernetes.io/service-name"] == name.as_str()
            });
            let endpoints = slices.flat_map(|(_, slice)| list(slice, "/endpoints"));
            let ready = endpoints.filter(|e| e["conditions"]["ready"] == true);
            let mut told: Vec<&str> = ready.map(|e| text(e, "/addresses/0")).collect();
            wanted.sort_unstable();
            told.sort_unstable();
            if wanted != told {
                all.push(format!(
                    "service {namespace}/{name} leads to {told:?}, ready are {wanted:?}"
                ));
            }
        }
        all
    }
}
