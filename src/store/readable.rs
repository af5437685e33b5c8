//! The version of a program, as far as it can be read without running its code.
//!
//! | where | what |
//! |---|---|
//! | the program | its package note (`.note.package`, systemd's package metadata for ELF files) |
//! | a tree | `package.json`, `pyproject.toml` or `PKG-INFO` next to the program, or above it |
//! | the given path, or its link target | `s3-server-2.0.0`, `caddy_2.8.4_linux_amd64.tar.gz`, `/opt/s3/2.0.0/bin/s3` |

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::elf;

/// Maximum size of a file to read for a version.
const READ_MAX_BYTES: u64 = 1 << 20;
/// Maximum length of a name and of a version, in characters.
const TEXT_MAX: usize = 128;
/// How many levels above a program a directory may carry the version: `s3/2.0.0/bin/s3`.
const ABOVE_MAX: usize = 3;

/// The version of the program at `entry` below `files`, copied from `given`. Blocks on the file system.
pub(super) fn version(files: &Path, entry: &Path, given: &Path) -> Option<String> {
    let program = files.join(entry);
    let from_note = || elf::package_note(&program).and_then(|note| named(&serde_json::from_str(&note).ok()?));
    let above = program.ancestors().skip(1).take_while(|directory| directory.starts_with(files));
    let from_tree = || above.into_iter().find_map(of_directory);
    let resolved = given.canonicalize().ok();
    let from_path = || of_path(given).or_else(|| of_path(resolved.as_deref()?));
    from_note().or_else(from_tree).or_else(from_path).map(|version| plain(&version))
}

/// One line for people, without terminal control characters.
fn plain(version: &str) -> String {
    version.chars().filter(|character| !character.is_control()).take(TEXT_MAX).collect()
}

/// The version from the package files in a directory.
fn of_directory(directory: &Path) -> Option<String> {
    let package = || named(&serde_json::from_str(&read(&directory.join("package.json"))?).ok()?);
    let project = || {
        let table: toml::Table = read(&directory.join("pyproject.toml"))?.parse().ok()?;
        let tool = || table.get("tool")?.get("poetry");
        let found = table.get("project").or_else(tool)?;
        joined(found.get("name")?.as_str(), found.get("version")?.as_str())
    };
    let info = || {
        let text = read(&directory.join("PKG-INFO"))?;
        let head = text.split("\n\n").next().unwrap_or_default();
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        joined(field("Name"), field("Version"))
    };
    package().or_else(project).or_else(info)
}

/// Name and version from a JSON object.
fn named(object: &Value) -> Option<String> {
    joined(object.get("name").and_then(Value::as_str), object.get("version").and_then(Value::as_str))
}

fn joined(name: Option<&str>, version: Option<&str>) -> Option<String> {
    let version = version.map(str::trim).filter(|version| !version.is_empty())?;
    Some(match name.map(str::trim).filter(|name| !name.is_empty()) {
        Some(name) => format!("{name} {version}"),
        None => version.to_owned(),
    })
}

