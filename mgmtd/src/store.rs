//! Transactions of mgmtd. Each runs on a thread that may block, and is durable when it has been answered
//! (R2).

use crate::error::Error;
use crate::record::{self, Beat, Change, Image, Primary, table};
use ember_kv::{Durability, KeyRange, KeyValue, Kv, RangeOptions, ReadMode, Tx};
use ember_rt::Rt;
use std::sync::Arc;
use std::time::Duration;

const PAUSE_FIRST: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// Attempts of one transaction: about five seconds of pauses.
const ATTEMPTS: u32 = 32;
/// Pairs per page when everything is read.
const PAGE: usize = 2_000;

/// The primary's record and sign of life, as the store holds them.
pub(crate) type Claim = (Option<Primary>, Option<Beat>);

#[derive(Clone)]
pub(crate) struct Store {
    rt: Rt,
    kv: Arc<dyn Kv>,
}

impl Store {
    pub(crate) fn new(rt: Rt, kv: Arc<dyn Kv>) -> Self {
        Self { rt, kv }
    }

    pub(crate) fn engine(&self) -> &'static str {
        self.kv.name()
    }

    /// Who is primary as far as the store knows.
    pub(crate) async fn claim(&self) -> Result<Claim, Error> {
        let kv = self.kv.clone();
        let read = self.rt.blocking("mgmtd claim", move || async move {
            let mut tx = kv.begin();
            read_claim(&mut *tx, ReadMode::Snapshot).await
        });
        read.await.map_err(|_| Error::Ending)?
    }

    /// Takes the primary's place from `seen`. Afterwards the caller reads who is primary, whatever comes
    /// back: the outcome of a commit can be unknown.
    pub(crate) async fn take(&self, seen: Claim, own: Primary, beat: Beat) -> Result<(), Error> {
        let kv = self.kv.clone();
        let taken = self.rt.blocking("mgmtd take", move || async move {
            let mut tx = kv.begin();
            tx.set_durability(Durability::Durable);
            if read_claim(&mut *tx, ReadMode::Serializable).await? != seen {
                return Err(Error::NotPrimary);
            }
            tx.set(&record::single(table::PRIMARY), &record::encode(&own));
            tx.set(&record::single(table::BEAT), &record::encode(&beat));
            tx.commit().await?;
            Ok(())
        });
        taken.await.map_err(|_| Error::Ending)?
    }

    /// Commits `changes` if `own` is still primary. Tries again until the outcome is known: every change sets
    /// a value, so that a repetition does no harm.
    pub(crate) async fn commit(&self, own: &Primary, changes: Vec<Change>) -> Result<(), Error> {
        let mut pause = PAUSE_FIRST;
        let changes = Arc::new(changes);
        let mut attempt = 1;
        loop {
            let (kv, own, changes) = (self.kv.clone(), own.clone(), changes.clone());
            let work = move || async move { commit_once(&*kv, &own, &changes).await };
            let done = self.rt.blocking("mgmtd commit", work).await.map_err(|_| Error::Ending)?;
            match done {
                Err(Error::Store(error)) if error.is_retryable() && attempt < ATTEMPTS => {
                    tracing::debug!(attempt, "transaction is tried again: {error}");
                }
                done => return done,
            }
            self.rt.sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            attempt += 1;
        }
    }

    /// Everything, as of one moment at which `own` was primary.
    pub(crate) async fn load(&self, own: &Primary) -> Result<Image, Error> {
        let (kv, own) = (self.kv.clone(), own.clone());
        let loaded = self.rt.blocking("mgmtd load", move || async move {
            let mut tx = kv.begin();
            if read_claim(&mut *tx, ReadMode::Snapshot).await?.0.as_ref() != Some(&own) {
                return Err(Error::NotPrimary);
            }
            load(&mut *tx).await
        });
        loaded.await.map_err(|_| Error::Ending)?
    }
}

async fn commit_once(kv: &dyn Kv, own: &Primary, changes: &[Change]) -> Result<(), Error> {
    let mut tx = kv.begin();
    tx.set_durability(Durability::Durable);
    let key = record::single(table::PRIMARY);
    let value = tx.get(&key, ReadMode::Serializable).await?;
    let holder: Option<Primary> = value.map(|v| record::decode(&key, &v)).transpose()?;
    if holder.as_ref() != Some(own) {
        return Err(Error::NotPrimary);
    }
    for (key, value) in changes {
        match value {
            Some(value) => tx.set(key, value),
            None => tx.clear(key),
        }
    }
    tx.commit().await?;
    Ok(())
}

async fn read_claim(tx: &mut dyn Tx, mode: ReadMode) -> Result<Claim, Error> {
    let (primary_key, beat_key) = (record::single(table::PRIMARY), record::single(table::BEAT));
    let primary = tx.get(&primary_key, mode).await?;
    let beat = tx.get(&beat_key, mode).await?;
    Ok((
        primary.map(|v| record::decode(&primary_key, &v)).transpose()?,
        beat.map(|v| record::decode(&beat_key, &v)).transpose()?,
    ))
}

async fn load(tx: &mut dyn Tx) -> Result<Image, Error> {
    let routing_key = record::single(table::ROUTING);
    let routing = tx.get(&routing_key, ReadMode::Snapshot).await?;
    let mut image = Image::default();
    if let Some(value) = routing {
        image.routing = record::decode(&routing_key, &value)?;
    }
    image.nodes = read_table(tx, table::NODE, |k, v| record::decode(k, v)).await?;
    image.targets = read_table(tx, table::TARGET, |k, v| record::decode(k, v)).await?;
    image.chains = read_table(tx, table::CHAIN, |k, v| record::decode(k, v)).await?;
    image.tables = read_table(tx, table::TABLE, |k, v| record::decode(k, v)).await?;
    image.clients = read_table(tx, table::CLIENT, |k, v| {
        let unreadable =
            || Error::Damaged { key: k.escape_ascii().to_string(), why: "the key is no client's".into() };
        Ok((record::client_of_key(k).ok_or_else(unreadable)?, record::decode(k, v)?))
    })
    .await?;
    Ok(image)
}

async fn read_table<T>(
    tx: &mut dyn Tx,
    table: u8,
    read: impl Fn(&[u8], &[u8]) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let mut range: KeyRange = record::range(table);
    let mut all = Vec::new();
    loop {
        let page: Vec<KeyValue> = tx.get_range(range.clone(), RangeOptions::limit(PAGE).snapshot()).await?;
        for (key, value) in &page {
            all.push(read(key, value)?);
        }
        match page.last() {
            Some((key, _)) if page.len() == PAGE => range.begin = ember_kv::key::successor(key),
            _ => return Ok(all),
        }
    }
}
