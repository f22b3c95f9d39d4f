//! A disk in memory that does everything at once and loses nothing.

use ember_rt::LocalBoxFuture;
use ember_rt::disk::{Completion, Disk, FileId, Op, OpKind, OpenMode, Space};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

/// Bytes of the file system.
const TOTAL: u64 = 1 << 40;
/// No file gets longer: whoever wants more is refused, as by a full disk.
const FILE_MAX: u64 = 64 << 20;

/// Files by name. Clones share the bytes until one is changed.
pub(crate) type Tree = BTreeMap<String, Arc<Vec<u8>>>;

#[derive(Default)]
struct State {
    files: Tree,
    open: BTreeMap<u32, String>,
    next_file: u32,
    ended: Vec<Completion>,
    waker: Option<Waker>,
}

/// The disk; clones are one disk.
#[derive(Clone, Default)]
pub(crate) struct Memory(Rc<RefCell<State>>);

impl Memory {
    pub(crate) fn new(files: Tree) -> Self {
        Self(Rc::new(RefCell::new(State { files, ..State::default() })))
    }
    /// What it holds now.
    pub(crate) fn files(&self) -> Tree {
        self.0.borrow().files.clone()
    }
}

fn range(len: usize, offset: u64, count: usize) -> std::ops::Range<usize> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(len);
    start..start.saturating_add(count).min(len)
}

fn put(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) -> io::Result<usize> {
    let end = offset.saturating_add(data.len() as u64);
    if end > FILE_MAX {
        return Err(io::ErrorKind::StorageFull.into());
    }
    bytes.resize(bytes.len().max(end as usize), 0);
    bytes[offset as usize..end as usize].copy_from_slice(data);
    Ok(data.len())
}

impl State {
    fn content(&mut self, file: FileId) -> io::Result<&mut Arc<Vec<u8>>> {
        let name = self.open.get(&file.0).ok_or(io::ErrorKind::InvalidInput)?;
        self.files.get_mut(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn run(&mut self, op: Op) -> Completion {
        let Op { token, file, kind, .. } = op;
        let mut buf = None;
        let result = self.content(file).and_then(|bytes| match kind {
            OpKind::Read { offset, len, buf: mut into } => {
                let part = range(bytes.len(), offset, len);
                let read = part.len();
                into.whole_mut()[..read].copy_from_slice(&bytes[part]);
                buf = Some(into);
                Ok(read)
            }
            OpKind::Write { offset, data } => put(Arc::make_mut(bytes), offset, &data),
            OpKind::Sync => Ok(0),
            OpKind::Allocate { offset, len } => {
                let end = offset.saturating_add(len);
                if end > FILE_MAX {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                if end > bytes.len() as u64 {
                    Arc::make_mut(bytes).resize(end as usize, 0);
                }
                Ok(0)
            }
            OpKind::Punch { offset, len } => {
                let part = range(bytes.len(), offset, usize::try_from(len).unwrap_or(usize::MAX));
                Arc::make_mut(bytes)[part].fill(0);
                Ok(0)
            }
        });
        Completion { token, result, buf }
    }
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for Memory {
    fn submit(&self, op: Op) {
        let mut state = self.0.borrow_mut();
        let done = state.run(op);
        state.ended.push(done);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
    fn poll(&self, out: &mut Vec<Completion>) {
        out.append(&mut self.0.borrow_mut().ended);
    }
    fn ready(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(poll_fn(|cx| {
            let mut state = self.0.borrow_mut();
            if !state.ended.is_empty() {
                return Poll::Ready(());
            }
            state.waker = Some(cx.waker().clone());
            Poll::Pending
        }))
    }
    fn open_file(&self, name: &str, mode: OpenMode) -> io::Result<FileId> {
        let mut state = self.0.borrow_mut();
        match state.files.contains_key(name) {
            true if mode.exclusive => return Err(io::ErrorKind::AlreadyExists.into()),
            false if !mode.create => return Err(missing()),
            false => drop(state.files.insert(name.to_owned(), Arc::default())),
            true => {}
        }
        state.next_file += 1;
        let id = state.next_file;
        state.open.insert(id, name.to_owned());
        Ok(FileId(id))
    }
    fn close_file(&self, file: FileId) {
        self.0.borrow_mut().open.remove(&file.0);
    }
    fn file_len(&self, file: FileId) -> io::Result<u64> {
        Ok(self.0.borrow_mut().content(file)?.len() as u64)
    }
    fn set_file_len(&self, _: FileId, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let prefix = format!("{dir}/");
        let state = self.0.borrow();
        Ok(state.files.keys().filter_map(|name| name.strip_prefix(&prefix)).map(str::to_owned).collect())
    }
    fn create_dir(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn remove_file(&self, name: &str) -> io::Result<()> {
        self.0.borrow_mut().files.remove(name).map(|_| ()).ok_or_else(missing)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let bytes = state.files.remove(from).ok_or_else(missing)?;
        state.files.insert(to.to_owned(), bytes);
        state.open.values_mut().filter(|name| *name == from).for_each(|name| to.clone_into(name));
        Ok(())
    }
    fn sync_dir(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn read_small(&self, name: &str) -> io::Result<Vec<u8>> {
        self.0.borrow().files.get(name).map(|bytes| bytes.to_vec()).ok_or_else(missing)
    }
    fn write_small(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.0.borrow_mut().files.insert(name.to_owned(), Arc::new(content.to_vec()));
        Ok(())
    }
    fn lock(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn space(&self) -> io::Result<Space> {
        Ok(Space { total: TOTAL, available: TOTAL / 2, file_system: 0 })
    }
    fn warnings(&self) -> Vec<&'static str> {
        Vec::new()
    }
}
