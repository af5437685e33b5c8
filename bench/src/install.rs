//! Time from a new file to the running version: `install` of 100 MiB binaries that are new to the store, and of a
//! known one.

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::json;

use crate::Error;
use crate::control::Outcome;
use crate::daemon::{Daemon, Holds, Home};
use crate::deaths::{Row, go_on};
use crate::programs::Programs;
use crate::rig::free_address;
use crate::spread::Spread;

const SERVICE: &str = "bench";
/// The size of a binary.
pub const SIZE_BYTES: usize = 100 << 20;

/// The steps of an installation and their phases, in order.
const STEPS: [(&str, &[&str]); 5] = [
    ("install, 100 MiB: copied", &["importing"]),
    ("install, 100 MiB: hashed and verified", &["verifying"]),
    ("install, 100 MiB: written to the disk", &["storing"]),
    ("install, 100 MiB: started until it is ready", &["greeting", "warming"]),
    ("install, 100 MiB: old to new, until committed", &["draining", "sealing", "beginning", "committing"]),
];

/// Installs `count` new binaries, and each of them again from a copy, which the store knows.
pub fn measure(
    programs: &Programs,
    place: &Path,
    count: usize,
    interrupted: &AtomicBool,
) -> Result<Vec<Row>, Error> {
    let home = Home::new(place, "install-")?;
    let (data, marks) = (home.path("data"), home.path("marks"));
    std::fs::create_dir(&data)?;
    let program = std::fs::read(&programs.service)?;
    let binary = release(&home, &program, 0)?;
    home.add_service(SERVICE, &binary, [&data, &marks], Holds::default(), free_address()?)?;
    keep_versions(&home)?;
    let mut daemon = home.start_daemon(&programs.handoff, &[])?;
    let _: Outcome = daemon.client.call("start", json!({"service": SERVICE}))?;
    let (mut new, mut known) = (Vec::new(), Vec::new());
    for number in 1..=count {
        go_on(interrupted)?;
        let binary = release(&home, &program, number)?;
        new.push(install(&mut daemon, &binary)?);
        // Returns to the first version, so that the content is in the store but does not run.
        let _: Outcome = daemon.client.call("rollback", json!({"service": SERVICE}))?;
        known.push(install(&mut daemon, &binary)?);
        std::fs::remove_file(binary)?;
    }
    let step = |&(what, phases): &(&'static str, &[&str])| {
        let lengths = new.iter().map(|outcome| {
            let of = outcome.phases.iter().filter(|phase| phases.contains(&phase.phase.as_str()));
            of.map(|phase| phase.took_us).sum::<u64>()
        });
        Row { what, spread: Spread::of(lengths) }
    };
    let whole = |outcomes: &[Outcome]| Spread::of(outcomes.iter().map(|outcome| outcome.took_us));
    let mut rows: Vec<Row> = STEPS.iter().map(step).collect();
    rows.push(Row { what: "install, 100 MiB: all of it", spread: whole(&new) });
    rows.push(Row { what: "install, 100 MiB, in the store already", spread: whole(&known) });
    Ok(rows)
}

/// A new program of the full size, synced as after a download.
fn release(home: &Home, program: &[u8], number: usize) -> Result<PathBuf, Error> {
    let path = home.path(&format!("release-{number}"));
    let mut file = File::create(&path)?;
    file.write_all(program)?;
    let mut value = number as u64 + 1;
    let padding = std::iter::repeat_with(|| {
        // xorshift64: incompressible for file systems.
        value ^= value << 13;
        value ^= value >> 7;
        value ^= value << 17;
        value
    });
    let words = SIZE_BYTES.saturating_sub(program.len()) / 8;
    let padding: Vec<u8> = padding.take(words).flat_map(u64::to_le_bytes).collect();
    file.write_all(&padding)?;
    file.sync_all()?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Lets the service run from the store.
fn keep_versions(home: &Home) -> Result<(), Error> {
    let path = home.path("config/services").join(SERVICE).with_extension("toml");
    let text = std::fs::read_to_string(&path)?.replace("store = false\n", "");
    Ok(std::fs::write(path, text)?)
}

fn install(daemon: &mut Daemon, binary: &Path) -> Result<Outcome, Error> {
    let outcome: Outcome = daemon.client.call("install", json!({"service": SERVICE, "path": binary}))?;
    match outcome.outcome.as_str() {
        "committed" => Ok(outcome),
        other => Err(format!("an installation ended as {other}: {:?}", outcome.reason).into()),
    }
}
