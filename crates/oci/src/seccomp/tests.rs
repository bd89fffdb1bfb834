//! The programs are run by a small interpreter and compared with the rules they came from.

use super::*;

/// Runs a program as the kernel would; returns the action's code.
fn run(program: &[BpfInstruction], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let word = |offset: u32| match offset {
        NUMBER => number,
        ARCHITECTURE => architecture,
        _ => {
            let index = ((offset - ARGUMENTS) / 8) as usize;
            let shift = (offset - ARGUMENTS) % 8 * 8;
            (arguments[index] >> shift) as u32
        }
    };
    let (mut at, mut a) = (0, 0_u32);
    loop {
        let BpfInstruction { code, jt, jf, k } = program[at];
        at += 1;
        let taken = match code {
            LOAD => {
                a = word(k);
                continue;
            }
            AND => {
                a &= k;
                continue;
            }
            JUMP => {
                at += k as usize;
                continue;
            }
            RETURN => return k,
            JUMP_EQUAL => a == k,
            JUMP_GREATER => a > k,
            JUMP_GREATER_EQUAL => a >= k,
            other => panic!("unknown instruction {other:#x}"),
        };
        at += usize::from(if taken { jt } else { jf });
    }
}

fn call(program: &[BpfInstruction], name: &str, arguments: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    run(
        program,
        THIS_ARCHITECTURE,
        table::number(name).unwrap(),
        all,
    )
}

#[test]
fn runtime_default_decides_as_documented() {
    let allow = Action::Allow.code();
    let refuse = Action::Errno(libc::EPERM as u16).code();
    let absent = ABSENT.code();
    let plain = assemble(&runtime_default::profile(&[]));
    let admin = assemble(&runtime_default::profile(&["CAP_SYS_ADMIN".into()]));
    let table: &[(&str, &[u64], u32, u32)] = &[
        ("read", &[], allow, allow),
        ("write", &[], allow, allow),
        ("openat2", &[], allow, allow),
        ("mount", &[], refuse, allow),
        ("unshare", &[], refuse, allow),
        ("keyctl", &[], refuse, refuse),
        ("io_uring_setup", &[], refuse, refuse),
        ("clone", &[0x11], allow, allow),
        ("clone", &[0x1000_0000], refuse, allow),
        ("clone3", &[], absent, allow),
        ("socket", &[2], allow, allow),
        ("socket", &[40], refuse, refuse),
        ("personality", &[0], allow, allow),
        ("personality", &[1], refuse, refuse),
        ("personality", &[0xffff_ffff], allow, allow),
    ];
    for (name, arguments, without, with) in table {
        assert_eq!(
            call(&plain, name, arguments),
            *without,
            "{name} {arguments:x?}"
        );
        assert_eq!(
            call(&admin, name, arguments),
            *with,
            "{name} {arguments:x?} as admin"
        );
    }
    assert_eq!(
        run(&plain, 0x4000_0003, 3, [0; 6]),
        absent,
        "another architecture"
    );
    assert_eq!(
        run(&plain, THIS_ARCHITECTURE, 100_000, [0; 6]),
        absent,
        "newer than the table"
    );
}

#[test]
fn every_operator_compares_both_halves() {
    let values = [
        0,
        1,
        5,
        0xffff_ffff,
        1 << 32,
        (1 << 32) + 5,
        (5 << 32) + 1,
        u64::MAX,
    ];
    let operators = [
        Operator::Equal,
        Operator::NotEqual,
        Operator::Less,
        Operator::LessOrEqual,
        Operator::Greater,
        Operator::GreaterOrEqual,
        Operator::Masked(0xff_0000_00ff),
    ];
    for operator in operators {
        for value in values {
            let profile = Profile {
                default: Action::Errno(1),
                rules: vec![Rule::allow("read").when(Condition {
                    argument: 1,
                    operator,
                    value,
                })],
            };
            let program = assemble(&profile);
            for argument in values {
                let expected = match operator {
                    Operator::Equal => argument == value,
                    Operator::NotEqual => argument != value,
                    Operator::Less => argument < value,
                    Operator::LessOrEqual => argument <= value,
                    Operator::Greater => argument > value,
                    Operator::GreaterOrEqual => argument >= value,
                    Operator::Masked(mask) => argument & mask == value,
                };
                let code = call(&program, "read", &[0, argument]);
                let allowed = code == Action::Allow.code();
                assert_eq!(allowed, expected, "{argument:x} {operator:?} {value:x}");
            }
        }
    }
}

#[test]
fn profiles_of_the_host_are_read() {
    let text = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
        "syscalls": [
            {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["kill"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 1, "value": 9, "op": "SCMP_CMP_NE"}]},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}}
        ]}"#;
    let program = assemble(&localhost::parse(text.as_bytes(), &[]).unwrap());
    let refuse = Action::Errno(38).code();
    for (name, arguments, expected) in [
        ("read", [0, 0], Action::Allow.code()),
        ("kill", [0, 15], Action::Allow.code()),
        ("kill", [0, 9], refuse),
        ("mount", [0, 0], refuse),
    ] {
        assert_eq!(
            call(&program, name, &arguments),
            expected,
            "{name} {arguments:?}"
        );
    }
    assert!(localhost::parse(b"{}", &[]).is_err());
}
