//! The documents are correct: links work, examples parse, tables are complete, and bytes match.

mod api;
mod pages;
mod python;
mod source;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use handoff::config::{DaemonSettings, Service};
use handoff_protocol::reason::{Exit, Reason, Role};
use handoff_protocol::version::{NoCommonVersion, VersionRange};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// All pages below docs/, by name.
fn pages() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "md") {
                let name = path.strip_prefix(root()).expect("below the root").display().to_string();
                let text = read(&name);
                found.insert(name, text);
            }
        }
    }
    assert!(found.len() > 30, "only {} pages were found: is the walk broken?", found.len());
    found
}

/// The pages, and the other documents for readers.
fn documents() -> BTreeMap<String, String> {
    let others = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "clients/README.md"];
    pages().into_iter().chain(others.map(|name| (name.to_owned(), read(name)))).collect()
}

/// The text after `heading`, on the only page with that heading.
fn section(heading: &str) -> String {
    let line = format!("\n{heading}\n");
    let found: Vec<(String, String)> = pages().into_iter().filter(|(_, text)| text.contains(&line)).collect();
    assert_eq!(
        found.len(),
        1,
        "pages with {heading:?}: {:?}",
        found.iter().map(|it| &it.0).collect::<Vec<_>>()
    );
    found[0].1.split_once(&line).expect("the heading").1.to_owned()
}

/// The contents of all fenced blocks of one language, without indentation.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Option<(bool, String)> = None;
    for line in text.lines().map(str::trim_start) {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(opened)) => open = Some((opened == language, String::new())),
            (None, None) => {}
            (Some((wanted, block)), Some(_)) => {
                if *wanted {
                    found.push(std::mem::take(block));
                }
                open = None;
            }
            (Some((_, block)), None) => {
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    assert!(open.is_none(), "a block of {language} is not closed");
    found
}

/// The rows of the table whose header row begins with these cells, each row as a list of cells.
fn table(text: &str, header: &[&str]) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|')
            .split(" | ")
            .map(|cell| cell.trim().trim_matches('|').trim().to_owned())
            .collect()
    };
    let mut lines = text.lines().map(str::trim).skip_while(|line| {
        !(line.starts_with('|')
            && cells(line).iter().map(String::as_str).take(header.len()).eq(header.iter().copied()))
    });
    assert!(lines.next().is_some(), "no table with the header {header:?}");
    lines.skip(1).take_while(|line| line.starts_with('|')).map(cells).collect()
}

