//! Measures upgrades: their duration, the time without accepts, the effects on clients, and the costs of an idle
//! supervisor. The crate beyond-handoff does the same work for comparison.
//!
//! Both measured services consist of [`marks`] and [`acceptor`]. [`rig`] is the common external view of the two
//! supervisors, [`ours`] and [`peer`]; [`daemon`] is the basis of the first. Each other module is one measurement,
//! and [`report`] prints the results.

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

/// An error with a text for people.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
