//! What lies between the parts of the cluster and its API server: delays, failures and partitions,
//! as the present weather has it, all drawn from the seed.
//!
//! ```text
//! part ──> Link ──(delay, lost request, refusal)──> API server ──(lost answer, delay)──> part
//!                                                       └── watch: lag, breaks, partitions
//! ```
//!
//! A request may fail before it has had any effect or after all of it; who asked cannot tell which.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use apiserver::{ApiServer, auth::UserInfo, http::body};
use bytes::Bytes;
use client::Client;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use rand::{Rng, rngs::StdRng};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::{BoxError, Service};

use crate::oracle::Oracle;

/// A part of the cluster that is killed and cut off as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// All controllers.
    Controllers,
    /// The scheduler.
    Scheduler,
    /// The simulated nodes' agents.
    Nodes,
    /// Who gives the cluster its work.
    User,
}

/// How bad things are: each a chance from 0 to 1, or a longest time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Longest usual time of a request on its way, and of an answer.
    pub latency: Duration,
    /// A request or its answer takes seconds.
    pub slow: f64,
    /// A request never arrives.
    pub lose_request: f64,
    /// A request is carried out, and its answer never arrives.
    pub lose_answer: f64,
    /// A request is refused with 429, 500 or 503.
    pub refuse: f64,
    /// A change is refused with 409, as if somebody else had been faster.
    pub conflict: f64,
    /// A watch breaks with its next event.
    pub break_watch: f64,
    /// An event of a watch is held back, and all after it.
    pub lag: f64,
    /// For so long at most.
    pub lag_time: Duration,
}

/// Longest wait for an answer from behind a partition before a part gives up.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a slow request takes at most.
const SLOW: Duration = Duration::from_secs(4);
/// An agent is told soon that its node is cut off: its other nodes must not wait.
const UNREACHABLE: Duration = Duration::from_millis(50);

/// An API server that runs.
#[derive(Clone)]
pub struct Serving {
    /// The server.
    pub api: Arc<ApiServer>,
    /// Cancelled when it is killed.
    pub down: CancellationToken,
}

/// The network. One for the whole cluster.
pub struct Network {
    state: Mutex<State>,
    /// Tells of every change of what is cut off.
    changes: watch::Sender<()>,
    oracle: Arc<Oracle>,
}

struct State {
    chance: StdRng,
    weather: Weather,
    server: Option<Serving>,
    cut: BTreeSet<Party>,
    cut_nodes: BTreeSet<String>,
}

impl Network {
    /// A network in fair weather, without a server.
    pub fn new(chance: StdRng, oracle: Arc<Oracle>) -> Arc<Self> {
        let state = State {
            chance,
            weather: Weather::default(),
            server: None,
            cut: BTreeSet::new(),
            cut_nodes: BTreeSet::new(),
        };
        Arc::new(Self {
            state: Mutex::new(state),
            changes: watch::Sender::new(()),
            oracle,
        })
    }

    /// A client of `user` over this network; it is dead once `life` is cancelled.
    pub fn client(
        self: &Arc<Self>,
        party: Party,
        user: &str,
        groups: &[&str],
        life: CancellationToken,
    ) -> Client {
        client::in_process(Link {
            network: self.clone(),
            party,
            user: UserInfo::new(user, groups),
            life,
        })
    }

    /// Changes the weather.
    pub fn set_weather(&self, weather: Weather) {
        self.lock().weather = weather;
    }

    /// Puts a server there, or takes it away.
    pub fn set_server(&self, server: Option<Serving>) {
        self.lock().server = server;
    }

    /// The server that runs.
    pub fn server(&self) -> Option<Serving> {
        self.lock().server.clone()
    }

    /// Cuts a part off, or joins it again.
    pub fn cut(&self, party: Party, cut: bool) {
        let mut state = self.lock();
        if cut {
            state.cut.insert(party);
        } else {
            state.cut.remove(&party);
        }
        self.changes.send_replace(());
    }

