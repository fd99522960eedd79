//! Links, addresses, routes and neighbours of one network namespace (rtnetlink).
//!
//! Requests are typed by `netlink-packet-route` and sent in lists: one system call for a whole sandbox.

mod loopback;
mod requests;
mod routes;
mod socket;

pub use requests::{Neighbour, Requests, Veth, VethPeer, Vxlan};
pub use routes::{MarkRule, Route, Via};
pub use socket::{Link, Rtnl};
