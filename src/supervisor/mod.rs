//! The daemon: one machine per service, and the effects around it.
//!
//! Everything runs on one thread. A service is an actor: the inputs from its processes, its deadlines, the disk and
//! its clients enter at one place (`input`), one at a time, and the answer of the machine is carried out at once.
//! Waits for files are in the lanes of each service, on threads of their own (`lane`). Nothing is polled: a daemon
//! whose services are at rest makes no system call, unless it has to watch one of them.

mod adoption_socket;
mod autostart;
mod changes;
mod control_socket;
mod daemon;
mod dependencies;
mod input;
mod job;
mod keeper;
mod lane;
mod listening;
mod loading;
mod log_tail;
mod monitor;
mod operations;
mod orphans;
mod panic;
mod process;
mod registration;
mod registry;
mod reload;
mod requests;
mod rollout;
mod running;
mod service;
mod service_files;
mod state;
mod state_lock;
mod status;
mod status_file;
mod systemd;

pub(crate) use daemon::run;
pub(crate) use process::{environment_of, inherited_environment};
pub(crate) use rollout::{check_claims, import_of};
