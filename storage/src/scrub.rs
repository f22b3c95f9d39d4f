//! Reading everything once in a while: what fails its checksum is repaired from another replica.

use crate::node::Node;
use crate::target::Target;
use ember_engine::EngineError;
use ember_rt::disk::Priority;
use ember_rt::watch;
use ember_types::ChunkId;
use std::rc::Rc;
use std::time::Duration;

/// Chunks listed at once.
const PAGE: usize = 256;
/// Least pause between two chunks.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// How often an idle scrub looks for work.
const IDLE: Duration = Duration::from_secs(10);

/// Scrubs every target in turn until `shutdown` turns true.
pub(crate) async fn run(node: Rc<Node>, shutdown: watch::Receiver<bool>) {
    let period = Duration::from_secs(node.context.config.scrub_period_s);
    if period.is_zero() {
        return;
    }
    while !*shutdown.borrow() {
        node.context.rt.sleep(IDLE).await;
        let chunks: usize = node.running().iter().map(|target| target.engine.len()).sum();
        // So slow that a round takes the period, and never faster than the bandwidth allows.
        let pause = period / u32::try_from(chunks.max(1)).unwrap_or(u32::MAX);
        for target in node.running() {
            scrub(&node, &target, pause.max(PAUSE_MIN), &shutdown).await;
        }
    }
}

async fn scrub(node: &Node, target: &Rc<Target>, pause: Duration, shutdown: &watch::Receiver<bool>) {
    let rate = node.context.config.scrub_bytes_per_s.max(1);
    let mut after: Option<ChunkId> = None;
    loop {
        let page = target.engine.list(after, PAGE);
        let Some((last, _)) = page.last() else { return };
        after = Some(*last);
        for (chunk, state) in page {
            let Some(content) = state.live() else { continue };
            let cost = Duration::from_nanos(u64::from(content.length).saturating_mul(1_000_000_000) / rate);
            node.context.rt.sleep(pause.max(cost)).await;
            if *shutdown.borrow() || target.engine.failure().is_some() {
                return;
            }
            match target.engine.verify(chunk, Priority::Scrub).await {
                Ok(()) | Err(EngineError::NotFound(_)) => {}
                Err(error) => target.bad_bytes(chunk, content.version, &error),
            }
        }
    }
}
