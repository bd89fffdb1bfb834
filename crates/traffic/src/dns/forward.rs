//! Asking the host's resolvers about names that are not the cluster's.
//!
//! Bounded in every direction: questions under way, cached answers, their size, and the time a question may take. The
//! same question asked by several at once goes out once, which also ends loops: a question of ours that comes back to
//! us waits for itself, and both end when the time is over.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RData;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

use super::upstream::Pool;

/// How long one resolver may take.
const ATTEMPT: Duration = Duration::from_millis(1500);
/// How long a question may take in all: less than the five seconds after which clients ask again.
const DEADLINE: Duration = Duration::from_millis(4500);
/// How often the resolvers are gone through.
const ROUNDS: usize = 2;
/// Most questions under way.
const MAX_FLIGHTS: usize = 1024;
/// Most cached answers.
const MAX_CACHED: usize = 2048;
/// Longest answer that is cached, in bytes.
const MAX_CACHED_BYTES: usize = 4096;
/// Longest time an answer is cached, in seconds.
const MAX_CACHED_TTL: u32 = 30;
/// Longest answer by UDP, in bytes.
const MAX_DATAGRAM: usize = 65_535;

/// A question's bytes after its id, and whether it is asked by TCP.
type Question = (Vec<u8>, bool);
type Answer = Option<Arc<[u8]>>;

/// Asks, remembers, and joins those who ask the same.
pub(crate) struct Forwarder {
    pool: Mutex<Pool>,
    flights: Mutex<HashMap<Question, Shared<BoxFuture<'static, Answer>>>>,
    cache: Mutex<HashMap<Question, Cached>>,
}

struct Cached {
    answer: Message,
    at: Instant,
    ttl: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Forwarder {
    pub(crate) fn new(pool: Pool) -> Arc<Self> {
        Arc::new(Forwarder {
            pool: Mutex::new(pool),
            flights: Mutex::default(),
            cache: Mutex::default(),
        })
    }

    /// The resolvers' answer to a query, with the query's id; None when there is none to be had.
    pub(crate) async fn ask(self: &Arc<Self>, query: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let (id, rest) = query.split_at_checked(2)?;
        let question = (rest.to_vec(), tcp);
        let answer = match self.cached(&question) {
            Some(answer) => answer,
            None => self.join(question)?.await?.to_vec(),
        };
        let mut answer = answer;
        answer.get_mut(..2)?.copy_from_slice(id);
        Some(answer)
    }

    /// The question that is under way already, or begins now; None when too many are.
    fn join(self: &Arc<Self>, question: Question) -> Option<Shared<BoxFuture<'static, Answer>>> {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(&question) {
            return Some(flight.clone());
        }
        if flights.len() >= MAX_FLIGHTS {
            return None;
        }
        let (this, asked) = (Arc::clone(self), question.clone());
        let flight = async move {
            let answer = this.fly(&asked).await;
            if let Some(answer) = &answer {
                this.remember(&asked, answer);
            }
            lock(&this.flights).remove(&asked);
            answer
        };
        // On a task of its own, so that it ends and is forgotten even if nobody waits for it any more.
        let task = tokio::spawn(flight);
        let flight = async move { task.await.ok().flatten() }.boxed().shared();
        flights.insert(question, flight.clone());
        Some(flight)
    }

    async fn fly(&self, (rest, tcp): &Question) -> Answer {
        let deadline = Instant::now() + DEADLINE;
        let mut refused = None;
        for _ in 0..ROUNDS {
            let candidates = lock(&self.pool).candidates(Instant::now());
            for upstream in candidates {
                let attempt =
                    timeout_at(deadline, timeout(ATTEMPT, exchange(upstream, rest, *tcp)));
                match attempt.await {
                    Ok(Ok(Ok((answer, code)))) => {
                        lock(&self.pool).succeeded(upstream);
                        if !matches!(code, ResponseCode::ServFail | ResponseCode::Refused) {
                            return Some(answer.into());
                        }
                        refused = Some(answer);
                    }
                    Ok(failure) => {
                        tracing::debug!(%upstream, ?failure, "a resolver did not answer");
                        lock(&self.pool).failed(upstream, Instant::now());
                    }
                    Err(_) => {
                        lock(&self.pool).failed(upstream, Instant::now());
                        return refused.map(Arc::from);
                    }
                }
            }
            if refused.is_some() {
                break;
            }
        }
        refused.map(Arc::from)
    }

    fn cached(&self, question: &Question) -> Option<Vec<u8>> {
        let mut cache = lock(&self.cache);
        let cached = cache.get(question)?;
        let age = u32::try_from(cached.at.elapsed().as_secs()).unwrap_or(u32::MAX);
        if age >= cached.ttl {
            cache.remove(question);
            return None;
        }
        let mut answer = cached.answer.clone();
        for record in answer
            .answers
            .iter_mut()
            .chain(&mut answer.authorities)
            .chain(&mut answer.additionals)
        {
            record.ttl = record.ttl.saturating_sub(age);
        }
        answer.to_vec().ok()
    }

    fn remember(&self, question: &Question, answer: &[u8]) {
        if answer.len() > MAX_CACHED_BYTES {
            return;
        }
        let Ok(answer) = Message::from_vec(answer) else {
            return;
        };
        let Some(ttl) = time_to_live(&answer)
            .map(|ttl| ttl.min(MAX_CACHED_TTL))
            .filter(|ttl| *ttl > 0)
        else {
            return;
        };
        let mut cache = lock(&self.cache);
        if cache.len() >= MAX_CACHED {
            cache.retain(|_, c| c.at.elapsed().as_secs() < u64::from(c.ttl));
        }
        if cache.len() < MAX_CACHED {
            cache.insert(
                question.clone(),
                Cached {
                    answer,
                    at: Instant::now(),
                    ttl,
                },
            );
        }
    }
}

