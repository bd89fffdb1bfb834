//! Sockets: datagrams and streams in, answers out. What the zone knows is answered at once, in the receiving task.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, ResponseCode};
use hickory_proto::rr::Name;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::answer::{Domain, Outcome, refuse};
use super::forward::Forwarder;
use super::zone::Zone;

/// Longest query by UDP, in bytes.
const MAX_QUERY: usize = 4096;
/// Longest answer by UDP to a client that says nothing, and to any other: what passes every network whole.
const MAX_ANSWER: (u16, u16) = (512, 1232);
/// Most connections at a time.
const MAX_CONNECTIONS: usize = 256;
/// Most datagrams whose answers are being fetched.
const MAX_PENDING: usize = 1024;
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// Pause after a failure to accept, so that a lack of descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The server's sockets, bound.
#[derive(Debug)]
pub struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// Binds both sockets to the same address; port 0 takes a free one.
    ///
    /// # Errors
    /// When the address is not this host's or the port is taken.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let tcp = TcpListener::bind(address).await?;
        let udp = UdpSocket::bind(tcp.local_addr()?).await?;
        Ok(Sockets { udp, tcp })
    }

    /// Where they are bound.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }
}

/// Who answers.
pub(crate) struct Handler {
    pub(crate) domain: Domain,
    pub(crate) zone: RwLock<Zone>,
    pub(crate) forwarder: Arc<Forwarder>,
    turn: AtomicUsize,
}

/// What to do with a packet.
enum Step {
    /// Nothing: it is no query.
    Ignore,
    Reply(Vec<u8>),
    /// Others must be asked.
    Fetch(Box<Fetch>),
}

struct Fetch {
    request: Message,
    /// The query as it came, to be passed on as it is.
    packet: Vec<u8>,
    /// An answer of ours and the name it stands for.
    follow: Option<(Message, Name)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Transport {
    Udp,
    Tcp,
}

impl Handler {
    pub(crate) fn new(domain: Domain, forwarder: Arc<Forwarder>) -> Arc<Self> {
        Arc::new(Handler {
            domain,
            zone: RwLock::default(),
            forwarder,
            turn: AtomicUsize::new(0),
        })
    }

    fn begin(&self, packet: &[u8], transport: Transport) -> Step {
        let Ok(request) = Message::from_vec(packet) else {
            return malformed(packet);
        };
        if request.metadata.message_type != MessageType::Query {
            return Step::Ignore;
        }
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return Step::Reply(encode(
                refuse(&request, ResponseCode::BADVERS),
                &request,
                transport,
            ));
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let outcome = {
            let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
            self.domain.answer(&request, &zone, turn)
        };
        let follow = match outcome {
            Outcome::Answer(response) => {
                return Step::Reply(encode(*response, &request, transport));
            }
            Outcome::Forward => None,
            Outcome::Follow(response, target) => Some((*response, target)),
        };
        Step::Fetch(Box::new(Fetch {
            request,
            packet: packet.to_vec(),
            follow,
        }))
    }

