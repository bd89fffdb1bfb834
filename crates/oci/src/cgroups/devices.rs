//! Which devices the processes of a v2 cgroup may use: a small eBPF program per container, since
//! that layout has no controller for it. Without it a container that may make device nodes (by
//! default it may) could read the host's disks.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::plan::DevicePlan;
use crate::sys::{self, EbpfInstruction};

/// What the kernel asks about, as it numbers them.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MAKE: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MAKE | READ | WRITE;

/// Devices that are allowed when everything given matches.
#[derive(Debug, Clone, Copy)]
struct Rule {
    kind: i32,
    major: Option<u32>,
    minor: Option<u32>,
    access: i32,
}

const fn character(major: u32, minor: Option<u32>) -> Rule {
    Rule {
        kind: CHARACTER,
        major: Some(major),
        minor,
        access: ALL,
    }
}

/// Nodes may be made of anything; used may be null, zero, full, random, urandom, tty, console,
/// ptmx, terminals and tun.
const USUAL: [Rule; 12] = [
    Rule {
        kind: CHARACTER,
        major: None,
        minor: None,
        access: MAKE,
    },
    Rule {
        kind: BLOCK,
        major: None,
        minor: None,
        access: MAKE,
    },
    character(1, Some(3)),
    character(1, Some(5)),
    character(1, Some(7)),
    character(1, Some(8)),
    character(1, Some(9)),
    character(5, Some(0)),
    character(5, Some(1)),
    character(5, Some(2)),
    character(136, None),
    character(10, Some(200)),
];

/// Attaches the program to the cgroup at `folder`.
pub fn restrict(folder: &Path, devices: &[DevicePlan]) -> io::Result<()> {
    let mut rules = USUAL.to_vec();
    rules.extend(devices.iter().map(rule));
    sys::attach_device_program(&File::open(folder)?, &assemble(&rules))
}

fn rule(device: &DevicePlan) -> Rule {
    let has = |letter, bit| {
        if device.permissions.contains(letter) {
            bit
        } else {
            0
        }
    };
    Rule {
        kind: if device.block { BLOCK } else { CHARACTER },
        major: Some(device.major),
        minor: Some(device.minor),
        access: has('m', MAKE) | has('r', READ) | has('w', WRITE),
    }
}

const LOAD_WORD: u8 = 0x61;
const SHIFT_RIGHT: u8 = 0x74;
const AND: u8 = 0x54;
const MOVE_REGISTER: u8 = 0xbc;
const MOVE: u8 = 0xb7;
const JUMP_UNEQUAL: u8 = 0x56;
const JUMP_UNEQUAL_REGISTER: u8 = 0x5e;
const EXIT: u8 = 0x95;

/// Registers: the answer, what the kernel asks (later scratch), and its parts.
const ANSWER: u8 = 0;
const QUESTION: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

fn step(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> EbpfInstruction {
    EbpfInstruction {
        code,
        registers: to | from << 4,
        offset,
        immediate,
    }
}

fn assemble(rules: &[Rule]) -> Vec<EbpfInstruction> {
    let mut program = vec![
        step(LOAD_WORD, KIND, QUESTION, 0, 0),
        step(MOVE_REGISTER, ACCESS, KIND, 0, 0),
        step(AND, KIND, 0, 0, 0xffff),
        step(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        step(LOAD_WORD, MAJOR, QUESTION, 4, 0),
        step(LOAD_WORD, MINOR, QUESTION, 8, 0),
    ];
    for rule in rules {
        program.extend(rule_block(rule));
    }
    program.extend([step(MOVE, ANSWER, 0, 0, 0), step(EXIT, 0, 0, 0, 0)]);
    program
}

/// Allows if the rule matches, else goes on after itself.
fn rule_block(rule: &Rule) -> Vec<EbpfInstruction> {
    let mut checks = vec![step(JUMP_UNEQUAL, KIND, 0, 0, rule.kind)];
    if rule.access != ALL {
        // All that is asked for must be allowed.
        checks.extend([
            step(MOVE_REGISTER, QUESTION, ACCESS, 0, 0),
            step(AND, QUESTION, 0, 0, rule.access),
            step(JUMP_UNEQUAL_REGISTER, QUESTION, ACCESS, 0, 0),
        ]);
    }
    if let Some(major) = rule.major {
        checks.push(step(JUMP_UNEQUAL, MAJOR, 0, 0, major.cast_signed()));
    }
    if let Some(minor) = rule.minor {
        checks.push(step(JUMP_UNEQUAL, MINOR, 0, 0, minor.cast_signed()));
    }
    checks.extend([step(MOVE, ANSWER, 0, 0, 1), step(EXIT, 0, 0, 0, 0)]);
    let end = checks.len();
    for (index, check) in checks.iter_mut().enumerate() {
        if check.code == JUMP_UNEQUAL || check.code == JUMP_UNEQUAL_REGISTER {
            check.offset = (end - index - 1) as i16;
        }
    }
    checks
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    /// The kernel is asked itself: its v2 tree takes such programs even where v1 is in use.
    #[test]
    fn the_kernel_refuses_what_is_not_listed() {
        let mut trees = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].into_iter();
        let Some(tree) = trees.find(|tree| Path::new(tree).join("cgroup.controllers").exists())
        else {
            return; // v1 alone: nobody would attach such a program.
        };
        let folder = Path::new(tree).join(format!("oci-devices-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let plan = |minor, permissions: &str| DevicePlan {
            path: String::new(),
            block: false,
            major: 1,
            minor,
            mode: 0,
            uid: 0,
            gid: 0,
            permissions: permissions.to_owned(),
        };
        // 1:11 is kmsg, which is not usual; it may only be read.
        restrict(&folder, &[plan(11, "r")]).unwrap();
        let run = |script: &str| {
            let procs = folder.join("cgroup.procs");
            let mut command = Command::new("sh");
            command.args(["-c", &format!("echo $$ > {} && {script}", procs.display())]);
            command.process_group(0).output().unwrap().status.success()
        };
        let table = [
            ("echo > /dev/null", true),
            ("head -c 1 /dev/urandom > /dev/null", true),
            ("exec 3< /dev/kmsg", true),
            ("exec 3> /dev/kmsg", false),
            ("exec 3< /dev/mem", false),
        ];
        let results: Vec<bool> = table.iter().map(|(script, _)| run(script)).collect();
        fs::remove_dir(&folder).unwrap();
        for ((script, expected), result) in table.iter().zip(results) {
            let missing = script.contains("/dev/mem") && !Path::new("/dev/mem").exists();
            assert!(missing || result == *expected, "{script}");
        }
    }
}
