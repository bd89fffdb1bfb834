//! A cluster whose parts are killed and started again: the real API server over a store whose disk
//! survives, the real controllers, scheduler and simulated nodes, each behind the simulated network.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apiserver::{
    ApiServer,
    auth::{MASTERS, TokenIssuer, UserInfo},
};
use bytes::Bytes;
use client::{Client, Clock};
use controllers::volumes::Folders;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use store::{
    Commit, CommitError, Embedded, HistoryLimits, KeyValue, MemoryDisk, RangeRequest, RangeResult,
    ReadError, Revision, Scan, Store, Watch,
};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::network::{Network, Party, Serving};
use crate::oracle::{Follower, Oracle};

/// When every seed begins: 2026-01-05, a Monday, 08:00:30 UTC.
const EPOCH_SECONDS: i64 = 1_767_600_030;

/// What outlives the seed's process: made once, before any seed.
#[derive(Clone)]
pub struct Ground {
    /// The disk of a cluster that has started once.
    pub disk: MemoryDisk,
    /// Signs tokens; nothing of it is ever stored.
    pub tokens: TokenIssuer,
    /// Who the server is to others.
    pub front_proxy: apiserver::FrontProxy,
    /// Virtual time that had passed when the disk was left.
    pub age: Duration,
}

/// A part that runs.
struct Process {
    life: CancellationToken,
    task: JoinHandle<()>,
}

/// The cluster.
pub struct Cluster {
    ground: Ground,
    start: Instant,
    /// How far the clocks of all machines were set forward since.
    shift: Arc<AtomicI64>,
    limits: HistoryLimits,
    /// The data of volumes.
    pub folders: Arc<Names>,
    /// The network between its parts.
    pub network: Arc<Network>,
    oracle: Arc<Oracle>,
    processes: [Option<Process>; 3],
    follower: Option<JoinHandle<Follower>>,
    stop_following: CancellationToken,
}

/// The parts that can be killed besides the API server.
pub const PARTIES: [Party; 3] = [Party::Controllers, Party::Scheduler, Party::Nodes];

impl Cluster {
    /// A cluster of which nothing runs yet.
    pub fn new(
        ground: Ground,
        limits: HistoryLimits,
        network: Arc<Network>,
        oracle: Arc<Oracle>,
    ) -> Self {
        Self {
            ground,
            start: Instant::now(),
            shift: Arc::default(),
            limits,
            folders: Arc::default(),
            network,
            oracle,
            processes: [None, None, None],
            follower: None,
            stop_following: CancellationToken::new(),
        }
    }

    /// The wall clock of the simulation.
    pub fn clock(&self) -> Clock {
        let (start, age, shift) = (self.start, self.ground.age, self.shift.clone());
        Clock::from_fn(move || {
            let begin = Timestamp::from_second(EPOCH_SECONDS).unwrap_or_default();
            let shift = SignedDuration::from_secs(shift.load(Ordering::Relaxed));
            begin + age + start.elapsed() + shift
        })
    }

    /// Sets the wall clock forward by so many seconds, or back.
    pub fn set_clock(&self, seconds: i64) {
        self.shift.fetch_add(seconds, Ordering::Relaxed);
    }

