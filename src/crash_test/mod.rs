//! Crash tests of a service under the real daemon: each process is killed or stopped at each of its points, and the
//! others must recover without help.
//!
//! Each run has a new directory with its own daemon (`workspace`, `init`), the service, and a load from the author of
//! the service (`load`). Each process stops at each of its points and asks the harness (`director`), which kills, stops
//! or fails the victim (`fault`) and lets the others continue. Afterwards the service must serve again without help,
//! perform one more upgrade, and stop. The observations of the clients and the leftovers are checked from outside
//! (`observe`, `run`). The points are not listed anywhere: a run without faults finds them (`matrix`).

mod checks;
mod director;
mod fault;
mod init;
mod junit;
mod load;
mod matrix;
mod observe;
mod operator;
mod ports;
mod random;
mod report;
mod run;
mod scenario;
mod script;
mod show;
mod soak;
mod workspace;

use std::ffi::OsString;
use std::path::PathBuf;

pub use fault::{Fault, Injection, ProcessRole};
pub use matrix::Job;
pub use report::{Quantiles, Report};
pub use run::RunResult;
pub use scenario::Scenario;
pub use show::execute;
pub use soak::{SoakReport, soak};

/// Why crash tests cannot run: a sentence.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// The service to test.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The program `handoff`, built with the feature `crash-points`. It runs as `<program> daemon`.
    pub program: PathBuf,
    /// The service file. In `args`, `env` and `working_dir`, `{dir}` stands for the directory of the run. Listeners
    /// get addresses of their own.
    pub service_file: PathBuf,
    /// The load: a program and its arguments, with `{dir}` as in the service file. It finds the addresses in
    /// `HANDOFF_LISTEN_<NAME>`, works until SIGTERM, and prints one line of JSON; see `docs/crash-testing.md`.
    pub load: Vec<OsString>,
    /// The version to upgrade to; without it, the binary of the service file.
    pub next: Option<PathBuf>,
    /// A release that never serves, for the scenario [`Scenario::BadRelease`].
    pub bad: Option<PathBuf>,
}

/// The selection of runs, and their settings.
#[derive(Debug, Clone, clap::Args)]
pub struct Selection {
    /// One run of each kind: minutes instead of an hour
    #[arg(long)]
    pub quick: bool,
    /// One run, as printed for a failure: SCENARIO:POINT:VICTIM:FAULT, further faults appended in the same form
    #[arg(long, value_name = "RUN")]
    pub only: Option<Job>,
    /// Only these scenarios
    #[arg(long = "scenario", value_name = "NAME", value_delimiter = ',')]
    pub scenarios: Vec<Scenario>,
    /// Only these victims
    #[arg(long = "victim", value_name = "PROCESS", value_delimiter = ',')]
    pub victims: Vec<ProcessRole>,
    /// Only these faults
    #[arg(long = "fault", value_name = "FAULT", value_delimiter = ',')]
    pub faults: Vec<Fault>,
    /// Also kill the supervisor in each phase, and hit each point that follows
    #[arg(long)]
    pub twice: bool,
    /// Only K runs, chosen at random
    #[arg(long, value_name = "K")]
    pub random: Option<usize>,
    /// Random operations and faults with one daemon for this long, instead of one run for each point
    #[arg(long, value_name = "DURATION", value_parser = crate::config::parse_duration_ms,
          conflicts_with_all = ["quick", "only", "scenarios", "victims", "faults", "twice", "random", "jobs", "junit"])]
    pub soak: Option<u64>,
    /// Seed of the random choices
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Number of concurrent runs [default: twice the number of processors]
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// The lease in the service file of each run
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = crate::config::parse_duration_ms)]
    pub lease: u64,
    /// Write a report in JUnit format
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Keep the directories of failed runs
    #[arg(long)]
    pub keep: bool,
    /// Write the report as one JSON object
    #[arg(long)]
    pub json: bool,
}
