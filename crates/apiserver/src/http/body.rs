//! Body types of the whole server and bounded reading.
//!
//! Every request, from a socket or from a component in this process, is brought to one pair of body
//! types at the edge, so that nothing behind it is generic. Reading is bounded by [`MAX_REQUEST_BYTES`].

use bytes::{Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};

/// Error type of bodies.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Body of a request inside the server.
pub type RequestBody = UnsyncBoxBody<Bytes, BoxError>;
/// Body of a response.
pub type ResponseBody = UnsyncBoxBody<Bytes, BoxError>;
/// A request inside the server.
pub type Request = http::Request<RequestBody>;
/// A response of the server.
pub type Response = http::Response<ResponseBody>;

/// Largest accepted request body in bytes (upstream: 3 MiB).
pub const MAX_REQUEST_BYTES: usize = 3 * 1024 * 1024;

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadBodyError {
    /// Longer than [`MAX_REQUEST_BYTES`].
    #[error("limit is {MAX_REQUEST_BYTES}")]
    TooLarge,
    /// The peer broke off.
    #[error("{0}")]
    Transport(BoxError),
}

/// A body of bytes that are already there.
pub fn full(bytes: impl Into<Bytes>) -> ResponseBody {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body without bytes.
pub fn empty() -> ResponseBody {
    full(Bytes::new())
}

/// A body of chunks that come over time.
pub fn stream<S>(chunks: S) -> ResponseBody
where
    S: futures::Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
{
    use futures::StreamExt;
    BodyExt::boxed_unsync(StreamBody::new(
        chunks.map(|c| c.map(http_body::Frame::data)),
    ))
}

/// A body that keeps something alive until it has been sent or given up.
pub fn guarded<G: Send + 'static>(inner: ResponseBody, guard: G) -> ResponseBody {
    inner
        .map_frame(move |frame| {
            let _alive = &guard;
            frame
        })
        .boxed_unsync()
}

/// Brings any body to the server's type.
pub fn boxed<B>(body: B) -> RequestBody
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// Reads a whole body.
///
/// # Errors
/// When it is longer than [`MAX_REQUEST_BYTES`] or the peer breaks off.
pub async fn read(mut body: RequestBody) -> Result<Bytes, ReadBodyError> {
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    let mut total = 0usize;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(ReadBodyError::Transport)?.into_data() else {
            continue;
        };
        total += data.len();
        if total > MAX_REQUEST_BYTES {
            return Err(ReadBodyError::TooLarge);
        }
        match (&first, rest.is_empty()) {
            (None, _) => first = Some(data),
            (Some(f), true) => {
                rest.extend_from_slice(f);
                rest.extend_from_slice(&data);
            }
            (Some(_), false) => rest.extend_from_slice(&data),
        }
    }
    Ok(if rest.is_empty() {
        first.unwrap_or_default()
    } else {
        rest.freeze()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reads_pieces_and_refuses_too_much() {
        let chunks = futures::stream::iter(["ab", "", "cd", "e"].map(|c| Ok(Bytes::from(c))));
        assert_eq!(read(stream(chunks)).await.unwrap(), "abcde");
        assert_eq!(read(empty()).await.unwrap(), "");
        let big = full(vec![b'x'; MAX_REQUEST_BYTES + 1]);
        assert!(matches!(read(big).await, Err(ReadBodyError::TooLarge)));
    }
}
