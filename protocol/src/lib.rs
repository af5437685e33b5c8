#![no_std]
#![forbid(unsafe_code)]
//! The handoff protocol: the messages between a supervisor and the processes of a service, the state machines of both,
//! and the facts in the journal. No I/O, no clock, no threads: times and ids are arguments, and the machines return
//! actions.
//!
//! | role | machine | runs in |
//! |---|---|---|
//! | supervisor | [`supervisor::Supervisor`] | the daemon, once per service |
//! | process: a successor, and the incumbent when it is committed | [`process::Process`] | the service |
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
//! In overlap mode `Begin` follows `Prepared` at once. The commit steers new connections to the successor, and only
//! then the old process drains, seals and leaves.

extern crate alloc;

pub mod deadline;
pub mod dependency;
pub mod frame;
pub mod ids;
pub mod log_image;
pub mod message;
pub mod process;
pub mod reason;
pub mod record;
pub mod recovery;
pub mod restart;
pub mod state;
pub mod supervisor;
pub mod version;
