//! Docker's default seccomp profile as programs for the kernel.
//!
//! The crate that compiles them knows one action for matches, so the profile becomes two programs, of whose verdicts the
//! kernel takes the stricter: the first answers clone3(2) with ENOSYS, so that C libraries fall back to clone(2), whose
//! flags can be looked at; the second lets through what the tables allow and answers EPERM to the rest.

mod profile;

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// The profile cannot be compiled on this machine.
#[derive(Debug, thiserror::Error)]
#[error("the default seccomp profile does not compile: {0}")]
pub struct CompileError(String);

impl From<seccompiler::BackendError> for CompileError {
    fn from(e: seccompiler::BackendError) -> Self {
        Self(e.to_string())
    }
}

/// The programs for a process that may get these capabilities, in the order of loading.
pub fn programs(capabilities: &[String]) -> Result<Vec<BpfProgram>, CompileError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let admin = capabilities.iter().any(|c| c == "CAP_SYS_ADMIN");
    let mut programs = Vec::new();
    if !admin {
        let enosys = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
        let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
        programs.push(SeccompFilter::new(clone3, SeccompAction::Allow, enosys, arch)?.try_into()?);
    }
    let eperm = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let allow = SeccompFilter::new(rules(capabilities, admin)?, eperm, SeccompAction::Allow, arch)?;
    programs.push(allow.try_into()?);
    Ok(programs)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// What is allowed: no rules for a call mean "whatever its arguments", several mean "any of them".
fn rules(capabilities: &[String], admin: bool) -> Result<Rules, CompileError> {
    let mut rules: Rules = BTreeMap::new();
    rules.insert(libc::SYS_socket, vec![rule(0, SeccompCmpOp::Ne, libc::AF_VSOCK.unsigned_abs().into())?]);
    let personalities = profile::PERSONALITIES.map(|p| rule(0, SeccompCmpOp::Eq, p));
    rules.insert(libc::SYS_personality, personalities.into_iter().collect::<Result<_, _>>()?);
    if !admin {
        rules.insert(libc::SYS_clone, vec![rule(0, SeccompCmpOp::MaskedEq(profile::CLONE_NAMESPACES), 0)?]);
        // Decided by the first program.
        rules.insert(libc::SYS_clone3, Vec::new());
    }
    let granted = profile::BY_CAPABILITY.iter().filter(|(c, _)| capabilities.iter().any(|have| have == c));
    for call in profile::ALLOWED.iter().chain(profile::ALLOWED_HERE).chain(granted.flat_map(|(_, calls)| *calls)) {
        rules.insert(*call, Vec::new());
    }
    Ok(rules)
}

fn rule(argument: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_compiles_within_the_kernels_limit() {
        for capabilities in [vec![], vec!["CAP_SYS_ADMIN".to_owned(), "CAP_BPF".to_owned()]] {
            for program in programs(&capabilities).unwrap() {
                assert!(program.len() < 4096, "{} instructions", program.len());
            }
        }
    }

    #[test]
    fn a_capability_opens_its_calls_and_no_others() {
        let none = rules(&[], false).unwrap();
        let boot = rules(&["CAP_SYS_BOOT".to_owned()], false).unwrap();
        let more: Vec<_> = boot.keys().filter(|c| !none.contains_key(c)).copied().collect();
        assert_eq!(more, [libc::SYS_reboot]);
        for call in [libc::SYS_mount, libc::SYS_bpf, libc::SYS_keyctl, libc::SYS_unshare, libc::SYS_setns] {
            assert!(!none.contains_key(&call));
        }
        assert!(!none[&libc::SYS_clone].is_empty());
        assert!(rules(&["CAP_SYS_ADMIN".to_owned()], true).unwrap()[&libc::SYS_clone].is_empty());
    }
}
