//! What SPDY and WebSocket connections have in common: how they end.
//!
//! A connection lives as long as somebody can still send on it: its [`Connection`] handle, and the
//! tasks that carry streams towards the client. When the last of them is gone, what is queued goes
//! out, the peer is told, and after a moment for it to answer the connection is closed. When the
//! peer goes first, all streams end at once.

use std::any::Any;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// How long a peer may take to close after we have said goodbye, or to take the goodbye.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection on which the client says nothing for so long is closed.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(4 * 3600);
/// Frames that wait for a slow connection.
pub(crate) const QUEUE_FRAMES: usize = 16;
/// Bytes of a stream that go into one frame at most.
pub(crate) const FRAME_BYTES: usize = 16 << 10;

/// Keeps a connection open.
pub(crate) struct Connection {
    hold: Box<dyn Any + Send + Sync>,
    gone: CancellationToken,
    ended: CancellationToken,
}

impl Connection {
    /// `hold` keeps the connection open; `gone` is cancelled when the peer has left, `ended` when
    /// everything is over.
    pub(crate) fn new<H: Any + Send + Sync>(
        hold: H,
        gone: CancellationToken,
        ended: CancellationToken,
    ) -> Self {
        let hold = Box::new(hold);
        Self { hold, gone, ended }
    }

    /// Cancelled when the peer has left.
    pub(crate) fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// Lets the connection end once its streams have, and waits for that.
    pub(crate) async fn finish(self) {
        drop(self.hold);
        self.ended.cancelled().await;
    }
}
