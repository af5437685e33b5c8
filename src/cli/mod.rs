//! The command line: one file per verb, and what the verbs share.

mod cancel;
mod check;
mod claims;
mod completions;
mod crash_test;
mod daemon;
mod destroy;
mod doctor;
mod enable;
mod events;
mod exit;
mod follow;
mod gc;
mod groups;
mod habits;
mod history;
mod human;
mod install;
mod installed;
mod interrupt;
mod is_active;
mod kill;
mod list;
mod logs;
mod man;
mod names;
mod operation;
mod output;
mod picture;
mod pin;
mod register;
mod reload;
mod remove;
mod restart;
mod rollback;
mod rollout;
mod selection;
mod sentence;
mod show;
mod stale;
mod standard_error;
mod start;
mod status;
mod stop;
mod table;
mod unit;
mod unregister;
mod upgrade;
mod upgrade_all;
mod versions;
mod wait;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{DirOverrides, Dirs};
use crate::control::api::{Request, Response};
use crate::control::{Client, ClientError};
use exit::{Exit, Failure};
use output::Output;

const EXIT_CODES: &str = "\
Exit codes:
  0   done
  1   failed
  2   the daemon cannot be reached
  3   a service file is invalid, or what it changes needs a stop
  4   rolled back; the old version serves
  5   busy with another operation
  6   the new version was refused before it ran, or would be a step back
  7   the daemon does not run; the answer is what it wrote last
  64  the command line is wrong
  130 interrupted with Ctrl-C; what the daemon was asked for goes on

Environment:
  HANDOFF_CONFIG_DIR, HANDOFF_STATE_DIR, HANDOFF_RUNTIME_DIR
               as the options of these names
  HANDOFF_LOG  what the daemon logs, for example `debug` (default: info)
  NO_COLOR     no colours
  An empty variable counts as one that is not set.

Examples:
  handoff check
      are the service files right?
  handoff doctor s3
      which adapter can its program use?
  handoff daemon
      run the supervisor in the foreground
  handoff upgrade s3 --binary ./s3-v2
      replace the binary, drop nothing
  handoff installed s3 /opt/s3/s3
      a new file is there: upgrade to it, unless it runs already
  handoff rollback s3
      back to the version that ran before
  handoff status s3
      what runs, and how the last upgrade ended";

/// Replaces the binary of a running server without dropping a connection.
#[derive(Parser)]
#[command(name = "handoff", version, after_help = EXIT_CODES, max_term_width = 100)]
#[command(arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    places: DirectoryOptions,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Args)]
#[command(next_help_heading = "Directories")]
struct DirectoryOptions {
    /// Directory of the configuration; the service files are in its subdirectory `services`
    #[arg(long, value_name = "DIR", global = true)]
    config_dir: Option<PathBuf>,
    /// Directory of journals and logs
    #[arg(long, value_name = "DIR", global = true)]
    state_dir: Option<PathBuf>,
    /// Directory of the control socket
    #[arg(long, value_name = "DIR", global = true)]
    runtime_dir: Option<PathBuf>,
}

/// An option of the verbs that have output for programs.
#[derive(Args)]
struct Json {
    /// Write JSON, one object per line
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Verb {
    Check(check::Arguments),
    Daemon(daemon::Arguments),
    #[command(visible_aliases = ["ls", "ps"])]
    List(list::Arguments),
    Status(status::Arguments),
    Show(show::Arguments),
    IsActive(is_active::Arguments),
    Events(events::Arguments),
    Wait(wait::Arguments),
    Start(start::Arguments),
    Stop(stop::Arguments),
    Enable(enable::EnableArguments),
    Disable(enable::DisableArguments),
    Restart(restart::Arguments),
    Reload(reload::Arguments),
    Register(register::Arguments),
    Unregister(unregister::Arguments),
    #[command(visible_alias = "rm")]
    Remove(remove::Arguments),
    Destroy(destroy::Arguments),
    Upgrade(upgrade::Arguments),
    #[command(visible_alias = "deploy")]
    Installed(installed::Arguments),
    Rollback(rollback::Arguments),
    Cancel(cancel::Arguments),
    Kill(kill::Arguments),
    Versions(versions::Arguments),
    Pin(pin::Arguments),
    Gc(gc::Arguments),
    Logs(logs::Arguments),
    History(history::Arguments),
    Doctor(doctor::Arguments),
    CrashTest(crash_test::Arguments),
    Install(install::Arguments),
    Completions(completions::Arguments),
    Man(man::Arguments),
}

/// Runs the command line of this process and returns the exit code. Blocks until the verb is done.
pub fn main() -> ExitCode {
    let mut command = groups::grouped(Cli::command());
    let matches = command.try_get_matches_from_mut(words(std::env::args_os()));
    let parsed =
        matches.and_then(|found| Cli::from_arg_matches(&found).map_err(|error| error.format(&mut command)));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => return misused(&habits::suggest(error)).into(),
        Err(help) => {
            // If the reader is gone, no one needs the help.
            let _ = help.print();
            return Exit::Done.into();
        }
    };
    let mut out = Output::new(cli.verb.json());
    let exit = perform(cli, &mut out).unwrap_or_else(|failure| {
        out.failure(&failure);
        failure.exit()
    });
    out.finish(exit).into()
}

