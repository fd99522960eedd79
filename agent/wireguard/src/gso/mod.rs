//! Packets in runs: cutting what the kernel gives in one read, joining what it takes in one write.
//!
//! Pure: bytes in, bytes and ranges out. Everything here is parsed with bounds: on the way in from the kernel, on the
//! way out from a peer, who is authentic but not trusted.

pub mod checksum;
pub mod coalesce;
pub mod cut;
pub mod packet;
pub mod virtio;

#[cfg(test)]
mod tests;
