//! Checksum pages at run time: read when they are needed, kept in a bounded cache, written by a checkpoint.
//!
//! A checkpoint names the sequence of each page. What is written later under a higher one is as good: a
//! block's checksum never changes while its slot lives, and those of slots that were taken since stand in the
//! log. So a page may be read if its sequence is that or higher, and a checkpoint writes at the other place
//! than the one that the last durable one names: of each page that it needs, a whole copy is there.

use crate::cache::Cache;
use crate::class::{BLOCK, CLASSES, blocks_of, slot_blocks};
use crate::crc;
use crate::error::{EngineError, Result};
use crate::files::{File, Files};
use crate::index::{Wanted, valid_bytes};
use crate::inner::{Inner, add};
use crate::record::{Content, Extent};
use crate::sums::{PAGE_BYTES, Page, PageId, sums_bytes, sums_name};
use ember_rt::SharedBuf;
use ember_rt::disk::Priority;
use ember_rt::select::{join_all, yield_now};
use ember_types::checksum::crc32c;
use ember_types::mutant;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Pages that a checkpoint reads and writes at once.
const AT_ONCE: usize = 32;
/// A file of checksums grows by a multiple of this many bytes.
const STEP: u64 = 64 << 10;
/// Slots whose memory is freed between two turns of the reactor's other tasks.
const FREED_AT_ONCE: usize = 2048;
/// Blocks read at once to find checksums again.
const PIECE: u32 = 256;

/// The sequence of each page; 0: it was never written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Named(Vec<Vec<u32>>);

impl Default for Named {
    fn default() -> Self {
        Self(vec![Vec::new(); usize::from(CLASSES)])
    }
}

impl Named {
    pub(crate) fn get(&self, id: PageId) -> u32 {
        self.0[usize::from(id.class)].get(id.page as usize).copied().unwrap_or(0)
    }
    pub(crate) fn set(&mut self, id: PageId, sequence: u32) {
        let class = &mut self.0[usize::from(id.class)];
        if class.len() <= id.page as usize {
            class.resize(id.page as usize + 1, 0);
        }
        class[id.page as usize] = sequence;
    }
    /// Takes the sequences that follow; `false` if they don't.
    pub(crate) fn extend(&mut self, class: u8, first: u32, sequences: &[u32]) -> bool {
        let class = &mut self.0[usize::from(class)];
        let follows = class.len() == first as usize;
        if follows {
            class.extend_from_slice(sequences);
        }
        follows
    }
    /// The sequences of pages `[first, first + limit)` of a class once `written` counts.
    pub(crate) fn with(&self, written: &Written, class: u8, first: u32, limit: u32) -> Vec<u32> {
        let id = |page| PageId { class, page };
        let last = written.range(id(0)..=id(u32::MAX)).next_back().map_or(0, |(id, _)| id.page as usize + 1);
        let end = self.0[usize::from(class)].len().max(last).min(first as usize + limit as usize) as u32;
        let mut all: Vec<u32> = (first..end).map(|page| self.get(id(page))).collect();
        for (id, sequence) in written.range(id(first)..id(end.max(first))) {
            all[(id.page - first) as usize] = *sequence;
        }
        all
    }
    /// The end of the last written page of a class in its file, in bytes; 0 if there is none.
    pub(crate) fn end(&self, class: u8) -> u64 {
        let all = &self.0[usize::from(class)];
        let last = all.iter().rposition(|sequence| *sequence > 0);
        last.map_or(0, |page| PageId { class, page: page as u32 }.offset(all[page]) + PAGE_BYTES as u64)
    }
}

/// Pages that a checkpoint wrote, with their sequences.
pub(crate) type Written = BTreeMap<PageId, u32>;

/// The pages of a target.
pub(crate) struct Pages {
    pub(crate) named: Named,
    pub(crate) files: Vec<Option<File>>,
    cache: Cache,
    /// Pages that were read at the place that no checkpoint names: perhaps not durable.
    unconfirmed: BTreeSet<PageId>,
}

