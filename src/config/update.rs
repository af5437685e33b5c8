//! How new versions come in: what is kept, and what is required of them.

use super::error::{Position, Report};
use super::table::Section;
use crate::hooks::BINARY;
use crate::store::{Require, Trust, is_public_key};

const KEYS: &[&str] = &["keep", "member", "tree", "version_command", "max_size", "require", "minisign_keys"];
/// Read by [`watch`](super::watch).
const WATCH_KEYS: &[&str] = &["watch", "settle"];

const KEEP: u32 = 5;
const MAX_SIZE_BYTES: u64 = 4 << 30;

/// The settings of a service file about new versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// Whether the program that runs is a copy in the store of the daemon.
    pub store: bool,
    /// The number of versions to keep, of those that ran.
    pub keep: usize,
    /// The member of an archive, or the file of a tree, that is the program.
    pub member: Option<String>,
    /// Whether an archive is taken as a whole.
    pub tree: bool,
    /// The command that prints the version of a program. If empty, none runs.
    pub version_command: Vec<String>,
    /// The place of `version_command` in the file.
    pub(super) version_command_at: Option<Position>,
    /// Maximum size to copy or unpack.
    pub max_size_bytes: u64,
    /// What is required before a new version may run, and the keys of valid signatures.
    pub trust: Trust,
}

/// Reads `store` and the table `[update]`.
pub(super) fn read(report: &mut Report, root: &Section) -> Update {
    let mut update = Update {
        store: root.boolean(report, "store").unwrap_or(true),
        keep: KEEP as usize,
        member: None,
        tree: false,
        version_command: Vec::new(),
        version_command_at: None,
        max_size_bytes: MAX_SIZE_BYTES,
        trust: Trust::default(),
    };
    let Some(section) = root.section(report, "update", "update.") else { return update };
    section.refuse_unknown(report, &[KEYS, WATCH_KEYS].concat());
    if !update.store {
        for key in KEYS {
            section.refuse(report, key, "is for versions in the store", "remove it, or remove store = false");
        }
        return update;
    }
    if let Some(keep) = section.count(report, "keep", 1..=1000) {
        update.keep = keep as usize;
    }
    update.member = member(report, &section);
    update.tree = section.boolean(report, "tree").unwrap_or(false);
    if update.tree && update.member.is_none() {
        section.refuse(report, "tree", "the program is not named", "write member = \"bin/server\" too");
    }
    update.version_command = version_command(report, &section);
    update.version_command_at = section.at(report, "version_command");
    update.max_size_bytes = section.size_bytes(report, "max_size", 1).unwrap_or(MAX_SIZE_BYTES);
    update.trust = trust(report, &section);
    update
}

fn version_command(report: &mut Report, section: &Section) -> Vec<String> {
    let Some(words) = section.strings(report, "version_command") else { return Vec::new() };
    let is_clear = words.first().is_none_or(|program| program == BINARY || program.starts_with('/'));
    if !is_clear {
        let hint = "write version_command = [\"{binary}\", \"--version\"]";
        section.refuse(
            report,
            "version_command",
            "it begins with neither {binary} nor an absolute path",
            hint,
        );
        return Vec::new();
    }
    words
}

fn member(report: &mut Report, section: &Section) -> Option<String> {
    let example = "write member = \"bin/server\"";
    let found = section.string(report, "member", example)?;
    let is_below = !found.value.starts_with('/') && !found.value.split('/').any(|part| part == "..");
    if found.value.is_empty() || !is_below {
        let cause = format!("{:?} is not a path below the top of an archive or directory", found.value);
        return section.wrong(report, "member", found.span, &cause, example);
    }
    Some(found.value.to_owned())
}

fn trust(report: &mut Report, section: &Section) -> Trust {
    let words = [("checksum", Require::Checksum), ("signature", Require::Signature)];
    let require = section.choice(report, "require", &words).unwrap_or_default();
    let keys = section.strings(report, "minisign_keys").unwrap_or_default();
    if let Some(wrong) = keys.iter().find(|key| !is_public_key(key)) {
        let cause = format!("{wrong:?} is not a public key of minisign");
        section.refuse(report, "minisign_keys", &cause, "write the second line of the file minisign.pub");
    }
    if require == Require::Signature && keys.is_empty() {
        let hint = "write minisign_keys = [\"RW...\"], the second line of the file minisign.pub";
        section.refuse(report, "require", "there is no key to check a signature with", hint);
    }
    Trust { require, keys }
}
