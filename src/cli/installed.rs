//! `handoff installed`.

use std::path::PathBuf;

use handoff_protocol::ids::ServiceName;
use serde_json::json;

use super::claims::{ClaimOptions, absolute};
use super::exit::{Exit, Failure};
use super::output::Output;
use super::{Json, names, operation};
use crate::config::{self, Dirs};
use crate::control::api::{Install, Request, Response};
use crate::control::{self, Client, ClientError};
use crate::spool;
use crate::store;
use crate::supervisor::{check_claims, import_of};
use crate::sys::user::effective_user;

const EXAMPLES: &str = "\
Examples:
  handoff installed s3 /opt/s3/s3
      after a program was put there
  handoff installed s3 s3.tar.gz --member s3
      a program in an archive
  handoff installed s3 s3.zip --sha256sums SHA256SUMS
      verified before anything of it runs
  handoff installed s3 ./s3 --version 1.2.3 --no-wait
      return as soon as the daemon is at work

You can call it repeatedly, and from several tools: the daemon runs one
upgrade at a time, and none if the same content runs already. If the service
is stopped, or no daemon runs, the version is verified and kept for the next
start. Exit codes: 0 it runs, or is kept for the next start; 2 no daemon runs,
and it could not be kept; 4 it was rolled back; 6 it was refused before it
ran. With --no-wait the exit code covers only the request; `handoff history`
shows how it ended.";

/// Upgrade to the version that was just put at a path, unless it runs already
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The service
    #[arg(value_parser = names::service)]
    service: ServiceName,
    /// A program, an archive (.tar.gz, .tar.xz, .zip), or a directory
    path: PathBuf,
    /// Its version; `version_command` does not run then
    #[arg(long, value_name = "VERSION", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    version: Option<String>,
    /// Wait until the upgrade has ended (the default)
    #[arg(long, conflicts_with = "no_wait")]
    wait: bool,
    /// Do not wait for the upgrade
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    pub(super) json: Json,
    // Last, since its heading is that of all options after it.
    #[command(flatten)]
    claims: ClaimOptions,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let request = Request::Install(Install {
        service: arguments.service.clone(),
        path: absolute(&arguments.path)?,
        claims: arguments.claims.to_claims()?,
        version: arguments.version.clone(),
    });
    // If a daemon breaks off later, it was at work: `handoff history` shows how far it got.
    match Client::connect(&dirs.control_socket()) {
        Err(unreachable) => without_daemon(arguments, &request, unreachable, dirs, out),
        Ok(_) => ask(arguments, &request, dirs, out),
    }
}

fn ask(arguments: &Arguments, request: &Request, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    if !arguments.no_wait {
        return operation::run(request, dirs, out);
    }
    let service = &arguments.service;
    match Client::connect(&dirs.control_socket())?.begin(request)? {
        Some(Response::Outcome(outcome)) => operation::print_outcome(&outcome, out),
        _ if out.is_json() => out.object(&json!({ "accepted": { "service": service } })),
        _ => out.line(format!("{service}: the daemon is at work; see: handoff history {service}")),
    }
    Ok(Exit::Done)
}

/// Puts the version where the next daemon finds it.
fn without_daemon(
    arguments: &Arguments,
    request: &Request,
    unreachable: ClientError,
    dirs: &Dirs,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let (service, Request::Install(install)) = (&arguments.service, request) else {
        return Err(unreachable.into());
    };
    let file = dirs.service_file(service);
    if !file.exists() {
        return Err(unreachable.into());
    }
    let config = config::load_service(&dirs.config, service)
        .map_err(|errors| Failure::from(control::Error::config_invalid(service, &errors)))?;
    check_state(dirs, &unreachable)?;
    check_claims(&config, &install.claims)?;
    if install.path == config.binary {
        let checked = store::check_named(&install.path);
        checked.map_err(|error| control::Error::rejected(service, &error, error.hint()))?;
    }
    let import = import_of(&config, &install.path, &install.claims, install.version.as_deref());
    let in_place = (!config.update.store).then(|| config::resolve(&install.path));
    if let Some(binary) = &in_place {
        config::check_binary(binary)
            .map_err(|error| Failure::from(control::Error::rejected(service, &error, error.hint())))?;
    }
    let brought = spool::install(&dirs.service_state(service), &import, in_place);
    let place = brought.map_err(|error| control::Error::rejected(service, &error, error.hint()))?;
    if Client::connect(&dirs.control_socket()).is_ok() {
        // A daemon has started in the meantime. If it has not taken the version, no daemon does before its next
        // start.
        spool::withdraw(&place);
        return ask(arguments, request, dirs, out);
    }
    if out.is_json() {
        out.object(&json!({ "staged": { "service": service, "binary": install.path } }));
    } else {
        let path = install.path.display();
        out.line(format!(
            "No daemon runs: the next start of {service} is one of {path}, which is kept for it."
        ));
    }
    Ok(Exit::Done)
}

/// The state directory must belong to the user of the daemon.
fn check_state(dirs: &Dirs, unreachable: &ClientError) -> Result<(), Failure> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dirs.state);
    let found = made.and_then(|()| std::fs::metadata(&dirs.state));
    let cause = match found {
        Ok(found) if found.uid() == effective_user() => return Ok(()),
        Ok(found) => format!("it belongs to user {}", found.uid()),
        Err(error) => error.to_string(),
    };
    let message = format!(
        "{unreachable} Nor can the version be kept for the next start in {}: {cause}.",
        dirs.state.display()
    );
    let hint = "Run it again as the user of the daemon, or when the daemon runs.".to_owned();
    Err(Failure::Own { kind: "unreachable", message, hint, exit: Exit::Unreachable })
}
