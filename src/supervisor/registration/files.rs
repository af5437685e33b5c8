//! The files of a service that is added or removed. Everything here blocks on the file system.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use handoff_protocol::ids::ServiceName;

use crate::config::Dirs;
use crate::sys::process::ProcessId;
use crate::sys::regular;

/// What the file of a registered service said. Only that file is deleted, and only as long as it says the same.
const REGISTERED: &str = "registered";
/// The names of what handoff keeps of a service, alone or with an ending.
const KEPT: [&str; 15] = [
    "autostart",
    "journal",
    "running",
    "last",
    "removed",
    REGISTERED,
    "pair",
    "program",
    "staged",
    "spool",
    "origins",
    "history",
    "watched",
    "versions",
    "log",
];
/// How many files of one name can be set aside.
const ASIDE_MAX: u32 = 1_000;

/// Writes a new service file, whole and durable, or nothing. Replaces no file.
pub(super) fn write_new(file: &Path, text: &str) -> io::Result<()> {
    let (Some(directory), Some(name)) = (file.parent(), file.file_name().and_then(|name| name.to_str()))
    else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    // Hidden files are no service files.
    let beside = directory.join(format!(".{name}.new"));
    let written = write_durably(&beside, text).and_then(|()| fs::hard_link(&beside, file));
    let removed = fs::remove_file(&beside);
    written.and(removed)?;
    File::open(directory)?.sync_all()
}

fn write_durably(path: &Path, text: &str) -> io::Result<()> {
    let _ = fs::remove_file(path);
    let mut file = regular::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Prepares the directory of ephemeral service files. Those of an earlier boot are removed.
pub(super) fn prepare_ephemeral(dirs: &Dirs) -> io::Result<()> {
    let (directory, boot) = (dirs.ephemeral(), boot_id()?);
    if is_of_boot(dirs, &boot) {
        return Ok(());
    }
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    regular::create(&directory.join(BOOT))?.write_all(boot.as_bytes())
}

/// The boot in which the ephemeral service files were written.
const BOOT: &str = "boot-id";

fn boot_id() -> io::Result<String> {
    ProcessId::of(std::process::id()).map(|own| own.boot_id.to_string())
}

fn is_of_boot(dirs: &Dirs, boot: &str) -> bool {
    regular::read_to_string(&dirs.ephemeral().join(BOOT)).is_ok_and(|text| text == boot)
}

/// Whether the ephemeral service files count: those of an earlier boot do not.
pub(in crate::supervisor) fn has_ephemeral(dirs: &Dirs) -> bool {
    dirs.ephemeral().is_dir() && boot_id().is_ok_and(|boot| is_of_boot(dirs, &boot))
}

/// Records that a service was registered with this text.
pub(super) fn mark_registered(dirs: &Dirs, name: &ServiceName, text: &str) -> io::Result<()> {
    regular::create(&dirs.service_state(name).join(REGISTERED))?.write_all(text.as_bytes())
}

/// Whether a service was registered.
pub(super) fn is_registered(dirs: &Dirs, name: &ServiceName) -> bool {
    dirs.service_state(name).join(REGISTERED).exists() || dirs.ephemeral_file(name).exists()
}

/// Whether there is anything of a service.
pub(super) fn has_traces(dirs: &Dirs, name: &ServiceName) -> bool {
    let exists = |path: &Path| path.symlink_metadata().is_ok();
    exists(&dirs.service_file(name)) || exists(&dirs.ephemeral_file(name)) || !states(dirs, name).is_empty()
}

/// Removes the service file: deletes what `register` has written, and renames any other file. Returns its new path.
pub(super) fn take_file_away(dirs: &Dirs, name: &ServiceName) -> io::Result<Option<PathBuf>> {
    delete(&dirs.ephemeral_file(name))?;
    let (file, mark) = (dirs.service_file(name), dirs.service_state(name).join(REGISTERED));
    let is_own = match (fs::symlink_metadata(&file), regular::read(&mark)) {
        (Err(error), _) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        (Ok(found), Ok(text)) if found.is_file() => regular::read(&file).is_ok_and(|now| now == text),
        _ => false,
    };
    let kept = if is_own { fs::remove_file(&file).map(|()| None) } else { rename_aside(&file).map(Some) }?;
    let _ = fs::remove_file(mark);
    file.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())?;
    Ok(kept)
}

/// Renames `web.toml` to `web.toml.removed`, or to the next free name like that.
fn rename_aside(file: &Path) -> io::Result<PathBuf> {
    let base = format!("{}.removed", file.display());
    let names = std::iter::once(base.clone()).chain((2..ASIDE_MAX).map(|number| format!("{base}.{number}")));
    let free = names.map(PathBuf::from).find(|path| path.symlink_metadata().is_err());
    let free =
        free.ok_or_else(|| io::Error::other(format!("there are too many files like {base}: remove some")))?;
    fs::rename(file, &free).map(|()| free)
}

