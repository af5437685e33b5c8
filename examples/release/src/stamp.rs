//! The release stamp: a few lines at the end of an executable with its release.
//!
//! The kernel's loader ignores bytes after the last section of an ELF file, so one build can be packaged as many
//! releases, each a different file with its own hash:
//!
//! ```text
//! (the executable)
//! #release-stamp
//! version=1.2.3
//! fault=slow-begin:250
//! #end-of-release-stamp
//! ```
//!
//! The `fault` line is for rehearsals: it makes a release fail in a defined way.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

const HEAD: &str = "\n#release-stamp\n";
const TAIL: &str = "#end-of-release-stamp\n";
/// Maximum size of the stamp in bytes.
const LIMIT: usize = 512;

/// The content of an executable's stamp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// The version, as `--version` prints it.
    pub version: String,
    /// The fault of this release, if it is for a rehearsal.
    pub fault: Option<Fault>,
}

/// A defined failure. The text form is the one in the stamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `never-ready`: opens its data, but never reports readiness.
    NeverReady,
    /// `unhealthy`: reports that it is not healthy.
    Unhealthy,
    /// `slow-begin:<ms>`: becomes ready only after that time.
    SlowBegin(Duration),
    /// `crash-after-ready`: reports readiness and crashes at once.
    CrashAfterReady,
}

impl Stamp {
    /// The stamp of the running executable; without one, the version of its package.
    ///
    /// # Errors
    ///
    /// `/proc/self/exe` cannot be read, or has an invalid stamp.
    pub fn current() -> io::Result<Self> {
        Ok(read("/proc/self/exe".as_ref())?
            .unwrap_or_else(|| Self { version: env!("CARGO_PKG_VERSION").to_owned(), fault: None }))
    }
}

/// Reads the stamp of the executable file `path`; `None` if it has none. Blocks on the file.
///
/// # Errors
///
/// The file cannot be read, or its stamp has an unknown line.
pub fn read(path: &Path) -> io::Result<Option<Stamp>> {
    let mut file = File::open(path).map_err(|error| named(path, "cannot be opened", &error))?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LIMIT as u64)))?;
    let mut end = Vec::with_capacity(LIMIT);
    file.read_to_end(&mut end)?;
    match locate(&end) {
        Some(start) => parse(&end[start..]).map(Some).map_err(|error| named(path, "has a bad stamp", &error)),
        None => Ok(None),
    }
}

/// Writes the executable `src` to `dst` as the release `version`, replacing a stamp of `src`.
///
/// `dst` is replaced atomically, without effect on a running executable of that name. Blocks until the new file is
/// durable.
///
/// # Errors
///
/// A file cannot be read or written, or the version is empty, too long or more than one line.
pub fn stamp(src: &Path, dst: &Path, version: &str, fault: Option<Fault>) -> io::Result<()> {
    let block = block(version, fault)?;
    let mut image = fs::read(src).map_err(|error| named(src, "cannot be read", &error))?;
    let end = image.len().saturating_sub(LIMIT);
    if let Some(start) = locate(&image[end..]) {
        image.truncate(end + start);
    }
    image.extend_from_slice(block.as_bytes());

    let mut beside = dst.as_os_str().to_owned();
    beside.push(".new");
    let beside = Path::new(&beside);
    let write = || {
        let mut file = File::create(beside)?;
        file.set_permissions(fs::metadata(src)?.permissions())?;
        file.write_all(&image)?;
        file.sync_all()?;
        fs::rename(beside, dst)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(beside);
        named(dst, "cannot be written", &error)
    })
}

fn block(version: &str, fault: Option<Fault>) -> io::Result<String> {
    if version.is_empty() || version.contains('\n') {
        return Err(invalid(format!("the version {version:?} is not one line of text")));
    }
    let fault = fault.map(|fault| format!("fault={fault}\n")).unwrap_or_default();
    let block = format!("{HEAD}version={version}\n{fault}{TAIL}");
    if block.len() > LIMIT {
        return Err(invalid(format!("the version {version:?} is too long for a stamp of {LIMIT} bytes")));
    }
    Ok(block)
}

