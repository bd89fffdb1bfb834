//! Schedulers of others that are asked over HTTP: which nodes will do, which are best, whom to
//! evict, and to bind.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use base64::Engine as _;
use client::Key;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    framework::{Candidate, MAX_SCORE, Status},
    pod::{Footprint, PodInfo},
};

/// The highest score an extender gives.
const MAX_EXTENDER_SCORE: i64 = 10;
/// Wait for an answer, unless configured.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer, in bytes.
const ANSWER_MAX: usize = 64 << 20;

/// What a configuration file says of an extender.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExtenderConfig {
    /// Where it is; verbs are appended.
    pub url_prefix: String,
    /// Asked which nodes will do.
    pub filter_verb: String,
    /// Asked whom to evict.
    pub preempt_verb: String,
    /// Asked which nodes are best.
    pub prioritize_verb: String,
    /// How much its scores count.
    pub weight: i64,
    /// Asked to bind.
    pub bind_verb: String,
    /// Whether to speak TLS even where the prefix does not say so.
    #[serde(rename = "enableHTTPS")]
    pub enable_https: bool,
    /// How to speak TLS.
    pub tls_config: Option<Tls>,
    /// Wait for an answer, such as `5s`.
    pub http_timeout: Option<String>,
    /// Whether it knows the nodes, so that names are enough.
    pub node_cache_capable: bool,
    /// It is asked only about pods that request one of these; empty: about all.
    pub managed_resources: Vec<ManagedResource>,
    /// Whether pods are scheduled without it when it does not answer.
    pub ignorable: bool,
}

/// A resource that an extender manages.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ManagedResource {
    /// Its name.
    pub name: String,
    /// Whether NodeResourcesFit is to leave it alone.
    #[serde(default)]
    pub ignored_by_scheduler: bool,
}

/// How to speak TLS with an extender.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Tls {
    insecure: bool,
    server_name: String,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    cert_data: Option<String>,
    key_data: Option<String>,
    ca_data: Option<String>,
}

impl Tls {
    fn bytes(file: Option<&PathBuf>, data: Option<&String>) -> Result<Option<Vec<u8>>, String> {
        match (data, file) {
            (Some(data), _) => base64::engine::general_purpose::STANDARD
                .decode(data)
                .map(Some)
                .map_err(|e| e.to_string()),
            (None, Some(path)) => std::fs::read(path)
                .map(Some)
                .map_err(|e| format!("{}: {e}", path.display())),
            (None, None) => Ok(None),
        }
    }

    fn apply(&self, mut to: reqwest::ClientBuilder) -> Result<reqwest::ClientBuilder, String> {
        let words = |e: reqwest::Error| e.to_string();
        if let Some(ca) = Self::bytes(self.ca_file.as_ref(), self.ca_data.as_ref())? {
            let all = reqwest::Certificate::from_pem_bundle(&ca).map_err(words)?;
            to = to.tls_certs_only(all);
        }
        let cert = Self::bytes(self.cert_file.as_ref(), self.cert_data.as_ref())?;
        let key = Self::bytes(self.key_file.as_ref(), self.key_data.as_ref())?;
        if let (Some(mut pem), Some(key)) = (cert, key) {
            pem.push(b'\n');
            pem.extend(key);
            to = to.identity(reqwest::Identity::from_pem(&pem).map_err(words)?);
        }
        Ok(to.tls_danger_accept_invalid_certs(self.insecure))
    }
}

/// A duration as Go writes it: `1m30s`, `500ms`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        total += number
            * match &rest[..end] {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[end..];
    }
    let total = Duration::try_from_secs_f64(total).ok();
    total.filter(|_| !text.is_empty())
}

impl ExtenderConfig {
    /// Whether it makes sense; otherwise a field and what is wrong with it.
    ///
    /// # Errors
    /// The first mistake.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let prefix = self.url_prefix.as_str();
        if !prefix.starts_with("http://") && !prefix.starts_with("https://") {
            let problem = format!("Invalid value: {prefix:?}: must be an http or https address");
            return Err(("urlPrefix", problem));
        }
        if !self.prioritize_verb.is_empty() && self.weight <= 0 {
            let weight = self.weight;
            let problem =
                format!("Invalid value: {weight}: must have a positive weight applied to it");
            return Err(("weight", problem));
        }
        if let Some(text) = &self.http_timeout
            && duration(text).is_none()
        {
            return Err(("httpTimeout", format!("invalid duration {text:?}")));
        }
        if let Some(tls) = &self.tls_config {
            if !tls.server_name.is_empty() {
                let problem = "other names than the address has are not supported";
                return Err(("tlsConfig.serverName", problem.to_owned()));
            }
            let applied = tls.apply(reqwest::Client::builder());
            applied.map(drop).map_err(|e| ("tlsConfig", e))?;
        }
        for resource in &self.managed_resources {
            if !resource.name.contains('/') {
                let problem = format!("{:?} is an invalid extended resource name", resource.name);
                return Err(("managedResources", problem));
            }
        }
        Ok(())
    }
}

