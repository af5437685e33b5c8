//! Where the running version came from, and what its service file named at that time. This shows which of the two is
//! newer.
//!
//! `handoff upgrade` takes what the service file names. The running version may have come another way since: by
//! `handoff installed`, by `--binary`, by a rollback. Then an upgrade without a binary would be a step back, unless
//! the file was edited, or what it names was written, after that. So each version is recorded together with what the
//! file named when it was brought in.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Dirs;
use crate::control::api::NamedIs;
use crate::store::{ContentMatch, Id, PathRecord};
use crate::supervisor::service::Service;
use crate::sys::regular;
use handoff_protocol::ids::ServiceName;
use handoff_protocol::record::Binary;

const FILE: &str = "origins";
/// Maximum number of recorded versions.
const KEPT: usize = 16;

/// Where a version came from when it was brought in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::supervisor) struct Origin {
    /// The path that is started.
    pub(in crate::supervisor) binary: PathBuf,
    sha256: Id,
    /// The path that was given; `None` for a version from the store.
    pub(in crate::supervisor) given: Option<PathBuf>,
    /// What the service file named.
    named: PathRecord,
}

/// The comparison of a version with what a service file names.
#[derive(Debug)]
pub(in crate::supervisor) struct Comparison {
    origin: Origin,
    named: PathBuf,
}

impl Origin {
    /// Inspects what the file names. Blocks on the file system.
    pub(in crate::supervisor) fn of(binary: &Binary, given: Option<PathBuf>, named: PathBuf) -> Self {
        Self {
            binary: PathBuf::from(&binary.path),
            sha256: Id(binary.sha256),
            given,
            named: PathRecord::of(named),
        }
    }
}

impl Comparison {
    /// Whether what the file names is older or newer than what runs; `None` if they are the same. Blocks on the file
    /// system.
    pub(in crate::supervisor) fn answer(&self) -> Option<NamedIs> {
        let is_given = self.origin.given.as_ref() == Some(&self.named);
        if is_given || PathRecord::of(self.named.clone()).sha256 == Some(self.origin.sha256) {
            return None;
        }
        Some(judge(&self.origin.named, &self.named, self.origin.named.answer()))
    }
}

/// `then` is what the file named when the running version was brought in, and `now` what it names now. `same` is the
/// state of the former.
fn judge(then: &PathRecord, now: &Path, same: ContentMatch) -> NamedIs {
    let appeared = then.look.is_none() && same != ContentMatch::Gone;
    match same {
        // The file was edited.
        _ if then.path != now => NamedIs::Newer,
        ContentMatch::Other => NamedIs::Newer,
        _ if appeared => NamedIs::Newer,
        ContentMatch::Same | ContentMatch::Gone | ContentMatch::Unknown => NamedIs::Older,
    }
}

/// The recorded origins of a service. Reads a file.
pub(in crate::supervisor) fn read_origins(dirs: &Dirs, name: &ServiceName) -> Vec<Origin> {
    let read = regular::read(&dirs.service_state(name).join(FILE)).ok();
    read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

impl Service {
    /// Records where a version came from that is about to be brought in. The next daemon finds it in a file.
    pub(in crate::supervisor) fn remember_origin(&mut self, origin: Origin) {
        self.versions
            .origins
            .retain(|other| (&other.binary, other.sha256) != (&origin.binary, origin.sha256));
        self.versions.origins.push(origin);
        self.versions.origins.drain(..self.versions.origins.len().saturating_sub(KEPT));
        let path = self.shared.dirs.service_state(&self.name).join(FILE);
        let origins = self.versions.origins.clone();
        self.lanes.history.post(move || {
            let beside = path.with_extension("new");
            let text = serde_json::to_vec(&origins).unwrap_or_default();
            let written = regular::create(&beside).and_then(|mut file| file.write_all(&text));
            if let Err(error) = written.and_then(|()| std::fs::rename(&beside, &path)) {
                tracing::warn!(path = %path.display(), %error, "a new daemon will not know what came after what");
            }
        });
    }

    /// Where the running version came from, if that is known.
    pub(in crate::supervisor) fn origin(&self) -> Option<&Origin> {
        let Binary { path, sha256 } = self.current_binary()?;
        self.versions.origins.iter().rev().find(|it| it.binary == Path::new(path) && it.sha256.0 == *sha256)
    }

    /// The comparison of the running version with this path, which a service file names.
    pub(in crate::supervisor) fn comparison(&self, named: &Path) -> Option<Comparison> {
        Some(Comparison { origin: self.origin()?.clone(), named: named.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_names_is_older_unless_something_was_done_since() {
        use NamedIs::{Newer, Older};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("named");
        let absent = PathRecord::of(path.clone());
        std::fs::write(&path, "one").unwrap();
        let present = PathRecord::of(path.clone());
        let edited = Path::new("/edited");
        let table = [
            (&present, path.as_path(), ContentMatch::Same, Older),
            (&present, &path, ContentMatch::Gone, Older),
            (&present, &path, ContentMatch::Unknown, Older),
            (&present, &path, ContentMatch::Other, Newer),
            (&present, edited, ContentMatch::Same, Newer),
            (&present, edited, ContentMatch::Gone, Newer),
            (&present, edited, ContentMatch::Unknown, Newer),
            (&present, edited, ContentMatch::Other, Newer),
            (&absent, &path, ContentMatch::Gone, Older),
            (&absent, &path, ContentMatch::Unknown, Newer),
            (&absent, &path, ContentMatch::Same, Newer),
            (&absent, &path, ContentMatch::Other, Newer),
        ];
        for (then, now, same, expected) in table {
            assert_eq!(judge(then, now, same), expected, "{then:?} {now:?} {same:?}");
        }
    }
}
