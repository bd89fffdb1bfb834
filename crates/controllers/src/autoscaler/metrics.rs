//! Asking the metrics APIs. Amounts are in thousandths.

use client::Client;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;

use super::{
    judge::words,
    replicas::{Sample, Samples, milli},
};

/// Where an API is served: the usual version first. All of its versions say what is read here alike.
type Versions = &'static [&'static str];
const RESOURCE: Versions = &["/apis/metrics.k8s.io/v1beta1", "/apis/metrics.k8s.io/v1"];
const CUSTOM: Versions = &[
    "/apis/custom.metrics.k8s.io/v1beta2",
    "/apis/custom.metrics.k8s.io/v1beta1",
];
const EXTERNAL: Versions = &["/apis/external.metrics.k8s.io/v1beta1"];
/// Time over which metrics that do not say are measured.
const WINDOW: SignedDuration = SignedDuration::from_mins(1);

/// The metrics APIs, as far as they are served.
pub struct Metrics {
    /// Reads.
    pub client: Client,
}

impl Metrics {
    /// What pods use of a resource, in all containers or one.
    pub async fn resource(
        &self,
        namespace: &str,
        selector: &str,
        resource: &str,
        container: Option<&str>,
    ) -> Result<Samples, String> {
        let pods = format!("/namespaces/{namespace}/pods");
        let query = [("labelSelector", selector)];
        let answer = self.ask(RESOURCE, &pods, &query).await;
        let failed = |e| format!("unable to fetch metrics from resource metrics API: {e}");
        let samples = usages(&answer.map_err(failed)?, resource, container);
        if samples.is_empty() {
            return Err("no metrics returned from resource metrics API".into());
        }
        Ok(samples)
    }

    /// A metric of each pod.
    pub async fn pods(
        &self,
        namespace: &str,
        selector: &str,
        metric: &str,
        chosen: Option<&LabelSelector>,
    ) -> Result<Samples, String> {
        let path = format!("/namespaces/{namespace}/pods/*/{metric}");
        let chosen = written(chosen);
        let query = [
            ("labelSelector", selector),
            ("metricLabelSelector", &chosen),
        ];
        let answer = self.ask(CUSTOM, &path, &query).await;
        let failed = |e| format!("unable to fetch metrics from custom metrics API: {e}");
        let samples = values(&answer.map_err(failed)?);
        if samples.is_empty() {
            return Err("no metrics returned from custom metrics API".into());
        }
        Ok(samples)
    }

    /// A metric of one object, named as in URLs (`services` or `ingresses.networking.k8s.io`).
    pub async fn object(
        &self,
        namespace: &str,
        resource: &str,
        name: &str,
        metric: &str,
        chosen: Option<&LabelSelector>,
    ) -> Result<i64, String> {
        // A namespace itself is asked for by its own path.
        let path = if resource == "namespaces" {
            format!("/namespaces/{name}/metrics/{metric}")
        } else {
            format!("/namespaces/{namespace}/{resource}/{name}/{metric}")
        };
        let chosen = written(chosen);
        let query = [("metricLabelSelector", chosen.as_str())];
        let answer = self.ask(CUSTOM, &path, &query).await;
        let failed = |e| format!("unable to fetch metrics from custom metrics API: {e}");
        let answer = answer.map_err(failed)?;
        let first = answer["items"][0]["value"].as_str().and_then(milli);
        first.ok_or_else(|| "no metrics returned from custom metrics API".into())
    }

    /// The sum of a metric that belongs to no object.
    pub async fn external(
        &self,
        namespace: &str,
        metric: &str,
        chosen: Option<&LabelSelector>,
    ) -> Result<i64, String> {
        let path = format!("/namespaces/{namespace}/{metric}");
        let chosen = written(chosen);
        let query = [("labelSelector", chosen.as_str())];
        let answer = self.ask(EXTERNAL, &path, &query).await;
        let failed = |e| format!("unable to fetch metrics from external metrics API: {e}");
        let answer = answer.map_err(failed)?;
        let items = answer["items"].as_array().map(Vec::as_slice);
        let all = items.unwrap_or_default().iter();
        let amounts: Vec<i64> = all
            .filter_map(|i| i["value"].as_str().and_then(milli))
            .collect();
        if amounts.is_empty() {
            return Err("no metrics returned from external metrics API".into());
        }
        Ok(amounts.into_iter().fold(0, i64::saturating_add))
    }

