//! A registry as an HTTP client sees it: authentication, retries, bounded documents, resumable blobs.
//!
//! Plain HTTP is spoken with loopback addresses and registries the user calls insecure, and with those only when they
//! do not speak TLS. Credentials go to the registry and the token service it names, never over plain HTTP unless the
//! registry itself is reached so.

use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use reqwest::{Client, Response, Url};
use serde::Deserialize;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio::sync::Mutex;

use super::auth::{Auth, Challenge, basic};
use super::digest::Hasher;
use super::error::Doing;
use super::layer::MAX_LAYER_BYTES;
use super::manifest::{
    DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, MAX_DOCUMENT_BYTES, OCI_INDEX, OCI_MANIFEST,
    parse_json,
};
use super::{Digest, ImageError, PullOptions, Reference};

/// Where docker.io really is.
const DOCKER_HUB: &str = "registry-1.docker.io";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a registry may send nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Tries of one request, or of a blob without any progress.
const MAX_ATTEMPTS: u32 = 5;
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(20);
/// Bound on error bodies and tokens in bytes.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

/// One repository of one registry.
pub(crate) struct Registry {
    http: Client,
    /// `https://host[:port]`.
    base: String,
    reference: Reference,
    auth: Auth,
    /// The `Authorization` that worked last.
    authorization: Mutex<Option<HeaderValue>>,
}

impl Registry {
    /// Finds out how to speak with the registry of `reference`.
    pub(crate) async fn connect(
        reference: &Reference,
        auth: &Auth,
        options: &PullOptions,
    ) -> Result<Self, ImageError> {
        let host = match reference.registry() {
            "docker.io" => DOCKER_HUB,
            other => other,
        };
        let loopback = is_loopback(host);
        let insecure = options.insecure_registries.iter().any(|i| i == host);
        let mut base = format!("https://{host}");
        let mut http = client(host, options, loopback, loopback || insecure, insecure)?;
        if (loopback || insecure)
            && let Err(e) = http.get(format!("{base}/v2/")).send().await
        {
            // A server with a certificate that is not trusted does speak TLS; say that instead of trying without.
            if is_certificate_error(&e) {
                return Err(unreachable(host, &e));
            }
            let plain = format!("http://{host}");
            if http.get(format!("{plain}/v2/")).send().await.is_ok() {
                base = plain;
            } else {
                return Err(unreachable(host, &e));
            }
        }
        if base.starts_with("https") && !insecure {
            http = client(host, options, loopback, false, false)?;
        }
        Ok(Self {
            http,
            base,
            reference: reference.clone(),
            auth: auth.clone(),
            authorization: Mutex::new(None),
        })
    }

    /// Fetches a manifest or index by tag or digest; checked against the digest if that is how it is asked for.
    pub(crate) async fn manifest(&self, target: &Target<'_>) -> Result<Vec<u8>, ImageError> {
        let name = match target {
            Target::Tag(tag) => (*tag).to_owned(),
            Target::Digest(digest) => digest.to_string(),
        };
        let mut headers = HeaderMap::new();
        for accept in [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST] {
            headers.append(header::ACCEPT, HeaderValue::from_static(accept));
        }
        let response = self.get(&format!("manifests/{name}"), &headers).await?;
        let declared = response
            .headers()
            .get("docker-content-digest")
            .and_then(|v| Digest::parse(v.to_str().ok()?));
        let bytes = self
            .bounded(response, MAX_DOCUMENT_BYTES, "the manifest")
            .await?;
        let actual = Digest::of(&bytes);
        let expected = match target {
            Target::Digest(digest) => Some((*digest).clone()),
            Target::Tag(_) => declared,
        };
        match expected {
            Some(expected) if expected != actual => Err(ImageError::DigestMismatch {
                what: format!("manifest {name}"),
                expected,
                actual,
            }),
            _ => Ok(bytes),
        }
    }

