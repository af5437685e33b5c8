//! Unpacks an archive: one member, or everything.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::archive::{Member, MemberKind, bad_member, damaged, each};
use super::copy::{Budget, PourError, pour};
use super::error::Error;
use super::source::ArchiveFormat;

/// An archive and its target.
#[derive(Debug)]
pub(super) struct Unpack<'a> {
    pub(super) format: ArchiveFormat,
    /// The given path, for messages.
    pub(super) given: &'a Path,
    /// An empty directory.
    pub(super) into: &'a Path,
    /// Set to cancel.
    pub(super) called_off: &'a Arc<AtomicBool>,
}

/// Maximum number of names in a message.
const NAMES_MAX: usize = 10;

impl Unpack<'_> {
    /// Unpacks one file. `wanted` is its path, or the unique end of its path; `None` if the archive has only one
    /// program. Blocks. Returns its name.
    pub(super) fn one(
        &self,
        file: File,
        wanted: Option<&str>,
        budget: &mut Budget,
    ) -> Result<PathBuf, Error> {
        let mut found = MemberMatches::default();
        each(self.format, file, self.given, budget, &mut |member, content| {
            let MemberKind::File { size, executable } = member.kind else {
                if let MemberKind::Link(_) | MemberKind::HardLink(_) = member.kind {
                    found.links.extend(fits(&member.path, wanted).is_some().then(|| member.path.clone()));
                }
                return Ok(());
            };
            let fit = fits(&member.path, wanted).filter(|_| wanted.is_some() || executable != Some(false));
            if executable != Some(false) {
                found.programs.insert(member.path.clone());
            }
            let Some(fit) = fit else { return Ok(()) };
            if fit == PathMatch::End && found.exact {
                return Ok(());
            }
            if fit == PathMatch::Whole && !found.exact {
                found.exact = true;
                found.fitting.clear();
            }
            found.fitting.insert(member.path.clone());
            found.executable = executable != Some(false);
            if found.fitting.len() > 1 {
                return Ok(());
            }
            let name = member.path.file_name().unwrap_or_default();
            self.clear()?;
            self.write(member, &self.into.join(name), size, true, content)
        })?;
        self.judge(found, wanted)
    }

    /// Unpacks everything. Blocks.
    pub(super) fn all(&self, file: File, budget: &mut Budget) -> Result<(), Error> {
        // Created at the end, so that no member is written through a link.
        let mut links: Vec<(PathBuf, PathBuf)> = Vec::new();
        each(self.format, file, self.given, budget, &mut |member, content| {
            let at = self.into.join(&member.path);
            match &member.kind {
                MemberKind::Directory => self.make_directory(&at),
                MemberKind::File { size, executable } => {
                    self.make_place(&at)?;
                    self.write(member, &at, *size, *executable == Some(true), content)
                }
                MemberKind::HardLink(target) => {
                    self.make_place(&at)?;
                    let target = self.into.join(target);
                    match target.is_file() {
                        true => fs::hard_link(&target, &at).map_err(Error::io("link it", &at)),
                        false => Err(self.bad(member, "is another name of a missing member")),
                    }
                }
                MemberKind::Link(target) => {
                    if !stays_inside(&member.path, target) {
                        return Err(self.bad(member, "is a link that leads outside"));
                    }
                    links.push((at, target.clone()));
                    Ok(())
                }
            }
        })?;
        for (at, target) in links {
            let above = at.ancestors().skip(1).take_while(|above| *above != self.into);
            if let Some(link) = above.into_iter().find(|above| above.is_symlink()) {
                return Err(bad_member(self.given, link, "is a link with members below it"));
            }
            self.make_place(&at)?;
            symlink(&target, &at).map_err(Error::io("make the link", &at))?;
        }
        Ok(())
    }

    fn judge(&self, found: MemberMatches, wanted: Option<&str>) -> Result<PathBuf, Error> {
        let hint = "name one by --member, or by member in [update] of the service file";
        let refused = |cause: String, hint: &str| Err(Error::refused(self.given, cause, hint));
        match (found.fitting.len(), wanted) {
            (1, _) if !found.executable => {
                let cause = format!("its member {} has no execute bit", describe_paths(&found.fitting));
                refused(cause, "pack it with the bit (chmod +x before tar or zip)")
            }
            (1, _) => {
                let path = found.fitting.first().cloned().unwrap_or_default();
                Ok(PathBuf::from(path.file_name().unwrap_or_default()))
            }
            (0, Some(wanted)) if !found.links.is_empty() => {
                refused(format!("its member {wanted} is a link"), "name the file that it leads to")
            }
            (0, Some(wanted)) => refused(
                format!("it has no member {wanted}; its programs are: {}", describe_paths(&found.programs)),
                hint,
            ),
            (0, None) => refused("no member of it has an execute bit".to_owned(), hint),
            (_, _) => refused(format!("there is more than one: {}", describe_paths(&found.fitting)), hint),
        }
    }

    fn write(
        &self,
        member: &Member,
        at: &Path,
        size: u64,
        executable: bool,
        content: &mut dyn Read,
    ) -> Result<(), Error> {
        let (most, least) = if executable { (0o755, 0o700) } else { (0o644, 0o600) };
        // Not wider than in the archive.
        let mode = most & member.mode.map_or(most, |mode| mode | least);
        let mut options = File::options();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(at)
            .map_err(Error::io("make the file", at))?;
        // Its declared size was taken off the budget.
        let mut rest = Budget::new(size, Arc::clone(self.called_off));
        match pour(content, &mut file, at, &mut rest, self.given) {
            Ok(length) if length == size => Ok(()),
            Ok(_) => Err(bad_member(self.given, &member.path, "is shorter than declared")),
            Err(PourError::Other(Error::Refused { .. })) if rest.check_called_off(self.given).is_ok() => {
                Err(bad_member(self.given, &member.path, "is longer than declared"))
            }
            Err(PourError::Read(error)) => Err(damaged(self.given, &error)),
            Err(PourError::Other(error)) => Err(error),
        }
    }

    /// Makes room at a path, and creates its directory. The last of duplicate members counts.
    fn make_place(&self, at: &Path) -> Result<(), Error> {
        self.make_directory(at.parent().unwrap_or(self.into))?;
        match fs::symlink_metadata(at) {
            Ok(found) if !found.is_dir() => fs::remove_file(at).map_err(Error::io("replace it", at)),
            _ => Ok(()),
        }
    }

    fn make_directory(&self, at: &Path) -> Result<(), Error> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o755).create(at).map_err(Error::io("make the directory", at))
    }

    /// Removes an earlier match: another member fits better.
    fn clear(&self) -> Result<(), Error> {
        let entries = fs::read_dir(self.into).map_err(Error::io("list it", self.into))?;
        for entry in entries.flatten() {
            fs::remove_file(entry.path()).map_err(Error::io("remove it", &entry.path()))?;
        }
        Ok(())
    }

    fn bad(&self, member: &Member, why: &str) -> Error {
        bad_member(self.given, &member.path, why)
    }
}

