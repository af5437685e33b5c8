//! Safe wrappers for system calls. All unsafe code of the workspace is here.
//!
//! The crate `handoff-service`, which servers embed, uses [`channel`], [`wire`], [`inherit`], [`lock`] and [`sealed`].
//! The rest is for the supervisor and its keeper. This crate has no stable API of its own: it changes with them.

pub mod channel;
pub mod descriptor;
pub mod errno;
pub mod event_fd;
pub mod files;
pub mod inherit;
pub mod listens;
pub mod lock;
pub mod message;
mod pidfd;
pub mod poll;
pub mod process;
pub mod sealed;
pub mod socket;
mod stream;
pub mod stream_end;
mod system_call;
pub mod user;
pub mod wire;

pub mod accepting;
pub mod attribute;
pub mod attributes;
mod child;
pub mod clock;
pub mod epoll;
pub mod exec;
pub mod exit;
pub mod exposed;
pub mod file_lock;
pub mod file_system;
pub mod held;
pub mod inotify;
pub mod limits;
pub mod listen_fds;
pub mod lock_users;
pub mod log_pipe;
pub mod network;
pub mod outbox;
pub mod own_process;
pub mod own_table;
pub mod owner;
pub mod path;
pub mod peer;
#[cfg(feature = "tokio")]
pub mod readable;
pub mod reaping;
pub mod regular;
pub mod resident;
pub mod seccomp;
pub mod signal_fd;
pub mod signals;
pub mod spawn;
pub mod steer;
pub mod tcp;
pub mod terminal;
pub mod traced;
