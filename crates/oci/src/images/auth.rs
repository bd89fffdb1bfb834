//! Who pulls, and how registries ask for it.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// Who pulls.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Auth {
    /// Nobody in particular.
    #[default]
    Anonymous,
    /// A user of the registry.
    Basic {
        /// User name.
        username: String,
        /// Password or access token.
        password: String,
    },
    /// An OAuth2 refresh token, exchanged at the registry's token service.
    IdentityToken(String),
    /// A bearer token sent to the registry as it is.
    RegistryToken(String),
}

impl Auth {
    /// Reads the `auth` field of a Docker configuration: base64 of `user:password`.
    pub fn from_encoded(auth: &str) -> Option<Self> {
        let bytes = BASE64_STANDARD.decode(auth.trim()).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (username, password) = text.split_once(':')?;
        Some(Self::Basic {
            username: username.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        })
    }
}

/// Secrets stay out of logs.
impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic { .. } => "Basic",
            Self::IdentityToken(_) => "IdentityToken",
            Self::RegistryToken(_) => "RegistryToken",
        })
    }
}

/// One way in which a registry wants to be told who asks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// Reads one `WWW-Authenticate` value.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let mut parameters = Vec::new();
        while let Some((key, value)) = rest.split_once('=') {
            let key = key.trim_matches([' ', ',']).to_ascii_lowercase();
            let (value, after) = match value.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => value.split_once(',').unwrap_or((value, "")),
            };
            parameters.push((key, value.to_owned()));
            rest = after;
        }
        Some(Self {
            scheme: scheme.to_ascii_lowercase(),
            parameters,
        })
    }

    pub(crate) fn parameter(&self, key: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(k, _)| k == key);
        found.map(|(_, value)| value.as_str())
    }
}

/// The value of an `Authorization` header with a password.
pub(crate) fn basic(username: &str, password: &str) -> String {
    let encoded = BASE64_STANDARD.encode(format!("{username}:{password}"));
    format!("Basic {encoded}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_challenges() {
        let challenge = Challenge::parse(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
        )
        .unwrap();
        assert_eq!(challenge.scheme, "bearer");
        assert_eq!(
            challenge.parameter("realm"),
            Some("https://auth.docker.io/token")
        );
        assert_eq!(
            challenge.parameter("scope"),
            Some("repository:a/b:pull,push")
        );
        assert_eq!(
            Challenge::parse("Basic realm=Registry, charset=utf-8")
                .unwrap()
                .parameters,
            [
                ("realm".into(), "Registry".into()),
                ("charset".into(), "utf-8".into())
            ]
        );
        assert_eq!(Challenge::parse(r#"Bearer realm="open"#), None);
    }

    #[test]
    fn reads_encoded_credentials() {
        let auth = Auth::from_encoded("dXNlcjpwYTpzcw==");
        assert_eq!(
            auth,
            Some(Auth::Basic {
                username: "user".into(),
                password: "pa:ss".into()
            })
        );
        assert!(!format!("{auth:?}").contains("pa:ss"));
        assert_eq!(Auth::from_encoded("?"), None);
    }
}
