//! The HTTP side of an upgrade: which protocol does the client ask for, which do we answer.

use bytes::Bytes;
use http::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::Body;

/// Carries the protocols a SPDY client speaks, best first, and the one the server chose.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// Tells a refused SPDY client what the server speaks.
const ACCEPTED_PROTOCOLS: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");
const SPDY: &str = "SPDY/3.1";

/// The answer to a client that asked for something that cannot be had.
#[derive(Debug)]
pub struct Refused(Box<Response<Body>>);

impl Refused {
    pub(crate) fn new(status: StatusCode, reason: String) -> Self {
        let mut response = Response::new(Body::new(Bytes::from(reason)));
        *response.status_mut() = status;
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, text);
        Self(Box::new(response))
    }

    /// The response to send to the client.
    #[must_use]
    pub fn into_response(self) -> Response<Body> {
        *self.0
    }
}

/// The transport that was agreed on, with its sub-protocol (empty if the client named none).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Spdy(&'static str),
    WebSocket(&'static str),
}

/// Chooses a transport and makes the response that says so.
pub(crate) fn negotiate(
    headers: &HeaderMap,
    spdy: &[&'static str],
    websocket: &[&'static str],
) -> Result<(Response<Body>, Transport), Refused> {
    if !tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade")) {
        let reason = format!("unable to upgrade: missing upgrade headers in request: {headers:?}");
        return Err(Refused::new(StatusCode::BAD_REQUEST, reason));
    }
    let upgrade: Vec<&str> = tokens(headers, &UPGRADE).collect();
    if upgrade.iter().any(|t| t.eq_ignore_ascii_case("websocket")) {
        return accept_websocket(headers, websocket);
    }
    if upgrade.iter().any(|t| t.eq_ignore_ascii_case(SPDY)) {
        return accept_spdy(headers, spdy);
    }
    let reason = format!("unable to upgrade: unsupported protocol in Upgrade: {upgrade:?}");
    Err(Refused::new(StatusCode::BAD_REQUEST, reason))
}

fn accept_spdy(
    headers: &HeaderMap,
    supported: &[&'static str],
) -> Result<(Response<Body>, Transport), Refused> {
    let asked: Vec<&str> = tokens(headers, &STREAM_PROTOCOL).collect();
    let chosen = match choose(&asked, supported) {
        Some(chosen) => chosen,
        // Clients of the first days name none.
        None if asked.is_empty() => "",
        None => {
            let reason = format!(
                "unable to upgrade: unable to negotiate protocol: client supports {asked:?}, \
                 server accepts {supported:?}"
            );
            let mut refused = Refused::new(StatusCode::FORBIDDEN, reason);
            for protocol in supported {
                let value = HeaderValue::from_static(protocol);
                refused.0.headers_mut().append(ACCEPTED_PROTOCOLS, value);
            }
            return Err(refused);
        }
    };
    let mut response = switching(SPDY);
    if !chosen.is_empty() {
        let value = HeaderValue::from_static(chosen);
        response.headers_mut().insert(STREAM_PROTOCOL, value);
    }
    Ok((response, Transport::Spdy(chosen)))
}

fn accept_websocket(
    headers: &HeaderMap,
    supported: &[&'static str],
) -> Result<(Response<Body>, Transport), Refused> {
    let bad = |reason: &str| Refused::new(StatusCode::BAD_REQUEST, reason.to_owned());
    let version = headers.get(SEC_WEBSOCKET_VERSION);
    if version.is_none_or(|version| version != "13") {
        return Err(bad("unsupported websocket version"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY);
    let key = key.ok_or_else(|| bad("missing Sec-WebSocket-Key"))?;
    let asked: Vec<&str> = tokens(headers, &SEC_WEBSOCKET_PROTOCOL).collect();
    let chosen = match choose(&asked, supported) {
        Some(chosen) => chosen,
        None if asked.is_empty() && supported.contains(&"") => "",
        None => {
            let reason = format!(
                "unable to negotiate websocket protocol: client supports {asked:?}, server \
                 accepts {supported:?}"
            );
            return Err(bad(&reason));
        }
    };
    let mut response = switching("websocket");
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
    let accept = accept.map_err(|_| bad("bad Sec-WebSocket-Key"))?;
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    if !chosen.is_empty() {
        let value = HeaderValue::from_static(chosen);
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, value);
    }
    Ok((response, Transport::WebSocket(chosen)))
}

/// The first of the client's protocols that the server has.
fn choose(asked: &[&str], supported: &[&'static str]) -> Option<&'static str> {
    let find = |name: &&str| supported.iter().find(|have| *have == name);
    asked.iter().find_map(find).copied()
}

fn switching(protocol: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(protocol));
    response
}

/// The comma-separated values of a header, which may come in several lines.
pub(crate) fn tokens<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter();
    let lines = lines.filter_map(|line| line.to_str().ok());
    let values = lines.flat_map(|line| line.split(',').map(str::trim));
    values.filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = lines.iter().map(|(name, value)| {
            let name = HeaderName::from_static(name);
            (name, HeaderValue::from_static(value))
        });
        let mut map = HeaderMap::new();
        pairs.for_each(|(name, value)| {
            map.append(name, value);
        });
        map
    }

    #[test]
    fn the_clients_first_known_protocol_wins() {
        let asked = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v9"),
            ("x-stream-protocol-version", "v4, v3"),
        ]);
        let (response, transport) = negotiate(&asked, &["v3", "v4"], &[]).unwrap();
        assert_eq!(transport, Transport::Spdy("v4"));
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()[STREAM_PROTOCOL], "v4");
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let spdy = [("connection", "upgrade"), ("upgrade", "SPDY/3.1")];
        let unknown = [spdy[0], spdy[1], ("x-stream-protocol-version", "v9")];
        let socket = [("connection", "upgrade"), ("upgrade", "websocket")];
        for (asked, status) in [(&spdy[1..], 400), (&unknown, 403), (&socket, 400)] {
            let refused = negotiate(&headers(asked), &["v4"], &["v4"]).unwrap_err();
            assert_eq!(refused.into_response().status(), status);
        }
        assert!(negotiate(&headers(&spdy), &["v4"], &[]).is_ok());
    }

    #[test]
    fn websocket_keys_are_answered_as_in_the_rfc() {
        let asked = headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "v5.channel.k8s.io"),
        ]);
        let (response, _) = negotiate(&asked, &[], &["v5.channel.k8s.io"]).unwrap();
        let accept = &response.headers()[SEC_WEBSOCKET_ACCEPT];
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
