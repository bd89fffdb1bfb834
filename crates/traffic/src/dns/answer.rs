//! Answers about the cluster's own names, out of the zone. Pure.

use std::net::IpAddr;

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::zone::{Found, Location, Zone};

/// Time to live of all records and of denials, in seconds.
pub(crate) const TTL: u32 = 5;
/// Sum of the weights of the service records of one name.
const SRV_WEIGHT: u16 = 100;

/// What to do with a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It is about somebody else's names.
    Forward,
    /// It is answered.
    Answer(Box<Message>),
    /// It is answered so far; the rest is what this name, somebody else's, has of the type asked for.
    Follow(Box<Message>, Name),
}

/// The names that are the cluster's.
#[derive(Debug, Clone)]
pub struct Domain {
    /// The cluster's domain: `cluster.local.`
    name: Name,
    /// Address ranges whose reverse names are the cluster's.
    ranges: Vec<ipnet::Ipv4Net>,
}

impl Domain {
    /// The domain of that name (such as `cluster.local`), with the reverse names of these ranges.
    ///
    /// # Errors
    /// When it is no domain name.
    pub fn new(name: &str, ranges: &[ipnet::Ipv4Net]) -> Result<Self, hickory_proto::ProtoError> {
        let mut name = Name::from_ascii(name)?.to_lowercase();
        name.set_fqdn(true);
        Ok(Domain {
            name,
            ranges: ranges.to_vec(),
        })
    }

    /// The answer to a request with one question. `turn` shifts the order of addresses from one answer to the next.
    pub fn answer(&self, request: &Message, zone: &Zone, turn: usize) -> Outcome {
        let [query] = request.queries.as_slice() else {
            return answered(refuse(request, ResponseCode::FormErr));
        };
        if request.metadata.op_code != OpCode::Query {
            return answered(refuse(request, ResponseCode::NotImp));
        }
        if self.name.zone_of(query.name()) {
            self.answer_name(request, query, zone, turn)
        } else if let Some(address) = reverse_address(query.name()) {
            self.answer_address(request, query, zone, address)
        } else {
            Outcome::Forward
        }
    }

    fn answer_name(&self, request: &Message, query: &Query, zone: &Zone, turn: usize) -> Outcome {
        let labels: Vec<String> = query
            .name()
            .iter()
            .take(usize::from(
                query.name().num_labels() - self.name.num_labels(),
            ))
            .map(|label| String::from_utf8_lossy(label).to_ascii_lowercase())
            .collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let mut response = respond(request);
        let owner = query.name().clone();
        let kind = query.query_type();
        match zone.look_up(&labels) {
            Found::Nothing => response.metadata.response_code = ResponseCode::NXDomain,
            Found::Empty if labels.is_empty() => self.answer_apex(&mut response, owner, kind),
            Found::Empty => {}
            Found::Text(text) => {
                if matches!(kind, RecordType::TXT | RecordType::ANY) {
                    let text = RData::TXT(TXT::new(vec![text.to_string()]));
                    response.add_answer(Record::from_rdata(owner, TTL, text));
                }
            }
            Found::Addresses {
                mut addresses,
                mut locations,
            } => {
                rotate(&mut addresses, turn);
                rotate(&mut locations, turn);
                self.add_addresses(&mut response, &owner, kind, &addresses, &locations);
            }
            Found::Alias(target) => return self.answer_alias(request, query, zone, &target, turn),
        }
        answered(self.deny_if_empty(response))
    }

    fn answer_apex(&self, response: &mut Message, owner: Name, kind: RecordType) {
        if matches!(kind, RecordType::SOA | RecordType::ANY) {
            response.add_answer(Record::from_rdata(owner.clone(), TTL, self.soa()));
        }
        if matches!(kind, RecordType::NS | RecordType::ANY) {
            response.add_answer(Record::from_rdata(owner, TTL, RData::NS(NS(self.server()))));
        }
    }

    fn add_addresses(
        &self,
        response: &mut Message,
        owner: &Name,
        kind: RecordType,
        addresses: &[IpAddr],
        locations: &[Location],
    ) {
        for address in addresses {
            let data = address_data(*address);
            if kind == data.record_type() || kind == RecordType::ANY {
                response.add_answer(Record::from_rdata(owner.clone(), TTL, data));
            }
        }
        if !matches!(kind, RecordType::SRV | RecordType::ANY) {
            return;
        }
        let weight = (SRV_WEIGHT / locations.len().clamp(1, usize::from(SRV_WEIGHT)) as u16).max(1);
        for location in locations {
            let Some(host) = self.below(&location.host) else {
                continue;
            };
            let data = RData::SRV(SRV::new(0, weight, location.port, host.clone()));
            response.add_answer(Record::from_rdata(owner.clone(), TTL, data));
            for address in &location.addresses {
                let record = Record::from_rdata(host.clone(), TTL, address_data(*address));
                if !response.additionals.contains(&record) {
                    response.add_additional(record);
                }
            }
        }
    }

