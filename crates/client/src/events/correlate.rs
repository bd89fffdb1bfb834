//! Which occurrence becomes an event, which raises a count, and which is dropped. Pure.

use std::{collections::HashMap, hash::Hash};

use jiff::{SignedDuration, Timestamp};

use super::{EventName, Occurrence};

/// Objects, events and groups remembered, each.
const REMEMBERED: usize = 4096;
/// Events of one object written at once before the limit sets in.
const BURST: f64 = 25.0;
/// Events of one object per second, once the burst is used up.
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;
/// Similar events within [`GROUP_WINDOW`] that stay events of their own.
const GROUP_MAX: usize = 10;
/// For how long similar events are one group.
const GROUP_WINDOW: SignedDuration = SignedDuration::from_mins(10);

/// What to do with an occurrence.
#[derive(Debug, PartialEq)]
pub(super) enum Decision {
    /// Write a new event with this count.
    Create(Occurrence, i32),
    /// Raise the count of a written event to this.
    Count(EventName, Occurrence, i32),
    /// Nothing.
    Drop,
}

/// Names what an occurrence was counted under, to tell the correlator where it was written.
pub(super) type Ticket = (Object, String);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Object {
    kind: String,
    namespace: String,
    name: String,
    uid: String,
    field: String,
}

struct Bucket {
    tokens: f64,
    at: Timestamp,
}

struct Group {
    messages: Vec<String>,
    at: Timestamp,
}

struct Written {
    event: Option<EventName>,
    count: i32,
    at: Timestamp,
}

/// Remembers what was written lately.
#[derive(Default)]
pub(super) struct Correlator {
    buckets: HashMap<Object, Bucket>,
    groups: HashMap<Ticket, Group>,
    written: HashMap<Ticket, Written>,
}

impl Correlator {
    /// Decides about an occurrence; the ticket is for [`Correlator::written`].
    pub(super) fn observe(&mut self, mut occurrence: Occurrence) -> (Decision, Ticket) {
        let now = occurrence.at;
        let object = object_of(&occurrence);
        let similar = format!("{}/{}", occurrence.kind, occurrence.reason);
        let ticket = if self.is_crowded((object.clone(), similar.clone()), &occurrence) {
            occurrence.message = format!("(combined from similar events): {}", occurrence.message);
            (object.clone(), similar)
        } else {
            (object.clone(), format!("{similar}/{}", occurrence.message))
        };
        if !self.has_token(object, now) {
            return (Decision::Drop, ticket);
        }
        bound(&mut self.written, |w| w.at);
        let written = self.written.entry(ticket.clone()).or_insert(Written {
            event: None,
            count: 0,
            at: now,
        });
        written.count = written.count.saturating_add(1);
        written.at = now;
        let decision = match &written.event {
            Some(event) => Decision::Count(event.clone(), occurrence, written.count),
            None => Decision::Create(occurrence, written.count),
        };
        (decision, ticket)
    }

    /// Remembers which event an occurrence was written to.
    pub(super) fn written(&mut self, ticket: Ticket, event: EventName) {
        if let Some(written) = self.written.get_mut(&ticket) {
            if written.event.as_ref().is_some_and(|e| *e != event) {
                written.count = 1;
            }
            written.event = Some(event);
        }
    }

    fn is_crowded(&mut self, similar: Ticket, occurrence: &Occurrence) -> bool {
        bound(&mut self.groups, |g| g.at);
        let group = self.groups.entry(similar).or_insert(Group {
            messages: Vec::new(),
            at: occurrence.at,
        });
        if occurrence.at.duration_since(group.at) > GROUP_WINDOW {
            group.messages.clear();
        }
        group.at = occurrence.at;
        if group.messages.contains(&occurrence.message) {
            return false;
        }
        if group.messages.len() + 1 >= GROUP_MAX {
            return true;
        }
        group.messages.push(occurrence.message.clone());
        false
    }

    fn has_token(&mut self, object: Object, now: Timestamp) -> bool {
        bound(&mut self.buckets, |b| b.at);
        let bucket = self.buckets.entry(object).or_insert(Bucket {
            tokens: BURST,
            at: now,
        });
        let elapsed = now.duration_since(bucket.at).as_secs_f64().max(0.0);
        bucket.tokens = (bucket.tokens + elapsed * REFILL_PER_SECOND).min(BURST);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }
}

