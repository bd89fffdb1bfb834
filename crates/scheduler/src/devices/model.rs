//! Resource slices, projected to what decides about devices.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, OnceLock},
};

use api::quantity::Quantity;
use cel::{Value, device::ByDomain};
use k8s_openapi::{
    api::{
        core::v1::NodeSelector,
        resource::v1::{
            CapacityRequestPolicy, Device as Given, DeviceAttribute, DeviceTaint, ResourceSlice,
        },
    },
    apimachinery::pkg::api::resource::Quantity as Text,
};

use placement::node_selector as selector;

use crate::node::NodeSpec;

/// A pool of devices of a driver.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId {
    /// The driver.
    pub driver: Arc<str>,
    /// The pool.
    pub pool: Arc<str>,
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.driver, self.pool)
    }
}

/// A device of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    /// Its pool.
    pub pool: PoolId,
    /// Its name there.
    pub device: Arc<str>,
}

impl DeviceId {
    /// The device of these names.
    pub fn new(driver: &str, pool: &str, device: &str) -> Self {
        Self {
            pool: PoolId {
                driver: driver.into(),
                pool: pool.into(),
            },
            device: device.into(),
        }
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.device)
    }
}

/// From where devices can be used.
#[derive(Clone, Debug, PartialEq)]
pub enum Reach {
    /// From this node.
    Node(String),
    /// From every node.
    Everywhere,
    /// From the nodes that match.
    Matching(NodeSelector),
    /// Each device says so itself.
    PerDevice,
    /// From nowhere that is understood here.
    Nowhere,
}

impl Reach {
    fn of(
        node: Option<&String>,
        all: Option<bool>,
        selector: Option<&NodeSelector>,
        per_device: Option<bool>,
    ) -> Self {
        match (node.filter(|n| !n.is_empty()), selector) {
            (Some(node), _) => Self::Node(node.clone()),
            _ if all == Some(true) => Self::Everywhere,
            (_, Some(selector)) => Self::Matching(selector.clone()),
            _ if per_device == Some(true) => Self::PerDevice,
            _ => Self::Nowhere,
        }
    }

    /// Whether a node reaches them, as far as is known without looking at each device.
    pub fn includes(&self, node: &NodeSpec) -> bool {
        match self {
            Self::Node(name) => *name == node.name,
            Self::Everywhere | Self::PerDevice => true,
            Self::Matching(terms) => selector::matches(terms, &node.name, &node.labels),
            Self::Nowhere => false,
        }
    }
}

/// How much there is of something, and in which portions it is given out.
#[derive(Clone, Debug, PartialEq)]
pub struct Capacity {
    /// How much there is.
    pub value: Quantity,
    /// The portions.
    pub policy: Option<Policy>,
}

/// Portions of a capacity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// What is given to those who do not ask.
    pub default: Option<Quantity>,
    /// The least, the most and the step.
    pub range: Option<(Quantity, Option<Quantity>, Option<Quantity>)>,
    /// The possible portions, least first.
    pub values: Vec<Quantity>,
}

/// The quantity that a text of the API stands for; zero if it is none.
pub fn quantity(text: &Text) -> Quantity {
    text.0.parse().unwrap_or_default()
}

impl Policy {
    fn of(policy: &CapacityRequestPolicy) -> Self {
        Self {
            default: policy.default.as_ref().map(quantity),
            range: policy.valid_range.as_ref().map(|r| {
                let some = |q: &Option<Text>| q.as_ref().map(quantity);
                (quantity(&r.min), some(&r.max), some(&r.step))
            }),
            values: policy.valid_values.iter().flatten().map(quantity).collect(),
        }
    }
}

/// Amounts by name.
pub type Amounts = BTreeMap<String, Quantity>;

/// A device.
#[derive(Debug)]
pub struct Device {
    /// Which one it is.
    pub id: DeviceId,
    /// From where it can be used, if its slice leaves that to it.
    pub reach: Reach,
    /// What it is like.
    pub attributes: BTreeMap<String, DeviceAttribute>,
    /// How much it has of what.
    pub capacity: BTreeMap<String, Capacity>,
    /// What it takes of the counter sets of its pool.
    pub consumes: Vec<(String, Amounts)>,
    /// What keeps claims away that do not tolerate it.
    pub taints: Vec<DeviceTaint>,
    /// Whether several claims may have it at a time, each a share of its capacity.
    pub shared: bool,
    /// Whether a claim that has it is bound to one node.
    pub binds_to_node: bool,
    /// What has to be true of it before a pod is bound.
    pub binding_conditions: Option<Vec<String>>,
    /// What must not be.
    pub binding_failures: Option<Vec<String>>,
    /// What expressions see of it, once one has looked.
    value: OnceLock<Result<Value, String>>,
}

