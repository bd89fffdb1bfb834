//! The pods of this node: from the API's watch and the folder of manifests to one worker each, and
//! from the runtime's events to the worker they concern.
//!
//! Invariants: a pod has one worker, from when it is first seen until nothing of it is left; pods
//! that only the runtime or the disk knows are removed, but not before the API has been listed once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::{self, Event};
use oci::cri::v1::{ListContainersRequest, ListPodSandboxRequest};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admission;
use crate::agent::{RuntimeChange, SharedAgent};
use crate::labels;
use crate::pod::{self, PodRef};
use crate::static_pods;
use crate::worker::{ApiObject, Desired, Worker};

/// Runtime changes waiting to be handed to workers.
const CHANGES: usize = 256;

struct Handle {
    desired: watch::Sender<Desired>,
    kick: Arc<Notify>,
}

/// The pods of this node by uid; shared with the node API.
#[derive(Default)]
pub struct Directory {
    pods: Mutex<HashMap<String, Handle>>,
}

impl Directory {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Handle>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod with this name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let pods = self.lock();
        let mut found = pods
            .values()
            .map(|h| h.desired.borrow().clone())
            .filter(|d| {
                let meta = &d.pod.metadata;
                meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(name)
            });
        let first = found.next()?;
        // Of two with one name, one is on its way out.
        let current = std::iter::once(first.clone())
            .chain(found)
            .find(|d| !d.removed);
        Some(current.unwrap_or(first).pod)
    }

    /// All pods.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.lock()
            .values()
            .map(|h| h.desired.borrow().pod.clone())
            .collect()
    }

    fn kick(&self, uid: &str) {
        let pods = self.lock();
        match pods.get(uid) {
            Some(handle) => handle.kick.notify_one(),
            None if uid.is_empty() => pods.values().for_each(|h| h.kick.notify_one()),
            None => {}
        }
    }
}

/// Runs the pods of this node until `shutdown`. Containers go on running after that.
pub async fn run(agent: SharedAgent, directory: Arc<Directory>, shutdown: CancellationToken) {
    let (changes, changed) = mpsc::channel(CHANGES);
    let events = tokio::spawn(follow_runtime(agent.clone(), changes));
    let _events = tokio_util::task::AbortOnDropHandle::new(events);
    let manager = Manager {
        agent,
        directory,
        workers: JoinSet::new(),
        statics: BTreeMap::new(),
        mirrors: BTreeMap::new(),
        listed: false,
    };
    manager.run(changed, shutdown).await;
}

