//! Who gives the cluster its work. Every act is repeated until it is known to be done, as a person
//! or a script would: an answer that was lost may have been a yes.

use std::sync::Arc;
use std::time::Duration;

use client::Client;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::oracle::Oracle;
use crate::work::{self, Place};
use crate::world::{self, text};

/// Tries of one act; each waits for longer than any fault lasts all together.
const TRIES: u32 = 200;
/// Wait between tries.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest wait between two acts.
const IDLE: Duration = Duration::from_secs(4);

/// The user.
pub struct User {
    client: Client,
    oracle: Arc<Oracle>,
    chance: StdRng,
    /// Most replicas that all objects can have at once.
    room: u32,
}

/// How a deletion treats what depends on the object.
const PROPAGATIONS: [&str; 3] = ["Background", "Foreground", "Orphan"];

impl User {
    /// A user of a cluster where every object can have `room` replicas at once.
    pub fn new(client: Client, oracle: Arc<Oracle>, chance: StdRng, room: u32) -> Self {
        Self {
            client,
            oracle,
            chance,
            room,
        }
    }

    /// Works for this long, then leaves everything in a state that can be reached.
    pub async fn work(mut self, time: Duration) {
        let end = Instant::now() + time;
        self.begin().await;
        while Instant::now() < end {
            let idle = self.chance.random_range(0..=IDLE.as_millis() as u64);
            tokio::time::sleep(Duration::from_millis(idle)).await;
            self.act().await;
        }
        self.finish().await;
    }

    async fn begin(&mut self) {
        for object in work::foundations() {
            self.make(object).await;
        }
        for _ in 0..3 {
            self.create().await;
        }
    }

    async fn act(&mut self) {
        match self.chance.random_range(0..100) {
            0..20 => self.create().await,
            20..40 => self.scale().await,
            40..55 => self.roll_out().await,
            55..62 => self.delete().await,
            62..70 => self.evict().await,
            70..76 => self.delete_pod().await,
            76..84 => self.trouble_node().await,
            84..89 => self.pause().await,
            89..92 => self.namespace().await,
            92..95 => self.quota().await,
            95..97 => self.delete_claim().await,
            _ => self.delete_node().await,
        }
    }

    async fn create(&mut self) {
        for object in work::workload(&mut self.chance) {
            self.make(object).await;
        }
    }

    async fn scale(&mut self) {
        let Some(place) = self.pick(&["Deployment", "StatefulSet"]) else {
            return;
        };
        let replicas = self.chance.random_range(0..=work::MOST_REPLICAS);
        self.note(&format!("scale {place} to {replicas}"));
        self.change(&place, |o| o["spec"]["replicas"] = replicas.into())
            .await;
    }

    async fn roll_out(&mut self) {
        let Some(place) = self.pick(&["Deployment", "StatefulSet", "DaemonSet"]) else {
            return;
        };
        let image = format!("i:{}", self.chance.random_range(0..4));
        self.note(&format!("image {image} for {place}"));
        self.change(&place, |o| {
            o["spec"]["template"]["spec"]["containers"][0]["image"] = image.clone().into();
        })
        .await;
    }

    async fn pause(&mut self) {
        let Some(place) = self.pick(&["Deployment", "StatefulSet", "Job", "CronJob"]) else {
            return;
        };
        let on = self.chance.random_bool(0.5);
        self.note(&format!("hold {place}: {on}"));
        self.change(&place, |o| work::hold(o, on)).await;
    }

    async fn delete(&mut self) {
        let Some(place) = self.pick(&work::WORKLOADS) else {
            return;
        };
        // Pods that nobody owns stay for ever; the rest of a Deployment can be told apart.
        let most = if place.kind == "Deployment" { 3 } else { 2 };
        let propagation = PROPAGATIONS[self.chance.random_range(0..most)];
        self.note(&format!("delete {place} in {propagation}"));
        self.remove(&place, propagation).await;
    }