    /// Fetches a small blob whole.
    pub(crate) async fn document(&self, blob: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let what = format!("blob {}", blob.digest);
        let response = self
            .get(&format!("blobs/{}", blob.digest), &HeaderMap::new())
            .await?;
        let bytes = self.bounded(response, MAX_DOCUMENT_BYTES, &what).await?;
        match Digest::of(&bytes) {
            actual if actual == blob.digest => Ok(bytes),
            actual => Err(ImageError::DigestMismatch {
                what,
                expected: blob.digest.clone(),
                actual,
            }),
        }
    }

    /// Fetches a large blob into an empty file and verifies it, going on where a broken connection left off.
    pub(crate) async fn blob(
        &self,
        blob: &Descriptor,
        file: std::fs::File,
        progress: impl Fn(u64),
    ) -> Result<std::fs::File, ImageError> {
        if blob.size > MAX_LAYER_BYTES {
            return Err(ImageError::TooLarge {
                what: format!("blob {}", blob.digest),
                limit: MAX_LAYER_BYTES,
            });
        }
        let mut partial = Partial {
            file: tokio::fs::File::from_std(file),
            hasher: Hasher::new(),
            done: 0,
        };
        let mut failures = 0;
        while partial.done < blob.size {
            let before = partial.done;
            let Err(e) = self.continue_blob(blob, &mut partial, &progress).await else {
                continue;
            };
            let fatal = !matches!(e, ImageError::Unreachable { .. });
            failures = if partial.done > before {
                1
            } else {
                failures + 1
            };
            if fatal || failures >= MAX_ATTEMPTS {
                return Err(e);
            }
            tokio::time::sleep(backoff(failures)).await;
        }
        partial
            .file
            .flush()
            .await
            .doing(|| format!("write blob {}", blob.digest))?;
        let actual = partial.hasher.finish();
        if actual != blob.digest {
            return Err(ImageError::DigestMismatch {
                what: format!("blob {}", blob.digest),
                expected: blob.digest.clone(),
                actual,
            });
        }
        Ok(partial.file.into_std().await)
    }

