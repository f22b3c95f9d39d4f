//! What time alone brings about: messages sent again, accusations, questions asked again.

use super::active::{Job, Phase};
use super::{Ctx, Replica, UNRESPONSIVE};
use crate::io::Output;
use ember_types::{ChunkId, Instant, mutant};
use std::time::Duration;

/// The note "in use" is asked for again after so long.
const NOTE_AGAIN: Duration = Duration::from_millis(500);

enum Due {
    Step,
    SendSync,
}

impl Replica {
    pub(super) fn on_tick(&mut self, ctx: &mut Ctx) {
        if self.failed {
            return;
        }
        if self.confirm_at.is_some_and(|at| at <= ctx.now) {
            self.send_confirm(ctx);
        }
        if let (Some(at), Some(chain)) = (self.note_at, &self.chain)
            && at <= ctx.now
        {
            ctx.out.push(Output::NoteInUse(chain.version));
            self.note_at = Some(ctx.now + NOTE_AGAIN);
        }
        // The farther from the end, the longer: the one next to the silent replica speaks first.
        let patience = UNRESPONSIVE * self.members_behind();
        let mut silent = false;
        let mut due = Vec::new();
        for (&chunk, active) in &mut self.active {
            match &mut active.job {
                Some(Job::Update(update)) => {
                    // Never an abort for time alone (R13): a report, and mgmtd decides (R10).
                    if let (Phase::Forwarding(_) | Phase::Held, Some(since)) = (update.phase, update.since)
                        && ctx.now.since(since) >= patience
                    {
                        silent = true;
                        update.since = Some(ctx.now);
                    }
                    if passed(update.retry_at, ctx.now) {
                        due.push((chunk, Due::Step));
                    }
                }
                Some(Job::Sync { sent: None, retry_at }) if passed(*retry_at, ctx.now) => {
                    due.push((chunk, Due::SendSync));
                }
                _ => {}
            }
        }
        if silent && !mutant!(r10_silence_not_reported) {
            self.accuse(ctx, false);
        }
        for (chunk, what) in due {
            self.on_due(ctx, chunk, what);
        }
        self.tick_sync(ctx);
    }

    fn on_due(&mut self, ctx: &mut Ctx, chunk: ChunkId, due: Due) {
        match due {
            Due::Step => self.step(ctx, chunk),
            Due::SendSync => self.send_sync_chunk(ctx, chunk),
        }
    }
}

fn passed(at: Option<Instant>, now: Instant) -> bool {
    at.is_some_and(|at| at <= now)
}
