//! One service file, parsed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use handoff_protocol::frame::Transport;
use handoff_protocol::ids::ServiceName;
use handoff_protocol::message::Mode;
use handoff_protocol::restart::Restart;
use serde::{Deserialize, Serialize};
use toml::de::DeTable;

use super::answers;
use super::binary::check_binary;
use super::credentials::{self, Credential};
use super::env_file::{self, EnvFile};
use super::environment::{self, Inherit};
use super::error::{Error, Position, Report};
use super::hooks::{self, Hooks};
use super::kind::{self, ServiceKind};
use super::listen::{self, Listener};
use super::liveness::{self, Liveness};
use super::load::PartialService;
use super::log::{self, LogSettings};
use super::order::{self, Dependency};
use super::probation::{self, TrialSettings};
use super::probe::{self, Check, Probe};
use super::process::{self, ProcessSettings};
use super::program::{self, ProgramSettings};
use super::restart;
use super::table::{Section, Spanned};
use super::units::format_duration_ms;
use super::update::{self, Update};
use super::watch::{self, WatchSettings};
use crate::hooks::{BINARY, check_program};
use crate::store::{check_named, check_source};

const KEYS: &[&str] = &[
    "type",
    "binary",
    "args",
    "adapter",
    "channel",
    "mode",
    "working_dir",
    "deadline",
    "drain_grace",
    "stragglers",
    "lease",
    "stop_grace",
    "resume_limit",
    "answer_grace",
    "autostart",
    "restart",
    "success_exit_codes",
    "backoff",
    "env",
    "env_file",
    "env_inherit",
    "credentials",
    "listen",
    "log",
    "stop_signal",
    "stop_mode",
    "reload_signal",
    "notify",
    "drain",
    "answer_pause",
    "drain_signal",
    "drain_command",
    "warm",
    "probe",
    "requires",
    "wants",
    "after",
    "update",
    "preflight",
    "preflight_limit",
    "hooks",
    "probation",
    "canary",
    "liveness",
    "store",
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

/// The keys at the top of a service file.
pub fn known_keys() -> &'static [&'static str] {
    KEYS
}

const MODES: [(&str, Mode); 2] = [("exclusive", Mode::Exclusive), ("overlap", Mode::Overlap)];
const BINARY_EXAMPLE: &str = "write binary = \"/absolute/path/of/the/server\"";

/// A parsed service file, with the defaults filled in. Whether the binary can be executed depends on the moment, not
/// on the file: see [`Service::check_files`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The stem of the file's name.
    pub name: ServiceName,
    /// The file it came from.
    pub file: PathBuf,
    /// The text of the file.
    pub text: String,
    /// Absolute path of the program.
    pub binary: PathBuf,
    /// The place of `binary` in the file.
    pub binary_at: Position,
    /// Arguments after the program's name.
    pub args: Vec<String>,
    /// Whether it is a server or a job.
    pub kind: ServiceKind,
    /// How the supervisor talks to the service.
    pub adapter: Adapter,
    /// How frames travel between the supervisor and the service.
    pub channel: Transport,
    /// The handling of a program that does not speak the protocol.
    pub program: ProgramSettings,
    /// How the supervisor checks from outside whether a new process serves.
    pub probe: Option<Probe>,
    /// The commands that run around an upgrade.
    pub hooks: Hooks,
    /// The path that is watched for new versions.
    pub watch: Option<WatchSettings>,
    /// The services that it depends on.
    pub dependencies: Vec<Dependency>,
    /// The requirements for a new version before it is trusted.
    pub trial: TrialSettings,
    /// How a serving process is watched; `None` if it is not.
    pub liveness: Option<Liveness>,
    /// How new versions come in.
    pub update: Update,
    /// Whether two generations may run side by side.
    pub mode: Mode,
    /// Absolute path of the directory in which the program starts.
    pub working_dir: PathBuf,
    /// The place of `working_dir` in the file, if it is there.
    pub working_dir_at: Option<Position>,
    /// Where the probe stands, if the file has one.
    pub(super) probe_at: Option<Position>,
    /// Where the probation stands, if the file has one.
    pub(super) probation_at: Option<Position>,
    /// Limit of a whole upgrade.
    pub deadline_ms: u64,
    /// How long the incumbent may take to finish what it has accepted; at most `deadline_ms`.
    pub drain_grace_ms: u64,
    /// What happens to an upgrade whose incumbent does not finish in time.
    pub stragglers: Stragglers,
    /// Time without a message after which a process acts on its own.
    pub lease_ms: u64,
    /// How long the service may take to finish its requests when it is stopped. Then they are cut.
    pub stop_grace_ms: u64,
    /// How long an incumbent may take to serve again after a rollback.
    pub resume_limit_ms: u64,
    /// How long a process has for its answers after its last datagram, if configured.
    pub answer_grace_ms: Option<u64>,
    /// Whether the daemon starts the service when it starts itself.
    pub autostart: bool,
    /// Whether the service starts again after its process has ended, and when.
    pub restart: Restart,
    /// Variables added to the program's environment.
    pub env: BTreeMap<String, String>,
    /// Files of further variables; those of [`Self::env`] win.
    pub env_files: Vec<EnvFile>,
    /// The variables of the daemon that it gets.
    pub env_inherit: Inherit,
    /// Files with secrets that each process gets a copy of.
    pub credentials: Vec<Credential>,
    /// The user, the limits and the capabilities of the program.
    pub process: ProcessSettings,
    /// The listeners, sorted by name.
    pub listeners: Vec<Listener>,
    /// What becomes of the lines that the service writes.
    pub log: LogSettings,
}

