//! Mistakes in the keys of the process.

use std::path::Path;

use handoff::config::{Inherit, Service};

fn parse(line: &str) -> Result<Service, String> {
    let text = format!("binary = \"/b\"\n{line}\n");
    Service::parse("s3".parse().unwrap(), Path::new("/c/s3.toml"), &text)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

#[test]
fn each_mistake_has_its_place_and_a_remedy() {
    for (line, told) in [
        ("env_file = \"web.env\"", "2:12: env_file: \"web.env\" is not an absolute path"),
        ("env_file = [\"/a\", \"-b\"]", "2:19: env_file: \"b\" is not an absolute path"),
        ("env_file = 1", "2:12: env_file: expected a string"),
        ("env_inherit = \"PATH\"", "write true, false or a list of names"),
        ("env_inherit = [\"NOTIFY_SOCKET\"]", "2:16: env_inherit: NOTIFY_SOCKET is for the daemon alone"),
        ("[credentials]\ntoken = \"geheim\"", "3:9: credentials.token: is not an absolute path"),
        ("[credentials]\n\"a/b\" = \"/a\"", "3:1: credentials.a/b: is no name of a credential"),
        ("user = 33", "2:8: user: expected a string, found an integer; write a name, or a number in quotes"),
        ("umask = \"0999\"", "2:9: umask: \"0999\" is no umask"),
        ("nice = 20", "2:8: nice: 20 is out of range; write a whole number from -20 to 19"),
        ("[limits]\nnofiles = 1", "3:1: limits.nofiles: unknown key; did you mean \"limits.nofile\"?"),
        ("[limits]\nnofile = \"2:1\"", "3:10: limits.nofile: the soft limit is above the hard one"),
        ("[limits]\nnofile = \"many\"", "3:10: limits.nofile: \"many\" is no limit"),
        ("[limits]\nnofile = -1", "3:10: limits.nofile: is out of range"),
        ("[capabilities]\nambient = [\"net_bind\"]", "did you mean \"net_bind_service\"?"),
        (
            "[capabilities]\nambient = [\"kill\"]\nbounding = []",
            "3:11: capabilities.ambient: has a capability",
        ),
        ("LimitNOFILE = 1", "LimitNOFILE: unknown key; did you mean \"limits\"?"),
    ] {
        let found = parse(line).expect_err(line);
        assert!(found.contains(told) && !found.contains("geheim"), "{line}: {found}");
    }
}

#[test]
fn values_are_read_as_they_are_meant() {
    let limits = parse("[limits]\nnofile = 7\ncore = \"unlimited\"\nmemlock = \"1MiB:2MiB\"").unwrap();
    let limits = limits.process.attributes.limits;
    let found: Vec<_> = limits.iter().map(|limit| (limit.name.as_str(), limit.soft, limit.hard)).collect();
    assert!(found.contains(&("nofile", 7, 7)) && found.contains(&("memlock", 1 << 20, 2 << 20)), "{found:?}");
    assert!(found.contains(&("core", u64::MAX, u64::MAX)), "{found:?}");
    let capabilities = parse("[capabilities]\nambient = [\"CAP_KILL\"]").unwrap().process.attributes;
    assert_eq!((capabilities.ambient, capabilities.bounding), (1 << 5, None));
    assert_eq!(parse("").unwrap().env_inherit, Inherit::Usual);
    assert!(parse("").unwrap().process.is_empty());
    let file = parse("env_file = \"-/a\"").unwrap().env_files;
    assert!(file.len() == 1 && file[0].is_optional && file[0].path == Path::new("/a"));
}
