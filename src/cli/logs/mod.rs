//! `handoff logs`: reads the log files itself, so it works without a daemon.

mod filter;
mod live;
mod merge;
mod print;
mod since;
mod source;

use std::io;
use std::path::{Path, PathBuf};

use handoff_protocol::ids::ServiceName;
use jiff::Zoned;
use regex::bytes::Regex;

use super::Json;
use super::exit::{Exit, Failure, known_services};
use super::follow::Watch;
use super::output::{Output, note};
use super::selection::{Wanted, pick};
use crate::config::{Dirs, load_service};
use crate::control;
use crate::log_record::parse;
use crate::sys::files::raise_files_limit;
use crate::sys::log_pipe::Stream;
use filter::Filter;
use live::Live;
use print::{Form, Printer};
use source::Source;

/// Default number of old lines with `-f`.
const FOLLOW_TAIL_LINES: u64 = 10;

const EXAMPLES: &str = "\
Examples:
  handoff logs
      all services, in the order of time
  handoff logs s3 -n 100
      the last hundred lines of one service
  handoff logs s3 -f
      the last ten lines and all new ones, through rotation
  handoff logs 'web-*' --since 10m --stream err
      what these wrote to standard error in the last ten minutes
  handoff logs s3 --since yesterday --until today --grep 'status=5..'
      lines with such a text
  handoff logs s3 --json | jq -r .line

It reads the files directly, so it works without a daemon.";

/// Print what services wrote to standard output and standard error
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The services: names, or patterns such as 'web-*' [default: all]
    #[arg(value_name = "SERVICE")]
    services: Vec<Wanted>,
    /// Continue with new lines, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Start with the last N lines [default: all, with --follow 10]
    #[arg(short = 'n', long, visible_alias = "lines", value_name = "N")]
    #[arg(value_parser = |text: &str| super::whole_number(text, 0))]
    tail: Option<u64>,
    /// Only lines from this moment on: 10m, "2h 30m", today, yesterday, 2026-12-01, 2026-12-01T11:40:00Z
    #[arg(long, value_name = "TIME", value_parser = moment, allow_hyphen_values = true)]
    since: Option<u64>,
    /// Only lines before this moment, in the same forms
    #[arg(long, value_name = "TIME", value_parser = moment, allow_hyphen_values = true, conflicts_with = "follow")]
    until: Option<u64>,
    /// Only lines whose text matches this regular expression
    #[arg(long, value_name = "REGEX")]
    grep: Option<Regex>,
    /// Only standard output, or only standard error
    #[arg(long, value_parser = ["out", "err"])]
    stream: Option<String>,
    /// Print only what the services wrote, without time and label
    #[arg(long, conflicts_with = "json")]
    text: bool,
    #[command(flatten)]
    pub(super) json: Json,
}

fn moment(text: &str) -> Result<u64, String> {
    since::parse(text, &Zoned::now())
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    if let (Some(since), Some(until)) = (arguments.since, arguments.until)
        && since >= until
    {
        return Err(Failure::usage("--since is not before --until.".to_owned(), ""));
    }
    let services = select(arguments, dirs)?;
    let directories: Vec<PathBuf> = services.iter().map(|service| directory_of(service, dirs)).collect();
    // Each file of each log is open at the same time.
    let _ = raise_files_limit();
    // Before the first read, so that no line is lost between reading and following.
    let mut watch =
        Watch::new().map_err(|error| Failure::failed(format!("Nothing can be watched: {error}."), ""))?;
    let mut sources = Vec::new();
    for (service, directory) in services.iter().zip(&directories) {
        if arguments.follow {
            let _ = watch.add(directory);
        }
        match Source::open(service.clone(), directory) {
            Err(error) if is_awaited(&error, arguments, &services) => {
                sources.push(Source::empty(service.clone(), directory));
            }
            opened => sources.push(opened.map_err(|error| unreadable(service, directory, &error))?),
        }
    }
    if let [source] = &sources[..]
        && !source.has_files()
        && !arguments.follow
    {
        note(format!("Service {} has written nothing yet.", source.service));
    }
    let form = match (out.is_json(), arguments.text) {
        (true, _) => Form::Json,
        (false, true) => Form::Text,
        (false, false) => Form::Stored,
    };
    let printer = Printer::new(form, services, out);
    let filter = filter_of(arguments);
    show(arguments, &filter, sources, watch, printer)
        .map(|()| Exit::Done)
        .map_err(|error| Failure::failed(format!("A log cannot be read: {error}."), ""))
}

