//! Signed S3 operations on one bucket, each measured and sent once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, ETAG, HOST};
use http::{Request, StatusCode};
use rusty_s3::actions::{CompleteMultipartUpload, CreateMultipartUpload, ListObjectsV2, S3Action};
use rusty_s3::{Bucket, Credentials, UrlStyle};

use super::LoadConfig;
use super::failure::{Failure, Kind};
use super::http::{Http, HttpResponse, Upload};
use super::meter::Meter;

/// Validity of a signature.
const SIGNED_FOR: Duration = Duration::from_secs(300);

/// A client's access to its bucket.
pub struct S3 {
    http: Http,
    bucket: Bucket,
    credentials: Credentials,
    meter: Arc<Meter>,
}

impl S3 {
    /// Access to the bucket `name`, which need not exist yet.
    pub fn new(config: &LoadConfig, name: &str, keep_alive: bool, meter: Arc<Meter>) -> Self {
        let url = format!("http://{}", config.endpoint).parse().expect("an address makes a URL");
        let bucket = Bucket::new(url, UrlStyle::Path, name.to_owned(), "us-east-1")
            .expect("an HTTP URL makes a bucket");
        let credentials = Credentials::new(config.access_key.clone(), config.secret_key.clone());
        Self { http: Http::new(config.endpoint, keep_alive), bucket, credentials, meter }
    }

    /// The counts of this client.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Creates the bucket.
    ///
    /// # Errors
    ///
    /// As for every operation here: the exchange failed, or the server's response was unexpected. The failure is not
    /// counted yet.
    pub async fn create_bucket(&mut self) -> Result<(), Failure> {
        let request = sign(&self.bucket.create_bucket(&self.credentials), Upload::empty());
        self.send(request).await?.expect(StatusCode::OK)?;
        Ok(())
    }

    /// Writes an object.
    pub async fn put(&mut self, key: &str, upload: Upload) -> Result<(), Failure> {
        let request = sign(&self.bucket.put_object(Some(&self.credentials), key), upload);
        self.send(request).await?.expect(StatusCode::OK)?;
        Ok(())
    }

    /// Reads an object; `None` if there is none.
    pub async fn get(&mut self, key: &str) -> Result<Option<HttpResponse>, Failure> {
        let request = sign(&self.bucket.get_object(Some(&self.credentials), key), Upload::empty());
        self.send(request).await?.found()
    }

    /// The length of an object; `None` if there is none.
    pub async fn head(&mut self, key: &str) -> Result<Option<usize>, Failure> {
        let request = sign(&self.bucket.head_object(Some(&self.credentials), key), Upload::empty());
        let Some(answer) = self.send(request).await?.found()? else { return Ok(None) };
        let length = answer.header(CONTENT_LENGTH)?;
        let length =
            length.parse().map_err(|_| Failure::other(format!("HEAD: content-length {length:?}")))?;
        Ok(Some(length))
    }

    /// Deletes an object, whether it exists or not.
    pub async fn delete(&mut self, key: &str) -> Result<(), Failure> {
        let request = sign(&self.bucket.delete_object(Some(&self.credentials), key), Upload::empty());
        self.send(request).await?.expect(StatusCode::NO_CONTENT)?;
        Ok(())
    }

    /// Lists the keys that begin with `prefix`, with their lengths.
    pub async fn list(&mut self, prefix: &str) -> Result<BTreeMap<String, usize>, Failure> {
        let mut listed = BTreeMap::new();
        let mut token: Option<String> = None;
        loop {
            let mut action = self.bucket.list_objects_v2(Some(&self.credentials));
            action.with_prefix(prefix);
            if let Some(token) = token {
                action.with_continuation_token(token);
            }
            let request = sign(&action, Upload::empty());
            let text = self.send(request).await?.expect(StatusCode::OK)?.text()?;
            let page = ListObjectsV2::parse_response(&text)
                .map_err(|error| Failure::other(format!("LIST: {error} in {text:?}")))?;
            for object in page.contents {
                let length = usize::try_from(object.size.unwrap_or_default()).unwrap_or(usize::MAX);
                listed.insert(object.key, length);
            }
            token = page.next_continuation_token;
            if token.is_none() {
                return Ok(listed);
            }
        }
    }

