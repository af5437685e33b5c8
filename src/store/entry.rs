//! The file of a directory to start.

use std::path::{Path, PathBuf};

use super::error::Error;
use super::import::Import;
use super::{elf, tree};

/// Checks whether a directory can be imported, as far as possible without a copy. Reads the metadata of each file in it.
pub fn check_tree(import: &Import) -> Result<(), Error> {
    check_named(&import.path, import.member.as_deref())?;
    tree::check_all(&import.path, &mut import.budget())?;
    check(&import.path, &import.path, import).map(drop)
}

/// Whether this machine can execute a program in its place. `search` is where `env` looks for the interpreter of a
/// script. A program that this user may execute but not read is not looked into. Accesses the file system.
pub fn check_program(path: &Path, search: Option<&std::ffi::OsStr>) -> Result<(), Error> {
    match elf::check(path, path, search) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        checked => checked.map(drop),
    }
}

/// Checks that the member to start is named.
pub(super) fn check_named(given: &Path, member: Option<&str>) -> Result<(), Error> {
    if member.is_some() {
        return Ok(());
    }
    let hint = "name it by --member, or by member in [update] of the service file";
    Err(Error::refused(given, "which file of this directory is started is not known", hint))
}

/// The file of the tree `top` to start: inside of it, executable, and a program. Errors name `given`.
pub(super) fn check(top: &Path, given: &Path, import: &Import) -> Result<PathBuf, Error> {
    let wanted = import.member.as_deref().unwrap_or_default();
    let hint = "correct member in [update] of the service file, or --member";
    let refused = |cause: String| Error::refused(given, cause, hint);
    let all = tree::walk(top)?;
    let is_file = |node: &&tree::Node| matches!(node.kind, tree::NodeKind::File { .. });
    let fitting: Vec<&tree::Node> =
        all.iter().filter(is_file).filter(|node| node.path.ends_with(wanted)).collect();
    let exact = fitting.iter().find(|node| node.path == Path::new(wanted)).copied();
    let entry = match (exact, &fitting[..]) {
        _ if wanted.is_empty() => {
            return Err(refused("which file of it is started is not known".to_owned()));
        }
        (Some(node), _) => &node.path,
        (None, [node]) => &node.path,
        (None, []) => return Err(refused(format!("there is no file {wanted} in it"))),
        (None, _) => return Err(refused(format!("more than one file of it ends in {wanted}"))),
    };
    if !all.iter().any(|node| node.path == *entry && node.kind == (tree::NodeKind::File { executable: true }))
    {
        let cause = format!("{} in it has no execute bit", entry.display());
        return Err(Error::refused(given, cause, "run chmod +x"));
    }
    elf::check(&top.join(entry), given, import.search.as_deref())?;
    Ok(entry.clone())
}