/// Whether a log that is not there yet is no failure: it may come, or others have been asked for as well.
fn is_awaited(error: &io::Error, arguments: &Arguments, services: &[ServiceName]) -> bool {
    error.kind() == io::ErrorKind::NotFound && !(arguments.follow && services.len() == 1)
}

fn select(arguments: &Arguments, dirs: &Dirs) -> Result<Vec<ServiceName>, Failure> {
    let names = known_services(dirs);
    let known: Vec<ServiceName> = names.iter().filter_map(|name| name.parse().ok()).collect();
    if arguments.services.is_empty() {
        return Ok(known);
    }
    for wanted in &arguments.services {
        if let Wanted::Name(name) = wanted
            && !known.contains(name)
        {
            return Err(control::Error::unknown_service(name, names.iter().map(String::as_str)).into());
        }
    }
    pick(&arguments.services, &known)
}

/// Where the log of a service is. A file that is gone or has mistakes names no other place.
fn directory_of(service: &ServiceName, dirs: &Dirs) -> PathBuf {
    let named = load_service(&dirs.config, service).ok().and_then(|config| config.log.dir);
    named.unwrap_or_else(|| dirs.log_dir(service))
}

fn filter_of(arguments: &Arguments) -> Filter {
    Filter {
        since_ms: arguments.since,
        until_ms: arguments.until,
        pattern: arguments.grep.clone(),
        stream: match arguments.stream.as_deref() {
            Some("out") => Some(Stream::Out),
            Some(_) => Some(Stream::Err),
            None => None,
        },
    }
}

fn show(
    arguments: &Arguments,
    filter: &Filter,
    mut sources: Vec<Source>,
    watch: Watch,
    mut printer: Printer<'_>,
) -> io::Result<()> {
    let names: Vec<ServiceName> = sources.iter().map(|source| source.service.clone()).collect();
    let tail =
        arguments.tail.or((arguments.follow && arguments.since.is_none()).then_some(FOLLOW_TAIL_LINES));
    let mut skipped = restrict(&mut sources, filter, tail, !arguments.follow)?;
    merge::merge(&mut sources, !arguments.follow, |index, line| {
        let record = parse(line);
        if !filter.matches(names[index].as_str(), line, record.as_ref()) {
            return true;
        }
        if skipped > 0 {
            skipped -= 1;
            return true;
        }
        printer.print(index, line, record.as_ref())
    })?;
    if !printer.flush() || !arguments.follow {
        return Ok(());
    }
    live::follow(sources, watch, |live| match live {
        Live::Rest => printer.flush(),
        Live::Line(index, line) => {
            let record = parse(line);
            let is_wanted = filter.matches(names[index].as_str(), line, record.as_ref());
            !is_wanted || printer.print(index, line, record.as_ref())
        }
    })
}

/// Leaves out what is known not to be wanted. Returns how many of the wanted lines are to be skipped, so that `tail` are
/// left. They are counted by reading everything twice, because a number of lines may not fit into the memory.
fn restrict(sources: &mut [Source], filter: &Filter, tail: Option<u64>, takes_rest: bool) -> io::Result<u64> {
    if let Some(since) = filter.since_ms {
        sources.iter_mut().try_for_each(|source| source.keep_since(since))?;
    }
    let Some(tail) = tail else { return Ok(0) };
    if filter.is_empty() {
        sources.iter_mut().try_for_each(|source| source.keep_tail(tail))?;
    }
    let names: Vec<ServiceName> = sources.iter().map(|source| source.service.clone()).collect();
    let mut count: u64 = 0;
    merge::merge(sources, takes_rest, |index, line| {
        count += u64::from(filter.matches(names[index].as_str(), line, parse(line).as_ref()));
        true
    })?;
    sources.iter_mut().try_for_each(Source::rewind)?;
    Ok(count.saturating_sub(tail))
}

fn unreadable(service: &ServiceName, directory: &Path, error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::NotFound {
        let message = format!("Service {:?} has no log yet: {directory:?} does not exist.", service.as_str());
        return Failure::failed(message, format!("Start it: handoff start {service}"));
    }
    let message =
        format!("The log of service {:?} in {directory:?} cannot be read: {error}.", service.as_str());
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => "Check the permissions of the state directory.",
        _ => "",
    };
    Failure::failed(message, hint)
}
