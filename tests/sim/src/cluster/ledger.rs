//! Files with one writer each, whose content and length somebody keeps a ledger of: appended and synced files,
//! files that another client truncates (R19), and files that are removed while open (R18).

use super::workload::{CELLS_PER_CHUNK, Stage, is_over, think};
use crate::check::chunk::{CELL, Stamp, fill, stamps};
use crate::world::between;
use ember_client::{Client, ClientError, MetaOptions, OpenFile};
use ember_rt::SharedBuf;
use ember_types::layout::SplitMix64;
use ember_types::{InodeId, Status};
use ember_wire::meta::{OpenFlags, Operation, SetAttributes};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// What must be found in a file.
#[derive(Clone, Default, Debug)]
pub struct Expected {
    /// Its name in the ledger directory.
    pub name: Vec<u8>,
    /// Stamps of its cells; the length is theirs exactly.
    pub cells: Vec<Stamp>,
    /// A last write of unknown outcome: first cell, stamp, number of cells.
    pub maybe: Option<(u32, Stamp, u32)>,
    /// It was several writes that nobody waited for: any part of it may have been done.
    pub streamed: bool,
    /// An operation on length or name had no answer: only that what is found was written.
    pub uncertain: bool,
    /// Its removal was acknowledged.
    pub removed: bool,
}

/// All ledgers.
#[derive(Default)]
pub struct Ledger {
    files: RefCell<BTreeMap<InodeId, Expected>>,
    /// Written files that wait for another client to truncate or remove them.
    offers: RefCell<Vec<(InodeId, Offer)>>,
    next: RefCell<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Offer {
    Truncate,
    Remove,
}

impl Ledger {
    /// What must be found, by inode.
    pub fn files(&self) -> BTreeMap<InodeId, Expected> {
        self.files.borrow().clone()
    }
    fn change(&self, inode: InodeId, change: impl FnOnce(&mut Expected)) {
        change(self.files.borrow_mut().entry(inode).or_default());
    }
    fn name(&self) -> Vec<u8> {
        *self.next.borrow_mut() += 1;
        format!("f{}", self.next.borrow()).into_bytes()
    }
}

struct Worker {
    client: Client,
    stage: Rc<Stage>,
    ledger: Rc<Ledger>,
    rng: RefCell<SplitMix64>,
}

/// A worker on files with ledgers. Ends when the run is over or the client's session is.
pub async fn ledger_worker(client: Client, stage: Rc<Stage>, ledger: Rc<Ledger>, rng: SplitMix64) {
    let worker = Worker { client, stage, ledger, rng: RefCell::new(rng) };
    while think(worker.client.rt(), &worker.stage, &worker.rng).await {
        let kind = worker.rng.borrow_mut().below(10);
        let result = match kind {
            0..4 => worker.append().await,
            4..6 => worker.offer(Offer::Truncate).await,
            6..8 => worker.offer(Offer::Remove).await,
            _ => worker.accept().await,
        };
        if result.is_err_and(|error| is_over(&error)) {
            return;
        }
    }
}

impl Worker {
    fn draw(&self, low: u64, high: u64) -> u64 {
        between(&mut self.rng.borrow_mut(), low, high)
    }
    async fn create(&self) -> Result<Arc<OpenFile>, ClientError> {
        let name = self.ledger.name();
        let dir = self.stage.setup.borrow().ledger;
        let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
        self.stage.history.asked();
        let opened = self.client.create(dir, &name, 0o644, true, flags, &MetaOptions::root()).await?;
        self.ledger.change(opened.attributes.inode, |file| file.name = name);
        Ok(opened.file)
    }
    /// Writes cells, and notes them.
    async fn write(&self, file: &OpenFile, at: u32, count: u32) -> Result<(), ClientError> {
        let inode = file.state().inode();
        let stamp = self.stage.history.stamp();
        self.stage.history.asked();
        self.ledger.change(inode, |own| own.maybe = Some((at, stamp, count)));
        let data = SharedBuf::from(&fill(stamp, at, count)[..]);
        self.client.write(file, u64::from(at) * CELL as u64, data).await?;
        self.ledger.change(inode, |own| {
            let end = (at + count) as usize;
            own.cells.resize(own.cells.len().max(end), 0);
            own.cells[at as usize..end].fill(stamp);
            own.maybe = None;
        });
        Ok(())
    }