    async fn continue_blob(
        &self,
        blob: &Descriptor,
        partial: &mut Partial,
        progress: &impl Fn(u64),
    ) -> Result<(), ImageError> {
        let doing = || format!("write blob {}", blob.digest);
        let mut headers = HeaderMap::new();
        if partial.done > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={}-", partial.done))
        {
            headers.insert(header::RANGE, range);
        }
        let response = self
            .get(&format!("blobs/{}", blob.digest), &headers)
            .await?;
        if partial.done > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
            // This registry cannot resume: from the beginning again.
            partial.file.rewind().await.doing(doing)?;
            partial.file.set_len(0).await.doing(doing)?;
            partial.hasher = Hasher::new();
            partial.done = 0;
        }
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|e| unreachable(self.host(), &e))?;
            partial.done += chunk.len() as u64;
            if partial.done > blob.size {
                return Err(ImageError::Damaged(format!(
                    "blob {} is longer than the {} bytes its manifest says",
                    blob.digest, blob.size
                )));
            }
            partial.hasher.update(&chunk);
            partial.file.write_all(&chunk).await.doing(doing)?;
            progress(partial.done);
        }
        if partial.done < blob.size {
            return Err(ImageError::Unreachable {
                host: self.host().to_owned(),
                detail: format!("blob {} broke off at {} bytes", blob.digest, partial.done),
            });
        }
        Ok(())
    }

    fn host(&self) -> &str {
        self.reference.registry()
    }

    /// A GET below the repository: authenticates when asked to, tries again what may pass.
    async fn get(&self, path: &str, headers: &HeaderMap) -> Result<Response, ImageError> {
        let url = format!("{}/v2/{}/{path}", self.base, self.reference.repository());
        let mut failures = 0;
        let mut authenticated = false;
        loop {
            let mut request = self.http.get(&url).headers(headers.clone());
            if let Some(authorization) = self.authorization.lock().await.clone() {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            let (error, wait) = match request.send().await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) if response.status() == StatusCode::UNAUTHORIZED && !authenticated => {
                    authenticated = true;
                    self.authenticate(response).await?;
                    continue;
                }
                Ok(response) => {
                    let passing = response.status().is_server_error()
                        || response.status() == StatusCode::TOO_MANY_REQUESTS;
                    let wait = retry_after(response.headers());
                    let error = self.refusal(response, path).await;
                    if !passing {
                        return Err(error);
                    }
                    (error, wait)
                }
                Err(e) if is_certificate_error(&e) => return Err(unreachable(self.host(), &e)),
                Err(e) => (unreachable(self.host(), &e), None),
            };
            failures += 1;
            if failures >= MAX_ATTEMPTS {
                return Err(error);
            }
            tokio::time::sleep(wait.unwrap_or_else(|| backoff(failures))).await;
        }
    }

    /// Turns an error answer into an error.
    async fn refusal(&self, response: Response, path: &str) -> ImageError {
        let status = response.status();
        let body = self.bounded(response, MAX_ANSWER_BYTES, "the answer").await;
        let detail = body.map(|b| registry_words(&b)).unwrap_or_default();
        match status {
            StatusCode::NOT_FOUND if path.starts_with("manifests/") => {
                ImageError::NotFound(self.reference.to_string())
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.denied(detail),
            _ => ImageError::Registry {
                host: self.host().to_owned(),
                status: status.as_u16(),
                detail,
            },
        }
    }

    fn denied(&self, detail: String) -> ImageError {
        ImageError::Denied {
            repository: self.reference.name(),
            detail,
        }
    }

    /// Answers the challenge of a 401.
    async fn authenticate(&self, response: Response) -> Result<(), ImageError> {
        let challenges: Vec<Challenge> = response
            .headers()
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|v| Challenge::parse(v.to_str().ok()?))
            .collect();
        let body = self.bounded(response, MAX_ANSWER_BYTES, "the answer").await;
        let find = |scheme| challenges.iter().find(|c| c.scheme == scheme);
        let text = match (find("bearer"), find("basic"), &self.auth) {
            (_, _, Auth::RegistryToken(token)) => format!("Bearer {token}"),
            (Some(challenge), _, _) => format!("Bearer {}", self.token(challenge).await?),
            (None, Some(_), Auth::Basic { username, password }) => basic(username, password),
            _ => {
                let detail = body.map(|b| registry_words(&b)).unwrap_or_default();
                return Err(self.denied(detail));
            }
        };
        let mut value = HeaderValue::from_str(&text)
            .map_err(|_| self.denied("the credentials are malformed".into()))?;
        value.set_sensitive(true);
        *self.authorization.lock().await = Some(value);
        Ok(())
    }

    /// Asks the token service for a token to pull.
    async fn token(&self, challenge: &Challenge) -> Result<String, ImageError> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let malformed =
            || self.denied("the registry's authentication challenge is malformed".into());
        let realm = challenge.parameter("realm").ok_or_else(malformed)?;
        let mut url = Url::parse(realm).map_err(|_| malformed())?;
        if self.base.starts_with("https") && url.scheme() != "https" {
            return Err(self.denied(format!("the token service {realm} is not secure")));
        }
        let default_scope = format!("repository:{}:pull", self.reference.repository());
        let mut query = vec![(
            "scope",
            challenge.parameter("scope").unwrap_or(&default_scope),
        )];
        query.extend(challenge.parameter("service").map(|s| ("service", s)));
        let request = match &self.auth {
            Auth::IdentityToken(token) => {
                query.push(("grant_type", "refresh_token"));
                query.push(("client_id", "styr"));
                query.push(("refresh_token", token));
                let mut form = url.clone();
                form.set_query(None);
                form.query_pairs_mut().extend_pairs(&query);
                let body = form.query().unwrap_or_default().to_owned();
                let kind = "application/x-www-form-urlencoded";
                self.http
                    .post(url)
                    .header(header::CONTENT_TYPE, kind)
                    .body(body)
            }
            auth => {
                url.query_pairs_mut().extend_pairs(&query);
                let request = self.http.get(url);
                match auth {
                    Auth::Basic { username, password } => {
                        request.header(header::AUTHORIZATION, basic(username, password))
                    }
                    _ => request,
                }
            }
        };
        let response = request
            .send()
            .await
            .map_err(|e| unreachable(self.host(), &e))?;
        let status = response.status();
        let bytes = self
            .bounded(response, MAX_ANSWER_BYTES, "the token")
            .await?;
        if !status.is_success() {
            let words = registry_words(&bytes);
            return Err(self.denied(format!("{realm} answered {status} {words}")));
        }
        let answer: Answer = parse_json("the token", &bytes)?;
        answer
            .token
            .or(answer.access_token)
            .ok_or_else(|| self.denied("the token service gave no token".into()))
    }

    async fn bounded(
        &self,
        response: Response,
        limit: u64,
        what: &str,
    ) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|e| unreachable(self.host(), &e))?;
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(ImageError::TooLarge {
                    what: what.to_owned(),
                    limit,
                });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

