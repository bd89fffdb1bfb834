//! Finds devices on a node for all claims of a pod, or that there are none.
//!
//! One request after another takes one device after another, each the first that will do; where
//! that leads nowhere, the search turns back and takes the next one. The first whole solution
//! wins, so drivers steer it by the names of pools, slices and devices. Pure: what is taken, which
//! classes there are and how long the search may go on come in as arguments.

use std::collections::HashMap;

use client::Key;
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceTaintRule};

use super::{
    capacity,
    constraint::Constraint,
    counters::Counters,
    inventory::{Pool, PoolState},
    ledger::Ledger,
    model::{Amounts, Device, Slice},
    request::{Asked, Wanted},
    result::{self, Chosen},
    selectors::Selectors,
};
use crate::node::NodeSpec;

/// Most devices of a claim.
const DEVICES_MAX: usize = 32;

/// Why devices cannot be had on a node.
#[derive(Debug, PartialEq)]
pub enum Refusal {
    /// There are none left that will do.
    None,
    /// The node's devices cannot be told.
    Unclear,
    /// The search took too long.
    Late,
    /// The claim or a class makes no sense.
    Error(String),
}

/// What there is to choose from on a node.
pub struct Ground<'a> {
    /// The node.
    pub node: &'a NodeSpec,
    /// The pools it reaches.
    pub pools: &'a [Pool],
    /// What is taken.
    pub ledger: &'a Ledger,
    /// Compiled expressions.
    pub selectors: &'a Selectors,
    /// Taints given to devices from outside.
    pub rules: &'a [std::sync::Arc<DeviceTaintRule>],
    /// Whether the search has to end.
    pub expired: &'a dyn Fn() -> bool,
}

/// A device and where it is from.
#[derive(Clone, Copy)]
pub struct Spot<'a> {
    /// The pool, by position.
    pool: usize,
    /// The slice.
    pub slice: &'a Slice,
    /// The device.
    pub device: &'a Device,
}

/// Devices for each of these claims, in order.
///
/// # Errors
/// Why there are none.
pub fn allocate(
    ground: &Ground<'_>,
    asked: &[Asked<'_>],
) -> Result<Vec<AllocationResult>, Refusal> {
    let mut search = Search::new(ground, asked)?;
    match search.request(0, 0) {
        Ok(true) => Ok(search.results()),
        Err(Stop::Refused(refusal)) => Err(refusal),
        Ok(false) | Err(Stop::TooMany) => {
            let invalid = |p: &Pool| matches!(p.state, PoolState::Invalid);
            Err(if ground.pools.iter().any(invalid) {
                Refusal::Unclear
            } else {
                Refusal::None
            })
        }
    }
}

/// What there is on a node for one way to satisfy a request.
#[derive(Debug, PartialEq)]
pub struct Supply {
    /// The request, or an alternative of it.
    pub request: String,
    /// Its class.
    pub class: String,
    /// How many devices it wants; `None`: all.
    pub wants: Option<usize>,
    /// How many there are.
    pub devices: usize,
    /// How many are such as it wants.
    pub matching: usize,
    /// How many of those can be had, if nothing else were asked for.
    pub free: usize,
}

/// What there is on a node for each request, for those who explain.
///
/// # Errors
/// When a claim or a class makes no sense.
pub fn survey(ground: &Ground<'_>, asked: &[Asked<'_>]) -> Result<Vec<Supply>, Refusal> {
    let mut search = Search::new(ground, asked)?;
    let mut all = Vec::new();
    for (claim, one) in asked.iter().enumerate() {
        for (request, given) in one.requests.iter().enumerate() {
            for (alternative, wanted) in given.alternatives.iter().enumerate() {
                let at = At {
                    claim,
                    request,
                    alternative,
                    nth: 0,
                };
                let mut supply = Supply {
                    request: wanted.reference.clone(),
                    class: wanted.class_name.to_owned(),
                    wants: wanted.count,
                    devices: search.spots.len(),
                    matching: 0,
                    free: 0,
                };
                for spot in 0..search.spots.len() {
                    if search.is_selectable(at, spot)? {
                        supply.matching += 1;
                        let device = search.spots[spot].device;
                        let free = search.is_free(at, spot)
                            && search.share(at, spot).is_some()
                            && search.is_tolerated(at, device);
                        supply.free += usize::from(free);
                    }
                }
                all.push(supply);
            }
        }
    }
    Ok(all)
}