    /// Starts the API server over what the disk holds.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_server(&mut self) -> anyhow::Result<()> {
        let options = store::Options {
            history: self.limits.clone(),
            ..store::Options::default()
        };
        let store = Embedded::on_memory_disk(&self.ground.disk, &options);
        if self.follower.is_none() && self.oracle.summary().0 == 0 {
            self.oracle.load(&store).await;
        }
        let stop = CancellationToken::new();
        let mut follower = self.oracle.follow(&store);
        let until = stop.clone();
        self.stop_following = stop;
        self.follower = Some(tokio::spawn(async move {
            tokio::select! {
                biased;
                () = until.cancelled() => {}
                () = follower.run() => {}
            }
            follower
        }));
        let clock = self.clock();
        let config = apiserver::Config {
            clock: Arc::new(move || clock.now()),
            front_proxy: Some(self.ground.front_proxy.clone()),
            ..apiserver::Config::new(self.ground.tokens.clone())
        };
        let slow = SlowDisk {
            store,
            network: self.network.clone(),
        };
        let api = ApiServer::new(config, Arc::new(slow)).await?;
        let down = CancellationToken::new();
        self.network.set_server(Some(Serving { api, down }));
        Ok(())
    }

    /// Kills the API server with all it has not finished.
    pub async fn kill_server(&mut self) {
        let Some(server) = self.network.server() else {
            return;
        };
        self.network.set_server(None);
        self.ground.disk.detach();
        server.down.cancel();
        server.api.stop_streams();
        self.stop_following.cancel();
        if let Some(follower) = self.follower.take()
            && let Ok(mut follower) = follower.await
        {
            follower.drain();
        }
    }

    /// Starts a part.
    pub fn start(&mut self, party: Party) {
        let life = CancellationToken::new();
        let task = match party {
            Party::Controllers => self.controllers(&life),
            Party::Scheduler => self.scheduler(&life),
            Party::Nodes => self.nodes(&life),
            Party::User => return,
        };
        if let Some(place) = self.place(party) {
            *place = Some(Process { life, task });
        }
    }

    /// Kills a part: nothing it does from now on has any effect.
    pub fn kill(&mut self, party: Party) {
        if let Some(process) = self.place(party).and_then(Option::take) {
            process.life.cancel();
            process.task.abort();
        }
    }

    /// A client for who gives the cluster its work.
    pub fn user(&self) -> Client {
        let life = CancellationToken::new();
        self.network.client(Party::User, "user", &[MASTERS], life)
    }

    /// A client to which nothing bad ever happens.
    pub fn undisturbed(&self) -> Option<Client> {
        let server = self.network.server()?;
        let user = UserInfo::new("operator", &[MASTERS]);
        Some(client::in_process(server.api.in_process(user)))
    }

    /// What is on the disk now.
    pub fn ground(&self) -> Ground {
        Ground {
            age: self.ground.age + self.start.elapsed(),
            ..self.ground.clone()
        }
    }

    fn place(&mut self, party: Party) -> Option<&mut Option<Process>> {
        let at = PARTIES.iter().position(|p| *p == party)?;
        self.processes.get_mut(at)
    }

    fn controllers(&self, life: &CancellationToken) -> JoinHandle<()> {
        let config = controllers::Config {
            cluster_cidr: "10.42.0.0/16".parse().ok(),
            root_ca: "an authority of the simulation".into(),
            volumes: Some(self.folders.clone()),
            clock: self.clock(),
            ..controllers::Config::default()
        };
        let user = "system:kube-controller-manager";
        let client = self
            .network
            .client(Party::Controllers, user, &[MASTERS], life.clone());
        tokio::spawn(controllers::run(client, config, CancellationToken::new()))
    }

    fn scheduler(&self, life: &CancellationToken) -> JoinHandle<()> {
        let config = scheduler::Config {
            clock: self.clock(),
            ..scheduler::Config::default()
        };
        let user = "system:kube-scheduler";
        let client = self
            .network
            .client(Party::Scheduler, user, &[], life.clone());
        tokio::spawn(scheduler::run(client, config, CancellationToken::new()))
    }

    fn nodes(&self, life: &CancellationToken) -> JoinHandle<()> {
        let config = sim::Config {
            version: apiserver::GIT_VERSION.to_owned(),
            clock: self.clock(),
            caches: None,
        };
        let user = "system:simulation";
        let client = self
            .network
            .client(Party::Nodes, user, &[MASTERS], life.clone());
        tokio::spawn(sim::run(client, config, CancellationToken::new()))
    }
}

/// Folders that are only names: the machine and its disk outlive every part of the cluster.
#[derive(Default)]
pub struct Names(Mutex<BTreeSet<PathBuf>>);

impl Names {
    /// All that are there.
    pub fn all(&self) -> BTreeSet<PathBuf> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Folders for Names {
    fn root(&self) -> &Path {
        Path::new("/volumes")
    }

    fn make(&self, path: PathBuf) -> BoxFuture<'_, io::Result<()>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(path);
        Box::pin(std::future::ready(Ok(())))
    }

    fn remove(&self, path: PathBuf) -> BoxFuture<'_, io::Result<()>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&path);
        Box::pin(std::future::ready(Ok(())))
    }
}

/// A store on which a commit takes its time, before it is durable and before it is answered: a
/// server killed meanwhile has lost it, or has told nobody.
struct SlowDisk {
    store: Arc<Embedded>,
    network: Arc<Network>,
}

impl Store for SlowDisk {
    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Revision, CommitError>> {
        async move {
            tokio::time::sleep(self.network.disk_delay()).await;
            let done = self.store.commit(commit).await;
            tokio::time::sleep(self.network.disk_delay()).await;
            done
        }
        .boxed()
    }

    fn get(
        &self,
        key: &[u8],
        at: Option<Revision>,
    ) -> BoxFuture<'_, Result<(Option<KeyValue>, Revision), ReadError>> {
        self.store.get(key, at)
    }

    fn range(&self, request: RangeRequest) -> BoxFuture<'_, Result<RangeResult, ReadError>> {
        self.store.range(request)
    }

    fn scan(
        &self,
        start: Bytes,
        end: Bytes,
        at: Option<Revision>,
    ) -> BoxFuture<'_, Result<Scan, ReadError>> {
        self.store.scan(start, end, at)
    }

    fn watch(&self, prefix: Bytes, after: Revision) -> Result<Watch, ReadError> {
        self.store.watch(prefix, after)
    }

    fn revision(&self) -> Revision {
        self.store.revision()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.store.close()
    }
}