fn object_of(occurrence: &Occurrence) -> Object {
    let about = &occurrence.about;
    Object {
        kind: about.kind.clone().unwrap_or_default(),
        namespace: about.namespace.clone().unwrap_or_default(),
        name: about.name.clone().unwrap_or_default(),
        uid: about.uid.clone().unwrap_or_default(),
        field: about.field_path.clone().unwrap_or_default(),
    }
}

/// Forgets the older half of a full map.
fn bound<K: Eq + Hash, V>(map: &mut HashMap<K, V>, at: impl Fn(&V) -> Timestamp) {
    if map.len() < REMEMBERED {
        return;
    }
    let mut times: Vec<_> = map.values().map(&at).collect();
    let middle = times.len() / 2;
    let (_, median, _) = times.select_nth_unstable(middle);
    let median = *median;
    map.retain(|_, v| at(v) > median);
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ObjectReference;

    use super::*;
    use crate::EventType;

    fn occurrence(name: &str, message: &str, second: i64) -> Occurrence {
        Occurrence {
            about: ObjectReference {
                name: Some(name.into()),
                ..Default::default()
            },
            kind: EventType::Normal,
            reason: "Pulled".into(),
            message: message.into(),
            at: Timestamp::from_second(second).unwrap(),
        }
    }

    #[test]
    fn the_same_again_raises_a_count() {
        let mut c = Correlator::default();
        let (first, ticket) = c.observe(occurrence("a", "x", 0));
        assert!(matches!(first, Decision::Create(_, 1)));
        let event = ("default".to_owned(), "a.0".to_owned());
        c.written(ticket, event.clone());
        let (second, _) = c.observe(occurrence("a", "x", 5));
        assert!(matches!(second, Decision::Count(e, _, 2) if e == event));
        assert!(matches!(
            c.observe(occurrence("a", "y", 5)).0,
            Decision::Create(_, 1)
        ));
        assert!(matches!(
            c.observe(occurrence("b", "x", 5)).0,
            Decision::Create(_, 1)
        ));
    }

    #[test]
    fn one_object_is_limited_to_a_burst_and_a_slow_refill() {
        let mut c = Correlator::default();
        let allowed = |c: &mut Correlator, n, at| {
            (0..n)
                .filter(|_| c.observe(occurrence("a", "x", at)).0 != Decision::Drop)
                .count()
        };
        assert_eq!(allowed(&mut c, 100, 0), 25);
        assert_eq!(allowed(&mut c, 100, 600), 2);
        assert!(c.observe(occurrence("b", "x", 600)).0 != Decision::Drop);
    }

    #[test]
    fn many_similar_ones_are_combined() {
        let mut c = Correlator::default();
        for i in 0..9 {
            let (decision, ticket) = c.observe(occurrence("a", &format!("m{i}"), 0));
            assert!(matches!(decision, Decision::Create(_, 1)));
            c.written(ticket, ("default".into(), format!("e{i}")));
        }
        let (tenth, ticket) = c.observe(occurrence("a", "m9", 0));
        let Decision::Create(combined, 1) = tenth else {
            panic!("{tenth:?}")
        };
        assert_eq!(combined.message, "(combined from similar events): m9");
        c.written(ticket, ("default".into(), "sum".into()));
        assert!(
            matches!(c.observe(occurrence("a", "m10", 1)).0, Decision::Count(e, _, 2) if e.1 == "sum")
        );
        let (later, _) = c.observe(occurrence("a", "m11", 2000));
        assert!(matches!(later, Decision::Create(o, 1) if o.message == "m11"));
    }

    #[test]
    fn memory_is_bounded() {
        let mut c = Correlator::default();
        for i in 0..3 * REMEMBERED as i64 {
            c.observe(occurrence(&format!("o{i}"), "x", i));
        }
        assert!(c.buckets.len() <= REMEMBERED && c.written.len() <= REMEMBERED);
    }
}
