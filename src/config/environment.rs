//! What a program gets when it is started: arguments and environment.

use std::collections::BTreeMap;
use std::ops::Range;

use super::error::{Error, Report};
use super::listen::Listener;
use super::placeholders::fill;
use super::service::{Adapter, Service};
use super::table::Section;

const INHERIT: &str = "env_inherit";

/// The variables of the daemon that a service gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inherit {
    /// A fixed list, which is in the documentation.
    Usual,
    /// All, except those for the daemon itself.
    All,
    /// None.
    Nothing,
    /// These, as far as they are set.
    Only(Vec<String>),
}

impl Inherit {
    /// Whether a variable of a user's login is wanted.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Usual | Self::All => true,
            Self::Nothing => false,
            Self::Only(names) => names.iter().any(|wanted| wanted == name),
        }
    }
}

/// Whether a variable belongs to the protocol between a process and its supervisor: passed on, it would be wrong.
pub fn is_reserved(name: &str) -> bool {
    const NAMES: [&str; 11] = [
        "LISTEN_PID",
        "LISTEN_FDS",
        "LISTEN_FDNAMES",
        "NOTIFY_SOCKET",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
        "MAINPID",
        "FDSTORE",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "CREDENTIALS_DIRECTORY",
    ];
    name.starts_with("HANDOFF_") || NAMES.contains(&name)
}

/// Reads `args`.
pub(super) fn args(report: &mut Report, root: &Section, listeners: &[Listener]) -> Vec<String> {
    let given = root.spanned_strings(report, "args").unwrap_or_default();
    let filled = given.into_iter().enumerate().map(|(index, arg)| {
        filled(report, root, &format!("args[{index}]"), (&arg.value, arg.span), listeners)
    });
    filled.collect()
}

/// Reads the table `[env]`.
pub(super) fn variables(
    report: &mut Report,
    root: &Section,
    listeners: &[Listener],
) -> BTreeMap<String, String> {
    let Some(section) = root.section(report, "env", "env.") else { return BTreeMap::new() };
    let mut env = BTreeMap::new();
    for (key, value) in section.entries(report) {
        if key.value.is_empty() || key.value.contains(['=', '\0']) {
            let hint = "a variable's name is not empty and has neither '=' nor a zero byte in it";
            section.wrong::<()>(report, key.value, key.span, "is no name of a variable", hint);
        } else {
            let value = filled(report, &section, key.value, (&value.value, value.span), listeners);
            env.insert(key.value.to_owned(), value);
        }
    }
    env
}

/// Reads `env_inherit`: a boolean, or names.
pub(super) fn inherit(report: &mut Report, root: &Section) -> Inherit {
    if !root.is_array(INHERIT) {
        let hint = "write true, false or a list of names, such as [\"PATH\", \"TZ\"]";
        return match root.boolean_with(report, INHERIT, hint) {
            None => Inherit::Usual,
            Some(true) => Inherit::All,
            Some(false) => Inherit::Nothing,
        };
    }
    let mut names = Vec::new();
    for name in root.spanned_strings(report, INHERIT).unwrap_or_default() {
        if name.value.is_empty() || name.value.contains('=') {
            let hint = "write a name such as \"PATH\"";
            root.wrong::<()>(
                report,
                INHERIT,
                name.span,
                &format!("{:?} is no name of a variable", name.value),
                hint,
            );
        } else if is_reserved(&name.value) {
            let cause = format!("{} is for the daemon alone", name.value);
            root.wrong::<()>(report, INHERIT, name.span, &cause, "remove it");
        } else {
            names.push(name.value);
        }
    }
    Inherit::Only(names)
}

impl Service {
    /// Checks what each start of a process needs besides its program. Blocks on the file system.
    pub(super) fn check_start(&self) -> Vec<Error> {
        let mut errors = self.process.check(&self.file, self.adapter == Adapter::Inject);
        errors.extend(self.credentials.iter().filter_map(|credential| credential.check(&self.file)));
        errors.extend(self.env_files.iter().filter_map(|file| file.read(&self.file).err()).flatten());
        // A copy in the store is elsewhere.
        let binary = (!self.update.store).then_some(("binary", self.binary_at, &self.binary));
        let directory = self.working_dir_at.map(|at| ("working_dir", at, &self.working_dir));
        for (key, at, path) in binary.into_iter().chain(directory) {
            let place = ["/tmp", "/var/tmp"].into_iter().find(|place| path.starts_with(place));
            if let Some(place) = place.filter(|_| self.process.attributes.private_tmp) {
                let cause =
                    format!("{path:?} is below {place}, which is another one for the program (private_tmp)");
                let hint = "put it elsewhere, or remove private_tmp".to_owned();
                errors.push(Error {
                    file: self.file.clone(),
                    at: Some(at),
                    key: Some(key.to_owned()),
                    cause,
                    hint,
                });
            }
        }
        errors
    }
}

/// The text with its placeholders replaced. A wrong placeholder is in the report.
fn filled(
    report: &mut Report,
    section: &Section,
    key: &str,
    (text, span): (&str, Range<usize>),
    listeners: &[Listener],
) -> String {
    fill(text, listeners).unwrap_or_else(|(cause, hint)| {
        section.wrong::<()>(report, key, span, &cause, &hint);
        text.to_owned()
    })
}
