//! Imports a version: copies it aside, verifies it, syncs it, and makes it visible atomically.
//!
//! All work happens in a directory `incoming-<pid>-<n>` below the store. The version exists once that directory is
//! renamed to the version's name. If the process ends earlier, the next [`Store::open`] removes the directory.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::Seek;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::copy::{Budget, copy};
use super::error::Error;
use super::meta::{self, Id, Source, UsageRecord, Version, VersionKind, VersionMetadata};
use super::source::{SourceFile, SourceForm};
use super::unpack::Unpack;
use super::verify::{Evidence, Require, Trust};
use super::{FILES, INCOMING, MADE, Store, USED, elf, entry, privileges, readable, tree, version};
use crate::crash_points::crash_point;
use crate::journal::unix_ms;
use crate::sys::file_system;

/// What to import, and under which conditions.
#[derive(Debug, Clone, Default)]
pub struct Import {
    /// A program, an archive, or a directory.
    pub path: PathBuf,
    /// The member of an archive, or the file of a tree, to start. Relative to the top.
    pub member: Option<String>,
    /// Whether only an archive or a directory is meant, since one of its members was named for it.
    pub has_members: bool,
    /// Import a whole archive: the member is the file to start.
    pub tree: bool,
    /// Maximum size to copy or unpack, in bytes.
    pub max_size_bytes: u64,
    /// Claims about the file.
    pub evidence: Evidence,
    /// What the service requires of it.
    pub trust: Trust,
    /// Its version text from the user, which disables the search for one.
    pub version: Option<String>,
    /// The command that prints its version. If empty, the version is read from its files or its name, and nothing of it
    /// runs.
    pub version_command: Vec<String>,
    /// Where `env` looks for a script's interpreter: the service's PATH.
    pub search: Option<std::ffi::OsString>,
    /// Set to cancel the import, which then ends soon with an error.
    pub called_off: Arc<AtomicBool>,
}

/// The steps of an import, in order; an archive repeats the first two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportStep {
    /// Copying and unpacking.
    Copying,
    /// Hashing, comparing with published data, and checking whether it can start and what its version is.
    Verifying,
    /// Syncing to disk.
    Storing,
}

/// A version in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Its metadata.
    pub version: Version,
    /// The file to start.
    pub path: PathBuf,
    /// Whether it was in the store before.
    pub was_there: bool,
}

impl Import {
    pub(super) fn budget(&self) -> Budget {
        Budget::new(self.max_size_bytes, Arc::clone(&self.called_off))
    }
}

impl Store {
    /// Imports a version, and reports the begin of each step. If the store has the same content, it copies nothing
    /// where that is known in advance, and does not sync. On an error it leaves nothing behind, and has run only
    /// verified content. Blocks: on the file system, and up to 5 s on a command that does not print the version.
    pub fn import(&self, import: &Import, step: &mut dyn FnMut(ImportStep)) -> Result<Imported, Error> {
        step(ImportStep::Copying);
        let given = SourceFile::open(&import.path)?;
        if let (true, SourceForm::Program, Some(member)) = (import.has_members, given.form, &import.member) {
            let cause = format!("it is no archive and no directory, so it has no member {member}");
            return Err(Error::refused(&import.path, cause, "leave out --member, or name the archive"));
        }
        if let Some(there) = self.find_same(import, &given, step)? {
            return self.reused(&there, import, &given);
        }
        self.create()?;
        let incoming = UnfinishedVersion::new(&self.directory)?;
        crash_point!("supervisor/import/begun");
        let mut budget = import.budget();
        let copy_result = incoming.copy_and_verify(import, &given, &mut budget, step)?;
        crash_point!("supervisor/import/copied");
        let id = copy_result.id;
        if let Some(there) = self.get(&id).filter(|there| self.is_whole(there)) {
            self.narrow_permissions(&there, &incoming.files(), &copy_result)?;
            return self.reused(&(id, copy_result.source), import, &given);
        }
        let version = match &import.version {
            Some(version) => Some(version.clone()),
            None if import.version_command.is_empty() => {
                readable::version(&incoming.files(), &copy_result.entry, &import.path)
            }
            None => incoming.ask(&copy_result.entry, import)?,
        };
        step(ImportStep::Storing);
        budget.check_called_off(&given.path)?;
        let files = incoming.files();
        let size_bytes = tree::protect(&files).map_err(Error::io("protect it", &files))?;
        let CopyResult { kind, entry, source, .. } = copy_result;
        let metadata = VersionMetadata { id, kind, entry, size_bytes, version, added_unix_ms: unix_ms() };
        // Its files may be lost while its metadata is still known.
        let known = self.get(&id).map(|known| known.usage).unwrap_or_default();
        let usage = UsageRecord { source: Some(origin(import, &given, source)), ..known };
        incoming.write(&metadata, &usage)?;
        crash_point!("supervisor/import/written");
        incoming.sync(&metadata)?;
        crash_point!("supervisor/import/synced");
        let version = Version { metadata, usage };
        self.put(incoming.directory(), &version)?;
        crash_point!("supervisor/import/stored");
        Ok(Imported { path: self.path_of(&version), version, was_there: false })
    }

