//! Registry credentials from `imagePullSecrets`. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use k8s_openapi::api::core::v1::Secret;
use oci::cri::v1::AuthConfig;
use serde::Deserialize;

/// Registry of images that name none.
const DEFAULT_HOST: &str = "docker.io";

#[derive(Deserialize, Default)]
#[serde(default)]
struct DockerConfig {
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
}

/// An image name without tag as registry and repository.
pub fn split(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => (DEFAULT_HOST, name),
    }
}

/// Credentials that fit `image`, the most specific first.
pub fn for_image(image: &str, secrets: &[Arc<Secret>]) -> Vec<AuthConfig> {
    let (host, path) = split(image);
    let mut found: Vec<(usize, AuthConfig)> = Vec::new();
    for (server, entry) in secrets.iter().flat_map(|s| entries(s)) {
        if let Some(rank) = fits(&server, host, path) {
            found.push((rank, auth(&server, &entry)));
        }
    }
    found.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
    found.into_iter().map(|(_, auth)| auth).collect()
}

fn entries(secret: &Secret) -> Vec<(String, Entry)> {
    let data = secret.data.as_ref();
    let get = |key: &str| data.and_then(|d| d.get(key)).map(|v| v.0.as_slice());
    let auths = if let Some(bytes) = get(".dockerconfigjson") {
        serde_json::from_slice::<DockerConfig>(bytes)
            .unwrap_or_default()
            .auths
    } else if let Some(bytes) = get(".dockercfg") {
        serde_json::from_slice(bytes).unwrap_or_default()
    } else {
        BTreeMap::new()
    };
    auths.into_iter().collect()
}

/// How well an entry's server fits, or `None`.
fn fits(server: &str, host: &str, path: &str) -> Option<usize> {
    let server = server
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    let server = server.trim_end_matches('/');
    let (name, prefix) = server.split_once('/').unwrap_or((server, ""));
    let name = match name {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_HOST,
        other => other,
    };
    let prefix = if matches!(prefix, "v1" | "v2") {
        ""
    } else {
        prefix
    };
    let same_host = match name.strip_prefix("*.") {
        Some(domain) => host.split_once('.').is_some_and(|(_, rest)| rest == domain),
        None => name == host,
    };
    (same_host && path.starts_with(prefix)).then_some(prefix.len() + 1)
}

fn auth(server: &str, entry: &Entry) -> AuthConfig {
    let mut out = AuthConfig {
        username: entry.username.clone(),
        password: entry.password.clone(),
        identity_token: entry.identitytoken.clone(),
        server_address: server.to_owned(),
        ..AuthConfig::default()
    };
    if out.username.is_empty()
        && let Ok(bytes) = base64::engine::general_purpose::STANDARD.decode(entry.auth.trim())
        && let Ok(text) = String::from_utf8(bytes)
        && let Some((user, password)) = text.split_once(':')
    {
        out.username = user.to_owned();
        out.password = password.trim_end_matches('\0').to_owned();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    fn secret(json: &str) -> Arc<Secret> {
        let data = [(
            ".dockerconfigjson".to_owned(),
            ByteString(json.as_bytes().to_vec()),
        )];
        Arc::new(Secret {
            data: Some(data.into()),
            ..Secret::default()
        })
    }

    #[test]
    fn the_most_specific_entry_comes_first() {
        let secrets = [secret(
            r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dTpw"}, "r.example:5000": {"username": "a", "password": "b"},
                "r.example:5000/team": {"username": "c", "password": "d"}, "*.example.org": {"username": "w"}}}"#,
        )];
        let names = |image: &str| {
            for_image(image, &secrets)
                .into_iter()
                .map(|a| a.username)
                .collect::<Vec<_>>()
        };
        assert_eq!(names("nginx:1"), ["u"]);
        assert_eq!(names("r.example:5000/team/x:1"), ["c", "a"]);
        assert_eq!(names("r.example:5000/other"), ["a"]);
        assert_eq!(names("img.example.org/x"), ["w"]);
        assert!(names("elsewhere.example/x").is_empty());
    }
}