    /// Cuts off what concerns this node, or joins it again.
    pub fn cut_node(&self, node: &str, cut: bool) {
        let mut state = self.lock();
        if cut {
            state.cut_nodes.insert(node.to_owned());
        } else {
            state.cut_nodes.remove(node);
        }
    }

    /// A time up to `longest`, drawn.
    pub fn delay(&self, longest: Duration) -> Duration {
        let millis = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.lock().chance.random_range(0..=millis))
    }

    /// A time that a commit takes on its way to the disk, drawn.
    pub fn disk_delay(&self) -> Duration {
        let longest = self.lock().weather.latency / 2;
        self.delay(longest)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_cut(&self, party: Party) -> bool {
        self.lock().cut.contains(&party)
    }

    /// Waits until `party` is not cut off.
    async fn joined(&self, party: Party) {
        let mut changes = self.changes.subscribe();
        while self.is_cut(party) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

/// What happens to one request, all drawn before it is sent.
struct Fate {
    before: Duration,
    after: Duration,
    lose_request: bool,
    lose_answer: bool,
    refusal: Option<(StatusCode, &'static str)>,
    /// The server carries it out even if who asked is killed meanwhile.
    carried_out: bool,
}

impl State {
    fn fate(&mut self, request: &Request<Body>) -> Fate {
        let weather = self.weather;
        let is_read = request.method() == Method::GET;
        let is_change = request.method() == Method::PUT || request.method() == Method::PATCH;
        let mut on_the_way = || {
            let slow = self.chance.random_bool(weather.slow);
            let longest = if slow { SLOW } else { weather.latency };
            let millis = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
            Duration::from_millis(self.chance.random_range(0..=millis))
        };
        let (before, after) = (on_the_way(), on_the_way());
        let lose_request = self.chance.random_bool(weather.lose_request);
        let lose_answer = self.chance.random_bool(weather.lose_answer) && !is_read;
        let refused = self.chance.random_bool(weather.refuse);
        let conflicts = self.chance.random_bool(weather.conflict) && is_change;
        let which = self.chance.random_range(0..3);
        let refusal = match (refused, conflicts) {
            (true, _) => Some(REFUSALS[which]),
            (false, true) => Some(CONFLICT),
            (false, false) => None,
        };
        Fate {
            before,
            after,
            lose_request,
            lose_answer,
            refusal,
            carried_out: self.chance.random_bool(0.5),
        }
    }
}

const REFUSALS: [(StatusCode, &str); 3] = [
    (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
    (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
    (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
];
const CONFLICT: (StatusCode, &str) = (StatusCode::CONFLICT, "Conflict");

/// The way of one party's requests.
#[derive(Clone)]
struct Link {
    network: Arc<Network>,
    party: Party,
    user: UserInfo,
    life: CancellationToken,
}

impl Service<Request<Body>> for Link {
    type Response = Response<body::ResponseBody>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let link = self.clone();
        Box::pin(async move {
            if link.life.is_cancelled() {
                return Err("the process is dead".into());
            }
            tokio::select! {
                biased;
                () = link.life.cancelled() => Err("the process is dead".into()),
                answer = link.carry(request) => answer,
            }
        })
    }
}

impl Link {
    async fn carry(
        &self,
        request: Request<Body>,
    ) -> Result<Response<body::ResponseBody>, BoxError> {
        let network = &self.network;
        let fate = network.lock().fate(&request);
        tokio::time::sleep(fate.before).await;
        let about = network.oracle.node_of(self.party, &request);
        self.pass(about).await?;
        if fate.lose_request {
            return Err("connection reset before the request".into());
        }
        let server = network.server().ok_or("connection refused")?;
        if let Some((code, reason)) = fate.refusal {
            return Ok(refusal(code, reason));
        }
        let is_watch = request
            .uri()
            .query()
            .is_some_and(|q| q.contains("watch=true"));
        let is_write = request.method() != Method::GET;
        network.oracle.sent(self.party, &request);
        let what = format!("{} {}", request.method(), request.uri().path());
        let answer = self.handle(&server, request, fate.carried_out).await?;
        if is_watch && answer.status().is_success() {
            tokio::time::sleep(fate.after).await;
            self.pass_back(&server).await?;
            return Ok(answer.map(|body| self.watched(server, body)));
        }
        let (head, body) = answer.into_parts();
        let bytes = body.collect().await?.to_bytes();
        if is_write {
            network
                .oracle
                .carried_out(self.party, &what, head.status, &bytes);
        }
        if fate.lose_answer {
            network
                .oracle
                .note(&format!("lost the answer to {what} of {:?}", self.party));
            return Err("connection reset before the answer".into());
        }
        tokio::time::sleep(fate.after).await;
        self.pass_back(&server).await?;
        Ok(Response::from_parts(head, body::full(bytes)))
    }

    /// Lets the server work on it; what it had not finished when it was killed is not done.
    async fn handle(
        &self,
        server: &Serving,
        request: Request<Body>,
        carried_out: bool,
    ) -> Result<Response<body::ResponseBody>, BoxError> {
        let (down, mut service) = (
            server.down.clone(),
            server.api.in_process(self.user.clone()),
        );
        let work = async move {
            tokio::select! {
                biased;
                () = down.cancelled() => Err(BoxError::from("the server was killed")),
                answer = service.call(request) => Ok(answer?),
            }
        };
        if carried_out {
            tokio::spawn(work).await?
        } else {
            work.await
        }
    }

    /// Waits at a partition, of this party or of the node that it is `about`, for as long as anybody would.
    async fn pass(&self, about: Option<String>) -> Result<(), BoxError> {
        if let Some(node) = about
            && self.network.lock().cut_nodes.contains(&node)
        {
            tokio::time::sleep(UNREACHABLE).await;
            return Err("no route to host".into());
        }
        let patience = self.network.delay(PATIENCE);
        let joined = tokio::time::timeout(patience, self.network.joined(self.party));
        joined.await.map_err(|_| "connection timed out".into())
    }

    async fn pass_back(&self, server: &Serving) -> Result<(), BoxError> {
        let patience = self.network.delay(PATIENCE);
        let joined = tokio::time::timeout(patience, self.network.joined(self.party));
        joined.await.map_err(|_| "connection timed out")?;
        if server.down.is_cancelled() {
            return Err("connection reset by the killed server".into());
        }
        Ok(())
    }

    /// A watch's events as they arrive here: late at times, and only until it breaks.
    fn watched(&self, server: Serving, inner: body::ResponseBody) -> body::ResponseBody {
        let start = Watched {
            link: self.clone(),
            server,
            inner,
            seen: 0,
        };
        body::stream(futures::stream::unfold(start, |mut watched| async move {
            watched.next().await.map(|piece| (piece, watched))
        }))
    }
}

struct Watched {
    link: Link,
    server: Serving,
    inner: body::ResponseBody,
    /// The newest revision that was told.
    seen: u64,
}

impl Watched {
    async fn next(&mut self) -> Option<Result<Bytes, BoxError>> {
        let piece = tokio::select! {
            biased;
            () = self.link.life.cancelled() => return None,
            () = self.server.down.cancelled() => return Some(Err("connection reset".into())),
            frame = self.inner.frame() => match frame? {
                Ok(frame) => frame.into_data().unwrap_or_default(),
                Err(error) => return Some(Err(error)),
            },
        };
        let network = self.link.network.clone();
        let (breaks, lag) = {
            let mut state = network.lock();
            let weather = state.weather;
            let breaks = state.chance.random_bool(weather.break_watch);
            let lags = state.chance.random_bool(weather.lag);
            (
                breaks,
                if lags {
                    weather.lag_time
                } else {
                    weather.latency
                },
            )
        };
        if breaks {
            return Some(Err("the watch broke".into()));
        }
        tokio::time::sleep(network.delay(lag)).await;
        network.joined(self.link.party).await;
        network.oracle.watched(&piece, &mut self.seen);
        Some(Ok(piece))
    }
}

fn refusal(code: StatusCode, reason: &str) -> Response<body::ResponseBody> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "refused by the simulation", "reason": reason, "code": code.as_u16(),
    });
    let mut response = Response::new(body::full(status.to_string()));
    *response.status_mut() = code;
    response
}
