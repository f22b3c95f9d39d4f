//! Pages of all requests, divided evenly.

use crate::{PAGE, Result, demand};

/// What beginning a request costs, in pages.
const OVERHEAD: usize = 5;

/// What one part does: pages of requests `begin` to `end`, both included; nothing if `begin` is behind `end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// The first request.
    pub begin: usize,
    /// Its first page here.
    pub begin_page: usize,
    /// Which piece of it this is.
    pub begin_piece: usize,
    /// Whether it is in pieces.
    pub begin_is_split: bool,
    /// The last request; -1 if there is none.
    pub end: isize,
    /// The page behind its last one here.
    pub end_page: usize,
    /// Whether it is in pieces.
    pub end_is_split: bool,
}

/// Parts that are worked on side by side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule {
    /// As many as were asked for.
    pub parts: Vec<Part>,
    /// For each request, and behind the last, the number of pieces before it.
    pub pieces: Vec<usize>,
}

/// Divides requests of so many tokens each into `parts` parts. A request of no tokens has a page, with nothing in it.
///
/// # Errors
/// If `parts` is 0.
pub fn schedule(lengths: &[usize], parts: usize) -> Result<Schedule> {
    demand(parts > 0, "parts", || "must be at least 1".into())?;
    let pages = |request: usize| lengths[request].saturating_sub(1) / PAGE + 1;
    let all: usize = (0..lengths.len()).map(|request| pages(request) + OVERHEAD).sum();
    let payload = all.div_ceil(parts) + OVERHEAD;
    let mut made = Schedule { parts: Vec::with_capacity(parts), pieces: vec![0] };
    let (mut request, mut page, mut piece) = (0, 0, 0);
    for _ in 0..parts {
        let (begin, begin_page, begin_piece) = (request, page, piece);
        let mut room = payload;
        while request < lengths.len() {
            let left = pages(request) - page;
            if room < left + OVERHEAD {
                if room > OVERHEAD {
                    page += room - OVERHEAD;
                    piece += 1;
                }
                break;
            }
            made.pieces.push(made.pieces.last().copied().unwrap_or(0) + piece + 1);
            room -= left + OVERHEAD;
            (request, page, piece) = (request + 1, 0, 0);
        }
        let end = if page > 0 { request as isize } else { request as isize - 1 };
        let whole = |request: isize| match usize::try_from(request) {
            Ok(request) if lengths[request] > 0 => pages(request),
            _ => 0,
        };
        let end_page = if page > 0 { page } else { whole(end) };
        let (mut begin_is_split, mut end_is_split) = (begin_page > 0, page > 0);
        if end == begin as isize {
            begin_is_split |= end_is_split;
            end_is_split = begin_is_split;
        }
        made.parts.push(Part { begin, begin_page, begin_piece, begin_is_split, end, end_page, end_is_split });
    }
    Ok(made)
}