/// How long an answer holds, in seconds; None if it does not say or should not be kept.
fn time_to_live(answer: &Message) -> Option<u32> {
    if answer.metadata.truncation
        || !matches!(
            answer.metadata.response_code,
            ResponseCode::NoError | ResponseCode::NXDomain
        )
    {
        return None;
    }
    if let Some(ttl) = answer.answers.iter().map(|r| r.ttl).min() {
        return Some(ttl);
    }
    answer
        .authorities
        .iter()
        .find_map(|record| match &record.data {
            RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
            _ => None,
        })
}

/// Sends the query with an id and from a port that nobody can guess, and waits for the answer to it.
async fn exchange(
    upstream: SocketAddr,
    rest: &[u8],
    tcp: bool,
) -> io::Result<(Vec<u8>, ResponseCode)> {
    let id: [u8; 2] = rand::random();
    let query = [&id[..], rest].concat();
    if tcp {
        let mut stream = TcpStream::connect(upstream).await?;
        let length = u16::try_from(query.len()).map_err(io::Error::other)?;
        stream
            .write_all(&[&length.to_be_bytes()[..], &query].concat())
            .await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await?;
        let code = answers(&query, &answer).ok_or(io::ErrorKind::InvalidData)?;
        return Ok((answer, code));
    }
    let own: SocketAddr = match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(own).await?;
    socket.connect(upstream).await?;
    socket.send(&query).await?;
    let mut buf = vec![0; MAX_DATAGRAM];
    loop {
        let length = socket.recv(&mut buf).await?;
        // Anything else is forged or late.
        if let Some(code) = answers(&query, &buf[..length]) {
            buf.truncate(length);
            return Ok((buf, code));
        }
    }
}

/// The response code, if the answer is one to the query.
fn answers(query: &[u8], answer: &[u8]) -> Option<ResponseCode> {
    let (query, answer) = (
        Message::from_vec(query).ok()?,
        Message::from_vec(answer).ok()?,
    );
    let same = query.metadata.id == answer.metadata.id
        && answer.metadata.message_type == hickory_proto::op::MessageType::Response
        && query.queries == answer.queries;
    same.then_some(answer.metadata.response_code)
}
