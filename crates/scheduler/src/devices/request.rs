//! What claims ask for: each request as a list of alternatives, the first that can be had winning.

use std::sync::Arc;

use client::Key;
use k8s_openapi::api::resource::v1::{
    CapacityRequirements, DeviceClass, DeviceConstraint, DeviceRequest, DeviceSelector,
    DeviceTaint, DeviceToleration, ExactDeviceRequest, ResourceClaim,
};

use super::model::{Amounts, quantity};

/// Most alternatives of a request.
pub const ALTERNATIVES_MAX: usize = 8;

/// One way to satisfy a request.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Its name, without that of the request of which it is an alternative.
    pub name: &'a str,
    /// What results call it: `request` or `request/alternative`.
    pub reference: String,
    /// The name of its class.
    pub class_name: &'a str,
    /// How many devices; `None`: all that there are.
    pub count: Option<usize>,
    /// Whether for administration, beside whoever has the devices.
    pub admin: bool,
    /// Which devices, besides what the class says.
    pub selectors: &'a [DeviceSelector],
    /// Which taints it does not mind.
    pub tolerations: &'a [DeviceToleration],
    /// How much of each device, where devices are shared.
    pub asked: Amounts,
}

impl Wanted<'_> {
    /// Whether no taint keeps it away from a device.
    pub fn tolerates<'t>(&self, taints: impl IntoIterator<Item = &'t DeviceTaint>) -> bool {
        let hard = |t: &&DeviceTaint| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute");
        let mut taints = taints.into_iter().filter(hard);
        taints.all(|taint| {
            self.tolerations
                .iter()
                .any(|t| placement::taints::tolerates_device(t, taint))
        })
    }
}

/// A request.
#[derive(Debug)]
pub struct Request<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether it is a list of alternatives, even if of one.
    pub listed: bool,
    /// The ways to satisfy it, the best first.
    pub alternatives: Vec<Wanted<'a>>,
}

fn amounts(given: Option<&CapacityRequirements>) -> Amounts {
    let requests = given.and_then(|c| c.requests.as_ref());
    let requests = requests.into_iter().flatten();
    requests.map(|(n, q)| (n.clone(), quantity(q))).collect()
}

/// How many devices; `None`: all.
///
/// # Errors
/// The mode, where it is not known.
fn count(mode: Option<&str>, count: Option<i64>) -> Result<Option<usize>, &str> {
    match mode.unwrap_or("ExactCount") {
        "ExactCount" | "" => Ok(usize::try_from(count.unwrap_or(1)).ok().or(Some(0))),
        "All" => Ok(None),
        other => Err(other),
    }
}

fn exact<'a>(name: &'a str, asks: &'a ExactDeviceRequest) -> Result<Wanted<'a>, String> {
    let count = count(asks.allocation_mode.as_deref(), asks.count);
    Ok(Wanted {
        name,
        reference: name.to_owned(),
        class_name: &asks.device_class_name,
        count: count.map_err(|mode| format!("request {name}: unsupported count mode {mode}"))?,
        admin: asks.admin_access.unwrap_or(false),
        selectors: asks.selectors.as_deref().unwrap_or_default(),
        tolerations: asks.tolerations.as_deref().unwrap_or_default(),
        asked: amounts(asks.capacity.as_ref()),
    })
}

impl<'a> Request<'a> {
    /// # Errors
    /// When it is of a kind that is not known here.
    pub fn of(given: &'a DeviceRequest) -> Result<Self, String> {
        let name = given.name.as_str();
        let listed = given.first_available.as_deref().unwrap_or_default();
        let alternatives = match &given.exactly {
            Some(asks) => vec![exact(name, asks)?],
            None if listed.is_empty() => {
                return Err(format!("request {name}: unknown request type"));
            }
            None => listed
                .iter()
                .map(|sub| {
                    let count = count(sub.allocation_mode.as_deref(), sub.count);
                    let unknown = |mode| {
                        let sub = &sub.name;
                        format!("request {sub}: unsupported count mode {mode}")
                    };
                    Ok(Wanted {
                        name: &sub.name,
                        reference: format!("{name}/{}", sub.name),
                        class_name: &sub.device_class_name,
                        count: count.map_err(unknown)?,
                        admin: false,
                        selectors: sub.selectors.as_deref().unwrap_or_default(),
                        tolerations: sub.tolerations.as_deref().unwrap_or_default(),
                        asked: amounts(sub.capacity.as_ref()),
                    })
                })
                .collect::<Result<_, String>>()?,
        };
        Ok(Self {
            name,
            listed: given.exactly.is_none(),
            alternatives,
        })
    }
}

/// What a claim asks for.
pub struct Asked<'a> {
    /// The claim.
    pub claim: &'a ResourceClaim,
    /// Its requests.
    pub requests: Vec<Request<'a>>,
    /// The classes of the alternatives of each request.
    pub classes: Vec<Vec<Arc<DeviceClass>>>,
    /// What its devices must have in common.
    pub constraints: &'a [DeviceConstraint],
}

impl<'a> Asked<'a> {
    /// # Errors
    /// What about the claim is not known here, or which class does not exist.
    pub fn of(
        claim: &'a ResourceClaim,
        class: impl Fn(&str) -> Option<Arc<DeviceClass>>,
    ) -> Result<Self, String> {
        let devices = claim.spec.as_ref().and_then(|s| s.devices.as_ref());
        let given = devices.and_then(|d| d.requests.as_deref());
        let key = Key::of(claim);
        let requests = given.unwrap_or_default().iter().map(Request::of);
        let requests = requests
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| format!("resource claim {key}, {e}"))?;
        let classes = requests.iter().map(|request| {
            let classes = request.alternatives.iter().map(|wanted| {
                if wanted.class_name.is_empty() {
                    let name = &wanted.reference;
                    return Err(format!("request {name}: unsupported request type"));
                }
                class(wanted.class_name).ok_or_else(|| {
                    let (name, class) = (&wanted.reference, wanted.class_name);
                    format!("request {name}: device class {class} does not exist")
                })
            });
            classes.collect()
        });
        Ok(Self {
            claim,
            classes: classes.collect::<Result<_, _>>()?,
            requests,
            constraints: devices
                .and_then(|d| d.constraints.as_deref())
                .unwrap_or_default(),
        })
    }
}
