//! What breaks, and when: drawn from the seed.

use std::time::Duration;

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use tokio::time::Instant;

use crate::cluster::{Cluster, PARTIES};
use crate::network::{Party, Weather};
use crate::oracle::Oracle;

/// Longest time between two faults.
const BETWEEN: Duration = Duration::from_secs(8);
/// How far clocks are set back at most, and forward.
const CLOCK_SECONDS: std::ops::RangeInclusive<i64> = -20..=200;
/// How long requests take when nothing is wrong.
pub const FAIR: Weather = Weather {
    latency: Duration::from_millis(4),
    slow: 0.0,
    lose_request: 0.0,
    lose_answer: 0.0,
    refuse: 0.0,
    conflict: 0.0,
    break_watch: 0.0,
    lag: 0.0,
    lag_time: Duration::ZERO,
};

/// Something that is broken.
#[derive(Clone, Debug)]
enum Fault {
    /// A part is dead.
    Dead(Party),
    /// The API server is dead.
    NoServer,
    /// A part does not reach the API server.
    Cut(Party),
    /// A node does not reach the API server.
    CutNode(String),
    /// The network is bad.
    Storm(Weather),
    /// The clock of every machine is set anew, by so many seconds; nobody mends that.
    ClockSet(i64),
}

/// Breaks things and mends them.
pub struct Faults<'a> {
    /// The cluster.
    pub cluster: &'a mut Cluster,
    /// Where it is told.
    pub oracle: &'a Oracle,
    /// Decides.
    pub chance: StdRng,
    /// How many nodes there are.
    pub nodes: u32,
}

impl Faults<'_> {
    /// Breaks things for this long, then mends all.
    ///
    /// # Errors
    /// When the API server does not start again.
    pub async fn strike(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        let mut open: Vec<(Instant, Fault)> = Vec::new();
        let mut next = Instant::now() + self.up_to(BETWEEN);
        while Instant::now() < end {
            let mends = open.iter().map(|(at, _)| *at).min().unwrap_or(end);
            tokio::time::sleep_until(next.min(mends).min(end)).await;
            let now = Instant::now();
            let due: Vec<Fault> = open
                .extract_if(.., |(at, _)| *at <= now)
                .map(|(_, f)| f)
                .collect();
            for fault in due {
                self.mend(&fault).await?;
            }
            if now >= next {
                let (fault, lasts) = self.draw();
                if !open.iter().any(|(_, other)| other.is_like(&fault)) {
                    self.oracle.note(&format!("fault: {fault:?} for {lasts:?}"));
                    self.begin(&fault).await;
                    open.push((now + lasts, fault));
                }
                next = now + self.up_to(BETWEEN);
            }
        }
        for (_, fault) in open {
            self.mend(&fault).await?;
        }
        Ok(())
    }

    fn up_to(&mut self, longest: Duration) -> Duration {
        let millis = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.chance.random_range(1..=millis))
    }

    fn draw(&mut self) -> (Fault, Duration) {
        let party = PARTIES
            .choose(&mut self.chance)
            .copied()
            .unwrap_or(Party::Nodes);
        let node = format!("sim-{}", self.chance.random_range(0..self.nodes));
        let (fault, longest) = match self.chance.random_range(0..100) {
            0..25 => (Fault::Dead(party), 15),
            25..40 => (Fault::NoServer, 8),
            40..55 => (Fault::Cut(party), 30),
            55..70 => (Fault::CutNode(node), 90),
            70..74 => (Fault::ClockSet(self.chance.random_range(CLOCK_SECONDS)), 1),
            _ => (Fault::Storm(self.storm()), 20),
        };
        (fault, self.up_to(Duration::from_secs(longest)))
    }

    fn storm(&mut self) -> Weather {
        let mut chance = |most: f64| match self.chance.random_bool(0.5) {
            true => self.chance.random_range(0.0..most),
            false => 0.0,
        };
        Weather {
            slow: chance(0.1),
            lose_request: chance(0.2),
            lose_answer: chance(0.3),
            refuse: chance(0.2),
            conflict: chance(0.3),
            break_watch: chance(0.1),
            lag: chance(0.3),
            lag_time: self.up_to(Duration::from_secs(8)),
            latency: self.up_to(Duration::from_millis(60)),
        }
    }

    async fn begin(&mut self, fault: &Fault) {
        match fault {
            Fault::Dead(party) => self.cluster.kill(*party),
            Fault::NoServer => self.cluster.kill_server().await,
            Fault::Cut(party) => self.cluster.network.cut(*party, true),
            Fault::CutNode(node) => self.cluster.network.cut_node(node, true),
            Fault::Storm(weather) => self.cluster.network.set_weather(*weather),
            Fault::ClockSet(seconds) => self.cluster.set_clock(*seconds),
        }
    }

    async fn mend(&mut self, fault: &Fault) -> anyhow::Result<()> {
        self.oracle.note(&format!("mended: {fault:?}"));
        match fault {
            Fault::Dead(party) => self.cluster.start(*party),
            Fault::NoServer => self.cluster.start_server().await?,
            Fault::Cut(party) => self.cluster.network.cut(*party, false),
            Fault::CutNode(node) => self.cluster.network.cut_node(node, false),
            Fault::Storm(_) => self.cluster.network.set_weather(FAIR),
            Fault::ClockSet(_) => {}
        }
        Ok(())
    }
}

impl Fault {
    /// Whether both break the same thing.
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dead(one), Self::Dead(two)) | (Self::Cut(one), Self::Cut(two)) => one == two,
            (Self::CutNode(one), Self::CutNode(two)) => one == two,
            (Self::NoServer, Self::NoServer) | (Self::Storm(_), Self::Storm(_)) => true,
            _ => false,
        }
    }
}