impl Pages {
    pub(crate) fn open(files: &Files, named: Named, cache_bytes: u64) -> Result<Self> {
        let (files, cache) = (open_sums(files)?, Cache::new(cache_bytes));
        Ok(Self { named, files, cache, unconfirmed: BTreeSet::new() })
    }
}

/// The files of checksums that are there.
pub(crate) fn open_sums(files: &Files) -> Result<Vec<Option<File>>> {
    (0..CLASSES).map(|class| files.open(&sums_name(class))).collect()
}

/// Reads a page whose sequence is `named` or higher.
pub(crate) async fn read_page(
    files: &Files,
    file: Option<&File>,
    (target, id, named): (u64, PageId, u32),
    priority: Priority,
) -> Result<(u32, Page)> {
    if named == 0 {
        return Ok((0, Page::default()));
    }
    let corrupt = |what| EngineError::corrupt(files.path(&sums_name(id.class)), id.offset(named), what);
    let file = file.ok_or_else(|| corrupt("the file is missing"))?;
    let mut failed = None;
    for sequence in [named, named.wrapping_add(1)] {
        let bytes = match files.read(file, priority, id.offset(sequence), PAGE_BYTES).await {
            Ok(bytes) => bytes,
            Err(error) => {
                failed.get_or_insert(error);
                continue;
            }
        };
        match Page::decode(&bytes, target, id) {
            Ok((found, page)) if found >= named || mutant!(r14_old_sum_page_believed) => {
                return Ok((found, page));
            }
            Ok(_) => drop(failed.get_or_insert_with(|| corrupt("checksum page is an old one"))),
            Err(what) => drop(failed.get_or_insert_with(|| corrupt(what))),
        }
    }
    Err(failed.unwrap_or_else(|| corrupt("checksum page is damaged")))
}

impl Wanted {
    /// Takes what is wanted of a page. The error is the index of one that the page doesn't know.
    pub(crate) fn take(&mut self, id: PageId, page: &Page) -> Result<(), u32> {
        for missing in self.missing.iter().filter(|missing| missing.part.page == id) {
            for i in 0..missing.part.blocks {
                let index = missing.part.index + i;
                self.sums[missing.out + i as usize] = page.get(index).ok_or(index)?;
            }
        }
        self.missing.retain(|missing| missing.part.page != id);
        Ok(())
    }
    pub(crate) fn pages(&self) -> BTreeSet<PageId> {
        self.missing.iter().map(|missing| missing.part.page).collect()
    }
}

impl Inner {
    /// A page, from the cache or the disk; a scrub's always from the disk.
    async fn page(&self, id: PageId, priority: Priority) -> Result<Rc<Page>> {
        let scrub = priority == Priority::Scrub;
        loop {
            let (named, file) = {
                let mut pages = self.pages.borrow_mut();
                if let Some(page) = pages.cache.get(id).filter(|_| !scrub) {
                    return Ok(page.clone());
                }
                (pages.named.get(id), pages.files[usize::from(id.class)].clone())
            };
            let of = (self.identity.target.0, id, named);
            let read = read_page(&self.files, file.as_ref(), of, priority).await;
            add(&self.counters.sum_pages_read, u64::from(named > 0));
            let mut pages = self.pages.borrow_mut();
            if pages.named.get(id) != named {
                // A checkpoint wrote it meanwhile, perhaps where it was read.
                continue;
            }
            match read {
                Ok((sequence, page)) => {
                    if sequence != named {
                        pages.named.set(id, sequence);
                        pages.unconfirmed.insert(id);
                    }
                    let page = Rc::new(page);
                    if !scrub {
                        pages.cache.insert(id, sequence, page.clone());
                    }
                    return Ok(page);
                }
                Err(error) => {
                    add(&self.counters.corrupt_sum_pages, 1);
                    let Some(page) = pages.cache.get(id) else { return Err(error) };
                    // The next checkpoint writes it anew.
                    self.index.borrow_mut().overlay.find_page(id, page);
                    return Ok(page.clone());
                }
            }
        }
    }

