//! Upgrades the binary of a running server with no refused, reset or cut connection, no lost write, never two writers,
//! and a rollback by itself when the new version is bad.
//!
//! - [`service`] is what a server embeds. It needs none of the default features.
//! - `supervisor` (feature `supervisor`, default) is the daemon behind `handoff daemon`, with its `keeper`, `slots`,
//!   `journal`, `config` and the `control` socket that the command line (`cli`) talks to.
//! - [`handoff_protocol`] is the protocol itself, without I/O.

#[cfg(feature = "supervisor")]
pub mod cli;
#[cfg(feature = "supervisor")]
pub mod config;
#[cfg(feature = "supervisor")]
pub mod control;
mod crash_points;
#[cfg(all(feature = "crash-points", feature = "supervisor"))]
pub mod crash_test;
#[cfg(feature = "supervisor")]
pub mod doctor;
#[cfg(feature = "supervisor")]
pub mod history;
#[cfg(feature = "supervisor")]
pub mod hooks;
#[cfg(feature = "supervisor")]
pub mod journal;
#[cfg(feature = "supervisor")]
pub mod keeper;
#[cfg(feature = "supervisor")]
mod probe;
pub mod service;
#[cfg(feature = "supervisor")]
pub mod shim;
#[cfg(feature = "supervisor")]
pub mod slots;
#[cfg(feature = "supervisor")]
pub mod store;
#[cfg(feature = "supervisor")]
pub mod supervisor;
pub mod sys;
#[cfg(feature = "supervisor")]
pub mod watch;