    /// Finds a version with the same content without a copy: the file has not changed since its import, or it is a
    /// program with the size of a stored one. Also returns the hash of the given file.
    fn find_same(
        &self,
        import: &Import,
        given: &SourceFile,
        step: &mut dyn FnMut(ImportStep),
    ) -> Result<Option<(Id, Id)>, Error> {
        let versions = self.versions();
        let looks_same = |source: &Source| {
            given.form != SourceForm::Tree
                && source.look == given.stamp
                && source.tree == import.tree
                && source.member == import.member
        };
        let mut sources = versions.iter().filter_map(|it| Some((it.metadata.id, it.usage.source.as_ref()?)));
        let known = sources.find(|(_, source)| looks_same(source)).map(|(id, source)| (id, source.sha256));
        let has_size = |it: &&Version| {
            it.metadata.kind == VersionKind::File && it.metadata.size_bytes == given.stamp.size
        };
        let found = match known {
            Some(known) => Some(known),
            None if given.form == SourceForm::Program && versions.iter().any(|it| has_size(&it)) => {
                (&given.file).rewind().map_err(Error::io("read it", &given.path))?;
                let id = Id::of(&given.file).map_err(Error::io("read it", &given.path))?;
                self.get(&id).map(|_| (id, id))
            }
            None => None,
        };
        let there = found.and_then(|(id, source)| Some((self.get(&id)?, source)));
        let Some((there, source)) = there.filter(|(there, _)| self.is_whole(there)) else { return Ok(None) };
        step(ImportStep::Verifying);
        let evidence = import.evidence.completed(&given.path, &import.trust);
        evidence.check(&given.path, &source, Some(&given.file), &import.trust)?;
        given.is_unchanged()?;
        if given.form == SourceForm::Program {
            let at = self.path_of(&there);
            let stored = File::open(&at).map_err(Error::io("open it", &at))?;
            privileges::carry(&given.file, &stored, &given.path)?;
            narrow(&stored, &given.file).map_err(Error::io("protect it", &at))?;
        }
        Ok(Some((there.metadata.id, source)))
    }

    /// Removes permissions from a stored version that the newly given same content does not have.
    fn narrow_permissions(
        &self,
        there: &Version,
        files: &Path,
        copy_result: &CopyResult,
    ) -> Result<(), Error> {
        let at = self.path_of(there);
        let narrowed = match copy_result.kind {
            VersionKind::Tree => tree::narrow(&self.files_of(&there.metadata.id), files),
            VersionKind::File => File::open(&at)
                .and_then(|stored| narrow(&stored, &File::open(files.join(&copy_result.entry))?)),
        };
        narrowed.map_err(Error::io("protect it", &at))
    }

    /// Records another source of a stored version.
    fn reused(
        &self,
        (id, source): &(Id, Id),
        import: &Import,
        given: &SourceFile,
    ) -> Result<Imported, Error> {
        let origin = origin(import, given, *source);
        let version = self.change(id, |usage| {
            let is_changed = usage.source.as_ref() != Some(&origin);
            usage.source = Some(origin);
            is_changed
        })?;
        Ok(Imported { path: self.path_of(&version), version, was_there: true })
    }
}

fn origin(import: &Import, given: &SourceFile, sha256: Id) -> Source {
    let (path, member, tree) = (import.path.clone(), import.member.clone(), import.tree);
    let digest = (given.form == SourceForm::Tree).then(|| tree::digest(&given.path)).flatten();
    Source { path, look: given.stamp, digest, sha256, member, tree }
}

