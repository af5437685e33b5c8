//! The durable file store: a change is acknowledged only when it is on disk.
//!
//! `s3s-fs` leaves its files in the page cache. This store syncs the touched files and directories after each change,
//! so that everything acknowledged is on disk and a seal has nothing to flush. This costs a small PUT less than a
//! millisecond on ext4, which is less than the clients waiting for a seal would pay for a flush of everything.

use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;

use crate::log;

/// A [`FileSystem`] that syncs its writes. At most one may exist per directory.
#[derive(Debug)]
pub(crate) struct Store {
    files: FileSystem,
    root: PathBuf,
}

impl Store {
    /// Opens the store in `root`. Removes the part files of a killed writer, so the caller must be the only writer
    /// while the store exists. Blocks briefly.
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        let root = root.canonicalize()?;
        let files = FileSystem::new(&root).map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(Self { files, root })
    }

    /// The files that a PUT of an object may write.
    fn object_files(&self, bucket: &str, key: &str) -> Vec<PathBuf> {
        let mut paths = vec![
            self.root.join(bucket).join(key),
            self.sidecar(bucket, key, ".metadata.json"),
            self.sidecar(bucket, key, ".internal.json"),
        ];
        paths.extend(self.directories(bucket, key));
        paths
    }

    /// The files that the start of a multipart upload writes.
    fn upload_files(&self, bucket: &str, key: &str, id: &str) -> Vec<PathBuf> {
        let metadata = self.sidecar(bucket, key, &format!(".upload-{id}.metadata.json"));
        vec![self.root.join(format!(".upload-{id}.json")), metadata, self.root.clone()]
    }

    /// The files that the upload of a part writes.
    fn part_files(&self, id: &str, part: PartNumber) -> Vec<PathBuf> {
        vec![self.root.join(format!(".upload_id-{id}.part-{part}")), self.root.clone()]
    }

    /// Every directory from the object's up to the root: a PUT may have created any of them.
    fn directories(&self, bucket: &str, key: &str) -> Vec<PathBuf> {
        let object = self.root.join(bucket).join(key);
        object.ancestors().skip(1).take_while(|dir| dir.starts_with(&self.root)).map(Path::to_owned).collect()
    }

    /// The metadata file of an object in the root.
    fn sidecar(&self, bucket: &str, key: &str, kind: &str) -> PathBuf {
        let encode = |text: &str| base64_simd::URL_SAFE_NO_PAD.encode_to_string(text);
        self.root.join(format!(".bucket-{}.object-{}{kind}", encode(bucket), encode(key)))
    }
}