    /// Asks the first version of an API that knows of this.
    async fn ask(
        &self,
        versions: Versions,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<Value, String> {
        let mut first = None;
        for version in versions {
            match self.get(&format!("{version}{path}"), query).await {
                Ok(answer) => return Ok(answer),
                Err(e) => {
                    let elsewhere = client::is_not_found(&e);
                    first.get_or_insert(e);
                    if !elsewhere {
                        break;
                    }
                }
            }
        }
        Err(first.map_or_else(String::new, words))
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Value, kube::Error> {
        let mut uri = path.to_owned();
        let asked = query.iter().filter(|(_, value)| !value.is_empty());
        for (place, (key, value)) in asked.enumerate() {
            uri.push(if place == 0 { '?' } else { '&' });
            uri.push_str(key);
            uri.push('=');
            uri.push_str(&escape(value));
        }
        let request = http::Request::get(uri)
            .body(Vec::new())
            .map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// A selector as it stands in URLs.
fn written(selector: Option<&LabelSelector>) -> String {
    let value = selector.and_then(|s| serde_json::to_value(s).ok());
    let parsed = value.and_then(|v| api::selector::LabelSelector::from_value(&v).ok());
    parsed.map(|s| s.to_string()).unwrap_or_default()
}

fn at(item: &Value) -> Timestamp {
    let time = item["timestamp"].as_str().and_then(|t| t.parse().ok());
    time.unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Pods that do not tell of the resource in each container are left out.
fn usages(answer: &Value, resource: &str, container: Option<&str>) -> Samples {
    let items = answer["items"].as_array().map(Vec::as_slice);
    let sample = |item: &Value| {
        let name = item["metadata"]["name"].as_str()?;
        let containers = item["containers"].as_array()?;
        let mut sum: Option<i64> = None;
        for one in containers {
            if container.is_some_and(|wanted| one["name"].as_str() != Some(wanted)) {
                continue;
            }
            let amount = milli(one["usage"][resource].as_str()?)?;
            sum = Some(sum.unwrap_or(0).saturating_add(amount));
        }
        let window = item["window"].as_str().and_then(|w| w.parse().ok());
        let sample = Sample {
            value: sum?,
            at: at(item),
            window: window.unwrap_or(WINDOW),
        };
        Some((name.to_owned(), sample))
    };
    items
        .unwrap_or_default()
        .iter()
        .filter_map(sample)
        .collect()
}

fn values(answer: &Value) -> Samples {
    let items = answer["items"].as_array().map(Vec::as_slice);
    let sample = |item: &Value| {
        let name = item["describedObject"]["name"].as_str()?;
        let window = item["windowSeconds"].as_i64();
        let sample = Sample {
            value: milli(item["value"].as_str()?)?,
            at: at(item),
            window: window.map_or(WINDOW, SignedDuration::from_secs),
        };
        Some((name.to_owned(), sample))
    };
    items
        .unwrap_or_default()
        .iter()
        .filter_map(sample)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_are_read() {
        let answer = json!({"items": [
            {"metadata": {"name": "a"}, "timestamp": "1970-01-01T00:00:09Z", "window": "30s", "containers": [
                {"name": "x", "usage": {"cpu": "250m", "memory": "1Ki"}},
                {"name": "y", "usage": {"cpu": "1"}}]},
            {"metadata": {"name": "b"}, "containers": [{"name": "x", "usage": {}}]},
        ]});
        let all = usages(&answer, "cpu", None);
        assert_eq!(all.len(), 1);
        assert_eq!((all["a"].value, all["a"].window.as_secs()), (1250, 30));
        assert_eq!(all["a"].at.as_second(), 9);
        assert_eq!(usages(&answer, "cpu", Some("x"))["a"].value, 250);
        assert!(usages(&answer, "memory", None).is_empty());
        assert_eq!(usages(&answer, "memory", Some("x"))["a"].value, 1_024_000);
        let custom = json!({"items": [{"describedObject": {"name": "p"}, "value": "1500m"}]});
        assert_eq!(values(&custom)["p"].value, 1500);
    }

    /// Adapters of users serve what they serve.
    #[tokio::test]
    async fn whatever_version_is_served_is_asked() {
        let service = tower::service_fn(|request: http::Request<kube::client::Body>| async move {
            let missing = json!({"kind": "Status", "status": "Failure", "code": 404,
                "reason": "NotFound", "message": format!("no {}", request.uri().path())});
            let (code, body) = match request.uri().path() {
                "/apis/custom.metrics.k8s.io/v1beta1/namespaces/n/pods/*/m" => (
                    200,
                    json!({"items": [{"describedObject": {"name": "p"}, "value": "7"}]}),
                ),
                _ => (404, missing),
            };
            let mut response = http::Response::new(body.to_string());
            *response.status_mut() = code.try_into().unwrap();
            Ok::<_, std::convert::Infallible>(response)
        });
        let metrics = Metrics {
            client: client::in_process(service),
        };
        let found = metrics.pods("n", "a=b", "m", None).await.unwrap();
        assert_eq!(found["p"].value, 7000);
        let why = metrics.pods("n", "a=b", "other", None).await.unwrap_err();
        assert_eq!(
            why,
            "unable to fetch metrics from custom metrics API: no /apis/custom.metrics.k8s.io/v1beta2/namespaces/n/pods/*/other"
        );
    }

    #[test]
    fn selectors_in_urls() {
        let selector: LabelSelector = serde_json::from_value(json!({
            "matchLabels": {"a": "b"}, "matchExpressions": [
                {"key": "c", "operator": "In", "values": ["d", "e"]},
                {"key": "f", "operator": "DoesNotExist"}]}))
        .unwrap();
        let text = written(Some(&selector));
        assert_eq!(text, "a=b,c in (d,e),!f");
        assert_eq!(escape(&text), "a%3Db%2Cc%20in%20%28d%2Ce%29%2C%21f");
    }
}
