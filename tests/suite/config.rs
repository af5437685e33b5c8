//! Correct and incorrect service files.

use std::path::{Path, PathBuf};

use handoff::config::{self, Adapter, Liveness, LogSettings, Mode, Position, Service, Stragglers};
use handoff_protocol::frame::Transport;
use proptest::prelude::*;

const FULL: &str = r#"
binary = "/srv/s3/bin/s3-server"
args = ["--root", "/srv/s3/data"]
adapter = "handoff"
mode = "overlap"
channel = "stream"
working_dir = "/srv"
deadline = "1m"
drain_grace = "10s"
stragglers = "cut"
lease = "2s"
stop_grace = "0s"
resume_limit = "1m 1s"
autostart = false
liveness = "2s"
[env]
KEY = "value"
[listen]
s3 = "127.0.0.1:9000"
admin = { address = "unix:/run/s3.sock", mode = "0640", user = "s3", group = "7" }
[log]
max_size = "1MiB"
files = 3
"#;

fn parse(text: &str) -> Result<Service, Vec<config::Error>> {
    Service::parse("s3".parse().unwrap(), Path::new("/c/s3.toml"), text)
}

fn messages(text: &str) -> Vec<String> {
    parse(text).expect_err("the file must be refused").iter().map(ToString::to_string).collect()
}

/// The only error for `line` in an otherwise correct file.
fn message(line: &str) -> String {
    let [message] = messages(&format!("binary = \"/b\"\n{line}\n")).try_into().expect("one message");
    message
}

#[test]
fn more_listeners_than_one_message_carries_are_refused() {
    let file = |adapter: &str, mode: &str, number: usize| {
        let listeners: String =
            (0..number).map(|at| format!("l-{at} = \"127.0.0.1:{}\"\n", 10_000 + at)).collect();
        format!("binary = \"/b\"\nadapter = \"{adapter}\"\nmode = \"{mode}\"\n[listen]\n{listeners}")
    };
    for (adapter, mode, most) in [
        ("handoff", "exclusive", 253),
        ("handoff", "overlap", 253),
        ("inject", "exclusive", 126),
        ("listen-fds", "overlap", 250),
    ] {
        assert_eq!(parse(&file(adapter, mode, most)).unwrap().listeners.len(), most);
        let [message] = messages(&file(adapter, mode, most + 1)).try_into().expect("one message");
        assert!(message.contains(&format!("it has {} listeners", most + 1)), "{message}");
        assert!(message.contains(&format!("can have {most}")), "{message}");
    }
}

#[test]
fn a_full_file() {
    let service = parse(FULL).unwrap();
    assert_eq!(service.name.as_str(), "s3");
    assert_eq!(service.file, Path::new("/c/s3.toml"));
    assert_eq!(service.binary, Path::new("/srv/s3/bin/s3-server"));
    assert_eq!(service.binary_at, Position { line: 2, column: 10 });
    assert_eq!(service.args, ["--root", "/srv/s3/data"]);
    assert_eq!((service.adapter, service.mode), (Adapter::Handoff, Mode::Overlap));
    assert_eq!(service.channel, Transport::Stream);
    assert_eq!(service.working_dir, Path::new("/srv"));
    assert_eq!((service.deadline_ms, service.drain_grace_ms, service.lease_ms), (60_000, 10_000, 2_000));
    assert_eq!((service.stop_grace_ms, service.resume_limit_ms), (0, 61_000));
    assert_eq!((service.stragglers, service.autostart), (Stragglers::Cut, false));
    assert_eq!(service.liveness, Some(Liveness { interval_ms: 2_000, failures: 3 }));
    assert_eq!(service.env["KEY"], "value");
    let listeners: Vec<_> = service.listeners.iter().map(|l| format!("{} {}", l.name, l.address)).collect();
    let admin = &service.listeners[0];
    assert_eq!((admin.mode, admin.owner.user.as_deref()), (Some(0o640), Some("s3")));
    assert_eq!(admin.owner.group.as_deref(), Some("7"));
    assert_eq!(listeners, ["admin unix:/run/s3.sock", "s3 127.0.0.1:9000"]);
    assert_eq!(service.log, LogSettings { max_size_bytes: 1 << 20, files: 3, ..LogSettings::default() });
}

