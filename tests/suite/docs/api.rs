//! Checks docs/control-api.md and docs/control-api-results.md.

use std::collections::BTreeSet;

use handoff::control::Kind;
use handoff::control::api::{Change, Request, Subscription, VersionStatus};
use serde_json::Value;

use super::{blocks, quoted, read, table};

/// The page with the methods, followed by the page with their results.
fn both() -> String {
    read("docs/control-api.md") + &read("docs/control-api-results.md")
}

#[test]
fn the_table_of_errors_is_the_one_of_the_code() {
    let text = both();
    let rows = table(&text, &["kind", "code", "meaning", "exit"]);
    let documented: BTreeSet<(String, i64, u8)> = rows
        .iter()
        .map(|row| {
            (
                quoted(&row[0])[0].to_owned(),
                row[1].parse().expect("a code"),
                row[3].parse().expect("an exit code"),
            )
        })
        .collect();
    let word = |kind: &Kind| serde_json::to_value(kind).expect("a word").as_str().expect("a word").to_owned();
    let known = Kind::ALL.iter().map(|kind| (word(kind), kind.rpc_code(), kind.exit_code())).collect();
    assert_eq!(documented, known);
}

#[test]
fn every_method_is_documented_with_its_parameters() {
    let text = both();
    let rows = table(&text, &["method", "parameters", "result", "what it does"]);
    let unknown = Request::parse("qqqqqqqqqqqqqqqq", None).expect_err("an unknown method").hint;
    let known =
        unknown.strip_prefix("The methods are ").and_then(|list| list.strip_suffix('.')).expect("a list");
    let methods: Vec<&str> = rows.iter().map(|row| quoted(&row[0])[0]).collect();
    assert_eq!(methods, known.split(", ").collect::<Vec<_>>());
    for row in &rows {
        let value = |name: &str| match name {
            "service" => Value::from("s3"),
            "binary" | "path" | "sha256sums" | "minisig" => Value::from("/b"),
            "sha256" => Value::from("ab".repeat(32)),
            "services" => serde_json::json!(["s3", "mcp"]),
            "member" | "version" | "signal" | "text" => Value::from("1.2"),
            "tree" | "pinned" | "dry_run" | "allow_stop" | "ephemeral" => Value::from(true),
            _ => Value::from(7),
        };
        let params: serde_json::Map<String, Value> =
            quoted(&row[1]).into_iter().map(|name| (name.to_owned(), value(name))).collect();
        let method = quoted(&row[0])[0];
        let request = Request::parse(method, Some(Value::Object(params.clone()))).expect(method);
        assert_eq!(request.params(), Value::Object(params), "{method}");
    }
}

#[test]
fn the_transcript_is_what_both_sides_understand() {
    let text = both();
    let transcript = blocks(&text, "jsonl").concat();
    let mut asked = None;
    let mut answers = 0;
    for line in transcript.lines() {
        if let Some(sent) = line.strip_prefix("--> ") {
            asked = serde_json::from_str::<Value>(sent).ok().map(|sent| {
                let method = sent["method"].as_str().expect("a method").to_owned();
                Request::parse(&method, sent.get("params").cloned()).expect("a request")
            });
            continue;
        }
        let came: Value = serde_json::from_str(line.strip_prefix("<-- ").expect("an arrow")).expect("JSON");
        match (&asked, came.get("result"), came.get("error")) {
            (Some(request), Some(result), None) => {
                let response = request.parse_response(result.clone()).expect("an answer to this request");
                assert_eq!(
                    &serde_json::to_value(response).expect("JSON"),
                    result,
                    "a member is missing or unknown"
                );
                answers += 1;
            }
            (_, None, Some(error)) => {
                assert!(Kind::ALL.iter().any(|kind| error["code"] == kind.rpc_code()), "{error}");
                answers += 1;
            }
            (_, _, _) => assert_eq!(came["method"], "progress"),
        }
    }
    assert!(answers >= 5, "only {answers} answers were found");
}

#[test]
fn the_members_of_results_are_documented() {
    let text = both();
    let members = |section: &str| -> BTreeSet<String> {
        let text = text.split(section).nth(1).expect("its section");
        table(text, &["member", "type", "meaning"]).iter().map(|row| quoted(&row[0])[0].to_owned()).collect()
    };
    let transcript = blocks(&text, "jsonl").concat();
    let answers: Vec<Value> =
        transcript.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("<-- ")?).ok()).collect();
    let keys = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<BTreeSet<_>>();
    let find = |key: &str| answers.iter().find(|answer| answer["result"].get(key).is_some()).expect(key);
    assert_eq!(members("\n### pong\n"), keys(&find("version")["result"]));
    assert_eq!(members("\n### status\n"), keys(&find("state")["result"]));
    assert_eq!(members("\n### outcome\n"), keys(&find("outcome")["result"]));
    let entry: Value = serde_json::from_str(ENTRY).expect("JSON");
    let known: handoff::history::Entry = serde_json::from_value(entry.clone()).expect("an entry");
    assert_eq!(serde_json::to_value(known).expect("JSON"), entry, "a member is missing or unknown");
    assert_eq!(members("\n### entry\n"), keys(&entry));
    let version: Value = serde_json::from_str(VERSION).expect("JSON");
    let known: VersionStatus = serde_json::from_value(version.clone()).expect("a version");
    assert_eq!(serde_json::to_value(known).expect("JSON"), version, "a member is missing or unknown");
    assert_eq!(members("\n### version\n"), keys(&version));
    let change: Value = serde_json::from_str(CHANGE).expect("JSON");
    let known: Change = serde_json::from_value(change.clone()).expect("a change");
    assert_eq!(serde_json::to_value(known).expect("JSON"), change, "a member is missing or unknown");
    assert_eq!(members("\n### change\n"), keys(&change));
    let subscription =
        serde_json::to_value(Subscription { subscription: 1, states: Vec::new() }).expect("JSON");
    assert_eq!(members("\n### subscription\n"), keys(&subscription));
    let progress = answers.iter().find(|answer| answer["method"] == "progress").expect("progress");
    assert_eq!(members("\n## Notifications\n"), keys(&progress["params"]));
}

/// A change with all members.
const CHANGE: &str = r#"{"service":"s3","at":1,"state":"serving","phase":null,"detail":null,"generation":1,"pid":7,"problem":null}"#;

/// A version with all members.
const VERSION: &str = r#"{"added_at":1,"binary":null,"current":true,"generations":[1],"kind":"file","pinned":false,
    "service":"s3","sha256":"ab","size_bytes":1,"stored":"/s","undone":false,"version":null}"#;

/// An entry of a history with all members.
const ENTRY: &str = r#"{"accept_gap_us":1,"at":2,"by":{"command":"c","pid":1,"uid":0},"connections":null,"from":null,"generation":1,
    "id":"01a1fd1b-126a-73bb-91de-0f4f365e9606","killed":[],"lost_datagrams":0,"mode":"exclusive","operation":"upgrade","outcome":"committed","phases":[],
    "reason":null,"restarted":false,"service":"s3","took_us":1,"to":{"path":"/b","sha256":null,"version":null}}"#;
