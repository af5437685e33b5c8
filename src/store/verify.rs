//! Whether a file is the published one: SHA-256, a list of sums, a minisign signature.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use minisign_verify::{PublicKey, Signature};
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::meta::Id;
use crate::sys::regular;

/// Claims about a file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Evidence {
    /// The SHA-256 of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Id>,
    /// A list of sums from `sha256sum` that contains the file's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256sums: Option<PathBuf>,
    /// A minisign signature of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minisig: Option<PathBuf>,
}

/// What a service requires of a new version.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trust {
    /// The required claims.
    pub require: Require,
    /// minisign public keys; one of them must have made a given signature.
    pub keys: Vec<String>,
}

/// The required claims for a file that may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Require {
    /// Nothing.
    #[default]
    Nothing,
    /// A checksum, or a signature.
    Checksum,
    /// A signature.
    Signature,
}

/// Maximum size of lists and signatures, in bytes.
const TEXT_MAX_BYTES: u64 = 1 << 20;

/// Whether a text is a minisign public key.
pub fn is_public_key(text: &str) -> bool {
    PublicKey::from_base64(text).is_ok()
}

impl Evidence {
    /// Adds files next to the given file that are needed but not named: `<path>.minisig` and `<path>.sha256`.
    pub(super) fn completed(&self, given: &Path, trust: &Trust) -> Self {
        let beside = |ending: &str| {
            let mut path = given.as_os_str().to_owned();
            path.push(ending);
            Some(PathBuf::from(path)).filter(|path| path.is_file())
        };
        let mut evidence = self.clone();
        let has_sum = self.sha256.is_some() || self.sha256sums.is_some();
        if trust.require != Require::Nothing && self.minisig.is_none() && !trust.keys.is_empty() {
            evidence.minisig = beside(".minisig");
        }
        if trust.require == Require::Checksum && !has_sum && evidence.minisig.is_none() {
            evidence.sha256sums = beside(".sha256");
        }
        evidence
    }

    /// Compares all claims with the file, whose hash is known. An error if a required claim is missing. `given` is the
    /// original path; a tree has no `file`. Blocks.
    pub(super) fn check(
        &self,
        given: &Path,
        found: &Id,
        file: Option<&File>,
        trust: &Trust,
    ) -> Result<(), Error> {
        if let Some(expected) = &self.sha256 {
            compare(given, found, expected, "the SHA-256 that was given")?;
        }
        if let Some(list) = &self.sha256sums {
            let expected = listed(given, list)?;
            compare(given, found, &expected, &list.display().to_string())?;
        }
        if let Some(path) = &self.minisig {
            check_signature(given, path, file, &trust.keys)?;
        }
        let has_sum = self.sha256.is_some() || self.sha256sums.is_some();
        let (missing, hint) = match trust.require {
            Require::Signature if self.minisig.is_none() => {
                ("a signature", "give --minisig FILE, or put it beside the file, with .minisig at its end")
            }
            Require::Checksum if self.minisig.is_none() && !has_sum => (
                "a checksum",
                "give --sha256 or --sha256sums, or put a list beside the file, with .sha256 at its end",
            ),
            Require::Nothing | Require::Checksum | Require::Signature => return Ok(()),
        };
        Err(Error::refused(given, format!("the service file requires {missing}, and there is none"), hint))
    }
}

fn compare(given: &Path, found: &Id, expected: &Id, by: &str) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    let cause = format!("its SHA-256 is {found}, and according to {by} it should be {expected}");
    Err(Error::refused(given, cause, "fetch it again; if it is the same then, it is not what was published"))
}

/// The sum of a file in a list: `<hex>  <name>`, `<hex> *<name>`, or `SHA256 (<name>) = <hex>` (sha256sum(1), `--tag`).
fn listed(given: &Path, list: &Path) -> Result<Id, Error> {
    let name = given.file_name().unwrap_or(OsStr::new("")).to_string_lossy().into_owned();
    let text = short_text(list)?;
    let sums = text.lines().filter_map(entry).filter(|(_, listed)| {
        Path::new(listed).file_name().is_some_and(|listed| listed.to_string_lossy() == name)
    });
    let mut sums: Vec<&str> = sums.map(|(sum, _)| sum).collect();
    sums.dedup_by(|one, other| one.eq_ignore_ascii_case(other));
    match sums[..] {
        [sum] => sum.parse().map_err(|cause: String| {
            Error::refused(list, cause, "it should be as `sha256sum` writes it; fetch it again")
        }),
        [] => {
            let hint = "the file must have the name that it has in the list";
            Err(Error::refused(list, format!("it does not list {name}"), hint))
        }
        [..] => {
            let hint = "ask its publisher, or give the right sum with --sha256";
            Err(Error::refused(list, format!("it lists {name} more than once, with different sums"), hint))
        }
    }
}

fn entry(line: &str) -> Option<(&str, &str)> {
    if let Some(tagged) = line.strip_prefix("SHA256 (") {
        let (name, sum) = tagged.rsplit_once(") = ")?;
        return Some((sum.trim(), name));
    }
    let (sum, name) = line.split_once(' ')?;
    let name = name.strip_prefix(['*', ' ']).unwrap_or(name);
    Some((sum, name.trim_end()))
}

