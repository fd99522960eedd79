//! A wire between nodes that carries no more than a real one.

use std::path::Path;

use crate::world::run;

/// Bytes that may leave at once: more than one run of segments, which the kernel keeps together.
const BURST: u32 = 128 << 10;

/// Limits all links of a hub's bridge, and their other ends in `nodes`, to so many Mbit/s each way. A run of segments counts as
/// the frames that it would be on a wire (tbf of `tc`).
pub fn limit<'a>(hub: &Path, nodes: impl Iterator<Item = &'a str>, mbit: u32) {
    let hub = hub.file_name().unwrap().to_str().unwrap();
    let shape = |name: &str, link: &str| {
        run(&format!("tc -n {name} qdisc replace dev {link} root tbf rate {mbit}mbit burst {BURST} latency 10ms"));
    };
    for node in nodes {
        shape(node, "uplink");
    }
    let ports = run(&format!("ip -n {hub} -o link show master wire"));
    for port in ports.lines().filter_map(|line| line.split_whitespace().nth(1)?.split('@').next()) {
        shape(hub, port);
    }
}
