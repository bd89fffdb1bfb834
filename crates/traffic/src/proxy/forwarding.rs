//! Letting pods' packets through where another firewall on the host drops what it does not know.
//!
//! A packet must be accepted by every table. The one that stands in the way most often is `ip filter`, chain `FORWARD`,
//! whose policy Docker sets to drop: there two rules go in first, in the form `iptables` writes itself.

use net::nft::{
    Batch, BatchError, CmpOp, Connection, Dumper, Expr, Family, Reg, Verdict, meta_key,
};

pub(crate) const TABLE: &str = "filter";
pub(crate) const CHAIN: &str = "FORWARD";

/// Accepts what comes from the bridge and what goes to it. Does nothing where there is no such chain, or the rules are
/// there; `name` marks them.
pub(crate) fn allow(nft: &mut Connection, name: &str, bridge: &str) -> Result<(), BatchError> {
    if !nft.chains(Family::Ip, TABLE)?.iter().any(|c| c == CHAIN) {
        return Ok(());
    }
    let rules = rules(bridge);
    let present = nft
        .rules(Family::Ip, TABLE, CHAIN)?
        .iter()
        .filter(|r| r.comment == name)
        .count();
    if present == rules.len() {
        return Ok(());
    }
    withdraw(nft, name)?;
    let mut batch = Batch::new(Family::Ip, TABLE);
    for rule in rules {
        batch.insert_rule(CHAIN, rule, name);
    }
    nft.commit(&batch)
}

/// Takes the rules marked with `name` away again.
pub(crate) fn withdraw(nft: &mut Connection, name: &str) -> Result<(), BatchError> {
    let mut batch = Batch::new(Family::Ip, TABLE);
    for rule in nft.rules(Family::Ip, TABLE, CHAIN)? {
        if rule.comment == name {
            batch.delete_rule(CHAIN, rule.handle);
        }
    }
    nft.commit(&batch)
}

fn rules(bridge: &str) -> [Vec<Expr>; 2] {
    [meta_key::IIFNAME, meta_key::OIFNAME].map(|key| {
        let data = [bridge.as_bytes(), &[0]].concat();
        vec![
            Expr::Meta { key, dreg: Reg(0) },
            Expr::Cmp {
                op: CmpOp::Eq,
                sreg: Reg(0),
                data,
            },
            Expr::Counter,
            Expr::Verdict(Verdict::Accept),
        ]
    })
}