/// Which manifest.
pub(crate) enum Target<'a> {
    Tag(&'a str),
    Digest(&'a Digest),
}

/// A blob that is arriving.
struct Partial {
    file: tokio::fs::File,
    hasher: Hasher,
    done: u64,
}

fn client(
    host: &str,
    options: &PullOptions,
    loopback: bool,
    allow_plain: bool,
    accept_any_certificate: bool,
) -> Result<Client, ImageError> {
    let failed = |e: &dyn std::error::Error| unreachable(host, e);
    let mut certificates = Vec::new();
    for pem in &options.certificates {
        certificates.extend(reqwest::Certificate::from_pem_bundle(pem).map_err(|e| failed(&e))?);
    }
    let mut builder = Client::builder()
        .user_agent(concat!("styr/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .https_only(!allow_plain)
        .tls_danger_accept_invalid_certs(accept_any_certificate)
        .tls_certs_merge(certificates);
    if loopback {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|e| failed(&e))
}

fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn is_certificate_error(error: &(dyn std::error::Error + 'static)) -> bool {
    sources(error).any(|e| {
        // The TLS error is wrapped in I/O errors, which hide it from `source`.
        let io = e.downcast_ref::<std::io::Error>();
        let inner = io.and_then(|e| e.get_ref());
        let inner = inner.and_then(|e| e.downcast_ref::<rustls::Error>());
        let tls = inner.or_else(|| e.downcast_ref::<rustls::Error>());
        matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
    })
}

fn sources<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |e| e.source())
}

/// An HTTP client's error says little itself; its causes do.
fn unreachable(host: &str, error: &dyn std::error::Error) -> ImageError {
    let mut detail = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let text = e.to_string();
        if !detail.contains(&text) {
            detail = format!("{detail}: {text}");
        }
        cause = e.source();
    }
    ImageError::Unreachable {
        host: host.to_owned(),
        detail,
    }
}

/// The messages of a registry's error document, or the beginning of whatever it said instead.
fn registry_words(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Message>,
    }
    #[derive(Deserialize)]
    struct Message {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    const SHOWN: usize = 200;
    match serde_json::from_slice::<Errors>(body) {
        Ok(document) => {
            let messages = document.errors.into_iter();
            let texts: Vec<_> = messages
                .map(|m| format!("{}: {}", m.code, m.message))
                .collect();
            texts.join("; ")
        }
        Err(_) => String::from_utf8_lossy(body)
            .trim()
            .chars()
            .take(SHOWN)
            .collect(),
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds).min(MAX_BACKOFF))
}

fn backoff(failures: u32) -> Duration {
    let factor = 2_u32.saturating_pow(failures.saturating_sub(1));
    FIRST_BACKOFF.saturating_mul(factor).min(MAX_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_loopback() {
        for (host, want) in [
            ("localhost:5000", true),
            ("localhost", true),
            ("127.0.0.1:5000", true),
            ("127.8.9.10", true),
            ("[::1]:5000", true),
            ("10.0.0.1:5000", false),
            ("localhost.evil.com", false),
        ] {
            assert_eq!(is_loopback(host), want, "{host}");
        }
    }
}
