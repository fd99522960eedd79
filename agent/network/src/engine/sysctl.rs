//! Kernel parameters of network namespaces. `/proc/sys/net` shows those of the thread that asks.

use std::fs;
use std::io;
use std::path::Path;

use crate::sys::netns::Netns;

/// Of a switch: no IPv6 chatter, and no rules for routed packets where frames are only switched.
pub const SWITCH: [(&str, &str); 2] =
    [("ipv6/conf/default/disable_ipv6", "1"), ("bridge/bridge-nf-call-iptables", "0")];

/// Of a sandbox: links without IPv6, as Docker has them.
pub const SANDBOX: [(&str, &str); 1] = [("ipv6/conf/default/disable_ipv6", "1")];

/// Of the node.
pub const NODE: [(&str, &str); 1] = [("ipv4/ip_forward", "1")];

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

/// Parameters of one link of the node.
pub fn of_link<'a>(link: &str, list: &[(&str, &'a str)]) -> Vec<(String, &'a str)> {
    list.iter().map(|(name, value)| (format!("ipv4/conf/{link}/{name}"), *value)).collect()
}
