//! Listing: selectors, pages on one snapshot, and the meaning of `resourceVersion`.

use std::time::Duration;

use api::{FieldError, Status};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut, Bytes, BytesMut};
use codec::protobuf::ListMessage;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::{RangeRequest, ReadError, prefix_end};

use super::{Fail, Registry, Resource, Selection, Stored, read_failure};
use crate::http::request_info::Query;

/// Objects read from the store at once while a selective page is filled.
const SCAN_CHUNK: usize = 512;
/// Largest accepted `limit`.
const LIMIT_MAX: usize = 1 << 20;

/// How `resourceVersion` of a list is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// At least as new.
    NotOlderThan,
    /// At exactly that revision.
    Exact,
}

/// Where a list goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Continue {
    v: String,
    /// Revision of the first page; -1 asks for the current one.
    rv: i64,
    /// Key to start at, without the prefix.
    start: String,
}

const CONTINUE_VERSION: &str = "meta.k8s.io/v1";

impl Continue {
    fn encode(rv: i64, start: &str) -> String {
        let token = Self {
            v: CONTINUE_VERSION.into(),
            rv,
            start: start.into(),
        };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
    }

    /// Reads a token.
    ///
    /// # Errors
    /// What is wrong with it, in upstream's words.
    fn decode(text: &str) -> Result<Self, String> {
        let invalid = |why: &dyn std::fmt::Display| format!("continue key is not valid: {why}");
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|e| invalid(&e))?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|e| invalid(&e))?;
        if token.v != CONTINUE_VERSION {
            let unknown =
                "continue key is not valid: server does not recognize this encoded version";
            return Err(format!("{unknown} {}", token.v));
        }
        let version = format!("(version {CONTINUE_VERSION})");
        if token.rv == 0 {
            return Err(invalid(&format!(
                "incorrect encoded start resourceVersion {version}"
            )));
        }
        if token.start.is_empty() {
            return Err(invalid(&format!("encoded start key empty {version}")));
        }
        // The key stays below its prefix whatever a client writes into it.
        let mut parts = token
            .start
            .strip_prefix('/')
            .unwrap_or(&token.start)
            .split('/');
        if parts.any(|p| matches!(p, "" | "." | "..")) {
            return Err(invalid(&token.start));
        }
        Ok(token)
    }
}

/// Query of a list or watch.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Which objects.
    pub selection: Selection,
    /// At most so many; 0 is all.
    pub limit: usize,
    pub(super) from: Option<Continue>,
    /// Revision asked for; `None` if unset, `Some(0)` for any.
    pub resource_version: Option<u64>,
    /// How the revision is meant.
    pub version_match: Option<Match>,
    /// Watch: progress is told.
    pub bookmarks: bool,
    /// Watch: start with the objects there are.
    pub send_initial_events: Option<bool>,
    /// Longest time of a watch.
    pub timeout: Option<Duration>,
}

fn invalid(errors: &[FieldError]) -> Fail {
    Box::new(Status::invalid("meta.k8s.io", "ListOptions", "", errors))
}

/// The revision a request names.
fn revision(query: &Query) -> Result<Option<u64>, Fail> {
    let Some(text) = query.non_empty("resourceVersion") else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|_| {
        let why = format!("strconv.ParseUint: parsing {text:?}: invalid syntax");
        invalid(&[FieldError::invalid("resourceVersion", text, why)])
    })
}

/// A number of the query.
fn number(query: &Query, name: &str) -> Result<Option<i64>, Fail> {
    let Some(text) = query.non_empty(name) else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|_| {
        let why = format!("strconv.ParseInt: parsing {text:?}: invalid syntax");
        Box::new(Status::bad_request(why))
    })
}

impl ListOptions {
    /// Everything selected, as it is now.
    pub fn of(selection: Selection) -> Self {
        Self {
            selection,
            ..Self::default()
        }
    }

    /// Reads and checks the query of a list (or, with `watch`, of a watch).
    ///
    /// # Errors
    /// 400 or 422 in upstream's words.
    pub fn parse(resource: &Resource, query: &Query, watch: bool) -> Result<Self, Fail> {
        // What is negative bounds nothing.
        let bound = |name| number(query, name).map(|n| n.and_then(|n| u64::try_from(n).ok()));
        let from = match query.non_empty("continue") {
            None => None,
            Some(text) => Some(Continue::decode(text).map_err(|why| {
                Box::new(Status::bad_request(format!(
                    "invalid continue token: {why}"
                )))
            })?),
        };
        let version_match = match query.non_empty("resourceVersionMatch") {
            Some("NotOlderThan") => Some(Match::NotOlderThan),
            Some("Exact") => Some(Match::Exact),
            _ => None,
        };
        let options = Self {
            selection: Selection::parse(resource, query)?,
            limit: bound("limit")?.map_or(0, |n| {
                usize::try_from(n).unwrap_or(LIMIT_MAX).min(LIMIT_MAX)
            }),
            from,
            resource_version: revision(query)?,
            version_match,
            bookmarks: query.flag("allowWatchBookmarks"),
            send_initial_events: query
                .get("sendInitialEvents")
                .map(|_| query.flag("sendInitialEvents")),
            timeout: bound("timeoutSeconds")?
                .filter(|s| *s > 0)
                .map(Duration::from_secs),
        };
        let errors = if watch {
            options.watch_errors(query)
        } else {
            options.list_errors(query)
        };
        if errors.is_empty() {
            Ok(options)
        } else {
            Err(invalid(&errors))
        }
    }

