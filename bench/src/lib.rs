//! Measures upgrades: how long one takes, how long nobody accepts, what clients notice of it, and what an idle
//! supervisor costs. The crate beyond-handoff does the same work beside it.
//!
//! [`marks`] and [`acceptor`] are what both services under measurement consist of. [`rig`] is what the two
//! supervisors have in common, seen from outside; [`ours`] and [`peer`] are those two; [`daemon`] is
//! what the first one consists of. Each of the other modules
//! is one measurement, and [`report`] prints what they found.

pub mod acceptor;
pub mod burst;
pub mod control;
pub mod daemon;
pub mod deaths;
pub mod floor;
pub mod idle;
pub mod injection;
pub mod install;
pub mod machine;
pub mod marks;
pub mod ours;
pub mod peer;
pub mod place;
pub mod probation;
pub mod probe;
pub mod programs;
pub mod report;
pub mod rig;
pub mod spread;
pub mod syncs;
pub mod takeover;
pub mod upgrades;

/// An error for a person to read.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
