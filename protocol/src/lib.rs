#![no_std]
#![forbid(unsafe_code)]
//! The handoff protocol: what a supervisor and the processes of a service say to each other, what each of them does
//! next, and what the journal remembers. No I/O, no clock, no threads: times and ids are arguments, and the machines
//! return actions.
//!
//! | party | machine | runs in |
//! |---|---|---|
//! | supervisor | [`supervisor::Supervisor`] | the daemon, once per service |
//! | incumbent: serves now | [`incumbent::Incumbent`] | the service |
//! | successor: is to take over | [`successor::Successor`] | the service, until it is committed |
//!
//! An upgrade in exclusive mode (one writer):
//!
//! ```text
//! incumbent                 supervisor                  successor
//!     │                          │──── spawn ──────────────▶│
//!     │                          │◀─────────────── Hello ───│
//!     │                          │──── Welcome, Prepare ───▶│  starts up, touches no data
//!     │                          │◀──────────── Prepared ───│  parked
//!     │◀──────────── Prepare ────│                          │
//!     │  accepts, drains         │                          │
//!     │──── Drained ────────────▶│                          │
//!     │◀─────────────── Seal ────│                          │
//!     │  stops, flushes, unlocks │                          │
//!     │──── Sealed ─────────────▶│──── Begin ──────────────▶│  locks, opens, accepts
//!     │                          │◀─────────────── Ready ───│
//!     │                          │  commit is durable       │
//!     │◀───────────── Commit ────│──── Commit ─────────────▶│  is the incumbent
//!     │  exits                   │                          │
//! ```
//!
//! In overlap mode `Begin` follows `Prepared` at once, new connections are steered to the successor with the commit,
//! and only then the old process is told to drain, seal and leave.

extern crate alloc;

pub mod deadline;
pub mod frame;
pub mod ids;
pub mod incumbent;
pub mod log_image;
pub mod message;
pub mod reason;
pub mod record;
pub mod recovery;
pub mod state;
pub mod successor;
pub mod supervisor;
pub mod version;
