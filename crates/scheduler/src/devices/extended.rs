//! Devices that pods ask for by the name of a resource, as they ask for memory: what claim that
//! makes. Pure.
//!
//! Each container has a request of its own. Init containers end before the others start, so they
//! use the devices of those that come after them, and share what they need beyond that.

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::api::{
    core::v1::{ContainerExtendedResourceRequest, PodSpec},
    resource::v1::{DeviceRequest, ExactDeviceRequest},
};

use placement::resources::Resources;

/// Resources of this domain are classes of devices, by name.
pub const CLASS_PREFIX: &str = "deviceclass.resource.kubernetes.io/";

/// A container, and what it requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Whether it runs beside the others, and not before them.
    pub stays: bool,
    /// Amounts by resource.
    pub requests: BTreeMap<String, i64>,
}

/// Whether a resource may be had from devices.
pub fn is_extended(name: &str) -> bool {
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    name.starts_with(CLASS_PREFIX) || !native && !name.starts_with("requests.")
}

/// The containers of a pod, first those that initialise it; none if it asks for no such resource.
pub fn containers(spec: &PodSpec, requested: &Resources) -> Vec<Container> {
    if !requested.scalar.keys().any(|name| is_extended(name)) {
        return Vec::new();
    }
    let of = |c: &k8s_openapi::api::core::v1::Container, init: bool| {
        let given = c.resources.as_ref().and_then(|r| r.requests.as_ref());
        let amounts = given.into_iter().flatten().map(|(name, amount)| {
            let amount = amount.0.parse::<api::quantity::Quantity>();
            (name.clone(), amount.unwrap_or_default().value())
        });
        Container {
            name: c.name.clone(),
            stays: !init || c.restart_policy.as_deref() == Some("Always"),
            requests: amounts.collect(),
        }
    };
    let init = spec.init_containers.iter().flatten().map(|c| of(c, true));
    init.chain(spec.containers.iter().map(|c| of(c, false)))
        .collect()
}

/// Requests of devices, and which container uses which of them for what.
pub type Wanted = (Vec<DeviceRequest>, Vec<ContainerExtendedResourceRequest>);

/// The requests that containers make of these resources, each provided by a class.
pub fn requests(containers: &[Container], classes: &BTreeMap<String, String>) -> Wanted {
    let (mut all, mut uses) = (Vec::new(), Vec::new());
    for (resource, class) in classes {
        let mut own: Vec<Option<Request>> = containers.iter().map(|_| None).collect();
        for (i, container) in containers.iter().enumerate().filter(|(_, c)| c.stays) {
            own[i] = Request::of(i, container, resource, &[], &mut uses);
        }
        let mut largest: Option<Request> = None;
        let (mut names, mut brief) = (HashSet::new(), Vec::new());
        for (i, container) in containers.iter().enumerate().filter(|(_, c)| !c.stays) {
            let new = Request::of(i, container, resource, &own[i..], &mut brief);
            let Some(new) = new else { continue };
            names.insert(new.name.clone());
            if largest.as_ref().is_none_or(|l| l.count < new.count) {
                largest = Some(new);
            }
        }
        // They run one after another: the largest request is enough for all of them.
        if let Some(largest) = &largest {
            for one in brief.iter_mut().filter(|u| names.contains(&u.request_name)) {
                one.request_name.clone_from(&largest.name);
            }
        }
        uses.extend(brief);
        let made = largest.into_iter().chain(own.into_iter().flatten());
        all.extend(made.map(|r| r.finish(class)));
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    (all, uses)
}

#[derive(Clone)]
struct Request {
    name: String,
    count: i64,
}

impl Request {
    /// What a container needs of a resource beyond what it can use of `others`; notes what it uses.
    fn of(
        index: usize,
        container: &Container,
        resource: &str,
        others: &[Option<Self>],
        uses: &mut Vec<ContainerExtendedResourceRequest>,
    ) -> Option<Self> {
        let wants = *container.requests.get(resource).filter(|n| **n > 0)?;
        let mut note = |request: &str| {
            uses.push(ContainerExtendedResourceRequest {
                container_name: container.name.clone(),
                request_name: request.to_owned(),
                resource_name: resource.to_owned(),
            });
        };
        let mut has = 0;
        for other in others.iter().flatten() {
            has += other.count;
            note(&other.name);
            if has >= wants {
                return None;
            }
        }
        let at = container
            .requests
            .keys()
            .position(|name| name == resource)?;
        let name = format!("container-{index}-request-{at}");
        note(&name);
        Some(Self {
            name,
            count: wants - has,
        })
    }

    fn finish(self, class: &str) -> DeviceRequest {
        DeviceRequest {
            name: self.name,
            exactly: Some(ExactDeviceRequest {
                device_class_name: class.to_owned(),
                allocation_mode: Some("ExactCount".to_owned()),
                count: Some(self.count),
                ..ExactDeviceRequest::default()
            }),
            first_available: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn which_resources_may_be_devices() {
        for (name, expected) in [
            ("example.com/gpu", true),
            ("deviceclass.resource.kubernetes.io/gpu", true),
            ("cpu", false),
            ("hugepages-2Mi", false),
            ("kubernetes.io/x", false),
            ("requests.example.com/gpu", false),
        ] {
            assert_eq!(is_extended(name), expected, "{name}");
        }
    }

    #[test]
    fn containers_share_devices_with_those_that_ran_before_them() {
        let gpus = |n: &str| json!({"requests": {"cpu": "1", "example.com/gpu": n}});
        let spec: PodSpec = serde_json::from_value(json!({
            "initContainers": [
                {"name": "little", "resources": gpus("1")},
                {"name": "much", "resources": gpus("5")},
                {"name": "more", "resources": gpus("4")},
                {"name": "sidecar", "restartPolicy": "Always", "resources": gpus("1")}],
            "containers": [{"name": "a", "resources": gpus("2")}, {"name": "b"}],
        }))
        .unwrap();
        let requested = placement::resources::requested(&spec);
        let containers = containers(&spec, &requested);
        let classes = [("example.com/gpu".to_owned(), "gpu".to_owned())].into();
        let (requests, uses) = requests(&containers, &classes);
        let counts: Vec<_> = requests
            .iter()
            .map(|r| (r.name.as_str(), r.exactly.as_ref().unwrap().count.unwrap()))
            .collect();
        let expected = [
            ("container-1-request-1", 2),
            ("container-3-request-1", 1),
            ("container-4-request-1", 2),
        ];
        assert_eq!(counts, expected);
        let of = |name: &str| -> Vec<&str> {
            let uses = uses.iter().filter(|u| u.container_name == name);
            uses.map(|u| u.request_name.as_str()).collect()
        };
        let [shared, sidecar, a] = expected.map(|(name, _)| name);
        assert_eq!(of("little"), [sidecar]);
        assert_eq!(of("much"), [sidecar, a, shared]);
        assert_eq!(of("more"), [sidecar, a, shared]);
        assert_eq!(
            (of("sidecar"), of("a"), of("b")),
            (vec![sidecar], vec![a], vec![])
        );
    }
}