#[test]
fn the_commands_around_an_upgrade() {
    let text = "binary = \"/b\"\npreflight = [\"{binary}\", \"-t\"]\npreflight_limit = \"5s\"\n\
                [hooks]\npre_upgrade = [\"/bin/true\"]\npost_rollback = [\"/h\"]\nlimit = \"2s\"\n";
    let hooks = parse(text).unwrap().hooks;
    let command = |words: &[&str], limit_ms| {
        let argv = words.iter().map(|word| (*word).to_owned()).collect();
        Some(handoff::hooks::Command { argv, limit_ms })
    };
    assert_eq!(hooks.preflight, command(&["{binary}", "-t"], 5_000));
    assert_eq!(hooks.pre_upgrade, command(&["/bin/true"], 2_000));
    assert_eq!((hooks.post_commit, hooks.post_rollback), (None, command(&["/h"], 2_000)));
    assert_eq!(parse("binary = \"/b\"").unwrap().hooks, config::Hooks::default());
}

#[test]
fn the_programs_of_commands_are_looked_at() {
    let root = tempfile::tempdir().unwrap();
    let hook = root.path().join("hook");
    std::fs::write(&hook, "").unwrap();
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let text = format!(
        "binary = \"/bin/sh\"\npreflight = [\"{{binary}}\"]\n[hooks]\npre_upgrade = [\"/nonexistent/h\"]\npost_commit = [{hook:?}]\n"
    );
    let told: Vec<String> = parse(&text).unwrap().check_files().iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("4:15: hooks.pre_upgrade: cannot run /nonexistent/h"), "{told:?}");
    assert!(told[1].contains("5:15: hooks.post_commit:") && told[1].contains("world-writable"), "{told:?}");
}

#[test]
fn the_defaults() {
    let service = parse("binary = \"/b\"").unwrap();
    assert_eq!((service.adapter, service.mode), (Adapter::Handoff, Mode::Exclusive));
    assert_eq!(service.channel, Transport::Packets);
    assert_eq!((service.working_dir, service.autostart), (PathBuf::from("/"), true));
    assert_eq!((service.deadline_ms, service.drain_grace_ms, service.lease_ms), (300_000, 30_000, 5_000));
    assert_eq!((service.stop_grace_ms, service.resume_limit_ms), (30_000, 30_000));
    assert_eq!(service.liveness, None);
    assert_eq!(service.stragglers, Stragglers::Abort);
    assert_eq!(service.log, LogSettings::default());
    assert!(service.listeners.is_empty() && service.args.is_empty() && service.env.is_empty());
}