/// Syncs files and directories. A missing one was replaced or deleted by another operation, which syncs for itself.
async fn sync(paths: Vec<PathBuf>) -> S3Result {
    let synced = tokio::task::spawn_blocking(move || {
        for path in paths {
            match std::fs::File::open(&path).and_then(|file| file.sync_all()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(format!("cannot sync {}: {error}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    });
    let failed = match synced.await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(failed)) => failed,
        Err(panic) => panic.to_string(),
    };
    log!("{failed}");
    Err(s3_error!(InternalError, "{failed}"))
}

#[async_trait]
impl S3 for Store {
    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let (bucket, key) = (req.input.bucket.clone(), req.input.key.clone());
        let response = self.files.put_object(req).await?;
        sync(self.object_files(&bucket, &key)).await?;
        Ok(response)
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        let (bucket, key) = (req.input.bucket.clone(), req.input.key.clone());
        let response = self.files.copy_object(req).await?;
        sync(self.object_files(&bucket, &key)).await?;
        Ok(response)
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let (bucket, key) = (req.input.bucket.clone(), req.input.key.clone());
        let response = self.files.delete_object(req).await?;
        sync(self.directories(&bucket, &key)).await?;
        Ok(response)
    }

    async fn delete_objects(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let bucket = req.input.bucket.clone();
        let keys: Vec<_> = req.input.delete.objects.iter().map(|object| object.key.clone()).collect();
        let response = self.files.delete_objects(req).await?;
        let mut paths: Vec<_> = keys.iter().flat_map(|key| self.directories(&bucket, key)).collect();
        paths.sort_unstable();
        paths.dedup();
        sync(paths).await?;
        Ok(response)
    }

    async fn create_bucket(
        &self,
        req: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        let response = self.files.create_bucket(req).await?;
        sync(vec![self.root.clone()]).await?;
        Ok(response)
    }

    async fn delete_bucket(
        &self,
        req: S3Request<DeleteBucketInput>,
    ) -> S3Result<S3Response<DeleteBucketOutput>> {
        let response = self.files.delete_bucket(req).await?;
        sync(vec![self.root.clone()]).await?;
        Ok(response)
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let (bucket, key) = (req.input.bucket.clone(), req.input.key.clone());
        let response = self.files.create_multipart_upload(req).await?;
        let id = response.output.upload_id.as_deref().unwrap_or_default();
        sync(self.upload_files(&bucket, &key, id)).await?;
        Ok(response)
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let (id, part) = (req.input.upload_id.clone(), req.input.part_number);
        let response = self.files.upload_part(req).await?;
        sync(self.part_files(&id, part)).await?;
        Ok(response)
    }

    async fn upload_part_copy(
        &self,
        req: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        let (id, part) = (req.input.upload_id.clone(), req.input.part_number);
        let response = self.files.upload_part_copy(req).await?;
        sync(self.part_files(&id, part)).await?;
        Ok(response)
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let (bucket, key) = (req.input.bucket.clone(), req.input.key.clone());
        let response = self.files.complete_multipart_upload(req).await?;
        sync(self.object_files(&bucket, &key)).await?;
        Ok(response)
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let response = self.files.abort_multipart_upload(req).await?;
        sync(vec![self.root.clone()]).await?;
        Ok(response)
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        self.files.get_object(req).await
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        self.files.head_object(req).await
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.files.head_bucket(req).await
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.files.get_bucket_location(req).await
    }

    async fn list_buckets(
        &self,
        req: S3Request<ListBucketsInput>,
    ) -> S3Result<S3Response<ListBucketsOutput>> {
        self.files.list_buckets(req).await
    }

    async fn list_objects(
        &self,
        req: S3Request<ListObjectsInput>,
    ) -> S3Result<S3Response<ListObjectsOutput>> {
        self.files.list_objects(req).await
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.files.list_objects_v2(req).await
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        self.files.list_parts(req).await
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn request<T>(input: T) -> S3Request<T> {
        S3Request {
            input,
            method: http::Method::PUT,
            uri: http::Uri::default(),
            headers: http::HeaderMap::default(),
            extensions: http::Extensions::default(),
            credentials: None,
            region: None,
            service: None,
            trailing_headers: None,
        }
    }

    fn blob() -> Option<StreamingBlob> {
        Some(StreamingBlob::from(s3s::Body::from(hyper::body::Bytes::from_static(b"content"))))
    }

    /// `dir` and everything below it.
    fn tree(dir: &Path) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::from([dir.to_owned()]);
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            found.extend(if path.is_dir() { tree(&path) } else { BTreeSet::from([path]) });
        }
        found
    }

    /// Checks that everything created since `before` is among `synced`.
    fn assert_covers(synced: Vec<PathBuf>, before: &BTreeSet<PathBuf>, root: &Path) {
        let synced = BTreeSet::from_iter(synced);
        let missed: Vec<_> =
            tree(root).into_iter().filter(|path| !before.contains(path) && !synced.contains(path)).collect();
        assert!(missed.is_empty(), "written but not synced: {missed:?}");
    }

    #[tokio::test]
    async fn every_file_that_an_operation_writes_is_synced() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (bucket, key) = ("box", "a/b/key");
        std::fs::create_dir(store.root.join(bucket)).unwrap();

        let put =
            PutObjectInput::builder().bucket(bucket.into()).key(key.into()).body(blob()).build().unwrap();
        store.put_object(request(put)).await.unwrap();
        assert_covers(store.object_files(bucket, key), &BTreeSet::new(), &store.root);

        let before = tree(&store.root);
        let begin =
            CreateMultipartUploadInput::builder().bucket(bucket.into()).key("m".into()).build().unwrap();
        let begun = store.create_multipart_upload(request(begin)).await.unwrap();
        let id = begun.output.upload_id.unwrap();
        assert_covers(store.upload_files(bucket, "m", &id), &before, &store.root);

        let before = tree(&store.root);
        let part = UploadPartInput::builder().bucket(bucket.into()).key("m".into()).upload_id(id.clone());
        let part = part.part_number(1).body(blob()).build().unwrap();
        store.upload_part(request(part)).await.unwrap();
        assert_covers(store.part_files(&id, 1), &before, &store.root);

        let before = tree(&store.root);
        let parts = vec![CompletedPart { part_number: Some(1), ..CompletedPart::default() }];
        let parts = CompletedMultipartUpload { parts: Some(parts) };
        let complete = CompleteMultipartUploadInput::builder().bucket(bucket.into()).key("m".into());
        let complete = complete.upload_id(id).multipart_upload(Some(parts)).build().unwrap();
        store.complete_multipart_upload(request(complete)).await.unwrap();
        assert_covers(store.object_files(bucket, "m"), &before, &store.root);
    }
}