    fn answer_alias(
        &self,
        request: &Message,
        query: &Query,
        zone: &Zone,
        target: &str,
        turn: usize,
    ) -> Outcome {
        let mut response = respond(request);
        let Some(target) = absolute(target) else {
            return answered(refuse(request, ResponseCode::ServFail));
        };
        let alias = RData::CNAME(CNAME(target.clone()));
        response.add_answer(Record::from_rdata(query.name().clone(), TTL, alias));
        let kind = query.query_type();
        if matches!(kind, RecordType::CNAME | RecordType::ANY) {
            return answered(response);
        }
        if !self.name.zone_of(&target) {
            return Outcome::Follow(Box::new(response), target);
        }
        // An alias of an alias is not followed further: chains could be circles.
        let mut next = request.clone();
        next.queries = vec![Query::query(target.clone(), kind)];
        let labels = target
            .iter()
            .take(usize::from(target.num_labels() - self.name.num_labels()));
        let labels: Vec<String> = labels
            .map(|l| String::from_utf8_lossy(l).to_ascii_lowercase())
            .collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        if let Found::Addresses { mut addresses, .. } = zone.look_up(&labels) {
            rotate(&mut addresses, turn);
            self.add_addresses(&mut response, &target, kind, &addresses, &[]);
        }
        answered(response)
    }

    fn answer_address(
        &self,
        request: &Message,
        query: &Query,
        zone: &Zone,
        address: IpAddr,
    ) -> Outcome {
        let names = zone.names_of(address);
        let ours = matches!(address, IpAddr::V4(v4) if self.ranges.iter().any(|r| r.contains(&v4)));
        if names.is_empty() && !ours {
            return Outcome::Forward;
        }
        let mut response = respond(request);
        if names.is_empty() {
            response.metadata.response_code = ResponseCode::NXDomain;
        }
        if matches!(query.query_type(), RecordType::PTR | RecordType::ANY) {
            for name in names.iter().filter_map(|n| self.below(n)) {
                response.add_answer(Record::from_rdata(
                    query.name().clone(),
                    TTL,
                    RData::PTR(PTR(name)),
                ));
            }
        }
        answered(self.deny_if_empty(response))
    }

    /// A denial says how long it holds.
    fn deny_if_empty(&self, mut response: Message) -> Message {
        if response.answers.is_empty() {
            response.add_authority(Record::from_rdata(self.name.clone(), TTL, self.soa()));
        }
        response
    }

    fn soa(&self) -> RData {
        // Nobody transfers this zone, so that the serial and the times of transfers mean nothing.
        let contact = self
            .below("hostmaster")
            .unwrap_or_else(|| self.name.clone());
        RData::SOA(SOA::new(self.server(), contact, 1, 7200, 1800, 86400, TTL))
    }

    fn server(&self) -> Name {
        self.below("ns.dns").unwrap_or_else(|| self.name.clone())
    }

    fn below(&self, name: &str) -> Option<Name> {
        Name::from_ascii(name).ok()?.append_domain(&self.name).ok()
    }
}

fn answered(message: Message) -> Outcome {
    Outcome::Answer(Box::new(message))
}

fn absolute(name: &str) -> Option<Name> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn rotate<T>(items: &mut [T], turn: usize) {
    if !items.is_empty() {
        items.rotate_left(turn % items.len());
    }
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    }
}

/// The address that a reverse name spells whole.
fn reverse_address(name: &Name) -> Option<IpAddr> {
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

/// An authoritative response without records yet.
fn respond(request: &Message) -> Message {
    let mut response = Message::response(request.metadata.id, request.metadata.op_code);
    response.queries = request.queries.clone();
    response.metadata.authoritative = true;
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response
}

/// A response that only says why there is none.
pub(crate) fn refuse(request: &Message, code: ResponseCode) -> Message {
    let mut response = respond(request);
    response.metadata.authoritative = false;
    response.metadata.response_code = code;
    response
}
