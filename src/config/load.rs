//! The directory of service files.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use handoff_protocol::ids::ServiceName;
use handoff_protocol::message::Mode;

use super::error::{Error, position};
use super::listen::Listener;
use super::order;
use super::service::Service;
use crate::sys::exposed::{Exposed, FileUse, check_exposure};
use crate::sys::regular;

/// No reasonable service file is this large. A wrong file in the directory must neither fill the memory nor take seconds to
/// parse, for which all services would wait.
const LARGEST_FILE_BYTES: u64 = 64 << 10;

/// The contents of a configuration directory: services and mistakes.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The services whose files have no mistakes.
    pub services: BTreeMap<ServiceName, Service>,
    /// The mistakes of all other files, by file and position.
    pub errors: Vec<Error>,
}

/// What is readable in a service file that has mistakes.
#[derive(Debug)]
pub struct PartialService {
    /// The program.
    pub binary: Option<PathBuf>,
    /// Whether two generations may run side by side.
    pub mode: Mode,
    /// Where it should listen.
    pub listeners: Vec<Listener>,
}

impl Default for PartialService {
    fn default() -> Self {
        Self { binary: None, mode: Mode::Exclusive, listeners: Vec::new() }
    }
}

impl From<&Service> for PartialService {
    fn from(service: &Service) -> Self {
        let Service { binary, mode, listeners, .. } = service;
        Self { binary: Some(binary.clone()), mode: *mode, listeners: listeners.clone() }
    }
}

/// Reads all `<config>/services/*.toml`. A bad file does not hide the others. If two services have the same address,
/// the one whose name sorts later is refused. So is a service that is to be upgraded after itself, or after a service
/// that does not exist. A missing directory has no services. Blocks on the file system.
pub fn load(config_dir: &Path) -> Loaded {
    let files = match service_files(config_dir) {
        Ok(files) => files,
        Err(error) => return Loaded { errors: vec![error], ..Loaded::default() },
    };
    let named: BTreeSet<ServiceName> = files.iter().filter_map(|file| name_of(file).ok()).collect();
    judge(files.iter().map(|file| read_file(file)), |name| named.contains(name))
}

/// Checks service files together that were read one by one. `exists` reports services that are not among them.
pub fn judge(
    read: impl IntoIterator<Item = Result<Service, Vec<Error>>>,
    exists: impl Fn(&ServiceName) -> bool,
) -> Loaded {
    let mut loaded = Loaded::default();
    for read in read {
        match read {
            Ok(service) => loaded.insert(service),
            Err(errors) => loaded.errors.extend(errors),
        }
    }
    for (name, error) in order::check(&loaded.services, exists) {
        loaded.services.remove(&name);
        loaded.errors.push(error);
    }
    loaded
}

/// The service files of a configuration directory, sorted. A missing directory has none. Blocks on the file system.
pub fn service_files(config_dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let directory = config_dir.join("services");
    match list(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(|error| unreadable(&directory, &error)),
    }
}

/// Reads the file of one service, without the others. Blocks on the file system.
pub fn load_service(config_dir: &Path, name: &ServiceName) -> Result<Service, Vec<Error>> {
    read_file(&config_dir.join("services").join(format!("{name}.toml")))
}

/// Reads one service file: a service, or its mistakes and what is readable despite them. Blocks on the file system.
pub fn read_service(file: &Path) -> Result<Box<Service>, (Vec<Error>, PartialService)> {
    read_file(file).map(Box::new).map_err(|errors| {
        let bytes = read_bytes(file).unwrap_or_default();
        (errors, Service::glimpse(file, &String::from_utf8_lossy(&bytes)))
    })
}

impl Loaded {
    fn insert(&mut self, service: Service) {
        let conflicts: Vec<Error> =
            self.services.values().flat_map(|other| conflicts(&service, other)).collect();
        if conflicts.is_empty() {
            self.services.insert(service.name.clone(), service);
        } else {
            self.errors.extend(conflicts);
        }
    }
}

/// The service files of a directory, sorted. Hidden files belong to editors.
fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(file: &Path) -> Result<Service, Vec<Error>> {
    let name = name_of(file).map_err(|error| vec![error])?;
    let text = read_text(file).map_err(|error| vec![error])?;
    Service::parse(name, file, &text)
}

/// The text of a file that says what the daemon does. Blocks on the file system.
pub(super) fn read_text(file: &Path) -> Result<String, Error> {
    check_writers(file)?;
    let bytes = read_bytes(file).map_err(|error| unreadable(file, &error))?;
    String::from_utf8(bytes).map_err(|error| {
        let at = Some(position(error.as_bytes(), error.utf8_error().valid_up_to()));
        let (cause, hint) = ("this is not UTF-8".into(), "save the file as UTF-8".into());
        Error { file: file.to_owned(), at, key: None, cause, hint }
    })
}

/// The name of the service that a file belongs to.
pub fn name_of(file: &Path) -> Result<ServiceName, Error> {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    stem.parse().map_err(|error| {
        let cause = format!("{stem:?} is no service name: {error}");
        whole_file(file, cause, "rename the file; its name is the name of the service".into())
    })
}

/// A user who can write a service file controls what runs.
fn check_writers(file: &Path) -> Result<(), Error> {
    let Ok(path) = std::path::absolute(file) else { return Ok(()) };
    match check_exposure(&path, FileUse::Named) {
        // The read that follows reports the cause.
        Ok(_) | Err(Exposed::Unreadable(..)) => Ok(()),
        Err(exposed) => Err(whole_file(file, exposed.to_string(), exposed.hint())),
    }
}

fn read_bytes(file: &Path) -> io::Result<Vec<u8>> {
    // A fifo called x.toml would block forever.
    if !std::fs::metadata(file)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    regular::open_to_read(file)?.take(LARGEST_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_FILE_BYTES {
        return Err(io::Error::other(format!("it is larger than {LARGEST_FILE_BYTES} bytes")));
    }
    Ok(bytes)
}

fn conflicts(service: &Service, other: &Service) -> Vec<Error> {
    let mut errors = Vec::new();
    for ours in &service.listeners {
        for theirs in other.listeners.iter().filter(|theirs| ours.address.conflicts_with(&theirs.address)) {
            let cause = format!(
                "{} is already taken by listen.{} ({}) of service {} in {}:{}:{}",
                ours.address,
                theirs.name,
                theirs.address,
                other.name,
                other.file.display(),
                theirs.at.line,
                theirs.at.column
            );
            errors.push(Error {
                file: service.file.clone(),
                at: Some(ours.at),
                key: Some(format!("listen.{}", ours.name)),
                cause,
                hint: "give each service its own address".into(),
            });
        }
    }
    errors
}

fn unreadable(path: &Path, error: &io::Error) -> Error {
    whole_file(path, format!("cannot be read: {error}"), "check the file and its permissions".into())
}

fn whole_file(file: &Path, cause: String, hint: String) -> Error {
    Error { file: file.to_owned(), at: None, key: None, cause, hint }
}
