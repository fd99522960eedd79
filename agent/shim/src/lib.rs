//! The contract between a container's shim and the daemon: the messages on the shim's socket and the files beside it.
//!
//! The executable of this package is the shim itself. This library holds no behaviour, so that the daemon links none of
//! the container runtime.

pub mod protocol;
