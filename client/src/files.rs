//! Opening, settling and closing files, and keeping their capabilities alive.

use crate::Client;
use crate::error::{ClientError, Result};
use crate::meta::{MetaOptions, unexpected};
use crate::open::{FileState, Grant, OpenFile, Unsettled, session_of};
use ember_types::file::Attributes;
use ember_types::{InodeId, Status};
use ember_wire::meta::{Answer, OpenFlags, Operation, SetAttributes};
use std::sync::Arc;
use std::time::Duration;

/// Opens renewed with one request.
const RENEWALS_PER_REQUEST: usize = 256;
/// How often the renewal task looks for capabilities past their half-life.
const RENEWAL_PERIOD: Duration = Duration::from_millis(1000);

/// What an open came to.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The open file.
    pub file: Arc<OpenFile>,
    /// Its attributes, with what this process wrote and meta hasn't heard of.
    pub attributes: Attributes,
    /// Whether the file was made.
    pub created: bool,
}

impl Client {
    /// Opens a file.
    pub async fn open(&self, inode: InodeId, flags: OpenFlags, options: &MetaOptions) -> Result<Opened> {
        if flags.truncate {
            self.settle_writes_of(inode).await;
        }
        let handle = self.0.shared.new_open();
        let session = session_of(self.0.shared.id(), handle);
        self.opened(handle, flags, Operation::Open { inode, flags, session }, options).await
    }

    /// Makes and opens a file; an existing one is opened unless `exclusive`. `mode` has the umask applied.
    pub async fn create(
        &self,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        exclusive: bool,
        flags: OpenFlags,
        options: &MetaOptions,
    ) -> Result<Opened> {
        let handle = self.0.shared.new_open();
        let session = session_of(self.0.shared.id(), handle);
        let create = Operation::Create { parent, name: name.to_vec(), mode, exclusive, flags, session };
        self.opened(handle, flags, create, options).await
    }

    async fn opened(
        &self,
        handle: u64,
        flags: OpenFlags,
        operation: Operation,
        options: &MetaOptions,
    ) -> Result<Opened> {
        let asked = self.0.rt.now();
        let answer = self.meta(operation, options).await?;
        let Answer::Opened { mut attributes, capability, created, capability_ms, .. } = answer else {
            return Err(unexpected(&answer));
        };
        self.0.shared.correct(&mut attributes);
        let state = self.0.shared.file_state(&attributes);
        state.overlay(&mut attributes);
        let session = session_of(self.0.shared.id(), handle);
        let grant = Grant::new(capability, asked, capability_ms.into());
        let file = Arc::new(OpenFile::new(state, handle, session, flags, grant));
        self.0.shared.add_open(file.clone());
        Ok(Opened { file, attributes, created })
    }

    /// Waits for accepted writes and tells meta what was written so far, as close(2) promises it to those who
    /// open the file next, without making its metadata durable. `None`: meta knew everything.
    pub async fn flush(&self, file: &OpenFile) -> Result<Option<Attributes>> {
        let state = file.state();
        self.settle_writes(state).await;
        let settled = match state.unsettled() {
            Some(unsettled) => self.settle(state, unsettled).await.map(Some),
            None => Ok(None),
        };
        file.report()?;
        settled
    }

    /// Waits for accepted writes of an inode that may be open in this process; returns its state if it is.
    async fn settle_writes_of(&self, inode: InodeId) -> Option<Arc<FileState>> {
        let state = self.0.shared.open_state(inode)?;
        self.settle_writes(&state).await;
        Some(state)
    }

    async fn settle(&self, state: &FileState, unsettled: Unsettled) -> Result<Attributes> {
        let settle = Operation::Settle { inode: state.inode(), written: Some(unsettled.written) };
        let attributes = self.meta_entry(settle, &MetaOptions::root()).await?;
        self.told(state, Some(&unsettled), &attributes);
        Ok(attributes)
    }

    /// Meta has heard of `unsettled` and answers with `attributes`. They are taken over first: nobody may see the
    /// file shorter in between.
    fn told(&self, state: &FileState, unsettled: Option<&Unsettled>, attributes: &Attributes) {
        self.0.shared.saw(attributes);
        state.refresh(attributes);
        if let Some(unsettled) = unsettled {
            state.settled(unsettled);
        }
    }

