//! What the kernel gives, as safe functions. This is the only folder with `unsafe`.
//!
//! A server that embeds `handoff::service` uses [`channel`], [`wire`], [`inherit`], [`lock`] and [`sealed`]; the rest is for the
//! supervisor and its keeper.

pub mod channel;
pub mod files;
pub mod inherit;
pub mod listens;
pub mod lock;
pub mod process;
pub mod sealed;
mod stream;
pub mod wire;

#[cfg(feature = "supervisor")]
pub mod exec;
#[cfg(feature = "supervisor")]
pub mod exit;
#[cfg(feature = "supervisor")]
pub mod exposed;
#[cfg(feature = "supervisor")]
pub mod held;
#[cfg(feature = "supervisor")]
pub mod listen_fds;
#[cfg(feature = "supervisor")]
pub mod log_pipe;
#[cfg(feature = "supervisor")]
pub mod network;
#[cfg(feature = "supervisor")]
pub mod owner;
#[cfg(feature = "supervisor")]
pub mod readable;
#[cfg(feature = "supervisor")]
pub mod resident;
#[cfg(feature = "supervisor")]
pub mod seccomp;
#[cfg(feature = "supervisor")]
pub mod signal_fd;
#[cfg(feature = "supervisor")]
pub mod signals;
#[cfg(feature = "supervisor")]
pub mod spawn;
#[cfg(feature = "supervisor")]
pub mod steer;
