//! Lines of the control socket, in both directions.

use handoff::control::rpc::{parse_answer, parse_request, request_line, response_line};
use serde_json::Value;

/// Any line is answered with one line of JSON under its own id. What is a request means the same when it is written
/// again.
pub fn control_request(line: &[u8]) {
    let incoming = parse_request(line);
    match &incoming.request {
        Ok(request) => {
            let again = parse_request(&request_line(7, request));
            assert_eq!(again.request.as_ref(), Ok(request));
        }
        Err(error) => {
            let answer = response_line(&incoming.id, &Err(error.clone()));
            let (newline, answer) = answer.split_last().expect("a line");
            assert!(*newline == b'\n' && !answer.contains(&b'\n'), "one line");
            let answer: Value = serde_json::from_slice(answer).expect("the answer is JSON");
            assert!(answer["error"]["message"].is_string() && answer.get("id").is_some());
        }
    }
    // A client reads what a daemon says; neither trusts the other more than a stranger.
    if let Err(cause) = parse_answer(line, 7) {
        assert!(!cause.is_empty());
    }
}