    /// Waits for accepted writes of a file, settles its length and makes its metadata durable. Whether a write failed
    /// is told by [`OpenFile::report`], to each open for itself.
    pub async fn fsync(&self, inode: InodeId) -> Result<Attributes> {
        let state = self.settle_writes_of(inode).await;
        let unsettled = state.as_ref().and_then(|state| state.unsettled());
        let written = unsettled.as_ref().map(|unsettled| unsettled.written);
        let attributes = self.meta_entry(Operation::Sync { inode, written }, &MetaOptions::root()).await?;
        match state {
            Some(state) => self.told(&state, unsettled.as_ref(), &attributes),
            None => self.0.shared.saw(&attributes),
        }
        Ok(attributes)
    }

    /// Ends an open. What was written is settled; the last open of an unlinked file lets its data go. The
    /// answer is what meta knows afterwards. The open has ended also if it fails.
    pub async fn close(&self, handle: u64) -> Result<Attributes> {
        if let Some(file) = self.0.shared.open(handle) {
            self.settle_writes(file.state()).await;
        }
        let Some(file) = self.0.shared.remove_open(handle) else {
            return Err(ClientError::new(Status::BadHandle, format!("no open file has the handle {handle}")));
        };
        let state = file.state();
        let unsettled = if file.flags().write { state.unsettled() } else { None };
        let written = unsettled.as_ref().map(|unsettled| unsettled.written);
        let close = Operation::Close { inode: state.inode(), session: file.session(), written };
        let attributes = self.meta_entry(close, &MetaOptions::root()).await?;
        self.told(state, unsettled.as_ref(), &attributes);
        file.report()?;
        Ok(attributes)
    }

    /// Attributes of an inode, with what this process wrote and meta hasn't heard of.
    pub async fn attributes(&self, inode: InodeId, options: &MetaOptions) -> Result<Attributes> {
        let mut attributes = self.meta_entry(Operation::GetAttributes { inode }, options).await?;
        self.overlay(&mut attributes);
        Ok(attributes)
    }

    /// Adds to attributes from meta what only this process knows yet, and takes over what is new.
    pub fn overlay(&self, attributes: &mut Attributes) {
        self.0.shared.correct(attributes);
        if let Some(state) = self.0.shared.open_state(attributes.inode) {
            state.refresh(attributes);
            state.overlay(attributes);
            // Meta may have been told in between.
            self.0.shared.correct(attributes);
        }
    }

    /// Changes attributes. What was written before is settled first if a length or time is set, so that the change
    /// is the later of the two.
    pub async fn set_attributes(
        &self,
        inode: InodeId,
        set: SetAttributes,
        options: &MetaOptions,
    ) -> Result<Attributes> {
        if (set.length.is_some() || set.modified.is_some())
            && let Some(state) = self.settle_writes_of(inode).await
            && let Some(unsettled) = state.unsettled()
        {
            self.settle(&state, unsettled).await?;
        }
        let mut attributes = self.meta_entry(Operation::SetAttributes { inode, set }, options).await?;
        self.0.shared.saw(&attributes);
        self.overlay(&mut attributes);
        Ok(attributes)
    }

    /// Renews capabilities at half their life (R20), for as long as the process runs. One reactor of a process
    /// runs it.
    pub async fn keep_capabilities(self) {
        loop {
            self.0.rt.sleep(RENEWAL_PERIOD).await;
            let now = self.0.rt.now();
            let due: Vec<_> = self.0.shared.opens().into_iter().filter(|f| f.renew_at() <= now).collect();
            for batch in due.chunks(RENEWALS_PER_REQUEST) {
                if let Err(error) = self.renew(batch).await {
                    tracing::warn!(%error, "capabilities are not renewed");
                    break;
                }
            }
        }
    }

    /// Renews the capabilities of some opens.
    pub(crate) async fn renew(&self, files: &[Arc<OpenFile>]) -> Result<()> {
        let asked = self.0.rt.now();
        let opens = files.iter().map(|f| (f.state().inode(), f.session())).collect();
        let writers = files.iter().filter(|f| f.flags().write).map(|f| f.session()).collect();
        let answer = self.meta(Operation::Renew { opens, writers }, &MetaOptions::root()).await?;
        let Answer::Renewed { opens, capability_ms, .. } = answer else { return Err(unexpected(&answer)) };
        for (file, renewed) in files.iter().zip(opens) {
            if renewed.session != file.session() {
                continue;
            }
            match renewed.capability {
                Some(capability) => file.set_grant(Grant::new(capability, asked, capability_ms.into())),
                None => {
                    tracing::warn!(inode = %renewed.inode, status = %renewed.status, "an open file is gone")
                }
            }
        }
        Ok(())
    }
}