/// The parts in backquotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn handoff(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_handoff")).args(args).output().expect("handoff runs");
    assert!(output.status.success(), "handoff {args:?}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The anchor of a heading, as common renderers generate it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    for (name, text) in documents() {
        let folder: PathBuf = root().join(&name).parent().expect("a folder").to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { root().join(&name) } else { folder.join(path) };
            let there = match fs::read_to_string(&target) {
                Ok(text) => {
                    let headings = text.lines().filter(|line| line.starts_with('#'));
                    fragment.is_empty()
                        || headings.map(|line| anchor(line.trim_start_matches('#'))).any(|it| it == fragment)
                }
                Err(_) => target.is_dir() && fragment.is_empty(),
            };
            if !there {
                broken.push(format!("{name}: {link}"));
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

fn parse(text: &str) -> Result<Service, Vec<String>> {
    Service::parse("example".parse().expect("a name"), Path::new("example.toml"), text)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

#[test]
fn the_examples_of_service_files_parse() {
    let mut seen = 0;
    for (name, text) in documents() {
        // A Cargo manifest is TOML, too.
        for example in blocks(&text, "toml").iter().filter(|example| !example.contains("[dependencies]")) {
            seen += 1;
            if example.contains("[daemon]") {
                let parsed = DaemonSettings::parse(Path::new("handoff.toml"), example);
                parsed.unwrap_or_else(|errors| panic!("{name}: {errors:?}\n{example}"));
                continue;
            }
            parse(example).unwrap_or_else(|errors| panic!("{name}: {errors:?}\n{example}"));
        }
    }
    assert!(seen >= 2, "only {seen} examples were found");
}

#[test]
fn the_reference_of_the_service_file_is_complete() {
    let rows = table(&section("## Keys"), &["key", "type", "default", "meaning"]);
    let documented: BTreeSet<String> = rows.iter().map(|row| quoted(&row[0])[0].to_owned()).collect();
    let known: BTreeSet<String> = handoff::config::known_keys().iter().map(|key| (*key).to_owned()).collect();
    assert_eq!(documented, known);
    // Some keys exclude each other, so the examples are on several pages.
    let examples: String = pages().values().flat_map(|text| blocks(text, "toml")).collect();
    for key in &known {
        let last = key.rsplit('.').next().expect("a key");
        let there = examples.contains(&format!("{last} = ")) || examples.contains(&format!("[{last}]"));
        assert!(there, "{key} is in no example");
    }
}

#[test]
fn the_reference_of_each_table_is_complete() {
    for (table_name, headings, columns) in [
        ("probe", &["## Probes"][..], ["key", "type", "default"]),
        ("hooks", &["## Commands around an upgrade"], ["key", "type", "default"]),
        ("backoff", &["## Pauses"], ["key", "type", "default"]),
        ("log", &["## Keys of the log table"], ["key", "type", "default"]),
        ("update", &["## Keys of the update table", "## Watch a path"], ["key", "type", "default"]),
        ("limits", &["## Limits of resources"], ["key of `[limits]`", "unit", "limits"]),
        ("capabilities", &["## Capabilities"], ["key of `[capabilities]`", "type", "meaning"]),
        ("liveness", &["## Liveness"], ["key of `[liveness]`", "form", "without it"]),
        ("probation", &["## Canary and probation"], ["key of `[probation]`", "form", "without it"]),
    ] {
        let errors = parse(&format!("binary = \"/b\"\n[{table_name}]\nwwwwwwwwwwww = 1\n"));
        let told = errors.expect_err("an unknown key").join("\n");
        let known = told.split_once("known keys are ").expect("the keys of the table").1;
        let known = known.lines().next().unwrap_or_default().split(", ").map(|key| key.trim().to_owned());
        let rows = |heading: &&str| table(&section(heading), &columns);
        let documented: BTreeSet<String> =
            headings.iter().flat_map(rows).map(|row| quoted(&row[0])[0].to_owned()).collect();
        assert_eq!(documented, known.collect(), "{table_name}");
    }
}

#[test]
fn the_reference_of_the_daemon_is_complete() {
    let errors = DaemonSettings::parse(Path::new("handoff.toml"), "[daemon]\nwwwwwwwwwwww = 1\n");
    let told = errors.expect_err("an unknown key")[0].to_string();
    let known = told.split_once("known keys are ").expect("the keys of the table").1;
    let known: BTreeSet<String> = known.split(", ").map(|key| key.trim().to_owned()).collect();
    let rows = table(&section("## Name groups"), &["key of `[daemon]`", "form", "meaning"]);
    assert_eq!(rows.iter().map(|row| quoted(&row[0])[0].to_owned()).collect::<BTreeSet<_>>(), known);
}

/// The rights of the code are those of the page.
#[test]
fn the_table_of_rights_is_complete() {
    use handoff::control::Right;
    use handoff::control::api::Request;

    let rows = table(
        &section("## What the rights are"),
        &["right", "methods of the [control API](control-api.md#methods)"],
    );
    let looking: BTreeSet<String> = quoted(&rows[0][1]).into_iter().map(str::to_owned).collect();
    let methods = table(&section("## Methods"), &["method", "parameters", "result", "what it does"]);
    for method in methods.iter().map(|row| quoted(&row[0])[0]) {
        let params = serde_json::json!({"service": "s3", "path": "/b", "version": "1", "subscription": 1, "text": "binary = 1"});
        let wanted = |names: &[&str]| {
            let params = names.iter().map(|name| ((*name).to_owned(), params[name].clone())).collect();
            Request::parse(method, Some(serde_json::Value::Object(params))).ok()
        };
        let forms: [&[&str]; 6] = [
            &[],
            &["service"],
            &["service", "path"],
            &["service", "version"],
            &["service", "text"],
            &["subscription"],
        ];
        let request = forms.into_iter().find_map(wanted).unwrap_or_else(|| panic!("parameters of {method}"));
        assert_eq!(request.right() == Right::Read, looking.contains(method), "{method}");
    }
}

#[test]
fn the_exit_codes_are_those_of_the_command_line() {
    let help = handoff(&["--help"]);
    let told =
        help.lines().skip_while(|line| *line != "Exit codes:").skip(1).take_while(|line| !line.is_empty());
    let told: Vec<Vec<String>> = told
        .map(|line| {
            let (code, meaning) = line.trim().split_once(' ').expect("a code and its meaning");
            vec![code.to_owned(), meaning.trim().to_owned()]
        })
        .collect();
    assert_eq!(table(&section("## Exit codes"), &["code", "meaning"]), told);
}

fn verbs() -> BTreeSet<String> {
    let help = handoff(&["--help"]);
    let groups =
        help.lines().skip_while(|line| !line.starts_with("Usage:")).take_while(|line| *line != "Options:");
    let lines = groups.filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')));
    lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// The other names of verbs.
fn other_names() -> BTreeSet<String> {
    let help = handoff(&["--help"]);
    let lists = help.split("[also: ").skip(1).filter_map(|rest| rest.split(']').next());
    lists
        .flat_map(|list| list.split([',', ' ', '\n']))
        .filter(|it| !it.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_verb_has_a_section_and_every_option_that_is_named_exists() {
    let pages = pages();
    let headings = pages.values().flat_map(|text| text.lines());
    let sections: Vec<&str> = headings.filter_map(|line| line.strip_prefix("### handoff ")).collect();
    assert_eq!(sections.iter().map(|verb| (*verb).to_owned()).collect::<BTreeSet<_>>(), verbs());
    assert_eq!(sections.len(), verbs().len(), "a verb has two sections");
    for verb in verbs() {
        let text = section(&format!("### handoff {verb}"));
        let text = text.split("\n#").next().expect("its text");
        let help = handoff(&[&verb, "--help"]);
        for row in text.lines().filter(|line| line.starts_with("| `-")) {
            for option in quoted(row).into_iter().filter(|option| option.starts_with('-')) {
                let option = option.split(' ').next().expect("an option");
                assert!(help.contains(option), "handoff {verb} has no {option}");
            }
        }
    }
}

#[test]
fn every_verb_that_is_named_exists() {
    let verbs: BTreeSet<String> = verbs().union(&other_names()).cloned().collect();
    for (name, text) in documents() {
        for block in blocks(&text, "sh").into_iter().chain(blocks(&text, "console")) {
            for line in block.lines() {
                let mut words = line.trim_start_matches("$ ").split_whitespace();
                if words.next() == Some("handoff")
                    && let Some(verb) = words.next().filter(|verb| !verb.starts_with('-'))
                {
                    assert!(verbs.contains(verb), "{name}: handoff {verb}");
                }
            }
        }
        for code in quoted(&text.replace("```", "")) {
            if let Some(verb) = code.strip_prefix("handoff ").and_then(|rest| rest.split_whitespace().next())
            {
                let known = verbs.contains(verb) || verb.starts_with('-') || verb == "keeper";
                assert!(known || !verb.chars().all(|c| c.is_ascii_lowercase()), "{name}: `{code}`");
            }
        }
    }
}

/// One of each. Because of the match, a new reason breaks the compilation of this test.
fn reasons() -> Vec<Reason> {
    let range = VersionRange { minimum: 2, current: 3 };
    let all = vec![
        Reason::Spawn("why".into()),
        Reason::NoHello,
        Reason::Version(NoCommonVersion { ours: VersionRange::OURS, theirs: range }),
        Reason::NotPrepared,
        Reason::NotReady,
        Reason::Unhealthy("why".into()),
        Reason::Probe("why".into()),
        Reason::SuccessorExited(Exit::Code(1)),
        Reason::SuccessorExited(Exit::Signal(9)),
        Reason::Silent(Role::Successor),
        Reason::HungUp(Role::Successor),
        Reason::Broke { role: Role::Successor, what: "why".into() },
        Reason::Broke { role: Role::Incumbent, what: "why".into() },
        Reason::DrainGrace,
        Reason::NotSealed,
        Reason::SealFailed("why".into()),
        Reason::LeaseEnded,
        Reason::Journal("why".into()),
        Reason::Cancelled,
        Reason::SupervisorLost,
        Reason::Ended(Exit::Code(0)),
        Reason::Ended(Exit::Signal(9)),
        Reason::Canary("why".into()),
        Reason::Probation("why".into()),
    ];
    for reason in &all {
        match reason {
            Reason::Spawn(_)
            | Reason::NoHello
            | Reason::Version(_)
            | Reason::NotPrepared
            | Reason::NotReady => {}
            Reason::Unhealthy(_) | Reason::Probe(_) | Reason::SuccessorExited(_) | Reason::Ended(_) => {}
            Reason::Silent(_) | Reason::HungUp(_) => {}
            Reason::Broke { .. } | Reason::DrainGrace | Reason::NotSealed | Reason::SealFailed(_) => {}
            Reason::LeaseEnded | Reason::Journal(_) | Reason::Cancelled | Reason::SupervisorLost => {}
            Reason::Canary(_) | Reason::Probation(_) => {}
        }
    }
    all
}

#[test]
fn every_rollback_reason_is_explained() {
    let rows = table(&section("## Rollback reasons"), &["reason", "what to do"]);
    let fits = |row: &str, told: &str| match row.split_once('…') {
        Some((head, tail)) => told.starts_with(head) && told.ends_with(tail),
        None => row == told,
    };
    let told: Vec<String> = reasons().iter().map(ToString::to_string).collect();
    for told in &told {
        assert!(rows.iter().any(|row| fits(&row[0], told)), "not explained: {told}");
    }
    for row in &rows {
        assert!(told.iter().any(|told| fits(&row[0], told)), "no such reason: {}", row[0]);
    }
}