/// Passes on what happens to containers. After each new connection everybody looks for himself.
async fn follow_runtime(agent: SharedAgent, changes: mpsc::Sender<RuntimeChange>) {
    let mut delay = std::time::Duration::from_millis(100);
    loop {
        match agent.cri.events().await {
            Ok(mut stream) => {
                delay = std::time::Duration::from_millis(100);
                if tell(&agent, &changes, RuntimeChange::default())
                    .await
                    .is_none()
                {
                    return;
                }
                while let Ok(Some(event)) = stream.message().await {
                    let sandbox = event
                        .pod_sandbox_status
                        .as_ref()
                        .and_then(|s| s.metadata.as_ref());
                    let by_label = || {
                        event
                            .containers_statuses
                            .iter()
                            .find_map(|c| c.labels.get(labels::POD_UID).cloned())
                    };
                    let pod_uid = sandbox
                        .map(|m| m.uid.clone())
                        .or_else(by_label)
                        .unwrap_or_default();
                    let change = RuntimeChange {
                        pod_uid,
                        id: event.container_id,
                    };
                    if tell(&agent, &changes, change).await.is_none() {
                        return;
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "no events from the runtime, trying again"),
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(std::time::Duration::from_secs(10));
    }
}

async fn tell(
    agent: &SharedAgent,
    changes: &mpsc::Sender<RuntimeChange>,
    change: RuntimeChange,
) -> Option<()> {
    // Nobody may be following a log just now.
    let _ = agent.changes.send(change.clone());
    changes.send(change).await.ok()
}

struct Manager {
    agent: SharedAgent,
    directory: Arc<Directory>,
    /// Each ends with the uid of its pod.
    workers: JoinSet<String>,
    /// Static pods by uid.
    statics: BTreeMap<String, Arc<Pod>>,
    /// Mirror pods in the API by namespace and name.
    mirrors: BTreeMap<(String, String), Arc<Pod>>,
    listed: bool,
}

impl Manager {
    async fn run(
        mut self,
        mut changed: mpsc::Receiver<RuntimeChange>,
        shutdown: CancellationToken,
    ) {
        let mut pods = std::pin::pin!(watch_pods(&self.agent));
        let dir = self.agent.config.static_pod_dir.clone();
        let node = self.agent.config.node_name.clone();
        let mut folder = static_pods::Folder::new(dir, &node, self.agent.notify.clone());
        let first = folder.read();
        self.set_statics(first);
        let mut seen = BTreeSet::new();
        loop {
            tokio::select! {
                event = pods.next() => match event {
                    Some(Ok(event)) => self.take(event, &mut seen).await,
                    Some(Err(_)) => {}
                    None => return,
                },
                Some(change) = changed.recv() => self.directory.kick(&change.pod_uid),
                Some(done) = self.workers.join_next(), if !self.workers.is_empty() => self.worker_done(done),
                statics = folder.changed() => self.set_statics(statics),
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn take(&mut self, event: Event<Pod>, seen: &mut BTreeSet<String>) {
        match event {
            Event::Init => seen.clear(),
            Event::InitApply(pod) => {
                seen.insert(PodRef::of(&pod).uid);
                self.apply(pod);
            }
            Event::Apply(pod) => self.apply(pod),
            Event::Delete(pod) => self.delete(pod),
            Event::InitDone => {
                self.drop_missing(seen);
                self.agent.admission.open();
                if !std::mem::replace(&mut self.listed, true) {
                    self.adopt_orphans().await;
                }
                self.sync_mirrors();
            }
        }
    }

    fn apply(&mut self, pod: Pod) {
        let identity = PodRef::of(&pod);
        let pod = Arc::new(pod);
        if pod::is_mirror(&pod) {
            self.mirrors
                .insert((identity.namespace, identity.name), pod);
            if self.listed {
                self.sync_mirrors();
            }
            return;
        }
        let object = ApiObject {
            namespace: identity.namespace,
            name: identity.name,
            uid: identity.uid,
        };
        self.set(Desired {
            pod,
            removed: false,
            object: Some(object),
        });
    }

    fn delete(&mut self, pod: Pod) {
        let identity = PodRef::of(&pod);
        if pod::is_mirror(&pod) {
            self.mirrors.remove(&(identity.namespace, identity.name));
            self.sync_mirrors();
            return;
        }
        self.remove(&identity.uid, Some(Arc::new(pod)));
    }

    fn remove(&self, uid: &str, last: Option<Arc<Pod>>) {
        self.agent.admission.release(uid);
        if let Some(handle) = self.directory.lock().get(uid) {
            handle.desired.send_modify(|desired| {
                if let Some(pod) = last {
                    desired.pod = pod;
                }
                desired.removed = true;
            });
        }
    }

    /// Pods that vanished while the watch was broken.
    fn drop_missing(&mut self, seen: &BTreeSet<String>) {
        let known: Vec<_> = self.directory.lock().keys().cloned().collect();
        for uid in known
            .iter()
            .filter(|uid| !seen.contains(*uid) && !self.statics.contains_key(*uid))
        {
            self.remove(uid, None);
        }
        self.mirrors
            .retain(|_, pod| seen.contains(&PodRef::of(pod).uid));
    }

    /// Starts a worker, or tells the one there is.
    fn set(&mut self, desired: Desired) {
        let uid = PodRef::of(&desired.pod).uid;
        if uid.is_empty() {
            return;
        }
        let mut pods = self.directory.lock();
        if let Some(handle) = pods.get(&uid) {
            self.agent.admission.update(&desired.pod);
            handle.desired.send_replace(desired);
            return;
        }
        if admission::is_known(&desired.pod) && !pod::has_ended(&desired.pod) && !desired.removed {
            self.agent.admission.hold(&desired.pod);
        }
        let (sender, receiver) = watch::channel(desired);
        let kick = Arc::new(Notify::new());
        let worker = Worker::new(self.agent.clone(), receiver, kick.clone());
        let done = uid.clone();
        self.workers.spawn(async move {
            worker.run().await;
            done
        });
        pods.insert(
            uid,
            Handle {
                desired: sender,
                kick,
            },
        );
    }

    fn worker_done(&mut self, done: Result<String, tokio::task::JoinError>) {
        match done {
            Ok(uid) => {
                self.directory.lock().remove(&uid);
                // It may have been taken in after it was removed.
                self.agent.admission.release(&uid);
            }
            Err(error) => tracing::error!(%error, "a pod worker broke off"),
        }
    }

    /// Gives everything that no pod of the API explains to workers that remove it.
    async fn adopt_orphans(&mut self) {
        let mut found = match in_runtime(&self.agent).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "looking for pods that are gone failed");
                Vec::new()
            }
        };
        found.extend(on_disk(
            &self.agent.config.root.join("pods"),
            &self.agent.config.log_root,
        ));
        for pod in found {
            let uid = PodRef::of(&pod).uid;
            if !self.directory.lock().contains_key(&uid) {
                tracing::info!(pod = %PodRef::of(&pod), %uid, "removing a pod that is gone from the API");
                self.set(Desired {
                    pod: Arc::new(pod),
                    removed: true,
                    object: None,
                });
            }
        }
    }

    fn set_statics(&mut self, pods: Vec<Pod>) {
        let new: BTreeMap<_, _> = pods
            .into_iter()
            .map(|p| (PodRef::of(&p).uid, Arc::new(p)))
            .collect();
        let old = std::mem::replace(&mut self.statics, new);
        for uid in old.keys().filter(|uid| !self.statics.contains_key(*uid)) {
            self.remove(uid, None);
        }
        for pod in self.statics.clone().into_values() {
            let object = self.mirror_of(&pod);
            self.set(Desired {
                pod,
                removed: false,
                object,
            });
        }
        if self.listed {
            self.sync_mirrors();
        }
    }

    fn mirror_of(&self, pod: &Pod) -> Option<ApiObject> {
        let PodRef {
            namespace, name, ..
        } = PodRef::of(pod);
        let mirror = self.mirrors.get(&(namespace.clone(), name.clone()))?;
        Some(ApiObject {
            namespace,
            name,
            uid: PodRef::of(mirror).uid,
        })
    }

    /// Makes the API show each static pod, and no other.
    fn sync_mirrors(&mut self) {
        let mut wanted = BTreeSet::new();
        for pod in self.statics.clone().into_values() {
            let identity = PodRef::of(&pod);
            let key = (identity.namespace, identity.name);
            let mirror = self.mirrors.get(&key);
            wanted.insert(key);
            let fits = mirror.is_some_and(|m| {
                pod::annotation(m, pod::CONFIG_MIRROR) == pod::annotation(&pod, pod::CONFIG_HASH)
            });
            match mirror {
                Some(_) if fits => {
                    let object = self.mirror_of(&pod);
                    self.set(Desired {
                        pod,
                        removed: false,
                        object,
                    });
                }
                Some(stale) => static_pods::delete_mirror(&self.agent, stale),
                None => static_pods::create_mirror(&self.agent, &pod),
            }
        }
        for (_, mirror) in self
            .mirrors
            .iter()
            .filter(|(key, _)| !wanted.contains(*key))
        {
            static_pods::delete_mirror(&self.agent, mirror);
        }
    }
}

fn watch_pods(agent: &SharedAgent) -> impl Stream<Item = watcher::Result<Event<Pod>>> + use<> {
    let api = kube::Api::<Pod>::all(agent.client.clone());
    let fields = format!("spec.nodeName={}", agent.config.node_name);
    crate::watching::retrying(watcher::watcher(
        api,
        watcher::Config::default().fields(&fields),
    ))
}

/// Pods as far as the labels of their sandboxes and containers tell.
async fn in_runtime(agent: &SharedAgent) -> crate::cri::Result<Vec<Pod>> {
    let sandboxes = agent
        .cri
        .list_pod_sandbox(ListPodSandboxRequest::default())
        .await?
        .items;
    let containers = agent
        .cri
        .list_containers(ListContainersRequest::default())
        .await?
        .containers;
    let mut out: BTreeMap<String, Pod> = BTreeMap::new();
    let nothing = HashMap::new();
    let marks = sandboxes
        .iter()
        .map(|s| (&s.labels, &nothing))
        .chain(containers.iter().map(|c| (&c.labels, &c.annotations)));
    for (marks, notes) in marks {
        let get = |key: &str| marks.get(key).cloned().unwrap_or_default();
        let uid = get(labels::POD_UID);
        if uid.is_empty() {
            continue;
        }
        let pod = out
            .entry(uid.clone())
            .or_insert_with(|| remains(&get(labels::POD_NAMESPACE), &get(labels::POD_NAME), &uid));
        let grace = notes.get(labels::GRACE).and_then(|g| g.parse().ok());
        if let (Some(grace), Some(spec)) = (grace, pod.spec.as_mut()) {
            spec.termination_grace_period_seconds = Some(grace);
        }
    }
    Ok(out.into_values().collect())
}

/// Pods as far as folders tell.
fn on_disk(pods: &Path, logs: &Path) -> Vec<Pod> {
    let names = |dir: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .filter_map(|e| e.file_name().into_string().ok())
            .collect()
    };
    let from_logs = names(logs).into_iter().filter_map(|entry| {
        let mut parts = entry.splitn(3, '_');
        Some(remains(parts.next()?, parts.next()?, parts.next()?))
    });
    let from_pods = names(pods).into_iter().map(|uid| remains("", "", &uid));
    from_logs.chain(from_pods).collect()
}

/// A pod of which only the identity is known.
fn remains(namespace: &str, name: &str, uid: &str) -> Pod {
    Pod {
        metadata: ObjectMeta {
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec::default()),
        status: None,
    }
}
