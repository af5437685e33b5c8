//! The directory of service files.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use handoff_protocol::ids::ServiceName;

use super::error::{Error, position};
use super::order;
use super::service::Service;

/// No sensible service file comes near this; a wrong file in the directory must not fill the memory.
const LARGEST_FILE_BYTES: u64 = 1 << 20;

/// Everything a configuration directory holds: what is right, and what is wrong.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The services whose files are free of mistakes.
    pub services: BTreeMap<ServiceName, Service>,
    /// The mistakes of all other files, by file and position.
    pub errors: Vec<Error>,
}

/// Reads every `<config>/services/*.toml`. A bad file never hides the others. Of two services that want the same
/// address, the one whose name sorts later is refused; so is one that is to be upgraded after a service that does not
/// exist, or after itself. A missing directory holds no services. Reads files, so
/// it blocks on the file system.
pub fn load(config_dir: &Path) -> Loaded {
    load_others(config_dir, |_| false)
}

/// Like [`load`], but passes over the services that are known: their files are not read.
pub fn load_others(config_dir: &Path, is_known: impl Fn(&ServiceName) -> bool) -> Loaded {
    let mut loaded = Loaded::default();
    let directory = config_dir.join("services");
    let files = match list(&directory) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return loaded,
        Err(error) => {
            loaded.errors.push(unreadable(&directory, &error));
            return loaded;
        }
    };
    let mut named = BTreeSet::new();
    for file in files {
        let name = name_of(&file).ok();
        let known = name.as_ref().is_some_and(&is_known);
        named.extend(name);
        if known {
            continue;
        }
        match read_file(&file) {
            Ok(service) => loaded.insert(service),
            Err(errors) => loaded.errors.extend(errors),
        }
    }
    for (name, error) in order::check(&loaded.services, |name| named.contains(name) || is_known(name)) {
        loaded.services.remove(&name);
        loaded.errors.push(error);
    }
    loaded
}

/// Reads the file of one service, and looks at no other. Blocks on the file system.
pub fn load_service(config_dir: &Path, name: &ServiceName) -> Result<Service, Vec<Error>> {
    read_file(&config_dir.join("services").join(format!("{name}.toml")))
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

/// The service files of a directory, sorted. Hidden files are editors' business.
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
    let bytes = read_bytes(file).map_err(|error| vec![unreadable(file, &error)])?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let at = Some(position(&bytes, error.valid_up_to()));
        let (cause, hint) = ("this is not UTF-8".into(), "save the file as UTF-8".into());
        vec![Error { file: file.to_owned(), at, key: None, cause, hint }]
    })?;
    Service::parse(name, file, text)
}

fn name_of(file: &Path) -> Result<ServiceName, Error> {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    stem.parse().map_err(|error| {
        let cause = format!("{stem:?} is no service name: {error}");
        whole_file(file, cause, "rename the file; a service is called after it".into())
    })
}

fn read_bytes(file: &Path) -> io::Result<Vec<u8>> {
    // A fifo called x.toml would block for ever.
    if !std::fs::metadata(file)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(file)?.take(LARGEST_FILE_BYTES + 1).read_to_end(&mut bytes)?;
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