#[test]
fn every_mistake_says_where_what_and_what_to_do() {
    let table = [
        ("deadlin = \"5m\"", "/c/s3.toml:2:1: deadlin: unknown key; did you mean \"deadline\"?"),
        (
            "log.max_sise = \"1MiB\"",
            "/c/s3.toml:2:5: log.max_sise: unknown key; did you mean \"log.max_size\"?",
        ),
        ("deadline = 300", "2:12: deadline: expected a string, found an integer; write a duration such as"),
        ("deadline = \"300\"", "2:12: deadline: \"300\" is no duration"),
        ("deadline = \"0s\"\ndrain_grace = \"0s\"", "2:12: deadline: must be longer than nothing"),
        ("mode = \"exclusiv\"", "2:8: mode: \"exclusiv\" is not one of its values; write \"exclusive\" or"),
        (
            "adapter = \"magic\"",
            "2:11: adapter: \"magic\" is not one of its values; write \"handoff\" or \"listen-fds\" or",
        ),
        (
            "adapter = \"inject\"",
            "2:11: adapter: there is no listener that could be swapped; add a [listen] table",
        ),
        (
            "stop_signal = \"SIGINT\"",
            "2:15: stop_signal: is for programs that do not speak the protocol; remove it",
        ),
        (
            "adapter = \"listen-fds\"\nstop_signal = \"TERM\"",
            "3:15: stop_signal: \"TERM\" is not one of its values",
        ),
        (
            "adapter = \"listen-fds\"\nwarm = true",
            "3:8: warm: needs adapter = \"inject\" and mode = \"exclusive\"",
        ),
        (
            "adapter = \"listen-fds\"\nchannel = \"stream\"",
            "3:11: channel: is for services that speak the protocol",
        ),
        (
            "adapter = \"listen-fds\"\nanswer_pause = \"5s\"",
            "3:16: answer_pause: is more than 2s; write answer_pause = \"500ms\"",
        ),
        (
            "adapter = \"listen-fds\"\ndrain = \"nothing\"\nanswer_pause = \"1s\"",
            "4:16: answer_pause: is for programs whose requests are waited for",
        ),
        ("answer_pause = \"1s\"", "2:16: answer_pause: is for programs that do not speak the protocol"),
        (
            "answer_grace = \"2s\"\n[listen]\nmain = \"127.0.0.1:1\"",
            "2:16: answer_grace: is for listeners that take datagrams, and there is none; remove it",
        ),
        (
            "answer_grace = \"2s\"\n[listen]\nmain = \"udp:127.0.0.1:1\"",
            "2:16: answer_grace: in exclusive mode a service that speaks the protocol knows itself",
        ),
        (
            "mode = \"overlap\"\nanswer_grace = \"2m\"\n[listen]\nmain = \"udp:127.0.0.1:1\"",
            "3:16: answer_grace: is more than 1m; write answer_grace = \"5s\"",
        ),
        ("[probe]", "probe.http: required key is missing; write http = \"/health\""),
        ("[listen.a]\nmode = \"0660\"", "listen.a.address: required key is missing"),
        (
            "[listen.a]\naddress = \"unix:/s\"\nmode = \"0888\"",
            "4:8: listen.a.mode: \"0888\" is no mode; write the permission bits in octal, as in mode = \"0660\"",
        ),
        (
            "[listen.a]\naddress = \"*:1\"\ngroup = \"root\"",
            "4:9: listen.a.group: is for unix sockets alone; remove it",
        ),
        ("[listen.a]\naddress = \"unix:/s\"\nmod = \"0660\"", "did you mean \"listen.a.mode\"?"),
        ("[probe]\nhttp = \"/\"", "probe.listener: required key is missing; add a [listen] table"),
        (
            "[probe]\nhttp = \"/\"\nexec = [\"/bin/true\"]",
            "3:8: probe.http: there can be one of http, tcp and exec",
        ),
        ("[update]\nwatch = \"s3\"", "3:9: update.watch: \"s3\" is not the absolute path of a file"),
        ("[update]\nwatch = \"/a/../b\"", "3:9: update.watch: \"/a/../b\" is not the absolute path"),
        ("[update]\nsettle = \"1s\"", "3:10: update.settle: nothing is watched"),
        ("after = [\"A\"]", "2:9: after: \"A\" is no service name"),
        ("after = [\"a\", \"a\"]", "2:9: after: names"),
        ("preflight = [\"true\"]", "2:13: preflight: does not begin with an absolute path"),
        ("preflight_limit = \"1s\"", "2:19: preflight_limit: there is no preflight"),
        (
            "preflight = [\"{binary}\"]\npreflight_limit = \"0s\"",
            "3:19: preflight_limit: must be longer than nothing",
        ),
        ("[hooks]\npre_upgrade = []", "3:15: hooks.pre_upgrade: is an empty command"),
        (
            "[hooks]\npost_comit = [\"/b\"]",
            "3:1: hooks.post_comit: unknown key; did you mean \"hooks.post_commit\"?",
        ),
        (
            "[hooks]\npost_commit = \"/b\"",
            "3:15: hooks.post_commit: expected an array of strings, found a string",
        ),
        (
            "[probe]\ntcp = true\nlistener = \"dns\"\n[listen]\ndns = \"udp:*:53\"",
            "4:12: probe.listener: \"dns\" takes datagrams, and a probe needs a connection; ask it by a command",
        ),
        (
            "[probe]\ntcp = true\n[listen]\ndns = \"udp:*:53\"",
            "probe.listener: required key is missing; ask it by",
        ),
        (
            "adapter = \"listen-fds\"\n[listen]\ndns = \"udp:*:53\"",
            "probe: nothing tells when a program that only takes datagrams is ready; write notify = true",
        ),
        ("[probe]\nexec = [\"true\"]", "3:8: probe.exec: does not begin with an absolute path"),
        ("[probe]\nexec = [\"/bin/true\"]\nstatus = 200", "4:10: probe.status: belongs to a probe over HTTP"),
        (
            "[probe]\nhttp = \"health\"\nlistener = \"s3\"\n[listen]\ns3 = \"*:1\"",
            "3:8: probe.http: \"health\" is not the path",
        ),
        (
            "[probe]\ntcp = true\nlistener = \"web\"\n[listen]\ns3 = \"*:1\"",
            "4:12: probe.listener: there is no listener \"web\"; write one of s3",
        ),
        ("[probation]", "probation.time: required key is missing; write time = \"30s\""),
        ("probation = 30", "2:13: probation: expected a string, found an integer; write a duration"),
        (
            "[probation]\ntime = \"1s\"\nmax_errors = 1",
            "4:14: probation.max_errors: there is nothing that counts errors",
        ),
        (
            "[probation]\ntime = \"1s\"\nerrors = [\"count\"]",
            "4:10: probation.errors: does not begin with an absolute path",
        ),
        ("[probation]\ntime = \"1s\"\nfailure = 1", "4:1: probation.failure: unknown key; did you mean"),
        ("liveness = true", "2:12: liveness: expected a string, found a boolean; write a duration"),
        ("liveness = \"1ms\"", "2:12: liveness: "),
        ("[liveness]\nfailures = 0", "3:12: liveness.failures: "),
        ("[liveness]\ntimeout = \"1s\"", "3:1: liveness.timeout: unknown key"),
        (
            "canary = [\"5% 1s\"]\nlisten.a = \"*:1\"",
            "2:10: canary: in exclusive mode one process serves at a time, so none can have a share; remove it, or write",
        ),
        (
            "mode = \"overlap\"\ncanary = [\"5% 1s\"]\nlisten.a = \"unix:/s\"",
            "3:10: canary: the kernel can share out the connections of TCP listeners only",
        ),
        (
            "mode = \"overlap\"\ncanary = [\"5 1s\"]\nlisten.a = \"*:1\"",
            "3:10: canary: \"5 1s\" has no share in %; write canary = [",
        ),
        ("autostart = \"yes\"", "2:13: autostart: expected a boolean, found a string; write true or false"),
        (
            "adapter = \"inject\"\nnotify = \"yes\"\nlisten.a = \"*:1\"",
            "3:10: notify: \"yes\" is not one of its values; write true or false or \"abstract\"",
        ),
        (
            "adapter = \"inject\"\nnotify = 1\nlisten.a = \"*:1\"",
            "3:10: notify: expected a boolean, found an integer; write true or false or \"abstract\"",
        ),
        ("args = \"--root\"", "2:8: args: expected an array of strings, found a string"),
        ("args = [\"a\", 1]", "2:14: args[1]: expected a string, found an integer; put it in quotes"),
        ("args = [\"a\\u0000\"]", "2:9: args[0]: has a zero byte in it"),
        ("working_dir = \"srv\"", "2:15: working_dir: \"srv\" is not an absolute path"),
        ("env = 1", "2:7: env: expected a table, found an integer; write it as [env]"),
        ("env.A = 1", "2:9: env.A: expected a string, found an integer; put it in quotes"),
        ("env.\"A=B\" = \"\"", "2:5: env.A=B: is no name of a variable"),
        ("listen.s3 = \"127.0.0.1:0\"", "2:13: listen.s3: \"127.0.0.1:0\" asks for port 0"),
        ("listen.s3 = \"9000\"", "2:13: listen.s3: \"9000\" is no listen address; write 127.0.0.1:9000"),
        ("listen.S3 = \"*:1\"", "2:8: listen.S3: 'S' is not allowed in a name"),
        (
            "listen.a = \"*:1\"\nlisten.b = \"0.0.0.0:1\"",
            "3:12: listen.b: 0.0.0.0:1 is already taken by listen.a (*:1)",
        ),
        ("log.files = 1", "2:13: log.files: 1 is out of range; write a whole number from 2 to 100"),
        ("log.files = 0x1_0000_0000", "2:13: log.files: 0x"),
        ("log.max_size = \"10MB\"", "2:16: log.max_size: \"MB\" is no unit of size"),
        ("log.max_size = \"1B\"", "2:16: log.max_size: 1 bytes is less than the 4096"),
        (
            "drain_grace = \"6m\"",
            "2:15: drain_grace: drain_grace (6m) is longer than deadline (5m); the drain is one part of",
        ),
        ("deadline = \"10s\"", "2:12: drain_grace: drain_grace (30s) is longer than deadline (10s)"),
        ("binary = \"/c\"", "2:1: duplicate key; correct the TOML syntax here"),
        ("args = [", "correct the TOML syntax here"),
    ];
    for (line, expected) in table {
        let message = message(line);
        assert!(message.contains(expected), "\n{line}\n  gave {message}\n  not  {expected}");
    }
}

