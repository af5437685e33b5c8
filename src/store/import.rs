//! Takes a version in: copied beside, looked at, written to the disk, and then there, all at once.
//!
//! Everything happens in a directory `incoming-<pid>-<n>` below the store. Until that is renamed to the name of the version
//! there is no version, and whatever ends this process leaves a directory that the next [`Store::open`] removes.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::Seek;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::copy::{Budget, copy};
use super::error::Error;
use super::meta::{self, Id, Kind, Made, Source, Used, Version};
use super::source::{Form, Given};
use super::unpack::Unpack;
use super::verify::{Evidence, Require, Trust};
use super::{FILES, INCOMING, MADE, Store, USED, elf, entry, privileges, readable, tree, version};
use crate::crash_points::crash_point;
use crate::journal::unix_ms;
use crate::sys::file_system;

/// What is to be taken in, and on which terms.
#[derive(Debug, Clone, Default)]
pub struct Import {
    /// A program, an archive, or a directory.
    pub path: PathBuf,
    /// Which member of an archive; which file of a tree is started. Below the top.
    pub member: Option<String>,
    /// Take an archive as a whole: the member is the file that is started.
    pub tree: bool,
    /// So much is copied or unpacked at the most.
    pub max_size_bytes: u64,
    /// What is said of the file.
    pub evidence: Evidence,
    /// What is demanded of it.
    pub trust: Trust,
    /// Its version, from the one who gives it. It is not looked for then.
    pub version: Option<String>,
    /// The command that tells its version. Without one the version is read from its files or its name, and nothing of it runs.
    pub version_command: Vec<String>,
    /// Where `env` looks for the interpreter of a script: the PATH of the service.
    pub search: Option<std::ffi::OsString>,
    /// Set when it is not wanted any more: it then ends soon, with an error.
    pub called_off: Arc<AtomicBool>,
}

/// What an import is doing. Each begins when the one before it is over; the first two are done twice with an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Copying and unpacking.
    Copying,
    /// Hashing, comparing with what is published, looking whether it can be started, and for its version.
    Verifying,
    /// Waiting for the disk.
    Storing,
}

/// A version that is in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// What is known of it.
    pub version: Version,
    /// The file that is started.
    pub path: PathBuf,
    /// Whether it was there already.
    pub was_there: bool,
}

impl Import {
    pub(super) fn budget(&self) -> Budget {
        Budget::new(self.max_size_bytes, Arc::clone(&self.called_off))
    }
}

impl Store {
    /// Takes a version in, and tells each step as it begins. If the same content is there already, nothing is copied where that
    /// can be known beforehand, and nothing is waited for. On an error nothing is left, and nothing has run but what was
    /// verified. Blocks: on the file system, and 5 s on a command that does not tell the version.
    pub fn import(&self, import: &Import, step: &mut dyn FnMut(Step)) -> Result<Imported, Error> {
        step(Step::Copying);
        let given = Given::open(&import.path)?;
        if let Some(there) = self.find_same(import, &given, step)? {
            return self.reused(&there, import, &given);
        }
        self.create()?;
        let incoming = Incoming::new(&self.directory)?;
        crash_point!("supervisor/import/begun");
        let mut budget = import.budget();
        let taken = incoming.take_in(import, &given, &mut budget, step)?;
        crash_point!("supervisor/import/copied");
        let id = taken.id;
        if let Some(there) = self.get(&id).filter(|there| self.is_whole(there)) {
            self.narrow_to(&there, &incoming.files(), &taken)?;
            return self.reused(&(id, taken.source), import, &given);
        }
        let version = match &import.version {
            Some(version) => Some(version.clone()),
            None if import.version_command.is_empty() => {
                readable::version(&incoming.files(), &taken.entry, &import.path)
            }
            None => incoming.ask(&taken.entry, import)?,
        };
        step(Step::Storing);
        budget.go_on(&given.path)?;
        let files = incoming.files();
        let size_bytes = tree::protect(&files).map_err(Error::io("protect it", &files))?;
        let Taken { kind, entry, source, .. } = taken;
        let made = Made { id, kind, entry, size_bytes, version, added_unix_ms: unix_ms() };
        // Its files may have been taken away; what is known of it is known still.
        let known = self.get(&id).map(|known| known.used).unwrap_or_default();
        let used = Used { source: Some(origin(import, &given, source)), ..known };
        incoming.write(&made, &used)?;
        crash_point!("supervisor/import/written");
        incoming.sync(&made)?;
        crash_point!("supervisor/import/synced");
        let version = Version { made, used };
        self.put(incoming.directory(), &version)?;
        crash_point!("supervisor/import/stored");
        Ok(Imported { path: self.path_of(&version), version, was_there: false })
    }