/// Why an extender could not help.
#[derive(Debug, thiserror::Error)]
pub enum ExtenderError {
    /// It did not answer, or nonsense.
    #[error("extender {url}: {problem}")]
    Call {
        /// Where it was asked.
        url: String,
        /// What went wrong.
        problem: String,
    },
    /// It says that something is wrong.
    #[error("{0}")]
    Refused(String),
}

/// A scheduler of somebody else's.
pub struct Extender {
    config: ExtenderConfig,
    http: reqwest::Client,
    prefix: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct FilterResult {
    nodes: Option<Value>,
    node_names: Option<Vec<String>>,
    failed_nodes: Option<HashMap<String, String>>,
    failed_and_unresolvable_nodes: Option<HashMap<String, String>>,
    error: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostPriority {
    host: String,
    score: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PreemptionResult {
    #[serde(rename = "NodeNameToMetaVictims")]
    victims: HashMap<String, MetaVictims>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct MetaVictims {
    pods: Vec<MetaPod>,
    #[serde(rename = "NumPDBViolations")]
    violations: usize,
}

#[derive(Deserialize)]
struct MetaPod {
    #[serde(rename = "UID")]
    uid: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct BindResult {
    error: String,
}

/// What an extender says of nodes.
#[derive(Default)]
pub struct Filtered {
    /// These will do.
    pub nodes: Vec<String>,
    /// These will not.
    pub failed: Vec<(String, Status)>,
}

impl Extender {
    /// Gets ready to ask one.
    ///
    /// # Errors
    /// When its TLS configuration cannot be read.
    pub fn new(config: ExtenderConfig) -> Result<Self, String> {
        let timeout = config.http_timeout.as_deref().and_then(duration);
        let mut builder = reqwest::Client::builder()
            .timeout(timeout.unwrap_or(DEFAULT_TIMEOUT))
            .no_proxy();
        if let Some(tls) = &config.tls_config {
            builder = tls.apply(builder)?;
        }
        let mut prefix = config.url_prefix.trim_end_matches('/').to_owned();
        if config.enable_https && prefix.starts_with("http://") {
            prefix.insert(4, 's');
        }
        Ok(Self {
            http: builder.build().map_err(|e| e.to_string())?,
            config,
            prefix,
        })
    }

    /// What it was made from.
    pub fn config(&self) -> &ExtenderConfig {
        &self.config
    }

    /// Whether it has a say about a pod.
    pub fn cares_about(&self, pod: &PodInfo) -> bool {
        let wants = &pod.footprint.requested.scalar;
        let managed = &self.config.managed_resources;
        managed.is_empty() || managed.iter().any(|r| wants.contains_key(&r.name))
    }

    async fn ask<T: DeserializeOwned>(&self, verb: &str, body: &Value) -> Result<T, ExtenderError> {
        let url = format!("{}/{verb}", self.prefix);
        let failed = |problem: String| ExtenderError::Call {
            url: url.clone(),
            problem,
        };
        let sent = self.http.post(&url).json(body).send().await;
        let answer = sent.map_err(|e| failed(e.to_string()))?;
        if !answer.status().is_success() {
            return Err(failed(format!("status {}", answer.status())));
        }
        if answer
            .content_length()
            .is_some_and(|l| l > ANSWER_MAX as u64)
        {
            return Err(failed("the answer is too long".into()));
        }
        let bytes = answer.bytes().await.map_err(|e| failed(e.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|e| failed(e.to_string()))
    }

    fn args(&self, pod: &Value, names: &[String], nodes: &dyn Fn(&[String]) -> Value) -> Value {
        if self.config.node_cache_capable {
            json!({"Pod": pod, "Nodes": null, "NodeNames": names})
        } else {
            json!({"Pod": pod, "Nodes": nodes(names), "NodeNames": null})
        }
    }

    /// Which of the nodes will do; `nodes` gives their objects.
    ///
    /// # Errors
    /// When it does not answer, or says that something is wrong.
    pub async fn filter(
        &self,
        pod: &Value,
        names: Vec<String>,
        nodes: &(dyn Fn(&[String]) -> Value + Sync),
    ) -> Result<Filtered, ExtenderError> {
        if self.config.filter_verb.is_empty() {
            return Ok(Filtered {
                nodes: names,
                failed: Vec::new(),
            });
        }
        let body = self.args(pod, &names, nodes);
        let said: FilterResult = self.ask(&self.config.filter_verb, &body).await?;
        if !said.error.is_empty() {
            return Err(ExtenderError::Refused(said.error));
        }
        let listed = said.nodes.as_ref().and_then(|n| n.get("items"));
        let kept = match (said.node_names, listed.and_then(Value::as_array)) {
            (Some(names), _) => names,
            (None, Some(items)) => items
                .iter()
                .filter_map(|n| Some(n.pointer("/metadata/name")?.as_str()?.to_owned()))
                .collect(),
            (None, None) => Vec::new(),
        };
        let mut failed = Vec::new();
        let or_why = |why: String| match why.is_empty() {
            true => "node(s) rejected by an extender".to_owned(),
            false => why,
        };
        let hopeless = said.failed_and_unresolvable_nodes.unwrap_or_default();
        for (name, why) in said.failed_nodes.unwrap_or_default() {
            if !hopeless.contains_key(&name) {
                failed.push((name, Status::unschedulable(or_why(why))));
            }
        }
        for (name, why) in hopeless {
            failed.push((name, Status::unresolvable(or_why(why))));
        }
        Ok(Filtered {
            nodes: names.into_iter().filter(|n| kept.contains(n)).collect(),
            failed,
        })
    }

    /// Scores of nodes, weighed to stand beside those of the plugins.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn prioritize(
        &self,
        pod: &Value,
        names: &[String],
        nodes: &(dyn Fn(&[String]) -> Value + Sync),
    ) -> Result<Vec<(String, i64)>, ExtenderError> {
        if self.config.prioritize_verb.is_empty() {
            return Ok(Vec::new());
        }
        let body = self.args(pod, names, nodes);
        let said: Vec<HostPriority> = self.ask(&self.config.prioritize_verb, &body).await?;
        let scale = self
            .config
            .weight
            .saturating_mul(MAX_SCORE / MAX_EXTENDER_SCORE);
        let scaled = said
            .into_iter()
            .map(|p| (p.host, p.score.saturating_mul(scale)));
        Ok(scaled.collect())
    }

    /// Which of the candidates for making room will do, and whom they really take; `object` gives
    /// pods.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn preempt(
        &self,
        pod: &Value,
        candidates: Vec<Candidate>,
        object: &(dyn Fn(&Key) -> Value + Sync),
    ) -> Result<Vec<Candidate>, ExtenderError> {
        if self.config.preempt_verb.is_empty() {
            return Ok(candidates);
        }
        // Who knows the nodes knows their pods.
        let whole = !self.config.node_cache_capable;
        let shown = |v: &Footprint| {
            if whole {
                object(&v.key)
            } else {
                json!({"UID": &*v.uid})
            }
        };
        let victims: serde_json::Map<String, Value> = candidates
            .iter()
            .map(|c| {
                let pods: Vec<_> = c.victims.iter().map(|v| shown(v)).collect();
                let victims = json!({"Pods": pods, "NumPDBViolations": c.violations});
                (c.node.clone(), victims)
            })
            .collect();
        let field = if whole {
            "NodeNameToVictims"
        } else {
            "NodeNameToMetaVictims"
        };
        let body = json!({"Pod": pod, field: victims});
        let mut said: PreemptionResult = self.ask(&self.config.preempt_verb, &body).await?;
        let left = candidates.into_iter().filter_map(|mut candidate| {
            let meta = said.victims.remove(&candidate.node)?;
            candidate
                .victims
                .retain(|v| meta.pods.iter().any(|p| *p.uid == *v.uid));
            candidate.violations = meta.violations;
            Some(candidate)
        });
        Ok(left.collect())
    }

    /// Binds a pod; `None`: it does not bind.
    pub async fn bind(&self, pod: &PodInfo, node: &str) -> Option<Result<(), ExtenderError>> {
        if self.config.bind_verb.is_empty() || !self.cares_about(pod) {
            return None;
        }
        let body = json!({
            "PodName": &*pod.key.name, "PodNamespace": &*pod.key.namespace,
            "PodUID": &**pod.uid(), "Node": node,
        });
        let said: Result<BindResult, _> = self.ask(&self.config.bind_verb, &body).await;
        Some(match said {
            Ok(said) if said.error.is_empty() => Ok(()),
            Ok(said) => Err(ExtenderError::Refused(said.error)),
            Err(error) => Err(error),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, expected) in [
            ("5s", Some(Duration::from_secs(5))),
            ("1m30s", Some(Duration::from_secs(90))),
            ("1500ms", Some(Duration::from_millis(1500))),
            ("", None),
            ("5", None),
            ("5 s", None),
        ] {
            assert_eq!(duration(text), expected, "{text}");
        }
    }
}