    /// Begins a multipart upload and returns its id.
    pub async fn begin_parts(&mut self, key: &str) -> Result<String, Failure> {
        let action = CreateMultipartUpload::new(&self.bucket, Some(&self.credentials), key);
        let request = sign(&action, Upload::empty());
        let text = self.send(request).await?.expect(StatusCode::OK)?.text()?;
        let response = CreateMultipartUpload::parse_response(&text)
            .map_err(|error| Failure::other(format!("multipart: {error} in {text:?}")))?;
        Ok(response.upload_id().to_owned())
    }

    /// Uploads one part, counted from 1, and returns its tag.
    pub async fn put_part(
        &mut self,
        key: &str,
        id: &str,
        part: u16,
        upload: Upload,
    ) -> Result<String, Failure> {
        let request = sign(&self.bucket.upload_part(Some(&self.credentials), key, part, id), upload);
        self.send(request).await?.expect(StatusCode::OK)?.header(ETAG)
    }

    /// Assembles the object from the parts.
    pub async fn complete_parts(&mut self, key: &str, id: &str, tags: &[String]) -> Result<(), Failure> {
        let tags = tags.iter().map(String::as_str);
        let action = CompleteMultipartUpload::new(&self.bucket, Some(&self.credentials), key, id, tags);
        let request = sign(&action, Upload::empty());
        let request = request.map(|_| Upload::all(action.body()));
        let text = self.send(request).await?.expect(StatusCode::OK)?.text()?;
        // The response begins before the work is done, so it can be an error despite its status 200.
        if text.contains("<CompleteMultipartUploadResult") {
            Ok(())
        } else {
            Err(Failure::new(Kind::Status, format!("multipart: {text}")))
        }
    }

    async fn send(&mut self, request: Request<Upload>) -> Result<Reply, Failure> {
        let what = format!("{} {}", request.method(), request.uri().path());
        let paced = request.body().is_paced();
        let span = self.meter.begin();
        let answer = self.http.exchange(request).await.map_err(|failure| failure.during(&what))?;
        if !paced {
            self.meter.end(span);
        }
        Ok(Reply { operation: what, answer })
    }
}

fn sign<'a>(action: &impl S3Action<'a>, body: Upload) -> Request<Upload> {
    fn method<'a, A: S3Action<'a>>(_: &A) -> &'static str {
        A::METHOD.to_str()
    }
    let url = action.sign(SIGNED_FOR);
    let authority = url.authority();
    Request::builder()
        .method(method(action))
        .uri(&url[url::Position::BeforePath..])
        .header(HOST, authority)
        .body(body)
        .expect("a signed URL makes a request")
}

/// A response and its request.
struct Reply {
    operation: String,
    answer: HttpResponse,
}

impl Reply {
    fn expect(self, status: StatusCode) -> Result<Self, Failure> {
        if self.answer.status == status {
            return Ok(self);
        }
        let body = String::from_utf8_lossy(&self.answer.body);
        Err(Failure::new(Kind::Status, format!("{}: {} {body}", self.operation, self.answer.status)))
    }

    fn found(self) -> Result<Option<HttpResponse>, Failure> {
        if self.answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        self.expect(StatusCode::OK).map(|reply| Some(reply.answer))
    }

    fn header(&self, name: http::HeaderName) -> Result<String, Failure> {
        self.answer.header(name).map_err(|failure| failure.during(&self.operation))
    }

    fn text(self) -> Result<String, Failure> {
        String::from_utf8(self.answer.body.to_vec())
            .map_err(|error| Failure::other(format!("{}: {error}", self.operation)))
    }
}

impl HttpResponse {
    fn header(&self, name: http::HeaderName) -> Result<String, Failure> {
        let value = self.headers.get(&name).and_then(|value| value.to_str().ok());
        value.map(str::to_owned).ok_or_else(|| Failure::other(format!("the answer has no {name}")))
    }
}
