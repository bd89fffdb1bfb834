//! `/containerLogs/{namespace}/{pod}/{container}`.

use std::path::PathBuf;

use bytes::Bytes;
use futures::StreamExt;
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Answer, Failure, Query, Refusal, Server};
use crate::agent::SharedAgent;
use crate::logs::read::{self, Options};
use crate::observe::observe;
use crate::pod::{self, ContainerState, ContainerView, Observed, PodRef};

/// Chunks of a log waiting for a slow client.
const CHUNKS: usize = 8;

/// Serves a log.
pub async fn serve(
    server: &Server,
    namespace: &str,
    name: &str,
    container: &str,
    query: &Query,
) -> Answer {
    let pod = server
        .directory
        .find(namespace, name)
        .ok_or_else(|| Refusal::not_found(format!("pod \"{name}\" not found")))?;
    if pod::container(&pod, container).is_none() {
        return Err(Refusal::bad(format!(
            "container {container} is not valid for pod {name}"
        )));
    }
    let options = options(query, crate::clock::now()).map_err(Refusal::bad)?;
    let previous = query.flag(["previous", "previous"]);
    let observed = observe(
        &server.agent.cri,
        &PodRef::of(&pod).uid,
        &Observed::default(),
    )
    .await
    .map_err(Refusal::internal)?;
    let view = choose(&pod, &observed, container, previous)
        .ok_or_else(|| Refusal::bad(no_log(&pod, container, previous)))?;
    let ended = CancellationToken::new();
    if view.state == ContainerState::Exited || !options.follow {
        ended.cancel();
    }
    let (sender, receiver) = mpsc::channel::<Bytes>(CHUNKS);
    let path = PathBuf::from(&view.log_path);
    if tokio::fs::metadata(&path).await.is_err() {
        return Err(Refusal::bad(format!(
            "failed to try resolving symlinks in path \"{}\": lstat {0}: no such file or directory",
            path.display()
        )));
    }
    spawn(
        server.agent.clone(),
        path,
        options,
        view.id.clone(),
        ended,
        sender,
    );
    let stream = tokio_stream(receiver).map(|bytes| Ok::<_, Failure>(Frame::data(bytes)));
    Response::builder()
        .header("content-type", "text/plain")
        .body(StreamBody::new(stream).boxed_unsync())
        .map_err(Refusal::internal)
}

fn tokio_stream(receiver: mpsc::Receiver<Bytes>) -> impl futures::Stream<Item = Bytes> {
    futures::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|item| (item, receiver))
    })
}

fn spawn(
    agent: SharedAgent,
    path: PathBuf,
    options: Options,
    id: String,
    ended: CancellationToken,
    sender: mpsc::Sender<Bytes>,
) {
    tokio::spawn(async move {
        let watch = watch_end(agent.clone(), id, ended.clone());
        let read = read::read(path, options, &agent.notify, ended, sender);
        let result = tokio::select! {
            result = read => result,
            never = watch => match never {},
        };
        if let Err(error) = result {
            tracing::debug!(%error, "reading a container log ended");
        }
    });
}

/// Cancels `ended` when the container has ended.
async fn watch_end(
    agent: SharedAgent,
    id: String,
    ended: CancellationToken,
) -> std::convert::Infallible {
    let mut changes = agent.changes.subscribe();
    loop {
        let state = agent.cri.container_status(&id).await;
        let running = matches!(&state, Ok(Some(s)) if s.state == i32::from(oci::cri::v1::ContainerState::ContainerRunning));
        if !running && state.is_ok() {
            ended.cancel();
            std::future::pending::<()>().await;
        }
        loop {
            match changes.recv().await {
                Ok(change) if change.id != id && !change.id.is_empty() => {}
                // Its change, an unknown one, or too many to know.
                Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => break,
                Err(_) => std::future::pending().await,
            }
        }
    }
}

/// The container whose log is asked for. One that has ended and is about to run again is the previous
/// one already: what it said is what people look for while it crashes in a loop.
fn choose<'a>(
    pod: &Pod,
    observed: &'a Observed,
    name: &str,
    previous: bool,
) -> Option<&'a ContainerView> {
    let mut views = observed
        .containers
        .iter()
        .filter(|c| c.name == name && c.state != ContainerState::Created);
    let latest = views.next()?;
    let waits = latest.state == ContainerState::Exited
        && pod.metadata.deletion_timestamp.is_none()
        && pod::container(pod, name)
            .is_some_and(|(role, spec)| pod::restarts(pod, role, &spec, latest.exit_code));
    if !previous || waits {
        return Some(latest);
    }
    views.find(|c| c.state == ContainerState::Exited)
}

