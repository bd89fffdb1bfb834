//! Changes to one table, gathered and committed as one transaction.

use crate::error::{Error, Result};
use crate::netlink::{Answer, Socket, Writer, messages};
use crate::nft::expr::Expr;
use crate::nft::key::Key;
use crate::nft::set::{Element, Set};
use crate::nft::{Family, generic_header, message_type};

/// Most bytes of elements in one message: a nested attribute's length has sixteen bits.
const ELEMENT_BYTES: usize = 48 * 1024;

/// Longest comment, in bytes.
const MAX_COMMENT: usize = 250;

/// Where in the packet's path a base chain hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// On the way to a local socket.
    Input,
    /// On the way through.
    Forward,
    /// From a local socket.
    Output,
    /// After routing.
    Postrouting,
}

impl Hook {
    fn number(self) -> u32 {
        match self {
            Hook::Prerouting => 0,
            Hook::Input => 1,
            Hook::Forward => 2,
            Hook::Output => 3,
            Hook::Postrouting => 4,
        }
    }
}

/// What becomes of packets at a base chain's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// They go on.
    Accept,
    /// They vanish.
    Drop,
}

/// A chain to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chain {
    /// One that others jump to.
    Regular,
    /// One that packets pass.
    Base {
        /// `filter` or `nat`.
        kind: &'static str,
        /// Where.
        hook: Hook,
        /// Lower comes first.
        priority: i32,
        /// What if no rule decides.
        policy: Policy,
    },
}

#[derive(Debug, Clone, PartialEq)]
enum Op {
    AddTable,
    DeleteTable,
    AddChain(String, Chain),
    DeleteChain(String),
    FlushChain(String),
    AddSet(Set),
    DeleteSet(String),
    AddElements(String, Vec<Element>),
    DeleteElements(String, Vec<Element>),
    AddRule(String, Vec<Expr>),
    InsertRule(String, Vec<Expr>, String),
    DeleteRule(String, u64),
}

/// Changes to one table. Each method's return value is the change's index, which [`BatchError`] refers to.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    family: Family,
    table: String,
    ops: Vec<Op>,
}