impl Device {
    fn of(given: &Given, pool: &PoolId) -> Self {
        let reach = Reach::of(
            given.node_name.as_ref(),
            given.all_nodes,
            given.node_selector.as_ref(),
            None,
        );
        let capacity = given.capacity.iter().flatten().map(|(name, c)| {
            let policy = c.request_policy.as_ref().map(Policy::of);
            let value = quantity(&c.value);
            (name.clone(), Capacity { value, policy })
        });
        let consumes = given.consumes_counters.iter().flatten().map(|c| {
            let counters = c.counters.iter();
            let amounts = counters.map(|(name, c)| (name.clone(), quantity(&c.value)));
            (c.counter_set.clone(), amounts.collect())
        });
        Self {
            id: DeviceId {
                pool: pool.clone(),
                device: given.name.as_str().into(),
            },
            reach,
            attributes: given.attributes.clone().unwrap_or_default(),
            capacity: capacity.collect(),
            consumes: consumes.collect(),
            taints: given.taints.clone().unwrap_or_default(),
            shared: given.allow_multiple_allocations.unwrap_or(false),
            binds_to_node: given.binds_to_node.unwrap_or(false),
            binding_conditions: given.binding_conditions.clone(),
            binding_failures: given.binding_failure_conditions.clone(),
            value: OnceLock::new(),
        }
    }

    /// What expressions see of it.
    ///
    /// # Errors
    /// When an attribute makes no sense.
    pub fn value(&self) -> Result<&Value, &str> {
        let made = self.value.get_or_init(|| self.make_value());
        made.as_ref().map_err(String::as_str)
    }

    fn make_value(&self) -> Result<Value, String> {
        let driver = &*self.id.pool.driver;
        let mut attributes = ByDomain::new();
        for (name, attribute) in &self.attributes {
            let value = attribute_value(attribute).map_err(|e| format!("attribute {name}: {e}"))?;
            let (domain, id) = qualified(name, driver);
            let domain = attributes.entry(domain.to_owned()).or_default();
            domain.push((id.to_owned(), value));
        }
        let mut capacity = ByDomain::new();
        for (name, amount) in &self.capacity {
            let (domain, id) = qualified(name, driver);
            let value = Value::Quantity(Arc::new(amount.value));
            let domain = capacity.entry(domain.to_owned()).or_default();
            domain.push((id.to_owned(), value));
        }
        let shared = self.shared;
        Ok(cel::device::value(driver, shared, attributes, capacity))
    }

    /// One of its attributes, by a name with a domain; names without one are the driver's.
    pub fn attribute(&self, name: &str) -> Option<&DeviceAttribute> {
        self.attributes.get(name).or_else(|| {
            let (domain, id) = name.split_once('/')?;
            let own = domain == &*self.id.pool.driver;
            own.then(|| self.attributes.get(id)).flatten()
        })
    }
}

/// Domain and name; a name without a domain is the driver's.
fn qualified<'a>(name: &'a str, driver: &'a str) -> (&'a str, &'a str) {
    name.split_once('/').unwrap_or((driver, name))
}

fn attribute_value(attribute: &DeviceAttribute) -> Result<Value, String> {
    let a = attribute;
    match (a.int, a.bool, &a.string, &a.version) {
        (Some(int), ..) => Ok(Value::from(int)),
        (_, Some(bool), ..) => Ok(Value::from(bool)),
        (_, _, Some(text), _) => Ok(Value::from(text.as_str())),
        (.., Some(version)) => Value::semver(version)
            .ok_or_else(|| format!("parse semantic version: {version:?} is none")),
        _ => Err("unsupported attribute value".to_owned()),
    }
}

/// A part of a pool.
#[derive(Debug)]
pub struct Slice {
    /// Its name.
    pub name: Arc<str>,
    /// Its pool.
    pub pool: PoolId,
    /// Counts the versions of the pool.
    pub generation: i64,
    /// How many slices this version of the pool has.
    pub slices: i64,
    /// From where its devices can be used.
    pub reach: Reach,
    /// Its devices.
    pub devices: Vec<Device>,
    /// What devices of the pool share.
    pub counters: Vec<(String, Amounts)>,
}

impl Slice {
    /// The projection of a slice.
    pub fn of(slice: ResourceSlice) -> Self {
        let spec = slice.spec;
        let pool = PoolId {
            driver: spec.driver.as_str().into(),
            pool: spec.pool.name.as_str().into(),
        };
        let given = spec.devices.iter().flatten();
        let counters = spec.shared_counters.iter().flatten().map(|set| {
            let counters = set.counters.iter();
            let amounts = counters.map(|(name, c)| (name.clone(), quantity(&c.value)));
            (set.name.clone(), amounts.collect())
        });
        Self {
            name: slice.metadata.name.as_deref().unwrap_or_default().into(),
            generation: spec.pool.generation,
            slices: spec.pool.resource_slice_count,
            reach: Reach::of(
                spec.node_name.as_ref(),
                spec.all_nodes,
                spec.node_selector.as_ref(),
                spec.per_device_node_selection,
            ),
            devices: given.map(|d| Device::of(d, &pool)).collect(),
            counters: counters.collect(),
            pool,
        }
    }

    /// Whether a node reaches any of its devices.
    pub fn reaches(&self, node: &NodeSpec) -> bool {
        match self.reach {
            Reach::PerDevice => self.devices.iter().any(|d| d.reach.includes(node)),
            _ => self.reach.includes(node),
        }
    }

    /// Whether a node reaches one of its devices.
    pub fn reaches_device(&self, device: &Device, node: &NodeSpec) -> bool {
        self.reach != Reach::PerDevice || device.reach.includes(node)
    }
}
