//! The commands that run around an upgrade.

use super::error::{Position, Report};
use super::table::Section;
use crate::hooks::{BINARY, Command};

const KEYS: &[&str] = &["pre_upgrade", "post_commit", "post_rollback", "on_failed", "limit"];

const LIMIT_MS: u64 = 30_000;
const HINT: &str = "write [\"/absolute/path/of/command\", \"argument\"]";

/// The commands of a service file, if any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Checks the new binary before anything else is done with it.
    pub preflight: Option<Command>,
    /// Runs before the old process is disturbed. If it fails, there is no upgrade.
    pub pre_upgrade: Option<Command>,
    /// Runs when the new version is committed.
    pub post_commit: Option<Command>,
    /// Runs after an upgrade was rolled back.
    pub post_rollback: Option<Command>,
    /// Runs when the service has failed and is not started again.
    pub on_failed: Option<Command>,
    /// Runs when the old process starts to drain, and when it is to continue after all.
    pub drain: Option<Command>,
    /// The place of each command in the file, by its key.
    pub(super) places: Vec<(&'static str, Position)>,
}

impl Hooks {
    /// All commands, with their keys and places.
    pub(super) fn commands(&self) -> impl Iterator<Item = (&'static str, Position, &Command)> {
        self.places.iter().filter_map(|(key, at)| {
            let command = match *key {
                "preflight" => &self.preflight,
                "hooks.pre_upgrade" => &self.pre_upgrade,
                "hooks.post_commit" => &self.post_commit,
                "drain_command" => &self.drain,
                "hooks.on_failed" => &self.on_failed,
                _ => &self.post_rollback,
            };
            Some((*key, *at, command.as_ref()?))
        })
    }
}

/// Reads `preflight`, `preflight_limit` and the table `[hooks]`.
pub(super) fn read(report: &mut Report, root: &Section) -> Hooks {
    let mut hooks = Hooks::default();
    let places = &mut hooks.places;
    let limit_ms = limit(report, root, "preflight_limit");
    hooks.preflight = command(report, root, ("preflight", "preflight"), limit_ms, places);
    hooks.drain = command(report, root, ("drain_command", "drain_command"), LIMIT_MS, places);
    if !root.has("preflight") {
        root.refuse(report, "preflight_limit", "there is no preflight", "remove it, or add preflight");
    }
    let Some(section) = root.section(report, "hooks", "hooks.") else { return hooks };
    section.refuse_unknown(report, KEYS);
    let limit_ms = limit(report, &section, "limit");
    let mut hook = |key, name| command(report, &section, (key, name), limit_ms, places);
    hooks.pre_upgrade = hook("pre_upgrade", "hooks.pre_upgrade");
    hooks.post_commit = hook("post_commit", "hooks.post_commit");
    hooks.post_rollback = hook("post_rollback", "hooks.post_rollback");
    hooks.on_failed = hook("on_failed", "hooks.on_failed");
    hooks
}

fn limit(report: &mut Report, section: &Section, key: &'static str) -> u64 {
    section.duration_ms(report, key, 1).map_or(LIMIT_MS, |found| found.value)
}

/// Reads a command, and records its place under its dotted name.
fn command(
    report: &mut Report,
    section: &Section,
    (key, name): (&'static str, &'static str),
    limit_ms: u64,
    places: &mut Vec<(&'static str, Position)>,
) -> Option<Command> {
    let argv = section.strings(report, key)?;
    match argv.first() {
        Some(program) if program.starts_with('/') || program == BINARY => {
            places.extend(section.at(report, key).map(|at| (name, at)));
            Some(Command { argv, limit_ms })
        }
        Some(_) => {
            section.refuse(report, key, "does not begin with an absolute path", HINT);
            None
        }
        None => {
            section.refuse(report, key, "is an empty command", HINT);
            None
        }
    }
}
