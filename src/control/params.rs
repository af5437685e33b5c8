//! Reads the parameters of a request.

use std::path::PathBuf;

use handoff_protocol::ids::ServiceName;
use serde_json::{Map, Value};

use super::api::{Kill, Upgrade};
use super::error::{Error, Kind};
use super::registration::Register;
use super::reload::Reload;
use super::versions::{Claims, Install, Pin, Rollback};
use crate::config::{format_duration_ms, nearest};
use crate::store::Evidence;

const PATH_HINT: &str = "It is an absolute path, a string.";
const SERVICE_HINT: &str = "It is the name of a service, a string.";

/// Parameters by name. Each is removed when it is read, so the rest is unknown.
pub(super) struct Params(Map<String, Value>);

impl Params {
    pub(super) fn new(params: Option<Value>) -> Result<Params, Error> {
        match params {
            None | Some(Value::Null) => Ok(Params(Map::new())),
            Some(Value::Object(map)) => Ok(Params(map)),
            Some(_) => Err(invalid("The parameters are not an object.".into(), "Give them by name.")),
        }
    }

    pub(super) fn service(&mut self) -> Result<ServiceName, Error> {
        self.optional_service()?.ok_or_else(|| missing("service", SERVICE_HINT))
    }

    pub(super) fn optional_service(&mut self) -> Result<Option<ServiceName>, Error> {
        let name = match self.0.remove("service") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(name)) => name,
            Some(other) => {
                return Err(invalid(format!("The parameter \"service\" is {other}."), SERVICE_HINT));
            }
        };
        name.parse().map(Some).map_err(|error| {
            invalid(format!("The parameter \"service\" is {name:?}: {error}."), SERVICE_HINT)
        })
    }

    pub(super) fn upgrade(&mut self) -> Result<Upgrade, Error> {
        let upgrade = Upgrade {
            service: self.service()?,
            binary: self.path("binary")?,
            deadline_ms: self.milliseconds("deadline_ms")?,
            drain_grace_ms: self.milliseconds("drain_grace_ms")?,
            claims: self.claims()?,
        };
        if let (Some(grace), Some(deadline)) = (upgrade.drain_grace_ms, upgrade.deadline_ms)
            && grace > deadline
        {
            let (grace, deadline) = (format_duration_ms(grace), format_duration_ms(deadline));
            let message = format!("drain_grace_ms ({grace}) is longer than deadline_ms ({deadline}).");
            return Err(invalid(
                message,
                "The drain is one part of the upgrade: shorten it or raise the deadline.",
            ));
        }
        Ok(upgrade)
    }

    pub(super) fn install(&mut self) -> Result<Install, Error> {
        let path = self.path("path")?.ok_or_else(|| missing("path", PATH_HINT))?;
        let (service, claims) = (self.service()?, self.claims()?);
        Ok(Install { service, path, claims, version: self.text("version")? })
    }

    pub(super) fn register(&mut self) -> Result<Register, Error> {
        let text = self.text("text")?.ok_or_else(|| missing("text", "It is the text of a service file."))?;
        Ok(Register { service: self.service()?, text, ephemeral: self.flag("ephemeral")?.unwrap_or(false) })
    }

    pub(super) fn reload(&mut self) -> Result<Reload, Error> {
        Ok(Reload {
            dry_run: self.flag("dry_run")?.unwrap_or(false),
            allow_stop: self.flag("allow_stop")?.unwrap_or(false),
        })
    }

    pub(super) fn rollback(&mut self) -> Result<Rollback, Error> {
        let generation = self.whole_number("generation", "It is the number of a generation.")?;
        Ok(Rollback { service: self.service()?, generation })
    }

    pub(super) fn pin(&mut self) -> Result<Pin, Error> {
        let hint = "It is the beginning of a hash, or a version, a string.";
        let version = self.text("version")?.ok_or_else(|| missing("version", hint))?;
        Ok(Pin { service: self.service()?, version, pinned: self.flag("pinned")?.unwrap_or(true) })
    }

    pub(super) fn kill(&mut self) -> Result<Kill, Error> {
        Ok(Kill { service: self.service()?, signal: self.text("signal")? })
    }

    /// The services of a subscription; none stands for all.
    pub(super) fn services(&mut self) -> Result<Vec<ServiceName>, Error> {
        let hint = "It is an array of names of services; without it, all are meant.";
        let wrong = |value: &Value| invalid(format!("The parameter \"services\" is {value}."), hint);
        let list = match self.0.remove("services") {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(list)) if !list.is_empty() => list,
            Some(other) => return Err(wrong(&other)),
        };
        let name =
            |value: &Value| value.as_str().and_then(|name| name.parse().ok()).ok_or_else(|| wrong(value));
        list.iter().map(name).collect()
    }

    pub(super) fn subscription(&mut self) -> Result<u64, Error> {
        let hint = "It is the number that `subscribe` has returned.";
        self.whole_number("subscription", hint)?.ok_or_else(|| missing("subscription", hint))
    }

    fn claims(&mut self) -> Result<Claims, Error> {
        let sha256 = self.text("sha256")?.map(|text| text.parse());
        let sha256 = sha256.transpose().map_err(|cause: String| {
            invalid(format!("The parameter \"sha256\" is wrong: {cause}."), "It is as `sha256sum` prints it.")
        })?;
        let (sha256sums, minisig) = (self.path("sha256sums")?, self.path("minisig")?);
        let evidence = Evidence { sha256, sha256sums, minisig };
        Ok(Claims { evidence, member: self.text("member")?, tree: self.flag("tree")? })
    }

    fn path(&mut self, name: &str) -> Result<Option<PathBuf>, Error> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(path)) if path.starts_with('/') && !path.contains('\0') => {
                Ok(Some(path.into()))
            }
            Some(other) => Err(invalid(format!("The parameter {name:?} is {other}."), PATH_HINT)),
        }
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, Error> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if !text.contains('\0') && !text.is_empty() => Ok(Some(text)),
            Some(other) => Err(invalid(format!("The parameter {name:?} is {other}."), "It is a string.")),
        }
    }

    fn flag(&mut self, name: &str) -> Result<Option<bool>, Error> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => {
                Err(invalid(format!("The parameter {name:?} is {other}."), "It is true or false."))
            }
        }
    }

    fn milliseconds(&mut self, name: &str) -> Result<Option<u64>, Error> {
        self.whole_number(name, "It is a whole number of milliseconds.")
    }

    pub(super) fn whole_number(&mut self, name: &str, hint: &str) -> Result<Option<u64>, Error> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) => Ok(Some(number)),
                None => Err(invalid(format!("The parameter {name:?} is {value}."), hint)),
            },
        }
    }

    pub(super) fn finish(self, method: &str) -> Result<(), Error> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(unknown) => Err(invalid(
                format!("The method {method:?} has no parameter {unknown:?}."),
                "Remove it; a misspelt parameter must not be ignored.",
            )),
        }
    }
}

/// There is no such method.
pub(super) fn unknown_method(method: &str, known: &[&str]) -> Error {
    let hint = match nearest(method, known.iter().copied()) {
        Some(near) => format!("Did you mean {near:?}?"),
        None => format!("The methods are {}.", known.join(", ")),
    };
    Error::new(Kind::UnknownMethod, format!("There is no method {method:?}."), hint)
}

fn invalid(message: String, hint: &str) -> Error {
    Error::new(Kind::InvalidParams, message, hint)
}

fn missing(name: &str, hint: &str) -> Error {
    invalid(format!("The parameter {name:?} is missing."), hint)
}
