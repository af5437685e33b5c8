//! The daemon: one machine per service, and the effects around it.
//!
//! Everything runs on one thread. A service is a `Service`: events come in one at a time, from tasks that
//! wait for its processes, its deadlines, the disk and those who ask; what the machine answers is carried out at once.
//! Waits for files are in the lanes of each service, on threads of their own (`lane`). Nothing is polled: a daemon whose
//! services are at rest makes no system call, unless it is to watch one of them.

mod adopt;
mod awaiting;
mod binary;
mod canary;
mod compact;
mod daemon;
mod deadline;
mod door;
mod durable;
mod ending;
mod events;
mod first;
mod handler;
mod hooking;
mod input;
mod install;
mod keeping;
mod knowing;
mod lane;
mod launch;
mod listening;
mod liveness;
mod loading;
mod lock_watch;
mod origin;
mod orphans;
mod panic;
mod party;
mod perform;
mod phases;
mod points;
mod policy;
mod preparation;
mod probing;
mod problems;
mod quiet;
mod recording;
mod running;
mod service;
mod service_files;
mod staging;
mod state;
mod state_lock;
mod systemd;
mod timeline;
mod timers;
mod trouble;
mod unrecorded;
mod upkeep;
mod versions;
mod watching;
mod way_in;

pub use daemon::{Error, run};
pub(crate) use first::check_claims;
pub(crate) use install::import_of;
pub(crate) use launch::{environment_of, inherited_environment};
