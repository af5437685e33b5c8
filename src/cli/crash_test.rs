//! `handoff crash-test`.

use std::ffi::OsString;
use std::path::PathBuf;

use super::exit::{Exit, Failure};
use super::output::Output;

const EXAMPLES: &str = "\
Examples:
  handoff crash-test ./s3.toml --load ./s3-load --data {dir}/data
  handoff crash-test ./s3.toml --quick --junit report.xml --load ./s3-load
  handoff crash-test ./s3.toml --soak 20m --seed 7 --load ./s3-load
  handoff crash-test ./s3.toml \\
      --only upgrade:journal/synced:supervisor:kill --load ./s3-load

Needs a handoff, and preferably a service too, that is built with the feature
`crash-points`. Each run has its own directory: {dir} in the service file and
in the load command stands for it. {listen.NAME} in the service file stands
for the address of a listener, a free one. The load finds each address in
HANDOFF_LISTEN_<NAME>, works until SIGTERM, and ends with one line of JSON,
such as {\"ok\": true, \"acknowledged\": 120, \"lost\": 0, \"wrong\": 0,
\"refused\": 0, \"reset\": 0, \"cut\": 0, \"longest_gap_ms\": 12.5}. The exit
code is 0 if every check passed, 1 if one failed.";

/// Kill and stop every process at every point, under load
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The service file; its stem is the name of the service
    #[arg(value_name = "SERVICE FILE")]
    service_file: PathBuf,
    #[cfg(feature = "crash-points")]
    #[command(flatten)]
    selection: crate::crash_test::Selection,
    /// The version to upgrade to [default: the binary of the service file]
    #[arg(long, value_name = "PATH")]
    next: Option<PathBuf>,
    /// A release that never serves, and must be rolled back
    #[arg(long, value_name = "PATH")]
    bad: Option<PathBuf>,
    /// The load: a program and its arguments, up to the end of the line
    #[arg(long, value_name = "COMMAND", required = true, num_args = 1.., allow_hyphen_values = true)]
    load: Vec<OsString>,
}

#[cfg(feature = "crash-points")]
impl Arguments {
    pub(super) fn json(&self) -> bool {
        self.selection.json
    }
}

#[cfg(not(feature = "crash-points"))]
impl Arguments {
    pub(super) fn json(&self) -> bool {
        false
    }
}

#[cfg(feature = "crash-points")]
pub(super) fn run(arguments: Arguments, out: &mut Output) -> Result<Exit, Failure> {
    use std::time::Duration;

    use crate::crash_test::{Subject, execute, soak};

    let failed = |error: String| Failure::failed(format!("The crash tests cannot be run: {error}."), "");
    let absolute = |path: PathBuf| std::path::absolute(path).map_err(|error| failed(error.to_string()));
    let subject = Subject {
        program: std::env::current_exe().map_err(|error| failed(error.to_string()))?,
        service_file: arguments.service_file,
        load: arguments.load,
        next: arguments.next.map(absolute).transpose()?,
        bad: arguments.bad.map(absolute).transpose()?,
    };
    if let Some(length_ms) = arguments.selection.soak {
        let report = soak(&subject, &arguments.selection, Duration::from_millis(length_ms))
            .map_err(|error| failed(error.to_string()))?;
        match out.is_json() {
            true => out.object(&report),
            false => out.line(&report),
        }
        return Ok(if report.is_good() { Exit::Done } else { Exit::Failed });
    }
    let report = execute(&subject, &arguments.selection).map_err(|error| failed(error.to_string()))?;
    match out.is_json() {
        true => out.object(&report),
        false => out.line(&report),
    }
    Ok(if report.is_good() { Exit::Done } else { Exit::Failed })
}

#[cfg(not(feature = "crash-points"))]
pub(super) fn run(arguments: Arguments, _: &mut Output) -> Result<Exit, Failure> {
    let Arguments { service_file, next, bad, load } = arguments;
    let _ = (next, bad, load);
    Err(Failure::failed(
        format!("{} cannot be tested with this program: it has no crash points.", service_file.display()),
        "Build one that has: cargo install handoff-supervisor --features crash-points --root ./crash-tests",
    ))
}
