//! The way of every request: who, may they, what, answer.
//!
//! Failures of any step become a Status here and nowhere else; a panic in a handler is a 500 of that request only.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use api::Status;
use futures::FutureExt;
use http::{HeaderMap, HeaderValue, Method, header};

use super::body::{Request, Response};
use super::request_info::{Query, RequestInfo};
use super::respond::{self, Style};
use crate::ApiServer;
use crate::auth::{Attributes, Credentials, UserInfo, impersonate};
use crate::registry::{Fail, Warnings, new_uid};

/// Longest time of a request that is no stream.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Where a request comes from.
#[derive(Clone)]
pub enum Peer {
    /// A connection.
    Socket {
        /// Whom the verified client certificate of its TLS session names.
        user: Option<Arc<UserInfo>>,
        /// The other end.
        address: SocketAddr,
    },
    /// A component of this process.
    Internal(Arc<UserInfo>),
}

/// A request on its way.
pub struct Call {
    /// What is asked.
    pub info: Arc<RequestInfo>,
    /// Query parameters.
    pub query: Query,
    /// Who asks.
    pub user: Arc<UserInfo>,
    /// How answers are written.
    pub style: Style,
    /// Warnings for the response.
    pub warnings: Warnings,
}

impl ApiServer {
    /// Answers one request.
    pub async fn handle(self: &Arc<Self>, request: Request, peer: Peer) -> Response {
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let info = RequestInfo::parse(request.method(), request.uri().path(), &query);
        let info = Arc::new(info);
        let style = match &peer {
            Peer::Socket { .. } => Style::of(request.headers(), &query),
            Peer::Internal(_) => Style::plain(request.headers()),
        };
        let started = tokio::time::Instant::now();
        let watched = self.metrics.begin(&info);
        let long = info.long_running();
        let labels = info.clone();
        let work = AssertUnwindSafe(self.answer(
            request,
            peer,
            Call {
                info,
                query,
                user: Arc::default(),
                style,
                warnings: Warnings::default(),
            },
        ))
        .catch_unwind();
        let outcome = if long {
            Ok(work.await)
        } else {
            tokio::time::timeout(REQUEST_TIMEOUT, work).await
        };
        let mut response = match outcome {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => {
                tracing::error!(verb = labels.verb, path = labels.path, "a handler panicked");
                respond::status(
                    &Status::internal("the server made a mistake while handling the request"),
                    style,
                )
            }
            Err(_) => respond::status(
                &Status::timeout("request did not complete within the allotted timeout"),
                style,
            ),
        };
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::from_str(&new_uid()) {
            headers.insert("audit-id", id);
        }
        headers
            .entry(header::CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-cache, private"));
        self.metrics.end(
            watched,
            &labels,
            response.status().as_u16(),
            started.elapsed(),
        );
        response
    }

    async fn answer(self: &Arc<Self>, request: Request, peer: Peer, mut call: Call) -> Response {
        let style = call.style;
        // The body cannot be shared between threads, so that only the head may be borrowed while waiting.
        let (head, body) = request.into_parts();
        let mut response = match self.authorized(&head.headers, &peer, &mut call).await {
            Ok(()) => match self.limited(&peer, &call) {
                Ok(_slot) => self.dispatch(Request::from_parts(head, body), &call).await,
                Err(status) => Err(status),
            },
            Err(status) => Err(status),
        }
        .unwrap_or_else(|failure| respond::status(&failure, style));
        respond::warn(&mut response, call.warnings.take());
        response
    }

    /// Bounds the requests of clients under way; components of this process are bounded by their own queues.
    fn limited(
        &self,
        peer: &Peer,
        call: &Call,
    ) -> Result<Option<tokio::sync::OwnedSemaphorePermit>, Fail> {
        if matches!(peer, Peer::Internal(_)) || call.info.long_running() {
            return Ok(None);
        }
        let slots = match call.info.verb.as_str() {
            "get" | "list" | "head" | "options" => &self.reads,
            _ => &self.writes,
        };
        slots.clone().try_acquire_owned().map(Some).map_err(|_| {
            Box::new(Status::too_many_requests(
                "Too many requests, please try again later.",
                1,
            ))
        })
    }

    /// Finds out who asks and refuses what they may not.
    async fn authorized(
        &self,
        headers: &HeaderMap,
        peer: &Peer,
        call: &mut Call,
    ) -> Result<(), Fail> {
        call.user = match peer {
            Peer::Internal(user) => user.clone(),
            Peer::Socket { user, .. } => {
                let credentials = Credentials {
                    certificate: user.as_ref(),
                    bearer: bearer(headers),
                };
                let now = self.registry.now();
                let user = self.authenticator.authenticate(credentials, now).await;
                user.map_err(|_| Box::new(Status::unauthorized()))?
            }
        };
        let asked = impersonate::requested(headers, &call.user);
        if let Some((user, needed)) =
            asked.map_err(|e| Box::new(Status::bad_request(e.to_string())))?
        {
            for attributes in &needed {
                self.authorize(attributes).await?;
            }
            call.user = Arc::new(user);
        }
        self.authorize(&attributes(&call.info, &call.user)).await
    }

    /// 403 in upstream's words unless the request is allowed.
    pub(crate) async fn authorize(&self, attributes: &Attributes) -> Result<(), Fail> {
        let decision = self.authorizer.decide(attributes).await;
        if decision.allowed() {
            return Ok(());
        }
        let mut why = attributes.denied_text();
        if !decision.reason().is_empty() {
            why = format!("{why}: {}", decision.reason());
        }
        Err(Box::new(Status::forbidden(
            &attributes.group,
            &attributes.resource,
            &attributes.name,
            &why,
        )))
    }

    async fn dispatch(self: &Arc<Self>, request: Request, call: &Call) -> Result<Response, Fail> {
        // Boxed, as all of `serve_resource` but reading one object: a request is moved several times before it begins,
        // with the room that its largest answer would take.
        if let Some(remote) = self.aggregation.route(&call.info) {
            Box::pin(self.serve_remote(request, call, &remote)).await
        } else if call.info.is_resource {
            self.serve_resource(request, call).await
        } else {
            let (parts, _) = request.into_parts();
            Box::pin(self.serve_path(&parts.method, &parts.headers, call)).await
        }
    }
}

/// What is asked of the authorizer.
pub fn attributes(info: &RequestInfo, user: &Arc<UserInfo>) -> Attributes {
    let mut attributes = Attributes {
        user: user.clone(),
        verb: info.verb.clone(),
        ..Attributes::default()
    };
    if info.is_resource {
        attributes.group = info.group.clone();
        attributes.version = info.version.clone();
        attributes.resource = info.resource.clone();
        attributes.subresource = info.subresource.clone();
        attributes.namespace = info.namespace.clone();
        attributes.name = info.name.clone();
    } else {
        attributes.path = info.path.clone();
    }
    attributes
}

/// The token of `Authorization: Bearer`, or of the WebSocket subprotocol that browsers use instead.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim())
        .filter(|t| !t.is_empty())
}

/// Whether the method reads only.
pub fn reads(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}