impl Batch {
    /// No changes yet.
    pub fn new(family: Family, table: &str) -> Self {
        Batch {
            family,
            table: table.to_string(),
            ops: Vec::new(),
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Makes the table; it may exist.
    pub fn add_table(&mut self) -> usize {
        self.push(Op::AddTable)
    }

    /// Removes the table with everything in it; it must exist.
    pub fn delete_table(&mut self) -> usize {
        self.push(Op::DeleteTable)
    }

    /// Begins the table anew, whether or not it exists.
    pub fn replace_table(&mut self) -> usize {
        self.add_table();
        self.delete_table();
        self.add_table()
    }

    /// Makes a chain.
    pub fn add_chain(&mut self, name: &str, chain: Chain) -> usize {
        self.push(Op::AddChain(name.to_string(), chain))
    }

    /// Removes a chain that nothing jumps to any more.
    pub fn delete_chain(&mut self, name: &str) -> usize {
        self.push(Op::DeleteChain(name.to_string()))
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(&mut self, name: &str) -> usize {
        self.push(Op::FlushChain(name.to_string()))
    }

    /// Makes a set or map.
    pub fn add_set(&mut self, set: Set) -> usize {
        self.push(Op::AddSet(set))
    }

    /// Removes a set or map that no rule uses any more.
    pub fn delete_set(&mut self, name: &str) -> usize {
        self.push(Op::DeleteSet(name.to_string()))
    }

    /// Adds elements. To change what a key maps to, delete it earlier in the same batch.
    pub fn add_elements(&mut self, set: &str, elements: Vec<Element>) -> usize {
        self.push(Op::AddElements(set.to_string(), elements))
    }

    /// Removes elements, which must be there.
    pub fn delete_elements(&mut self, set: &str, keys: Vec<Key>) -> usize {
        self.remove_elements(set, keys.into_iter().map(Element::key).collect())
    }

    /// Removes elements of a set of ranges over several fields, which are named by both ends.
    pub fn remove_elements(&mut self, set: &str, elements: Vec<Element>) -> usize {
        self.push(Op::DeleteElements(set.to_string(), elements))
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, chain: &str, exprs: Vec<Expr>) -> usize {
        self.push(Op::AddRule(chain.to_string(), exprs))
    }

    /// Puts a rule before all others of a chain, with a comment by which [`super::Dumper::rules`] shows it.
    pub fn insert_rule(&mut self, chain: &str, exprs: Vec<Expr>, comment: &str) -> usize {
        self.push(Op::InsertRule(
            chain.to_string(),
            exprs,
            comment.to_string(),
        ))
    }

    /// Removes one rule by the kernel's number for it.
    pub fn delete_rule(&mut self, chain: &str, handle: u64) -> usize {
        self.push(Op::DeleteRule(chain.to_string(), handle))
    }

    fn push(&mut self, op: Op) -> usize {
        self.ops.push(op);
        self.ops.len() - 1
    }

    /// The messages of the batch, and for each the index of its change.
    fn encode(&self, first_seq: u32) -> Encoded {
        let mut encoded = Encoded {
            writer: Writer::default(),
            op_of_message: Vec::new(),
            seq: first_seq,
        };
        encoded.boundary(libc::NFNL_MSG_BATCH_BEGIN);
        let last = self.ops.len().saturating_sub(1);
        for (index, op) in self.ops.iter().enumerate() {
            self.encode_op(&mut encoded, index, op, index == last);
        }
        encoded.boundary(libc::NFNL_MSG_BATCH_END);
        encoded
    }

    fn encode_op(&self, out: &mut Encoded, index: usize, op: &Op, last: bool) {
        const CREATE: i32 = libc::NLM_F_CREATE;
        let table = self.table.as_str();
        let mut put = |message, flags, body: &dyn Fn(&mut Writer)| {
            out.message(index, message, flags, last, self.family.number(), body);
        };
        match op {
            Op::AddTable => put(libc::NFT_MSG_NEWTABLE, CREATE, &|w| w.string(1, table)),
            Op::DeleteTable => put(libc::NFT_MSG_DELTABLE, 0, &|w| w.string(1, table)),
            Op::AddChain(name, chain) => put(libc::NFT_MSG_NEWCHAIN, CREATE, &|w| {
                write_chain(w, table, name, chain)
            }),
            Op::DeleteChain(name) => put(libc::NFT_MSG_DELCHAIN, 0, &|w| {
                w.string(1, table);
                w.string(3, name);
            }),
            Op::FlushChain(name) => put(libc::NFT_MSG_DELRULE, 0, &|w| {
                w.string(1, table);
                w.string(2, name);
            }),
            Op::AddSet(set) => put(libc::NFT_MSG_NEWSET, CREATE, &|w| {
                set.write(w, table, index as u32 + 1)
            }),
            Op::DeleteSet(name) => put(libc::NFT_MSG_DELSET, 0, &|w| {
                w.string(1, table);
                w.string(2, name);
            }),
            Op::AddRule(chain, exprs) => {
                put(libc::NFT_MSG_NEWRULE, CREATE | libc::NLM_F_APPEND, &|w| {
                    w.string(1, table);
                    w.string(2, chain);
                    w.nested(4, |w| exprs.iter().for_each(|e| e.write(w)));
                });
            }
            Op::InsertRule(chain, exprs, comment) => put(libc::NFT_MSG_NEWRULE, CREATE, &|w| {
                w.string(1, table);
                w.string(2, chain);
                w.nested(4, |w| exprs.iter().for_each(|e| e.write(w)));
                w.attr(7, &comment_data(comment));
            }),
            Op::DeleteRule(chain, handle) => put(libc::NFT_MSG_DELRULE, 0, &|w| {
                w.string(1, table);
                w.string(2, chain);
                w.attr(3, &handle.to_be_bytes());
            }),
            Op::AddElements(set, elements) => {
                let items = elements.iter().map(|e| encode_item(|w| e.write(w)));
                self.encode_elements(
                    out,
                    (index, last),
                    libc::NFT_MSG_NEWSETELEM,
                    CREATE,
                    set,
                    items,
                );
            }
            Op::DeleteElements(set, elements) => {
                let items = elements.iter().map(|e| encode_item(|w| e.write(w)));
                self.encode_elements(out, (index, last), libc::NFT_MSG_DELSETELEM, 0, set, items);
            }
        }
    }

    /// Elements in as many messages as their bytes need.
    fn encode_elements(
        &self,
        out: &mut Encoded,
        (index, last): (usize, bool),
        message: i32,
        flags: i32,
        set: &str,
        items: impl Iterator<Item = Vec<u8>>,
    ) {
        let mut chunk: Vec<u8> = Vec::new();
        let mut items = items.peekable();
        while let Some(item) = items.next() {
            chunk.extend_from_slice(&item);
            let full = items
                .peek()
                .is_none_or(|next| chunk.len() + next.len() > ELEMENT_BYTES);
            if full {
                let ends = last && items.peek().is_none();
                out.message(index, message, flags, ends, self.family.number(), &|w| {
                    w.string(1, &self.table);
                    w.string(2, set);
                    w.nested(3, |w| w.raw(&chunk));
                });
                chunk.clear();
            }
        }
    }
}

/// A comment as `nft` and `iptables-nft` keep it: type 0, length, text with its terminating zero.
fn comment_data(comment: &str) -> Vec<u8> {
    let text = &comment.as_bytes()[..comment.len().min(MAX_COMMENT)];
    [&[0, text.len() as u8 + 1], text, &[0]].concat()
}

fn encode_item(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut w = Writer::default();
    write(&mut w);
    w.buf
}

fn write_chain(w: &mut Writer, table: &str, name: &str, chain: &Chain) {
    w.string(1, table);
    w.string(3, name);
    if let Chain::Base {
        kind,
        hook,
        priority,
        policy,
    } = chain
    {
        w.nested(4, |w| {
            w.be32(1, hook.number());
            w.be32(2, *priority as u32);
        });
        w.be32(5, u32::from(*policy == Policy::Accept));
        w.string(7, kind);
    }
}

struct Encoded {
    writer: Writer,
    /// Index of the change each message belongs to, the batch's begin excluded.
    op_of_message: Vec<usize>,
    seq: u32,
}

impl Encoded {
    fn boundary(&mut self, kind: i32) {
        let seq = self.next_seq();
        self.writer
            .message(kind as u16, libc::NLM_F_REQUEST as u16, seq, |w| {
                w.raw(&generic_header(0, libc::NFNL_SUBSYS_NFTABLES as u16));
            });
    }

    fn message(
        &mut self,
        op: usize,
        message: i32,
        flags: i32,
        last: bool,
        family: u8,
        body: &dyn Fn(&mut Writer),
    ) {
        let seq = self.next_seq();
        self.op_of_message.push(op);
        // Only the last message asks for an acknowledgement: failures are always told.
        let ack = if last { libc::NLM_F_ACK } else { 0 };
        let flags = (libc::NLM_F_REQUEST | ack | flags) as u16;
        self.writer.message(message_type(message), flags, seq, |w| {
            w.raw(&generic_header(family, 0));
            body(w);
        });
    }

    fn next_seq(&mut self) -> u32 {
        let seq = self.seq;
        self.seq = seq.wrapping_add(1);
        seq
    }
}

/// Why a batch was not applied. Nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The kernel refused one of the changes.
    #[error("{change}: {source}{}", detail.as_deref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Refused {
        /// Index of the first refused change.
        index: usize,
        /// The change, described.
        change: String,
        /// The errno.
        source: std::io::Error,
        /// The kernel's own explanation, where it gave one.
        detail: Option<String>,
    },
    /// The batch as a whole was refused (no privilege, no nftables in this kernel), or could not be sent.
    #[error(transparent)]
    Failed(#[from] Error),
}

impl BatchError {
    /// The errno behind the error, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            BatchError::Refused { source, .. } => source.raw_os_error(),
            BatchError::Failed(e) => e.errno(),
        }
    }
}

