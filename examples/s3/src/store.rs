//! The file store, made durable: a change is answered only when the disk has it.
//!
//! `s3s-fs` leaves its files in the page cache. Here each operation that changes something then syncs the
//! files and directories it has touched, so nothing that was acknowledged is ever owed to the disk, and a
//! seal has nothing left to flush. This costs a small PUT less than a millisecond on ext4, which is less
//! than the connections waiting in a seal would pay for a flush of everything at once.

use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;

/// A [`FileSystem`] that syncs what it writes. Exactly one may exist for a directory.
#[derive(Debug)]
pub(crate) struct Store {
    files: FileSystem,
    root: PathBuf,
}

impl Store {
    /// Opens the store in `root`. It removes the part files that a killed writer has left behind, so the
    /// caller must be the only writer, and stay it for as long as the store exists. Blocks for a moment.
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        let root = root.canonicalize()?;
        let files = FileSystem::new(&root).map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(Self { files, root })
    }

    async fn sync_object(&self, bucket: &str, key: &str) -> S3Result {
        let mut paths = vec![self.root.join(bucket).join(key), self.sidecar(bucket, key, ".metadata.json")];
        paths.push(self.sidecar(bucket, key, ".internal.json"));
        paths.extend(self.directories(bucket, key));
        sync(paths).await
    }

    async fn sync_directories(&self, bucket: &str, keys: impl Iterator<Item = &str>) -> S3Result {
        let mut paths: Vec<_> = keys.flat_map(|key| self.directories(bucket, key)).collect();
        paths.sort_unstable();
        paths.dedup();
        sync(paths).await
    }

    async fn sync_part(&self, upload_id: &str, part_number: PartNumber) -> S3Result {
        let part = self.root.join(format!(".upload_id-{upload_id}.part-{part_number}"));
        sync(vec![part, self.root.clone()]).await
    }

    /// Every directory from that of the object up to the root: a PUT may have made any of them.
    fn directories(&self, bucket: &str, key: &str) -> Vec<PathBuf> {
        let object = self.root.join(bucket).join(key);
        object.ancestors().skip(1).take_while(|dir| dir.starts_with(&self.root)).map(Path::to_owned).collect()
    }

    /// The file in the root that `s3s-fs` keeps about an object.
    fn sidecar(&self, bucket: &str, key: &str, kind: &str) -> PathBuf {
        let encode = |text: &str| base64_simd::URL_SAFE_NO_PAD.encode_to_string(text);
        self.root.join(format!(".bucket-{}.object-{}{kind}", encode(bucket), encode(key)))
    }
}

/// Syncs files and directories. One that is gone was replaced or deleted meanwhile, by an operation that
/// syncs for itself.
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
    eprintln!("{failed}");
    Err(s3_error!(InternalError, "{failed}"))
}

#[async_trait]
impl S3 for Store {
    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let (bucket, key) = (req.input.bucket.clone(), req.input.key.clone());
        let response = self.files.put_object(req).await?;
        self.sync_object(&bucket, &key).await?;
        Ok(response)
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        let (bucket, key) = (req.input.bucket.clone(), req.input.key.clone());
        let response = self.files.copy_object(req).await?;
        self.sync_object(&bucket, &key).await?;
        Ok(response)
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let (bucket, key) = (req.input.bucket.clone(), req.input.key.clone());
        let response = self.files.delete_object(req).await?;
        self.sync_directories(&bucket, std::iter::once(key.as_str())).await?;
        Ok(response)
    }

    async fn delete_objects(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let bucket = req.input.bucket.clone();
        let keys: Vec<_> = req.input.delete.objects.iter().map(|object| object.key.clone()).collect();
        let response = self.files.delete_objects(req).await?;
        self.sync_directories(&bucket, keys.iter().map(String::as_str)).await?;
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
        let about = self.root.join(format!(".upload-{id}.json"));
        let metadata = self.sidecar(&bucket, &key, &format!(".upload-{id}.metadata.json"));
        sync(vec![about, metadata, self.root.clone()]).await?;
        Ok(response)
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let (id, part) = (req.input.upload_id.clone(), req.input.part_number);
        let response = self.files.upload_part(req).await?;
        self.sync_part(&id, part).await?;
        Ok(response)
    }

    async fn upload_part_copy(
        &self,
        req: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        let (id, part) = (req.input.upload_id.clone(), req.input.part_number);
        let response = self.files.upload_part_copy(req).await?;
        self.sync_part(&id, part).await?;
        Ok(response)
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let (bucket, key) = (req.input.bucket.clone(), req.input.key.clone());
        let response = self.files.complete_multipart_upload(req).await?;
        self.sync_object(&bucket, &key).await?;
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
