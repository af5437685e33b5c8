//! What runs a program that does not speak the protocol.

pub mod exec;
pub mod inject;