fn check_signature(given: &Path, path: &Path, file: Option<&File>, keys: &[String]) -> Result<(), Error> {
    let Some(mut file) = file else {
        let hint = "give it as an archive, and set tree = true in [update] of the service file";
        return Err(Error::refused(given, "a directory has no signature", hint));
    };
    if keys.is_empty() {
        let hint = "write minisign_keys = [\"RW...\"] in [update]";
        return Err(Error::refused(given, "the service file has no key to check its signature with", hint));
    }
    let text = short_text(path)?;
    let signature = Signature::decode(&text)
        .map_err(|_| Error::refused(path, "it is not a minisign signature", "fetch it again"))?;
    for key in keys.iter().filter_map(|key| PublicKey::from_base64(key).ok()) {
        // Another key; or a legacy signature, which would have to be held in memory.
        let Ok(mut verifier) = key.verify_stream(&signature) else { continue };
        file.rewind().map_err(Error::io("read it", given))?;
        feed(file, |bytes| verifier.update(bytes)).map_err(Error::io("read it", given))?;
        if verifier.finalize().is_ok() {
            return Ok(());
        }
        let cause = format!("{} is not its signature", path.display());
        return Err(Error::refused(given, cause, "it is not what was signed: do not use it"));
    }
    let cause = format!("{} was made with none of the minisign_keys of the service file", path.display());
    Err(Error::refused(
        given,
        cause,
        "if the key is right, add it; an old form of signature is refused as well",
    ))
}

fn feed(mut file: &File, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            n => take(&buffer[..n]),
        }
    }
}

fn short_text(path: &Path) -> Result<String, Error> {
    let mut text = String::new();
    let read =
        regular::open_to_read(path).and_then(|file| file.take(TEXT_MAX_BYTES).read_to_string(&mut text));
    read.map_err(Error::io("read it", path))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use minisign::KeyPair;
    use std::io::Cursor;

    /// FIPS 180-2, appendix B.1.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    struct VerifyFixture {
        directory: tempfile::TempDir,
        file: File,
        key: KeyPair,
    }

    impl VerifyFixture {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            std::fs::write(directory.path().join("s3"), "abc").unwrap();
            let file = File::open(directory.path().join("s3")).unwrap();
            Self { directory, file, key: KeyPair::generate_unencrypted_keypair().unwrap() }
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        }

        fn sign(&self, content: &str) -> String {
            minisign::sign(None, &self.key.sk, Cursor::new(content), None, None).unwrap().into_string()
        }

        fn check(&self, evidence: &Evidence, require: Require) -> Result<(), String> {
            let given = self.directory.path().join("s3");
            let trust = Trust { require, keys: vec![self.key.pk.to_base64()] };
            let found = ABC.parse().unwrap();
            let evidence = evidence.completed(&given, &trust);
            evidence.check(&given, &found, Some(&self.file), &trust).map_err(|error| error.to_string())
        }
    }

    #[test]
    fn a_list_is_read_in_each_of_its_forms() {
        let place = VerifyFixture::new();
        let check = |text: &str| {
            let sha256sums = Some(place.write("SHA256SUMS", text));
            place.check(&Evidence { sha256sums, ..Evidence::default() }, Require::Checksum)
        };
        let other = "0".repeat(64);
        for good in [
            format!("{ABC}  s3\n"),
            format!("{other}  s3-old\n{} *./s3\n", ABC.to_uppercase()),
            format!("# sums\nSHA256 (dist/s3) = {ABC}\n"),
        ] {
            assert_eq!(check(&good), Ok(()), "{good}");
        }
        assert!(check(&format!("{other}  s3\n")).unwrap_err().contains("it should be 0000"));
        assert!(check(&format!("{ABC}  s4\n")).unwrap_err().contains("does not list s3"));
        assert!(check(&format!("{ABC}  s3\n{other}  s3\n")).unwrap_err().contains("more than once"));
        assert!(check("ba78  s3\n").unwrap_err().contains("is not a SHA-256"));
        assert!(check("").unwrap_err().contains("does not list s3"));
    }

    #[test]
    fn a_signature_counts_only_of_this_content_and_by_a_known_key() {
        let place = VerifyFixture::new();
        let check = |text: &str| {
            let minisig = Some(place.write("signature", text));
            place.check(&Evidence { minisig, ..Evidence::default() }, Require::Signature)
        };
        assert_eq!(check(&place.sign("abc")), Ok(()));
        assert!(check(&place.sign("abd")).unwrap_err().contains("is not its signature"));
        assert!(check(&VerifyFixture::new().sign("abc")).unwrap_err().contains("none of the minisign_keys"));
        assert!(check("text").unwrap_err().contains("not a minisign signature"));
        let tampered = place.sign("abc").replace("trusted comment: ", "trusted comment: x");
        assert!(check(&tampered).is_err());
    }

    #[test]
    fn what_is_required_must_be_there_if_only_beside_the_file() {
        let place = VerifyFixture::new();
        let nothing = Evidence::default();
        assert_eq!(place.check(&nothing, Require::Nothing), Ok(()));
        assert!(place.check(&nothing, Require::Checksum).unwrap_err().contains("requires a checksum"));
        let sum = Evidence { sha256: Some(ABC.parse().unwrap()), ..Evidence::default() };
        assert_eq!(place.check(&sum, Require::Checksum), Ok(()));
        assert!(place.check(&sum, Require::Signature).unwrap_err().contains("requires a signature"));
        place.write("s3.sha256", &format!("{ABC}  s3\n"));
        assert_eq!(place.check(&nothing, Require::Checksum), Ok(()));
        place.write("s3.minisig", &place.sign("abc"));
        assert_eq!(place.check(&nothing, Require::Signature), Ok(()));
        place.write("s3.minisig", &place.sign("abd"));
        assert!(place.check(&nothing, Require::Checksum).is_err(), "given claims must be right");
    }
}
