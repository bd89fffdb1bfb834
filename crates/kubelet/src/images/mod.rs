//! Images for containers: pull policy, credentials, one pull at a time for each image, back-off,
//! and upstream's events and reasons.

mod credentials;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use client::EventType;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use oci::cri::v1::{AuthConfig, Image, PullImageRequest};
use tokio::sync::Semaphore;

use crate::agent::Agent;
use crate::backoff::Backoff;
use crate::cri::{self, Cri};
use crate::plan::Waiting;
use crate::pod;
use crate::security::ImageUser;

/// Images pulled at the same time.
const PARALLEL_PULLS: usize = 4;
/// After a failed pull the container shows `ErrImagePull` so long, then that it backs off.
const SHOW_ERROR: SignedDuration = SignedDuration::from_secs(2);
/// Entries of the back-off table beyond which forgotten ones are dropped.
const BACKOFF_ENTRIES: usize = 1024;

/// An image that is on the node.
#[derive(Clone, Debug, Default)]
pub struct Present {
    /// Reference to make the container from.
    pub reference: String,
    /// User that it runs as.
    pub user: ImageUser,
}

/// An image that is not there: what the container's status shows, and when to try again.
#[derive(Clone, Debug)]
pub struct Missing {
    /// For the status.
    pub waiting: Waiting,
    /// When to try again.
    pub retry_at: Timestamp,
}

type PullResult = Result<String, String>;
type Pull = Shared<BoxFuture<'static, PullResult>>;

#[derive(Clone, Debug)]
struct Failure {
    backoff: Backoff,
    failed_at: Timestamp,
    error: String,
}

