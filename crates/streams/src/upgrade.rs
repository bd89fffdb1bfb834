//! Tunnels an upgraded connection to another server, byte for byte, whatever its protocol.

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::Error;
use crate::handshake::tokens;

/// The body of a proxied response: empty after an upgrade, otherwise the other server's own.
pub type ProxyBody = UnsyncBoxBody<Bytes, hyper::Error>;

/// Buffer of a tunnel, in bytes, in each direction.
const TUNNEL_BUFFER_BYTES: usize = 32 << 10;

/// Whether a request asks to switch protocols.
#[must_use]
pub fn is_upgrade<B>(request: &Request<B>) -> bool {
    request.headers().contains_key(UPGRADE)
        && tokens(request.headers(), &CONNECTION).any(|t| t.eq_ignore_ascii_case("upgrade"))
}

/// Sends an upgrade request over `io`, a fresh connection to another HTTP/1.1 server, and gives
/// the response for the client. If the server switches protocols, a task copies bytes both ways
/// until both sides have closed; any other answer (a refusal) is passed on as it is.
///
/// The caller has rewritten the request: its URI is the path and query at the other server, its
/// headers are those the other server should see (credentials exchanged). `Host` is added if it
/// is missing. The request must come straight from hyper, whose upgrade travels in its extensions;
/// its body is not forwarded, as upgrade requests have none.
///
/// # Errors
/// If the other server cannot be talked to; the client deserves a 502 then.
pub async fn proxy<B, I>(mut request: Request<B>, io: I) -> Result<Response<ProxyBody>, Error>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let client = hyper::upgrade::on(&mut request);
    let (mut parts, _) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri =
        http::Uri::try_from(path).map_err(|error| Error::Protocol(format!("bad path: {error}")))?;
    parts.version = http::Version::HTTP_11;
    parts.extensions = http::Extensions::new();
    let local = HeaderValue::from_static("localhost");
    parts.headers.entry(HOST).or_insert(local);
    let outgoing = Request::from_parts(parts, Empty::<Bytes>::new());

    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to the other server ended");
        }
    });
    let mut response = sender.send_request(outgoing).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response.map(BodyExt::boxed_unsync));
    }
    let server = hyper::upgrade::on(&mut response);
    tokio::spawn(async move {
        if let Err(error) = tunnel(client, server).await {
            tracing::debug!(%error, "tunnel ended");
        }
    });
    let (mut parts, _) = response.into_parts();
    parts.extensions = http::Extensions::new();
    let empty = Empty::new().map_err(|never| match never {}).boxed_unsync();
    Ok(Response::from_parts(parts, empty))
}

async fn tunnel(client: OnUpgrade, server: OnUpgrade) -> Result<(), Error> {
    let (client, server) = tokio::try_join!(client, server)?;
    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
    let (size, client, server) = (TUNNEL_BUFFER_BYTES, &mut client, &mut server);
    tokio::io::copy_bidirectional_with_sizes(client, server, size, size).await?;
    Ok(())
}