/// Removes the permissions from a file that another one does not have.
fn narrow(file: &File, other: &File) -> std::io::Result<()> {
    let mode = |file: &File| Ok::<_, std::io::Error>(file.metadata()?.permissions().mode() & 0o7777);
    let (has, may) = (mode(file)?, mode(other)?);
    match has & (may | 0o400) {
        narrower if narrower != has => file.set_permissions(Permissions::from_mode(narrower)),
        _ => Ok(()),
    }
}

/// The result of a copy.
struct CopyResult {
    id: Id,
    kind: VersionKind,
    entry: PathBuf,
    /// The hash of the given file.
    source: Id,
}

/// A directory that is not a version yet. Drop removes it with its content.
#[derive(Debug)]
pub(super) struct UnfinishedVersion(PathBuf);

/// Makes the directory names of one process unique.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl UnfinishedVersion {
    pub(super) fn new(store: &Path) -> Result<Self, Error> {
        let name = format!("{INCOMING}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let incoming = Self(store.join(name));
        for directory in [&incoming.0, &incoming.files()] {
            let mut builder = DirBuilder::new();
            builder.mode(0o755).create(directory).map_err(Error::io("make the directory", directory))?;
        }
        Ok(incoming)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.0
    }

    pub(super) fn files(&self) -> PathBuf {
        self.0.join(FILES)
    }

    /// Copies the given file, verifies the copy, and unpacks it. From here on the given path does not matter.
    fn copy_and_verify(
        &self,
        import: &Import,
        given: &SourceFile,
        budget: &mut Budget,
        step: &mut dyn FnMut(ImportStep),
    ) -> Result<CopyResult, Error> {
        if given.form == SourceForm::Tree {
            return self.take_in_tree(import, given, budget, step);
        }
        budget.take(given.stamp.size, &given.path)?;
        let copied = self.0.join("copy");
        let mut options = File::options();
        let copy_of = options.read(true).write(true).create_new(true).mode(0o600).open(&copied);
        let copy_of = copy_of.map_err(Error::io("make the file", &copied))?;
        copy(&given.file, &copy_of, budget).map_err(Error::io("copy it", &copied))?;
        given.is_unchanged()?;
        step(ImportStep::Verifying);
        budget.check_called_off(&given.path)?;
        let source = File::open(&copied).and_then(Id::of).map_err(Error::io("read it", &copied))?;
        let evidence = import.evidence.completed(&given.path, &import.trust);
        evidence.check(&given.path, &source, Some(&copy_of), &import.trust)?;
        match given.form {
            SourceForm::Archive(format) => {
                let files = self.files();
                let unpack =
                    Unpack { format, given: &given.path, into: &files, called_off: &import.called_off };
                let mut budget = import.budget();
                let copy_of = File::open(&copied).map_err(Error::io("open it", &copied))?;
                let archive = (copy_of, source);
                let copy_result = self.take_out(import, given, &unpack, archive, &mut budget, step)?;
                fs::remove_file(&copied).map_err(Error::io("remove it", &copied))?;
                Ok(copy_result)
            }
            SourceForm::Program | SourceForm::Tree => {
                let to = self.files().join(given.name());
                self.take_mode(&given.file, &copy_of).map_err(Error::io("protect it", &copied))?;
                privileges::carry(&given.file, &copy_of, &given.path)?;
                fs::rename(&copied, &to).map_err(Error::io("rename it", &copied))?;
                self.check_alone(import, given, given.name())?;
                Ok(CopyResult { id: source, kind: VersionKind::File, entry: given.name().into(), source })
            }
        }
    }

    /// Gives a copy no wider permissions than the original has.
    pub(super) fn take_mode(&self, original: &File, copy: &File) -> std::io::Result<()> {
        let mode = original.metadata()?.permissions().mode();
        copy.set_permissions(Permissions::from_mode(mode & 0o755 | 0o700))
    }

    fn take_out(
        &self,
        import: &Import,
        given: &SourceFile,
        unpack: &Unpack,
        (archive, source): (File, Id),
        budget: &mut Budget,
        step: &mut dyn FnMut(ImportStep),
    ) -> Result<CopyResult, Error> {
        step(ImportStep::Copying);
        if !import.tree {
            let entry = unpack.one(archive, import.member.as_deref(), budget)?;
            step(ImportStep::Verifying);
            self.check_alone(import, given, entry.as_os_str())?;
            let at = self.files().join(&entry);
            let id = File::open(&at).and_then(Id::of).map_err(Error::io("read it", &at))?;
            return Ok(CopyResult { id, kind: VersionKind::File, entry, source });
        }
        unpack.all(archive, budget)?;
        step(ImportStep::Verifying);
        let entry = entry::check(&self.files(), &given.path, import)?;
        Ok(CopyResult { id: tree::hash(&self.files())?, kind: VersionKind::Tree, entry, source })
    }

    fn take_in_tree(
        &self,
        import: &Import,
        given: &SourceFile,
        budget: &mut Budget,
        step: &mut dyn FnMut(ImportStep),
    ) -> Result<CopyResult, Error> {
        entry::check_named(&given.path, import.member.as_deref())?;
        tree::copy_all(&given.path, &self.files(), budget)?;
        given.is_unchanged()?;
        step(ImportStep::Verifying);
        let id = tree::hash(&self.files())?;
        let required = import.trust.require != Require::Nothing;
        if required || import.evidence != Evidence::default() {
            import.evidence.check(&given.path, &id, None, &import.trust)?;
        }
        let entry = entry::check(&self.files(), &given.path, import)?;
        Ok(CopyResult { id, kind: VersionKind::Tree, entry, source: id })
    }

    /// A single file must not need files next to it.
    fn check_alone(&self, import: &Import, given: &SourceFile, name: &OsStr) -> Result<(), Error> {
        let needs = elf::check(&self.files().join(name), &given.path, import.search.as_deref())?;
        let hint =
            "give the whole directory and the file of it that is started (member), or set store = false";
        if let Some(path) = needs.origin {
            let cause = format!(
                "it looks for libraries beside itself ({path}), which a copy of it alone would not find"
            );
            return Err(Error::refused(&given.path, cause, hint));
        }
        match given.virtual_environment().filter(|_| needs.is_elf) {
            None => Ok(()),
            Some(place) => {
                let cause = format!(
                    "it belongs to the virtual environment {}, which it finds by its own path",
                    place.display()
                );
                Err(Error::refused(&given.path, cause, "set store = false in the service file"))
            }
        }
    }

    /// In an empty directory, which is removed afterwards.
    fn ask(&self, entry: &Path, import: &Import) -> Result<Option<String>, Error> {
        version::check(&import.version_command, &import.path)?;
        let directory = self.0.join("asked");
        fs::create_dir(&directory).map_err(Error::io("make the directory", &directory))?;
        let program = self.files().join(entry);
        let version = version::ask(&import.version_command, &program, &directory, &import.called_off);
        fs::remove_dir_all(&directory).map_err(Error::io("remove it", &directory))?;
        Ok(version)
    }

    pub(super) fn write(&self, metadata: &VersionMetadata, usage: &UsageRecord) -> Result<(), Error> {
        let (metadata_path, usage_path) = (self.0.join(MADE), self.0.join(USED));
        meta::write(&metadata_path, metadata).map_err(Error::io("write it", &metadata_path))?;
        meta::write(&usage_path, usage).map_err(Error::io("write it", &usage_path))?;
        fs::set_permissions(&self.0, Permissions::from_mode(0o755)).map_err(Error::io("protect it", &self.0))
    }

    /// Syncs everything. Blocks.
    pub(super) fn sync(&self, metadata: &VersionMetadata) -> Result<(), Error> {
        let sync = |path: &Path| {
            File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("write it to the disk", path))
        };
        let files = self.files();
        match metadata.kind {
            // Syncing thousands of files one by one takes longer than syncing the whole file system.
            VersionKind::Tree => {
                let opened = File::open(&files).map_err(Error::io("open it", &files))?;
                let synced = file_system::sync(&opened).map_err(std::io::Error::from);
                synced.map_err(Error::io("write it to the disk", &files))?;
            }
            VersionKind::File => sync(&files.join(&metadata.entry))?,
        }
        [files, self.0.join(MADE), self.0.join(USED), self.0.clone()].iter().try_for_each(|path| sync(path))
    }
}

impl Drop for UnfinishedVersion {
    fn drop(&mut self) {
        super::remove_tree(&self.0);
    }
}