fn read(path: &Path) -> Option<String> {
    // A copy contains only directories, files and links; a link target may be anything.
    let is_file = path.symlink_metadata().is_ok_and(|found| found.is_file());
    let file = is_file.then(|| File::open(path).ok()).flatten()?;
    let mut text = String::new();
    file.take(READ_MAX_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The version from the name of the file, or of a directory above it that is named after the program or by a version
/// alone.
fn of_path(path: &Path) -> Option<String> {
    let mut names = path.ancestors().filter_map(|at| at.file_name()?.to_str());
    let own = names.next()?;
    if let Some((name, version)) = split(own) {
        return joined(Some(name), Some(version));
    }
    let above = names
        .take(ABOVE_MAX)
        .filter_map(split)
        .find(|(name, version)| version.contains('.') && (name.is_empty() || own.starts_with(name)));
    above.and_then(|(_, version)| joined(Some(own), Some(version)))
}

/// Splits a name into the part before the version and the version: a number after a `-`, a `_` or a `v`, up to the end
/// of the name or a platform.
fn split(name: &str) -> Option<(&str, &str)> {
    let name = [".tar.gz", ".tar.xz", ".tgz", ".txz", ".zip"]
        .iter()
        .find_map(|ending| name.strip_suffix(ending))
        .unwrap_or(name);
    // The one platform whose name ends like a version.
    let name = ["x86_64", "x86-64"]
        .iter()
        .find_map(|platform| name.strip_suffix(platform))
        .map_or(name, |before| before.trim_end_matches(['-', '_']));
    let starts = name.char_indices().filter(|(at, character)| {
        let before = name[..*at].trim_end_matches('v');
        character.is_ascii_digit() && (before.is_empty() || before.ends_with(['-', '_', '@']))
    });
    starts.map(|(at, _)| at).find_map(|at| {
        let version = until_platform(&name[at..]);
        // A plain number may belong to another name, unless it is at the end.
        let counts = version.split(['-', '+']).next().is_some_and(|number| number.contains('.'))
            || at + version.len() == name.len() && version.bytes().all(|byte| byte.is_ascii_digit());
        let before = name[..at].trim_end_matches('v').trim_end_matches(['-', '_', '@']);
        counts.then_some((before, version))
    })
}

/// Cuts a version at the platform: `2.8.4` of `2.8.4_linux_amd64`; `1.0.0-rc.1` stays whole.
fn until_platform(text: &str) -> &str {
    const PARTS: [&str; 6] = ["rc", "alpha", "beta", "pre", "dev", "post"];
    let mut end = text.find(['-', '_']).unwrap_or(text.len());
    while let Some(rest) = text[end..].strip_prefix('-') {
        let word = &rest[..rest.find(['-', '_']).unwrap_or(rest.len())];
        if !word.starts_with(|first: char| first.is_ascii_digit())
            && !PARTS.iter().any(|part| word.starts_with(part))
        {
            break;
        }
        end += 1 + word.len();
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};
    use std::process::Command;

    fn path(text: &str) -> Option<String> {
        of_path(Path::new(text))
    }

    #[test]
    fn the_name_of_a_file_or_of_a_directory_above_it_tells() {
        for (given, version) in [
            ("/tmp/s3-server-2.0.0", "s3-server 2.0.0"),
            ("/srv/caddy_2.8.4_linux_amd64.tar.gz", "caddy 2.8.4"),
            ("/srv/node-v22.11.0-linux-x64.tar.xz", "node 22.11.0"),
            ("/srv/s3-1.0.0-rc.1", "s3 1.0.0-rc.1"),
            ("/srv/s3-1.0.0-rc.1-x86_64.zip", "s3 1.0.0-rc.1"),
            ("/srv/s3_v3", "s3 3"),
            ("/srv/testee-2", "testee 2"),
            ("/opt/s3/2.0.0/bin/s3", "s3 2.0.0"),
            ("/opt/s3/v2.1/s3", "s3 2.1"),
            ("/opt/s3-2.0.0/bin/s3", "s3 2.0.0"),
            ("/opt/2.0.0", "2.0.0"),
        ] {
            assert_eq!(path(given).as_deref(), Some(version), "{given}");
        }
        for none in [
            "/srv/s3",
            "/usr/bin/python3",
            "/home/user-2/s3",
            "/opt/python-3.12/bin/gunicorn",
            "/",
            "/srv/x86_64",
        ] {
            assert_eq!(path(none), None, "{none}");
        }
    }

    #[test]
    fn the_files_of_a_package_tell() {
        for (file, text) in [
            ("package.json", "{\"name\": \"shop\", \"version\": \"1.2.3\"}"),
            ("pyproject.toml", "[project]\nname = \"shop\"\nversion = \"1.2.3\"\n"),
            ("pyproject.toml", "[tool.poetry]\nname = \"shop\"\nversion = \"1.2.3\"\n"),
            ("PKG-INFO", "Metadata-Version: 2.1\nName: shop\nVersion: 1.2.3\n\nVersion: 9\n"),
        ] {
            let files = tempfile::tempdir().unwrap();
            create_dir_all(files.path().join("bin")).unwrap();
            write(files.path().join("bin/shop"), "#!/bin/sh\n").unwrap();
            write(files.path().join(file), text).unwrap();
            let found = version(files.path(), Path::new("bin/shop"), Path::new("/srv/shop-9.9.9"));
            assert_eq!(found.as_deref(), Some("shop 1.2.3"), "{file}");
        }
        let files = tempfile::tempdir().unwrap();
        write(files.path().join("package.json"), "{\"version\": \"1\\u001b[1m\", ").unwrap();
        assert_eq!(version(files.path(), Path::new("shop"), Path::new("/srv/shop")), None);
        write(files.path().join("package.json"), "{\"version\": \"1\\u001b[1m\"}").unwrap();
        let found = version(files.path(), Path::new("shop"), Path::new("/srv/shop"));
        assert_eq!(found.as_deref(), Some("1[1m"));
    }

    #[test]
    fn the_note_of_a_package_tells() {
        let files = tempfile::tempdir().unwrap();
        let source = files.path().join("shop.c");
        let text = "__asm__(\".pushsection .note.package, \\\"a\\\", %note\\n.balign 4\\n.long 4, 2f - 1f, 0xcafe1a7e\\n\"\n\
                    \".asciz \\\"FDO\\\"\\n1: .asciz \\\"{\\\\\\\"name\\\\\\\":\\\\\\\"shop\\\\\\\",\\\\\\\"version\\\\\\\":\\\\\\\"1.2-3\\\\\\\"}\\\"\\n\"\n\
                    \"2: .balign 4\\n.popsection\\n\");\nint main(void) { return 0; }\n";
        write(&source, text).unwrap();
        let built =
            Command::new("gcc").arg(&source).arg("-o").arg(files.path().join("shop")).status().unwrap();
        assert!(built.success());
        let found = version(files.path(), Path::new("shop"), Path::new("/srv/shop-9.9.9"));
        assert_eq!(found.as_deref(), Some("shop 1.2-3"));
    }
}
