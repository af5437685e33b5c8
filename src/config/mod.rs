//! Service files and directories: what the user wrote, parsed into types that cannot hold invalid values.
//!
//! There is one TOML file per service, `<config>/services/<name>.toml`. All mistakes are reported, not only the first
//! one, each with file, line, column, key, cause and remedy.

mod accounts;
mod address;
mod answers;
mod binary;
mod credentials;
mod daemon;
mod difference;
mod dirs;
mod env_file;
mod environment;
mod error;
mod hooks;
mod kind;
mod listen;
mod liveness;
mod load;
mod log;
mod names;
mod order;
mod placeholders;
mod powers;
mod probation;
mod probe;
mod process;
mod program;
mod restart;
mod service;
mod table;
mod units;
mod update;
mod watch;

pub use accounts::Account;
pub use address::{AddressError, ListenAddress, UNIX_PATH_MAX_BYTES};
pub use binary::{BinaryError, check_binary, resolve};
pub use credentials::Credential;
pub use daemon::DaemonSettings;
pub use difference::{Cost, Difference, differences};
pub use dirs::{DirOverrides, Dirs, DirsError};
pub use env_file::EnvFile;
pub use environment::{Inherit, is_reserved};
pub use error::{Error, Position};
pub use handoff_protocol::message::Mode;
pub use hooks::Hooks;
pub use kind::ServiceKind;
pub use listen::{IdLookupError, Listener, Owner};
pub use liveness::Liveness;
pub use load::{Loaded, PartialService, judge, load, load_service, name_of, read_service, service_files};
pub use log::LogSettings;
pub use names::nearest;
pub use order::Dependency;
pub use probation::{ErrorCount, TrialSettings};
pub use probe::{Check, Http, Probe};
pub use process::{ProcessIdentity, ProcessSettings};
pub use program::{DrainCondition, NotifySocket, ProgramSettings, StopMode, StopSignal};
pub use service::{Adapter, Service, Stragglers, known_keys};
pub use units::{format_duration_ms, parse_duration_ms, parse_duration_word_ms, parse_size_bytes};
pub use update::Update;
pub use watch::WatchSettings;
