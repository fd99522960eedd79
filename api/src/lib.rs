//! Faces of skep: what speaks to clients, and the ports through which it reaches the rest.
//!
//! A face extracts, parses, calls one port and converts the answer. It holds no business rule, and never knows whether
//! an object lives on this node or on another.

pub mod credentials;
pub mod docker;
pub mod ports;

pub mod manifest;
