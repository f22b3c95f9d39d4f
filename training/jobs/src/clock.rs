//! Time, for figures only.

/// What comes of some work, and how long it took.
#[expect(clippy::disallowed_methods, reason = "a job runs outside the file system's seam")]
pub(crate) fn seconds_of<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let begun = std::time::Instant::now();
    let done = work();
    (done, begun.elapsed().as_secs_f64())
}
