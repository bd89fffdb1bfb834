//! Answers: the one place where objects, lists and failures become HTTP responses.

use std::io::Write as _;

use api::Status;
use bytes::{Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::Value;

use super::body::{self, Response};
use super::negotiate::{self, Encoding, Offer, Transform};
use super::request_info::Query;
use crate::registry::streamed::{self, Pieces};

/// Answers of at least so many bytes are compressed when the client allows it (upstream: 128 KiB).
const GZIP_FROM: usize = 128 * 1024;
/// Longest text of one warning in bytes.
const WARNING_MAX: usize = 4096;

/// How this request wants its answers written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// Indented JSON.
    pub pretty: bool,
    /// The client takes gzip.
    pub gzip: bool,
    /// How documents are written that no resource's own negotiation decides on: failures, reviews, discovery.
    pub encoding: Encoding,
}

impl Style {
    /// Of a component of this process: only the encoding is asked for.
    pub fn plain(headers: &HeaderMap) -> Self {
        let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
        let everything = Offer {
            transforms: &[Transform::Table, Transform::Partial, Transform::PartialList],
            protobuf: true,
        };
        Self {
            encoding: negotiate::choose(accept, everything)
                .unwrap_or_default()
                .encoding,
            ..Self::default()
        }
    }

    /// From the request: browsers and curl get indented JSON unless they decline.
    pub fn of(headers: &HeaderMap, query: &Query) -> Self {
        let text = |name| {
            headers
                .get(name)
                .and_then(|v: &HeaderValue| v.to_str().ok())
                .unwrap_or_default()
        };
        let agent = text(header::USER_AGENT);
        let pretty = match query.get("pretty") {
            Some(_) => query.flag("pretty"),
            None => ["curl", "Wget", "Mozilla/5.0"]
                .iter()
                .any(|a| agent.starts_with(a)),
        };
        let gzip = text(header::ACCEPT_ENCODING).split(',').any(|e| {
            let mut parts = e.trim().split(';');
            parts.next().is_some_and(|n| n.trim() == "gzip") && parts.all(|q| q.trim() != "q=0")
        });
        Self {
            pretty,
            gzip,
            ..Self::plain(headers)
        }
    }
}

/// A response of that type and body.
pub fn raw(code: StatusCode, content_type: &'static str, bytes: impl Into<Bytes>) -> Response {
    let mut response = Response::new(body::full(bytes));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A document as protobuf; JSON if its kind has no such form.
fn packed(bytes: &Bytes) -> Result<(&'static str, Bytes), codec::protobuf::NotEncodable> {
    let value: Value = serde_json::from_slice(bytes).unwrap_or_default();
    match codec::protobuf::encode(&value) {
        Ok(packed) => Ok((negotiate::PROTOBUF, packed.into())),
        Err(codec::protobuf::NotEncodable::Kind(..)) => Ok(("application/json", bytes.clone())),
        Err(error) => Err(error),
    }
}

/// A JSON document in the style of the request.
pub fn json_bytes(code: StatusCode, bytes: Bytes, encoding: Encoding, style: Style) -> Response {
    let reparsed = || serde_json::from_slice::<Value>(&bytes).ok();
    let (content_type, bytes) = match encoding {
        Encoding::Protobuf => match packed(&bytes) {
            Ok(found) => found,
            Err(error) => return status(&Status::internal(error), Style::default()),
        },
        Encoding::Yaml => {
            let text = reparsed()
                .and_then(|v| serde_saphyr::to_string(&v).ok())
                .unwrap_or_default();
            ("application/yaml", Bytes::from(text))
        }
        Encoding::Json if style.pretty => {
            let text = reparsed().and_then(|v| serde_json::to_vec_pretty(&v).ok());
            (
                "application/json",
                text.map_or(bytes.clone(), |mut t| {
                    t.push(b'\n');
                    t.into()
                }),
            )
        }
        Encoding::Json => ("application/json", bytes),
    };
    encoded(code, content_type, bytes, style)
}

/// Bytes of a type, packed if that pays and the client allows it.
pub fn encoded(
    code: StatusCode,
    content_type: &'static str,
    bytes: Bytes,
    style: Style,
) -> Response {
    if style.gzip
        && bytes.len() >= GZIP_FROM
        && let Some(packed) = gzip(&bytes)
    {
        let mut response = raw(code, content_type, packed);
        response
            .headers_mut()
            .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
            .headers_mut()
            .insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        return response;
    }
    raw(code, content_type, bytes)
}

/// A JSON document that is still being written. A short one is answered like any other.
pub async fn json_pieces(mut pieces: Pieces, style: Style) -> Response {
    let mut first = BytesMut::new();
    let whole = loop {
        match pieces.next().await {
            Some(Ok(piece)) => first.extend_from_slice(&piece),
            Some(Err(error)) => {
                return status(&Status::internal(error.to_string()), style);
            }
            None => break true,
        }
        if first.len() >= GZIP_FROM {
            break false;
        }
    };
    let first = first.freeze();
    if whole {
        return json_bytes(StatusCode::OK, first, Encoding::Json, style);
    }
    let first = futures::stream::once(async { Ok(first) });
    let mut pieces = first.chain(pieces).boxed();
    let mut response = Response::new(body::empty());
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    if style.gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        pieces = streamed::packed(pieces);
    }
    *response.body_mut() = body::stream(pieces);
    response
}

/// Packs bytes, fast rather than small.
pub fn gzip(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::new(1));
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok()
}

/// A tree; documents without a kind are JSON whatever the client prefers.
pub fn json(code: StatusCode, value: &Value, style: Style) -> Response {
    let encoding = match value.get("kind") {
        Some(_) => style.encoding,
        None => Encoding::Json,
    };
    json_bytes(code, value.to_string().into(), encoding, style)
}

/// A Status with its code.
pub fn status(status: &Status, style: Style) -> Response {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    // Whoever accepts nothing that is offered is told so in JSON.
    let encoding = match code {
        StatusCode::NOT_ACCEPTABLE => Encoding::Json,
        _ => style.encoding,
    };
    let mut response = json(code, &status.to_value(), Style { encoding, ..style });
    if let Some(seconds) = status
        .details
        .as_ref()
        .map(|d| d.retry_after_seconds)
        .filter(|s| *s > 0)
    {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Adds warnings as headers.
pub fn warn(response: &mut Response, warnings: Vec<String>) {
    for mut text in warnings {
        while text.len() > WARNING_MAX {
            text.pop();
        }
        let quoted: String = text
            .chars()
            .filter(|c| !c.is_control())
            .flat_map(|c| {
                if matches!(c, '"' | '\\') {
                    vec!['\\', c]
                } else {
                    vec![c]
                }
            })
            .collect();
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}
