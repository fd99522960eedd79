//! Names: zones and the server that answers from them.

pub mod zone;
