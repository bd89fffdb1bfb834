//! From the metrics of an autoscaler to a number of replicas.

use api::Quantity;
use client::Error;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        autoscaling::v2::{
            ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscaler,
            MetricSpec, MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricStatus,
            PodsMetricStatus, ResourceMetricStatus,
        },
        core::v1::Pod,
    },
    apimachinery::pkg::api::resource::Quantity as Amount,
};

use super::{
    metrics::Metrics,
    replicas::{self, Proposal, Samples, Target, Tolerance, milli},
    scale::{self, Scale},
};
use crate::{pods, selectors};

/// How far off the mark a metric may be where the autoscaler does not say.
const TOLERANCE: f64 = 0.1;

/// What is to be scaled.
pub struct Subject<'a> {
    /// The autoscaler.
    pub autoscaler: &'a HorizontalPodAutoscaler,
    /// The present scale.
    pub scale: &'a Scale,
    /// The pods.
    pub pods: &'a [Pod],
    /// The present moment.
    pub now: Timestamp,
}

/// What one metric says.
pub struct Judged {
    /// Replicas it asks for.
    pub replicas: i32,
    /// Which one it is, for people.
    pub name: String,
    /// What it is now.
    pub status: MetricStatus,
}

/// A metric that says nothing.
pub struct Unknown {
    /// For the condition.
    pub reason: &'static str,
    /// For the condition and the event.
    pub message: String,
    /// For whoever asks about all metrics.
    pub summary: String,
}