/// A connection to nftables in the network namespace of the thread that opened it.
pub struct Connection {
    pub(crate) socket: Socket,
}

impl Connection {
    /// Opens the connection.
    pub fn open() -> Result<Self> {
        Ok(Connection {
            socket: Socket::open(libc::NETLINK_NETFILTER as isize)?,
        })
    }

    /// The number by which the kernel tells this connection's changes from others'.
    pub fn port(&self) -> Result<u32> {
        self.socket.port()
    }

    /// Applies all changes at once, or none.
    pub fn commit(&mut self, batch: &Batch) -> Result<(), BatchError> {
        const ACTION: &str = "change nftables";
        if batch.is_empty() {
            return Ok(());
        }
        // Every change is at least one message; what exceeds one is known after encoding.
        let first = self.socket.take_seq(0);
        let encoded = batch.encode(first);
        self.socket.take_seq(encoded.op_of_message.len() as u32 + 2);
        self.socket.reserve_send_buffer(encoded.writer.buf.len())?;
        self.socket.send(ACTION, &encoded.writer.buf)?;

        let mut acknowledged = false;
        let mut failure: Option<Answer> = None;
        let last = first.wrapping_add(encoded.op_of_message.len() as u32);
        while let Some(datagram) = self.socket.receive(ACTION, false)? {
            for message in messages(datagram).filter(|m| i32::from(m.kind) == libc::NLMSG_ERROR) {
                let Some(answer) = Answer::parse(&message) else {
                    continue;
                };
                if answer.errno == 0 {
                    acknowledged |= answer.seq == last;
                } else if failure.is_none() {
                    failure = Some(answer);
                }
            }
        }
        match failure {
            Some(answer) => Err(batch.explain(&encoded, first, answer)),
            None if acknowledged => Ok(()),
            None => Err(Error::Malformed {
                action: ACTION.into(),
            }
            .into()),
        }
    }
}

