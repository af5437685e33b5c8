//! The programs of the benchmark, built by the cargo that runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::Error;

/// The executables.
#[derive(Debug)]
pub struct Programs {
    /// The supervisor.
    pub handoff: PathBuf,
    /// The service that it upgrades.
    pub service: PathBuf,
    /// The unmodified server.
    pub plain: PathBuf,
    /// The supervisor based on beyond-handoff.
    pub peer_supervisor: PathBuf,
    /// The service of that supervisor.
    pub peer_service: PathBuf,
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

/// Builds the programs. Blocks during the build; cargo shows its errors.
pub fn build() -> Result<Programs, Error> {
    let bench = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = bench.parent().ok_or("this package lies in no directory")?;
    let supervisor = cargo_build(root, &["--package", "handoff-supervisor", "--bin", "handoff"])?;
    let services = cargo_build(bench, &["--bins"])?;
    Ok(Programs {
        handoff: find(&supervisor, "handoff")?,
        service: find(&services, "bench-service")?,
        plain: find(&services, "bench-plain")?,
        peer_supervisor: find(&services, "peer-supervisor")?,
        peer_service: find(&services, "peer-service")?,
    })
}

fn cargo_build(directory: &Path, what: &[&str]) -> Result<Vec<u8>, Error> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(&cargo)
        .args(["build", "--release", "--quiet", "--message-format=json-render-diagnostics"])
        .args(what)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot run {}: {error}", cargo.to_string_lossy()))?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(format!("the build failed: cargo build ended with {}", output.status).into()),
    }
}

fn find(messages: &[u8], name: &str) -> Result<PathBuf, Error> {
    let mut messages =
        messages.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Message>(line).ok());
    let built = messages.find_map(|message| match message.target {
        Some(target) if target.name == name => message.executable,
        _ => None,
    });
    Ok(built.ok_or_else(|| format!("cargo has built no executable {name}"))?)
}