#[test]
fn binary_must_be_named_by_an_absolute_path() {
    assert!(messages("")[0].contains("/c/s3.toml:1:1: binary: required key is missing; write binary = "));
    assert!(messages("binary = \"b\"")[0].contains("1:10: binary: \"b\" is not an absolute path"));
    assert!(messages("binary = 1")[0].contains("1:10: binary: expected a string, found an integer"));
}

#[test]
fn all_mistakes_of_a_file_are_reported_in_its_order() {
    let text = "mode = 1\nbinary = \"b\"\nlease = \"x\"\n[log]\nfile = 3\n";
    let lines: Vec<u32> = parse(text).unwrap_err().iter().map(|error| error.at.unwrap().line).collect();
    assert_eq!(lines, [1, 2, 3, 5]);
}

#[test]
fn a_bad_file_hides_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let services = dir.path().join("services");
    assert!(config::load(dir.path()).services.is_empty(), "no directory, no services");
    std::fs::create_dir(&services).unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(services.join(name), bytes).unwrap();
    write("good.toml", b"binary = \"/b\"\nlisten.a = \"*:7000\"\n");
    write("later.toml", b"binary = \"/b\"\nlisten.a = \"[::]:7000\"\n");
    write("broken.toml", b"binary = ");
    write("latin.toml", b"# caf\xe9\n");
    write("Bad Name.toml", b"binary = \"/b\"\n");
    write(".good.toml.swp", b"");
    write(".hidden.toml", b"");
    write("notes.txt", b"");
    write("huge.toml", &[b'#'; (64 << 10) + 1]);
    std::fs::create_dir(services.join("dir.toml")).unwrap();

    let files = config::service_files(dir.path()).unwrap();
    let others = files.iter().filter(|file| !file.ends_with("good.toml") && config::name_of(file).is_ok());
    let read = others.map(|file| config::read_service(file).map(|it| *it).map_err(|(errors, _)| errors));
    let others = config::judge(read, |_| true);
    let others: Vec<_> = others.services.keys().map(|name| name.as_str()).collect();
    assert_eq!(others, ["later"], "a file that is not read conflicts with none");
    let loaded = config::load(dir.path());
    assert_eq!(loaded.services.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["good"]);
    let errors: Vec<String> = loaded.errors.iter().map(ToString::to_string).collect();
    let about = |file: &str| {
        let found: Vec<_> =
            errors.iter().filter(|error| error.contains(&format!("/services/{file}"))).collect();
        assert!(!found.is_empty(), "nothing about {file} in {errors:#?}");
        found[0].clone()
    };
    assert!(about("latin.toml").contains("latin.toml:1:6: this is not UTF-8; save"));
    assert!(about("Bad Name.toml").contains("'B' is not allowed in a name"));
    assert!(about("huge.toml").contains("larger than 65536 bytes"));
    assert!(about("dir.toml").contains("not a regular file"));
    about("broken.toml");
    let conflict = about("later.toml");
    assert!(
        conflict.contains("later.toml:2:12: listen.a: [::]:7000 is already taken by listen.a (*:7000) of")
    );
    assert!(conflict.contains("good.toml:2:12"));

    assert!(config::load_service(dir.path(), &"later".parse().unwrap()).is_ok(), "alone it is fine");
    let missing = config::load_service(dir.path(), &"absent".parse().unwrap()).unwrap_err();
    assert!(missing[0].to_string().contains("absent.toml: cannot be read: No such file"), "{}", missing[0]);
}

