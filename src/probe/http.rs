//! Sends a request over HTTP/1.1, and checks the response.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{HeaderMap, Request};
use hyper_util::rt::TokioIo;

use super::Connection;
use crate::config::Http;

/// Maximum number of body bytes to check.
const BODY_MAX: usize = 1 << 20;

/// Sends one request. The error describes the actual response.
pub(super) async fn ask(http: &Http, connection: Box<dyn Connection>) -> Result<(), String> {
    let what = format!("{} {}", http.method, http.path);
    let failed = |error: &dyn std::fmt::Display| format!("{what}: {error}");
    let (mut sender, driver) =
        http1::handshake(TokioIo::new(connection)).await.map_err(|error| failed(&error))?;
    let request = Request::builder()
        .method(http.method.as_str())
        .uri(&http.path)
        .header(HOST, "localhost")
        .header("user-agent", "handoff-probe")
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(&error))?;
    let asked = async {
        let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        let (head, body) = response.into_parts();
        if head.status.as_u16() != http.status {
            return Err(format!("{what} was answered with the status {}, not {}", head.status, http.status));
        }
        check_header(http, &head.headers).map_err(|found| format!("{what}: {found}"))?;
        let Some(wanted) = &http.body else { return Ok(()) };
        let body = Limited::new(body, BODY_MAX).collect().await.map_err(|error| failed(&error))?.to_bytes();
        match String::from_utf8_lossy(&body).contains(wanted.as_str()) {
            true => Ok(()),
            false => Err(format!("the answer to {what} does not contain {wanted:?}")),
        }
    };
    tokio::pin!(asked);
    tokio::select! {
        result = &mut asked => result,
        // The response may have arrived together with the end of the connection.
        _ = driver => asked.await,
    }
}

fn check_header(http: &Http, headers: &HeaderMap) -> Result<(), String> {
    let Some((name, wanted)) = &http.header else { return Ok(()) };
    let mut found = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    match (wanted, headers.contains_key(name)) {
        (_, false) => Err(format!("the answer has no header {name:?}")),
        (None, true) => Ok(()),
        (Some(wanted), true) if found.any(|value| value == wanted.as_str()) => Ok(()),
        (Some(wanted), true) => Err(format!("the header {name:?} of the answer is not {wanted:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    async fn answered(http: &Http, answer: &str) -> Result<(), String> {
        let (ours, mut theirs) = duplex(64 * 1024);
        let answer = answer.to_owned();
        let server = async move {
            let mut request = vec![0; 1024];
            let length = theirs.read(&mut request).await.unwrap();
            theirs.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        };
        let (result, request) = tokio::join!(ask(http, Box::new(ours)), server);
        assert!(request.starts_with("GET /health HTTP/1.1\r\n"), "{request}");
        result
    }

    fn http(header: Option<(&str, Option<&str>)>, body: Option<&str>) -> Http {
        Http {
            listener: "main".parse().unwrap(),
            method: "GET".to_owned(),
            path: "/health".to_owned(),
            status: 200,
            header: header.map(|(name, value)| (name.to_owned(), value.map(str::to_owned))),
            body: body.map(str::to_owned),
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_answer_must_be_as_it_was_described() {
        let good = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\nx-version: 2\r\n\r\nall well";
        for (header, body, problem) in [
            (None, None, None),
            (Some(("x-version", Some("2"))), Some("well"), None),
            (Some(("x-version", None)), None, None),
            (Some(("x-version", Some("1"))), None, Some("is not \"1\"")),
            (Some(("x-other", None)), None, Some("has no header")),
            (None, Some("ill"), Some("does not contain \"ill\"")),
        ] {
            let result = answered(&http(header, body), good).await;
            match problem {
                None => assert_eq!(result, Ok(())),
                Some(problem) => {
                    assert!(result.as_ref().is_err_and(|told| told.contains(problem)), "{result:?}")
                }
            }
        }
        let result = answered(&http(None, None), "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await;
        assert!(result.unwrap_err().contains("the status 503"), "the error shows the status");
        assert!(answered(&http(None, None), "this is no answer\r\n\r\n").await.is_err());
    }
}
