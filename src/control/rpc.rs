//! JSON-RPC 2.0 envelopes, one per line.

use serde_json::{Map, Value, json};

use super::api::{Notice, Progress, Request, Response};
use super::error::{Error, Kind};

/// Maximum length of a request line for the daemon, including the newline. Answers have no limit.
pub const LINE_MAX_BYTES: usize = 64 << 10;

/// A request, and the id for its answer. The id is null if none could be read.
pub struct Incoming {
    pub id: Value,
    pub request: Result<Request, Error>,
}

/// Reads one line. Never fails: an error is part of the answer.
pub fn parse_request(line: &[u8]) -> Incoming {
    let nobody = |error| Incoming { id: Value::Null, request: Err(error) };
    let value: Value = match serde_json::from_slice(line) {
        Ok(value) => value,
        Err(error) => {
            let message = format!("The line is not JSON: {error}.");
            return nobody(Error::new(Kind::ParseError, message, "Send one JSON object per line."));
        }
    };
    let Value::Object(mut envelope) = value else {
        return nobody(invalid(
            "The line is JSON, but not an object.",
            "Send one request per line, no batches.",
        ));
    };
    let id = match envelope.remove("id") {
        Some(id @ (Value::String(_) | Value::Number(_))) => id,
        Some(_) => return nobody(invalid("The id is neither a string nor a number.", "Give it one.")),
        None => return nobody(invalid("The request has no id.", "Give it one: every request is answered.")),
    };
    Incoming { id, request: open(envelope) }
}

fn open(mut envelope: Map<String, Value>) -> Result<Request, Error> {
    if envelope.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return Err(invalid("The member \"jsonrpc\" is not \"2.0\".", "This is JSON-RPC 2.0."));
    }
    match envelope.remove("method") {
        Some(Value::String(method)) => Request::parse(&method, envelope.remove("params")),
        _ => Err(invalid("The member \"method\" is not a string.", "Name the method.")),
    }
}

fn invalid(message: &str, hint: &str) -> Error {
    Error::new(Kind::InvalidRequest, message, hint)
}

/// The line of a request.
pub fn request_line(id: u64, request: &Request) -> Vec<u8> {
    line(json!({"jsonrpc": "2.0", "id": id, "method": request.method(), "params": request.params()}))
}

/// The line of the answer to request `id`.
pub fn response_line(id: &Value, answer: &Result<Response, Error>) -> Vec<u8> {
    line(match answer {
        Ok(response) => json!({"jsonrpc": "2.0", "id": id, "result": response}),
        Err(error) => json!({"jsonrpc": "2.0", "id": id, "error": error.to_json()}),
    })
}

/// The line of a progress notification.
pub fn progress_line(progress: &Progress) -> Vec<u8> {
    line(json!({"jsonrpc": "2.0", "method": "progress", "params": progress}))
}

/// The line of a notification for a subscriber.
pub fn event_line(notice: &Notice) -> Vec<u8> {
    line(json!({"jsonrpc": "2.0", "method": "event", "params": notice}))
}

