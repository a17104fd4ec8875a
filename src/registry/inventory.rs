//! What this node has, said to the cluster: after each start and each installed snapshot its files
//! are compared with the record, and a copy that proves bad is reported at once (A3, A5).
//!
//! What must stay true: what the record says and is not here is lost, what is here, referenced and
//! not on record is held; only then does the node count, or vouch for anything after a snapshot.

use super::{Error, Registry};
use crate::budget::Budget;
use crate::oci::Digest;
use crate::proto::state::v1 as pb;
use crate::proto::state::v1::command::Body;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;

const PAGE: usize = 500;
const PAUSE: Duration = Duration::from_secs(1);

impl Registry {
    pub(super) async fn keep_inventory(self) {
        if !self.is_announced().await {
            return;
        }
        let mut snapshots = self.inner.metadata.snapshots_installed();
        let mut is_listed = false;
        loop {
            let snapshot = *snapshots.borrow_and_update();
            while let Err(error) = self.compare_files(snapshot, is_listed).await {
                tracing::info!(%error, "this node could not say yet what it has");
                tokio::time::sleep(PAUSE).await;
            }
            is_listed = true;
            if snapshots.changed().await.is_err() {
                return;
            }
        }
    }

    /// Reports copies that proved bad, whoever it was that read them.
    pub(super) async fn report_bad_copies(self, mut bad: mpsc::Receiver<Digest>) {
        if !self.is_announced().await {
            return;
        }
        while let Some(digest) = bad.recv().await {
            let mut digests = vec![digest];
            while digests.len() < PAGE
                && let Ok(digest) = bad.try_recv()
            {
                digests.push(digest);
            }
            while let Err(error) = self.report_lost(&digests).await {
                tracing::info!(%error, "a lost copy could not be reported yet");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// False when the node stops before.
    async fn is_announced(&self) -> bool {
        let mut boot = self.inner.metadata.boot_applied();
        boot.wait_for(|applied| *applied).await.is_ok()
    }

    /// What the last installed snapshot says of this node, and is not so, has been reported.
    pub(super) fn is_compared(&self) -> bool {
        let snapshots = self.inner.metadata.snapshots_installed();
        self.inner.compared.load(Ordering::Acquire) == *snapshots.borrow()
    }

    /// What is lost first: only then may it vouch for what it has, which `hold` does.
    async fn compare_files(&self, snapshot: u64, is_listed: bool) -> Result<(), Error> {
        let metadata = &self.inner.metadata;
        let me = metadata.identity().node();
        let files = self.inner.blobs.list().await?.into_iter();
        let files: BTreeSet<Digest> = files.map(|stored| stored.digest).collect();
        let mut on_record = BTreeSet::new();
        let mut after: Option<Digest> = None;
        loop {
            let page = self.view().held_by(me, after.as_ref(), PAGE)?;
            let missing = page.iter().map(|(digest, _)| digest);
            let missing: Vec<Digest> = missing.filter(|d| !files.contains(d)).cloned().collect();
            self.report_lost(&missing).await?;
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
        self.inner.compared.store(snapshot, Ordering::Release);
        let mut unrecorded = Vec::new();
        for digest in files.difference(&on_record) {
            if self.view().blob(digest)?.is_some_and(|blob| blob.refs > 0) {
                unrecorded.push(digest.clone());
            }
        }
        for part in unrecorded.chunks(PAGE) {
            self.hold(part).await?;
        }
        if !is_listed {
            metadata
                .write(Body::Listed(pb::Listed {}), Budget::default())
                .await?;
        }
        Ok(())
    }

    async fn report_lost(&self, digests: &[Digest]) -> Result<(), Error> {
        let mut lost = Vec::new();
        for digest in digests {
            // It may have come since.
            if self.inner.blobs.stat(digest).await?.is_none() {
                lost.push(digest.clone());
            }
        }
        if lost.is_empty() {
            return Ok(());
        }
        tracing::warn!(
            blobs = lost.len(),
            first = %lost[0],
            "blobs on record are not here; they no longer count"
        );
        let body = pb::Lost {
            digests: lost.iter().map(Digest::to_string).collect(),
        };
        self.inner
            .metadata
            .write(Body::Lost(body), Budget::default())
            .await?;
        // One that came while this was written may have been counted before it.
        self.hold(&lost).await
    }

    /// Counts as the holder of those that are here.
    async fn hold(&self, digests: &[Digest]) -> Result<(), Error> {
        let mut receipts = Vec::new();
        for digest in digests {
            receipts.extend(self.own_receipt(digest).await?);
        }
        if !receipts.is_empty() {
            self.inner
                .metadata
                .write(Body::Hold(pb::Hold { receipts }), Budget::default())
                .await?;
        }
        Ok(())
    }

    /// Fetches a referenced blob, and counts as its holder from then on.
    pub async fn fetch_and_hold(&self, digest: &Digest, size: u64) -> Result<(), Error> {
        if self.inner.blobs.stat(digest).await?.is_none() {
            self.fetch_whole(digest, size).await?;
        }
        self.hold(std::slice::from_ref(digest)).await
    }

    /// For those that keep copies in order.
    pub fn metadata(&self) -> &crate::metadata::Metadata {
        &self.inner.metadata
    }
}
