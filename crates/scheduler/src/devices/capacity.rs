//! Devices that several claims share: how large each claim's share is, and whether there is enough
//! left.

use api::quantity::Quantity;

use super::model::{Amounts, Capacity, Device, Policy};

/// What a claim that asks for these amounts gets of a device; `None`: it asks for something that
/// the device does not have, or for a portion that it does not give.
pub fn share(device: &Device, asked: &Amounts) -> Option<Amounts> {
    if asked.keys().any(|name| !device.capacity.contains_key(name)) {
        return None;
    }
    let portions = device.capacity.iter().map(|(name, capacity)| {
        let portion = portion(asked.get(name).copied(), capacity);
        let given = capacity.policy.as_ref().is_none_or(|p| gives(p, portion));
        given.then(|| (name.clone(), portion))
    });
    portions.collect()
}

/// Whether the device has a share left, what others have taken considered.
pub fn fits(device: &Device, share: &Amounts, taken: &[&Amounts]) -> bool {
    device.capacity.iter().all(|(name, capacity)| {
        let amounts = taken.iter().copied().chain([share]);
        let total = amounts
            .filter_map(|a| a.get(name))
            .fold(Quantity::default(), |sum, a| sum + *a);
        total <= capacity.value
    })
}

/// How much is taken by one who asks for so much, or does not ask.
fn portion(asked: Option<Quantity>, capacity: &Capacity) -> Quantity {
    let policy = capacity.policy.as_ref();
    let Some(asked) = asked else {
        return policy.and_then(|p| p.default).unwrap_or(capacity.value);
    };
    match policy {
        Some(Policy {
            range: Some((least, _, step)),
            ..
        }) => rounded(asked, *least, *step),
        Some(policy) => {
            let mut enough = policy.values.iter().filter(|v| asked <= **v);
            enough.next().copied().unwrap_or(asked)
        }
        None => asked,
    }
}

/// The least multiple of `step` above `least` that is enough.
fn rounded(asked: Quantity, least: Quantity, step: Option<Quantity>) -> Quantity {
    if asked <= least {
        return least;
    }
    let Some(step) = step.map(|s| s.nanos()).filter(|s| *s > 0) else {
        return asked;
    };
    let above = asked.nanos() - least.nanos();
    let steps = above / step + i128::from(above % step != 0);
    least.with_nanos(least.nanos().saturating_add(steps.saturating_mul(step)))
}

/// Whether a portion is one that the policy knows.
fn gives(policy: &Policy, portion: Quantity) -> bool {
    if policy.default == Some(portion) {
        return true;
    }
    match &policy.range {
        Some((least, most, step)) => {
            let step = step.map(|s| s.nanos()).filter(|s| *s > 0);
            most.is_none_or(|most| portion <= most)
                && step.is_none_or(|step| (portion.nanos() - least.nanos()) % step == 0)
        }
        None => policy.values.is_empty() || policy.values.contains(&portion),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::resource::v1::ResourceSlice;
    use serde_json::{Value, json};

    use super::*;
    use crate::devices::model::Slice;

    fn device(policy: Value) -> Slice {
        let slice = json!({"metadata": {}, "spec": {"driver": "d", "nodeName": "n",
            "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
            "devices": [{"name": "x", "allowMultipleAllocations": true,
                "capacity": {"memory": {"value": "10Gi", "requestPolicy": policy}}}]}});
        Slice::of(serde_json::from_value::<ResourceSlice>(slice).unwrap())
    }

    #[test]
    fn shares_come_in_the_portions_of_the_policy() {
        let range =
            json!({"default": "2Gi", "validRange": {"min": "1Gi", "step": "1Gi", "max": "4Gi"}});
        let values = json!({"default": "2Gi", "validValues": ["2Gi", "4Gi"]});
        for (policy, asked, expected) in [
            (Value::Null, None, Some("10Gi")),
            (Value::Null, Some("3Gi"), Some("3Gi")),
            (range.clone(), None, Some("2Gi")),
            (range.clone(), Some("100Mi"), Some("1Gi")),
            (range.clone(), Some("1500Mi"), Some("2Gi")),
            (range.clone(), Some("5Gi"), None),
            (values.clone(), Some("1Gi"), Some("2Gi")),
            (values.clone(), Some("3Gi"), Some("4Gi")),
            (values.clone(), Some("5Gi"), None),
        ] {
            let slice = device(policy.clone());
            let asked = asked.map(|a| ("memory".to_owned(), a.parse().unwrap()));
            let found = share(&slice.devices[0], &asked.into_iter().collect());
            let found = found.map(|s| s["memory"].to_string());
            assert_eq!(found.as_deref(), expected, "{policy}");
        }
        let unknown = Amounts::from([("cores".to_owned(), Quantity::from_int(1))]);
        assert_eq!(share(&device(Value::Null).devices[0], &unknown), None);
    }

    #[test]
    fn shares_add_up_to_the_capacity_at_most() {
        let slice = device(Value::Null);
        let of = |text: &str| Amounts::from([("memory".to_owned(), text.parse().unwrap())]);
        let fits = |share: &str, taken: &[&str]| {
            let taken: Vec<Amounts> = taken.iter().map(|t| of(t)).collect();
            let taken: Vec<&Amounts> = taken.iter().collect();
            super::fits(&slice.devices[0], &of(share), &taken)
        };
        assert!(fits("4Gi", &["6Gi"]));
        assert!(!fits("5Gi", &["6Gi"]));
        assert!(!fits("3Gi", &["4Gi", "4Gi"]));
    }
}
