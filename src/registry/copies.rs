//! Copies from other regions: received into staging, and vouched for once digest and size are
//! checked and all is synced.

use super::{Error, Registry};
use crate::blobs::{ByteStream, FinishError, Upload};
use crate::oci::{Algorithm, Digest, RepositoryName};
use crate::proto::state::v1::Receipt;
use futures_util::StreamExt;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// A copy that gets no bytes for this long is forgotten.
pub(super) const IDLE: Duration = Duration::from_secs(60);
/// Copies that may be under way into this node.
const MOST: usize = 256;

#[derive(Default)]
pub(super) struct Receiving {
    copies: Mutex<HashMap<String, Copy>>,
}

#[derive(Clone)]
struct Copy {
    upload: Arc<tokio::sync::Mutex<Option<Upload>>>,
    touched: Instant,
}

impl Receiving {
    pub fn sweep(&self) {
        let mut copies = self.copies.lock().expect("no panic while held");
        copies.retain(|_, copy| copy.touched.elapsed() < IDLE || copy.upload.try_lock().is_err());
    }

    fn get(&self, id: &str) -> Option<Copy> {
        let mut copies = self.copies.lock().expect("no panic while held");
        let copy = copies.get_mut(id)?;
        copy.touched = Instant::now();
        Some(copy.clone())
    }

    fn remove(&self, id: &str) -> Option<Copy> {
        self.copies.lock().expect("no panic while held").remove(id)
    }
}

impl Registry {
    /// Bytes of a copy, appended at `offset`; how many there are then.
    pub async fn receive_copy(
        &self,
        id: &str,
        offset: u64,
        mut body: ByteStream,
    ) -> Result<u64, Error> {
        let copy = match self.inner.receiving.get(id) {
            Some(copy) => copy,
            None if offset == 0 => self.begin_copy(id).await?,
            None => return Err(Error::UploadUnknown),
        };
        let mut upload = copy.upload.lock().await;
        let upload = upload.as_mut().ok_or(Error::UploadUnknown)?;
        if upload.len() != offset {
            return Err(Error::UploadOffset {
                expected: upload.len(),
            });
        }
        while let Some(bytes) = body.next().await {
            upload.append(bytes.map_err(Error::ClientGone)?).await?;
        }
        Ok(upload.flush().await?)
    }

    async fn begin_copy(&self, id: &str) -> Result<Copy, Error> {
        let upload = self.inner.blobs.staging().create(Algorithm::Sha256).await?;
        let copy = Copy {
            upload: Arc::new(tokio::sync::Mutex::new(Some(upload))),
            touched: Instant::now(),
        };
        let mut copies = self
            .inner
            .receiving
            .copies
            .lock()
            .expect("no panic while held");
        if copies.len() >= MOST {
            return Err(Error::Unavailable(
                "this node receives as many copies as it can".to_owned(),
            ));
        }
        copies.insert(id.to_owned(), copy.clone());
        Ok(copy)
    }

    /// Checks, syncs, links as of that index of the log, and vouches.
    pub async fn finish_copy(
        &self,
        id: &str,
        digest: &Digest,
        size: u64,
        repository: &RepositoryName,
        index: u64,
    ) -> Result<Receipt, Error> {
        let copy = self
            .inner
            .receiving
            .remove(id)
            .ok_or(Error::UploadUnknown)?;
        let upload = copy
            .upload
            .lock()
            .await
            .take()
            .ok_or(Error::UploadUnknown)?;
        if upload.len() != size {
            return Err(Error::SizeMismatch(format!(
                "{} bytes came, {size} were sent",
                upload.len()
            )));
        }
        let (registry, digest, repository) = (self.clone(), digest.clone(), repository.clone());
        self.owned(async move {
            registry.keep(upload, &digest).await?;
            registry.link(&repository, &digest, index).await?;
            let receipt = registry.own_receipt(&digest).await?;
            receipt.ok_or_else(|| {
                Error::Unavailable("this node may not vouch for blobs yet".to_owned())
            })
        })
        .await
    }

    pub async fn cancel_copy(&self, id: &str) {
        self.inner.receiving.remove(id);
    }

    /// The end of every upload, copy and fetch: digest checked, then the blob is here.
    pub(super) async fn keep(&self, upload: Upload, digest: &Digest) -> Result<u64, Error> {
        let staged = upload.finish(digest).await.map_err(|error| match error {
            FinishError::DigestMismatch { .. } => Error::DigestMismatch(error.to_string()),
            FinishError::Io(error) => Error::from(error),
        })?;
        Ok(self.inner.blobs.adopt(staged).await?)
    }
}
