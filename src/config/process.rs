//! The user, the limits and the capabilities of a program.

use std::io;
use std::path::Path;

use super::accounts::{self, Account};
use super::error::{Error, Position, Report};
use super::listen::IdLookupError;
use super::names::nearest;
use super::powers::{Powers, lacking};
use super::table::Section;
use super::units::parse_size_bytes;
use crate::sys::attributes::{Attributes, CAPABILITIES, Ids, ResourceLimit, limit_names};
use crate::sys::limits::UNLIMITED;
use crate::sys::user::{effective_group, effective_user};

const CAPABILITY_KEYS: &[&str] = &["ambient", "bounding"];
const MASK_HINT: &str = "write the bits that new files do not get in octal, as in umask = \"0027\"";
const LIMIT_HINT: &str = "write a number, \"unlimited\", or \"soft:hard\", such as \"1024:65536\"";

/// What a service file says about the process of the program. The default says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessSettings {
    /// The user, by name or number.
    pub user: Option<String>,
    /// The group, by name or number.
    pub group: Option<String>,
    /// Further groups, by name or number.
    pub groups: Vec<String>,
    /// What needs no look at this machine.
    pub attributes: Attributes,
    /// The keys that are set, and their places.
    pub(super) places: Vec<(&'static str, Position)>,
}

/// The attributes of a program, and its account if the file names a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// What the process gives itself.
    pub attributes: Attributes,
    /// The account of `user`.
    pub account: Option<Account>,
}

pub(super) const KEYS: [&str; 9] = [
    "user",
    "group",
    "supplementary_groups",
    "umask",
    "limits",
    "nice",
    "no_new_privs",
    "capabilities",
    "private_tmp",
];

/// Reads the keys of the process.
pub(super) fn read(report: &mut Report, root: &Section) -> ProcessSettings {
    let text = |report: &mut Report, key| {
        root.string(report, key, "write a name, or a number in quotes").map(|found| found.value.to_owned())
    };
    let mut settings = ProcessSettings {
        user: text(report, "user"),
        group: text(report, "group"),
        groups: root.strings(report, "supplementary_groups").unwrap_or_default(),
        ..ProcessSettings::default()
    };
    settings.places = KEYS.iter().filter_map(|key| Some((*key, root.at(report, key)?))).collect();
    let attributes = &mut settings.attributes;
    attributes.umask = umask(report, root);
    attributes.nice = root.integer(report, "nice", -20..=19);
    attributes.no_new_privs = root.boolean(report, "no_new_privs").unwrap_or(false);
    attributes.private_tmp = root.boolean(report, "private_tmp").unwrap_or(false);
    attributes.limits = limits(report, root);
    if let Some(section) = root.section(report, "capabilities", "capabilities.") {
        section.refuse_unknown(report, CAPABILITY_KEYS);
        attributes.ambient = capabilities(report, &section, "ambient").unwrap_or_default();
        attributes.bounding = capabilities(report, &section, "bounding");
        if attributes.bounding.is_some_and(|bounding| attributes.ambient & !bounding != 0) {
            let hint = "add it to bounding, or remove it from ambient";
            section.refuse(report, "ambient", "has a capability that bounding does not have", hint);
        }
    }
    settings
}

fn umask(report: &mut Report, root: &Section) -> Option<u32> {
    let found = root.string(report, "umask", MASK_HINT)?;
    match u32::from_str_radix(found.value, 8) {
        Ok(mask) if mask <= 0o777 && !found.value.starts_with('+') => Some(mask),
        _ => root.wrong(report, "umask", found.span, &format!("{:?} is no umask", found.value), MASK_HINT),
    }
}

fn limits(report: &mut Report, root: &Section) -> Vec<ResourceLimit> {
    let Some(section) = root.section(report, "limits", "limits.") else { return Vec::new() };
    let known: Vec<&'static str> = limit_names().collect();
    section.refuse_unknown(report, &known);
    let mut limits = Vec::new();
    for (key, value) in section.scalars(report, LIMIT_HINT) {
        if !known.contains(&key.value) {
            continue;
        }
        let (soft, hard) = value.value.split_once(':').unwrap_or((&value.value, &value.value));
        match (amount(soft.trim()), amount(hard.trim())) {
            (Some(soft), Some(hard)) if soft <= hard => {
                limits.push(ResourceLimit { name: key.value.to_owned(), soft, hard });
            }
            (Some(_), Some(_)) => {
                let cause = "the soft limit is above the hard one";
                section.wrong::<()>(report, key.value, value.span, cause, LIMIT_HINT);
            }
            _ => {
                let cause = format!("{:?} is no limit", value.value);
                section.wrong::<()>(report, key.value, value.span, &cause, LIMIT_HINT);
            }
        }
    }
    limits
}