/// How the supervisor talks to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Adapter {
    /// The service embeds the library of this project, or speaks its protocol.
    Handoff,
    /// It receives its listeners as in systemd's socket activation (sd_listen_fds(3)).
    ListenFds,
    /// An unmodified program that binds its listeners itself. They are swapped for those of the supervisor.
    Inject,
}

impl Adapter {
    /// Whether the program does not speak the protocol, so that a shim speaks it in its place.
    pub fn is_foreign(self) -> bool {
        matches!(self, Self::ListenFds | Self::Inject)
    }

    /// The spelling in a service file.
    pub fn spelling(self) -> &'static str {
        match self {
            Self::Handoff => "handoff",
            Self::ListenFds => "listen-fds",
            Self::Inject => "inject",
        }
    }
}

/// What happens if the incumbent has not finished its requests within the drain grace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stragglers {
    /// The upgrade is called off, and the incumbent continues.
    Abort,
    /// The remaining requests are cut.
    Cut,
}

impl Service {
    /// Parses the text of a service file; `file` is only for messages. On failure it returns all mistakes, in the
    /// order of the file.
    pub fn parse(name: ServiceName, file: &Path, text: &str) -> Result<Service, Vec<Error>> {
        let mut report = Report::new(file, text);
        let (document, syntax_errors) = DeTable::parse_recoverable(text);
        for error in &syntax_errors {
            let span = error.span().unwrap_or(text.len()..text.len());
            report.add(span, None, error.message(), "correct the TOML syntax here");
        }
        // After a syntax error, errors about missing keys would be misleading.
        let service = match report.is_clean() {
            true => read(&mut report, name, &Section::root(document.get_ref(), 0..0)),
            false => None,
        };
        match service {
            Some(service) if report.is_clean() => Ok(Service { text: text.to_owned(), ..service }),
            _ => Err(report.into_errors()),
        }
    }

    /// What is readable in a text that has mistakes.
    pub(super) fn glimpse(file: &Path, text: &str) -> PartialService {
        let mut report = Report::new(file, text);
        let (document, _) = DeTable::parse_recoverable(text);
        let root = Section::root(document.get_ref(), 0..0);
        let binary = root.string(&mut report, "binary", BINARY_EXAMPLE).map(|found| found.value.into());
        let mode = root.choice(&mut report, "mode", &MODES).unwrap_or(Mode::Exclusive);
        PartialService { binary, mode, listeners: listen::read(&mut report, &root) }
    }

    /// Checks the files that the service needs, as they are at this moment: the binary, the working directory, and
    /// the programs of its commands. Blocks on the file system.
    pub fn check_files(&self) -> Vec<Error> {
        let mistake = |at, key: &str, cause, hint| {
            let (file, key) = (self.file.clone(), Some(key.to_owned()));
            Error { file, at, key, cause, hint }
        };
        let mut errors = Vec::new();
        let binary = match self.update.store {
            true => check_source(&self.binary).map_err(|error| (error.to_string(), error.hint())),
            false => check_binary(&self.binary)
                .map_err(|error| (error.to_string(), error.hint()))
                .and_then(|()| check_named(&self.binary).map_err(|error| (error.to_string(), error.hint()))),
        };
        if let Err((cause, hint)) = binary {
            errors.push(mistake(Some(self.binary_at), "binary", cause, hint));
        }
        if !self.working_dir.is_dir() {
            let cause = format!("{:?} is not a directory", self.working_dir);
            errors.push(mistake(
                self.working_dir_at,
                "working_dir",
                cause,
                "create it or correct the path".into(),
            ));
        }
        for listener in &self.listeners {
            if let Err(error) = listener.owner.ids() {
                let key = format!("listen.{}", listener.name);
                errors.push(mistake(Some(listener.at), &key, error.to_string(), error.hint().into()));
            }
        }
        for (key, at, command) in self.hooks.commands().filter(|(.., command)| command.argv[0] != BINARY) {
            if let Err(error) = check_program(&command.argv[0]) {
                errors.push(mistake(Some(at), key, error.to_string(), error.hint()));
            }
        }
        let version_command = self.update.version_command.first().filter(|program| *program != BINARY);
        let probe = self.probe.as_ref().and_then(|probe| match &probe.check {
            Check::Exec(argv) => argv.first(),
            Check::Http(_) | Check::Tcp { .. } => None,
        });
        let counter = self.trial.errors.as_ref().and_then(|errors| errors.command.first());
        for (key, at, program) in [
            ("update.version_command", self.update.version_command_at, version_command),
            ("probe.exec", self.probe_at, probe),
            ("probation.errors", self.probation_at, counter),
        ] {
            if let Some(Err(error)) = program.map(|program| check_program(program)) {
                errors.push(mistake(at, key, error.to_string(), error.hint()));
            }
        }
        errors.extend(self.check_start());
        errors
    }
}

