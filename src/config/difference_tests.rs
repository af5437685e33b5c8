use std::path::Path;

use super::{Cost, Difference, differences};
use crate::config::{Service, known_keys};

fn parse(text: &str) -> Service {
    Service::parse("web".parse().unwrap(), Path::new("/etc/web.toml"), text)
        .unwrap_or_else(|errors| panic!("{text}: {errors:?}"))
}

const BASE: &str = "binary = \"/bin/a\"\nadapter = \"inject\"\nmode = \"overlap\"\n";
const LISTEN: &str = "[listen]\nmain = \"127.0.0.1:1\"\n";

/// Lines that change a key, the difference that they make, and its cost.
const CHANGES: &[(&str, &str, Cost)] = &[
    ("binary = \"/bin/b\"", "binary", Cost::Handoff),
    ("args = [\"x\"]", "args", Cost::Handoff),
    ("adapter = \"listen-fds\"\nnotify = true", "adapter notify", Cost::Handoff),
    ("adapter = \"handoff\"", "adapter", Cost::Restart),
    ("mode = \"exclusive\"", "mode", Cost::Restart),
    ("working_dir = \"/tmp\"", "working_dir", Cost::Handoff),
    ("deadline = \"9m\"", "deadline", Cost::Nothing),
    ("drain_grace = \"7s\"", "drain_grace", Cost::Nothing),
    ("stragglers = \"cut\"", "stragglers", Cost::Nothing),
    ("lease = \"7s\"", "lease", Cost::Handoff),
    ("stop_grace = \"7s\"", "stop_grace", Cost::Handoff),
    ("resume_limit = \"7s\"", "resume_limit", Cost::Nothing),
    ("autostart = false", "autostart", Cost::Nothing),
    ("restart = \"never\"", "restart", Cost::Nothing),
    ("success_exit_codes = [9]", "success_exit_codes", Cost::Nothing),
    ("[backoff]\nfirst = \"7s\"", "backoff", Cost::Nothing),
    ("[env]\nA = \"1\"\nB = \"2\"", "env.A env.B", Cost::Handoff),
    ("[log]\nfiles = 9", "log", Cost::Handoff),
    ("stop_signal = \"SIGINT\"", "stop_signal", Cost::Handoff),
    ("reload_signal = \"SIGHUP\"", "reload_signal", Cost::Nothing),
    ("notify = true", "notify", Cost::Handoff),
    ("drain_signal = \"SIGUSR1\"", "drain_signal", Cost::Handoff),
    ("drain_command = [\"/bin/true\"]", "drain_command", Cost::Nothing),
    ("[probe]\nhttp = \"/health\"", "probe", Cost::Nothing),
    ("after = [\"db\"]", "after", Cost::Nothing),
    ("requires = [\"db\"]", "requires", Cost::Nothing),
    ("wants = [\"db\"]", "wants", Cost::Nothing),
    ("env_file = \"/etc/web.env\"", "env_file", Cost::Handoff),
    ("env_inherit = false", "env_inherit", Cost::Handoff),
    ("[credentials]\nKEY = \"/etc/key\"", "credentials", Cost::Handoff),
    ("user = \"daemon\"", "user", Cost::Handoff),
    ("user = \"daemon\"\ngroup = \"nogroup\"", "user group", Cost::Handoff),
    ("user = \"daemon\"\nsupplementary_groups = [\"tty\"]", "user supplementary_groups", Cost::Handoff),
    ("umask = \"0027\"", "umask", Cost::Handoff),
    ("[limits]\nnofile = 1024", "limits", Cost::Handoff),
    ("nice = 5", "nice", Cost::Handoff),
    ("no_new_privs = true", "no_new_privs", Cost::Handoff),
    ("[capabilities]\nbounding = [\"CAP_NET_BIND_SERVICE\"]", "capabilities", Cost::Handoff),
    ("private_tmp = true", "private_tmp", Cost::Handoff),
    ("[update]\nkeep = 9", "update.keep", Cost::Nothing),
    ("[update]\nwatch = \"/incoming/a\"", "update.watch", Cost::Nothing),
    ("preflight = [\"/bin/true\"]", "preflight", Cost::Nothing),
    ("[hooks]\npost_commit = [\"/bin/true\"]", "hooks.post_commit", Cost::Nothing),
    ("probation = \"7s\"", "probation", Cost::Nothing),
    ("canary = [\"5% 30s\"]", "canary", Cost::Nothing),
    ("liveness = \"7s\"", "liveness", Cost::Nothing),
    ("store = false", "store", Cost::Nothing),
];

