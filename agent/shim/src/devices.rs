//! Device rules on cgroup version 2: a BPF program at the container's cgroup.
//!
//! Version 1 has a controller for it; on version 2 nothing guards devices unless a program does, and `CAP_MKNOD` is a
//! default capability: without one a container could open the node's disks. Rules are the OCI configuration's; the last
//! one that matches decides.

use std::io;
use std::path::Path;

use serde_json::Value;

use crate::sys::{self, BpfInstruction};

/// Bits of the kernel's access mask (linux/bpf.h, `BPF_DEVCG_ACC_*`) by the letter of the OCI configuration.
const ACCESS: [(char, i32); 3] = [('m', 1), ('r', 2), ('w', 4)];
const ALL: i32 = 7;

/// Makes and attaches the program for the rules in `spec`.
///
/// # Errors
/// When the kernel refuses: the container must not start then.
pub fn guard(spec: &Value, cgroup: &Path) -> io::Result<()> {
    let rules = spec.pointer("/linux/resources/devices").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let program = sys::load_device_program(&compile(rules))?;
    let dir = std::fs::File::open(cgroup)?;
    sys::attach_device_program(&dir, &program)
}

/// Registers: r2 type, r3 wanted access, r4 major, r5 minor, r1 scratch.
fn compile(rules: &[Value]) -> Vec<BpfInstruction> {
    // Classes, sizes, modes and operations as in linux/bpf_common.h and linux/bpf.h.
    const LOAD_WORD: u8 = 0x61;
    const AND: u8 = 0x54;
    const SHIFT_RIGHT: u8 = 0x74;
    const MOVE: u8 = 0xbc;
    const MOVE_CONSTANT: u8 = 0xb4;
    const UNLESS_EQUAL: u8 = 0x56;
    const UNLESS_EQUAL_REGISTER: u8 = 0x5e;
    const IF_EQUAL: u8 = 0x16;
    const EXIT: u8 = 0x95;
    let op = |code, dst, src, offset, constant| BpfInstruction::new(code, dst, src, offset, constant);
    let mut program = vec![
        op(LOAD_WORD, 2, 1, 0, 0),
        op(AND, 2, 0, 0, 0xffff),
        op(LOAD_WORD, 3, 1, 0, 0),
        op(SHIFT_RIGHT, 3, 0, 0, 16),
        op(LOAD_WORD, 4, 1, 4, 0),
        op(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let allow = rule["allow"].as_bool().unwrap_or(false);
        let letters = rule["access"].as_str().unwrap_or("rwm");
        let access = ACCESS.iter().filter(|(c, _)| letters.contains(*c)).map(|(_, bit)| bit).sum::<i32>();
        let mut body = Vec::new();
        // Offsets are set when the length is known.
        match rule["type"].as_str() {
            Some("b") => body.push(op(UNLESS_EQUAL, 2, 0, 0, 1)),
            Some("c" | "u") => body.push(op(UNLESS_EQUAL, 2, 0, 0, 2)),
            _ => {}
        }
        if access != ALL {
            body.extend([op(MOVE, 1, 3, 0, 0), op(AND, 1, 0, 0, access)]);
            // Allowed if all that is wanted is in the rule, denied if any of it is.
            body.push(if allow { op(UNLESS_EQUAL_REGISTER, 1, 3, 0, 0) } else { op(IF_EQUAL, 1, 0, 0, 0) });
        }
        for (name, register) in [("major", 4), ("minor", 5)] {
            if let Some(number) = rule[name].as_i64().and_then(|n| i32::try_from(n).ok()).filter(|n| *n >= 0) {
                body.push(op(UNLESS_EQUAL, register, 0, 0, number));
            }
        }
        body.extend([op(MOVE_CONSTANT, 0, 0, 0, i32::from(allow)), op(EXIT, 0, 0, 0, 0)]);
        let len = body.len();
        for (at, instruction) in body.iter_mut().enumerate() {
            if instruction.is_jump() {
                instruction.set_offset(i16::try_from(len - at - 1).expect("a rule has fewer than ten instructions"));
            }
        }
        let always = !body.iter().any(|i| i.is_jump());
        program.append(&mut body);
        if always {
            // What follows could not be reached, which the kernel's verifier refuses.
            return program;
        }
    }
    program.extend([op(MOVE_CONSTANT, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::process::Command;

    /// Takes the cgroup away whatever happens.
    struct Cgroup(std::path::PathBuf);

    impl Drop for Cgroup {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir(&self.0);
        }
    }

    fn version_two() -> std::path::PathBuf {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let line = mounts.lines().find(|l| l.split(' ').nth(2) == Some("cgroup2")).expect("cgroup2 is mounted");
        line.split(' ').nth(1).unwrap().into()
    }

    #[test]
    #[ignore = "needs root"]
    fn devices_outside_the_rules_cannot_be_opened_but_their_nodes_can_be_made() {
        let cgroup = Cgroup(version_two().join(format!("shi-devices-{}", std::process::id())));
        std::fs::create_dir(&cgroup.0).unwrap();
        let rules = json!({"linux": {"resources": {"devices": [
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "access": "m"},
            {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 8, "access": "rw"},
            {"allow": false, "type": "c", "major": 1, "minor": 8, "access": "w"},
        ]}}});
        guard(&rules, &cgroup.0).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let script = "echo 0 > $1/cgroup.procs; cd $2
            can() { if ( \"$@\" ) 2> error; then echo yes; else cat error | grep -q 'not permitted' && echo no; fi; }
            can sh -c 'head -c 1 /dev/zero > /dev/null'
            can sh -c 'head -c 1 /dev/random > /dev/null'
            can sh -c 'echo x > /dev/random'
            can sh -c 'head -c 1 /dev/full > /dev/null'
            can mknod disk b 254 0
            can sh -c 'head -c 1 disk > /dev/null'
            can mknod full c 1 7";
        let output = Command::new("sh").args(["-c", script, "sh"]).arg(&cgroup.0).arg(dir.path()).output().unwrap();
        let got = String::from_utf8(output.stdout).unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            got.split_whitespace().collect::<Vec<_>>(),
            ["yes", "yes", "no", "no", "yes", "no", "no"],
            "{error}"
        );
    }
}
