//! The environment of a container: services, `envFrom`, `env`, and `$(VAR)` expansion. Pure: the
//! objects it refers to are fetched before.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, Secret};

use crate::downward::{self, Place};
use crate::services::ServiceView;

/// Objects named by the environment, by name; `None` for one that does not exist.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// ConfigMaps of the pod's namespace.
    pub config_maps: BTreeMap<String, Option<Arc<ConfigMap>>>,
    /// Secrets of the pod's namespace.
    pub secrets: BTreeMap<String, Option<Arc<Secret>>>,
}

/// Variables in order of definition; later definitions replace earlier ones in place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Variables {
    entries: Vec<(String, String)>,
    index: BTreeMap<String, usize>,
}

impl Variables {
    /// Sets a variable.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let (name, value) = (name.into(), value.into());
        match self.index.get(&name) {
            Some(at) => self.entries[*at].1 = value,
            None => {
                self.index.insert(name.clone(), self.entries.len());
                self.entries.push((name, value));
            }
        }
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.index.get(name).map(|at| self.entries[*at].1.as_str())
    }

    /// All of them.
    pub fn into_entries(self) -> Vec<(String, String)> {
        self.entries
    }
}

/// The environment of one container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Environment {
    /// The variables.
    pub variables: Variables,
    /// Keys of `envFrom` sources that are no variable names: (source, key).
    pub invalid: Vec<(String, String)>,
}

/// Names of the ConfigMaps and Secrets that the environment of `container` needs.
pub fn references(container: &Container) -> (Vec<String>, Vec<String>) {
    let (mut maps, mut secrets) = (Vec::new(), Vec::new());
    for from in container.env_from.iter().flatten() {
        maps.extend(from.config_map_ref.iter().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.iter().map(|r| r.name.clone()));
    }
    for source in container
        .env
        .iter()
        .flatten()
        .filter_map(|e| e.value_from.as_ref())
    {
        maps.extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
    }
    for list in [&mut maps, &mut secrets] {
        list.sort();
        list.dedup();
    }
    (maps, secrets)
}

/// Builds the environment of `container`.
///
/// # Errors
/// Upstream's text, when something required is missing.
pub fn environment(
    pod: &Pod,
    container: &Container,
    services: &[ServiceView],
    sources: &Sources,
    place: &Place,
) -> Result<Environment, String> {
    let mut out = Environment::default();
    let service_vars = service_variables(services);
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let (source, data) = from_source(from, sources)?;
        for (key, value) in data {
            let name = format!("{prefix}{key}");
            if valid_name(&name) {
                out.variables.set(name, value);
            } else {
                out.invalid.push((source.clone(), key));
            }
        }
    }
    for var in container.env.iter().flatten() {
        let literal = var.value.as_deref().unwrap_or_default();
        let value = if !literal.is_empty() {
            Some(expand(literal, |name| {
                out.variables.get(name).or_else(|| service_vars.get(name))
            }))
        } else if let Some(from) = &var.value_from {
            value_from(pod, container, from, sources, place)?
        } else {
            Some(String::new())
        };
        if let Some(value) = value {
            out.variables.set(&var.name, value);
        }
    }
    for (name, value) in service_vars.into_entries() {
        if out.variables.get(&name).is_none() {
            out.variables.set(name, value);
        }
    }
    Ok(out)
}

type Pairs = Vec<(String, String)>;

fn from_source(
    from: &k8s_openapi::api::core::v1::EnvFromSource,
    sources: &Sources,
) -> Result<(String, Pairs), String> {
    if let Some(reference) = &from.config_map_ref {
        let pairs = match sources.config_maps.get(&reference.name).cloned().flatten() {
            Some(map) => map.data.clone().unwrap_or_default().into_iter().collect(),
            None if reference.optional == Some(true) => Vec::new(),
            None => return Err(format!("configmap \"{}\" not found", reference.name)),
        };
        return Ok((format!("configMap {}", reference.name), pairs));
    }
    let Some(reference) = &from.secret_ref else {
        return Ok((String::new(), Vec::new()));
    };
    let pairs = match sources.secrets.get(&reference.name).cloned().flatten() {
        Some(secret) => secret
            .data
            .iter()
            .flatten()
            .map(|(k, v)| (k.clone(), String::from_utf8_lossy(&v.0).into_owned()))
            .collect(),
        None if reference.optional == Some(true) => Vec::new(),
        None => return Err(format!("secret \"{}\" not found", reference.name)),
    };
    Ok((format!("secret {}", reference.name), pairs))
}