/// A request of a claim, one of its alternatives, and how many devices it has.
#[derive(Clone, Copy)]
struct At {
    claim: usize,
    request: usize,
    alternative: usize,
    nth: usize,
}

/// A device given to a request.
struct Pick {
    at: At,
    spot: usize,
    /// How much of it, where it is shared.
    share: Option<Amounts>,
    /// Whether it takes counters that nobody took for it before.
    counts: bool,
}

/// Why the search does not go on.
enum Stop {
    /// The claim would get more devices than it can hold.
    TooMany,
    /// There is no point in going on.
    Refused(Refusal),
}

struct Search<'a> {
    ground: &'a Ground<'a>,
    asked: &'a [Asked<'a>],
    spots: Vec<Spot<'a>>,
    /// The devices of alternatives that want all.
    every: HashMap<(usize, usize, usize), Vec<usize>>,
    matches: HashMap<(usize, usize, usize, usize), bool>,
    constraints: Vec<Vec<Constraint<'a>>>,
    /// The claims that have each unshared device so far.
    holders: HashMap<usize, Vec<usize>>,
    /// The shares given of shared devices so far.
    shares: HashMap<usize, Vec<Amounts>>,
    counters: Counters<'a>,
    picks: Vec<Vec<Pick>>,
    /// The alternatives that were taken.
    chosen: Vec<Vec<usize>>,
}