fn line(value: Value) -> Vec<u8> {
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// A line from the daemon.
#[derive(Debug)]
pub enum Outgoing {
    /// An unknown notification. Newer daemons may send some.
    Ignored,
    /// Progress of the request under way.
    Progress(Progress),
    /// A message for a subscription.
    Event(Notice),
    /// The answer: the result, not parsed yet, or the error.
    Answer(Result<Value, Error>),
}

/// Reads one line from the daemon. The error says what does not fit.
pub fn parse_answer(line: &[u8], id: u64) -> Result<Outgoing, String> {
    let mut envelope: Map<String, Value> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if let Some(method) = envelope.get("method") {
        let kind = method.as_str().unwrap_or_default().to_owned();
        let params = envelope.remove("params").unwrap_or_default();
        let read = match kind.as_str() {
            "progress" => serde_json::from_value(params).map(Outgoing::Progress),
            "event" => serde_json::from_value(params).map(Outgoing::Event),
            _ => Ok(Outgoing::Ignored),
        };
        return read.map_err(|error| error.to_string());
    }
    if let Some(error) = envelope.get("error") {
        // An error without an id counts too: the daemon sent it before it could read the request.
        return Ok(Outgoing::Answer(Err(Error::from_json(error))));
    }
    match (envelope.get("id").and_then(Value::as_u64), envelope.remove("result")) {
        (Some(answered), Some(result)) if answered == id => Ok(Outgoing::Answer(Ok(result))),
        _ => Err("neither a result with our id nor an error".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refusal(line: &str) -> (Value, Kind, String) {
        let incoming = parse_request(line.as_bytes());
        let error = incoming.request.expect_err(line);
        (incoming.id, error.kind, error.message)
    }

    #[test]
    fn requests_travel() {
        let name = || "s3".parse().unwrap();
        let upgrade = super::super::api::Upgrade {
            service: name(),
            binary: Some("/b".into()),
            deadline_ms: Some(5),
            drain_grace_ms: None,
            claims: Default::default(),
        };
        for request in [
            Request::Ping,
            Request::List,
            Request::Status(name()),
            Request::Start(name()),
            Request::Stop(name()),
            Request::Restart(name()),
            Request::Upgrade(upgrade),
            Request::Cancel(name()),
            Request::Kill(crate::control::api::Kill { service: name(), signal: None }),
            Request::Kill(crate::control::api::Kill { service: name(), signal: Some("HUP".into()) }),
            Request::History(super::super::api::History::default()),
            Request::History(super::super::api::History { service: Some(name()), limit: Some(3) }),
        ] {
            let incoming = parse_request(&request_line(7, &request));
            assert_eq!((incoming.id, incoming.request), (json!(7), Ok(request)));
        }
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        let call = |rest: &str| refusal(&format!(r#"{{"jsonrpc":"2.0","id":"x",{rest}}}"#));
        let table = [
            (refusal("{"), Kind::ParseError, "not JSON"),
            (refusal("[]"), Kind::InvalidRequest, "not an object"),
            (refusal(r#"{"jsonrpc":"2.0","method":"ping"}"#), Kind::InvalidRequest, "no id"),
            (refusal(r#"{"jsonrpc":"2.0","method":"ping","id":[]}"#), Kind::InvalidRequest, "neither"),
            (refusal(r#"{"method":"ping","id":1}"#), Kind::InvalidRequest, "jsonrpc"),
            (call(r#""method":3"#), Kind::InvalidRequest, "method"),
            (call(r#""method":"stat""#), Kind::UnknownMethod, "\"stat\""),
            (call(r#""method":"ping","params":[1]"#), Kind::InvalidParams, "not an object"),
            (call(r#""method":"ping","params":{"x":1}"#), Kind::InvalidParams, "no parameter \"x\""),
            (call(r#""method":"stop""#), Kind::InvalidParams, "\"service\" is missing"),
            (call(r#""method":"stop","params":{"service":3}"#), Kind::InvalidParams, "\"service\" is 3"),
            (
                call(r#""method":"stop","params":{"service":"A"}"#),
                Kind::InvalidParams,
                "\"service\" is \"A\": 'A'",
            ),
            (
                call(r#""method":"upgrade","params":{"service":"a","binary":"b"}"#),
                Kind::InvalidParams,
                "\"binary\" is \"b\"",
            ),
            (
                call(r#""method":"upgrade","params":{"service":"a","deadline_ms":-1}"#),
                Kind::InvalidParams,
                "\"deadline_ms\" is -1",
            ),
            (
                call(r#""method":"upgrade","params":{"service":"a","deadline_ms":1,"drain_grace_ms":2}"#),
                Kind::InvalidParams,
                "drain_grace_ms (2ms) is longer than deadline_ms (1ms)",
            ),
        ];
        for ((_, kind, message), expected_kind, expected) in table {
            assert_eq!(kind, expected_kind, "{message}");
            assert!(message.contains(expected), "{message} without {expected}");
        }
        assert_eq!(call(r#""method":"stat""#).0, json!("x"), "an id that could be read is used");
        assert_eq!(refusal("[]").0, Value::Null);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let incoming = parse_request(&bytes);
            let line = response_line(&incoming.id, &incoming.request.map(|_| Response::List(vec![])));
            prop_assert!(serde_json::from_slice::<Value>(&line).is_ok());
            let _ = parse_answer(&bytes, 1);
        }
    }
}
