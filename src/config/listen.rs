//! The listeners of a service: the table `listen`.

use std::fs;
use std::io;
use std::ops::Range;

use handoff_protocol::frame::FDS_MAX;
use handoff_protocol::ids::ListenerName;
use handoff_protocol::message::Mode;

use super::address::ListenAddress;
use super::error::{Position, Report};
use super::service::Adapter;
use super::table::{Field, Section};

const KEYS: &[&str] = &["address", "mode", "user", "group"];
const ADDRESS_HINT: &str =
    "write 127.0.0.1:9000, [::1]:9000, *:9000, udp:127.0.0.1:9000 or unix:/run/name.sock";
const MODE_HINT: &str = "write the permission bits in octal, as in mode = \"0660\"";

/// One named address of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The name by which the service asks for it.
    pub name: ListenerName,
    /// What it is bound to.
    pub address: ListenAddress,
    /// The permission bits of a unix socket, if configured.
    pub mode: Option<u32>,
    /// The owner of a unix socket.
    pub owner: Owner,
    /// Its place in the file.
    pub at: Position,
}

/// The user and the group of a unix socket, by name or number, if configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The key `user`.
    pub user: Option<String>,
    /// The key `group`.
    pub group: Option<String>,
}

/// Why a name has no id. `Display` is a clause without a full stop.
#[derive(Debug, thiserror::Error)]
pub enum IdLookupError {
    /// The account file does not contain it.
    #[error("{file} has no {what} {name:?}")]
    Unknown {
        /// The account file.
        file: &'static str,
        /// `user` or `group`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// The account file cannot be read.
    #[error("cannot read {file}: {error}")]
    File {
        /// The account file.
        file: &'static str,
        /// Cause.
        error: io::Error,
    },
}

impl IdLookupError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        "correct the name, or write the number; accounts from elsewhere (LDAP) need the number"
    }
}

impl Owner {
    /// The ids of user and group. Reads `/etc/passwd` and `/etc/group` for names.
    pub fn ids(&self) -> Result<(Option<u32>, Option<u32>), IdLookupError> {
        let user = self.user.as_deref().map(|name| id_of(name, "/etc/passwd", "user"));
        let group = self.group.as_deref().map(|name| id_of(name, "/etc/group", "group"));
        Ok((user.transpose()?, group.transpose()?))
    }
}

fn id_of(name: &str, file: &'static str, what: &'static str) -> Result<u32, IdLookupError> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let text = fs::read_to_string(file).map_err(|error| IdLookupError::File { file, error })?;
    find_id(&text, name).ok_or_else(|| IdLookupError::Unknown { file, what, name: name.to_owned() })
}

/// passwd(5) and group(5) both have the name first and the number third.
fn find_id(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

/// Reads the table. Each listener is an address, or a table with an address and other keys.
pub(super) fn read(report: &mut Report, root: &Section) -> Vec<Listener> {
    let Some(section) = root.section(report, "listen", "listen.") else { return Vec::new() };
    let mut listeners: Vec<Listener> = Vec::new();
    for (key, field) in section.fields(report) {
        let name = key.value.parse::<ListenerName>();
        if let Err(error) = &name {
            section.wrong::<()>(report, key.value, key.span, &error.to_string(), "rename the listener");
        }
        let (span, read) = match field {
            Field::Text(value) => {
                let span = value.span.clone();
                (span, address(report, &section, key.value, &value.value, value.span))
            }
            Field::Table(span, table) => (span, detailed(report, &table)),
        };
        let (Ok(name), Some(UnnamedListener { address, mode, owner, at })) = (name, read) else { continue };
        if let Some(other) = listeners.iter().find(|other| other.address.conflicts_with(&address)) {
            let cause = format!("{address} is already taken by listen.{} ({})", other.name, other.address);
            let hint = "give each listener its own address";
            section.wrong::<()>(report, name.as_str(), span, &cause, hint);
            continue;
        }
        listeners.push(Listener { name, address, mode, owner, at });
    }
    listeners
}

/// A listener without its name.
struct UnnamedListener {
    address: ListenAddress,
    mode: Option<u32>,
    owner: Owner,
    at: Position,
}

fn address(
    report: &mut Report,
    section: &Section,
    key: &str,
    text: &str,
    span: Range<usize>,
) -> Option<UnnamedListener> {
    let at = report.position(span.start);
    match text.parse::<ListenAddress>() {
        Ok(address) => Some(UnnamedListener { address, mode: None, owner: Owner::default(), at }),
        Err(error) => section.wrong(report, key, span, &error.to_string(), ADDRESS_HINT),
    }
}

fn detailed(report: &mut Report, table: &Section) -> Option<UnnamedListener> {
    table.refuse_unknown(report, KEYS);
    if !table.has("address") {
        table.missing(report, "address", ADDRESS_HINT);
    }
    let found = table.string(report, "address", ADDRESS_HINT)?;
    let said = address(report, table, "address", found.value, found.span)?;
    let mode = mode(report, table);
    let mut name = |key| {
        let found = table.string(report, key, &format!("write {key} = \"www-data\""))?;
        Some(found.value.to_owned())
    };
    let owner = Owner { user: name("user"), group: name("group") };
    if !matches!(said.address, ListenAddress::Unix(_)) {
        for key in ["mode", "user", "group"] {
            table.refuse(report, key, "is for unix sockets alone", "remove it");
        }
    }
    Some(UnnamedListener { mode, owner, ..said })
}

fn mode(report: &mut Report, table: &Section) -> Option<u32> {
    let found = table.string(report, "mode", MODE_HINT)?;
    match u32::from_str_radix(found.value, 8) {
        Ok(mode) if mode <= 0o777 && !found.value.starts_with('+') => Some(mode),
        _ => table.wrong(report, "mode", found.span, &format!("{:?} is no mode", found.value), MODE_HINT),
    }
}

/// All listeners of a process travel in one message, together with the order and two files of a shim. If a shim has
/// pairs of slots, both slots of each listener do.
pub(super) fn check_number(report: &mut Report, root: &Section, number: usize, of: (Adapter, Mode)) {
    let most = match of {
        (Adapter::Handoff, _) => FDS_MAX,
        (_, Mode::Exclusive) => FDS_MAX / 2,
        (_, Mode::Overlap) => FDS_MAX - 3,
    };
    if number > most {
        let cause =
            format!("it has {number} listeners, and with this adapter and mode a service can have {most}");
        root.refuse(report, "listen", &cause, "split the service, or listen on a wildcard address");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_accounts_have_numbers() {
        let text = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/:\nbroken\n";
        assert_eq!(find_id(text, "www-data"), Some(33));
        assert_eq!(find_id(text, "www"), None);
        assert_eq!(find_id(text, "broken"), None);
        let owner = |user: &str| Owner { user: Some(user.to_owned()), group: None };
        assert_eq!(owner("4711").ids().unwrap(), (Some(4711), None));
        assert_eq!(owner("root").ids().unwrap(), (Some(0), None));
        let error = owner("no-such-user").ids().unwrap_err().to_string();
        assert_eq!(error, "/etc/passwd has no user \"no-such-user\"");
    }
}
