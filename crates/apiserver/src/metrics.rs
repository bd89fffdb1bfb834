//! Metrics of the server, under upstream's names.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::http::request_info::RequestInfo;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DurationLabels {
    verb: String,
    group: String,
    resource: String,
    scope: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LongLabels {
    verb: String,
    group: String,
    resource: String,
}

/// Upper bounds of the request durations in seconds.
const SECONDS: [f64; 12] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 2.0, 5.0, 15.0, 60.0,
];

/// The server's metrics.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<DurationLabels, Histogram, fn() -> Histogram>,
    long: Family<LongLabels, Gauge>,
    inflight: Arc<Gauge<i64, AtomicI64>>,
}

fn histogram() -> Histogram {
    Histogram::new(SECONDS)
}

fn scope(info: &RequestInfo) -> &'static str {
    match (
        info.is_resource,
        info.name.is_empty(),
        info.namespace.is_empty(),
    ) {
        (false, ..) => "",
        (true, false, _) => "resource",
        (true, true, false) => "namespace",
        (true, true, true) => "cluster",
    }
}

impl Metrics {
    /// Metrics at zero.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        registry.register(
            "apiserver_request",
            "Requests by verb, resource and response code",
            requests.clone(),
        );
        let durations = Family::new_with_constructor(histogram as fn() -> Histogram);
        registry.register(
            "apiserver_request_duration_seconds",
            "Time until the response starts",
            durations.clone(),
        );
        let long = Family::default();
        registry.register(
            "apiserver_longrunning_requests",
            "Streams open now",
            long.clone(),
        );
        let inflight = Gauge::default();
        registry.register(
            "apiserver_current_inflight_requests",
            "Requests under way",
            inflight.clone(),
        );
        Self {
            registry,
            requests,
            durations,
            long,
            inflight: Arc::new(inflight),
        }
    }

    /// A request begins; the answer belongs to [`Self::end`].
    pub fn begin(&self, info: &RequestInfo) -> bool {
        let long = info.long_running();
        if !long {
            self.inflight.inc();
        }
        long
    }

    /// The response of a request starts.
    pub fn end(&self, long: bool, info: &RequestInfo, code: u16, took: Duration) {
        if !long {
            self.inflight.dec();
        }
        // Unknown paths must not make new series without bound.
        let known = info.is_resource && code != 404;
        let text = |s: &String| if known { s.clone() } else { String::new() };
        let verb = info.verb.to_ascii_uppercase();
        self.requests
            .get_or_create(&RequestLabels {
                verb: verb.clone(),
                group: text(&info.group),
                version: text(&info.version),
                resource: text(&info.resource),
                subresource: text(&info.subresource),
                scope: scope(info),
                code,
            })
            .inc();
        if long {
            return;
        }
        let labels = DurationLabels {
            verb,
            group: text(&info.group),
            resource: text(&info.resource),
            scope: scope(info),
        };
        self.durations
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
    }

    /// Marks a stream as open for as long as the guard lives.
    pub fn stream(&self, info: &RequestInfo) -> StreamGuard {
        let labels = LongLabels {
            verb: info.verb.to_ascii_uppercase(),
            group: info.group.clone(),
            resource: info.resource.clone(),
        };
        let gauge = self.long.get_or_create(&labels).clone();
        gauge.inc();
        StreamGuard(gauge)
    }

    /// The text format, with some facts that are no counters.
    pub fn text(&self, revision: u64) -> String {
        let mut out = String::new();
        if encode(&mut out, &self.registry).is_err() {
            out.clear();
        }
        let end = out.find("# EOF").unwrap_or(out.len());
        out.truncate(end);
        let _ = writeln!(
            out,
            "# TYPE apiserver_storage_revision gauge\napiserver_storage_revision {revision}\n# EOF"
        );
        out
    }
}

/// Counts one open stream.
pub struct StreamGuard(Gauge);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