fn value_from(
    pod: &Pod,
    container: &Container,
    from: &EnvVarSource,
    sources: &Sources,
    place: &Place,
) -> Result<Option<String>, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(field) = &from.field_ref {
        return downward::field(pod, &field.field_path, place).map(Some);
    }
    if let Some(resource) = &from.resource_field_ref {
        return downward::resource(pod, resource, Some(container), place).map(Some);
    }
    if let Some(key) = &from.config_map_key_ref {
        let optional = key.optional == Some(true);
        let map = match sources.config_maps.get(&key.name).cloned().flatten() {
            Some(map) => map,
            None if optional => return Ok(None),
            None => return Err(format!("configmap \"{}\" not found", key.name)),
        };
        return match map.data.as_ref().and_then(|d| d.get(&key.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(format!(
                "couldn't find key {} in ConfigMap {namespace}/{}",
                key.key, key.name
            )),
        };
    }
    if let Some(key) = &from.secret_key_ref {
        let optional = key.optional == Some(true);
        let secret = match sources.secrets.get(&key.name).cloned().flatten() {
            Some(secret) => secret,
            None if optional => return Ok(None),
            None => return Err(format!("secret \"{}\" not found", key.name)),
        };
        return match secret.data.as_ref().and_then(|d| d.get(&key.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(format!(
                "couldn't find key {} in Secret {namespace}/{}",
                key.key, key.name
            )),
        };
    }
    if from.file_key_ref.is_some() {
        return Err("env valueFrom fileKeyRef is not supported".into());
    }
    Ok(None)
}

/// Any printable ASCII but `=`, as relaxed validation has it.
fn valid_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=')
}

