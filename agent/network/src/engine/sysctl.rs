//! Kernel parameters of network namespaces. `/proc/sys/net` shows those of the thread that asks.

use std::fs;
use std::io;
use std::path::Path;

use crate::sys::netns::Netns;

/// Of a switch: no IPv6 chatter, and no rules for routed packets where frames are only switched.
pub const SWITCH: [(&str, &str); 3] = [
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("bridge/bridge-nf-call-iptables", "0"),
    ("bridge/bridge-nf-call-ip6tables", "0"),
];

/// Of a sandbox: links without IPv6, as Docker has them, but for those that are given an address of it. See [`QUIET6`].
pub const SANDBOX: [(&str, &str); 1] = [("ipv6/conf/default/disable_ipv6", "1")];

/// Of the node.
pub const NODE: [(&str, &str); 1] = [("ipv4/ip_forward", "1")];

/// Of a link with IPv6: it has the addresses that we give it and no others. None of its own making
/// (`addr_gen_mode` 1), no routes that others tell of, no questions whether somebody else has an address; and it keeps them
/// while it is down, as it does those of IPv4.
const QUIET6: [(&str, &str); 7] = [
    ("addr_gen_mode", "1"),
    ("accept_ra", "0"),
    ("accept_redirects", "0"),
    ("autoconf", "0"),
    ("accept_dad", "0"),
    ("keep_addr_on_down", "1"),
    ("disable_ipv6", "0"),
];

/// Parameters that let a link have addresses of IPv6.
pub fn with_ipv6(link: &str) -> Vec<(String, &'static str)> {
    QUIET6.iter().map(|(name, value)| (format!("ipv6/conf/{link}/{name}"), *value)).collect()
}

/// Whether a namespace has IPv6: the kernel was not started without, and nobody turned it off.
pub fn has_ipv6(netns: &Netns) -> bool {
    let read = || fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    matches!(netns.enter(read), Ok(Ok(value)) if value.trim() == "0")
}

/// Has the node forward packets of IPv6. A link that learns its way out from router advertisements goes on to do so: the
/// kernel would stop listening to them on a router (ip-sysctl, `accept_ra`).
///
/// # Errors
/// Those of reading and writing the parameters.
pub fn forward6(netns: &Netns) -> io::Result<()> {
    netns.enter(|| {
        let folder = Path::new("/proc/sys/net/ipv6/conf");
        let all = folder.join("all/forwarding");
        if fs::read_to_string(&all)?.trim() != "0" {
            return Ok(());
        }
        for link in fs::read_dir(folder)? {
            let link = link?;
            // Links that are there alone: whatever comes later, of another program's containers say, should not be believed.
            if ["all", "default"].iter().any(|name| link.file_name() == *name) {
                continue;
            }
            let path = link.path().join("accept_ra");
            // A link may go away meanwhile.
            if fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1") {
                match fs::write(&path, "2") {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => (),
                }
            }
        }
        fs::write(&all, "1")
    })?
}

/// Writes parameters below `/proc/sys/net`. Those that this kernel does not have are passed over.
///
/// # Errors
/// Those of write(2).
pub fn write<N: AsRef<str>>(netns: &Netns, list: &[(N, &str)]) -> io::Result<()> {
    netns.enter(|| {
        for (name, value) in list {
            let path = Path::new("/proc/sys/net").join(name.as_ref());
            match fs::write(&path, value) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => (),
            }
        }
        Ok(())
    })?
}

/// Neighbours that the kernel keeps, of all network namespaces of the host together: as few as these stay for ever, as many
/// for five seconds, and no more than these at all. Linux has 128, 512 and 1024, which some dozen containers that speak to
/// some dozen tasks each exceed; packets to further ones are then dropped ("neighbor table overflow"). An entry takes half a
/// kilobyte. The entries that we make ourselves are permanent and do not count.
const NEIGHBOURS: [(&str, u32); 3] = [("gc_thresh1", 1024), ("gc_thresh2", 8192), ("gc_thresh3", 16_384)];

/// Raises what the kernel keeps of neighbours, where it keeps less. It has these parameters in the host's own namespace alone.
pub fn keep_neighbours(netns: &Netns) {
    match netns.enter(|| raise(Path::new("/proc/sys/net"))).flatten() {
        Ok(raised) if raised.is_empty() => {}
        Ok(raised) => {
            tracing::info!(parameters = ?raised, "raised: the kernel kept too few neighbours for large networks")
        }
        Err(error) => tracing::warn!(%error, "the kernel's table of neighbours may be too small for large networks"),
    }
}

/// Raises the parameters of [`NEIGHBOURS`] below a folder; gives those that it raised.
fn raise(folder: &Path) -> io::Result<Vec<String>> {
    let mut raised = Vec::new();
    for (ip, (name, least)) in ["ipv4", "ipv6"].iter().flat_map(|ip| NEIGHBOURS.map(|one| (ip, one))) {
        let parameter = format!("{ip}/neigh/default/{name}");
        let path = folder.join(&parameter);
        let is_less = |text: String| text.trim().parse::<u32>().is_ok_and(|there| there < least);
        if fs::read_to_string(&path).is_ok_and(is_less) {
            fs::write(&path, least.to_string())?;
            raised.push(parameter);
        }
    }
    Ok(raised)
}

/// Parameters of one link of the node.
pub fn of_link<'a>(link: &str, list: &[(&str, &'a str)]) -> Vec<(String, &'a str)> {
    list.iter().map(|(name, value)| (format!("ipv4/conf/{link}/{name}"), *value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_keeps_of_neighbours_is_raised_and_never_lowered() {
        let folder = tempfile::tempdir().unwrap();
        let of = |ip: &str| folder.path().join(ip).join("neigh/default");
        // Without IPv6 its parameters are not there.
        fs::create_dir_all(of("ipv4")).unwrap();
        for (name, value) in [("gc_thresh1", "128\n"), ("gc_thresh2", "512\n"), ("gc_thresh3", "80000\n")] {
            fs::write(of("ipv4").join(name), value).unwrap();
        }
        let raised = raise(folder.path()).unwrap();
        assert_eq!(raised, ["ipv4/neigh/default/gc_thresh1", "ipv4/neigh/default/gc_thresh2"]);
        let now =
            ["gc_thresh1", "gc_thresh2", "gc_thresh3"].map(|name| fs::read_to_string(of("ipv4").join(name)).unwrap());
        assert_eq!(now, ["1024", "8192", "80000\n"]);
        assert_eq!(raise(folder.path()).unwrap(), [""; 0]);
    }
}