/// Reads all keys. `None` only if at least one mistake was reported.
fn read(report: &mut Report, name: ServiceName, root: &Section) -> Option<Service> {
    root.refuse_unknown(report, KEYS);
    let binary = binary(report, root);
    let (deadline_ms, drain_grace_ms) = deadline_and_grace(report, root);
    let mut duration_ms =
        |key, default, least| root.duration_ms(report, key, least).map_or(default, |found| found.value);
    let lease_ms = duration_ms("lease", 5_000, 1);
    let stop_grace_ms = duration_ms("stop_grace", 30_000, 0);
    let resume_limit_ms = duration_ms("resume_limit", 30_000, 1);
    let working_dir = absolute_path(report, root, "working_dir", "write working_dir = \"/\"");
    let channels = [("seqpacket", Transport::Packets), ("stream", Transport::Stream)];
    let stragglers = [("abort", Stragglers::Abort), ("cut", Stragglers::Cut)];
    let adapters =
        [("handoff", Adapter::Handoff), ("listen-fds", Adapter::ListenFds), ("inject", Adapter::Inject)];
    let kind = kind::read(report, root);
    let adapter = root.choice(report, "adapter", &adapters).unwrap_or(kind.adapter());
    let mode = root.choice(report, "mode", &MODES).unwrap_or(Mode::Exclusive);
    let listeners = listen::read(report, root);
    listen::check_number(report, root, listeners.len(), (adapter, mode));
    let program = program::read(report, root, adapter, mode);
    let service = Service {
        name,
        file: report.file().to_owned(),
        text: String::new(),
        args: environment::args(report, root, &listeners),
        kind,
        adapter,
        channel: root.choice(report, "channel", &channels).unwrap_or(Transport::Packets),
        probe: probe::read(report, root, adapter, program.notify.is_some(), &listeners),
        program,
        hooks: hooks::read(report, root),
        watch: watch::read(report, root),
        dependencies: order::read(report, root),
        trial: probation::read(report, root, mode, &listeners),
        liveness: liveness::read(report, root),
        update: update::read(report, root),
        mode,
        probe_at: root.at(report, "probe"),
        probation_at: root.at(report, "probation"),
        working_dir_at: working_dir.as_ref().map(|found| found.at(report)),
        working_dir: working_dir.map_or_else(|| PathBuf::from("/"), |found| found.value),
        deadline_ms,
        drain_grace_ms,
        stragglers: root.choice(report, "stragglers", &stragglers).unwrap_or(Stragglers::Abort),
        lease_ms,
        stop_grace_ms,
        resume_limit_ms,
        answer_grace_ms: answers::read(report, root, (adapter, mode), &listeners),
        autostart: root.boolean(report, "autostart").unwrap_or(true),
        restart: restart::read(report, root, kind),
        env: environment::variables(report, root, &listeners),
        env_files: env_file::read_key(report, root),
        env_inherit: environment::inherit(report, root),
        credentials: credentials::read(report, root),
        process: process::read(report, root),
        listeners,
        log: log::read(report, root),
        binary_at: binary.as_ref()?.at(report),
        binary: binary?.value,
    };
    Some(service)
}

fn binary(report: &mut Report, root: &Section) -> Option<Spanned<PathBuf>> {
    if !root.has("binary") {
        root.missing(report, "binary", BINARY_EXAMPLE);
    }
    absolute_path(report, root, "binary", BINARY_EXAMPLE)
}

fn absolute_path(
    report: &mut Report,
    root: &Section,
    key: &'static str,
    example: &str,
) -> Option<Spanned<PathBuf>> {
    let found = root.string(report, key, example)?;
    let path = Path::new(found.value);
    if found.value.contains('\0') {
        return root.wrong(report, key, found.span, "has a zero byte in it", "remove the \\u0000");
    }
    if !path.is_absolute() {
        return root.wrong(report, key, found.span, &format!("{path:?} is not an absolute path"), example);
    }
    Some(Spanned { value: path.to_owned(), span: found.span })
}

fn deadline_and_grace(report: &mut Report, root: &Section) -> (u64, u64) {
    let deadline = root.duration_ms(report, "deadline", 1);
    let grace = root.duration_ms(report, "drain_grace", 0);
    let deadline_ms = deadline.as_ref().map_or(300_000, |found| found.value);
    let grace_ms = grace.as_ref().map_or(30_000, |found| found.value);
    if grace_ms > deadline_ms {
        let cause = format!(
            "drain_grace ({}) is longer than deadline ({})",
            format_duration_ms(grace_ms),
            format_duration_ms(deadline_ms)
        );
        let hint = "the drain is one part of the upgrade: shorten drain_grace or raise deadline";
        // At least one of the two is in the file, because the defaults agree with each other.
        let span = grace.or(deadline).map_or(0..0, |found| found.span);
        root.wrong::<()>(report, "drain_grace", span, &cause, hint);
    }
    (deadline_ms, grace_ms)
}