    fn unknown(&self, id: PageId, index: u32) -> EngineError {
        let place = id.first() + u64::from(index);
        let what = format!("the checksum of block {place} of the class' data file was lost with its page");
        let named = self.pages.borrow().named.get(id);
        EngineError::corrupt(self.files.path(&sums_name(id.class)), id.offset(named), what)
    }

    /// Takes what is wanted from pages in the cache, if it may.
    pub(crate) fn take_cached(&self, wanted: &mut Wanted, priority: Priority) -> Result<()> {
        if wanted.missing.is_empty() || priority == Priority::Scrub {
            return Ok(());
        }
        let mut pages = self.pages.borrow_mut();
        let mut absent = 0;
        while let Some(id) = wanted.missing.get(absent).map(|missing| missing.part.page) {
            match pages.cache.get(id).map(|page| wanted.take(id, page)) {
                Some(Ok(())) => {}
                Some(Err(index)) => {
                    drop(pages);
                    return Err(self.unknown(id, index));
                }
                None => absent += 1,
            }
        }
        Ok(())
    }

    /// Takes the rest from the disk.
    pub(crate) async fn take_read(&self, wanted: &mut Wanted, priority: Priority) -> Result<()> {
        let ids = wanted.pages();
        let pages = join_all(ids.iter().map(|id| self.page(*id, priority))).await;
        for (id, page) in ids.into_iter().zip(pages) {
            wanted.take(id, &*page?).map_err(|index| self.unknown(id, index))?;
        }
        Ok(())
    }

    /// Checksums of blocks `[from, to)` of a content that is made of parts of `old`.
    pub(crate) async fn sums_of(
        self: &Rc<Self>,
        content: &Content,
        (from, to): (u32, u32),
        old: &Content,
        priority: Priority,
    ) -> Result<Vec<u32>> {
        let mut lost = false;
        loop {
            let mut wanted = self.index.borrow().wanted(content, from, to);
            let taken = match self.take_cached(&mut wanted, priority) {
                Ok(()) => self.take_read(&mut wanted, priority).await,
                Err(error) => Err(error),
            };
            match taken {
                Ok(()) => return Ok(wanted.sums),
                Err(error) if lost => return Err(error),
                Err(error) => drop(self.find_sums(old, (0, 0), priority, error).await?),
            }
            lost = true;
        }
    }

    /// Finds checksums again whose page was lost, by reading the whole content: its own checksum tells whether
    /// these are its bytes. `error` is the answer if they are not.
    pub(crate) async fn find_sums(
        self: &Rc<Self>,
        content: &Content,
        (from, to): (u32, u32),
        priority: Priority,
        error: EngineError,
    ) -> Result<Vec<u32>> {
        let blocks = blocks_of(content.length);
        if !error.is_bad_bytes() || to > blocks {
            return Err(error);
        }
        let _held = self.hold(content.extents.iter().map(Extent::at).collect());
        let mut sums = Vec::with_capacity(blocks as usize);
        while (sums.len() as u32) < blocks {
            let first = sums.len() as u32;
            let end = (first + PIECE).min(blocks);
            let buf = self.read_raw(content, (first, end), priority).await?;
            let valid = |block| valid_bytes(content.length, block) as usize;
            let block = |block: u32| &buf[((block - first) * BLOCK) as usize..][..valid(block)];
            sums.extend((first..end).map(|number| crc32c(block(number))));
        }
        if crc::combine(&sums, content.length) != content.checksum {
            return Err(error);
        }
        tracing::warn!(%error, "checksums of a chunk were lost and found again from its bytes");
        add(&self.counters.sums_found, u64::from(blocks));
        let overlay = &mut self.index.borrow_mut().overlay;
        for extent in &content.extents {
            let part = &sums[extent.first() as usize..extent.end() as usize];
            overlay.find(extent.at(), extent.block.into(), part);
        }
        Ok(sums[from as usize..to as usize].to_vec())
    }