impl Subject<'_> {
    fn namespace(&self) -> &str {
        self.autoscaler
            .metadata
            .namespace
            .as_deref()
            .unwrap_or_default()
    }

    fn tolerance(&self) -> Tolerance {
        let behavior = self.autoscaler.spec.behavior.as_ref();
        let of = |rules: Option<&k8s_openapi::api::autoscaling::v2::HPAScalingRules>| {
            let tolerance = rules.and_then(|r| r.tolerance.as_ref());
            let parsed = tolerance.and_then(|t| t.0.parse::<Quantity>().ok());
            parsed.map_or(TOLERANCE, |q| q.as_f64())
        };
        Tolerance {
            up: of(behavior.and_then(|b| b.scale_up.as_ref())),
            down: of(behavior.and_then(|b| b.scale_down.as_ref())),
        }
    }

    /// How many pods are ready; `None`: there are no pods at all.
    fn ready(&self) -> Option<i32> {
        let ready = |p: &&Pod| pods::phase(p) == "Running" && pods::is_ready(p);
        let ready = i32::try_from(self.pods.iter().filter(ready).count()).unwrap_or(i32::MAX);
        (!self.pods.is_empty()).then_some(ready)
    }

    /// Asks for one metric.
    pub async fn judge(&self, metrics: &Metrics, spec: &MetricSpec) -> Result<Judged, Unknown> {
        match spec.type_.as_str() {
            "Resource" => self.resource(metrics, spec).await,
            "ContainerResource" => self.container(metrics, spec).await,
            "Pods" => self.per_pod(metrics, spec).await,
            "Object" => self.object(metrics, spec).await,
            "External" => self.external(metrics, spec).await,
            other => {
                let why = format!("unknown metric source type {other:?}");
                Err(unknown("InvalidMetricSourceType", &why, why.clone()))
            }
        }
    }

    async fn resource(&self, metrics: &Metrics, spec: &MetricSpec) -> Result<Judged, Unknown> {
        let Some(source) = &spec.resource else {
            return Err(empty("FailedGetResourceMetric"));
        };
        let name = source.name.as_str();
        let found = self.usage(metrics, name, None, &source.target).await;
        let (found, current, what) = found.map_err(|why| {
            let summary = format!("failed to get {name} resource metric value: {why}");
            unknown("FailedGetResourceMetric", &why, summary)
        })?;
        let status = MetricStatus {
            type_: spec.type_.clone(),
            resource: Some(ResourceMetricStatus {
                name: source.name.clone(),
                current,
            }),
            ..MetricStatus::default()
        };
        Ok(judged(found, format!("{name} resource{what}"), status))
    }

    async fn container(&self, metrics: &Metrics, spec: &MetricSpec) -> Result<Judged, Unknown> {
        let Some(source) = &spec.container_resource else {
            return Err(empty("FailedGetContainerResourceMetric"));
        };
        let (name, container) = (source.name.as_str(), source.container.as_str());
        let found = self
            .usage(metrics, name, Some(container), &source.target)
            .await;
        let (found, current, what) = found.map_err(|why| {
            let summary = format!("failed to get {container} container metric value: {why}");
            unknown("FailedGetContainerResourceMetric", &why, summary)
        })?;
        let status = MetricStatus {
            type_: spec.type_.clone(),
            container_resource: Some(ContainerResourceMetricStatus {
                name: source.name.clone(),
                container: source.container.clone(),
                current,
            }),
            ..MetricStatus::default()
        };
        let whose = if what.is_empty() { "" } else { " container" };
        Ok(judged(
            found,
            format!("{name}{whose} resource{what}"),
            status,
        ))
    }

    /// What pods use of a resource, against their requests or a fixed amount.
    async fn usage(
        &self,
        metrics: &Metrics,
        resource: &str,
        container: Option<&str>,
        target: &MetricTarget,
    ) -> Result<(Proposal, MetricValueStatus, &'static str), String> {
        let relative = target.average_utilization.is_some() && target.average_value.is_none();
        let kind = if relative { "utilization" } else { "usage" };
        let failed = |why: String| format!("failed to get {resource} {kind}: {why}");
        let selector = &self.scale.selector;
        let samples = metrics
            .resource(self.namespace(), selector, resource, container)
            .await
            .map_err(|why| format!("unable to get metrics for resource {resource}: {why}"))
            .map_err(failed)?;
        let cpu = resource == "cpu";
        if let Some(average) = amount(target.average_value.as_ref()) {
            let found = self.of_pods(&samples, cpu, &Target::Average(average));
            let found = found.map_err(failed)?;
            return Ok((found, average_of(found.value), ""));
        }
        let Some(percent) = target.average_utilization else {
            return Err("invalid resource metric source: neither an average utilization target nor an average value (usage) target was set".into());
        };
        let requests = replicas::requests(self.pods, resource, container).map_err(failed)?;
        let target = Target::Utilization {
            percent,
            requests: &requests,
        };
        let found = self.of_pods(&samples, cpu, &target).map_err(failed)?;
        let current = MetricValueStatus {
            average_utilization: found.utilization,
            ..average_of(found.value)
        };
        Ok((found, current, " utilization (percentage of request)"))
    }

    fn of_pods(&self, samples: &Samples, cpu: bool, target: &Target) -> Result<Proposal, String> {
        replicas::of_pods(
            self.scale.wanted,
            samples,
            self.pods,
            cpu,
            target,
            self.tolerance(),
            self.now,
        )
    }

    async fn per_pod(&self, metrics: &Metrics, spec: &MetricSpec) -> Result<Judged, Unknown> {
        const REASON: &str = "FailedGetPodsMetric";
        let Some(source) = &spec.pods else {
            return Err(empty(REASON));
        };
        let name = source.metric.name.as_str();
        let chosen = source.metric.selector.as_ref();
        let failed = |why: String| {
            let summary = format!("failed to get pods metric value: {why}");
            unknown(REASON, &why, summary)
        };
        let average = amount(source.target.average_value.as_ref());
        let average = average.ok_or_else(|| empty(REASON))?;
        let samples = metrics
            .pods(self.namespace(), &self.scale.selector, name, chosen)
            .await
            .map_err(|why| failed(format!("unable to get metric {name}: {why}")))?;
        let found = self
            .of_pods(&samples, false, &Target::Average(average))
            .map_err(failed)?;
        let status = MetricStatus {
            type_: spec.type_.clone(),
            pods: Some(PodsMetricStatus {
                metric: source.metric.clone(),
                current: average_of(found.value),
            }),
            ..MetricStatus::default()
        };
        Ok(judged(found, format!("pods metric {name}"), status))
    }

    async fn object(&self, metrics: &Metrics, spec: &MetricSpec) -> Result<Judged, Unknown> {
        const REASON: &str = "FailedGetObjectMetric";
        let Some(source) = &spec.object else {
            return Err(empty(REASON));
        };
        let (metric, about) = (&source.metric, &source.described_object);
        let namespace = self.namespace();
        let failed = |why: String| {
            // Upstream has the parts in this order.
            let what = format!("{} on {namespace} {}/{why}", about.kind, about.name);
            let message = format!("unable to get metric {}: {what}", metric.name);
            let summary = format!("failed to get object metric value: {message}");
            unknown(REASON, &message, summary)
        };
        let version = about.api_version.as_deref().unwrap_or("v1");
        let resource = scale::resource_of(&metrics.client, version, &about.kind)
            .await
            .map_err(failed)?;
        let value = metrics
            .object(
                namespace,
                &resource.qualified(),
                &about.name,
                &metric.name,
                metric.selector.as_ref(),
            )
            .await
            .map_err(failed)?;
        let (found, current) = self.of_value(value, &source.target, (REASON, "object"))?;
        let status = MetricStatus {
            type_: spec.type_.clone(),
            object: Some(ObjectMetricStatus {
                described_object: about.clone(),
                metric: metric.clone(),
                current,
            }),
            ..MetricStatus::default()
        };
        let name = format!("{} metric {}", about.kind, metric.name);
        Ok(judged(found, name, status))
    }

    async fn external(&self, metrics: &Metrics, spec: &MetricSpec) -> Result<Judged, Unknown> {
        const REASON: &str = "FailedGetExternalMetric";
        let Some(source) = &spec.external else {
            return Err(empty(REASON));
        };
        let (metric, namespace) = (&source.metric, self.namespace());
        let chosen = selectors::spelled(metric.selector.as_ref());
        let name = &metric.name;
        let value = metrics
            .external(namespace, name, metric.selector.as_ref())
            .await
            .map_err(|why| {
                let message =
                    format!("unable to get external metric {namespace}/{name}/{chosen}: {why}");
                let summary = format!("failed to get {name} external metric value: {message}");
                unknown(REASON, &message, summary)
            })?;
        let what = format!("{name} external");
        let (found, current) = self.of_value(value, &source.target, (REASON, &what))?;
        let status = MetricStatus {
            type_: spec.type_.clone(),
            external: Some(ExternalMetricStatus {
                metric: metric.clone(),
                current,
            }),
            ..MetricStatus::default()
        };
        let name = format!("external metric {name}({chosen})");
        Ok(judged(found, name, status))
    }

    /// A value against a target for all replicas together or for each.
    fn of_value(
        &self,
        value: i64,
        target: &MetricTarget,
        (reason, what): (&'static str, &str),
    ) -> Result<(Proposal, MetricValueStatus), Unknown> {
        let tolerance = self.tolerance();
        if let Some(wanted) = amount(target.average_value.as_ref()) {
            let found = replicas::of_shared(self.scale.present, value, wanted, tolerance);
            return Ok((found, average_of(found.value)));
        }
        let wanted = amount(target.value.as_ref()).ok_or_else(|| empty(reason))?;
        let found = replicas::of_value(self.scale.wanted, self.ready(), value, wanted, tolerance);
        let found = found.map_err(|why| {
            let summary = format!("failed to get {what} metric value: {why}");
            unknown(reason, &why, summary)
        })?;
        let current = MetricValueStatus {
            value: Some(Amount(Quantity::from_milli(value).to_string())),
            ..MetricValueStatus::default()
        };
        Ok((found, current))
    }
}

fn judged(found: Proposal, name: String, status: MetricStatus) -> Judged {
    Judged {
        replicas: found.replicas,
        name,
        status,
    }
}

fn unknown(reason: &'static str, why: &str, summary: String) -> Unknown {
    Unknown {
        reason,
        message: format!("the HPA was unable to compute the replica count: {why}"),
        summary,
    }
}

fn empty(reason: &'static str) -> Unknown {
    let why = "invalid metric source: neither a value target nor an average value target was set";
    unknown(reason, why, why.into())
}

fn amount(quantity: Option<&Amount>) -> Option<i64> {
    milli(&quantity?.0)
}

fn average_of(value: i64) -> MetricValueStatus {
    MetricValueStatus {
        average_value: Some(Amount(Quantity::from_milli(value).to_string())),
        ..MetricValueStatus::default()
    }
}

/// The server's words for a failure.
pub fn words(error: kube::Error) -> String {
    Error::from(error).words()
}