    /// Appends cells with writes that are not waited for, reads them back, and waits for all.
    async fn stream(&self, file: &Arc<OpenFile>, at: u32) -> Result<(), ClientError> {
        let inode = file.state().inode();
        let (stamp, count) = (self.stage.history.stamp(), self.draw(2, 80) as u32);
        self.ledger.change(inode, |own| (own.maybe, own.streamed) = (Some((at, stamp, count)), true));
        let mut done = 0;
        while done < count {
            let cells = (self.draw(1, 12) as u32).min(count - done);
            self.stage.history.asked();
            let data = SharedBuf::from(&fill(stamp, at + done, cells)[..]);
            self.client.write_behind(file, u64::from(at + done) * CELL as u64, data).await?;
            done += cells;
        }
        if self.draw(0, 1) == 0 {
            let (offset, length) = (u64::from(at) * CELL as u64, u64::from(count) * CELL as u64);
            let segments = self.client.read(file, offset, length).await?;
            let bytes: Vec<u8> = segments.iter().flat_map(|s| s.iter().copied()).collect();
            let found = stamps(&bytes, at);
            if found != Ok(vec![stamp; count as usize]) {
                // What failed is not there.
                file.report()?;
                let text = format!("cells {at} to {} of inode {inode}: {found:?}", at + count);
                self.stage.world.fail("what was accepted is read", &text);
            }
        }
        self.client.fsync(inode).await?;
        file.report()?;
        self.ledger.change(inode, |own| {
            own.cells.resize(own.cells.len().max((at + count) as usize), 0);
            own.cells[at as usize..(at + count) as usize].fill(stamp);
            (own.maybe, own.streamed) = (None, false);
        });
        self.stage.world.trace().count("streams of writes that nobody waited for", 1);
        Ok(())
    }

    /// Grows a file, overwrites parts of it, syncs it now and then; its client may die before it is closed.
    async fn append(&self) -> Result<(), ClientError> {
        let file = self.create().await?;
        let inode = file.state().inode();
        for _ in 0..self.draw(1, 5) {
            let end = self.ledger.files.borrow().get(&inode).map_or(0, |f| f.cells.len() as u32);
            let at =
                if self.draw(0, 3) == 0 && end > 0 { self.draw(0, u64::from(end) - 1) as u32 } else { end };
            match self.draw(0, 3) {
                0 => self.stream(&file, at).await?,
                _ => self.write(&file, at, self.draw(1, 24) as u32).await?,
            }
            if self.draw(0, 2) == 0 {
                self.stage.history.asked();
                self.client.fsync(inode).await?;
            }
            if !think(self.client.rt(), &self.stage, &self.rng).await {
                break;
            }
        }
        if self.draw(0, 3) > 0 {
            self.stage.history.asked();
            self.client.close(file.handle()).await?;
        }
        Ok(())
    }

    /// Writes a file, leaves its length unsettled and its handle open, and lets another client have at it.
    async fn offer(&self, offer: Offer) -> Result<(), ClientError> {
        let file = self.create().await?;
        let inode = file.state().inode();
        self.write(&file, 0, self.draw(8, 40) as u32).await?;
        if offer == Offer::Remove {
            self.client.fsync(inode).await?;
        }
        self.ledger.offers.borrow_mut().push((inode, offer));
        let rounds = self.draw(1, 12);
        for _ in 0..rounds {
            self.client.rt().sleep(Duration::from_millis(self.draw(50, 1500))).await;
            if self.stage.stop.get() {
                return Ok(());
            }
            if offer == Offer::Remove {
                self.read_open(&file).await?;
            }
        }
        // Nobody is to take it from now on.
        self.ledger.offers.borrow_mut().retain(|(own, _)| *own != inode);
        self.stage.history.asked();
        match self.client.close(file.handle()).await {
            Err(error) if error.status == Status::Stale => Ok(()),
            result => result.map(|_| ()),
        }
    }

    /// A file that is open keeps its content, whether it has a name or not (R18).
    async fn read_open(&self, file: &OpenFile) -> Result<(), ClientError> {
        let expected = self.ledger.files.borrow().get(&file.state().inode()).cloned().unwrap_or_default();
        self.stage.history.asked();
        let length = (expected.cells.len() * CELL) as u64;
        let Ok(segments) = self.client.read(file, 0, length).await else { return Ok(()) };
        let bytes: Vec<u8> = segments.iter().flat_map(|s| s.iter().copied()).collect();
        let found = stamps(&bytes, 0);
        if found.as_ref() != Ok(&expected.cells) {
            let text = format!("{:?} of inode {}, found {found:?}", expected, file.state().inode());
            self.stage.world.fail("an open file keeps its content (R18)", &text);
        }
        Ok(())
    }

