//! Bytes of a file as shared pages: a copy of a file costs nothing, and so does a page of zeros.

use std::rc::Rc;

pub const PAGE: usize = 4096;
pub const SECTOR: usize = 512;
pub const SECTORS: usize = PAGE / SECTOR;

pub struct Page {
    hash: u64,
    bytes: [u8; PAGE],
}

/// A page; `None` is zeros.
pub type PageRef = Option<Rc<Page>>;

pub fn mix(hash: u64, value: u64) -> u64 {
    (hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

pub fn page(bytes: [u8; PAGE]) -> PageRef {
    let mut hash = 1;
    let mut any = 0;
    for word in bytes.chunks_exact(8) {
        let word = u64::from_le_bytes(word.try_into().unwrap());
        any |= word;
        hash = mix(hash, word);
    }
    (any != 0).then(|| Rc::new(Page { hash, bytes }))
}

/// The pages of `data`, the last one filled with zeros.
pub fn pages_of(data: &[u8]) -> Vec<PageRef> {
    let of = |part: &[u8]| {
        if *part == [0; PAGE][..part.len()] {
            return None;
        }
        let mut bytes = [0; PAGE];
        bytes[..part.len()].copy_from_slice(part);
        page(bytes)
    };
    data.chunks(PAGE).map(of).collect()
}

pub fn same(a: &PageRef, b: &PageRef) -> bool {
    a.as_ref().map(|page| page.hash) == b.as_ref().map(|page| page.hash)
}

/// One sector of a page.
pub fn sector(page: &PageRef, i: usize) -> &[u8] {
    const ZEROS: [u8; SECTOR] = [0; SECTOR];
    page.as_ref().map_or(&ZEROS, |page| &page.bytes[i * SECTOR..(i + 1) * SECTOR])
}

/// A file's bytes.
#[derive(Clone, Default)]
pub struct Pages {
    len: u64,
    pages: Rc<Vec<PageRef>>,
}

impl Pages {
    pub fn new(bytes: &[u8]) -> Self {
        Self { len: bytes.len() as u64, pages: Rc::new(pages_of(bytes)) }
    }
    pub fn len(&self) -> u64 {
        self.len
    }
    pub fn get(&self, index: usize) -> &PageRef {
        self.pages.get(index).unwrap_or(&None)
    }
    /// Fills `out` from `offset` on; returns the number of bytes, fewer at the end of the file.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> usize {
        let n = out.len().min(self.len.saturating_sub(offset) as usize);
        let mut at = 0;
        while at < n {
            let from = offset as usize + at;
            let (index, within) = (from / PAGE, from % PAGE);
            let part = (PAGE - within).min(n - at);
            match self.get(index) {
                Some(page) => out[at..at + part].copy_from_slice(&page.bytes[within..within + part]),
                None => out[at..at + part].fill(0),
            }
            at += part;
        }
        n
    }
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        self.read(0, &mut bytes);
        bytes
    }
    pub fn extend(&mut self, len: u64) {
        self.len = self.len.max(len);
    }
    pub fn put(&mut self, index: usize, page: PageRef) {
        self.extend(((index + 1) * PAGE) as u64);
        if page.is_none() && self.get(index).is_none() {
            return;
        }
        let pages = Rc::make_mut(&mut self.pages);
        if pages.len() <= index {
            pages.resize(index + 1, None);
        }
        pages[index] = page;
    }
    pub fn put_sector(&mut self, index: usize, i: usize, from: &PageRef) {
        let len = self.len.max((index * PAGE + (i + 1) * SECTOR) as u64);
        let mut bytes = self.get(index).as_ref().map_or([0; PAGE], |page| page.bytes);
        bytes[i * SECTOR..(i + 1) * SECTOR].copy_from_slice(sector(from, i));
        let before = self.len;
        self.put(index, page(bytes));
        self.len = before.max(len);
    }
    pub fn zero(&mut self, offset: u64, len: u64) {
        let end = (offset + len).min(self.len);
        for index in offset as usize / PAGE..(end as usize).div_ceil(PAGE) {
            if self.get(index).is_some() {
                Rc::make_mut(&mut self.pages)[index] = None;
            }
        }
    }
    pub fn hash(&self) -> u64 {
        let there = self.pages.iter().enumerate().filter_map(|(i, page)| page.as_ref().map(|p| (i, p.hash)));
        there.fold(self.len, |hash, (i, page)| mix(mix(hash, i as u64), page))
    }
}
