//! `handoff rollback`.

use handoff_protocol::ids::ServiceName;

use super::exit::{Exit, Failure};
use super::output::Output;
use super::{Json, names, operation, versions};
use crate::config::Dirs;
use crate::control::api::{Request, Rollback, VersionStatus};
use crate::control::{Error, Kind};

const EXAMPLES: &str = "\
Examples:
  handoff rollback s3          to the version that ran before
  handoff rollback s3 7        to the version of generation 7
  handoff rollback s3 1.2.0    to this version

It upgrades to an older version: nothing is dropped, and if the older version
fails, the current one still serves, and the exit code is 4. `handoff
versions` shows which generations are kept; for any other the exit code is 1.";

/// Go back to a version that ran before, without dropping a connection
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The service
    #[arg(value_parser = names::service)]
    service: ServiceName,
    /// Its generation, its version, or 4 or more digits of its hash [default: the last other version]
    #[arg(value_name = "GENERATION|VERSION", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    target: Option<String>,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let service = arguments.service.clone();
    let generation = match arguments.target.as_deref() {
        None => None,
        Some(target) => Some(match super::whole_number(target, 0) {
            Ok(generation) => generation,
            Err(_) => {
                let kept = versions::fetch_versions(&Request::Versions(service.clone()), dirs)?;
                generation_of(&service, target, &kept)?
            }
        }),
    };
    operation::run(&Request::Rollback(Rollback { service, generation }), dirs, out)
}

/// A hash needs this many digits.
const HASH_DIGITS_MIN: usize = 4;

/// The last generation of the one version that is meant. A version is named as for `handoff pin`.
fn generation_of(service: &ServiceName, target: &str, kept: &[VersionStatus]) -> Result<u64, Failure> {
    let unknown = |cause: String| -> Failure {
        let message = format!("Service {:?} cannot go back: {cause}.", service.as_str());
        let hint = format!("The versions that are kept: handoff versions {service}");
        Error::new(Kind::UnknownVersion, message, hint).into()
    };
    let hash = target.to_ascii_lowercase();
    let is_hash = hash.len() >= HASH_DIGITS_MIN && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    let whole = |it: &&VersionStatus| {
        it.version.as_deref() == Some(target) || (is_hash && it.sha256.starts_with(&hash))
    };
    let ends = |it: &&VersionStatus| {
        let before = it.version.as_deref().and_then(|version| version.strip_suffix(target));
        before.is_some_and(|before| before.ends_with(' '))
    };
    let mut found: Vec<&VersionStatus> = kept.iter().filter(whole).collect();
    if found.is_empty() {
        found = kept.iter().filter(ends).collect();
    }
    match found[..] {
        [] => Err(unknown(format!("no version {target:?} is kept"))),
        [one] => match one.generations.last() {
            Some(generation) => Ok(*generation),
            None => Err(unknown(format!("the version {target:?} never ran"))),
        },
        [..] => Err(unknown(format!("{target:?} is more than one version; name a generation or a hash"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::VersionKind;

    fn version(name: &str, sha256: &str, generations: &[u64]) -> VersionStatus {
        VersionStatus {
            service: "s3".parse().unwrap(),
            sha256: sha256.repeat(32),
            version: Some(name.to_owned()),
            kind: VersionKind::File,
            binary: None,
            stored: "/s".into(),
            size_bytes: 1,
            added_at: 1,
            generations: generations.to_vec(),
            undone: false,
            current: false,
            pinned: false,
        }
    }

    #[test]
    fn a_version_is_found_by_its_name_the_end_of_that_or_its_hash() {
        let kept =
            [version("web 1.2.0", "ab", &[1, 4]), version("web 2.0.0", "cd", &[5]), version("x", "ee", &[])];
        let service = "s3".parse().unwrap();
        let of = |target: &str| generation_of(&service, target, &kept).map_err(|error| error.to_string());
        for (target, generation) in [("1.2.0", 4), ("web 1.2.0", 4), ("ABAB", 4), ("2.0.0", 5)] {
            assert_eq!(of(target), Ok(generation), "{target}");
        }
        for (target, cause) in [("2.0", "no version \"2.0\" is kept"), ("aba", "is kept"), ("x", "never ran")]
        {
            assert!(of(target).unwrap_err().contains(cause), "{target}: {:?}", of(target));
        }
        let twice = [version("a 1", "ab", &[1]), version("b 1", "cd", &[2])];
        assert!(generation_of(&service, "1", &twice).unwrap_err().to_string().contains("more than one"));
    }
}
