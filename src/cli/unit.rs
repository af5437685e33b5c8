//! The text of a unit of systemd that runs the daemon.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::config::{Dirs, ListenAddress};

/// The first words of a unit that this program wrote. The hash of the rest follows.
const MARK: &str = "# Written by `handoff install --systemd`; sha256 of the rest: ";

/// What a unit depends on.
#[derive(Debug)]
pub(super) struct Unit<'a> {
    /// This program.
    pub(super) program: &'a Path,
    /// Whether it is a unit of a user's own service manager.
    pub(super) is_of_user: bool,
    /// The user as which the system's service manager runs the daemon, if not root.
    pub(super) user: Option<&'a str>,
    /// The directories, if they are not the default of that user.
    pub(super) dirs: Option<&'a Dirs>,
    /// Whether systemd makes these directories.
    pub(super) has_managed_dirs: bool,
    /// Whether a service listens at a port that only root may bind.
    pub(super) has_low_port: bool,
}

/// The unit with its mark.
pub(super) fn text(unit: &Unit) -> String {
    let body = body(unit);
    format!("{MARK}{}\n{body}", sha256(&body))
}

/// Whether this program wrote the text, and no one changed it since.
pub(super) fn is_own(text: &str) -> bool {
    let marked = text.strip_prefix(MARK).and_then(|rest| rest.split_once('\n'));
    marked.is_some_and(|(hash, body)| hash == sha256(body))
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn body(unit: &Unit) -> String {
    let mut lines = vec!["[Unit]", "Description=handoff supervisor"];
    if !unit.is_of_user {
        lines.push("After=network.target");
    }
    lines.extend(["StartLimitIntervalSec=0", "", "[Service]", "Type=notify", "NotifyAccess=main"]);
    let start = format!("ExecStart={} daemon{}", word(unit.program), options(unit.dirs));
    let user = unit.user.map(|user| format!("User={user}"));
    lines.push(&start);
    lines.extend(user.as_deref());
    if unit.has_managed_dirs {
        // What still runs after a crash of the daemon is found there.
        lines.extend(["RuntimeDirectory=handoff", "RuntimeDirectoryPreserve=yes"]);
        lines.push(if unit.user.is_some() || unit.is_of_user {
            "RuntimeDirectoryMode=0700"
        } else {
            "RuntimeDirectoryMode=0711"
        });
    }
    if unit.user.is_some() && unit.has_managed_dirs {
        lines.extend(["StateDirectory=handoff", "StateDirectoryMode=0700", "ConfigurationDirectory=handoff"]);
    }
    if unit.user.is_some() && unit.has_low_port {
        lines.push("AmbientCapabilities=CAP_NET_BIND_SERVICE");
    }
    lines.extend(["Environment=NO_COLOR=1", "Restart=always", "KillMode=process", "OOMPolicy=continue"]);
    lines.extend(["FileDescriptorStoreMax=4096", "TimeoutStopSec=120", "LimitNOFILE=65536", "", "[Install]"]);
    lines.push(if unit.is_of_user { "WantedBy=default.target" } else { "WantedBy=multi-user.target" });
    lines.join("\n") + "\n"
}

fn options(dirs: Option<&Dirs>) -> String {
    let Some(Dirs { config, state, runtime }) = dirs else { return String::new() };
    let given = [("config", config), ("state", state), ("runtime", runtime)];
    given.iter().map(|(name, path)| format!(" --{name}-dir {}", word(path))).collect()
}

/// A word of a command line, as systemd.service(5) has it.
fn word(path: &Path) -> String {
    let text = path.display().to_string().replace('%', "%%").replace('$', "$$");
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+:@%$,=~".contains(c);
    match text.chars().all(is_plain) {
        true => text,
        false => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
    }
}

/// Whether only root may bind this address, if others may bind the ports from `first` on.
pub(super) fn is_low(address: &ListenAddress, first: u16) -> bool {
    let port = match address {
        ListenAddress::Tcp(address) | ListenAddress::Udp(address) | ListenAddress::Quic(address) => {
            address.port()
        }
        ListenAddress::DualStack { port }
        | ListenAddress::UdpDualStack { port }
        | ListenAddress::QuicDualStack { port } => *port,
        ListenAddress::Unix(_) => return false,
    };
    (1..first).contains(&port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit() -> Unit<'static> {
        Unit {
            program: Path::new("/usr/local/bin/handoff"),
            is_of_user: false,
            user: None,
            dirs: None,
            has_managed_dirs: true,
            has_low_port: true,
        }
    }

    #[test]
    fn a_unit_has_what_its_kind_needs() {
        let root = text(&unit());
        assert!(root.contains("\nExecStart=/usr/local/bin/handoff daemon\n"), "{root}");
        assert!(root.contains("\nRuntimeDirectoryPreserve=yes\nRuntimeDirectoryMode=0711\n"), "{root}");
        assert!(
            !root.contains("AmbientCapabilities") && !root.contains("User="),
            "root may bind all ports: {root}"
        );

        let page = include_str!("../../docs/systemd.md");
        assert!(page.contains(&format!("```ini\n{}```", body(&unit()))), "docs/systemd.md has another unit");

        let own = text(&Unit { is_of_user: true, ..unit() });
        assert!(own.ends_with("\nWantedBy=default.target\n") && !own.contains("network.target"), "{own}");
        assert!(!own.contains("AmbientCapabilities"), "a user's manager has no capability to give: {own}");

        let dirs = Dirs {
            config: "/etc/handoff".into(),
            state: "/var/lib/handoff".into(),
            runtime: "/run/handoff".into(),
        };
        let user = Unit { user: Some("deploy"), dirs: Some(&dirs), ..unit() };
        let with = text(&user);
        let start = "ExecStart=/usr/local/bin/handoff daemon --config-dir /etc/handoff --state-dir /var/lib/handoff --runtime-dir \
                     /run/handoff\nUser=deploy\nRuntimeDirectory=handoff\n";
        assert!(
            with.contains(start) && with.contains("\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n"),
            "{with}"
        );
        let elsewhere = text(&Unit { has_managed_dirs: false, ..user });
        assert!(!elsewhere.contains("Directory="), "{elsewhere}");
        let user = Unit { user: Some("deploy"), dirs: Some(&dirs), ..unit() };
        assert!(!text(&Unit { has_low_port: false, ..user }).contains("AmbientCapabilities"));
    }

    #[test]
    fn a_changed_unit_is_no_more_its_own() {
        let text = text(&unit());
        assert!(is_own(&text));
        for other in
            [text.replace("120", "300"), text.clone() + "#\n", text.replace("sha256", "hash"), String::new()]
        {
            assert!(!is_own(&other), "{other}");
        }
    }

    #[test]
    fn words_are_quoted_for_systemd() {
        for (path, quoted) in [
            ("/opt/a/handoff", "/opt/a/handoff"),
            ("/opt/a b/handoff", "\"/opt/a b/handoff\""),
            ("/opt/100%/$x", "/opt/100%%/$$x"),
            ("/opt/\"a\\b", "\"/opt/\\\"a\\\\b\""),
        ] {
            assert_eq!(word(Path::new(path)), quoted);
        }
    }

    #[test]
    fn low_ports() {
        for (address, is) in [
            ("127.0.0.1:80", true),
            ("*:443", true),
            ("udp:127.0.0.1:53", true),
            ("quic:*:443", true),
            ("127.0.0.1:1024", false),
            ("unix:/run/a.sock", false),
        ] {
            assert_eq!(is_low(&address.parse().unwrap(), 1024), is, "{address}");
        }
    }
}
