//! Whole lists, written piece by piece while the client reads: what a list of any length costs is a
//! snapshot of the store and one piece, however many clients ask at once.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt;
use futures::stream::BoxStream;
use store::{Scan, prefix_end};
use tokio::time::Instant;

use super::list::{ListOptions, Page, list_failure, served};
use super::{Fail, Registry, Resource, splice};
use crate::http::body::BoxError;

/// Longest time a client may take to read a list (upstream: the timeout of a request).
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// The body of a list. Its pieces are not empty.
pub type Pieces = BoxStream<'static, Result<Bytes, BoxError>>;

/// Where the writing of a list is.
struct Writer {
    registry: Arc<Registry>,
    resource: Arc<Resource>,
    options: ListOptions,
    scan: Scan,
    /// Whether an item was written, so that the next one needs a comma.
    any: bool,
    deadline: Instant,
    ended: bool,
}

impl Registry {
    /// A whole list as typed JSON; `None` for those that are pages or need not be read in pieces.
    ///
    /// # Errors
    /// As [`Registry::list`]. Later failures end the body, so that the client sees that it is not whole.
    pub async fn list_pieces(
        self: &Arc<Self>,
        resource: &Arc<Resource>,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<Option<Pieces>, Fail> {
        let paged = options.limit > 0 || options.from.is_some();
        // A webhook is asked about many objects at once, and its failure is the answer.
        if paged || options.selection.names_one() || resource.webhook().is_some() {
            return Ok(None);
        }
        let at = self.snapshot(options)?;
        let prefix = resource.prefix(namespace);
        let end = prefix_end(&prefix);
        let scan = self.store.scan(prefix, end, at).await;
        let scan = scan.map_err(|e| list_failure(e, None))?;
        let page = Page {
            revision: scan.revision(),
            ..Page::default()
        };
        let head = page.head(resource);
        let writer = Writer {
            registry: self.clone(),
            resource: resource.clone(),
            options: options.clone(),
            scan,
            any: false,
            deadline: Instant::now() + READ_TIMEOUT,
            ended: false,
        };
        let rest = futures::stream::unfold(writer, |mut writer| async move {
            writer.next().await.map(|piece| (piece, writer))
        });
        let head = futures::stream::once(async { Ok(head) });
        Ok(Some(head.chain(rest).boxed()))
    }
}

impl Writer {
    async fn next(&mut self) -> Option<Result<Bytes, BoxError>> {
        while !self.ended {
            if Instant::now() > self.deadline {
                self.ended = true;
                return Some(Err("the list was not read in time".into()));
            }
            let mut out = BytesMut::new();
            match self.scan.next().await {
                Some(Ok(kvs)) => {
                    for kv in &kvs {
                        if let Err(status) = self.append(&mut out, kv) {
                            self.ended = true;
                            tracing::error!(%status.message, "a list breaks off");
                            return Some(Err(status.message.clone().into()));
                        }
                    }
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Some(Err(error.into()));
                }
                None => {
                    self.ended = true;
                    out.put_slice(b"]}");
                }
            }
            if !out.is_empty() {
                return Some(Ok(out.freeze()));
            }
        }
        None
    }

    fn append(&mut self, out: &mut BytesMut, kv: &store::KeyValue) -> Result<(), Fail> {
        let stored = self.registry.open(kv)?;
        let selection = &self.options.selection;
        if !selection.is_everything() && !selection.matches(&self.resource, &stored.bytes) {
            return Ok(());
        }
        let stored = served(&self.resource, stored)?;
        if std::mem::replace(&mut self.any, true) {
            out.put_u8(b',');
        }
        let custom = self.resource.kind.custom.is_some();
        splice::append_item(out, &stored.bytes, stored.revision, custom);
        Ok(())
    }
}

/// The same body packed by gzip, fast rather than small.
pub fn packed(pieces: Pieces) -> Pieces {
    let encoder = GzEncoder::new(Vec::new(), Compression::new(1));
    let packed = futures::stream::unfold(Some((pieces, encoder)), |state| async move {
        let (mut pieces, mut encoder) = state?;
        loop {
            match pieces.next().await {
                Some(Ok(piece)) => {
                    if let Err(error) = encoder.write_all(&piece) {
                        return Some((Err(error.into()), None));
                    }
                    let out = std::mem::take(encoder.get_mut());
                    if !out.is_empty() {
                        return Some((Ok(Bytes::from(out)), Some((pieces, encoder))));
                    }
                }
                Some(Err(error)) => return Some((Err(error), None)),
                None => {
                    let rest = encoder.finish().map(Bytes::from).map_err(BoxError::from);
                    return Some((rest, None));
                }
            }
        }
    });
    packed.boxed()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn pieces(texts: &[&'static str]) -> Pieces {
        let texts: Vec<_> = texts
            .iter()
            .map(|t| Ok(Bytes::from_static(t.as_bytes())))
            .collect();
        futures::stream::iter(texts).boxed()
    }

    #[tokio::test]
    async fn packed_bodies_unpack_to_the_same() {
        let all: Vec<_> = packed(pieces(&["{\"items\":[", "1,2", "]}"]))
            .collect()
            .await;
        let bytes: Vec<u8> = all.into_iter().flat_map(Result::unwrap).collect();
        let mut text = String::new();
        flate2::read::GzDecoder::new(&bytes[..])
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "{\"items\":[1,2]}");
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_does_not_end_as_if_it_were_whole() {
        let broken = futures::stream::once(async { Err("disk".into()) });
        let all: Vec<_> = packed(pieces(&["{\"items\":["]).chain(broken).boxed())
            .collect()
            .await;
        assert!(all.last().unwrap().is_err());
    }
}
