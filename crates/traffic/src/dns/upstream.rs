//! Which resolvers answer for the rest of the world, and which of them are worth asking now.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// Most resolvers that are used, as in the C library.
const MAX_UPSTREAMS: usize = 3;
/// The port resolvers listen on.
const PORT: u16 = 53;
/// The file is looked at again no sooner than this after the last look.
const RELOAD: Duration = Duration::from_secs(5);
/// Failures in a row after which a resolver is left alone for a while.
const FAILURES: u32 = 3;
/// First and longest time a failing resolver is left alone.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Where the resolvers' addresses come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstreams {
    /// These.
    Fixed(Vec<SocketAddr>),
    /// The `nameserver` lines of this file (`/etc/resolv.conf`), which may change.
    File(PathBuf),
}

#[derive(Debug, Default)]
struct Health {
    failures: u32,
    rests_until: Option<Instant>,
}

/// The resolvers and how they have been doing.
#[derive(Debug)]
pub(crate) struct Pool {
    source: Upstreams,
    /// Where this server listens.
    own: SocketAddr,
    ranges: Vec<ipnet::Ipv4Net>,
    known: Vec<SocketAddr>,
    looked: Option<(Instant, Option<SystemTime>)>,
    health: HashMap<SocketAddr, Health>,
}

impl Pool {
    /// Resolvers whose address is `own` or in `ranges` are never asked: they would ask back.
    pub(crate) fn new(source: Upstreams, own: SocketAddr, ranges: Vec<ipnet::Ipv4Net>) -> Self {
        Pool {
            source,
            own,
            ranges,
            known: Vec::new(),
            looked: None,
            health: HashMap::new(),
        }
    }

    /// The resolvers to ask, best first; none when all have been failing until just now.
    pub(crate) fn candidates(&mut self, now: Instant) -> Vec<SocketAddr> {
        self.refresh(now);
        let rests = |a: &SocketAddr| {
            self.health
                .get(a)
                .and_then(|h| h.rests_until)
                .is_some_and(|until| until > now)
        };
        self.known.iter().copied().filter(|a| !rests(a)).collect()
    }

    pub(crate) fn succeeded(&mut self, upstream: SocketAddr) {
        self.health.remove(&upstream);
    }

    pub(crate) fn failed(&mut self, upstream: SocketAddr, now: Instant) {
        let health = self.health.entry(upstream).or_default();
        health.failures = health.failures.saturating_add(1);
        if let Some(over) = health.failures.checked_sub(FAILURES) {
            let rest = REST.0.saturating_mul(1 << over.min(8)).min(REST.1);
            health.rests_until = Some(now + rest);
        }
    }

    fn refresh(&mut self, now: Instant) {
        let found = match &self.source {
            Upstreams::Fixed(fixed) if self.looked.is_none() => {
                self.looked = Some((now, None));
                fixed.clone()
            }
            Upstreams::Fixed(_) => return,
            Upstreams::File(path) => {
                if self.looked.is_some_and(|(at, _)| now < at + RELOAD) {
                    return;
                }
                let modified = std::fs::metadata(path).and_then(|m| m.modified()).ok();
                let unchanged = self.looked.is_some_and(|(_, old)| old == modified);
                self.looked = Some((now, modified));
                if unchanged {
                    return;
                }
                parse(&std::fs::read_to_string(path).unwrap_or_default())
            }
        };
        let leads_back = |a: &SocketAddr| {
            let in_cluster =
                matches!(a.ip(), IpAddr::V4(v4) if self.ranges.iter().any(|r| r.contains(&v4)));
            self.own == *a || in_cluster
        };
        self.known = found
            .into_iter()
            .filter(|a| !leads_back(a))
            .take(MAX_UPSTREAMS)
            .collect();
        self.health.retain(|a, _| self.known.contains(a));
    }
}

/// The `nameserver` lines of a resolver configuration.
fn parse(text: &str) -> Vec<SocketAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then_some(())?;
        // A scope (`%eth0`) only matters for link-local addresses, which are left out.
        words.next()?.parse::<IpAddr>().ok()
    });
    addresses
        .map(|address| SocketAddr::new(address, PORT))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn own_addresses_are_left_out_and_failing_resolvers_rest() {
        let text = "# x\nnameserver 10.43.0.10\nnameserver 10.42.0.1\n nameserver 192.0.2.1\nnameserver ::1\nsearch a\n";
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        std::fs::write(&file, text).unwrap();
        let ranges = vec!["10.43.0.0/16".parse().unwrap()];
        let mut pool = Pool::new(
            Upstreams::File(file),
            "10.42.0.1:53".parse().unwrap(),
            ranges,
        );
        let now = Instant::now();
        let [first, second] =
            ["192.0.2.1:53", "[::1]:53"].map(|a| a.parse::<SocketAddr>().unwrap());
        assert_eq!(pool.candidates(now), [first, second]);
        for _ in 0..FAILURES {
            pool.failed(first, now);
        }
        assert_eq!(pool.candidates(now), [second]);
        assert_eq!(pool.candidates(now + REST.0 * 2), [first, second]);
        pool.succeeded(first);
        assert_eq!(pool.candidates(now), [first, second]);
    }
}
