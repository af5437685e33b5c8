//! Whether a path still has the same content.

use std::fs::{File, metadata};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::meta::{FileStamp, Id};
use super::{Source, tree};

/// Maximum size of a file to read for the comparison; trees are not read.
const READ_MAX_BYTES: u64 = 16 << 20;

/// The recorded state of a path, to compare with the present one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRecord {
    /// The path.
    pub path: PathBuf,
    /// Its metadata, if known.
    pub look: Option<FileStamp>,
    /// The digest of its content, if it was a directory.
    pub digest: Option<Id>,
    /// The hash of its content, if known.
    pub sha256: Option<Id>,
}

/// The result of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentMatch {
    /// The same content.
    Same,
    /// Another content.
    Other,
    /// Nothing exists at the path.
    Gone,
    /// The comparison is impossible.
    Unknown,
}

impl From<&Source> for PathRecord {
    fn from(source: &Source) -> Self {
        let Source { path, look, digest, sha256, .. } = source;
        Self { path: path.clone(), look: Some(*look), digest: *digest, sha256: Some(*sha256) }
    }
}

impl PathRecord {
    /// Records the present state of a path. Reads the content if it is small. Blocks.
    pub fn of(path: PathBuf) -> Self {
        let found = metadata(&path).ok();
        let is_tree = found.as_ref().is_some_and(std::fs::Metadata::is_dir);
        let digest = is_tree.then(|| tree::digest(&path)).flatten();
        let mut question = Self { path, look: found.as_ref().map(FileStamp::of), digest, sha256: None };
        question.sha256 = question.content();
        question
    }

    /// Compares. Blocks on the file system.
    pub fn answer(&self) -> ContentMatch {
        let found = match metadata(&self.path) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return ContentMatch::Gone,
            Err(_) => return ContentMatch::Unknown,
        };
        if found.is_dir() {
            return self.answer_of_tree();
        }
        if !found.is_file() {
            return ContentMatch::Other;
        }
        let now = FileStamp::of(&found);
        match self.look {
            Some(look) if look == now => return ContentMatch::Same,
            Some(look) if look.size != now.size => return ContentMatch::Other,
            _ => {}
        }
        // Another file may have the same content, and a change of permissions does not matter.
        match (self.sha256, self.content()) {
            (Some(was), Some(is)) if was == is => ContentMatch::Same,
            (Some(_), Some(_)) => ContentMatch::Other,
            _ => self.look.map_or(ContentMatch::Unknown, |look| {
                let same = (look.device, look.inode, look.modified) == (now.device, now.inode, now.modified);
                if same { ContentMatch::Same } else { ContentMatch::Other }
            }),
        }
    }

    /// For a directory, all its content counts.
    fn answer_of_tree(&self) -> ContentMatch {
        let now = tree::digest(&self.path);
        if now.is_some() && now == self.digest {
            return ContentMatch::Same;
        }
        match (self.sha256, self.content()) {
            (Some(was), Some(is)) if was == is => ContentMatch::Same,
            (Some(_), Some(_)) => ContentMatch::Other,
            _ if now.is_some() && self.digest.is_some() => ContentMatch::Other,
            _ => ContentMatch::Unknown,
        }
    }

    /// The hash of the present content, if it is small.
    fn content(&self) -> Option<Id> {
        let found = metadata(&self.path).ok()?;
        if found.is_dir() {
            let small = tree::size_bytes(&self.path).is_some_and(|size| size <= READ_MAX_BYTES);
            return small.then(|| tree::hash(&self.path).ok()).flatten();
        }
        let small = found.is_file() && found.len() <= READ_MAX_BYTES;
        small.then(|| File::open(&self.path).and_then(Id::of).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    fn mode(path: &Path, bits: u32) {
        fs::set_permissions(path, PermissionsExt::from_mode(bits)).unwrap();
    }

    #[test]
    fn of_a_directory_every_file_counts_and_its_permissions_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().join("top");
        fs::create_dir_all(top.join("lib")).unwrap();
        for (name, text) in [("run", "#!/bin/sh"), ("lib/part", "one")] {
            fs::write(top.join(name), text).unwrap();
        }
        mode(&top.join("run"), 0o755);
        for question in
            [PathRecord::of(top.clone()), PathRecord { digest: None, ..PathRecord::of(top.clone()) }]
        {
            assert_eq!(question.answer(), ContentMatch::Same);
            mode(&top.join("run"), 0o700);
            mode(&top, 0o700);
            assert_eq!(question.answer(), ContentMatch::Same, "chmod changes nothing");
            fs::write(top.join("lib/part"), "two").unwrap();
            assert_eq!(question.answer(), ContentMatch::Other, "a file in it");
            fs::write(top.join("lib/part"), "one").unwrap();
            assert_eq!(question.answer(), ContentMatch::Same, "another file with the same content");
            fs::write(top.join("more"), "").unwrap();
            assert_eq!(question.answer(), ContentMatch::Other, "one more");
            fs::remove_file(top.join("more")).unwrap();
            mode(&top.join("run"), 0o644);
            assert_eq!(question.answer(), ContentMatch::Other, "the execute bit is a part of the program");
            mode(&top.join("run"), 0o755);
        }
        let question = PathRecord::of(top.clone());
        fs::remove_dir_all(&top).unwrap();
        assert_eq!(question.answer(), ContentMatch::Gone);
    }

    #[test]
    fn of_a_file_the_content_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "one").unwrap();
        let question = PathRecord::of(path.clone());
        mode(&path, 0o600);
        assert_eq!(question.answer(), ContentMatch::Same);
        fs::write(&path, "two").unwrap();
        assert_eq!(question.answer(), ContentMatch::Other);
        let large = File::create(&path).unwrap();
        large.set_len(READ_MAX_BYTES + 1).unwrap();
        let question = PathRecord::of(path.clone());
        assert_eq!(question.sha256, None);
        mode(&path, 0o644);
        assert_eq!(question.answer(), ContentMatch::Same, "not even of a large one");
        large.set_len(READ_MAX_BYTES + 2).unwrap();
        assert_eq!(question.answer(), ContentMatch::Other);
    }
}
