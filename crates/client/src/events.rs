//! Recording of core/v1 Events.
//!
//! Recording never waits and never fails: an event goes into a bounded channel, and one task per
//! recorder writes it. What would flood the server is counted instead, as Kubernetes does it:
//! the same event again raises a count; many similar ones are combined; a source that goes
//! on about one object is cut off for a while; and thousands of objects at once do not cost
//! thousands of writes at once.

mod correlate;

use std::{fmt, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};

use crate::{Client, Clock, error, write};
use correlate::{Correlator, Decision};

/// Events waiting to be written; more are dropped.
const WAITING_MAX: usize = 1000;
/// Events that one recorder writes at once, and those it writes a second after that.
const BURST: u32 = 300;
const EACH_SECOND: u32 = 100;
/// Tries to write one event.
const TRIES: u32 = 3;
/// Wait between tries.
const TRY_WAIT: Duration = Duration::from_secs(1);

/// Whether an event tells of something as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// As it should be.
    Normal,
    /// Somebody may have to look at it.
    Warning,
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        })
    }
}

/// Something that happened to an object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Occurrence {
    pub(crate) about: ObjectReference,
    pub(crate) kind: EventType,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) at: Timestamp,
}

/// Records events of one component. Cheap to clone; its task ends with the last clone.
#[derive(Clone, Debug)]
pub struct Recorder {
    send: mpsc::Sender<Occurrence>,
    clock: Clock,
}

impl Recorder {
    /// A recorder for `component` (such as `kubelet`) on `host` (the node's name, or empty).
    /// Must be called inside a tokio runtime.
    pub fn new(client: Client, component: &str, host: &str, clock: Clock) -> Self {
        let (send, receive) = mpsc::channel(WAITING_MAX);
        let source = EventSource {
            component: Some(component.to_owned()),
            host: (!host.is_empty()).then(|| host.to_owned()),
        };
        tokio::spawn(write_all(client, source, receive));
        Self { send, clock }
    }

    /// Records that `reason` (one word in CamelCase) happened to `about`.
    pub fn event(
        &self,
        about: &ObjectReference,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let occurrence = Occurrence {
            about: about.clone(),
            kind,
            reason: reason.to_owned(),
            message: message.into(),
            at: self.clock.now(),
        };
        if self.send.try_send(occurrence).is_err() {
            tracing::debug!(reason, "event dropped: too many are waiting");
        }
    }

    /// Records something about an object as it should be.
    pub fn normal<K>(&self, about: &K, reason: &str, message: impl Into<String>)
    where
        K: kube::Resource<DynamicType = ()>,
    {
        self.event(&reference(about), EventType::Normal, reason, message);
    }

    /// Records something about an object that somebody may have to look at.
    pub fn warning<K>(&self, about: &K, reason: &str, message: impl Into<String>)
    where
        K: kube::Resource<DynamicType = ()>,
    {
        self.event(&reference(about), EventType::Warning, reason, message);
    }
}

/// What an event calls `object`.
pub fn reference<K: kube::Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    ObjectReference {
        resource_version: object.meta().resource_version.clone(),
        ..object.object_ref(&())
    }
}

async fn write_all(client: Client, source: EventSource, mut waiting: mpsc::Receiver<Occurrence>) {
    let mut correlator = Correlator::default();
    let mut pace = Pace::new(Instant::now());
    while let Some(occurrence) = waiting.recv().await {
        let about = occurrence.about.name.clone().unwrap_or_default();
        let (decision, ticket) = correlator.observe(occurrence);
        if decision == Decision::Drop {
            continue;
        }
        tokio::time::sleep_until(pace.next(Instant::now())).await;
        let written = match decision {
            Decision::Drop => continue,
            Decision::Create(occurrence, count) => {
                create(&client, &source, &occurrence, count).await
            }
            Decision::Count(event, occurrence, count) => {
                match count_up(&client, &event, &occurrence, count).await {
                    Ok(true) => Ok(event),
                    Ok(false) => create(&client, &source, &occurrence, 1).await,
                    Err(e) => Err(e),
                }
            }
        };
        match written {
            Ok(event) => correlator.written(ticket, event),
            // An event about what is gone with its namespace is of no use to anybody.
            Err(e) if error::is_not_found(&e) || error::is_forbidden_by_termination(&e) => {}
            Err(error) => tracing::warn!(%error, about, "event lost"),
        }
    }
}

