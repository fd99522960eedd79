//! What a user does, on a lab each. One program, so that it is linked once and tests that wait do so beside each other.
//! Tests that need the machine for themselves are programs of their own, beside this folder.

mod administration;
mod apply;
mod apply_ends;
mod attach;
mod client;
mod connect;
mod credentials;
mod doctor;
mod down_keys;
mod encryption;
mod events;
mod export;
mod faults;
mod flags;
mod full_disk;
mod health;
mod ingress;
mod ipv6;
mod ipv6_mixed;
mod jobs;
mod kube;
mod lab_network;
mod moves;
mod names;
mod placement;
mod privileges;
mod prometheus;
mod publish;
mod registry;
mod schedule;
mod secrets;
mod services;
mod sidecars;
mod stacks;
mod updates;