    /// Makes the class' file of checksums if it isn't there, and room in it for `slots` slots.
    pub(crate) async fn grow_sums(&self, class: u8, slots: u64) -> Result<()> {
        let file = self.sums_file(class)?;
        let end = sums_bytes(slots * u64::from(slot_blocks(class))).next_multiple_of(STEP);
        let len = self.files.len(&file)?;
        if end > len {
            self.files.allocate(&file, len, end - len).await?;
        }
        Ok(())
    }

    fn sums_file(&self, class: u8) -> Result<File> {
        let known = self.pages.borrow().files[usize::from(class)].clone();
        if let Some(file) = known {
            return Ok(file);
        }
        let file = self.files.create(&sums_name(class))?;
        self.pages.borrow_mut().files[usize::from(class)] = Some(file.clone());
        self.files.sync_dir().map(|()| file)
    }

    /// Writes what is frozen to pages, durably. Nothing counts before a checkpoint names it.
    pub(crate) async fn write_pages(&self) -> Result<Written> {
        let mut written = Written::new();
        let mut next = Some(PageId { class: 0, page: 0 });
        loop {
            let mut batch = Vec::new();
            while batch.len() < AT_ONCE
                && let Some(id) = next.and_then(|from| self.index.borrow().overlay.next_page(from))
            {
                batch.push(id);
                next = id.page.checked_add(1).map(|page| PageId { page, ..id });
            }
            if batch.is_empty() {
                break;
            }
            // One after the other, so that no two make a file.
            for class in batch.iter().map(|id| id.class).collect::<BTreeSet<u8>>() {
                self.sums_file(class)?;
            }
            let sequences = join_all(batch.iter().map(|id| self.write_page(*id))).await;
            for (id, sequence) in batch.into_iter().zip(sequences) {
                written.insert(id, sequence?);
            }
        }
        for class in written.keys().map(|id| id.class).collect::<BTreeSet<u8>>() {
            add(&self.counters.flushes, 1);
            self.files.sync(&self.sums_file(class)?).await?;
        }
        Ok(written)
    }

    async fn write_page(&self, id: PageId) -> Result<u32> {
        let file = self.sums_file(id.class)?;
        let base = match self.page(id, Priority::Resync).await {
            Ok(page) => page,
            Err(error @ (EngineError::Corrupt { .. } | EngineError::Io { .. })) => {
                // What it held is lost; the checksums that are known are not to be lost with it.
                tracing::warn!(%error, "checksum page is written anew");
                Rc::default()
            }
            Err(error) => return Err(error),
        };
        if self.pages.borrow().unconfirmed.contains(&id) {
            // It must be durable before the other place is written.
            self.files.sync(&file).await?;
            self.pages.borrow_mut().unconfirmed.remove(&id);
        }
        let step = if mutant!(r04_named_sum_page_overwritten) { 2 } else { 1 };
        let sequence = self.pages.borrow().named.get(id).checked_add(step);
        let sequence = sequence.ok_or_else(|| self.failed_error("a page was written too often"))?;
        let mut page = Page::clone(&base);
        self.index.borrow().overlay.fill_page(id, &mut page);
        let bytes = SharedBuf::from(page.encode(self.identity.target.0, id, sequence));
        self.files.write(&file, Priority::Resync, id.offset(sequence), bytes).await?;
        add(&self.counters.sum_pages_written, 1);
        let cache = &mut self.pages.borrow_mut().cache;
        if cache.contains(id) {
            cache.insert(id, sequence, Rc::new(page));
        }
        Ok(sequence)
    }

    /// The pages are named by a durable checkpoint.
    pub(crate) async fn pages_are_named(&self, written: &Written) {
        let mut thawed = {
            let pages = &mut *self.pages.borrow_mut();
            for (&id, &sequence) in written {
                pages.named.set(id, sequence);
                pages.cache.supersede(id, sequence);
            }
            self.index.borrow_mut().overlay.thaw(written.keys().copied())
        };
        while thawed.free(FREED_AT_ONCE) {
            yield_now().await;
        }
    }
}