/// The words of the command line. The parser takes `help` as a verb without options, not even its own `--help`.
fn words(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = given.collect();
    if words.get(1).is_some_and(|verb| verb == "help") {
        words.retain(|word| word != "--help" && word != "-h");
    }
    words
}

/// Reports a mistake in the command line, in the requested form.
fn misused(error: &clap::Error) -> Exit {
    let asks_for_json = std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json");
    if !asks_for_json {
        let _ = error.print();
        return Exit::Usage;
    }
    let text = error.render().to_string();
    let line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut paragraphs = text.split("\n\n");
    let message = line(paragraphs.next().unwrap_or_default().trim_start_matches("error: "));
    let tip = paragraphs.next().and_then(|next| next.trim_start().strip_prefix("tip: ")).map(line);
    let hint = "handoff --help names the commands. Each of them has a --help.";
    let mut out = Output::new(true);
    out.failure(&Failure::usage(message, tip.unwrap_or_else(|| hint.to_owned())));
    out.finish(Exit::Usage)
}

fn perform(cli: Cli, out: &mut Output) -> Result<Exit, Failure> {
    // Resolved only for the verbs that need them: the others must work anywhere, also in the build of a package.
    let overrides = DirOverrides::from(cli.places);
    let were_given = overrides.config.is_some() || overrides.state.is_some() || overrides.runtime.is_some();
    let dirs = || Dirs::resolve(overrides);
    match cli.verb {
        Verb::Check(arguments) => check::run(&arguments, &dirs()?, out),
        Verb::Daemon(arguments) => daemon::run(&arguments, dirs()?),
        Verb::List(arguments) => list::run(&arguments, &dirs()?, out),
        Verb::Status(arguments) => status::run(&arguments, &dirs()?, out),
        Verb::Show(arguments) => show::run(&arguments, &dirs()?, out),
        Verb::IsActive(arguments) => is_active::run(&arguments, &dirs()?, out),
        Verb::Events(arguments) => events::run(&arguments, &dirs()?, out),
        Verb::Wait(arguments) => wait::run(&arguments, &dirs()?, out),
        Verb::Start(arguments) => start::run(&arguments, &dirs()?, out),
        Verb::Stop(arguments) => stop::run(&arguments, &dirs()?, out),
        Verb::Enable(arguments) => enable::enable(&arguments, &dirs()?, out),
        Verb::Disable(arguments) => enable::disable(&arguments, &dirs()?, out),
        Verb::Restart(arguments) => restart::run(&arguments, &dirs()?, out),
        Verb::Reload(arguments) => reload::run(&arguments, &dirs()?, out),
        Verb::Register(arguments) => register::run(&arguments, &dirs()?, out),
        Verb::Unregister(arguments) => unregister::run(&arguments, &dirs()?, out),
        Verb::Remove(arguments) => remove::run(&arguments, &dirs()?, out),
        Verb::Destroy(arguments) => destroy::run(&arguments, &dirs()?, out),
        Verb::Upgrade(arguments) => upgrade::run(&arguments, &dirs()?, out),
        Verb::Installed(arguments) => installed::run(&arguments, &dirs()?, out),
        Verb::Rollback(arguments) => rollback::run(&arguments, &dirs()?, out),
        Verb::Versions(arguments) => versions::run(&arguments, &dirs()?, out),
        Verb::Pin(arguments) => pin::run(&arguments, &dirs()?, out),
        Verb::Gc(arguments) => gc::run(&arguments, &dirs()?, out),
        Verb::Cancel(arguments) => cancel::run(&arguments, &dirs()?, out),
        Verb::Kill(arguments) => kill::run(&arguments, &dirs()?, out),
        Verb::Logs(arguments) => logs::run(&arguments, &dirs()?, out),
        Verb::History(arguments) => history::run(&arguments, &dirs()?, out),
        Verb::Doctor(arguments) => doctor::run(&arguments, &dirs()?, out),
        Verb::CrashTest(arguments) => crash_test::run(arguments, out),
        Verb::Install(arguments) => install::run(&arguments, &dirs()?, were_given, out),
        Verb::Completions(arguments) => completions::run(&arguments, out),
        Verb::Man(arguments) => man::run(&arguments, out),
    }
}

