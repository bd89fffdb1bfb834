//! What the devices of a claim must have in common, or must not.
//!
//! Devices are added and taken back in the manner of a stack, as the search goes on and turns back.

use k8s_openapi::api::resource::v1::{DeviceAttribute, DeviceConstraint};

use super::model::Device;

/// A constraint and the values of the devices that it has let through.
#[derive(Debug)]
pub struct Constraint<'a> {
    /// The requests it is about; none: all.
    requests: &'a [String],
    attribute: &'a str,
    /// Whether all values have to differ; otherwise all have to be the same.
    distinct: bool,
    values: Vec<&'a DeviceAttribute>,
}

impl<'a> Constraint<'a> {
    /// `None`: it is of a kind that is not known here.
    pub fn of(given: &'a DeviceConstraint) -> Option<Self> {
        let (attribute, distinct) = match (&given.match_attribute, &given.distinct_attribute) {
            (Some(attribute), _) => (attribute, false),
            (None, Some(attribute)) => (attribute, true),
            (None, None) => return None,
        };
        Some(Self {
            requests: given.requests.as_deref().unwrap_or_default(),
            attribute,
            distinct,
            values: Vec::new(),
        })
    }

    /// Whether it is about a request, or an alternative of one (`request/alternative`).
    fn concerns(&self, request: &str, full: &str) -> bool {
        self.requests.is_empty() || self.requests.iter().any(|r| r == request || r == full)
    }

    /// Lets a device through, if it may pass.
    pub fn add(&mut self, request: &str, full: &str, device: &'a Device) -> bool {
        if !self.concerns(request, full) {
            return true;
        }
        let Some(value) = device.attribute(self.attribute) else {
            return false;
        };
        let passes = if self.distinct {
            !self.values.iter().any(|v| same(v, value))
        } else {
            self.values.first().is_none_or(|v| same(v, value))
        };
        if passes {
            self.values.push(value);
        }
        passes
    }

    /// Takes back the device let through last.
    pub fn remove(&mut self, request: &str, full: &str) {
        if self.concerns(request, full) {
            self.values.pop();
        }
    }
}

fn same(a: &DeviceAttribute, b: &DeviceAttribute) -> bool {
    let known = a.string.is_some() || a.int.is_some() || a.bool.is_some() || a.version.is_some();
    known && a.string == b.string && a.int == b.int && a.bool == b.bool && a.version == b.version
}