/// The matches for the wanted member.
#[derive(Debug, Default)]
struct MemberMatches {
    /// Whether it matches completely: then partial matches no longer count.
    exact: bool,
    fitting: BTreeSet<PathBuf>,
    executable: bool,
    links: Vec<PathBuf>,
    programs: BTreeSet<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PathMatch {
    Whole,
    End,
}

/// How a path matches the wanted member.
fn fits(path: &Path, wanted: Option<&str>) -> Option<PathMatch> {
    let Some(wanted) = wanted.map(|wanted| Path::new(wanted.trim_start_matches("./"))) else {
        return Some(PathMatch::End);
    };
    match path {
        _ if path == wanted => Some(PathMatch::Whole),
        _ if path.ends_with(wanted) => Some(PathMatch::End),
        _ => None,
    }
}

fn describe_paths(paths: &BTreeSet<PathBuf>) -> String {
    let mut names: Vec<String> =
        paths.iter().take(NAMES_MAX).map(|path| path.display().to_string()).collect();
    if paths.len() > NAMES_MAX {
        names.push(format!("{} more", paths.len() - NAMES_MAX));
    }
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Whether a link at `path` with this target stays below the top. `..` may appear at the beginning of the target only:
/// after the name of another link it could lead anywhere.
pub(super) fn stays_inside(path: &Path, target: &Path) -> bool {
    let depth = path.components().count().saturating_sub(1);
    let ups = target.components().take_while(|component| *component == Component::ParentDir).count();
    let down = |component| matches!(component, Component::Normal(_) | Component::CurDir);
    ups <= depth && target.components().skip(ups).all(down) && !target.as_os_str().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_stays_inside_whatever_other_links_there_are() {
        let stays = |path: &str, target: &str| stays_inside(Path::new(path), Path::new(target));
        assert!(stays("bin/s3", "s3-1.0") && stays("bin/s3", "../lib/s3") && stays("a/b/c", "../.."));
        for (path, target) in [
            ("s3", "../s3"),
            ("bin/s3", "../../s3"),
            ("bin/s3", "/bin/s3"),
            ("x", "a/b/c/up/../.."),
            ("x", ""),
        ] {
            assert!(!stays(path, target), "{path} -> {target}");
        }
    }

    #[test]
    fn a_member_fits_in_whole_or_at_its_end() {
        let fit = |path: &str, wanted| fits(Path::new(path), wanted);
        assert_eq!(fit("dist/s3", Some("dist/s3")), Some(PathMatch::Whole));
        assert_eq!(fit("dist/s3", Some("./dist/s3")), Some(PathMatch::Whole));
        assert_eq!(fit("dist/s3", Some("s3")), Some(PathMatch::End));
        assert_eq!(fit("dist/s3", Some("3")), None);
        assert_eq!(fit("dist/s3", None), Some(PathMatch::End));
    }
}
