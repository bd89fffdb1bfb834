//! ConfigMaps and Secrets that pods of this node refer to, and only those: one watch per object,
//! shared, alive as long as somebody holds a [`Ref`].

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, Weak};

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use kube::runtime::watcher;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// What is known of an object: nothing yet, or that it is there or not.
pub type Known<K> = Option<Option<Arc<K>>>;

struct Shared<K> {
    state: watch::Receiver<Known<K>>,
    _task: AbortOnDropHandle<()>,
}

/// A hold on one object, which remembers what of it was seen last.
pub struct Ref<K> {
    seen: watch::Receiver<Known<K>>,
    _shared: Arc<Shared<K>>,
}

impl<K> Clone for Ref<K> {
    fn clone(&self) -> Self {
        Ref {
            seen: self.seen.clone(),
            _shared: self._shared.clone(),
        }
    }
}

impl<K> Ref<K> {
    fn new(shared: Arc<Shared<K>>) -> Self {
        Ref {
            seen: shared.state.clone(),
            _shared: shared,
        }
    }

    /// The object, or `None` if there is none; waits until that is known.
    pub async fn get(&mut self) -> Option<Arc<K>> {
        // The task sends for as long as this hold exists.
        match self.seen.wait_for(Option::is_some).await {
            Ok(known) => known.clone().flatten(),
            Err(_) => None,
        }
    }

    /// Waits until the object is another than the one that [`Ref::get`] gave last.
    pub async fn changed(&self) {
        if self.seen.clone().changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// By namespace and name.
type Held<K> = HashMap<(String, String), Weak<Shared<K>>>;

/// Held objects of one kind.
pub struct Refs<K> {
    client: kube::Client,
    held: Mutex<Held<K>>,
}

impl<K> Debug for Refs<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Refs")
    }
}

impl<K> Refs<K>
where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    /// Nothing held yet.
    pub fn new(client: kube::Client) -> Self {
        Refs {
            client,
            held: Mutex::default(),
        }
    }

    /// Holds the object `namespace`/`name`, which need not exist.
    pub fn hold(&self, namespace: &str, name: &str) -> Ref<K> {
        let mut held = self
            .held
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(shared) = held.get(&key).and_then(Weak::upgrade) {
            return Ref::new(shared);
        }
        held.retain(|_, weak| weak.strong_count() > 0);
        let (sender, state) = watch::channel(None);
        let api = kube::Api::<K>::namespaced(self.client.clone(), namespace);
        let task = tokio::spawn(follow(api, name.to_owned(), sender));
        let shared = Arc::new(Shared {
            state,
            _task: AbortOnDropHandle::new(task),
        });
        held.insert(key, Arc::downgrade(&shared));
        Ref::new(shared)
    }
}

async fn follow<K>(api: kube::Api<K>, name: String, sender: watch::Sender<Known<K>>)
where
    K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut stream = std::pin::pin!(crate::watching::retrying(watcher::watch_object(api, &name)));
    while let Some(item) = stream.next().await {
        if let Ok(object) = item {
            let object = object.map(Arc::new);
            sender.send_replace(Some(object));
        }
    }
}