/// The base with these lines, which replace those of the same keys.
fn with(lines: &str) -> Service {
    let replaced = |line: &&str| {
        let key = line.split(' ').next().unwrap();
        !lines.lines().any(|new| new.split(' ').next() == Some(key))
    };
    let kept: Vec<&str> = BASE.lines().filter(|line| replaced(line)).collect();
    parse(&format!("{}\n{lines}\n{LISTEN}", kept.join("\n")))
}

#[test]
fn each_key_is_named_with_its_cost_and_no_other_key() {
    for (lines, keys, cost) in CHANGES {
        let found = differences(&with(""), &with(lines));
        let names: Vec<&str> = found.iter().map(|it| it.key.as_str()).collect();
        assert_eq!(names.join(" "), *keys, "{lines}");
        assert_eq!(found.iter().map(|it| it.cost).max(), Some(*cost), "{lines}");
        let back = differences(&with(lines), &with(""));
        assert_eq!(back.len(), found.len(), "{lines}");
    }
}

#[test]
fn each_key_of_a_service_file_is_in_the_table() {
    let tested = |key: &str| {
        CHANGES.iter().any(|(_, keys, _)| keys.split([' ', '.']).any(|part| part == key))
            || CHANGES.iter().any(|(lines, ..)| lines.contains(&format!("[{key}]")))
    };
    // They need another adapter, mode or listener, and have tests of their own.
    let elsewhere = [
        "listen",
        "answer_grace",
        "stop_mode",
        "drain",
        "answer_pause",
        "warm",
        "preflight_limit",
        "channel",
        "type",
    ];
    let missing: Vec<_> =
        known_keys().iter().filter(|key| !tested(key) && !elsewhere.contains(key)).collect();
    assert_eq!(missing, [&""; 0]);
}

#[test]
fn listeners_are_compared_by_name() {
    let of = |listen: &str| parse(&format!("{BASE}[listen]\n{listen}"));
    let base = of("main = \"127.0.0.1:1\"\nother = \"127.0.0.1:2\"");
    let found = differences(&base, &of("new = \"127.0.0.1:3\"\nmain = \"127.0.0.1:4\""));
    let key = |key: &str| Difference { key: key.to_owned(), cost: Cost::Restart };
    assert_eq!(found, [key("listen.main"), key("listen.new"), key("listen.other")]);
    assert_eq!(differences(&base, &of("other = \"127.0.0.1:2\"\n\n\nmain = \"127.0.0.1:1\"")), []);
}

#[test]
fn comments_places_and_defaults_are_no_difference() {
    let hook = "[hooks]\npost_commit = [\"/bin/true\"]";
    let one = parse(&format!("{BASE}{LISTEN}{hook}"));
    let other = parse(&format!("# a comment\n\n{BASE}restart = \"always\"\n\n{hook}\n{LISTEN}"));
    assert_ne!(one.text, other.text);
    assert_eq!(differences(&one, &other), []);
}

#[test]
fn a_job_is_not_handed_over() {
    let of = |more: &str| parse(&format!("binary = \"/bin/a\"\n{more}"));
    let job = of("type = \"oneshot\"");
    let one = |key: &str, cost| [Difference { key: key.to_owned(), cost }];
    assert_eq!(differences(&job, &of("type = \"oneshot\"\nargs = [\"x\"]")), one("args", Cost::Nothing));
    assert_eq!(differences(&of(""), &job), one("type", Cost::Restart));
}

#[test]
fn a_server_that_embeds_the_library_needs_no_handoff_for_what_only_a_shim_is_told() {
    let of = |more: &str| parse(&format!("binary = \"/bin/a\"\n{more}"));
    let found = differences(&of(""), &of("stop_grace = \"7s\""));
    assert_eq!(found, [Difference { key: "stop_grace".to_owned(), cost: Cost::Nothing }]);
    let found = differences(&of(""), &of("channel = \"stream\""));
    assert_eq!(found, [Difference { key: "channel".to_owned(), cost: Cost::Handoff }]);
}