proptest! {
    #[test]
    fn no_text_panics(text in ".*") {
        let _ = parse(&text);
    }

    #[test]
    fn no_edit_of_a_good_file_panics(at in 0..FULL.len(), cut in 0usize..20, insert in r#"[\[\]{}="'a-z0-9\n.#,]{0,5}"#) {
        let mut bytes = FULL.as_bytes().to_vec();
        let end = (at + cut).min(bytes.len());
        bytes.splice(at..end, insert.bytes());
        if let Err(errors) = parse(std::str::from_utf8(&bytes).unwrap()) {
            prop_assert!(!errors.is_empty());
            prop_assert!(errors.iter().all(|error| error.at.is_some()));
        }
    }
}

#[test]
fn the_order_of_upgrades_is_checked_over_all_files() {
    let root = tempfile::tempdir().unwrap();
    let services = root.path().join("services");
    std::fs::create_dir(&services).unwrap();
    let write = |name: &str, after: &str| {
        std::fs::write(
            services.join(format!("{name}.toml")),
            format!("binary = \"/b\"\nafter = [{after}]\n"),
        )
        .unwrap();
    };
    let load = || {
        let loaded = config::load(root.path());
        let names: Vec<String> = loaded.services.keys().map(ToString::to_string).collect();
        (names.join(" "), loaded.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    };
    write("db", "");
    write("web", "\"db\", \"cache\"");
    write("cache", "\"db\"");
    assert_eq!(load(), ("cache db web".to_owned(), String::new()));
    write("cache", "\"dbb\"");
    let (names, errors) = load();
    assert_eq!(names, "db web", "a refused one is still a service that can be named");
    assert!(
        errors.contains("cache.toml:2:9: after: there is no service \"dbb\"; did you mean \"db\"?"),
        "{errors}"
    );
    write("cache", "\"web\"");
    let (names, errors) = load();
    assert_eq!(names, "db");
    assert!(errors.contains("cache would wait for itself: cache after web after cache"), "{errors}");
    assert!(errors.contains("web.toml:2:9: after: web would wait for itself"), "{errors}");
    write("cache", "\"cache\"");
    assert!(load().1.contains("cache would wait for itself: cache after cache"));
}

#[test]
fn time_for_answers() {
    let pause = |keys: &str| {
        let text = format!("binary = \"/b\"\nadapter = \"listen-fds\"\n{keys}");
        parse(&text).unwrap().program.answer_pause_ms
    };
    assert_eq!([pause(""), pause("answer_pause = \"500ms\"")], [None, Some(500)]);
    let grace = |text: &str| parse(&format!("binary = \"/b\"\n{text}")).unwrap().answer_grace_ms;
    let listen = "[listen]\nmain = \"udp:127.0.0.1:1\"\n";
    assert_eq!(grace(listen), None);
    assert_eq!(grace(&format!("mode = \"overlap\"\nanswer_grace = \"2s\"\n{listen}")), Some(2_000));
    assert_eq!(grace(&format!("adapter = \"inject\"\nanswer_grace = \"0s\"\n{listen}")), Some(0));
}