impl<'a> Search<'a> {
    fn new(ground: &'a Ground<'a>, asked: &'a [Asked<'a>]) -> Result<Self, Refusal> {
        let mut spots = Vec::new();
        for (pool, one) in ground.pools.iter().enumerate() {
            for slice in one.contents().into_iter().flat_map(|c| &c.here) {
                let devices = slice.devices.iter();
                spots.extend(devices.map(|device| Spot {
                    pool,
                    slice,
                    device,
                }));
            }
        }
        let constraints = asked.iter().map(|a| {
            let all = a.constraints.iter().enumerate();
            all.map(|(i, given)| {
                Constraint::of(given).ok_or_else(|| {
                    Refusal::Error(format!(
                        "claim {}, constraint #{i}: empty constraint (unsupported constraint type?)",
                        Key::of(a.claim)
                    ))
                })
            })
            .collect()
        });
        let mut search = Self {
            ground,
            asked,
            spots,
            every: HashMap::new(),
            matches: HashMap::new(),
            constraints: constraints.collect::<Result<_, _>>()?,
            holders: HashMap::new(),
            shares: HashMap::new(),
            counters: Counters::new(ground.pools, ground.ledger),
            picks: asked.iter().map(|_| Vec::new()).collect(),
            chosen: asked.iter().map(|a| vec![0; a.requests.len()]).collect(),
        };
        for claim in 0..asked.len() {
            search.survey(claim)?;
        }
        Ok(search)
    }

    /// Finds out how many devices the requests of a claim need at least.
    fn survey(&mut self, claim: usize) -> Result<(), Refusal> {
        let mut least = 0;
        for (request, given) in self.asked[claim].requests.iter().enumerate() {
            let mut fewest = usize::MAX;
            for (alternative, wanted) in given.alternatives.iter().enumerate() {
                let devices = match wanted.count {
                    Some(count) => count,
                    None => self.survey_all(claim, request, alternative)?,
                };
                fewest = fewest.min(devices);
            }
            least += if fewest == usize::MAX { 0 } else { fewest };
        }
        if least > DEVICES_MAX {
            let key = Key::of(self.asked[claim].claim);
            return Err(Refusal::Error(format!(
                "claim {key}: number of requested devices {least} exceeds the claim limit of {DEVICES_MAX}"
            )));
        }
        Ok(())
    }

    /// The devices of an alternative that wants all of them.
    fn survey_all(
        &mut self,
        claim: usize,
        request: usize,
        alternative: usize,
    ) -> Result<usize, Refusal> {
        let asked = &self.asked[claim];
        let wanted = &asked.requests[request].alternatives[alternative];
        for pool in self.ground.pools {
            let why = match pool.state {
                PoolState::Complete(_) => continue,
                PoolState::Incomplete => "being updated",
                PoolState::Invalid => "invalid",
            };
            let (key, name, id) = (Key::of(asked.claim), wanted.name, &pool.id);
            return Err(Refusal::Error(format!(
                "claim {key}, request {name}: asks for all devices, but resource pool {id} is currently {why}"
            )));
        }
        let at = At {
            claim,
            request,
            alternative,
            nth: 0,
        };
        let mut all = Vec::new();
        for spot in 0..self.spots.len() {
            if self.is_selectable(at, spot)? && self.share(at, spot).is_some() {
                all.push(spot);
            }
        }
        let count = all.len();
        self.every.insert((claim, request, alternative), all);
        Ok(count)
    }

    fn wanted(&self, at: At) -> &'a Wanted<'a> {
        &self.asked[at.claim].requests[at.request].alternatives[at.alternative]
    }

    /// Satisfies a request and all that follow.
    fn request(&mut self, claim: usize, request: usize) -> Result<bool, Stop> {
        let Some(asked) = self.asked.get(claim) else {
            return Ok(true);
        };
        let Some(given) = asked.requests.get(request) else {
            return match self.request(claim + 1, 0) {
                Err(Stop::TooMany) => Ok(false),
                other => other,
            };
        };
        let mut too_many = true;
        for alternative in 0..given.alternatives.len() {
            let at = At {
                claim,
                request,
                alternative,
                nth: 0,
            };
            match self.device(at, 0) {
                Err(Stop::TooMany) => continue,
                Ok(true) => {
                    self.chosen[claim][request] = alternative;
                    return Ok(true);
                }
                Ok(false) => too_many = false,
                Err(stop) => return Err(stop),
            }
        }
        if too_many {
            return Err(Stop::TooMany);
        }
        Ok(false)
    }

    /// Gives the next device to a request, and all that follow theirs; devices before `from` have
    /// been tried.
    fn device(&mut self, at: At, from: usize) -> Result<bool, Stop> {
        if (self.ground.expired)() {
            return Err(Stop::Refused(Refusal::Late));
        }
        let wanted = self.wanted(at);
        let every = self.every.get(&(at.claim, at.request, at.alternative));
        let count = wanted.count.or(every.map(Vec::len)).unwrap_or(0);
        if wanted.count.is_none() && count == 0 {
            return Ok(false);
        }
        if at.nth >= count {
            return self.request(at.claim, at.request + 1);
        }
        if self.picks[at.claim].len() + count - at.nth > DEVICES_MAX {
            return Err(Stop::TooMany);
        }
        if let Some(spot) = every.map(|all| all[at.nth]) {
            // Which of all comes when makes no difference: there is one way only.
            return self.try_spot(at, spot, true);
        }
        for spot in from..self.spots.len() {
            if self.try_spot(at, spot, false)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Goes on with a device, if it will do; whatever comes of it, the state is as before unless
    /// all went well.
    fn try_spot(&mut self, at: At, spot: usize, must: bool) -> Result<bool, Stop> {
        if !self.take(at, spot, must).map_err(Stop::Refused)? {
            return Ok(false);
        }
        let next = At {
            nth: at.nth + 1,
            ..at
        };
        let outcome = self.device(next, spot + 1);
        if !matches!(outcome, Ok(true)) {
            self.give_back(at);
        }
        outcome
    }

    fn is_free(&self, at: At, spot: usize) -> bool {
        let holders = self.holders.get(&spot).map_or(&[][..], Vec::as_slice);
        if self.wanted(at).admin {
            return !holders.contains(&at.claim);
        }
        holders.is_empty() && !self.ground.ledger.is_taken(&self.spots[spot].device.id)
    }

    /// How much of a device the request gets; `None`: there is not enough left.
    fn share(&self, at: At, spot: usize) -> Option<Amounts> {
        let device = self.spots[spot].device;
        let share = capacity::share(device, &self.wanted(at).asked)?;
        let given = self.shares.get(&spot).into_iter().flatten();
        let taken = self.ground.ledger.shared(&device.id).into_iter();
        let taken: Vec<&Amounts> = taken.chain(given).collect();
        capacity::fits(device, &share, &taken).then_some(share)
    }

    /// Whether the class and the request want such a device, and the node reaches it.
    fn is_selectable(&mut self, at: At, spot: usize) -> Result<bool, Refusal> {
        let key = (at.claim, at.request, at.alternative, spot);
        if let Some(known) = self.matches.get(&key) {
            return Ok(*known);
        }
        let asked = &self.asked[at.claim];
        let class = &asked.classes[at.request][at.alternative];
        let Spot { slice, device, .. } = self.spots[spot];
        let of_class = class.spec.as_ref().and_then(|s| s.selectors.as_deref());
        let selectors = self.ground.selectors;
        let matches = selectors
            .match_all(of_class.unwrap_or_default(), device)
            .map_err(|e| {
                let name = class.metadata.name.as_deref().unwrap_or_default();
                Refusal::Error(format!("class {name}: {e}"))
            })?
            && selectors
                .match_all(self.wanted(at).selectors, device)
                .map_err(|e| Refusal::Error(format!("claim {}: {e}", Key::of(asked.claim))))?
            && slice.reaches_device(device, self.ground.node);
        self.matches.insert(key, matches);
        Ok(matches)
    }

    fn is_tolerated(&self, at: At, device: &Device) -> bool {
        let rules = self.ground.rules.iter().filter(|r| {
            let selector = r.spec.device_selector.as_ref();
            selector.is_some_and(|s| {
                let is =
                    |text: &Option<String>, name: &str| text.as_ref().is_none_or(|t| t == name);
                is(&s.driver, &device.id.pool.driver)
                    && is(&s.pool, &device.id.pool.pool)
                    && is(&s.device, &device.id.device)
            })
        });
        let taints = device.taints.iter().chain(rules.map(|r| &r.spec.taint));
        self.wanted(at).tolerates(taints)
    }

    /// Gives a device to the request, if it will do. `must`: the request wants this very one.
    fn take(&mut self, at: At, spot: usize, must: bool) -> Result<bool, Refusal> {
        let Spot { pool, device, .. } = self.spots[spot];
        if !self.is_free(at, spot) || !must && !self.is_selectable(at, spot)? {
            return Ok(false);
        }
        let Some(share) = self.share(at, spot) else {
            return Ok(false);
        };
        if !self.is_tolerated(at, device) {
            return Ok(false);
        }
        // The first claim that has a share of a device takes its counters for all.
        let in_use = self.ground.ledger.shared(&device.id).is_some()
            || self.shares.get(&spot).is_some_and(|s| !s.is_empty());
        let counted = device.shared && in_use;
        let counts = !device.consumes.is_empty() && !counted;
        if counts && !self.counters.take(pool, device) {
            return Ok(false);
        }
        if !self.pass_constraints(at, device) {
            if counts {
                self.counters.give_back(pool, device);
            }
            if must {
                let (key, name) = (Key::of(self.asked[at.claim].claim), self.wanted(at).name);
                return Err(Refusal::Error(format!(
                    "claim {key}, request {name}: cannot add device {} because a claim constraint would not be satisfied",
                    device.id
                )));
            }
            return Ok(false);
        }
        let share = device.shared.then_some(share);
        match &share {
            Some(share) => self.shares.entry(spot).or_default().push(share.clone()),
            None => self.holders.entry(spot).or_default().push(at.claim),
        }
        self.picks[at.claim].push(Pick {
            at,
            spot,
            share,
            counts,
        });
        Ok(true)
    }

    fn pass_constraints(&mut self, at: At, device: &'a Device) -> bool {
        let request = self.asked[at.claim].requests[at.request].name;
        let full = &self.wanted(at).reference;
        let constraints = &mut self.constraints[at.claim];
        let refused = constraints
            .iter_mut()
            .position(|c| !c.add(request, full, device));
        if let Some(refused) = refused {
            for constraint in &mut constraints[..refused] {
                constraint.remove(request, full);
            }
        }
        refused.is_none()
    }

    /// Takes back the device that the claim got last.
    fn give_back(&mut self, at: At) {
        let Some(pick) = self.picks[at.claim].pop() else {
            return;
        };
        let Spot { pool, device, .. } = self.spots[pick.spot];
        let request = self.asked[at.claim].requests[at.request].name;
        let full = &self.wanted(at).reference;
        for constraint in &mut self.constraints[at.claim] {
            constraint.remove(request, full);
        }
        if pick.share.is_some() {
            self.shares.entry(pick.spot).or_default().pop();
        } else {
            self.holders.entry(pick.spot).or_default().pop();
        }
        if pick.counts {
            self.counters.give_back(pool, device);
        }
    }

    fn results(self) -> Vec<AllocationResult> {
        let claims = self.asked.iter().zip(&self.picks).zip(&self.chosen);
        claims
            .map(|((asked, picks), alternatives)| {
                let chosen: Vec<Chosen<'_>> = picks
                    .iter()
                    .map(|pick| {
                        let Spot { slice, device, .. } = self.spots[pick.spot];
                        Chosen {
                            wanted: self.wanted(pick.at),
                            slice,
                            device,
                            share: pick.share.as_ref(),
                        }
                    })
                    .collect();
                result::of(asked, alternatives, &chosen, self.ground.node)
            })
            .collect()
    }
}