/// The position of the stamp in `end`, the last bytes of a file.
fn locate(end: &[u8]) -> Option<usize> {
    if !end.ends_with(TAIL.as_bytes()) {
        return None;
    }
    end.windows(HEAD.len()).rposition(|window| window == HEAD.as_bytes())
}

fn parse(block: &[u8]) -> io::Result<Stamp> {
    let block = std::str::from_utf8(block).map_err(|error| invalid(error.to_string()))?;
    let lines = block.strip_prefix(HEAD).and_then(|rest| rest.strip_suffix(TAIL)).unwrap_or_default();
    let (mut version, mut fault) = (None, None);
    for line in lines.lines() {
        match line.split_once('=') {
            Some(("version", text)) => version = Some(text.to_owned()),
            Some(("fault", text)) => fault = Some(text.parse().map_err(invalid)?),
            _ => return Err(invalid(format!("unknown line {line:?}"))),
        }
    }
    let version = version.ok_or_else(|| invalid("the version line is missing".to_owned()))?;
    Ok(Stamp { version, fault })
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeverReady => f.write_str("never-ready"),
            Self::Unhealthy => f.write_str("unhealthy"),
            Self::SlowBegin(delay) => write!(f, "slow-begin:{}", delay.as_millis()),
            Self::CrashAfterReady => f.write_str("crash-after-ready"),
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "never-ready" => Ok(Self::NeverReady),
            None if text == "unhealthy" => Ok(Self::Unhealthy),
            None if text == "crash-after-ready" => Ok(Self::CrashAfterReady),
            Some(("slow-begin", ms)) => {
                let ms = ms.parse().map_err(|error| format!("fault {text:?}: {ms:?} ms: {error}"))?;
                Ok(Self::SlowBegin(Duration::from_millis(ms)))
            }
            _ => Err(format!(
                "unknown fault {text:?}: use never-ready, unhealthy, slow-begin:<ms> or crash-after-ready"
            )),
        }
    }
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn named(path: &Path, what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{} {what}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stamp_reads_back_and_is_replaced_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, first, second) = (dir.path().join("plain"), dir.path().join("1"), dir.path().join("2"));
        let image: Vec<u8> = (0..4000u32).map(|n| n as u8).collect();
        fs::write(&plain, &image).unwrap();
        assert_eq!(read(&plain).unwrap(), None);

        let faults = [
            None,
            Some(Fault::NeverReady),
            Some(Fault::Unhealthy),
            Some(Fault::SlowBegin(Duration::from_millis(250))),
            Some(Fault::CrashAfterReady),
        ];
        for fault in faults {
            stamp(&plain, &first, "1.0.0", fault).unwrap();
            assert_eq!(read(&first).unwrap(), Some(Stamp { version: "1.0.0".into(), fault }));
            stamp(&first, &second, "2.10.0-rc.1", None).unwrap();
            assert_eq!(read(&second).unwrap(), Some(Stamp { version: "2.10.0-rc.1".into(), fault: None }));
            let mut expected = image.clone();
            expected.extend_from_slice(b"\n#release-stamp\nversion=2.10.0-rc.1\n#end-of-release-stamp\n");
            assert_eq!(fs::read(&second).unwrap(), expected);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "no temporary file is left");
    }

    #[test]
    fn bad_stamps_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, bad) = (dir.path().join("plain"), dir.path().join("bad"));
        fs::write(&plain, b"short").unwrap();
        for version in ["", "1\n2", &"9".repeat(600)] {
            assert!(stamp(&plain, &bad, version, None).is_err(), "{version:?}");
        }
        for lines in
            ["", "version=1\nfault=lazy\n", "version=1\ncolour=red\n", "version=1\nfault=slow-begin:x\n"]
        {
            fs::write(&bad, format!("code{HEAD}{lines}{TAIL}")).unwrap();
            let error = read(&bad).unwrap_err().to_string();
            assert!(error.contains("bad has a bad stamp"), "{error}");
        }
        let error = read(&dir.path().join("missing")).unwrap_err().to_string();
        assert!(error.contains("missing cannot be opened"), "{error}");
    }
}