impl Verb {
    fn json(&self) -> bool {
        match self {
            Verb::Check(arguments) => arguments.json.json,
            Verb::List(arguments) => arguments.json.json,
            Verb::Status(arguments) => arguments.json.json,
            Verb::Show(arguments) => arguments.json.json,
            Verb::IsActive(arguments) => arguments.json.json,
            Verb::Events(arguments) => arguments.json.json,
            Verb::Wait(arguments) => arguments.json.json,
            Verb::Start(arguments) => arguments.json.json,
            Verb::Stop(arguments) => arguments.json.json,
            Verb::Enable(arguments) => arguments.json.json,
            Verb::Disable(arguments) => arguments.json.json,
            Verb::Restart(arguments) => arguments.json.json,
            Verb::Reload(arguments) => arguments.json.json,
            Verb::Register(arguments) => arguments.json.json,
            Verb::Unregister(arguments) => arguments.json.json,
            Verb::Remove(arguments) => arguments.json.json,
            Verb::Destroy(arguments) => arguments.json.json,
            Verb::Upgrade(arguments) => arguments.json.json,
            Verb::Installed(arguments) => arguments.json.json,
            Verb::Rollback(arguments) => arguments.json.json,
            Verb::Versions(arguments) => arguments.json.json,
            Verb::Pin(arguments) => arguments.json.json,
            Verb::Gc(arguments) => arguments.json.json,
            Verb::Cancel(arguments) => arguments.json.json,
            Verb::Kill(arguments) => arguments.json.json,
            Verb::Logs(arguments) => arguments.json.json,
            Verb::History(arguments) => arguments.json.json,
            Verb::Doctor(arguments) => arguments.json.json,
            Verb::Install(arguments) => arguments.json.json,
            Verb::CrashTest(arguments) => arguments.json(),
            Verb::Daemon(_) | Verb::Completions(_) | Verb::Man(_) => false,
        }
    }
}

impl From<DirectoryOptions> for DirOverrides {
    fn from(places: DirectoryOptions) -> DirOverrides {
        let or = |given: Option<PathBuf>, name| given.or_else(|| variable(name).map(PathBuf::from));
        DirOverrides {
            config: or(places.config_dir, "HANDOFF_CONFIG_DIR"),
            state: or(places.state_dir, "HANDOFF_STATE_DIR"),
            runtime: or(places.runtime_dir, "HANDOFF_RUNTIME_DIR"),
        }
    }
}

/// A number on the command line, of at least `least`.
fn whole_number(text: &str, least: u64) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(number) if number >= least => Ok(number),
        Ok(_) => Err(format!("{text} is less than {least}")),
        Err(_) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            Err(format!("{text} is more than can be counted"))
        }
        Err(_) => Err(format!("{text:?} is not a number")),
    }
}

/// An environment variable. An empty one counts as unset, as in the XDG specification.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Sends one request that has no progress.
fn ask(dirs: &Dirs, request: &Request) -> Result<Response, ClientError> {
    Client::connect(&dirs.control_socket())?.call(request, &mut |_| {})
}
