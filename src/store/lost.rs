//! Restores a version whose files were removed, from a process that runs it or from its source.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::copy::{Budget, copy};
use super::error::Error;
use super::import::{Import, UnfinishedVersion};
use super::meta::{self, Id, UsageRecord, Version, VersionKind, VersionMetadata};
use super::{MADE, Store, USED, tree};

impl Store {
    /// Restores a known version whose files are missing. `running` is the open program of a process that runs it.
    /// Returns where the content was found; an error if it is nowhere. Blocks.
    pub fn restore(&self, version: &Version, running: Option<File>) -> Result<String, Error> {
        let source = version.usage.source.as_ref();
        if version.metadata.kind == VersionKind::File {
            let at = source.map(|source| source.path.clone());
            let original =
                at.as_ref().and_then(|path| Some((path.display().to_string(), File::open(path).ok()?)));
            let running = running.map(|file| ("the process that runs it".to_owned(), file));
            for (from, file) in running.into_iter().chain(original) {
                if self.restore_from_file(version, &file)? {
                    return Ok(from);
                }
            }
        }
        let Some(source) = source else { return Err(self.nowhere(version, None)) };
        let import = Import {
            path: source.path.clone(),
            member: source.member.clone(),
            tree: source.tree,
            max_size_bytes: u64::MAX,
            version: version.metadata.version.clone(),
            ..Import::default()
        };
        match self.import(&import, &mut |_| {}) {
            Ok(imported) if imported.version.metadata.id == version.metadata.id => {
                Ok(source.path.display().to_string())
            }
            Ok(imported) => {
                if !imported.was_there {
                    self.remove(&imported.version.metadata.id)?;
                }
                Err(self.nowhere(version, Some(source.path.clone())))
            }
            Err(_) => Err(self.nowhere(version, Some(source.path.clone()))),
        }
    }

    /// Imports a version from another store on the same file system. If it exists already, only its source is recorded.
    /// Returns the file to start. Blocks.
    pub fn adopt(&self, from: &Path, id: &Id) -> Result<PathBuf, Error> {
        let at = from.join(id.to_string());
        let there = self.get(id).filter(|there| self.is_whole(there));
        let brought =
            meta::read::<VersionMetadata>(&at.join(MADE)).ok().filter(|metadata| metadata.id == *id);
        let usage: UsageRecord = meta::read(&at.join(USED)).unwrap_or_default();
        match (there, brought) {
            (Some(_), _) => {
                let version = self.change(id, |known| {
                    let is_changed = usage.source.is_some() && known.source != usage.source;
                    known.source = usage.source.or(known.source.take());
                    is_changed
                })?;
                Ok(self.path_of(&version))
            }
            (None, Some(metadata)) => {
                let version = Version { metadata, usage };
                self.create()?;
                self.put(&at, &version)?;
                Ok(self.path_of(&version))
            }
            (None, None) => Err(Error::Unknown { cause: format!("{}: there is no version", at.display()) }),
        }
    }

    /// Restores the version from the file, if the content is the same. Returns whether it is.
    fn restore_from_file(&self, version: &Version, file: &File) -> Result<bool, Error> {
        if !file.metadata().is_ok_and(|found| found.is_file()) {
            return Ok(false);
        }
        self.create()?;
        let incoming = UnfinishedVersion::new(&self.directory)?;
        let at = incoming.files().join(&version.metadata.entry);
        let copied = File::options().read(true).write(true).create_new(true).open(&at);
        let copied = copied.map_err(Error::io("make the file", &at))?;
        copy(file, &copied, &Budget::new(u64::MAX, std::sync::Arc::default()))
            .map_err(Error::io("copy it", &at))?;
        let id = File::open(&at).and_then(Id::of).map_err(Error::io("read it", &at))?;
        if id != version.metadata.id {
            return Ok(false);
        }
        incoming.take_mode(file, &copied).map_err(Error::io("protect it", &at))?;
        tree::protect(&incoming.files()).map_err(Error::io("protect it", &at))?;
        incoming.write(&version.metadata, &version.usage)?;
        incoming.sync(&version.metadata)?;
        self.put(incoming.directory(), version)?;
        Ok(true)
    }

    fn nowhere(&self, version: &Version, source: Option<PathBuf>) -> Error {
        let cause = match &source {
            Some(path) => format!("its files were removed, and {} has other content", path.display()),
            None => "its files were removed".to_owned(),
        };
        let path = source.unwrap_or_else(|| PathBuf::from("FILE"));
        let hint =
            format!("put that version somewhere and import it: handoff installed SERVICE {}", path.display());
        Error::refused(&self.path_of(version), cause, hint)
    }
}
