//! When what changes the endpoints of a service happened, for whoever measures how long news of it takes.
//!
//! That is when the service was made or when a pod last became ready or stopped being so, whichever came
//! first of what has not been told of yet.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Mutex, PoisonError},
};

use client::Key;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};

use crate::pods;

const ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// What has been told of, by service. Bounded by the number of services and their pods.
#[derive(Default)]
pub struct Triggers(Mutex<HashMap<Key, HashSet<u64>>>);

/// What a look at a service found.
#[derive(Debug, Default, PartialEq)]
pub struct Trigger {
    /// The earliest of what is new; `None`: nothing is.
    pub at: Option<Timestamp>,
    seen: HashSet<u64>,
}

impl Triggers {
    /// What has happened since the last time that was told of.
    pub fn look(&self, key: &Key, service: &Service, pods: &[Pod]) -> Trigger {
        let created = service.metadata.creation_timestamp.as_ref().map(|t| t.0);
        let changes = pods.iter().filter_map(|pod| {
            let at = pods::condition(pod, "Ready")?;
            let at = at.last_transition_time.as_ref()?.0;
            Some((mark(pod.metadata.name.as_deref(), at), at))
        });
        let own = created.map(|at| (mark(None, at), at));
        let all: Vec<(u64, Timestamp)> = changes.chain(own).collect();
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = match known.get(key) {
            Some(known) => {
                let new = all.iter().filter(|(mark, _)| !known.contains(mark));
                new.map(|(_, at)| *at).min()
            }
            None => created,
        };
        let seen = all.into_iter().map(|(mark, _)| mark).collect();
        Trigger { at, seen }
    }

    /// Remembers that the service's endpoints say it now.
    pub fn told(&self, key: &Key, trigger: Trigger) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(key.clone(), trigger.seen);
    }

    /// A service is gone.
    pub fn forget(&self, key: &Key) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(key);
    }
}

impl Trigger {
    /// Says it in annotations; where nothing is new they say nothing of it.
    pub fn stamp(&self, annotations: &mut BTreeMap<String, String>) {
        match self.at {
            Some(at) => annotations.insert(ANNOTATION.into(), api::time::format(at)),
            None => annotations.remove(ANNOTATION),
        };
    }
}

fn mark(pod: Option<&str>, at: Timestamp) -> u64 {
    let mut hasher = DefaultHasher::new();
    (pod, at.as_nanosecond()).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_of_what_is_new_is_told() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let pod = |name: &str, second| -> Pod {
            let ready = json!({"type": "Ready", "status": "True",
                "lastTransitionTime": at(second).to_string()});
            serde_json::from_value(json!({"metadata": {"name": name},
                "status": {"conditions": [ready]}}))
            .unwrap()
        };
        let service: Service =
            serde_json::from_value(json!({"metadata": {"creationTimestamp": at(100).to_string()}}))
                .unwrap();
        let key = Key::new("n", "s");
        let triggers = Triggers::default();
        let look = |pods: &[Pod]| {
            let found = triggers.look(&key, &service, pods);
            let at = found.at.map(Timestamp::as_second);
            triggers.told(&key, found);
            at
        };
        let (a, b) = (pod("a", 110), pod("b", 120));
        assert_eq!(look(std::slice::from_ref(&a)), Some(100), "it is new");
        assert_eq!(look(std::slice::from_ref(&a)), None);
        assert_eq!(look(&[a.clone(), b.clone()]), Some(120));
        // At the same second as one that was told of.
        assert_eq!(look(&[a, b.clone(), pod("c", 120)]), Some(120));
        assert_eq!(look(&[pod("a", 130), b, pod("c", 125)]), Some(125));
        let untold = triggers.look(&key, &service, &[pod("d", 140)]);
        let again = triggers.look(&key, &service, &[pod("d", 140)]);
        assert_eq!(untold, again, "until it is told");
        let mut annotations = BTreeMap::new();
        untold.stamp(&mut annotations);
        assert_eq!(annotations[ANNOTATION], "1970-01-01T00:02:20Z");
        Trigger::default().stamp(&mut annotations);
        assert!(annotations.is_empty());
    }
}
