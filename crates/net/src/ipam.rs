//! Addresses for pods out of one range, kept in one file.
//!
//! Invariants: an address belongs to at most one sandbox; the file is replaced whole (written aside, then renamed), so
//! it is either the state before or after a change; an address is reused as late as possible, because clients and caches
//! elsewhere may still hold the old owner's.
//!
//! The file is not synced to disk: after a power loss no sandbox lives, and [`Ipam::retain`] drops what it still names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Who has which address. One process owns the file at a time.
#[derive(Debug)]
pub struct Ipam {
    path: PathBuf,
    range: Ipv4Net,
    gateway: Ipv4Addr,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// The address given last; the search for the next begins after it.
    last: Option<Ipv4Addr>,
    /// Sandbox id to address.
    leases: BTreeMap<String, Ipv4Addr>,
}

impl Ipam {
    /// Opens the file, which need not exist. `gateway`, the network's and the broadcast address are never given away.
    /// A file that cannot be understood is an error: giving its addresses away again would break running pods.
    pub fn open(path: &Path, range: Ipv4Net, gateway: Ipv4Addr) -> Result<Ipam> {
        let state = match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| Error::State {
                path: path.display().to_string(),
                reason: e.to_string(),
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => State::default(),
            Err(e) => return Err(Error::io(format!("read {}", path.display()), e)),
        };
        Ok(Ipam {
            path: path.to_path_buf(),
            range: range.trunc(),
            gateway,
            state: Mutex::new(state),
        })
    }

    /// The sandbox's address: the one it has, or a free one.
    pub fn allocate(&self, sandbox_id: &str) -> Result<Ipv4Addr> {
        let mut state = self.lock();
        if let Some(address) = state.leases.get(sandbox_id) {
            return Ok(*address);
        }
        let address =
            next_free(&state, self.range, self.gateway).ok_or(Error::Exhausted(self.range))?;
        let mut next = state.clone();
        next.last = Some(address);
        next.leases.insert(sandbox_id.to_string(), address);
        self.store(&mut state, next)?;
        Ok(address)
    }

    /// Frees the sandbox's address. Does nothing when it has none.
    pub fn release(&self, sandbox_id: &str) -> Result<()> {
        let mut state = self.lock();
        if !state.leases.contains_key(sandbox_id) {
            return Ok(());
        }
        let mut next = state.clone();
        next.leases.remove(sandbox_id);
        self.store(&mut state, next)
    }

    /// Frees every address whose sandbox is not among `live`, and gives each live sandbox the address it really has.
    /// To be called once after a start.
    pub fn retain(&self, live: &BTreeMap<String, Ipv4Addr>) -> Result<()> {
        let mut state = self.lock();
        let next = State {
            last: state.last,
            leases: live.clone(),
        };
        if *state == next {
            Ok(())
        } else {
            self.store(&mut state, next)
        }
    }

    /// The sandbox's address, if it has one.
    pub fn address(&self, sandbox_id: &str) -> Option<Ipv4Addr> {
        self.lock().leases.get(sandbox_id).copied()
    }

    /// Every sandbox with its address.
    pub fn leases(&self) -> BTreeMap<String, Ipv4Addr> {
        self.lock().leases.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is replaced whole, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self, state: &mut State, next: State) -> Result<()> {
        let aside = self.path.with_extension("new");
        let io = |e| Error::io(format!("write {}", self.path.display()), e);
        let bytes = serde_json::to_vec(&next).map_err(|e| Error::State {
            path: self.path.display().to_string(),
            reason: e.to_string(),
        })?;
        fs::write(&aside, bytes).map_err(io)?;
        fs::rename(&aside, &self.path).map_err(io)?;
        *state = next;
        Ok(())
    }
}

/// The first free address after the one given last, going round.
fn next_free(state: &State, range: Ipv4Net, gateway: Ipv4Addr) -> Option<Ipv4Addr> {
    let taken: BTreeSet<_> = state.leases.values().copied().collect();
    let first = u32::from(range.network()).checked_add(1)?;
    let end = u32::from(range.broadcast());
    let start = state
        .last
        .map(u32::from)
        .filter(|l| (first..end).contains(l))
        .map_or(first, |l| l + 1);
    let usable = |a: &Ipv4Addr| *a != gateway && !taken.contains(a);
    (start..end)
        .chain(first..start.min(end))
        .map(Ipv4Addr::from)
        .find(usable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(s: &str) -> Ipv4Net {
        s.parse().unwrap()
    }

    fn open(dir: &Path, range: &str) -> Ipam {
        let range = net(range);
        Ipam::open(&dir.join("ipam.json"), range, range.hosts().next().unwrap()).unwrap()
    }

    #[test]
    fn addresses_are_reused_as_late_as_possible_and_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let ipam = open(dir.path(), "10.0.0.0/29");
        assert_eq!(ipam.allocate("a").unwrap().to_string(), "10.0.0.2");
        assert_eq!(ipam.allocate("a").unwrap().to_string(), "10.0.0.2");
        ipam.release("a").unwrap();
        assert_eq!(ipam.allocate("b").unwrap().to_string(), "10.0.0.3");
        let ipam = open(dir.path(), "10.0.0.0/29");
        assert_eq!(ipam.address("b").unwrap().to_string(), "10.0.0.3");
        for (id, want) in [("c", 4), ("d", 5), ("e", 6), ("f", 2)] {
            assert_eq!(ipam.allocate(id).unwrap().octets()[3], want);
        }
        assert!(matches!(ipam.allocate("g"), Err(Error::Exhausted(_))));
        ipam.retain(&BTreeMap::from([(
            "d".to_string(),
            Ipv4Addr::new(10, 0, 0, 5),
        )]))
        .unwrap();
        assert_eq!(open(dir.path(), "10.0.0.0/29").leases().len(), 1);
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ipam.json"), "{").unwrap();
        let range = net("10.0.0.0/29");
        let opened = Ipam::open(&dir.path().join("ipam.json"), range, range.addr());
        assert!(matches!(opened, Err(Error::State { .. })));
    }

    proptest! {
        #[test]
        fn no_address_has_two_owners(steps in prop::collection::vec((any::<bool>(), 0u8..12), 1..80)) {
            let dir = tempfile::tempdir().unwrap();
            let ipam = open(dir.path(), "10.0.0.0/28");
            for (take, id) in steps {
                if take {
                    let _ = ipam.allocate(&id.to_string());
                } else {
                    ipam.release(&id.to_string()).unwrap();
                }
                let leases = ipam.leases();
                let distinct: BTreeSet<_> = leases.values().collect();
                prop_assert_eq!(distinct.len(), leases.len());
                prop_assert!(leases.values().all(|a| (2..15).contains(&a.octets()[3])));
            }
            prop_assert_eq!(open(dir.path(), "10.0.0.0/28").leases(), ipam.leases());
        }
    }
}
