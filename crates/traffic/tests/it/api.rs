//! A fake API server of Services, EndpointSlices and Nodes: lists, and watches that tell what the test puts in.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use futures::{StreamExt, stream};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::{Value, json};

pub const SERVICES: &str = "/api/v1/services";
pub const NODES: &str = "/api/v1/nodes";
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

#[derive(Clone, Default)]
pub struct Api(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    revision: u64,
    objects: Vec<(&'static str, Value)>,
    watchers: Vec<(String, UnboundedSender<Bytes>)>,
}

type Body = BoxBody<Bytes, Infallible>;

impl Api {
    /// Adds an object, or replaces the one of its name, and tells the watchers.
    pub fn put(&self, path: &'static str, mut object: Value) {
        let mut state = self.0.lock().unwrap();
        state.revision += 1;
        object["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        object["metadata"]["uid"] = object["metadata"]["name"].clone();
        let name = object["metadata"]["name"].clone();
        let before = state.objects.len();
        state
            .objects
            .retain(|(p, o)| *p != path || o["metadata"]["name"] != name);
        let kind = if state.objects.len() < before {
            "MODIFIED"
        } else {
            "ADDED"
        };
        state.objects.push((path, object.clone()));
        let line = Bytes::from(format!("{}\n", json!({"type": kind, "object": object})));
        state
            .watchers
            .retain(|(p, watcher)| p != path || watcher.unbounded_send(line.clone()).is_ok());
    }

    pub fn caches(&self) -> client::Caches {
        let api = self.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let response = http::Response::new(api.answer(request.uri()));
            async move { Ok::<_, Infallible>(response) }
        });
        client::Caches::new(client::in_process(service))
    }

    fn answer(&self, uri: &http::Uri) -> Body {
        let mut state = self.0.lock().unwrap();
        if uri.query().is_some_and(|q| q.contains("watch=")) {
            let (watcher, lines) = unbounded();
            state.watchers.push((uri.path().to_string(), watcher));
            // What was put between the list and this watch is told again; caches know it by its revision.
            let known = state.objects.iter().filter(|(path, _)| *path == uri.path());
            let known: Vec<_> = known
                .map(|(_, o)| {
                    Bytes::from(format!("{}\n", json!({"type": "MODIFIED", "object": o})))
                })
                .collect();
            let frames = stream::iter(known)
                .chain(lines)
                .map(|line| Ok(Frame::data(line)));
            return BodyExt::boxed(StreamBody::new(frames));
        }
        let items: Vec<_> = state
            .objects
            .iter()
            .filter(|(path, _)| *path == uri.path())
            .map(|(_, o)| o.clone())
            .collect();
        let (version, kind) = match uri.path() {
            SERVICES => ("v1", "ServiceList"),
            NODES => ("v1", "NodeList"),
            _ => ("discovery.k8s.io/v1", "EndpointSliceList"),
        };
        let list = json!({"apiVersion": version, "kind": kind, "items": items,
            "metadata": {"resourceVersion": state.revision.to_string()}});
        Full::new(Bytes::from(list.to_string())).boxed()
    }
}