/// Replaces `$(NAME)`; `$$` is a literal `$`; names that are not known stay as they are.
pub fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('(') {
            match after.split_once(')') {
                Some((name, tail)) => {
                    match lookup(name) {
                        Some(value) => out.push_str(value),
                        None => out.push_str(&format!("$({name})")),
                    }
                    rest = tail;
                }
                None => out.push('$'),
            }
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// `NAME_SERVICE_HOST` and its relatives for each service.
fn service_variables(services: &[ServiceView]) -> Variables {
    let mut out = Variables::default();
    for service in services {
        let name = shout(&service.name);
        let Some(first) = service.ports.first() else {
            continue;
        };
        out.set(format!("{name}_SERVICE_HOST"), &service.cluster_ip);
        out.set(format!("{name}_SERVICE_PORT"), first.port.to_string());
        for port in service.ports.iter().filter(|p| !p.name.is_empty()) {
            let key = format!("{name}_SERVICE_PORT_{}", shout(&port.name));
            out.set(key, port.port.to_string());
        }
        let host = if service.cluster_ip.contains(':') {
            format!("[{}]", service.cluster_ip)
        } else {
            service.cluster_ip.clone()
        };
        for (n, port) in service.ports.iter().enumerate() {
            let protocol = if port.protocol.is_empty() {
                "TCP"
            } else {
                &port.protocol
            };
            let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
            if n == 0 {
                out.set(format!("{name}_PORT"), &url);
            }
            let prefix = format!("{name}_PORT_{}_{}", port.port, protocol.to_uppercase());
            out.set(format!("{prefix}_PROTO"), protocol.to_lowercase());
            out.set(format!("{prefix}_PORT"), port.port.to_string());
            out.set(format!("{prefix}_ADDR"), &service.cluster_ip);
            out.set(prefix, url);
        }
    }
    out
}

fn shout(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::PortView;
    use serde_json::json;

    #[test]
    fn expansion_follows_the_rules() {
        let lookup = |name: &str| match name {
            "A" => Some("1"),
            "EMPTY" => Some(""),
            _ => None,
        };
        let cases = [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(B)"),
            ("$(EMPTY)", ""),
            ("$(A", "$(A"),
            ("$A", "$A"),
            ("100$", "100$"),
            ("", ""),
        ];
        for (text, want) in cases {
            assert_eq!(expand(text, lookup), want, "{text}");
        }
    }

    fn service(name: &str, ports: &[(&str, i32, &str)]) -> ServiceView {
        ServiceView {
            name: name.into(),
            cluster_ip: "10.43.0.7".into(),
            ports: ports
                .iter()
                .map(|(name, port, protocol)| PortView {
                    name: (*name).into(),
                    port: *port,
                    protocol: (*protocol).into(),
                })
                .collect(),
        }
    }

    #[test]
    fn services_become_variables() {
        let vars = service_variables(&[service(
            "redis-leader",
            &[("a-b", 6379, "TCP"), ("", 53, "UDP")],
        )]);
        for (name, value) in [
            ("REDIS_LEADER_SERVICE_HOST", "10.43.0.7"),
            ("REDIS_LEADER_SERVICE_PORT", "6379"),
            ("REDIS_LEADER_SERVICE_PORT_A_B", "6379"),
            ("REDIS_LEADER_PORT", "tcp://10.43.0.7:6379"),
            ("REDIS_LEADER_PORT_6379_TCP", "tcp://10.43.0.7:6379"),
            ("REDIS_LEADER_PORT_6379_TCP_ADDR", "10.43.0.7"),
            ("REDIS_LEADER_PORT_53_UDP", "udp://10.43.0.7:53"),
            ("REDIS_LEADER_PORT_53_UDP_PROTO", "udp"),
        ] {
            assert_eq!(vars.get(name), Some(value), "{name}");
        }
    }

    fn container(value: serde_json::Value) -> Container {
        serde_json::from_value(value).unwrap()
    }

    fn sources() -> Sources {
        let map: ConfigMap =
            serde_json::from_value(json!({"data": {"k": "v", "bad=key": "x"}})).unwrap();
        let secret: Secret = serde_json::from_value(json!({"data": {"p": "aHVudGVy"}})).unwrap();
        Sources {
            config_maps: [
                ("cm".to_owned(), Some(Arc::new(map))),
                ("gone".to_owned(), None),
            ]
            .into(),
            secrets: [("s".to_owned(), Some(Arc::new(secret)))].into(),
        }
    }

    #[test]
    fn everything_together() {
        let c = container(json!({"name": "c",
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "s"}},
                        {"configMapRef": {"name": "gone", "optional": true}}],
            "env": [{"name": "A", "value": "$(P_k)-$(DB_SERVICE_PORT)"},
                    {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "p"}}},
                    {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "none", "optional": true}}},
                    {"name": "D", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "DB_SERVICE_HOST", "value": "mine"},
                    {"name": "E"}]}));
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "pod"}})).unwrap();
        let env = environment(
            &pod,
            &c,
            &[service("db", &[("", 3306, "TCP")])],
            &sources(),
            &Place::default(),
        )
        .unwrap();
        for (name, value) in [
            ("P_k", Some("v")),
            ("p", Some("hunter")),
            ("A", Some("v-3306")),
            ("B", Some("hunter")),
            ("C", None),
            ("D", Some("pod")),
            ("DB_SERVICE_HOST", Some("mine")),
            ("E", Some("")),
        ] {
            assert_eq!(env.variables.get(name), value, "{name}");
        }
        assert_eq!(
            env.invalid,
            [("configMap cm".to_owned(), "bad=key".to_owned())]
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let cases = [
            (
                json!({"envFrom": [{"configMapRef": {"name": "gone"}}]}),
                "configmap \"gone\" not found",
            ),
            (
                json!({"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "nope", "key": "k"}}}]}),
                "secret \"nope\" not found",
            ),
            (
                json!({"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}),
                "couldn't find key k in Secret n/s",
            ),
            (
                json!({"env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "q"}}}]}),
                "couldn't find key q in ConfigMap n/cm",
            ),
        ];
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "pod", "namespace": "n"}})).unwrap();
        for (mut spec, error) in cases {
            spec["name"] = json!("c");
            let result = environment(&pod, &container(spec), &[], &sources(), &Place::default());
            assert_eq!(result.err().as_deref(), Some(error));
        }
    }
}