fn amount(text: &str) -> Option<u64> {
    match text {
        "unlimited" | "infinity" => Some(UNLIMITED),
        _ if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        _ => parse_size_bytes(text).ok(),
    }
}

fn capabilities(report: &mut Report, section: &Section, key: &'static str) -> Option<u64> {
    let mut set = 0;
    for name in section.spanned_strings(report, key)? {
        let plain = name.value.to_ascii_lowercase();
        let plain = plain.strip_prefix("cap_").unwrap_or(&plain);
        match CAPABILITIES.iter().position(|known| *known == plain) {
            Some(number) => set |= 1 << number,
            None => {
                let hint = match nearest(plain, CAPABILITIES) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => "write a name of capabilities(7), such as \"net_bind_service\"".to_owned(),
                };
                section.wrong::<()>(
                    report,
                    key,
                    name.span,
                    &format!("{:?} is no capability", name.value),
                    &hint,
                );
            }
        }
    }
    Some(set)
}

impl ProcessSettings {
    /// Whether a process differs in nothing from the daemon.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Finds users and groups. The error names the key. Reads `/etc/passwd` and `/etc/group`.
    pub fn resolve(&self) -> Result<ProcessIdentity, (&'static str, String, &'static str)> {
        let lookup = |key| move |error: IdLookupError| (key, error.to_string(), error.hint());
        let account = self.user.as_deref().map(accounts::account).transpose().map_err(lookup("user"))?;
        let group = self.group.as_deref().map(accounts::group).transpose().map_err(lookup("group"))?;
        let more = self.groups.iter().map(|name| accounts::group(name)).collect::<Result<Vec<_>, _>>();
        let mut groups = more.map_err(lookup("supplementary_groups"))?;
        let own_group = match &account {
            None => Some(effective_group()),
            Some(account) => account.group,
        };
        let Some(group) = group.or(own_group) else {
            let cause = "a user that is not in /etc/passwd has no group".to_owned();
            return Err(("user", cause, "add the key group"));
        };
        if let Some(account) = account.as_ref().filter(|account| !account.name.is_empty()) {
            groups.extend(accounts::groups_of(&account.name).map_err(lookup("user"))?);
        }
        groups.sort_unstable();
        groups.dedup();
        let user = account.as_ref().map_or_else(effective_user, |account| account.user);
        let is_same = (user, group) == (effective_user(), effective_group()) && self.groups.is_empty();
        let ids = (!is_same).then_some(Ids { user, group, groups });
        Ok(ProcessIdentity { attributes: Attributes { ids, ..self.attributes.clone() }, account })
    }

    /// The place of a key.
    pub(super) fn at(&self, key: &str) -> Option<Position> {
        self.places.iter().find(|(known, _)| *known == key).map(|(_, at)| *at)
    }

    /// The attributes, unless this process cannot give them to a program. `reads_memory`: it must read the memory of
    /// the program. The error says what is missing.
    pub fn permitted(&self, reads_memory: bool) -> io::Result<ProcessIdentity> {
        let told =
            |(key, cause, hint): (&str, String, &str)| io::Error::other(format!("{key}: {cause}; {hint}"));
        let identity = self.resolve().map_err(told)?;
        match lacking(&identity.attributes, &Powers::of_this_process(), reads_memory).first() {
            None => Ok(identity),
            Some(lack) => {
                let text = format!("{}: {}; {}", lack.key, lack.cause, lack.hint());
                Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
            }
        }
    }

    /// What this process cannot give to a program, as mistakes of the service file `file`.
    pub(super) fn check(&self, file: &Path, reads_memory: bool) -> Vec<Error> {
        let mistake = |key: &'static str, cause, hint| Error {
            file: file.to_owned(),
            at: self.at(key),
            key: Some(key.to_owned()),
            cause,
            hint,
        };
        match self.resolve() {
            Ok(identity) => lacking(&identity.attributes, &Powers::of_this_process(), reads_memory)
                .into_iter()
                .map(|lack| mistake(lack.key, lack.cause.clone(), lack.hint()))
                .collect(),
            Err((key, cause, hint)) => vec![mistake(key, cause, hint.to_owned())],
        }
    }
}
