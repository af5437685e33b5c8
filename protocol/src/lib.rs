#![no_std]
#![forbid(unsafe_code)]
//! The handoff protocol, without I/O, clock or threads.

extern crate alloc;

pub mod frame;
pub mod ids;
pub mod message;
pub mod version;
