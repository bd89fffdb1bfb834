//! Runs seeds and tells what became of them.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use store::MemoryDisk;

use crate::cluster::{Cluster, Ground, PARTIES};
use crate::network::Network;
use crate::oracle::Oracle;
use crate::seed;
use crate::{chance, fork};

/// Seeds of a run that names no number: what fits into a minute of two cores.
const SEEDS: u64 = 12;
/// So many of them are run once more, each in a process of its own, and must do the same.
const REPLAYED: u64 = 3;
/// Lines of its trace that are shown of a seed that failed.
const SHOWN_LINES: usize = 60;

/// What became of a seed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Hash of everything that happened.
    pub hash: u64,
    /// Commits of the store.
    pub commits: u64,
    /// Virtual seconds.
    pub seconds: u64,
    /// What broke; empty for a seed that did well.
    pub failures: Vec<String>,
    /// What happened, if it failed.
    pub trace: String,
}

/// The program.
///
/// # Errors
/// When a seed failed.
pub fn main() -> anyhow::Result<()> {
    // As other test programs: names on the command line choose tests, and this one has one name.
    let names: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    let listed = std::env::args().any(|a| a == "--list");
    if listed || !names.is_empty() && !names.iter().any(|name| "seeds".contains(name.as_str())) {
        return Ok(());
    }
    chance::reseed(0);
    let ground = on_a_clock(prepare)?;
    if let Some(seed) = number("STYR_SEED")? {
        return alone(seed, &ground);
    }
    let count = number("STYR_SEEDS")?.unwrap_or(SEEDS);
    let from = number("STYR_FROM")?.unwrap_or(0);
    many(from..from + count, &ground)
}

fn number(variable: &str) -> anyhow::Result<Option<u64>> {
    let text = std::env::var(variable).ok();
    let parsed = text.map(|t| t.parse().with_context(|| format!("{variable} is {t:?}")));
    parsed.transpose()
}

/// Runs one seed and shows its trace.
fn alone(seed: u64, ground: &Ground) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    fork::each(
        [seed],
        1,
        |seed| simulate(seed, ground, true),
        |seed, answer| match answer.and_then(|text| Ok(serde_json::from_str::<Outcome>(&text)?)) {
            Ok(outcome) => {
                println!("{}", line(seed, &outcome));
                failures = outcome.failures;
            }
            Err(error) => failures.push(error.to_string()),
        },
    )?;
    for failure in &failures {
        println!("{failure}");
    }
    anyhow::ensure!(failures.is_empty(), "seed {seed} failed");
    Ok(())
}

fn line(seed: u64, outcome: &Outcome) -> String {
    let Outcome {
        hash,
        commits,
        seconds,
        ..
    } = outcome;
    format!("seed {seed}: hash {hash:016x}, {commits} commits in {seconds} s")
}

/// Runs these seeds.
fn many(seeds: Range<u64>, ground: &Ground) -> anyhow::Result<()> {
    let start = Instant::now();
    let together = std::thread::available_parallelism().map_or(1, usize::from);
    let mut failed = Vec::new();
    let mut first = Vec::new();
    fork::each(
        seeds.clone(),
        together,
        |seed| simulate(seed, ground, false),
        |seed, answer| match answer.and_then(|text| Ok(serde_json::from_str::<Outcome>(&text)?)) {
            Ok(outcome) => {
                if !outcome.failures.is_empty() {
                    failed.push(seed);
                    tell(seed, &outcome);
                }
                if seed < seeds.start + REPLAYED {
                    first.push((seed, line(seed, &outcome)));
                }
            }
            Err(error) => {
                failed.push(seed);
                println!("seed {seed} failed: {error}");
            }
        },
    )?;
    for (seed, expected) in &first {
        replays(*seed, expected)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let count = seeds.end - seeds.start;
    println!("{count} seeds, {} failed, {seconds:.1} s", failed.len());
    failed.sort_unstable();
    anyhow::ensure!(failed.is_empty(), "seeds failed: {failed:?}");
    Ok(())
}

fn tell(seed: u64, outcome: &Outcome) {
    let lines: Vec<&str> = outcome.trace.lines().collect();
    let from = lines.len().saturating_sub(SHOWN_LINES);
    for line in &lines[from..] {
        println!("{line}");
    }
    println!("seed {seed} failed:");
    for failure in &outcome.failures {
        println!("  {failure}");
    }
    println!("replay: STYR_SEED={seed} cargo test -p testkit --test seeds");
}

/// Runs a seed in a process started afresh; it must do what it did here.
fn replays(seed: u64, expected: &str) -> anyhow::Result<()> {
    let mut program = std::process::Command::new(std::env::current_exe()?);
    let output = program.env("STYR_SEED", seed.to_string()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = text.lines().any(|line| line == expected);
    let last = text.lines().last().unwrap_or_default();
    anyhow::ensure!(said, "seed {seed} did not replay: {expected}, then {last}");
    Ok(())
}

/// Runs a seed; answers its outcome as text.
fn simulate(seed: u64, ground: &Ground, traced: bool) -> String {
    chance::reseed(seed);
    let ground = ground.clone();
    let outcome = on_a_clock(move || async move { Ok(seed::run(seed, ground, traced).await) });
    let outcome = outcome.unwrap_or_else(|error| Outcome {
        hash: 0,
        commits: 0,
        seconds: 0,
        failures: vec![format!("{error:#}")],
        trace: String::new(),
    });
    serde_json::to_string(&outcome).unwrap_or_default()
}

/// Runs `work` on a thread of its own, whose clock moves only when nothing else can be done.
fn on_a_clock<F, T>(work: impl FnOnce() -> F + Send + 'static) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
    T: Send + 'static,
{
    let thread = std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build()?;
        runtime.block_on(work())
    });
    let done = thread.join();
    done.unwrap_or_else(|_| anyhow::bail!("the simulation panicked"))
}

/// Starts a cluster once, so that every seed finds one that exists, and every table of this
/// process built.
async fn prepare() -> anyhow::Result<Ground> {
    let key = rcgen::KeyPair::generate()?.serialize_pem();
    let issuer = "https://kubernetes.default.svc.cluster.local";
    let ground = Ground {
        disk: MemoryDisk::default(),
        tokens: apiserver::auth::TokenIssuer::new(issuer, &key)?,
        front_proxy: apiserver::FrontProxy::generate()?,
        age: Duration::ZERO,
    };
    let oracle = Oracle::new(false);
    let network = Network::new(chance::generator(0, 0), oracle.clone());
    let mut cluster = Cluster::new(ground, Default::default(), network, oracle);
    cluster.start_server().await?;
    PARTIES.iter().for_each(|party| cluster.start(*party));
    tokio::time::sleep(PREPARATION).await;
    PARTIES.iter().for_each(|party| cluster.kill(*party));
    cluster.kill_server().await;
    Ok(cluster.ground())
}

/// Virtual time in which a new cluster comes to rest.
const PREPARATION: Duration = Duration::from_secs(20);
