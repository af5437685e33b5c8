//! The directory of one run, with its own service file, state, sockets and logs.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use handoff_protocol::ids::ServiceName;
use tempfile::TempDir;
use toml::{Table, Value};

use super::observe::{self, Process};
use super::ports::Port;
use super::{Error, Subject};
use crate::config::{ListenAddress, Service};

/// The placeholder for the directory of the run.
const DIR: &str = "{dir}";

pub(super) struct Workspace {
    dir: TempDir,
    pub(super) service: Service,
    /// The address of each listener, by the name of its variable.
    pub(super) addresses: BTreeMap<String, String>,
    _ports: Vec<Port>,
}

impl Workspace {
    pub(super) fn new(subject: &Subject, lease_ms: u64) -> Result<Self, Error> {
        let dir = tempfile::Builder::new().prefix("handoff-crash-").tempdir()?;
        for name in ["config/services", "state", "run", "data"] {
            std::fs::create_dir_all(dir.path().join(name))?;
        }
        let name = name_of(&subject.service_file)?;
        let mut table: Table = std::fs::read_to_string(&subject.service_file)
            .map_err(|error| format!("cannot read {}: {error}", subject.service_file.display()))?
            .parse()
            .map_err(|error| format!("{}: {error}", subject.service_file.display()))?;
        let path = dir.path().to_string_lossy();
        table.iter_mut().for_each(|(_, value)| substitute(value, DIR, &path));
        table.insert("lease".to_owned(), Value::String(format!("{lease_ms}ms")));
        never_give_up(&mut table);
        let (addresses, ports) = move_listeners(&mut table, dir.path())?;
        for (mark, address) in listeners_of(&table) {
            table.iter_mut().for_each(|(_, value)| substitute(value, &mark, &address));
        }
        let file = dir.path().join(format!("config/services/{name}.toml"));
        let text = toml::to_string(&table)?;
        std::fs::write(&file, &text)?;
        let service = Service::parse(name, &file, &text)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
        Ok(Self { dir, service, addresses, _ports: ports })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The socket of the harness. All processes of this run have it in their environment.
    pub(super) fn points(&self) -> PathBuf {
        self.path("points.sock")
    }

    pub(super) fn control(&self) -> PathBuf {
        self.path("run/control.sock")
    }

    pub(super) fn name(&self) -> &ServiceName {
        &self.service.name
    }

    /// How long the code of the service stalls, so that the drain is given up.
    pub(super) fn stall(&self) -> Duration {
        Duration::from_millis(self.service.drain_grace_ms + 500)
    }

    /// Replaces the placeholder in a text by the directory of this run.
    pub(super) fn fill_in(&self, text: &OsStr) -> OsString {
        let (dir, mark) = (self.dir.path().as_os_str().as_bytes(), DIR.as_bytes());
        let mut rest = text.as_bytes();
        let mut filled = Vec::new();
        while let Some(at) = rest.windows(mark.len()).position(|window| window == mark) {
            filled.extend_from_slice(&rest[..at]);
            filled.extend_from_slice(dir);
            rest = &rest[at + mark.len()..];
        }
        filled.extend_from_slice(rest);
        OsString::from_vec(filled)
    }

    /// The contents of the runtime directory.
    pub(super) fn runtime_files(&self) -> Vec<String> {
        let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
        let describe = |entry: std::fs::DirEntry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                // Files in directories are named after processes and handoffs, so only their kinds are comparable.
                true => {
                    let kind = |entry: std::fs::DirEntry| {
                        let extension = entry.path().extension().map(|it| it.to_string_lossy().into_owned());
                        extension.unwrap_or_else(|| "-".to_owned())
                    };
                    let mut kinds: Vec<String> = entries(&entry.path()).map(kind).collect();
                    kinds.sort();
                    format!("{name}/ ({})", kinds.join(" "))
                }
                false => name,
            }
        };
        let mut names: Vec<String> = entries(&self.path("run")).map(describe).collect();
        names.sort();
        names
    }

    /// All processes of this run.
    pub(super) fn processes(&self) -> Vec<Process> {
        observe::processes(&self.points(), self.service.adapter.is_foreign())
    }

    /// The last lines of a file in the directory of this run.
    pub(super) fn tail(&self, name: &str, lines: usize) -> String {
        let text = std::fs::read(self.path(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Keeps the directory.
    pub(super) fn keep(self) -> PathBuf {
        self.dir.keep()
    }
}

/// The name of the service that a service file belongs to.
pub(super) fn name_of(file: &Path) -> Result<ServiceName, Error> {
    let stem = file.file_stem().and_then(OsStr::to_str).unwrap_or_default();
    stem.parse().map_err(|error| format!("{}: {error}", file.display()).into())
}

/// The placeholder and the address of each listener, for programs that bind by themselves.
fn listeners_of(table: &Table) -> Vec<(String, String)> {
    let listeners = table.get("listen").and_then(Value::as_table).into_iter().flatten();
    let addresses = listeners.filter_map(|(name, address)| Some((name, address.as_str()?)));
    addresses.map(|(name, address)| (format!("{{listen.{name}}}"), address.to_owned())).collect()
}

fn substitute(value: &mut Value, mark: &str, by: &str) {
    match value {
        Value::String(text) => *text = text.replace(mark, by),
        Value::Array(values) => values.iter_mut().for_each(|value| substitute(value, mark, by)),
        Value::Table(table) => table.iter_mut().for_each(|(_, value)| substitute(value, mark, by)),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {}
    }
}

fn move_listeners(table: &mut Table, dir: &Path) -> Result<(BTreeMap<String, String>, Vec<Port>), Error> {
    let (mut addresses, mut ports) = (BTreeMap::new(), Vec::new());
    let Some(Value::Table(listeners)) = table.get_mut("listen") else { return Ok((addresses, ports)) };
    let mut reserve = |ip| -> Result<String, Error> {
        let port = Port::reserve(ip)?;
        let address = port.address.to_string();
        ports.push(port);
        Ok(address)
    };
    for (name, value) in listeners.iter_mut() {
        let text = value.as_str().unwrap_or_default();
        let moved = match text.parse::<ListenAddress>().map_err(|error| format!("listen.{name}: {error}"))? {
            ListenAddress::Unix(_) => format!("unix:{}", dir.join(format!("{name}.sock")).display()),
            ListenAddress::Tcp(SocketAddr::V6(_)) => reserve(Ipv6Addr::LOCALHOST.into())?,
            ListenAddress::Tcp(SocketAddr::V4(_)) | ListenAddress::DualStack { .. } => {
                reserve(Ipv4Addr::LOCALHOST.into())?
            }
            ListenAddress::Udp(SocketAddr::V6(_)) => format!("udp:{}", reserve(Ipv6Addr::LOCALHOST.into())?),
            ListenAddress::Udp(SocketAddr::V4(_)) | ListenAddress::UdpDualStack { .. } => {
                format!("udp:{}", reserve(Ipv4Addr::LOCALHOST.into())?)
            }
            ListenAddress::Quic(SocketAddr::V6(_)) => {
                format!("quic:{}", reserve(Ipv6Addr::LOCALHOST.into())?)
            }
            ListenAddress::Quic(SocketAddr::V4(_)) | ListenAddress::QuicDualStack { .. } => {
                format!("quic:{}", reserve(Ipv4Addr::LOCALHOST.into())?)
            }
        };
        let variable = name.to_uppercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        addresses.insert(format!("HANDOFF_LISTEN_{variable}"), moved.clone());
        *value = Value::String(moved);
    }
    Ok((addresses, ports))
}

/// Processes die here more often than any service file allows for, and the service must come back each time.
fn never_give_up(table: &mut Table) {
    table.insert("restart".to_owned(), Value::String("always".to_owned()));
    let mut backoff = table.remove("backoff").and_then(|it| it.as_table().cloned()).unwrap_or_default();
    backoff.insert("attempts".to_owned(), Value::Integer(0));
    table.insert("backoff".to_owned(), Value::Table(backoff));
}
