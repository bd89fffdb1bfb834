//! One inotify instance for the whole agent (the kernel allows few of them per user): subscribers
//! are told that something happened at a path, and look for themselves what.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

/// Room for one batch of kernel events, in bytes.
const BUFFER: usize = 16 * 1024;

/// What happens to the entries of a folder.
pub const FOLDER: WatchMask = WatchMask::MODIFY
    .union(WatchMask::CREATE)
    .union(WatchMask::DELETE)
    .union(WatchMask::MOVE)
    .union(WatchMask::CLOSE_WRITE);
/// The next write to a file, once.
pub const NEXT_WRITE: WatchMask = WatchMask::MODIFY.union(WatchMask::ONESHOT);

type Subscribers = HashMap<WatchDescriptor, Vec<Arc<Notify>>>;

struct Inner {
    watches: Mutex<Watches>,
    subscribers: Mutex<Subscribers>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The shared watcher. Cheap to clone.
#[derive(Clone)]
pub struct FsNotify {
    inner: Arc<Inner>,
    _task: Arc<AbortOnDropHandle<()>>,
}

impl std::fmt::Debug for FsNotify {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FsNotify")
    }
}

/// A watch; ends when dropped.
pub struct Subscription {
    inner: Arc<Inner>,
    _task: Arc<AbortOnDropHandle<()>>,
    descriptor: WatchDescriptor,
    notify: Arc<Notify>,
}

impl Subscription {
    /// Waits until something has happened since the last call.
    pub async fn changed(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut subscribers = lock(&self.inner.subscribers);
        let Some(list) = subscribers.get_mut(&self.descriptor) else {
            return;
        };
        list.retain(|n| !Arc::ptr_eq(n, &self.notify));
        if list.is_empty() {
            subscribers.remove(&self.descriptor);
            // It is gone already if its folder is.
            let _ = lock(&self.inner.watches).remove(self.descriptor.clone());
        }
    }
}

impl FsNotify {
    /// Starts watching; needs a tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no inotify instance.
    pub fn new() -> io::Result<FsNotify> {
        let inotify = Inotify::init()?;
        let inner = Arc::new(Inner {
            watches: Mutex::new(inotify.watches()),
            subscribers: Mutex::default(),
        });
        let mut stream = inotify.into_event_stream(vec![0; BUFFER])?;
        let reader = inner.clone();
        let task = tokio::spawn(async move {
            while let Some(event) = stream.next().await {
                match event {
                    Ok(event) if event.mask.contains(EventMask::Q_OVERFLOW) => reader.wake_all(),
                    Ok(event) => reader.wake(&event.wd, event.mask),
                    Err(error) => tracing::warn!(%error, "reading inotify events failed"),
                }
            }
        });
        Ok(FsNotify {
            inner,
            _task: Arc::new(AbortOnDropHandle::new(task)),
        })
    }

    /// Watches `path` for `mask`. All watches of one path must use the same mask.
    ///
    /// # Errors
    /// When the path does not exist or the kernel's limit is reached.
    pub fn watch(&self, path: &Path, mask: WatchMask) -> io::Result<Subscription> {
        let notify = Arc::new(Notify::new());
        let mut subscribers = lock(&self.inner.subscribers);
        let descriptor = lock(&self.inner.watches).add(path, mask)?;
        subscribers
            .entry(descriptor.clone())
            .or_default()
            .push(notify.clone());
        Ok(Subscription {
            inner: self.inner.clone(),
            _task: self._task.clone(),
            descriptor,
            notify,
        })
    }
}

impl Inner {
    fn wake(&self, descriptor: &WatchDescriptor, mask: EventMask) {
        let mut subscribers = lock(&self.subscribers);
        for notify in subscribers.get(descriptor).into_iter().flatten() {
            notify.notify_one();
        }
        if mask.contains(EventMask::IGNORED) {
            subscribers.remove(descriptor);
        }
    }

    fn wake_all(&self) {
        for notify in lock(&self.subscribers).values().flatten() {
            notify.notify_one();
        }
    }
}
