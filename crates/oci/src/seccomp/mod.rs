//! System call filters, compiled to the kernel's classic BPF without any C library.
//!
//! Calls whose arguments do not matter are decided by a binary search over ranges of numbers
//! (about fourteen instructions whatever the profile's length); the few others are looked at first.

use std::collections::BTreeMap;
use std::io;

use crate::plan::{ProcessPlan, Seccomp};
use crate::sys::BpfInstruction;

mod localhost;
mod runtime_default;
mod table;

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Allow,
    /// Fails with that error number.
    Errno(u16),
    Log,
    Trap,
    KillThread,
    KillProcess,
}

impl Action {
    fn code(self) -> u32 {
        match self {
            Action::Allow => 0x7fff_0000,
            Action::Errno(number) => 0x0005_0000 | u32::from(number),
            Action::Log => 0x7ffc_0000,
            Action::Trap => 0x0003_0000,
            Action::KillThread => 0x0000_0000,
            Action::KillProcess => 0x8000_0000,
        }
    }
}

/// A comparison of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    argument: u8,
    operator: Operator,
    value: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// The argument under this mask equals the value.
    Masked(u64),
}

impl Condition {
    fn equal(argument: u8, value: u64) -> Self {
        Self {
            argument,
            operator: Operator::Equal,
            value,
        }
    }

    fn not_equal(argument: u8, value: u64) -> Self {
        Self {
            argument,
            operator: Operator::NotEqual,
            value,
        }
    }

    fn masked_equal(argument: u8, mask: u64, value: u64) -> Self {
        Self {
            argument,
            operator: Operator::Masked(mask),
            value,
        }
    }
}

/// An action for a call when all conditions hold.
#[derive(Debug, Clone)]
pub struct Rule {
    name: String,
    action: Action,
    conditions: Vec<Condition>,
}

impl Rule {
    fn new(name: &str, action: Action) -> Self {
        Self {
            name: name.to_owned(),
            action,
            conditions: Vec::new(),
        }
    }

    fn allow(name: &str) -> Self {
        Self::new(name, Action::Allow)
    }

    fn when(mut self, condition: Condition) -> Self {
        self.conditions.push(condition);
        self
    }
}

/// A filter in words.
#[derive(Debug, Clone)]
pub struct Profile {
    default: Action,
    rules: Vec<Rule>,
}

/// The filter a process gets, if any.
pub fn compile(process: &ProcessPlan) -> io::Result<Option<Vec<BpfInstruction>>> {
    let profile = match &process.seccomp {
        Seccomp::Unconfined => return Ok(None),
        Seccomp::RuntimeDefault => runtime_default::profile(&process.capabilities),
        Seccomp::Localhost(path) => localhost::load(path, &process.capabilities)?,
    };
    Ok(Some(assemble(&profile)))
}

const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;

/// Offsets in the kernel's `seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

#[cfg(target_arch = "x86_64")]
const THIS_ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const THIS_ARCHITECTURE: u32 = 0xc000_00b7;

