//! What other servers say about themselves in OpenAPI v2.
//!
//! Their documents are asked for whenever they are asked whether they answer, and only sent again when they changed.
//! What one said last stays true until it says something else or its APIService goes.

use std::sync::Arc;
use std::time::Duration;

use codec::openapi::Foreign;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};

use super::Remote;
use super::forward::{Asker, address_of, identify};
use crate::http::body;
use crate::registry::Registry;

/// Longest time an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest document, in bytes.
const MAX_DOCUMENT_BYTES: usize = 32 << 20;

/// The part of a document that is about one group and version.
#[derive(Clone, Default)]
pub(super) struct Spec {
    /// What to ask with whether the document changed; empty if the server gave none.
    etag: String,
    /// Nothing, if the server has no such document.
    pub said: Option<Arc<Foreign>>,
}

/// The document as it is now; as it was, if it cannot be had.
pub(super) async fn fetch(registry: &Registry, remote: &Remote, last: Spec) -> Spec {
    match tokio::time::timeout(TIMEOUT, ask(registry, remote, &last)).await {
        Ok(Ok(Some(spec))) => spec,
        Ok(Ok(None)) => last,
        Ok(Err(why)) => {
            tracing::debug!(host = remote.host(), why, "cannot read an OpenAPI document");
            last
        }
        Err(_) => last,
    }
}

async fn ask(registry: &Registry, remote: &Remote, last: &Spec) -> Result<Option<Spec>, String> {
    let target = address_of(registry, remote).await.map_err(|s| s.message)?;
    let mut request = Request::builder()
        .method(Method::GET)
        .uri("/openapi/v2")
        .header(header::ACCEPT, "application/json");
    if !last.etag.is_empty() {
        request = request.header(header::IF_NONE_MATCH, &last.etag);
    }
    let mut request = request.body(body::empty()).map_err(|e| e.to_string())?;
    identify(request.headers_mut(), &Asker::Documents);
    let answer = target.send(request).await.map_err(|s| s.message)?;
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::NOT_MODIFIED => return Ok(None),
        StatusCode::NOT_FOUND => return Ok(Some(Spec::default())),
        code => return Err(format!("invalid status code: {}", code.as_u16())),
    }
    let etag = answer.headers().get(header::ETAG);
    let etag = etag.and_then(|v| v.to_str().ok()).unwrap_or_default();
    let etag = etag.to_owned();
    let body = body::boxed(Limited::new(answer.into_body(), MAX_DOCUMENT_BYTES));
    let bytes = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
    let prefix = format!("{}/", remote.path());
    // A large document takes a while: not on a thread that serves others.
    let read = tokio::task::spawn_blocking(move || {
        let document: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
        Foreign::below(&document, &prefix).ok_or_else(|| "it is no document".to_owned())
    });
    let mut said = Arc::new(read.await.map_err(|e| e.to_string())??);
    // Who says the same without a tag says nothing new.
    if let Some(before) = last.said.as_ref().filter(|before| **before == said) {
        said = before.clone();
    }
    let said = Some(said);
    Ok(Some(Spec { etag, said }))
}
