//! Work on all processors.

/// `work` of each number below `count`, in order.
pub(crate) fn map<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(count).max(1);
    let each = count.div_ceil(threads);
    let share = |thread: usize| (thread * each).min(count)..((thread + 1) * each).min(count);
    std::thread::scope(|scope| {
        let work = &work;
        let others: Vec<_> =
            (1..threads).map(|t| scope.spawn(move || share(t).map(work).collect::<Vec<T>>())).collect();
        let mut all: Vec<T> = share(0).map(work).collect();
        for other in others {
            match other.join() {
                Ok(part) => all.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    })
}
