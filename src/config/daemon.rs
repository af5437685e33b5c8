//! The settings of the daemon: `<config>/handoff.toml`, which need not exist.

use std::io;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::error::{Error, Position, Report};
use super::listen::Owner;
use super::load::read_text;
use super::table::Section;

const FILE: &str = "handoff.toml";
const KEYS: &[&str] = &["group", "read_group"];
const EXAMPLE: &str = "group = \"deploy\"";

/// The settings of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DaemonSettings {
    file: PathBuf,
    /// Whose members may operate services.
    group: Option<NamedGroup>,
    /// Whose members may look at services.
    read_group: Option<NamedGroup>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct NamedGroup {
    name: String,
    at: Position,
}

impl DaemonSettings {
    /// Reads the file, if there is one. Blocks on the file system.
    pub fn read(config_dir: &Path) -> Result<DaemonSettings, Vec<Error>> {
        let file = config_dir.join(FILE);
        match file.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(DaemonSettings::default()),
            _ => DaemonSettings::parse(&file, &read_text(&file).map_err(|error| vec![error])?),
        }
    }

    /// Parses the text of the file; `file` is only for messages. On failure it returns all mistakes.
    pub fn parse(file: &Path, text: &str) -> Result<DaemonSettings, Vec<Error>> {
        let mut report = Report::new(file, text);
        let (document, syntax_errors) = DeTable::parse_recoverable(text);
        for error in &syntax_errors {
            let span = error.span().unwrap_or(text.len()..text.len());
            report.add(span, None, error.message(), "correct the TOML syntax here");
        }
        let mut settings = DaemonSettings { file: file.to_owned(), ..DaemonSettings::default() };
        if report.is_clean() {
            let root = Section::root(document.get_ref(), 0..0);
            root.refuse_unknown(&mut report, &["daemon"]);
            if let Some(section) = root.section(&mut report, "daemon", "daemon.") {
                section.refuse_unknown(&mut report, KEYS);
                settings.group = group(&mut report, &section, "group");
                settings.read_group = group(&mut report, &section, "read_group");
            }
        }
        if report.is_clean() { Ok(settings) } else { Err(report.into_errors()) }
    }

    /// The ids of `group` and `read_group`. Reads `/etc/group`.
    pub fn groups(&self) -> Result<(Option<u32>, Option<u32>), Error> {
        let id = |key: &str, group: &Option<NamedGroup>| {
            let Some(NamedGroup { name, at }) = group else { return Ok(None) };
            let owner = Owner { user: None, group: Some(name.clone()) };
            owner.ids().map(|(_, group)| group).map_err(|error| Error {
                file: self.file.clone(),
                at: Some(*at),
                key: Some(format!("daemon.{key}")),
                cause: error.to_string(),
                hint: error.hint().to_owned(),
            })
        };
        Ok((id("group", &self.group)?, id("read_group", &self.read_group)?))
    }
}

fn group(report: &mut Report, section: &Section, key: &'static str) -> Option<NamedGroup> {
    let found = section.string(report, key, EXAMPLE)?;
    let at = report.position(found.span.start);
    if found.value.is_empty() {
        return section.wrong(report, key, found.span, "it is empty", EXAMPLE);
    }
    Some(NamedGroup { name: found.value.to_owned(), at })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DaemonSettings, Vec<String>> {
        let parsed = DaemonSettings::parse(Path::new("handoff.toml"), text);
        parsed.map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn settings_have_groups_and_mistakes_have_places() {
        let both = parse("[daemon]\ngroup = \"root\"\nread_group = \"12345\"\n").unwrap();
        assert_eq!(both.groups().unwrap(), (Some(0), Some(12345)));
        assert_eq!(parse("").unwrap().groups().unwrap(), (None, None));
        let unknown = parse("[daemon]\ngroup = \"no-such-group-here\"\n").unwrap().groups().unwrap_err();
        assert!(
            unknown.to_string().starts_with("handoff.toml:2:9: daemon.group: /etc/group has no group"),
            "{unknown}"
        );
        for (text, expected) in [
            (
                "[daemon]\ngruop = \"a\"\n",
                "handoff.toml:2:1: daemon.gruop: unknown key; did you mean \"daemon.group\"?",
            ),
            ("[deamon]\n", "did you mean \"daemon\"?"),
            ("[daemon]\ngroup = 7\n", "handoff.toml:2:9: daemon.group"),
            ("[daemon]\ngroup = \"\"\n", "handoff.toml:2:9: daemon.group: it is empty"),
            ("[daemon\n", "correct the TOML syntax here"),
        ] {
            let errors = parse(text).unwrap_err().join("\n");
            assert!(errors.contains(expected), "{text}: {errors}");
        }
    }
}
