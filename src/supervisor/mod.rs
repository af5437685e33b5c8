//! The daemon: one machine per service, and the effects around it.
//!
//! Everything runs on one thread. A service is a `Service`: events come in one at a time, from tasks that
//! wait for its processes, its deadlines, the disk and those who ask; what the machine answers is carried out at once.
//! Nothing is polled: a daemon whose services are at rest makes no system call, unless it is to watch one of them.

mod adopt;
mod binary;
mod canary;
mod compact;
mod daemon;
mod events;
mod handler;
mod hooking;
mod install;
mod keeping;
mod launch;
mod listening;
mod liveness;
mod party;
mod perform;
mod points;
mod policy;
mod preparation;
mod probing;
mod recording;
mod running;
mod service;
mod slots;
mod systemd;
mod timeline;
mod timers;
mod versions;
mod watching;

pub use daemon::{Error, run};
pub(crate) use launch::{environment_of, inherited_environment};