    async fn evict(&mut self) {
        let Some(pod) = self.pick(&["Pod"]) else {
            return;
        };
        self.note(&format!("evict {pod}"));
        let body = json!({"apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": pod.name, "namespace": pod.namespace}});
        let path = format!("{}/eviction", pod.path());
        // Refused or lost: it was only a wish.
        let _ = self.ask(Method::POST, &path, Some(&body)).await;
    }

    async fn delete_pod(&mut self) {
        let Some(pod) = self.pick(&["Pod"]) else {
            return;
        };
        self.note(&format!("delete {pod}"));
        let _ = self.ask(Method::DELETE, &pod.path(), None).await;
    }

    async fn trouble_node(&mut self) {
        let Some(node) = self.pick(&["Node"]) else {
            return;
        };
        let trouble = self.chance.random_range(0..4);
        self.note(&format!(
            "{node}: {}",
            ["free", "cordon", "NoSchedule", "NoExecute"][trouble]
        ));
        self.change(&node, |o| work::trouble(o, trouble)).await;
    }

    /// Deletes a node, at times one that a StatefulSet's pod is on.
    async fn delete_node(&mut self) {
        let below = match self.chance.random_bool(0.5) {
            true => self.oracle.with(nodes_of_sets),
            false => Vec::new(),
        };
        let chosen = match below.is_empty() {
            true => self.pick(&["Node"]),
            false => below.choose(&mut self.chance).cloned(),
        };
        if let Some(node) = chosen {
            self.note(&format!("delete {node}"));
            let _ = self.ask(Method::DELETE, &node.path(), None).await;
        }
    }

    /// Allows more or fewer pods than before.
    async fn quota(&mut self) {
        let pods = self.chance.random_range(work::QUOTA_RANGE);
        self.note(&format!("a quota of {pods} pods"));
        self.allow(pods).await;
    }

    async fn allow(&mut self, pods: u32) {
        let pods = pods.to_string();
        self.change(&work::quota(), |o| {
            o["spec"]["hard"]["pods"] = pods.clone().into();
        })
        .await;
    }

    /// Deletes a claim, which stays for as long as a pod uses it; its set makes another one.
    async fn delete_claim(&mut self) {
        if let Some(claim) = self.pick(&["PersistentVolumeClaim"]) {
            self.note(&format!("delete {claim}"));
            let _ = self.ask(Method::DELETE, &claim.path(), None).await;
        }
    }

    /// The namespace that comes and goes.
    async fn namespace(&mut self) {
        let place = Place::of(&work::passing_namespace());
        if self.known(&place).is_some() {
            self.note(&format!("delete {place}"));
            self.remove(&place, "Background").await;
        } else {
            self.make(work::passing_namespace()).await;
        }
    }

    /// Ends what cannot come to rest by itself.
    async fn finish(&mut self) {
        self.oracle.note("the user tidies up");
        self.allow(work::QUOTA_IN_THE_END).await;
        let nodes = self.oracle.with(|w| places(w, &["Node"]));
        for node in nodes {
            self.change(&node, |o| work::trouble(o, 0)).await;
        }
        let held = ["Deployment", "StatefulSet", "Job", "CronJob"];
        for place in self.oracle.with(|w| places(w, &held)) {
            self.change(&place, |o| work::hold(o, place.kind == "CronJob"))
                .await;
        }
        let sized = ["Deployment", "StatefulSet", "ReplicaSet"];
        for place in self.oracle.with(|w| places(w, &sized)) {
            let room = if place.namespace == work::TEAM {
                1
            } else {
                self.room
            };
            let (is_set, most) = (place.kind == "ReplicaSet", u64::from(room));
            self.change(&place, |o| {
                // A set that has an owner is the owner's to scale; one without is left over.
                if is_set && world::controller(o).is_some() {
                    return;
                }
                let wanted = o["spec"]["replicas"].as_u64().unwrap_or(1);
                o["spec"]["replicas"] = if is_set { 0 } else { wanted.min(most) }.into();
            })
            .await;
        }
    }

    fn note(&self, line: &str) {
        self.oracle.note(&format!("user: {line}"));
    }

    /// One of the objects of these kinds, as the cluster has them now.
    fn pick(&mut self, kinds: &[&str]) -> Option<Place> {
        let all = self.oracle.with(|world| places(world, kinds));
        all.choose(&mut self.chance).cloned()
    }

    fn known(&self, place: &Place) -> Option<Value> {
        self.oracle
            .with(|w| w.get(&place.kind, &place.namespace, &place.name).cloned())
    }

    /// Makes an object, unless there is one already or there can be none.
    async fn make(&mut self, object: Value) {
        let place = Place::of(&object);
        self.note(&format!("make {place}"));
        self.oracle.doubt(&place);
        for _ in 0..TRIES {
            match self
                .ask(Method::POST, &place.collection(), Some(&object))
                .await
            {
                Ok((code, made)) if code.is_success() => {
                    // Some go by themselves.
                    if made.pointer("/spec/ttlSecondsAfterFinished").is_none() {
                        self.oracle.wish(&place, true);
                    }
                    return;
                }
                // Perhaps it was an earlier try of this one that made it.
                Ok((StatusCode::CONFLICT | StatusCode::NOT_FOUND, _)) => return,
                // Its namespace is on its way out.
                Ok((StatusCode::FORBIDDEN, _)) => return,
                Ok((StatusCode::UNPROCESSABLE_ENTITY | StatusCode::BAD_REQUEST, why)) => {
                    return self.oracle.fail(format!("{place} was refused: {why}"));
                }
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
        self.oracle.fail(format!("{place} could not be made"));
    }

    /// Changes an object that is there.
    async fn change(&mut self, place: &Place, edit: impl Fn(&mut Value)) {
        for _ in 0..TRIES {
            match self.ask(Method::GET, &place.path(), None).await {
                Ok((StatusCode::OK, mut object)) => {
                    edit(&mut object);
                    match self.ask(Method::PUT, &place.path(), Some(&object)).await {
                        Ok((code, _)) if code.is_success() => return,
                        Ok((StatusCode::NOT_FOUND, _)) => return,
                        Ok((StatusCode::UNPROCESSABLE_ENTITY, why)) => {
                            return self.oracle.fail(format!("{place} was refused: {why}"));
                        }
                        _ => {}
                    }
                }
                Ok((StatusCode::NOT_FOUND, _)) => return,
                _ => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.oracle.fail(format!("{place} could not be changed"));
    }

    async fn remove(&mut self, place: &Place, propagation: &str) {
        let options = json!({"propagationPolicy": propagation});
        for _ in 0..TRIES {
            match self
                .ask(Method::DELETE, &place.path(), Some(&options))
                .await
            {
                Ok((code, _)) if code.is_success() || code == StatusCode::NOT_FOUND => {
                    return self.oracle.wish(place, false);
                }
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
        self.oracle.fail(format!("{place} could not be deleted"));
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> kube::Result<(StatusCode, Value)> {
        let body = body.map_or_else(Body::empty, |b| Body::from(b.to_string().into_bytes()));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(body)
            .map_err(kube::Error::HttpError)?;
        let (head, body) = self.client.send(request).await?.into_parts();
        let bytes = body.collect().await?.to_bytes();
        Ok((
            head.status,
            serde_json::from_slice(&bytes).unwrap_or_default(),
        ))
    }
}

/// The nodes that pods of StatefulSets are on.
fn nodes_of_sets(world: &world::World) -> Vec<Place> {
    let of_set = |pod: &Value| world::controller(pod).is_some_and(|o| o["kind"] == "StatefulSet");
    let pods = world.all("Pod").filter(|(_, pod)| of_set(pod));
    let names = pods.map(|(_, pod)| text(pod, "/spec/nodeName"));
    let nodes = names.filter_map(|name| world.get("Node", "", name));
    nodes.map(Place::of).collect()
}

/// Objects of these kinds that are not on their way out; of pods, those with an owner.
fn places(world: &world::World, kinds: &[&str]) -> Vec<Place> {
    let all = kinds.iter().flat_map(|kind| world.all(kind));
    let usable = all.filter(|(_, o)| !world::is_going(o) && work::is_ours(o));
    usable
        .filter(|(_, o)| text(o, "/kind") != "Pod" || world::controller(o).is_some())
        .filter(|(_, o)| text(o, "/kind") != "Job" || world::controller(o).is_none())
        .map(|(_, object)| Place::of(object))
        .collect()
}
