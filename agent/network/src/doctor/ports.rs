//! Whether the ports that skep needs are its own, from the tables of `/proc/net` (proc_pid_net(5)).

use std::collections::BTreeMap;

use skep_proto::model::doctor::Check;

/// A port that skep needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needed {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Its number.
    pub port: u16,
    /// What for, in a few words.
    pub purpose: &'static str,
    /// It must be open now.
    pub now: bool,
}

/// A socket that takes what comes to a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The port.
    pub port: u16,
    /// Its inode; 0 for one of the kernel's own.
    pub inode: u64,
}

/// Sockets of one table: those of TCP that listen, all of UDP. Malformed lines are passed over.
pub fn sockets(protocol: &'static str, table: &str) -> Vec<Socket> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let port = u16::from_str_radix(fields.nth(1)?.rsplit_once(':')?.1, 16).ok()?;
        // `TCP_LISTEN`; of UDP, one that is connected has another state than `TCP_CLOSE`.
        let state = fields.nth(1)?;
        let listens = if protocol == "tcp" { state == "0A" } else { state == "07" };
        let inode = fields.nth(5)?.parse().ok()?;
        listens.then_some(Socket { protocol, port, inode })
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// Judges one port. `owners` are the names of programs by inode; those that are not there are the kernel's.
pub fn judge(needed: &Needed, sockets: &[Socket], owners: &BTreeMap<u64, String>) -> Check {
    let Needed { protocol, port, purpose, now } = needed;
    let name = format!("port {port}/{protocol}");
    let there: Vec<&Socket> = sockets.iter().filter(|s| s.protocol == *protocol && s.port == *port).collect();
    let other = there.iter().find_map(|socket| owners.get(&socket.inode)).filter(|owner| !is_ours(owner));
    match (other, there.is_empty(), now) {
        (Some(owner), _, _) => Check::failed(
            &name,
            format!("{owner} has it, which {purpose} needs"),
            format!("end {owner}, or give one of the two another port"),
        ),
        (None, true, true) => Check::failed(
            &name,
            format!("nobody listens, though {purpose} needs it"),
            "look in this node's log for why it was not opened; restarting the daemon tries again",
        ),
        (None, true, false) => Check::ok(&name, format!("free for {purpose}")),
        (None, false, _) => Check::ok(&name, format!("open for {purpose}")),
    }
}

fn is_ours(owner: &str) -> bool {
    owner == "skep" || owner.starts_with("skep ")
}

/// Names and process ids of the programs that have those sockets open.
pub fn owners(sockets: &[Socket]) -> BTreeMap<u64, String> {
    let mut found = BTreeMap::new();
    let wanted = |inode: &u64| *inode != 0 && sockets.iter().any(|socket| socket.inode == *inode);
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        for file in std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = std::fs::read_link(file.path()) else { continue };
            let inode = target.to_str().and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode.filter(wanted) {
                let command = std::fs::read_link(process.path().join("exe")).ok();
                let command = command.and_then(|exe| Some(exe.file_name()?.to_str()?.to_owned())).unwrap_or_default();
                // After an upgrade the file that runs is another one than is there.
                let command = command.trim_end_matches(" (deleted)");
                found.insert(inode, format!("{command} (process {pid})"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use skep_proto::model::doctor::Outcome;

    const UDP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
        10: 00000000:CA6C 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0 0\n\
        11: 0100007F:12B5 0200007F:0035 01 00000000:00000000 00:00000000 00000000     0        0 4712 2 0 0\n";

    fn needed(port: u16, now: bool) -> Needed {
        Needed { protocol: "udp", port, purpose: "WireGuard", now }
    }

    #[test]
    fn sockets_that_take_what_comes_are_read() {
        assert_eq!(sockets("udp", UDP), [Socket { protocol: "udp", port: 51820, inode: 4711 }]);
        let listening = UDP.replace(" 07 ", " 0A ");
        assert_eq!(sockets("tcp", &listening).len(), 1);
    }

    #[test]
    fn a_port_that_another_program_has_is_named_with_it() {
        let all = sockets("udp", UDP);
        let owner = |name: &str| BTreeMap::from([(4711, name.to_owned())]);
        let taken = judge(&needed(51820, true), &all, &owner("wg-quick (process 9)"));
        assert!(taken.outcome == Outcome::Failed && taken.seen.contains("wg-quick (process 9)"), "{taken:?}");
        for well in [owner("skep (process 9)"), BTreeMap::new()] {
            assert_eq!(judge(&needed(51820, true), &all, &well).outcome, Outcome::Ok);
        }
        assert_eq!(judge(&needed(4790, true), &all, &BTreeMap::new()).outcome, Outcome::Failed);
        assert_eq!(judge(&needed(4790, false), &all, &BTreeMap::new()).outcome, Outcome::Ok);
    }

    proptest! {
        #[test]
        fn arbitrary_tables_never_panic(text in ".{0,200}") {
            let _ = sockets("tcp", &text);
        }
    }
}
