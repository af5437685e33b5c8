//! What `upgrade` and `installed` say of a new binary.

use std::path::{Path, PathBuf};

use super::exit::Failure;
use crate::control::api::Claims;
use crate::store::{Evidence, Id};

/// How a new binary is verified, and what of it is meant.
#[derive(clap::Args)]
#[command(next_help_heading = "Verification")]
pub(super) struct Claimed {
    /// The SHA-256 that the file must have
    #[arg(long, value_name = "HEX")]
    sha256: Option<Id>,
    /// A list of checksums, as `sha256sum` writes it, that must name the file
    #[arg(long, value_name = "FILE")]
    sha256sums: Option<PathBuf>,
    /// A signature of the file by minisign, with a key of the service file
    #[arg(long, value_name = "FILE")]
    minisig: Option<PathBuf>,
    /// Which member of an archive, or which file of a directory, is the program
    #[arg(long, value_name = "NAME")]
    member: Option<String>,
    /// Take an archive as a whole, not the member alone
    #[arg(long, requires = "member")]
    tree: bool,
}

impl Claimed {
    pub(super) fn to_claims(&self) -> Result<Claims, Failure> {
        let path = |path: &Option<PathBuf>| path.as_deref().map(absolute).transpose();
        let (sha256sums, minisig) = (path(&self.sha256sums)?, path(&self.minisig)?);
        let evidence = Evidence { sha256: self.sha256, sha256sums, minisig };
        Ok(Claims { evidence, member: self.member.clone(), tree: self.tree.then_some(true) })
    }
}

/// The daemon has a working directory of its own.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| {
        let message = format!("The path {} cannot be made absolute: {error}.", path.display());
        Failure::failed(message, "Give an absolute path.")
    })
}
