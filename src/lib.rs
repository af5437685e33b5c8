//! Upgrades the binary of a running server with no refused, reset or cut connection, no lost write, never two
//! writers, and an automatic rollback when the new version is bad.
//!
//! # Where to start
//!
//! | you want to | read |
//! |---|---|
//! | run `handoff` | the README and `docs/README.md` in the repository |
//! | embed it in a server | the crate [`handoff_service`] |
//! | speak the protocol from another language | [`handoff_protocol`], and `docs/internals/protocol.md` |
//! | talk to the daemon from a program | [`control::api`] and [`control::Client`], and `docs/control-api.md` |
//! | test your own service against crashes | `docs/crash-testing.md` |
//! | change `handoff` | `CONTRIBUTING.md`, then the folders below |
//!
//! # The folders of this crate
//!
//! - `supervisor`: the daemon behind `handoff daemon`. It carries out what the machines of [`handoff_protocol`] decide.
//! - `keeper`: the process that holds the listeners and writes the logs when the daemon is gone.
//! - `slots`: the listeners, and the steering of connections between them.
//! - `shim`: the process in front of an unmodified program.
//! - `journal`, `history`, `store`, `spool`: the persistent state.
//! - `config`, `control`, `cli`: service files, the control socket, and the commands.
//! - `doctor`, `hooks`, `probe`, `watch`: trials, commands of the operator, health, and watched paths.
//!
//! Only `control` is an interface for other programs. The other modules are hidden: the tests of this repository
//! use them, and they change without notice.

use handoff_crash_points as crash_points;
use handoff_service as service;
#[doc(hidden)]
pub use handoff_sys as sys;

mod cli;
#[doc(hidden)]
pub mod config;
pub mod control;
#[cfg(feature = "crash-points")]
#[doc(hidden)]
pub mod crash_test;
mod doctor;
#[doc(hidden)]
pub mod history;
#[doc(hidden)]
pub mod hooks;
#[doc(hidden)]
pub mod journal;
#[doc(hidden)]
pub mod keeper;
mod log_record;
mod probe;
#[doc(hidden)]
pub mod shim;
#[doc(hidden)]
pub mod slots;
mod spool;
mod status_file;
#[doc(hidden)]
pub mod store;
mod supervisor;
mod watch;

/// The command `handoff`: runs the verb of the command line, and returns its exit code.
#[doc(hidden)]
pub fn main() -> std::process::ExitCode {
    // First, so that these small processes never load what the command line needs.
    match std::env::args_os().nth(1) {
        Some(verb) if verb == keeper::VERB => keeper::main(),
        Some(verb) if verb == shim::VERB => shim::main(),
        Some(verb) if verb == shim::exec::VERB => shim::exec::main(),
        Some(verb) if verb == shim::trial::VERB => shim::trial::main(),
        _ => cli::main(),
    }
}