    /// The version with the same content, if that can be told without a copy: the file looks as it did when it was taken in, or
    /// it is a program of the size of one that is kept. With the hash of the file that was given.
    fn find_same(
        &self,
        import: &Import,
        given: &Given,
        step: &mut dyn FnMut(Step),
    ) -> Result<Option<(Id, Id)>, Error> {
        let versions = self.versions();
        let looks_same = |source: &Source| {
            given.form != Form::Tree
                && source.look == given.look
                && source.tree == import.tree
                && source.member == import.member
        };
        let mut sources = versions.iter().filter_map(|it| Some((it.made.id, it.used.source.as_ref()?)));
        let known = sources.find(|(_, source)| looks_same(source)).map(|(id, source)| (id, source.sha256));
        let has_size = |it: &&Version| it.made.kind == Kind::File && it.made.size_bytes == given.look.size;
        let found = match known {
            Some(known) => Some(known),
            None if given.form == Form::Program && versions.iter().any(|it| has_size(&it)) => {
                (&given.file).rewind().map_err(Error::io("read it", &given.path))?;
                let id = Id::of(&given.file).map_err(Error::io("read it", &given.path))?;
                self.get(&id).map(|_| (id, id))
            }
            None => None,
        };
        let there = found.and_then(|(id, source)| Some((self.get(&id)?, source)));
        let Some((there, source)) = there.filter(|(there, _)| self.is_whole(there)) else { return Ok(None) };
        step(Step::Verifying);
        let evidence = import.evidence.completed(&given.path, &import.trust);
        evidence.check(&given.path, &source, Some(&given.file), &import.trust)?;
        given.is_unchanged()?;
        if given.form == Form::Program {
            let at = self.path_of(&there);
            let stored = File::open(&at).map_err(Error::io("open it", &at))?;
            privileges::carry(&given.file, &stored, &given.path)?;
            narrow(&stored, &given.file).map_err(Error::io("protect it", &at))?;
        }
        Ok(Some((there.made.id, source)))
    }

    /// A version that is there has no wider permissions than the same that was brought again.
    fn narrow_to(&self, there: &Version, files: &Path, taken: &Taken) -> Result<(), Error> {
        let at = self.path_of(there);
        let narrowed = match taken.kind {
            Kind::Tree => tree::narrow(&self.files_of(&there.made.id), files),
            Kind::File => {
                File::open(&at).and_then(|stored| narrow(&stored, &File::open(files.join(&taken.entry))?))
            }
        };
        narrowed.map_err(Error::io("protect it", &at))
    }

    /// A version that is there comes from another place now.
    fn reused(&self, (id, source): &(Id, Id), import: &Import, given: &Given) -> Result<Imported, Error> {
        let origin = origin(import, given, *source);
        let version = self.change(id, |used| {
            let is_news = used.source.as_ref() != Some(&origin);
            used.source = Some(origin);
            is_news
        })?;
        Ok(Imported { path: self.path_of(&version), version, was_there: true })
    }
}

fn origin(import: &Import, given: &Given, sha256: Id) -> Source {
    let (path, member, tree) = (import.path.clone(), import.member.clone(), import.tree);
    let digest = (given.form == Form::Tree).then(|| tree::digest(&given.path)).flatten();
    Source { path, look: given.look, digest, sha256, member, tree }
}

/// Takes from a file the permissions that another one does not have.
fn narrow(file: &File, other: &File) -> std::io::Result<()> {
    let mode = |file: &File| Ok::<_, std::io::Error>(file.metadata()?.permissions().mode() & 0o7777);
    let (has, may) = (mode(file)?, mode(other)?);
    match has & (may | 0o400) {
        narrower if narrower != has => file.set_permissions(Permissions::from_mode(narrower)),
        _ => Ok(()),
    }
}

/// What was copied.
struct Taken {
    id: Id,
    kind: Kind,
    entry: PathBuf,
    /// The hash of the file that was given.
    source: Id,
}

/// A directory that is no version yet. Removed with all that is in it when this is dropped.
#[derive(Debug)]
pub(super) struct Incoming(PathBuf);