/// When the next event may be written.
struct Pace {
    /// When the burst is whole again.
    full: Instant,
}

impl Pace {
    const STEP: Duration = Duration::from_micros(1_000_000 / EACH_SECOND as u64);

    fn new(now: Instant) -> Self {
        Self { full: now }
    }

    /// Takes a turn; answers when it comes.
    fn next(&mut self, now: Instant) -> Instant {
        self.full = self.full.max(now) + Self::STEP;
        self.full
            .checked_sub(Self::STEP * BURST)
            .map_or(now, |t| t.max(now))
    }
}

/// Namespace and name of a written event.
type EventName = (String, String);

async fn create(
    client: &Client,
    source: &EventSource,
    occurrence: &Occurrence,
    count: i32,
) -> kube::Result<EventName> {
    let event = object(source, occurrence, count);
    let namespace = event.metadata.namespace.clone().unwrap_or_default();
    let name = event.metadata.name.clone().unwrap_or_default();
    let api = write::namespaced::<Event>(client, &namespace);
    for attempt in 1.. {
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => break,
            Err(e) if error::is_exists(&e) => break,
            Err(kube::Error::Api(status)) => return Err(kube::Error::Api(status)),
            Err(e) if attempt == TRIES => return Err(e),
            Err(_) => tokio::time::sleep(TRY_WAIT).await,
        }
    }
    Ok((namespace, name))
}

/// Answers whether the event was still there to be counted up.
async fn count_up(
    client: &Client,
    (namespace, name): &EventName,
    occurrence: &Occurrence,
    count: i32,
) -> kube::Result<bool> {
    let patch = json!({
        "count": count,
        "lastTimestamp": Time(occurrence.at),
        "message": occurrence.message,
    });
    let api = write::namespaced::<Event>(client, namespace);
    let patched = api
        .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await;
    Ok(write::tolerate_missing(patched)?.is_some())
}

fn object(source: &EventSource, occurrence: &Occurrence, count: i32) -> Event {
    let about = &occurrence.about;
    let name = about.name.as_deref().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", occurrence.at.as_nanosecond())),
            namespace: Some(
                about
                    .namespace
                    .clone()
                    .filter(|n| !n.is_empty())
                    .unwrap_or("default".into()),
            ),
            ..ObjectMeta::default()
        },
        involved_object: about.clone(),
        type_: Some(occurrence.kind.to_string()),
        reason: Some(occurrence.reason.clone()),
        message: Some(occurrence.message.clone()),
        count: Some(count),
        first_timestamp: Some(Time(occurrence.at)),
        last_timestamp: Some(Time(occurrence.at)),
        source: Some(source.clone()),
        reporting_component: source.component.clone(),
        reporting_instance: Some(source.host.clone().unwrap_or_default()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_at_once_and_the_rest_in_turn() {
        let start = Instant::now() + Duration::from_secs(60);
        let mut pace = Pace::new(start);
        assert!((0..BURST).all(|_| pace.next(start) == start));
        assert_eq!(pace.next(start), start + Pace::STEP);
        assert_eq!(pace.next(start), start + Pace::STEP * 2);
        let later = start + Pace::STEP * 2 * BURST;
        assert!((0..BURST).all(|_| pace.next(later) == later));
        assert!(pace.next(later) > later);
    }

    #[test]
    fn events_carry_upstreams_fields() {
        let source = EventSource {
            component: Some("kubelet".into()),
            host: Some("m".into()),
        };
        let occurrence = Occurrence {
            about: ObjectReference {
                name: Some("n".into()),
                ..Default::default()
            },
            kind: EventType::Warning,
            reason: "Failed".into(),
            message: "no".into(),
            at: Timestamp::from_nanosecond(0x1234_5678_9abc).unwrap(),
        };
        let event = object(&source, &occurrence, 1);
        assert_eq!(event.metadata.name.as_deref(), Some("n.123456789abc"));
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        assert_eq!(event.reporting_component.as_deref(), Some("kubelet"));
        assert_eq!(event.reporting_instance.as_deref(), Some("m"));
    }
}
