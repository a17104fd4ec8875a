//! After each start a node says what it has: what the record says and is not here is lost, what is
//! here, referenced and not on record is held; then the node counts (A3, A5).

use super::{Error, Registry};
use crate::budget::Budget;
use crate::oci::Digest;
use crate::proto::state::v1 as pb;
use crate::proto::state::v1::command::Body;
use std::collections::BTreeSet;
use std::time::Duration;

const PAGE: usize = 500;
const PAUSE: Duration = Duration::from_secs(1);

impl Registry {
    pub(super) async fn keep_inventory(self) {
        let mut boot = self.inner.metadata.boot_applied();
        if boot.wait_for(|applied| *applied).await.is_err() {
            return;
        }
        while let Err(error) = self.list_files().await {
            tracing::info!(%error, "this node could not say yet what it has");
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn list_files(&self) -> Result<(), Error> {
        let metadata = &self.inner.metadata;
        let me = metadata.identity().node();
        let files: BTreeSet<Digest> = self
            .inner
            .blobs
            .list()
            .await?
            .into_iter()
            .map(|s| s.digest)
            .collect();
        let mut on_record = BTreeSet::new();
        let mut after: Option<Digest> = None;
        loop {
            let page = self.view().held_by(me, after.as_ref(), PAGE)?;
            let lost: Vec<String> = page
                .iter()
                .filter(|(d, _)| !files.contains(d))
                .map(|(d, _)| d.to_string())
                .collect();
            if !lost.is_empty() {
                tracing::warn!(
                    blobs = lost.len(),
                    "blobs on record are not here; they no longer count"
                );
                metadata
                    .write(Body::Lost(pb::Lost { digests: lost }), Budget::default())
                    .await?;
            }
            on_record.extend(
                page.iter()
                    .filter(|(_, counted)| *counted)
                    .map(|(d, _)| d.clone()),
            );
            match page.last() {
                Some((last, _)) if page.len() == PAGE => after = Some(last.clone()),
                _ => break,
            }
        }
        let mut receipts = Vec::new();
        for digest in files.difference(&on_record) {
            if self.view().blob(digest)?.is_some_and(|blob| blob.refs > 0) {
                receipts.extend(self.own_receipt(digest).await?);
            }
        }
        for part in receipts.chunks(PAGE) {
            let hold = pb::Hold {
                receipts: part.to_vec(),
            };
            metadata.write(Body::Hold(hold), Budget::default()).await?;
        }
        metadata
            .write(Body::Listed(pb::Listed {}), Budget::default())
            .await?;
        Ok(())
    }

    /// Fetches a referenced blob, and counts as its holder from then on.
    pub async fn fetch_and_hold(&self, digest: &Digest, size: u64) -> Result<(), Error> {
        if self.inner.blobs.stat(digest).await?.is_none() {
            self.fetch_whole(digest, size).await?;
        }
        if let Some(receipt) = self.own_receipt(digest).await? {
            let hold = pb::Hold {
                receipts: vec![receipt],
            };
            self.inner
                .metadata
                .write(Body::Hold(hold), Budget::default())
                .await?;
        }
        Ok(())
    }

    /// For those that keep copies in order.
    pub fn metadata(&self) -> &crate::metadata::Metadata {
        &self.inner.metadata
    }
}