    fn list_errors(&self, query: &Query) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let forbid = |text: &str| FieldError::forbidden("resourceVersionMatch", text);
        if let Some(text) = query.non_empty("resourceVersionMatch") {
            if query.non_empty("resourceVersion").is_none() {
                errors.push(forbid(
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            if self.from.is_some() {
                errors.push(forbid(
                    "resourceVersionMatch is forbidden when continue is provided",
                ));
            }
            if self.version_match.is_none() {
                let allowed = ["Exact", "NotOlderThan", ""];
                let path = "resourceVersionMatch";
                errors.push(FieldError::not_supported(path, text, &allowed));
            }
            if self.version_match == Some(Match::Exact) && self.resource_version == Some(0) {
                errors.push(forbid(
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
        }
        if self.send_initial_events.is_some() {
            errors.push(FieldError::forbidden(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for list",
            ));
        }
        errors
    }

    fn watch_errors(&self, query: &Query) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let forbid = |text: &str| FieldError::forbidden("resourceVersionMatch", text);
        let newer = self.version_match == Some(Match::NotOlderThan);
        if self.send_initial_events.is_some() && !newer {
            errors.push(forbid(
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
        if let Some(text) = query.non_empty("resourceVersionMatch") {
            if self.send_initial_events.is_none() {
                errors.push(forbid(
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ));
            }
            if !newer {
                let path = "resourceVersionMatch";
                errors.push(FieldError::not_supported(path, text, &["NotOlderThan"]));
            }
            if self.from.is_some() {
                errors.push(forbid(
                    "resourceVersionMatch is forbidden when continue is provided",
                ));
            }
        }
        errors
    }
}

/// One page of a list.
#[derive(Debug, Default)]
pub struct Page {
    /// The objects.
    pub items: Vec<Stored>,
    /// Revision of the snapshot; 0 of what is not stored.
    pub revision: u64,
    /// Token of the next page.
    pub next: Option<String>,
    /// How many objects are left, when it is known.
    pub remaining: Option<u64>,
}

impl Page {
    /// The page as a typed list; `convert` gives an object in the served version.
    pub fn to_json(&self, resource: &Resource) -> Bytes {
        let size: usize = self.items.iter().map(|i| i.bytes.len() + 40).sum();
        let mut out = BytesMut::with_capacity(size + 256);
        out.put_slice(&self.head(resource));
        let custom = resource.kind.custom.is_some();
        for (i, item) in self.items.iter().enumerate() {
            if i > 0 {
                out.put_u8(b',');
            }
            super::splice::append_item(&mut out, &item.bytes, item.revision, custom);
        }
        out.put_slice(b"]}");
        out.freeze()
    }

    /// What comes before the items of a typed list.
    pub fn head(&self, resource: &Resource) -> Bytes {
        let kind = &resource.kind;
        let head = format!(
            "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
            kind.list_kind,
            kind.api_version(),
            self.metadata()
        );
        head.into()
    }

    /// The page as a typed list in protobuf, item by item.
    ///
    /// # Errors
    /// 500 when an item cannot be read or written.
    pub fn to_protobuf(&self, resource: &Resource) -> Result<Bytes, Fail> {
        let kind = &resource.kind;
        let version = kind.api_version();
        let failed = |e: codec::protobuf::NotEncodable| Box::new(Status::internal(e));
        let mut list =
            ListMessage::new(&version, &kind.list_kind, &self.metadata()).map_err(failed)?;
        for item in &self.items {
            let object = item.with_revision()?;
            list.push(
                &codec::protobuf::encode_item(&version, &kind.kind, &object).map_err(failed)?,
            );
        }
        Ok(list.finish().into())
    }

    /// `metadata` of the list.
    pub fn metadata(&self) -> Value {
        let mut metadata = serde_json::json!({});
        if self.revision > 0 {
            metadata["resourceVersion"] = self.revision.to_string().into();
        }
        if let Some(next) = &self.next {
            metadata["continue"] = next.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        metadata
    }
}

const EXPIRED_CONTINUE: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// A failure of a list, and for an expired continue token the token to go on with.
pub(super) fn list_failure(error: ReadError, from: Option<&Continue>) -> Fail {
    match (error, from) {
        (ReadError::Compacted { .. }, Some(from)) => {
            let mut status = Status::expired(EXPIRED_CONTINUE);
            status.next = Continue::encode(-1, &from.start);
            Box::new(status)
        }
        (ReadError::Future { current }, _) => {
            Box::new(Status::too_large_resource_version(0, current))
        }
        (error, _) => read_failure(error),
    }
}

impl Registry {
    /// One page of a list; items are in the stored version unless the resource is served in another.
    ///
    /// # Errors
    /// A Status in upstream's words: expired, too large resource version, …
    pub async fn list(
        &self,
        resource: &Resource,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<Page, Fail> {
        let at = self.snapshot(options)?;
        if let Some(page) = self.lookup(resource, namespace, options, at).await? {
            return Ok(page);
        }
        let prefix = resource.prefix(namespace);
        let end = prefix_end(&prefix);
        let mut start = match &options.from {
            Some(from) => Bytes::from([&prefix[..], from.start.as_bytes()].concat()),
            None => prefix.clone(),
        };
        let everything = options.selection.is_everything();
        let mut page = Page::default();
        let mut at = at;
        loop {
            let limit = match (options.limit, everything) {
                (0, _) => 0,
                (n, true) => n - page.items.len(),
                (_, false) => SCAN_CHUNK,
            };
            let range = RangeRequest {
                start: start.clone(),
                end: end.clone(),
                limit,
                at,
            };
            let found = self
                .store
                .range(range)
                .await
                .map_err(|e| list_failure(e, options.from.as_ref()))?;
            page.revision = found.revision;
            at = Some(found.revision);
            let total = found.kvs.len();
            let opened: Result<Vec<Stored>, Fail> =
                found.kvs.iter().map(|kv| self.open(kv)).collect();
            let opened = self.converted(resource, opened?).await?;
            for (i, (kv, stored)) in found.kvs.iter().zip(opened).enumerate() {
                // The key just behind this one.
                start = Bytes::from([&kv.key[..], b"\0"].concat());
                if !everything && !options.selection.matches(resource, &stored.bytes) {
                    continue;
                }
                page.items.push(served(resource, stored)?);
                let more = found.more || i + 1 < total;
                if options.limit > 0 && page.items.len() == options.limit && more {
                    let rest = String::from_utf8_lossy(&start[prefix.len()..]);
                    page.next = Some(Continue::encode(
                        i64::try_from(page.revision).unwrap_or(i64::MAX),
                        &rest,
                    ));
                    page.remaining = everything.then(|| found.count.saturating_sub(total as u64));
                    return Ok(page);
                }
            }
            if !found.more {
                return Ok(page);
            }
        }
    }

    /// `metadata.name=x` in one namespace is a lookup.
    async fn lookup(
        &self,
        resource: &Resource,
        namespace: &str,
        options: &ListOptions,
        at: Option<u64>,
    ) -> Result<Option<Page>, Fail> {
        let Some(name) = options.selection.fields.exact("metadata.name") else {
            return Ok(None);
        };
        if (resource.kind.namespaced && namespace.is_empty()) || options.from.is_some() {
            return Ok(None);
        }
        let key = resource.key(namespace, name);
        let (kv, revision) = self
            .store
            .get(&key, at)
            .await
            .map_err(|e| list_failure(e, options.from.as_ref()))?;
        let mut page = Page {
            revision,
            ..Page::default()
        };
        if let Some(stored) = kv.map(|kv| self.open(&kv)).transpose()? {
            let stored = self.converted_one(resource, stored).await?;
            if options.selection.matches(resource, &stored.bytes) {
                page.items.push(served(resource, stored)?);
            }
        }
        Ok(Some(page))
    }

    /// Refuses a request for what is not older than a revision that is still to come.
    ///
    /// # Errors
    /// 504 as upstream answers, once it has waited.
    pub fn reached(&self, query: &Query) -> Result<(), Fail> {
        let current = self.store.revision();
        match revision(query)? {
            Some(asked) if asked > current => {
                Err(Box::new(Status::too_large_resource_version(asked, current)))
            }
            _ => Ok(()),
        }
    }

    /// The revision to read at; `None` is now.
    pub(super) fn snapshot(&self, options: &ListOptions) -> Result<Option<u64>, Fail> {
        if let Some(from) = &options.from {
            if options.resource_version.is_some_and(|rv| rv != 0) {
                let why = "specifying resource version is not allowed when using continue";
                return Err(Box::new(Status::bad_request(why)));
            }
            return Ok(u64::try_from(from.rv).ok());
        }
        let Some(asked) = options.resource_version.filter(|rv| *rv > 0) else {
            return Ok(None);
        };
        let current = self.store.revision();
        if asked > current {
            return Err(Box::new(Status::too_large_resource_version(asked, current)));
        }
        let exact = match options.version_match {
            Some(m) => m == Match::Exact,
            // Before resourceVersionMatch existed, a limit made the revision exact.
            None => options.limit > 0,
        };
        Ok(exact.then_some(asked))
    }
}

/// An object in the served version.
pub fn served(resource: &Resource, stored: Stored) -> Result<Stored, Fail> {
    if resource.is_current(&stored) {
        return Ok(stored);
    }
    let value = resource.to_served(resource.load(&stored)?);
    Ok(Stored {
        bytes: codec::canonical(&value),
        revision: stored.revision,
    })
}