fn no_log(pod: &Pod, container: &str, previous: bool) -> String {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if previous {
        return format!(
            "previous terminated container \"{container}\" in pod \"{name}\" not found"
        );
    }
    let status = pod::status(pod);
    let all = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .flatten();
    let waiting = |s: &ContainerStatus| s.state.as_ref()?.waiting.as_ref()?.reason.clone();
    let reason = all.filter(|s| s.name == container).find_map(waiting);
    match reason.as_deref() {
        Some(reason @ ("ErrImagePull" | "ImagePullBackOff")) => {
            let what = if reason == "ErrImagePull" {
                "image can't be pulled"
            } else {
                "trying and failing to pull image"
            };
            format!("container \"{container}\" in pod \"{name}\" is waiting to start: {what}")
        }
        Some(reason) => {
            format!("container \"{container}\" in pod \"{name}\" is waiting to start: {reason}")
        }
        None => format!("container \"{container}\" in pod \"{name}\" is not available"),
    }
}

/// Options of the query; `now` is where `sinceSeconds` counts from.
fn options(query: &Query, now: Timestamp) -> Result<Options, String> {
    let number = |name: &str| -> Result<Option<i64>, String> {
        match query.get(name) {
            None | Some("") => Ok(None),
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|_| format!("{name}: Invalid value: \"{text}\"")),
        }
    };
    let size = |name: &str| -> Result<Option<usize>, String> {
        let value = number(name)?;
        value
            .map(|n| {
                usize::try_from(n).map_err(|_| {
                    format!("{name}: Invalid value: {n}: must be greater than or equal to 0")
                })
            })
            .transpose()
    };
    let since = match (
        number("sinceSeconds")?,
        query.get("sinceTime").filter(|t| !t.is_empty()),
    ) {
        (Some(seconds), _) => Some(now - SignedDuration::from_secs(seconds)),
        (None, Some(time)) => Some(
            time.parse()
                .map_err(|_| format!("sinceTime: Invalid value: \"{time}\""))?,
        ),
        (None, None) => None,
    };
    let stream = match query.get("stream") {
        None | Some("" | "All") => None,
        Some("Stdout") => Some("stdout".to_owned()),
        Some("Stderr") => Some("stderr".to_owned()),
        Some(other) => {
            return Err(format!(
                "stream: Unsupported value: \"{other}\": supported values: \"All\", \"Stderr\", \"Stdout\""
            ));
        }
    };
    Ok(Options {
        follow: query.flag(["follow", "follow"]),
        tail_lines: size("tailLines")?,
        since,
        timestamps: query.flag(["timestamps", "timestamps"]),
        limit_bytes: size("limitBytes")?,
        stream,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_become_options() {
        let now = Timestamp::from_second(1000).unwrap();
        let parse = |text: &str| options(&Query::parse(text), now);
        assert_eq!(parse(""), Ok(Options::default()));
        let all = parse(
            "follow=true&tailLines=5&sinceSeconds=100&timestamps=true&limitBytes=7&stream=Stderr",
        )
        .unwrap();
        assert_eq!(all.since, Some(Timestamp::from_second(900).unwrap()));
        assert_eq!(
            (all.follow, all.tail_lines, all.timestamps, all.limit_bytes),
            (true, Some(5), true, Some(7))
        );
        assert_eq!(all.stream.as_deref(), Some("stderr"));
        for bad in ["tailLines=x", "tailLines=-1", "sinceTime=x", "stream=Both"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn previous_is_the_one_before() {
        let view = |id: &str, state| ContainerView {
            id: id.into(),
            name: "c".into(),
            state,
            ..ContainerView::default()
        };
        let pod = |policy: &str| -> Pod {
            serde_json::from_value(serde_json::json!({"metadata": {"name": "p"},
                "spec": {"restartPolicy": policy, "containers": [{"name": "c"}]}}))
            .unwrap()
        };
        let chosen = |policy: &str, latest, previous| {
            let observed = Observed {
                containers: vec![view("2", latest), view("1", ContainerState::Exited)],
                ..Observed::default()
            };
            let view = choose(&pod(policy), &observed, "c", previous);
            view.map(|v| v.id.clone()).unwrap_or_default()
        };
        let (runs, ended) = (ContainerState::Running, ContainerState::Exited);
        for (policy, latest, previous, expected) in [
            ("Always", runs, false, "2"),
            ("Always", runs, true, "1"),
            ("Always", ended, false, "2"),
            ("Always", ended, true, "2"),
            ("Never", ended, true, "1"),
        ] {
            assert_eq!(
                chosen(policy, latest, previous),
                expected,
                "{policy} {latest:?} {previous}"
            );
        }
        let none = Observed::default();
        assert!(choose(&pod("Always"), &none, "c", false).is_none());
    }
}
