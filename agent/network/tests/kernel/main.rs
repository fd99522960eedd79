//! What the network layer makes of a kernel. One program: it is linked once.

#[path = "../world/mod.rs"]
mod world;

mod balance;
mod dns;
mod doctor;
mod encryption;
mod faults;
mod ipv6;
mod ipv6_life;
mod ipv6_mixed;
mod ipv6_spoof;
mod ipv6_underlay;
mod isolation;
mod load;
mod mesh;
mod names;
mod overlay;
mod place;
mod publish;
mod reshape;
mod watch;
