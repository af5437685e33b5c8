//! The options of `upgrade` and `installed` that describe a new binary.

use std::path::{Path, PathBuf};

use super::exit::Failure;
use crate::control::api::Claims;
use crate::store::{Evidence, Id};

/// How to verify a new binary, and which part of it is the program.
#[derive(clap::Args)]
#[command(next_help_heading = "Verification")]
pub(super) struct ClaimOptions {
    /// The SHA-256 that the file must have
    #[arg(long, value_name = "HEX")]
    sha256: Option<Id>,
    /// A list of checksums, as written by `sha256sum`, that must name the file
    #[arg(long, value_name = "FILE")]
    sha256sums: Option<PathBuf>,
    /// A minisign signature of the file, by a key of the service file
    #[arg(long, value_name = "FILE")]
    minisig: Option<PathBuf>,
    /// The member of an archive, or the file of a directory, that is the program
    #[arg(long, value_name = "NAME")]
    member: Option<String>,
    /// Take the whole archive, not only the member
    #[arg(long, requires = "member")]
    tree: bool,
}

impl ClaimOptions {
    pub(super) fn to_claims(&self) -> Result<Claims, Failure> {
        let path = |path: &Option<PathBuf>| path.as_deref().map(absolute).transpose();
        let (sha256sums, minisig) = (path(&self.sha256sums)?, path(&self.minisig)?);
        let evidence = Evidence { sha256: self.sha256, sha256sums, minisig };
        Ok(Claims { evidence, member: self.member.clone(), tree: self.tree.then_some(true) })
    }
}

/// The daemon has another working directory.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| {
        let message = format!("The path {} cannot be made absolute: {error}.", path.display());
        Failure::failed(message, "Give an absolute path.")
    })
}