    async fn finish(&self, fetch: Fetch, transport: Transport) -> Vec<u8> {
        let Fetch {
            request,
            packet,
            follow,
        } = fetch;
        let tcp = transport == Transport::Tcp;
        let Some((mut response, target)) = follow else {
            return match self.forwarder.ask(&packet, tcp).await {
                Some(answer) => answer,
                None => encode(
                    refuse(&request, ResponseCode::ServFail),
                    &request,
                    transport,
                ),
            };
        };
        let mut next = request.clone();
        for query in &mut next.queries {
            query.set_name(target.clone());
        }
        // By TCP, so that nothing is cut off that would fit.
        let answer = match next.to_vec() {
            Ok(query) => self
                .forwarder
                .ask(&query, true)
                .await
                .and_then(|a| Message::from_vec(&a).ok()),
            Err(_) => None,
        };
        match answer {
            Some(answer) => {
                response.metadata.response_code = answer.metadata.response_code;
                response.answers.extend(answer.answers);
            }
            None => response.metadata.response_code = ResponseCode::ServFail,
        }
        encode(response, &request, transport)
    }
}

fn malformed(packet: &[u8]) -> Step {
    const RESPONSE: u8 = 0x80;
    match packet {
        [high, low, flags, ..] if packet.len() >= 12 && flags & RESPONSE == 0 => {
            let id = u16::from_be_bytes([*high, *low]);
            let code = ResponseCode::FormErr;
            let error = Message::error_msg(id, hickory_proto::op::OpCode::Query, code);
            error.to_vec().map_or(Step::Ignore, Step::Reply)
        }
        _ => Step::Ignore,
    }
}

/// The response's bytes, cut to what the client takes by UDP.
fn encode(mut response: Message, request: &Message, transport: Transport) -> Vec<u8> {
    let mut limit = u16::MAX;
    if let Some(theirs) = &request.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_ANSWER.1);
        response.set_edns(edns);
        limit = theirs.max_payload().clamp(MAX_ANSWER.0, MAX_ANSWER.1);
    }
    if transport == Transport::Tcp {
        limit = u16::MAX;
    } else if request.edns.is_none() {
        limit = MAX_ANSWER.0;
    }
    loop {
        let bytes = response.to_vec().unwrap_or_default();
        if !bytes.is_empty() && bytes.len() <= usize::from(limit) {
            return bytes;
        }
        // What is only there to help goes first; what is missing after that is to be asked for by TCP.
        if !response.additionals.is_empty() {
            response.additionals.clear();
        } else if response.answers.is_empty() && response.authorities.is_empty() {
            return refuse(request, ResponseCode::ServFail)
                .to_vec()
                .unwrap_or_default();
        } else {
            response.metadata.truncation = true;
            response.authorities.clear();
            response.answers.truncate(response.answers.len() / 2);
        }
    }
}

/// Serves until `shutdown`.
pub(crate) async fn serve(sockets: Sockets, handler: Arc<Handler>, shutdown: CancellationToken) {
    let udp = serve_udp(Arc::new(sockets.udp), Arc::clone(&handler));
    let tcp = serve_tcp(sockets.tcp, handler);
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = udp => {}
        () = tcp => {}
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, handler: Arc<Handler>) {
    let pending = Arc::new(Semaphore::new(MAX_PENDING));
    let mut fetches = JoinSet::new();
    let mut buf = vec![0; MAX_QUERY];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buf) => received,
            Some(_) = fetches.join_next() => continue,
        };
        // An error here is about an earlier answer that could not be delivered.
        let Ok((length, client)) = received else {
            continue;
        };
        match handler.begin(&buf[..length], Transport::Udp) {
            Step::Ignore => {}
            Step::Reply(answer) => send(&socket, &answer, client).await,
            Step::Fetch(fetch) => {
                let Ok(permit) = Arc::clone(&pending).try_acquire_owned() else {
                    let busy = refuse(&fetch.request, ResponseCode::ServFail);
                    send(
                        &socket,
                        &encode(busy, &fetch.request, Transport::Udp),
                        client,
                    )
                    .await;
                    continue;
                };
                let (socket, handler) = (Arc::clone(&socket), Arc::clone(&handler));
                fetches.spawn(async move {
                    let answer = handler.finish(*fetch, Transport::Udp).await;
                    send(&socket, &answer, client).await;
                    drop(permit);
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(answer, client).await {
        tracing::debug!(%client, %error, "an answer could not be sent");
    }
}

async fn serve_tcp(listener: TcpListener, handler: Arc<Handler>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // A connection too many is closed at once.
        if let Ok(slot) = Arc::clone(&slots).try_acquire_owned() {
            let handler = Arc::clone(&handler);
            connections.spawn(async move {
                let _ = serve_connection(stream, &handler).await;
                drop(slot);
            });
        }
    }
}

async fn serve_connection(mut stream: TcpStream, handler: &Handler) -> io::Result<()> {
    loop {
        let length = timeout(IDLE, stream.read_u16()).await??;
        let mut packet = vec![0; length.into()];
        timeout(IDLE, stream.read_exact(&mut packet)).await??;
        let answer = match handler.begin(&packet, Transport::Tcp) {
            Step::Ignore => return Ok(()),
            Step::Reply(answer) => answer,
            Step::Fetch(fetch) => handler.finish(*fetch, Transport::Tcp).await,
        };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        timeout(
            IDLE,
            stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()),
        )
        .await??;
    }
}
