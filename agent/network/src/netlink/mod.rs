//! Links, addresses, routes and neighbours of one network namespace (rtnetlink).
//!
//! Requests are typed by `netlink-packet-route` and sent in lists: one system call for a whole sandbox.

mod loopback;
mod requests;
mod socket;

pub use requests::{MarkRule, Neighbour, Requests, Route, Veth, VethPeer, Via, Vxlan};
pub use socket::{Link, Rtnl};