impl Batch {
    fn explain(&self, encoded: &Encoded, first: u32, answer: Answer) -> BatchError {
        let message = answer.seq.wrapping_sub(first).wrapping_sub(1) as usize;
        let source = std::io::Error::from_raw_os_error(answer.errno);
        match encoded.op_of_message.get(message) {
            Some(&index) => BatchError::Refused {
                index,
                change: self.describe(&self.ops[index]),
                source,
                detail: answer.detail,
            },
            None => Error::Kernel {
                action: format!("change the nftables table {}", self.table),
                source,
                detail: answer.detail,
            }
            .into(),
        }
    }

    fn describe(&self, op: &Op) -> String {
        let what = match op {
            Op::AddTable => "add the table".to_string(),
            Op::DeleteTable => "delete the table".to_string(),
            Op::AddChain(name, _) => format!("add the chain {name}"),
            Op::DeleteChain(name) => format!("delete the chain {name}"),
            Op::FlushChain(name) => format!("flush the chain {name}"),
            Op::AddSet(set) => format!("add the set {}", set.name),
            Op::DeleteSet(name) => format!("delete the set {name}"),
            Op::AddElements(set, elements) => format!("add {} elements to {set}", elements.len()),
            Op::DeleteElements(set, elements) => {
                format!("delete {} elements from {set}", elements.len())
            }
            Op::InsertRule(chain, ..) => format!("insert a rule into {chain}"),
            Op::DeleteRule(chain, handle) => format!("delete rule {handle} of {chain}"),
            Op::AddRule(chain, exprs) => {
                format!("add a rule of {} expressions to {chain}", exprs.len())
            }
        };
        format!("nftables table {}: {what}", self.table)
    }
}
