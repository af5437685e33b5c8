//! The directory for the files of a run.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::Error;

/// A directory on a disk. Drop removes it.
#[derive(Debug)]
pub struct Place {
    directory: TempDir,
    /// The type of its file system.
    pub filesystem: String,
}

impl Place {
    /// Creates a directory in `parent`, which must not be in memory: the benchmark includes the costs of a disk.
    pub fn in_directory(parent: &Path) -> Result<Self, Error> {
        let parent = parent.canonicalize().map_err(|error| format!("{}: {error}", parent.display()))?;
        let filesystem = filesystem(&parent)?;
        if ["tmpfs", "ramfs"].contains(&filesystem.as_str()) {
            let parent = parent.display();
            return Err(format!(
                "{parent} is in memory ({filesystem}); name a directory on a disk with --dir"
            )
            .into());
        }
        let directory = tempfile::Builder::new().prefix("upgrade-bench-").tempdir_in(&parent)?;
        Ok(Self { directory, filesystem })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// The type of the file system with the longest mount point above `path`.
fn filesystem(path: &Path) -> Result<String, Error> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let found = mounts.lines().filter_map(mount).filter(|(point, _)| path.starts_with(point));
    // If two mounts have the same mount point, the later one hides the earlier.
    let deepest = found.max_by_key(|(point, _)| point.components().count());
    Ok(deepest.ok_or_else(|| format!("{} is on no file system", path.display()))?.1)
}

fn mount(line: &str) -> Option<(PathBuf, String)> {
    let (mount, filesystem) = line.split_once(" - ")?;
    Some((mount.split(' ').nth(4)?.into(), filesystem.split(' ').next()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_have_names_and_memory_is_refused() {
        assert_eq!(filesystem(Path::new("/proc/self")).unwrap(), "proc");
        let line = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext4 /dev/root rw,errors=continue";
        assert_eq!(mount(line).unwrap(), (PathBuf::from("/mnt2"), "ext4".to_owned()));
        if filesystem(Path::new("/dev/shm")).unwrap() == "tmpfs" {
            assert!(Place::in_directory(Path::new("/dev/shm")).unwrap_err().to_string().contains("--dir"));
        }
    }
}
