//! `handoff install`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use super::Json;
use super::exit::{Exit, Failure};
use super::output::{Output, note};
use super::unit::{self, Unit};
use crate::config::{self, Dirs};
use crate::sys::regular;
use crate::sys::user::effective_user;

const EXAMPLES: &str = "\
Examples:
  handoff install --systemd
      a unit of the system, which runs the daemon as root
  handoff install --systemd --user-name deploy
      the same as another user
  handoff install --systemd --user
      a unit of your own service manager
  handoff install --systemd --print
      only print it

It starts nothing, and says what to run next. A unit that it did not write, or
that was changed since, is replaced only with --force.";

/// Write a systemd unit for the daemon, and say what to run next
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Write a unit of systemd
    #[arg(long, required = true)]
    systemd: bool,
    /// A unit of your own service manager
    #[arg(long)]
    user: bool,
    /// The user as which the daemon runs [default: root]
    #[arg(long, value_name = "NAME", conflicts_with = "user", value_parser = account)]
    user_name: Option<String>,
    /// Write below this directory, such as the root of an image
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Print the unit, and write nothing
    #[arg(long, conflicts_with_all = ["force", "json"])]
    print: bool,
    /// Replace a unit that this command did not write
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    pub(super) json: Json,
}

/// A name that can stand in a unit.
fn account(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    match !text.is_empty() && !text.starts_with('-') && text.chars().all(is_plain) {
        true => Ok(text.to_owned()),
        false => Err("it has characters that no name of a user has".to_owned()),
    }
}

/// `were_given`: whether one of the directories was given, so that the daemon needs them too.
pub(super) fn run(
    arguments: &Arguments,
    dirs: &Dirs,
    were_given: bool,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let program = program()?;
    let user = arguments.user_name.as_deref().filter(|name| *name != "root");
    if let (Some(name), None) = (user, &arguments.root) {
        check_user(name)?;
    }
    // The defaults of that user are in its home. Those of the system are what systemd makes for the unit.
    let of_system = Dirs {
        config: "/etc/handoff".into(),
        state: "/var/lib/handoff".into(),
        runtime: "/run/handoff".into(),
    };
    let dirs_of_unit = match (were_given, user) {
        (true, _) => Some(dirs),
        (false, Some(_)) => Some(&of_system),
        (false, None) => None,
    };
    let low = low_ports(dirs_of_unit.unwrap_or(dirs));
    let unit = Unit {
        program: &program,
        is_of_user: arguments.user,
        user,
        dirs: dirs_of_unit,
        has_managed_dirs: !were_given,
        has_low_port: !low.is_empty(),
    };
    let text = unit::text(&unit);
    if arguments.print {
        out.bytes(text.as_bytes());
        return Ok(Exit::Done);
    }
    let path = path(arguments)?;
    let is_new = write(&path, &text, arguments.force)?;
    report(arguments, &path, is_new, &low, out);
    Ok(Exit::Done)
}

/// The file of this program, by the path at which it can be started again.
fn program() -> Result<PathBuf, Failure> {
    let hint = "Put `handoff` at its place, such as /usr/local/bin, and run it from there.";
    let found = std::env::current_exe()
        .map_err(|error| Failure::failed(format!("The path of this program is unknown: {error}."), hint))?;
    match found.is_file() {
        true => Ok(found),
        false => Err(Failure::failed(format!("This program is no longer at {}.", found.display()), hint)),
    }
}

/// Checks that the name of a user is known, wherever it comes from (passwd, LDAP).
fn check_user(name: &str) -> Result<(), Failure> {
    let found =
        Command::new("id").args(["-u", "--", name]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    match found {
        Ok(status) if !status.success() => {
            let hint = format!("Create it: useradd --system {name}");
            Err(Failure::failed(format!("There is no user {name:?}."), hint))
        }
        // Without the program `id`, systemd reports an unknown user.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The services that listen at a port that only root may bind.
fn low_ports(dirs: &Dirs) -> Vec<String> {
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let first = first.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024);
    let services = config::load(&dirs.config).services;
    let is_low = |service: &config::Service| {
        service.listeners.iter().any(|listener| unit::is_low(&listener.address, first))
    };
    services.values().filter(|service| is_low(service)).map(|service| service.name.to_string()).collect()
}

/// Where the unit belongs.
fn path(arguments: &Arguments) -> Result<PathBuf, Failure> {
    const NAME: &str = "handoff.service";
    let place = match arguments.user {
        false => PathBuf::from("/etc/systemd/system"),
        true => {
            let directory =
                |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
            let config = directory("XDG_CONFIG_HOME").or_else(|| Some(directory("HOME")?.join(".config")));
            let missing = "Neither XDG_CONFIG_HOME nor HOME is an absolute path.".to_owned();
            config.ok_or_else(|| Failure::failed(missing, "Set HOME."))?.join("systemd/user")
        }
    };
    Ok(match &arguments.root {
        Some(root) => root.join(place.strip_prefix("/").unwrap_or(&place)).join(NAME),
        None => place.join(NAME),
    })
}

/// Writes the unit. Returns false if the same is there already.
fn write(path: &Path, text: &str, force: bool) -> Result<bool, Failure> {
    match regular::read_to_string(path) {
        Ok(found) if found == text => return Ok(false),
        Ok(found) if !force && !unit::is_own(&found) => {
            let message = format!(
                "{} is there, and was not written by this command, or was changed since.",
                path.display()
            );
            return Err(Failure::failed(message, "Compare it with `--print`; `--force` replaces it."));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(_) if force => {}
        Err(error) => return Err(unwritable(path, &error)),
    }
    put(path, text).map_err(|error| unwritable(path, &error))?;
    Ok(true)
}

/// In place at once, or not at all.
fn put(path: &Path, text: &str) -> io::Result<()> {
    let place = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(place)?;
    let beside = place.join(format!(".handoff.service.{}", std::process::id()));
    let written = fs::File::options().write(true).create_new(true).open(&beside).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        file.sync_all()?;
        fs::rename(&beside, path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied if effective_user() != 0 => {
            "Run it as root, or add --user for a unit of your own."
        }
        _ => "Check the directory; `--print` shows the unit.",
    };
    Failure::failed(format!("The unit {} cannot be written: {error}.", path.display()), hint)
}

fn report(arguments: &Arguments, path: &Path, is_new: bool, low: &[String], out: &mut Output) {
    let control = if arguments.user { "systemctl --user" } else { "systemctl" };
    let mut next = Vec::new();
    if arguments.root.is_none() {
        next.extend([format!("{control} daemon-reload"), format!("{control} enable --now handoff")]);
    }
    if arguments.user {
        next.push("loginctl enable-linger".to_owned());
    }
    if out.is_json() {
        return out.object(&json!({ "unit": path, "written": is_new, "next": next }));
    }
    match is_new {
        true => out.line(format!("{} is written.", path.display())),
        false => out.line(format!("{} is there already, and is the same.", path.display())),
    }
    if !next.is_empty() {
        out.line("Next:");
    }
    next.iter().for_each(|command| out.line(format!("  {command}")));
    if arguments.user && !low.is_empty() {
        note(format!(
            "Note: a service manager of a user cannot let the daemon bind the low ports of {}.",
            low.join(", ")
        ));
    } else if arguments.user_name.is_some() && low.is_empty() {
        note(
            "Note: no service listens at a low port now. Run this again when one does: the unit then lets the daemon bind it.",
        );
    }
}