/// Deletes exactly this file, if it exists.
pub(super) fn delete(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What was deleted, and what is not handoff's.
#[derive(Debug, Default)]
pub(super) struct Deletion {
    pub(super) deleted: Vec<PathBuf>,
    pub(super) foreign: Vec<PathBuf>,
}

/// Deletes the state of a service, and that of removed services of its name. Follows no link, and leaves what does not
/// come from handoff.
pub(super) fn delete_state(dirs: &Dirs, name: &ServiceName) -> io::Result<Deletion> {
    let mut deletion = Deletion::default();
    for state in states(dirs, name) {
        for entry in fs::read_dir(&state)? {
            let entry = entry?;
            if !is_own(&entry.file_name().to_string_lossy()) {
                deletion.foreign.push(entry.path());
            } else if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        // It stays if something foreign is in it.
        let _ = fs::remove_dir(&state);
        deletion.deleted.push(state);
    }
    Ok(deletion)
}

fn is_own(name: &str) -> bool {
    KEPT.contains(&name.split('.').next().unwrap_or(name))
}

/// The state directory of a service, and those of removed services of its name.
fn states(dirs: &Dirs, name: &ServiceName) -> Vec<PathBuf> {
    let removed = fs::read_dir(dirs.state.join("removed")).into_iter().flatten().flatten();
    let of_name = removed.filter(|entry| {
        // A name has no dot.
        entry.file_name().to_string_lossy().split('.').next() == Some(name.as_str())
    });
    let all = std::iter::once(dirs.service_state(name)).chain(of_name.map(|entry| entry.path()));
    // A link leads to what is not handoff's.
    all.filter(|path| path.symlink_metadata().is_ok_and(|found| found.is_dir())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs(root: &Path) -> Dirs {
        let at = |name: &str| root.join(name);
        Dirs { config: at("config"), state: at("state"), runtime: at("run") }
    }

    #[test]
    fn a_new_file_replaces_no_other_one() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("services/web.toml");
        write_new(&file, "one").unwrap();
        assert_eq!(write_new(&file, "two").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&file).unwrap(), "one");
        let names: Vec<_> = fs::read_dir(root.path().join("services")).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing is left beside it");
    }

    #[test]
    fn only_an_unchanged_file_that_was_registered_is_deleted() {
        let root = tempfile::tempdir().unwrap();
        let (dirs, name) = (dirs(root.path()), "web".parse().unwrap());
        fs::create_dir_all(dirs.service_state(&name)).unwrap();
        assert_eq!(take_file_away(&dirs, &name).unwrap(), None, "there is none");
        let write = || write_new(&dirs.service_file(&name), "text").unwrap();
        for (mark, edit, kept) in [
            (true, false, None),
            (true, true, Some("web.toml.removed")),
            (false, false, Some("web.toml.removed.2")),
        ] {
            write();
            if mark {
                mark_registered(&dirs, &name, "text").unwrap();
            }
            if edit {
                fs::write(dirs.service_file(&name), "edited").unwrap();
            }
            let now = take_file_away(&dirs, &name).unwrap();
            assert_eq!(now, kept.map(|kept| dirs.config.join("services").join(kept)), "{mark} {edit}");
            assert!(!dirs.service_file(&name).exists());
        }
    }

    #[test]
    fn what_does_not_come_from_handoff_stays() {
        let root = tempfile::tempdir().unwrap();
        let (dirs, name) = (dirs(root.path()), "web".parse().unwrap());
        let state = dirs.service_state(&name);
        let outside = root.path().join("outside");
        for directory in [state.join("versions/1"), state.join("log"), outside.clone()] {
            fs::create_dir_all(directory).unwrap();
        }
        for file in ["journal", "journal.aside-1", "running.toml", "mine.db", "versions/1/server"] {
            fs::write(state.join(file), "").unwrap();
        }
        fs::write(outside.join("data"), "").unwrap();
        fs::remove_dir(state.join("log")).unwrap();
        std::os::unix::fs::symlink(&outside, state.join("log")).unwrap();
        let others =
            ["removed/web/journal", "removed/web.2/history", "removed/webs/journal", "services/webs/journal"];
        for other in others {
            let path = dirs.state.join(other);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let deletion = delete_state(&dirs, &name).unwrap();
        assert_eq!(deletion.foreign, [state.join("mine.db")]);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1);
        assert!(outside.join("data").exists(), "no link is followed");
        let is_there: Vec<bool> = others.iter().map(|other| dirs.state.join(other).exists()).collect();
        assert_eq!(is_there, [false, false, true, true]);
        assert_eq!(delete_state(&dirs, &name).unwrap().foreign.len(), 1, "again");
    }

    #[test]
    fn ephemeral_files_count_in_one_boot() {
        let root = tempfile::tempdir().unwrap();
        let (dirs, name) = (dirs(root.path()), "web".parse().unwrap());
        assert!(!has_ephemeral(&dirs));
        prepare_ephemeral(&dirs).unwrap();
        write_new(&dirs.ephemeral_file(&name), "text").unwrap();
        prepare_ephemeral(&dirs).unwrap();
        assert!(has_ephemeral(&dirs) && dirs.ephemeral_file(&name).exists(), "the same boot");
        fs::write(dirs.ephemeral().join(BOOT), "another").unwrap();
        assert!(!has_ephemeral(&dirs));
        prepare_ephemeral(&dirs).unwrap();
        assert!(has_ephemeral(&dirs) && !dirs.ephemeral_file(&name).exists(), "another boot");
    }
}