/// Tells the directories of one process apart.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Incoming {
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

    /// Copies what was given, verifies the copy, and unpacks it. From here on the path that was given does not matter.
    fn take_in(
        &self,
        import: &Import,
        given: &Given,
        budget: &mut Budget,
        step: &mut dyn FnMut(Step),
    ) -> Result<Taken, Error> {
        if given.form == Form::Tree {
            return self.take_in_tree(import, given, budget, step);
        }
        budget.take(given.look.size, &given.path)?;
        let copied = self.0.join("copy");
        let mut options = File::options();
        let copy_of = options.read(true).write(true).create_new(true).mode(0o600).open(&copied);
        let copy_of = copy_of.map_err(Error::io("make the file", &copied))?;
        copy(&given.file, &copy_of, budget).map_err(Error::io("copy it", &copied))?;
        given.is_unchanged()?;
        step(Step::Verifying);
        budget.go_on(&given.path)?;
        let source = File::open(&copied).and_then(Id::of).map_err(Error::io("read it", &copied))?;
        let evidence = import.evidence.completed(&given.path, &import.trust);
        evidence.check(&given.path, &source, Some(&copy_of), &import.trust)?;
        match given.form {
            Form::Archive(format) => {
                let files = self.files();
                let unpack =
                    Unpack { format, given: &given.path, into: &files, called_off: &import.called_off };
                let mut budget = import.budget();
                let copy_of = File::open(&copied).map_err(Error::io("open it", &copied))?;
                let archive = (copy_of, source);
                let taken = self.take_out(import, given, &unpack, archive, &mut budget, step)?;
                fs::remove_file(&copied).map_err(Error::io("remove it", &copied))?;
                Ok(taken)
            }
            Form::Program | Form::Tree => {
                let to = self.files().join(given.name());
                self.take_mode(&given.file, &copy_of).map_err(Error::io("protect it", &copied))?;
                privileges::carry(&given.file, &copy_of, &given.path)?;
                fs::rename(&copied, &to).map_err(Error::io("rename it", &copied))?;
                self.check_alone(import, given, given.name())?;
                Ok(Taken { id: source, kind: Kind::File, entry: given.name().into(), source })
            }
        }
    }

    /// A copy of a program has no wider permissions than the original.
    pub(super) fn take_mode(&self, original: &File, copy: &File) -> std::io::Result<()> {
        let mode = original.metadata()?.permissions().mode();
        copy.set_permissions(Permissions::from_mode(mode & 0o755 | 0o700))
    }

    fn take_out(
        &self,
        import: &Import,
        given: &Given,
        unpack: &Unpack,
        (archive, source): (File, Id),
        budget: &mut Budget,
        step: &mut dyn FnMut(Step),
    ) -> Result<Taken, Error> {
        step(Step::Copying);
        if !import.tree {
            let entry = unpack.one(archive, import.member.as_deref(), budget)?;
            step(Step::Verifying);
            self.check_alone(import, given, entry.as_os_str())?;
            let at = self.files().join(&entry);
            let id = File::open(&at).and_then(Id::of).map_err(Error::io("read it", &at))?;
            return Ok(Taken { id, kind: Kind::File, entry, source });
        }
        unpack.all(archive, budget)?;
        step(Step::Verifying);
        let entry = entry::check(&self.files(), &given.path, import)?;
        Ok(Taken { id: tree::hash(&self.files())?, kind: Kind::Tree, entry, source })
    }

    fn take_in_tree(
        &self,
        import: &Import,
        given: &Given,
        budget: &mut Budget,
        step: &mut dyn FnMut(Step),
    ) -> Result<Taken, Error> {
        entry::check_named(&given.path, import.member.as_deref())?;
        tree::copy_all(&given.path, &self.files(), budget)?;
        given.is_unchanged()?;
        step(Step::Verifying);
        let id = tree::hash(&self.files())?;
        let required = import.trust.require != Require::Nothing;
        if required || import.evidence != Evidence::default() {
            import.evidence.check(&given.path, &id, None, &import.trust)?;
        }
        let entry = entry::check(&self.files(), &given.path, import)?;
        Ok(Taken { id, kind: Kind::Tree, entry, source: id })
    }

    /// A lone file must not need what lies beside it.
    fn check_alone(&self, import: &Import, given: &Given, name: &OsStr) -> Result<(), Error> {
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

    /// In a directory of its own, of which nothing is kept.
    fn ask(&self, entry: &Path, import: &Import) -> Result<Option<String>, Error> {
        version::check(&import.version_command, &import.path)?;
        let directory = self.0.join("asked");
        fs::create_dir(&directory).map_err(Error::io("make the directory", &directory))?;
        let program = self.files().join(entry);
        let version = version::ask(&import.version_command, &program, &directory, &import.called_off);
        fs::remove_dir_all(&directory).map_err(Error::io("remove it", &directory))?;
        Ok(version)
    }

    pub(super) fn write(&self, made: &Made, used: &Used) -> Result<(), Error> {
        let (made_at, used_at) = (self.0.join(MADE), self.0.join(USED));
        meta::write(&made_at, made).map_err(Error::io("write it", &made_at))?;
        meta::write(&used_at, used).map_err(Error::io("write it", &used_at))?;
        fs::set_permissions(&self.0, Permissions::from_mode(0o755)).map_err(Error::io("protect it", &self.0))
    }

    /// Returns when the disk has all of it.
    pub(super) fn sync(&self, made: &Made) -> Result<(), Error> {
        let sync = |path: &Path| {
            File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("write it to the disk", path))
        };
        let files = self.files();
        match made.kind {
            // Thousands of files one by one take longer than whatever else the disk has to take.
            Kind::Tree => {
                let opened = File::open(&files).map_err(Error::io("open it", &files))?;
                let synced = file_system::sync(&opened).map_err(std::io::Error::from);
                synced.map_err(Error::io("write it to the disk", &files))?;
            }
            Kind::File => sync(&files.join(&made.entry))?,
        }
        [files, self.0.join(MADE), self.0.join(USED), self.0.clone()].iter().try_for_each(|path| sync(path))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        super::remove_tree(&self.0);
    }
}