/// The image manager.
pub struct Images {
    cri: Cri,
    pulls: Arc<Mutex<HashMap<String, Pull>>>,
    failures: Mutex<HashMap<(String, String), Failure>>,
    permits: Arc<Semaphore>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Images {
    /// A manager over the runtime's image service.
    pub fn new(cri: Cri) -> Images {
        Images {
            cri,
            pulls: Arc::default(),
            failures: Mutex::default(),
            permits: Arc::new(Semaphore::new(PARALLEL_PULLS)),
        }
    }

    /// Forgets the failures of a pod that is gone.
    pub fn forget(&self, uid: &str) {
        lock(&self.failures).retain(|(pod, _), _| pod != uid);
    }
}

/// `Always`, `IfNotPresent` or `Never`; the default follows the tag.
fn policy(container: &Container, image: &str) -> String {
    container
        .image_pull_policy
        .clone()
        .filter(|p| !p.is_empty())
        .unwrap_or_else(|| {
            let latest = image.ends_with(":latest");
            if latest { "Always" } else { "IfNotPresent" }.to_owned()
        })
}

/// `image` with the tag `latest` if it has neither tag nor digest.
///
/// # Errors
/// When it is no image reference.
fn with_tag(image: &str) -> Result<String, String> {
    let invalid = || format!("couldn't parse image name \"{image}\": invalid reference format");
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let last = name.rsplit('/').next().unwrap_or_default();
    let (path, tag) = match last.split_once(':') {
        Some((_, tag)) => (&name[..name.len() - tag.len() - 1], Some(tag)),
        None => (name, None),
    };
    let (host, repository) = credentials::split(path);
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(c);
    let valid_tag = |t: &str| {
        !t.is_empty()
            && t.len() <= 128
            && t.chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    let valid = !repository.is_empty()
        && repository.chars().all(fine)
        && !host.contains(char::is_whitespace)
        && !repository.split('/').any(str::is_empty)
        && tag.is_none_or(valid_tag)
        && digest.is_none_or(|d| d.contains(':'));
    match (valid, tag, digest) {
        (false, ..) => Err(invalid()),
        (true, None, None) => Ok(format!("{image}:latest")),
        _ => Ok(image.to_owned()),
    }
}

fn user_of(image: &Image) -> ImageUser {
    match &image.uid {
        Some(uid) => ImageUser {
            uid: Some(uid.value),
            username: String::new(),
        },
        None if image.username.is_empty() => ImageUser {
            uid: Some(0),
            username: String::new(),
        },
        None => ImageUser {
            uid: None,
            username: image.username.clone(),
        },
    }
}

fn present(image: &Image, asked: &str) -> Present {
    let reference = if image.id.is_empty() {
        asked.to_owned()
    } else {
        image.id.clone()
    };
    Present {
        reference,
        user: user_of(image),
    }
}

/// Makes sure that the image of `container` is on the node.
///
/// # Errors
/// [`Missing`] when it is not and cannot be pulled now.
pub async fn ensure(
    agent: &Agent,
    pod: &Pod,
    container: &Container,
    secrets: &[Arc<Secret>],
    now: Timestamp,
) -> Result<Present, Missing> {
    let asked = container.image.as_deref().unwrap_or_default();
    let warn = |reason: &str, message: String| {
        agent.container_event(pod, &container.name, EventType::Warning, reason, message);
    };
    let missing = |reason: &str, message: String, retry_at| Missing {
        waiting: Waiting {
            reason: reason.to_owned(),
            message,
        },
        retry_at,
    };
    let image = match with_tag(asked) {
        Ok(image) => image,
        Err(error) => {
            let message = format!("Failed to apply default image tag \"{asked}\": {error}");
            warn("InspectFailed", message.clone());
            warn("Failed", "Error: InvalidImageName".into());
            return Err(missing(
                "InvalidImageName",
                message,
                now + crate::backoff::CEILING,
            ));
        }
    };
    let local = match agent.cri.image(&image).await {
        Ok(local) => local,
        Err(error) => {
            let message = format!("Failed to inspect image \"{image}\": {error}");
            warn("InspectFailed", message.clone());
            return Err(missing(
                "ImageInspectError",
                message,
                now + crate::backoff::INITIAL,
            ));
        }
    };
    let policy = policy(container, &image);
    match (policy.as_str(), local) {
        ("Never", None) => {
            let message =
                format!("Container image \"{asked}\" is not present with pull policy of Never");
            warn("ErrImageNeverPull", message.clone());
            warn("Failed", "Error: ErrImageNeverPull".into());
            Err(missing(
                "ErrImageNeverPull",
                message,
                now + crate::backoff::INITIAL * 6,
            ))
        }
        ("Never" | "IfNotPresent", Some(local)) => {
            let message = format!("Container image \"{asked}\" already present on machine");
            agent.container_event(pod, &container.name, EventType::Normal, "Pulled", message);
            Ok(present(&local, &image))
        }
        _ => pull(agent, pod, container, &image, secrets, now).await,
    }
}

async fn pull(
    agent: &Agent,
    pod: &Pod,
    container: &Container,
    image: &str,
    secrets: &[Arc<Secret>],
    now: Timestamp,
) -> Result<Present, Missing> {
    let asked = container.image.as_deref().unwrap_or_default();
    let event = |kind, reason: &str, message: String| {
        agent.container_event(pod, &container.name, kind, reason, message);
    };
    let key = (pod::PodRef::of(pod).uid, image.to_owned());
    if let Some(missing) = agent.images.backing_off(&key, asked, now) {
        let text = format!("Back-off pulling image \"{asked}\"");
        event(EventType::Normal, "BackOff", text);
        let text = "Error: ImagePullBackOff".into();
        event(EventType::Warning, "Failed", text);
        return Err(missing);
    }
    let text = format!("Pulling image \"{asked}\"");
    event(EventType::Normal, "Pulling", text);
    let started = Instant::now();
    let auth = credentials::for_image(image, secrets);
    match agent.images.pull_shared(image, auth).await {
        Ok(reference) => {
            lock(&agent.images.failures).remove(&key);
            let found = agent.cri.image(&reference).await.ok().flatten();
            let size = found.as_ref().map_or(0, |i| i.size);
            let took = go_seconds(started.elapsed());
            let message = format!(
                "Successfully pulled image \"{asked}\" in {took} ({took} including waiting). Image size: {size} bytes."
            );
            event(EventType::Normal, "Pulled", message);
            let unknown = || Present {
                reference: reference.clone(),
                ..Present::default()
            };
            Ok(found.map_or_else(unknown, |i| present(&i, image)))
        }
        Err(error) => {
            let text = format!("Failed to pull image \"{asked}\": {error}");
            event(EventType::Warning, "Failed", text);
            event(EventType::Warning, "Failed", "Error: ErrImagePull".into());
            Err(agent.images.failed(key, error, crate::clock::now()))
        }
    }
}

impl Images {
    /// Why the image is not to be pulled yet for this pod.
    fn backing_off(&self, key: &(String, String), asked: &str, now: Timestamp) -> Option<Missing> {
        let failures = lock(&self.failures);
        let failure = failures.get(key)?;
        let retry_at = failure.backoff.wait_until(failure.failed_at, now)?;
        let error = &failure.error;
        let message = format!("Back-off pulling image \"{asked}\": ErrImagePull: {error}");
        let reason = "ImagePullBackOff".into();
        Some(Missing {
            waiting: Waiting { reason, message },
            retry_at,
        })
    }

    /// Remembers a failure, for the back-off.
    fn failed(&self, key: (String, String), error: String, now: Timestamp) -> Missing {
        let mut failures = lock(&self.failures);
        let known = failures.get(&key).map(|f| f.backoff);
        if failures.len() >= BACKOFF_ENTRIES {
            failures.retain(|_, f| !f.backoff.expired(now));
        }
        let failure = Failure {
            backoff: Backoff::next(known, now),
            failed_at: now,
            error: error.clone(),
        };
        failures.insert(key, failure);
        let reason = "ErrImagePull".into();
        Missing {
            waiting: Waiting {
                reason,
                message: error,
            },
            retry_at: now + SHOW_ERROR,
        }
    }

    /// Pulls `image` with the first of the credentials that works; joins a pull that is under way.
    async fn pull_shared(&self, image: &str, auth: Vec<AuthConfig>) -> PullResult {
        let key = format!("{image} {auth:?}");
        let pull = {
            let mut pulls = lock(&self.pulls);
            let known = pulls.get(&key).cloned();
            known.unwrap_or_else(|| {
                let work = pull_once(
                    self.cri.clone(),
                    image.to_owned(),
                    auth,
                    self.permits.clone(),
                );
                let (pulls_again, key_again) = (self.pulls.clone(), key.clone());
                // On its own task: a pod that goes away does not break off what others wait for.
                let task = tokio::spawn(async move {
                    let result = work.await;
                    lock(&pulls_again).remove(&key_again);
                    result
                });
                let pull: Pull = task
                    .map(|r| r.unwrap_or_else(|e| Err(e.to_string())))
                    .boxed()
                    .shared();
                pulls.insert(key, pull.clone());
                pull
            })
        };
        pull.await
    }
}

async fn pull_once(
    cri: Cri,
    image: String,
    auth: Vec<AuthConfig>,
    permits: Arc<Semaphore>,
) -> PullResult {
    let _permit = permits.acquire_owned().await.map_err(|e| e.to_string())?;
    let attempts: Vec<_> = if auth.is_empty() {
        vec![None]
    } else {
        auth.into_iter().map(Some).collect()
    };
    let mut last = String::new();
    for auth in attempts {
        let request = PullImageRequest {
            image: Some(cri::spec(&image)),
            auth,
            sandbox_config: None,
        };
        match cri.pull_image(request).await {
            Ok(response) => return Ok(response.image_ref),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

/// A duration as Go prints it to the millisecond: `812ms`, `1.5s`, `1m2.3s`.
fn go_seconds(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let minutes = millis / 60_000;
    let rest = format!("{}.{:03}", millis % 60_000 / 1000, millis % 1000);
    let rest = rest.trim_end_matches('0').trim_end_matches('.');
    if minutes > 0 {
        format!("{minutes}m{rest}s")
    } else {
        format!("{rest}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_completed() {
        for (image, want) in [
            ("nginx", Some("nginx:latest")),
            ("nginx:1.0", Some("nginx:1.0")),
            ("localhost:5000/a/b", Some("localhost:5000/a/b:latest")),
            ("a@sha256:00", Some("a@sha256:00")),
            ("Nginx", None),
            ("a b", None),
            ("", None),
            ("a:", None),
            ("a//b", None),
        ] {
            assert_eq!(with_tag(image).ok().as_deref(), want, "{image}");
        }
    }

    #[test]
    fn durations_read_as_in_go() {
        for (millis, text) in [
            (812, "812ms"),
            (1500, "1.5s"),
            (62_300, "1m2.3s"),
            (2000, "2s"),
        ] {
            assert_eq!(go_seconds(Duration::from_millis(millis)), text);
        }
    }
}
