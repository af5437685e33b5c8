//! The programs of the demo: the supervisor, and one S3 server packaged as many releases.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use handoff_example_s3::stamp::{Fault, stamp};
use serde::Deserialize;

use crate::Error;

/// The built executables.
#[derive(Debug)]
pub struct Binaries {
    /// The command line and daemon `handoff`.
    pub handoff: PathBuf,
    /// The S3 server, not yet packaged.
    pub server: PathBuf,
}

/// A release of the S3 server, in its own file.
#[derive(Debug, Clone)]
pub struct Release {
    /// What `--version` says.
    pub version: String,
    /// The path of the file.
    pub path: PathBuf,
    /// Its fault, if any.
    pub fault: Option<Fault>,
}

/// cargo's report about a build artifact; only the needed fields.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// The same profile and packages as this program was built with: the features of all dependencies are then the same, and
/// nothing is compiled twice. Without optimisation this program comes from a build of the whole workspace.
const SELECTION: &[&str] = match cfg!(debug_assertions) {
    true => &["--workspace"],
    false => &[
        "--release",
        "--package",
        "handoff-supervisor",
        "--package",
        "handoff-example-s3",
        "--package",
        "handoff-demo",
    ],
};

/// Builds the programs with the cargo that runs this one. Blocks during the build; cargo shows its progress.
///
/// # Errors
///
/// Cargo cannot be run, or the build fails.
pub fn build() -> Result<Binaries, Error> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(&cargo)
        .args(["build", "--bins", "--quiet", "--message-format=json-render-diagnostics"])
        .args(SELECTION)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot run {}: {error}", cargo.to_string_lossy()))?;
    if !output.status.success() {
        return Err(format!("the build failed: cargo build ended with {}", output.status).into());
    }
    let find = |name: &str| {
        let lines = output.stdout.split(|byte| *byte == b'\n');
        let messages = lines.filter_map(|line| serde_json::from_slice::<Message>(line).ok());
        // A library of the same name has no executable.
        let mut named = messages.filter(|message| message.target.as_ref().is_some_and(|it| it.name == name));
        named.find_map(|message| message.executable).ok_or(format!("cargo has built no executable {name}"))
    };
    Ok(Binaries { handoff: find("handoff")?, server: find("s3-server")? })
}

/// Packages the server as release 1.0.0, with which the demo starts, and `upgrades` further releases, two of them
/// bad, into `dir`.
///
/// # Errors
///
/// A file cannot be written.
pub fn package(server: &Path, dir: &Path, upgrades: usize) -> io::Result<Vec<Release>> {
    (0..=upgrades)
        .map(|number| {
            let version = format!("1.{number}.0");
            let path = dir.join(format!("s3-server-{version}"));
            let fault = fault_of(number, upgrades);
            stamp(server, &path, &version, fault)?;
            Ok(Release { version, path, fault })
        })
        .collect()
}

/// The bad releases come after one third and two thirds of the upgrades, with good ones before and after.
fn fault_of(number: usize, upgrades: usize) -> Option<Fault> {
    let first = upgrades.div_ceil(3).max(1);
    let second = (upgrades * 2).div_ceil(3).max(first + 1);
    match number {
        _ if number == first => Some(Fault::NeverReady),
        _ if number == second => Some(Fault::Unhealthy),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_has_both_bad_releases_and_a_good_one() {
        for upgrades in 3..100 {
            let faults: Vec<_> = (0..=upgrades).map(|number| fault_of(number, upgrades)).collect();
            assert_eq!(faults[0], None);
            let count = |fault| faults.iter().filter(|each| **each == fault).count();
            assert_eq!(count(Some(Fault::NeverReady)), 1, "{upgrades}");
            assert_eq!(count(Some(Fault::Unhealthy)), 1, "{upgrades}");
            assert!(count(None) >= 2, "{upgrades}");
        }
    }
}
