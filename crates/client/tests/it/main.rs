//! The caches against a server that says what a test tells it to.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use client::{Cache, Caches, Client, Key, Scope};
use futures::StreamExt;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{StreamBody, combinators::BoxBody};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

type Body = BoxBody<bytes::Bytes, std::io::Error>;

/// One answer of the server.
enum Answer {
    /// A list page or a Status.
    Json(u16, Value),
    /// Lines of a watch, after which it stays open (`true`) or ends.
    Watch(Vec<Value>, bool),
}

/// Answers in order and notes what was asked; when the script is over, watches stay silent.
fn scripted(script: Vec<Answer>) -> (Client, Arc<Mutex<Vec<String>>>) {
    let script = Arc::new(Mutex::new(VecDeque::from(script)));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        log.lock()
            .unwrap()
            .push(request.uri().query().unwrap_or_default().to_owned());
        let answer = script.lock().unwrap().pop_front();
        async move { Ok::<_, Infallible>(respond(answer)) }
    });
    (client::in_process(service), asked)
}

fn respond(answer: Option<Answer>) -> Response<Body> {
    let (code, chunks, open) = match answer {
        Some(Answer::Json(code, body)) => (code, vec![body.to_string()], false),
        Some(Answer::Watch(lines, open)) => {
            // Split in the middle of lines, as networks do.
            let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
            let (a, b) = text.split_at(text.len() / 2);
            (200, vec![a.to_owned(), b.to_owned()], open)
        }
        None => (200, Vec::new(), true),
    };
    let data =
        futures::stream::iter(chunks).map(|chunk| Ok(Frame::data(bytes::Bytes::from(chunk))));
    let rest = if open {
        futures::stream::pending().boxed()
    } else {
        futures::stream::empty().boxed()
    };
    let body = BoxBody::new(StreamBody::new(data.chain(rest).boxed()).into_sync());
    Response::builder().status(code).body(body).unwrap()
}

/// Streams that are only `Send` as bodies that are `Sync` too.
trait IntoSync: Sized {
    fn into_sync(self) -> SyncBody<Self>;
}

impl<B> IntoSync for B {
    fn into_sync(self) -> SyncBody<Self> {
        SyncBody(Mutex::new(self))
    }
}

struct SyncBody<B>(Mutex<B>);

impl<B: http_body::Body + Unpin> http_body::Body for SyncBody<B> {
    type Data = B::Data;
    type Error = B::Error;
    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let inner = self.get_mut().0.get_mut().unwrap();
        std::pin::Pin::new(inner).poll_frame(context)
    }
}

fn object(name: &str, revision: u64) -> Value {
    json!({"metadata": {"name": name, "namespace": "n", "uid": name,
        "resourceVersion": revision.to_string()}, "data": {"at": revision.to_string()}})
}

fn list(items: &[(&str, u64)], revision: u64, token: &str) -> Answer {
    let items: Vec<_> = items.iter().map(|(name, at)| object(name, *at)).collect();
    let metadata = json!({"resourceVersion": revision.to_string(), "continue": token});
    Answer::Json(200, json!({"metadata": metadata, "items": items}))
}

fn event(kind: &str, name: &str, revision: u64) -> Value {
    json!({"type": kind, "object": object(name, revision)})
}

fn gone() -> Value {
    json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"})
}

fn start(client: Client) -> (Cache<ConfigMap>, Arc<Mutex<Vec<String>>>) {
    let cache = Caches::new(client).get::<ConfigMap>(Scope::all().namespace("n").labels("a=b"));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    cache.on_change(move |change| {
        let of = |e: &Option<Arc<client::Entry>>| e.as_ref().map_or(0, |e| e.revision);
        let line = format!(
            "{} {}->{}",
            change.key.name,
            of(&change.old),
            of(&change.new)
        );
        log.lock().unwrap().push(line);
    });
    (cache, seen)
}

async fn until(what: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain");
}

#[tokio::test]
async fn a_cache_lists_in_pages_then_follows_and_resumes() {
    let (client, asked) = scripted(vec![
        list(&[("a", 1), ("b", 2)], 5, "next"),
        list(&[("c", 3)], 5, ""),
        Answer::Watch(
            vec![event("MODIFIED", "a", 6), event("ADDED", "d", 7)],
            false,
        ),
        Answer::Watch(
            vec![json!({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}})],
            false,
        ),
        Answer::Watch(vec![event("DELETED", "b", 10)], true),
    ]);
    let (cache, seen) = start(client);
    cache.synced().await;
    assert!(cache.len() >= 3, "complete when synced");
    cache.caught_up(10).await.unwrap();
    let names: Vec<_> = cache.entries().iter().map(|e| e.key.to_string()).collect();
    assert_eq!(names, ["n/a", "n/c", "n/d"]);
    let a = cache.get(&Key::new("n", "a")).unwrap().unwrap();
    assert_eq!(a.data.unwrap()["at"], "6");
    let expected = ["a 0->1", "b 0->2", "c 0->3", "a 1->6", "d 0->7", "b 10->0"];
    assert_eq!(*seen.lock().unwrap(), expected);
    let asked = asked.lock().unwrap();
    assert!(
        asked[0].starts_with("labelSelector=a%3Db&limit=500"),
        "{}",
        asked[0]
    );
    assert!(asked[1].contains("continue=next"));
    let from = |query: &str| query.split("resourceVersion=").nth(1).map(str::to_owned);
    let revisions: Vec<_> = asked[2..].iter().filter_map(|q| from(q)).collect();
    assert_eq!(revisions, ["5", "7", "9"]);
}

#[tokio::test]
async fn a_lost_watch_lists_again_and_tells_only_what_changed() {
    let (client, _) = scripted(vec![
        list(&[("a", 1), ("b", 2)], 5, ""),
        Answer::Watch(vec![json!({"type": "ERROR", "object": gone()})], false),
        list(&[("a", 1), ("c", 8)], 9, ""),
        Answer::Json(410, gone()),
        Answer::Json(
            500,
            json!({"kind": "Status", "code": 500, "message": "ill"}),
        ),
        list(&[("a", 1), ("c", 8)], 9, ""),
    ]);
    let (cache, seen) = start(client);
    cache.caught_up(9).await.unwrap();
    until(|| !cache.contains(&Key::new("n", "b"))).await;
    let expected = ["a 0->1", "b 0->2", "c 0->8", "b 2->0"];
    until(|| *seen.lock().unwrap() == expected).await;
}

#[tokio::test]
async fn handlers_are_told_what_is_there_and_no_more_once_dropped() {
    let (client, _) = scripted(vec![
        list(&[("a", 1)], 5, ""),
        Answer::Watch(vec![event("MODIFIED", "a", 6)], true),
    ]);
    let caches = Caches::new(client);
    let cache = caches.get::<ConfigMap>(Scope::all());
    cache.synced().await;
    let count = Arc::new(Mutex::new(0));
    let log = count.clone();
    let subscription = cache.subscribe(move |_| *log.lock().unwrap() += 1);
    cache.caught_up(6).await.unwrap();
    until(|| *count.lock().unwrap() >= 1).await;
    drop(subscription);
    assert_eq!(Arc::strong_count(&count), 1, "the handler is gone");
    let again = caches.get::<ConfigMap>(Scope::all());
    assert!(again.is_synced(), "one watch per resource and scope");
}
