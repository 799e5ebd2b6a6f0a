//! How far each stored chain goes, signed. Apart from the records, so that their retention leaves it.

use super::{
    AuditConfig,
    archive::{Archive, Name, Stored},
    away,
};
use canopy_api::{
    ApiError, Principal,
    time::rfc3339,
    wire::{AuditCheckpointsReply, AuditCheckpointsRequest, SignedCheckpoint},
};
use canopy_audit::{Checkpoint, CheckpointKey, PublicKey};
use canopy_bus::{
    Bus, BusError, Link,
    data::{Bucket, Swap},
};
use canopy_runtime::clock;
use std::{sync::Arc, time::Duration};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

/// The bucket: by writer, the last checkpoint of each of its chains, the newest chain first.
pub(super) const BUCKET: &str = "canopy_audit_checkpoints";
/// Chains of a writer whose checkpoints are kept.
const CHAINS: usize = 64;
/// How often a change that was overtaken is tried again.
const TRIES: usize = 5;
/// About as many checkpoints as go into an answer.
const PAGE: usize = 500;

/// How long what has grown may take to be signed at the end.
const AT_END: Duration = Duration::from_secs(2);

/// The key of the configuration.
pub(super) fn read_key(config: &AuditConfig) -> anyhow::Result<CheckpointKey> {
    let reference = &config.signing_key;
    let pem = reference
        .read()
        .map_err(|error| anyhow::anyhow!("audit.signing_key: {error}; {}", error.remedy))?;
    CheckpointKey::from_pem(&pem)
        .map_err(|error| anyhow::anyhow!("audit.signing_key: {reference}: {error}"))
}

/// What is signed.
pub(super) struct Checkpoints {
    bucket: Bucket,
}

impl Checkpoints {
    pub(super) async fn open(data: &Bus, replicas: usize) -> Result<Self, BusError> {
        Ok(Self { bucket: Bucket::open(data, BUCKET, replicas).await? })
    }

    /// What was signed last of a chain. Whether it is rightly signed is for who verifies; here it only
    /// says that more was there than is.
    pub(super) async fn of(&self, (writer, chain): &Name) -> Result<Option<Checkpoint>, BusError> {
        let stored = self.bucket.get::<Vec<SignedCheckpoint>>(writer.as_str()).await?;
        let all = stored.map(|stored| stored.value).unwrap_or_default();
        Ok(all.iter().filter_map(read).find(|one| one.chain == *chain))
    }

    async fn put(
        &self,
        new: &Checkpoint,
        signed: SignedCheckpoint,
        key: PublicKey,
    ) -> Result<(), BusError> {
        let writer = new.writer.as_str();
        for _ in 0..TRIES {
            let stored = self.bucket.get::<Vec<SignedCheckpoint>>(writer).await?;
            let (before, revision) =
                stored.map_or((Vec::new(), None), |one| (one.value, Some(one.revision)));
            let is_ours = |one: &SignedCheckpoint| read(one).is_some_and(|c| c.chain == new.chain);
            // Another instance may have seen more. What is not rightly signed is no word against ours.
            let further = |one: &SignedCheckpoint| {
                key.verify(one).is_ok_and(|c| c.chain == new.chain && c.seq >= new.seq)
            };
            if before.iter().any(further) {
                return Ok(());
            }
            let others = before.into_iter().filter(|one| !is_ours(one));
            let all: Vec<_> = std::iter::once(signed.clone()).chain(others).take(CHAINS).collect();
            let put = match revision {
                None => self.bucket.create(writer, &all).await?,
                Some(revision) => self.bucket.replace(writer, &all, revision).await?,
            };
            if put == Swap::Done {
                return Ok(());
            }
        }
        Err(BusError::Store(format!("the checkpoint of {writer} was overtaken again and again")))
    }

    /// Answers who asks.
    pub(super) async fn answer(
        &self,
        request: &AuditCheckpointsRequest,
        key: PublicKey,
    ) -> Result<AuditCheckpointsReply, ApiError> {
        let mut writers = match &request.writer {
            Some(writer) => vec![writer.to_string()],
            None => self.bucket.keys().await.map_err(|error| away(&error))?,
        };
        writers.sort();
        let after = request.after.as_ref().map_or("", Principal::as_str);
        let mut checkpoints = Vec::new();
        let mut next = None;
        for writer in writers.iter().filter(|writer| writer.as_str() > after) {
            if checkpoints.len() >= PAGE {
                break;
            }
            let stored = self.bucket.get::<Vec<SignedCheckpoint>>(writer).await;
            let stored = stored.map_err(|error| away(&error))?;
            checkpoints.extend(stored.map(|stored| stored.value).unwrap_or_default());
            next = writer.parse().ok();
        }
        if writers.last().map(String::as_str) == next.as_ref().map(Principal::as_str) {
            next = None;
        }
        Ok(AuditCheckpointsReply { checkpoints, key: key.to_string(), next })
    }
}

fn read(signed: &SignedCheckpoint) -> Option<Checkpoint> {
    serde_json::from_str(&signed.statement).ok()
}

/// Signs how far chains go that have grown.
pub(super) struct Signer {
    archive: Arc<Archive>,
    key: CheckpointKey,
    every: Duration,
}

impl Signer {
    pub(super) fn new(archive: Arc<Archive>, key: CheckpointKey, every: Duration) -> Self {
        Self { archive, key, every }
    }

    pub(super) fn public(&self) -> PublicKey {
        self.key.public()
    }

    /// Signs again and again, and at the end, where `bus` still takes it.
    pub(super) async fn run(self, bus: Bus, stop: CancellationToken) {
        if let Some(Err(error)) = stop.run_until_cancelled(self.archive.look()).await {
            tracing::warn!(%error, "not every stored chain was looked at");
        }
        let mut timer = interval(self.every);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(timer.tick()).await.is_some() {
            for (name, stored) in self.archive.grown() {
                match stop.run_until_cancelled(self.sign(&name, stored)).await {
                    Some(Ok(())) => {}
                    Some(Err(error)) => self.wait(name, &error),
                    // Left for the end.
                    None => self.archive.still_grown(name),
                }
            }
        }
        let mut link = bus.watch_link();
        tokio::select! {
            _ = timeout(AT_END, self.sign_at_end()) => {}
            _ = link.wait_for(|link| *link != Link::Connected) => {}
        }
    }

    /// Signs what has grown since, as long as nothing fails.
    async fn sign_at_end(&self) {
        for (name, stored) in self.archive.grown() {
            if let Err(error) = self.sign(&name, stored).await {
                return self.wait(name, &error);
            }
        }
    }

    fn wait(&self, name: Name, error: &BusError) {
        tracing::warn!(writer = %name.0, %error, "a checkpoint waits to be signed");
        self.archive.still_grown(name);
    }

    async fn sign(&self, (writer, chain): &Name, stored: Stored) -> Result<(), BusError> {
        let checkpoint = Checkpoint {
            writer: writer.clone(),
            chain: chain.clone(),
            seq: stored.head.seq,
            hash: stored.head.hash,
            stored: stored.number,
            time: rfc3339(clock::now()),
            key: self.key.public().id(),
        };
        let signed = self.key.sign(&checkpoint);
        let signed = signed.map_err(|error| BusError::Defect(error.to_string()))?;
        self.archive.checkpoints.put(&checkpoint, signed, self.key.public()).await
    }
}