    /// Takes an offer of another client.
    async fn accept(&self) -> Result<(), ClientError> {
        let offer = {
            let mut offers = self.ledger.offers.borrow_mut();
            if offers.is_empty() { None } else { Some(offers.remove(0)) }
        };
        match offer {
            None => Ok(()),
            Some((inode, Offer::Truncate)) => self.truncate(inode).await,
            Some((inode, Offer::Remove)) => self.remove(inode).await,
        }
    }

    async fn truncate(&self, inode: InodeId) -> Result<(), ClientError> {
        let mut lengths = vec![self.draw(0, 6) as usize];
        if self.draw(0, 1) == 0 {
            lengths.push(self.draw(8, 30) as usize);
        }
        for cells in lengths {
            self.ledger.change(inode, |file| file.uncertain = true);
            let set = SetAttributes { length: Some((cells * CELL) as u64), ..SetAttributes::default() };
            self.stage.history.asked();
            self.client.set_attributes(inode, set, &MetaOptions::root()).await?;
            self.ledger.change(inode, |file| {
                file.cells.resize(cells, 0);
                file.uncertain = false;
            });
        }
        Ok(())
    }

    async fn remove(&self, inode: InodeId) -> Result<(), ClientError> {
        let Some(file) = self.ledger.files.borrow().get(&inode).cloned() else { return Ok(()) };
        self.ledger.change(inode, |file| file.uncertain = true);
        let parent = self.stage.setup.borrow().ledger;
        self.stage.history.asked();
        self.client.meta(Operation::Unlink { parent, name: file.name }, &MetaOptions::root()).await?;
        self.ledger.change(inode, |file| file.removed = true);
        Ok(())
    }
}

/// Compares every ledger with what a fresh client finds after all writers have gone and their sessions ended.
pub async fn verify(client: &Client, stage: &Stage, ledger: &Ledger) {
    for (inode, expected) in ledger.files() {
        if let Err(text) = verify_file(client, inode, &expected).await {
            let text = format!("inode {inode}: {text}\nexpected {expected:?}");
            stage.world.fail("files hold what was acknowledged (R3, R19)", &text);
            return;
        }
        stage.world.trace().count("files compared with their ledgers", 1);
    }
}

async fn verify_file(client: &Client, inode: InodeId, expected: &Expected) -> Result<(), String> {
    if expected.removed || (expected.uncertain && expected.cells.is_empty()) {
        return Ok(());
    }
    let root = MetaOptions::root();
    let flags = OpenFlags { read: true, ..OpenFlags::default() };
    let opened = match client.open(inode, flags, &root).await {
        Ok(opened) => opened,
        Err(_) if expected.uncertain => return Ok(()),
        Err(error) => return Err(format!("can't be opened: {error}")),
    };
    let length = opened.attributes.length;
    let segments = client.read(&opened.file, 0, length).await.map_err(|e| format!("can't be read: {e}"))?;
    let bytes: Vec<u8> = segments.iter().flat_map(|s| s.iter().copied()).collect();
    let found = stamps(&bytes, 0).map_err(|at| format!("byte {at} was written by nobody"))?;
    let closed = client.close(opened.file.handle()).await;
    closed.map_err(|error| format!("can't be closed: {error}"))?;
    if expected.uncertain || matches(expected, &found) { Ok(()) } else { Err(format!("found {found:?}")) }
}

fn matches(expected: &Expected, found: &[Stamp]) -> bool {
    let own = &expected.cells;
    let Some((at, stamp, count)) = expected.maybe else { return own == found };
    let range = at as usize..(at + count) as usize;
    let longest = own.len().max(range.end);
    // Of a write across the border of two chunks either part may have been done.
    let border = found.len().is_multiple_of(CELLS_PER_CHUNK as usize);
    let within = own.len() <= found.len() && found.len() <= longest;
    let whole = found.len() == own.len() || found.len() == longest;
    let length_fits = within && (whole || border || expected.streamed);
    length_fits
        && found.iter().enumerate().all(|(cell, &seen)| {
            let done = own.get(cell).copied().unwrap_or(0);
            seen == done || (range.contains(&cell) && seen == stamp)
        })
}
