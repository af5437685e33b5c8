//! Placeholders in `args` and `[env]`: the address of a listener, so that a service file has it once.
//!
//! A placeholder has the form `{word.word}`, with at least one dot and nothing but `a-z`, `0-9`, `-` and `_` in its
//! words. Any other brace is an ordinary character, so JSON, shell variables and most templates need no escapes.
//! `{{word.word}}` stands for the text `{word.word}`.

use super::address::ListenAddress;
use super::listen::Listener;
use super::names::nearest;

const LISTEN: &str = "listen";
const ADDRESS: &str = "address";
const HOST: &str = "host";
const PORT: &str = "port";
const PATH: &str = "path";

/// Why a text cannot be filled in: the cause and what to do about it, a clause each.
pub(super) type Refusal = (String, String);

/// The text with its placeholders replaced.
pub(super) fn fill(text: &str, listeners: &[Listener]) -> Result<String, Refusal> {
    let (mut filled, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(brace) = rest.find('{') {
        let (before, from) = rest.split_at(brace);
        filled.push_str(before);
        let after = match (escaped(from), placeholder(from)) {
            (Some(literal), _) => {
                filled.push_str(literal);
                // The braces around it.
                literal.len() + 2
            }
            (None, Some(name)) => {
                filled.push_str(&value(name, listeners)?);
                name.len() + 2
            }
            (None, None) => {
                filled.push('{');
                1
            }
        };
        rest = &from[after..];
    }
    filled.push_str(rest);
    Ok(filled)
}

/// The name of the placeholder at the start of `text`.
fn placeholder(text: &str) -> Option<&str> {
    let (name, _) = text.strip_prefix('{')?.split_once('}')?;
    let is_word = |word: &str| {
        let mut bytes = word.bytes();
        bytes.next().is_some_and(|first| first.is_ascii_lowercase() || first.is_ascii_digit())
            && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte))
    };
    (name.contains('.') && name.split('.').all(is_word)).then_some(name)
}

/// The literal text `{name}` for `{{name}}` at the start of `text`.
fn escaped(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('{')?;
    let length = placeholder(inner)?.len() + 2;
    inner[length..].starts_with('}').then(|| &inner[..length])
}

fn value(name: &str, listeners: &[Listener]) -> Result<String, Refusal> {
    let literal = format!("write {{{{{name}}}}} if the program is to get {{{name}}} as it is");
    let (listener, field) = match name.split('.').collect::<Vec<_>>()[..] {
        [LISTEN, listener, field] => (listener, field),
        [first, listener, field] if nearest(first, [LISTEN]).is_some() => {
            let hint = format!("did you mean {{{LISTEN}.{listener}.{field}}}? Otherwise {literal}");
            return Err((format!("{{{name}}} is an unknown placeholder"), hint));
        }
        _ => {
            let hint = format!("the form is {{{LISTEN}.NAME.{PORT}}}; {literal}");
            return Err((format!("{{{name}}} is an unknown placeholder"), hint));
        }
    };
    let Some(found) = listeners.iter().find(|found| found.name.as_str() == listener) else {
        return Err((
            format!("{{{name}}}: there is no listener {listener:?}"),
            suggestion(listener, listeners),
        ));
    };
    field_of(&found.address, field).map_err(|(cause, hint)| (format!("{{{name}}}: {cause}"), hint))
}

fn suggestion(wanted: &str, listeners: &[Listener]) -> String {
    let names: Vec<&str> = listeners.iter().map(|listener| listener.name.as_str()).collect();
    match (nearest(wanted, names.iter().copied()), names.is_empty()) {
        (Some(near), _) => format!("did you mean {near:?}?"),
        (None, true) => format!("add it to a table [{LISTEN}]"),
        (None, false) => format!("the listeners are {}", names.join(", ")),
    }
}

