//! Crash tests of a service under the real daemon: any party is killed or stopped at every point of what it does, and the
//! rest has to go on by itself.
//!
//! For each run there is a fresh directory with a daemon of its own (`place`, `init`), the service, and a load that the author
//! of the service brings (`load`). Every process stops at each of its points and asks the harness (`director`), which
//! kills, stops or fails the one that it is to hit (`fault`) and lets the others go on. Afterwards the service must serve
//! again without help, take one more upgrade, and stop; what clients saw and what is left is checked from outside
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
mod place;
mod ports;
mod random;
mod report;
mod run;
mod scenario;
mod script;
mod show;
mod soak;

use std::ffi::OsString;
use std::path::PathBuf;

pub use fault::{Fault, Injection, Party};
pub use matrix::Job;
pub use report::{Report, Spread};
pub use run::Verdict;
pub use scenario::Scenario;
pub use show::execute;
pub use soak::{SoakReport, soak};

/// Why crash tests cannot be run: a sentence.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What is tested.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The program `handoff`, built with the feature `crash-points`: it is run as `<program> daemon`.
    pub program: PathBuf,
    /// The service file. In `args`, `env` and `working_dir` the text `{dir}` means the directory of the run; listeners get
    /// addresses of their own.
    pub service_file: PathBuf,
    /// The load: a program and its arguments, with `{dir}` as in the service file. It finds the addresses in
    /// `HANDOFF_LISTEN_<NAME>`, works until SIGTERM, and prints one line of JSON; see `docs/crash-testing.md`.
    pub load: Vec<OsString>,
    /// What is upgraded to; without it the binary of the service file.
    pub next: Option<PathBuf>,
    /// A release that never serves, for the scenario [`Scenario::BadRelease`].
    pub bad: Option<PathBuf>,
}

/// Which runs, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct Choice {
    /// A few runs of each kind, in minutes instead of an hour
    #[arg(long)]
    pub quick: bool,
    /// One run, as a failure names it: SCENARIO:POINT:VICTIM:FAULT, further faults behind it likewise
    #[arg(long, value_name = "RUN")]
    pub only: Option<Job>,
    /// Only these scenarios
    #[arg(long = "scenario", value_name = "NAME", value_delimiter = ',')]
    pub scenarios: Vec<Scenario>,
    /// Only these victims
    #[arg(long = "victim", value_name = "PARTY", value_delimiter = ',')]
    pub victims: Vec<Party>,
    /// Only these faults
    #[arg(long = "fault", value_name = "FAULT", value_delimiter = ',')]
    pub faults: Vec<Fault>,
    /// Also kill the supervisor in every phase, and hit each point of what follows
    #[arg(long)]
    pub twice: bool,
    /// So many runs, chosen at random
    #[arg(long, value_name = "K")]
    pub random: Option<usize>,
    /// Random operations and faults with one daemon for this long, instead of a run for each point
    #[arg(long, value_name = "DURATION", value_parser = crate::config::parse_duration_ms,
          conflicts_with_all = ["quick", "only", "scenarios", "victims", "faults", "twice", "random", "jobs", "junit"])]
    pub soak: Option<u64>,
    /// Decides what is chosen at random
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Runs side by side [default: twice the number of processors]
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// The lease in the service file of each run
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = crate::config::parse_duration_ms)]
    pub lease: u64,
    /// Write a report in the form of JUnit
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Keep the directories of failed runs
    #[arg(long)]
    pub keep: bool,
    /// Write the report as one JSON object
    #[arg(long)]
    pub json: bool,
}
