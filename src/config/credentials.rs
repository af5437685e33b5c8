//! The table `[credentials]`: files with secrets for a program.

use std::path::{Path, PathBuf};

use super::error::{Error, Position, Report};
use super::table::Section;
use crate::sys::regular;

/// Maximum number of credentials of a service.
const CREDENTIALS_MAX: usize = 32;
const NAME_MAX_BYTES: usize = 255;

/// A file that each process of a service gets a copy of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The name of the copy.
    pub name: String,
    /// Absolute path of the original.
    pub path: PathBuf,
    /// Its place in the service file.
    pub at: Position,
}

/// Reads the table.
pub(super) fn read(report: &mut Report, root: &Section) -> Vec<Credential> {
    let Some(section) = root.section(report, "credentials", "credentials.") else { return Vec::new() };
    let mut credentials = Vec::new();
    for (name, path) in section.entries(report) {
        if !is_name(name.value) {
            let hint = "write a name of letters, digits, '.', '_' and '-' that begins with no '.'";
            section.wrong::<()>(report, name.value, name.span, "is no name of a credential", hint);
        } else if !Path::new(&path.value).is_absolute() {
            // Not displayed: it may be the secret.
            let cause = "is not an absolute path";
            let hint = "write the path of the file with the secret, not the secret itself";
            section.wrong::<()>(report, name.value, path.span, cause, hint);
        } else {
            let at = path.at(report);
            credentials.push(Credential { name: name.value.to_owned(), path: path.value.into(), at });
        }
    }
    if credentials.len() > CREDENTIALS_MAX {
        let cause = format!("has {} entries", credentials.len());
        root.refuse(report, "credentials", &cause, &format!("at most {CREDENTIALS_MAX} are given"));
    }
    credentials
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX_BYTES
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

impl Credential {
    /// Whether it can be read now. Blocks on the file system.
    pub(super) fn check(&self, service: &Path) -> Option<Error> {
        let error = regular::open_to_read(&self.path).err()?;
        Some(Error {
            file: service.to_owned(),
            at: Some(self.at),
            key: Some(format!("credentials.{}", self.name)),
            cause: format!("{:?} cannot be read: {error}", self.path),
            hint: "create it, or correct the path".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::is_name;

    #[test]
    fn a_name_is_a_plain_file_name() {
        assert!(["token", "db.pass-1_x", &"x".repeat(255)].into_iter().all(is_name));
        assert!(!["", ".", "..", ".x", "a/b", "ä", &"x".repeat(256)].into_iter().any(is_name));
    }
}
