//! OpenAPI documents, made when first asked for and kept packed: they are large, and clients take them packed.

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use codec::openapi::{self, Foreign};
use flate2::read::GzDecoder;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use sha2::{Digest, Sha256};

use crate::http::body::Response;
use crate::http::respond::{self, Style};
use crate::registry::Resources;

const JSON: &str = "application/json";
/// What the protobuf form is called in answers: the name clients ask for is no media type that Go can parse.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// One finished document.
struct Document {
    content_type: &'static str,
    packed: Bytes,
    etag: String,
}

/// What documents are about.
#[derive(Clone)]
pub struct About {
    /// What this server serves.
    pub resources: Arc<Resources>,
    /// What other servers say about themselves, the most important first.
    pub foreign: Vec<Arc<Foreign>>,
}

impl About {
    fn is(&self, other: &Self) -> bool {
        let mut pairs = self.foreign.iter().zip(&other.foreign);
        Arc::ptr_eq(&self.resources, &other.resources)
            && self.foreign.len() == other.foreign.len()
            && pairs.all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

/// Finished documents by path, and what they are about.
#[derive(Default)]
pub struct OpenApi(Mutex<Finished>);

#[derive(Default)]
struct Finished {
    about: Option<About>,
    documents: HashMap<String, Arc<Document>>,
}

impl Finished {
    fn is_about(&self, about: &About) -> bool {
        self.about.as_ref().is_some_and(|a| a.is(about))
    }
}

/// The document at a path below `/openapi`; `None` if there is none.
fn make(about: &About, path: &str) -> Option<(&'static str, Bytes)> {
    let kinds = about.resources.kinds();
    let foreign: Vec<&Foreign> = about.foreign.iter().map(|f| &**f).collect();
    let segments: Vec<&str> = path.split('/').collect();
    match segments.as_slice() {
        ["v2"] => Some((JSON, openapi::v2(kinds, &foreign))),
        ["v2", "protobuf"] => Some((PROTOBUF, openapi::v2_protobuf(kinds, &foreign))),
        ["v3"] => Some((JSON, openapi::v3_index(kinds).to_string().into())),
        ["v3", "api", version] => openapi::v3(kinds, "", version).map(|d| (JSON, d)),
        ["v3", "apis", group, version] => openapi::v3(kinds, group, version).map(|d| (JSON, d)),
        _ => None,
    }
}

impl OpenApi {
    fn find(&self, about: &About, path: &str) -> Option<Arc<Document>> {
        let finished = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let current = finished.is_about(about);
        current
            .then(|| finished.documents.get(path).cloned())
            .flatten()
    }

    /// Keeps a document; those about something else go.
    fn keep(&self, about: About, path: &str, document: Arc<Document>) {
        let mut finished = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !finished.is_about(&about) {
            finished.documents.clear();
            finished.about = Some(about);
        }
        finished.documents.insert(path.to_owned(), document);
    }

    /// Answers a request for the document at `path`; `None` if there is none.
    pub async fn serve(
        &self,
        about: About,
        path: &str,
        headers: &HeaderMap,
        style: Style,
    ) -> Option<Response> {
        let document = match self.find(&about, path) {
            Some(document) => document,
            None => {
                let (wanted, subject) = (path.to_owned(), about.clone());
                // Making one takes a while: not on a thread that serves others.
                let made = tokio::task::spawn_blocking(move || {
                    let (content_type, bytes) = make(&subject, &wanted)?;
                    let etag = format!("\"{:X}\"", Sha256::digest(&bytes));
                    let packed = respond::gzip(&bytes)?.into();
                    Some(Arc::new(Document {
                        content_type,
                        packed,
                        etag,
                    }))
                });
                let document = made.await.ok()??;
                self.keep(about, path, document.clone());
                document
            }
        };
        Some(document.answer(headers, style))
    }
}

impl Document {
    fn answer(&self, headers: &HeaderMap, style: Style) -> Response {
        let known = headers
            .get(header::IF_NONE_MATCH)
            .and_then(|v| v.to_str().ok());
        let mut response = if known.is_some_and(|tags| tags.contains(&self.etag)) {
            respond::raw(StatusCode::NOT_MODIFIED, self.content_type, "")
        } else if style.gzip {
            let mut response = respond::raw(StatusCode::OK, self.content_type, self.packed.clone());
            let gzip = HeaderValue::from_static("gzip");
            response
                .headers_mut()
                .insert(header::CONTENT_ENCODING, gzip);
            response
        } else {
            let mut plain = Vec::new();
            match GzDecoder::new(&self.packed[..]).read_to_end(&mut plain) {
                Ok(_) => respond::raw(StatusCode::OK, self.content_type, plain),
                Err(_) => respond::raw(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", ""),
            }
        };
        if let Ok(etag) = HeaderValue::from_str(&self.etag) {
            response.headers_mut().insert(header::ETAG, etag);
        }
        response.headers_mut().insert(
            header::VARY,
            HeaderValue::from_static("Accept-Encoding, Accept"),
        );
        response
    }
}