fn step(code: u16, k: u32) -> BpfInstruction {
    BpfInstruction {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> BpfInstruction {
    BpfInstruction { code, jt, jf, k }
}

/// Calls of another architecture and calls newer than the table do not exist, as an old kernel
/// would say; programs fall back then.
const ABSENT: Action = Action::Errno(libc::ENOSYS as u16);

fn assemble(profile: &Profile) -> Vec<BpfInstruction> {
    let mut conditional: BTreeMap<u32, Vec<&Rule>> = BTreeMap::new();
    let mut plain: BTreeMap<u32, Action> = BTreeMap::new();
    for rule in &profile.rules {
        let Some(number) = table::number(&rule.name) else {
            continue;
        };
        if rule.conditions.is_empty() {
            plain.insert(number, rule.action);
        } else {
            conditional.entry(number).or_default().push(rule);
        }
    }
    // Whoever may make a call in any case needs no conditions.
    conditional.retain(|number, _| !plain.contains_key(number));

    let mut program = vec![
        step(LOAD, ARCHITECTURE),
        jump(JUMP_EQUAL, THIS_ARCHITECTURE, 1, 0),
        step(RETURN, ABSENT.code()),
        step(LOAD, NUMBER),
    ];
    for (number, rules) in conditional {
        let mut block = Vec::new();
        for rule in rules {
            block.extend(rule_block(rule));
        }
        block.push(step(RETURN, profile.default.code()));
        program.push(jump(JUMP_EQUAL, number, 1, 0));
        program.push(step(JUMP, block.len() as u32));
        program.extend(block);
    }
    search(&ranges(profile.default, &plain), &mut program);
    program
}

/// Each range's first number and action, ascending from zero.
fn ranges(default: Action, plain: &BTreeMap<u32, Action>) -> Vec<(u32, Action)> {
    let beyond = if matches!(default, Action::Allow | Action::Log) {
        default
    } else {
        ABSENT
    };
    let mut ranges: Vec<(u32, Action)> = Vec::new();
    for number in 0..=table::LAST + 1 {
        let action = if number > table::LAST {
            beyond
        } else {
            plain.get(&number).copied().unwrap_or(default)
        };
        if ranges.last().is_none_or(|(_, last)| *last != action) {
            ranges.push((number, action));
        }
    }
    ranges
}

fn search(ranges: &[(u32, Action)], program: &mut Vec<BpfInstruction>) {
    if let [(_, action)] = ranges {
        program.push(step(RETURN, action.code()));
        return;
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let mut left = Vec::new();
    search(low, &mut left);
    program.push(jump(JUMP_GREATER_EQUAL, high[0].0, 0, 1));
    program.push(step(JUMP, left.len() as u32));
    program.extend(left);
    search(high, program);
}

/// Code that returns the rule's action if all its conditions hold and falls through otherwise.
/// The number need not be kept: what follows either loads arguments or returns.
fn rule_block(rule: &Rule) -> Vec<BpfInstruction> {
    // Built from the end, so that every condition knows the way to the next rule.
    let mut tail = vec![step(RETURN, rule.action.code())];
    for condition in rule.conditions.iter().rev() {
        let mut code = condition_block(condition, tail.len() as u8);
        code.extend(tail);
        tail = code;
    }
    tail
}

/// Code that falls through if the condition holds and otherwise skips `rest` more instructions.
fn condition_block(condition: &Condition, rest: u8) -> Vec<BpfInstruction> {
    let low_word = ARGUMENTS + 8 * u32::from(condition.argument);
    let (low, high) = (condition.value as u32, (condition.value >> 32) as u32);
    let (load_high, load_low) = (step(LOAD, low_word + 4), step(LOAD, low_word));
    match condition.operator {
        Operator::Equal => vec![
            load_high,
            jump(JUMP_EQUAL, high, 0, rest + 2),
            load_low,
            jump(JUMP_EQUAL, low, 0, rest),
        ],
        Operator::NotEqual => vec![
            load_high,
            jump(JUMP_EQUAL, high, 0, 2),
            load_low,
            jump(JUMP_EQUAL, low, rest, 0),
        ],
        Operator::Masked(mask) => vec![
            load_high,
            step(AND, (mask >> 32) as u32),
            jump(JUMP_EQUAL, high, 0, rest + 3),
            load_low,
            step(AND, mask as u32),
            jump(JUMP_EQUAL, low, 0, rest),
        ],
        Operator::Greater => vec![
            load_high,
            jump(JUMP_GREATER, high, 3, 0),
            jump(JUMP_EQUAL, high, 0, rest + 2),
            load_low,
            jump(JUMP_GREATER, low, 0, rest),
        ],
        Operator::GreaterOrEqual => vec![
            load_high,
            jump(JUMP_GREATER, high, 3, 0),
            jump(JUMP_EQUAL, high, 0, rest + 2),
            load_low,
            jump(JUMP_GREATER_EQUAL, low, 0, rest),
        ],
        Operator::Less => vec![
            load_high,
            jump(JUMP_GREATER_EQUAL, high, 0, 3),
            jump(JUMP_EQUAL, high, 0, rest + 2),
            load_low,
            jump(JUMP_GREATER_EQUAL, low, rest, 0),
        ],
        Operator::LessOrEqual => vec![
            load_high,
            jump(JUMP_GREATER_EQUAL, high, 0, 3),
            jump(JUMP_EQUAL, high, 0, rest + 2),
            load_low,
            jump(JUMP_GREATER, low, rest, 0),
        ],
    }
}

#[cfg(test)]
mod tests;
