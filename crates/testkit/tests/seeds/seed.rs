//! One seed: its cluster, its work, its faults, and its end.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use client::write;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use rand::{Rng, rngs::StdRng};
use store::HistoryLimits;

use crate::chance;
use crate::checks;
use crate::cluster::{Cluster, Ground, PARTIES};
use crate::faults::{FAIR, Faults};
use crate::network::Network;
use crate::oracle::Oracle;
use crate::run::Outcome;
use crate::user::User;

/// Least and most seconds of work and faults.
const TROUBLED_SECONDS: std::ops::RangeInclusive<u64> = 30..=120;
/// What a cluster may take to come to rest: a controller that failed all the time waits for as
/// long again.
const SETTLES: Duration = Duration::from_secs(900);
/// Time between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// A cluster is at rest when nothing has changed for so long.
const QUIET: Duration = Duration::from_secs(60);

/// Where the draws of a seed come from: one purpose each.
const OF_NETWORK: u64 = 1;
const OF_USER: u64 = 2;
const OF_FAULTS: u64 = 3;
const OF_CLUSTER: u64 = 4;

/// Runs a seed.
pub async fn run(seed: u64, ground: Ground, shown: bool) -> Outcome {
    let oracle = Oracle::new(shown);
    if let Err(error) = live(seed, ground, &oracle).await {
        oracle.fail(format!("{error:#}"));
    }
    let (commits, hash) = oracle.summary();
    let failures = oracle.failures();
    Outcome {
        hash,
        commits,
        seconds: oracle.now().as_secs(),
        trace: match !failures.is_empty() {
            true => oracle.trace(),
            false => String::new(),
        },
        failures,
    }
}

async fn live(seed: u64, ground: Ground, oracle: &Arc<Oracle>) -> anyhow::Result<()> {
    let mut chance = chance::generator(seed, OF_CLUSTER);
    let network = Network::new(chance::generator(seed, OF_NETWORK), oracle.clone());
    network.set_weather(FAIR);
    let mut cluster = Cluster::new(ground, history(&mut chance), network, oracle.clone());
    cluster.start_server().await?;
    PARTIES.iter().for_each(|party| cluster.start(*party));
    let nodes = chance.random_range(3..=5);
    let is_tight = chance.random_bool(0.3);
    simulate(&cluster, nodes, is_tight).await?;
    let time = Duration::from_secs(chance.random_range(TROUBLED_SECONDS));
    let room = if is_tight { 1 } else { 3 };
    let user = User::new(
        cluster.user(),
        oracle.clone(),
        chance::generator(seed, OF_USER),
        room,
    );
    let working = tokio::spawn(user.work(time));
    if chance.random_bool(0.95) {
        let mut faults = Faults {
            cluster: &mut cluster,
            oracle,
            chance: chance::generator(seed, OF_FAULTS),
            nodes,
        };
        faults.strike(time).await?;
    }
    working.await.context("the user")?;
    settle(oracle).await?;
    let named: BTreeSet<PathBuf> = oracle.with(checks::folders);
    let found = cluster.folders.all();
    // One of a claim that went while its volume was being made may be left over, empty.
    anyhow::ensure!(
        named.is_subset(&found),
        "volumes name the folders {named:?}, there are {found:?}"
    );
    Ok(())
}

/// How far back watches reach: not far, so that those who were away must look anew.
fn history(chance: &mut StdRng) -> HistoryLimits {
    HistoryLimits {
        segment_events: chance.random_range(100..2000),
        age: Duration::from_secs(chance.random_range(5..300)),
        ..HistoryLimits::default()
    }
}

/// Asks for nodes; where it is tight, high priority must displace low at times.
async fn simulate(cluster: &Cluster, nodes: u32, is_tight: bool) -> anyhow::Result<()> {
    let cpu = if is_tight { 4 } else { 8 };
    let profile = format!(
        "nodes: {{capacity: {{cpu: '{cpu}', memory: 8Gi, pods: '30'}}, zones: [a, b]}}\n\
         pods:\n\
         - match: {{labels: {{fate: mixed}}}}\n  start: 0..2s\n  run: 1s..8s\n  failures: 0.1\n\
         - match: {{ownerKind: Job}}\n  start: 0..2s\n  run: 1s..8s\n\
         - start: 0..2s\n  ready: 0..3s\n  stop: 0..4s\n"
    );
    let client = cluster.undisturbed().context("no server")?;
    let maps = write::namespaced::<ConfigMap>(&client, sim::NAMESPACE);
    let map = sim::Settings::config_map(nodes, &profile);
    maps.create(&PostParams::default(), &map).await?;
    Ok(())
}

/// Waits until everything is as it should be and stays so: some parts may still wait to try again.
async fn settle(oracle: &Oracle) -> anyhow::Result<()> {
    oracle.note("the cluster settles");
    let end = oracle.now() + SETTLES;
    let (mut changes, mut since) = (oracle.real_changes(), oracle.now());
    while oracle.now() < end {
        tokio::time::sleep(LOOK).await;
        let now = oracle.real_changes();
        if changes != now || !oracle.unsettled().is_empty() {
            (changes, since) = (now, oracle.now());
        } else if oracle.now() - since >= QUIET {
            return Ok(());
        }
    }
    oracle
        .unsettled()
        .into_iter()
        .for_each(|what| oracle.fail(what));
    anyhow::bail!("the cluster does not come to rest")
}