fn field_of(address: &ListenAddress, field: &str) -> Result<String, Refusal> {
    let (fields, found) = match (address, address.ip()) {
        (ListenAddress::Unix(path), _) => {
            let path = path.display().to_string();
            (vec![ADDRESS, PATH], [ADDRESS, PATH].contains(&field).then_some(path))
        }
        (_, Some((ip, _))) => {
            let found = match field {
                ADDRESS => Some(ip.to_string()),
                HOST => Some(ip.ip().to_string()),
                PORT => Some(ip.port().to_string()),
                _ => None,
            };
            (vec![ADDRESS, HOST, PORT], found)
        }
        (_, None) => (Vec::new(), None),
    };
    found.ok_or_else(|| {
        let hint = match nearest(field, fields.iter().copied()) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("a listener with this address has {}", fields.join(", ")),
        };
        (format!("the address {address} has no {field:?}"), hint)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::error::Position;
    use crate::config::listen::Owner;

    fn listeners() -> Vec<Listener> {
        let listener = |name: &str, address: &str| Listener {
            name: name.parse().unwrap(),
            address: address.parse().unwrap(),
            mode: None,
            owner: Owner::default(),
            at: Position { line: 1, column: 1 },
        };
        vec![
            listener("http", "127.0.0.1:9000"),
            listener("v6", "[::1]:9001"),
            listener("any", "*:9002"),
            listener("q", "quic:*:443"),
            listener("admin", "unix:/run/s3.sock"),
        ]
    }

    #[test]
    fn the_parts_of_an_address() {
        for (text, filled) in [
            ("{listen.http.address}", "127.0.0.1:9000"),
            ("--port={listen.http.port}", "--port=9000"),
            ("{listen.http.host}|{listen.v6.host}|{listen.v6.address}", "127.0.0.1|::1|[::1]:9001"),
            ("{listen.any.address} {listen.any.host} {listen.q.port}", "[::]:9002 :: 443"),
            ("{listen.admin.path} {listen.admin.address}", "/run/s3.sock /run/s3.sock"),
        ] {
            assert_eq!(fill(text, &listeners()).as_deref(), Ok(filled), "{text}");
        }
    }

    #[test]
    fn other_braces_are_literal() {
        for text in [
            "",
            "{",
            "}{",
            "{}",
            "{release}",
            "{binary}",
            r#"{"listen":{"port":9000},"a.b":{}}"#,
            "${HOME}/x ${a.B}",
            "{{.Name}} {{ user.name }} {% x %}",
            "{a..b}{.a.b}{a.b.}{a.b c}{A.b}",
            "{listen.http",
            "ä{ö.ü}",
        ] {
            assert_eq!(fill(text, &listeners()).as_deref(), Ok(text), "{text}");
        }
        for (text, filled) in [
            ("{{listen.http.port}}", "{listen.http.port}"),
            ("{{no.such}}{listen.http.port}", "{no.such}9000"),
            ("{{{no.such}}}", "{{no.such}}"),
            (r#"{"port":{listen.http.port}}"#, r#"{"port":9000}"#),
        ] {
            assert_eq!(fill(text, &listeners()).as_deref(), Ok(filled), "{text}");
        }
    }

    #[test]
    fn an_unknown_placeholder_is_refused_with_the_right_one() {
        for (text, cause, hint) in [
            ("{listn.http.port}", "{listn.http.port} is an unknown", "did you mean {listen.http.port}?"),
            ("{user.name}", "{user.name} is an unknown", "write {{user.name}} if"),
            ("{listen.http}", "{listen.http} is an unknown", "the form is {listen.NAME.port}"),
            ("{listen.htp.port}", "there is no listener \"htp\"", "did you mean \"http\"?"),
            ("{listen.zzzzz.port}", "there is no listener \"zzzzz\"", "the listeners are http, v6"),
            ("{listen.http.prot}", "has no \"prot\"", "did you mean \"port\"?"),
            ("{listen.admin.port}", "unix:/run/s3.sock has no \"port\"", "has address, path"),
        ] {
            let (told, remedy) = fill(text, &listeners()).unwrap_err();
            assert!(told.contains(cause) && remedy.contains(hint), "{text}: {told}; {remedy}");
        }
        assert!(fill("{listen.a.port}", &[]).unwrap_err().1.contains("add it to a table [listen]"));
    }
}
