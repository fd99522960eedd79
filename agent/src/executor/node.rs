//! The node itself: images and containers of the engine, sandboxes of the network layer.

pub mod plan;
