//! What waits to be sent on a connection, and in which order it goes. Pure.

use crate::credits::LANES;
use ember_rt::{Buf, SharedBuf};
use std::collections::VecDeque;

/// A batch ends when it has this many parts or bytes.
const BATCH_PARTS: usize = 48;
const BATCH_BYTES: usize = 1 << 20;
/// Every so many frames the least urgent lane has its turn, so that none starves.
const FAIR_EVERY: u32 = 16;

/// A frame to be sent.
#[derive(Debug)]
pub struct Outgoing {
    /// The request's id, to find it again; `None` for what is never taken back.
    pub id: Option<u64>,
    /// Header and body.
    pub head: Vec<u8>,
    /// Payload.
    pub payload: SharedBuf,
}

/// Frames by lane.
#[derive(Default, Debug)]
pub struct SendQueue {
    lanes: [VecDeque<Outgoing>; LANES],
    len: usize,
    taken: u32,
}

impl SendQueue {
    /// Puts a frame at the end of its lane.
    pub fn push(&mut self, lane: usize, frame: Outgoing) {
        self.len += 1;
        self.lanes[lane].push_back(frame);
    }

    /// Takes a request back that has not been sent.
    pub fn remove(&mut self, lane: usize, id: u64) -> bool {
        let lane = &mut self.lanes[lane];
        let Some(at) = lane.iter().position(|frame| frame.id == Some(id)) else {
            return false;
        };
        lane.remove(at);
        self.len -= 1;
        true
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    fn next(&mut self) -> Option<Outgoing> {
        self.taken = self.taken.wrapping_add(1);
        let mut lanes = self.lanes.iter_mut();
        let frame = match self.taken.is_multiple_of(FAIR_EVERY) {
            true => lanes.rev().find_map(VecDeque::pop_front),
            false => lanes.find_map(VecDeque::pop_front),
        }?;
        self.len -= 1;
        Some(frame)
    }

    /// The parts to be sent next, in one go. Heads that follow each other share a buffer. Empty if nothing
    /// waits.
    pub fn batch(&mut self) -> Vec<SharedBuf> {
        let mut heads: Vec<u8> = Vec::new();
        // Where a payload stands among the bytes of the heads.
        let mut payloads: Vec<(usize, SharedBuf)> = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH_BYTES && payloads.len() * 2 < BATCH_PARTS {
            let Some(frame) = self.next() else { break };
            bytes += frame.head.len() + frame.payload.len();
            heads.extend_from_slice(&frame.head);
            if !frame.payload.is_empty() {
                payloads.push((heads.len(), frame.payload));
            }
        }
        if heads.is_empty() {
            return Vec::new();
        }
        let end = heads.len();
        let heads = SharedBuf::from(Buf::copy_from(&heads));
        let mut parts = Vec::with_capacity(payloads.len() * 2 + 1);
        let mut from = 0;
        for (at, payload) in payloads {
            parts.extend([heads.slice(from..at), payload]);
            from = at;
        }
        if from < end {
            parts.push(heads.slice(from..end));
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(id: u64, payload: usize) -> Outgoing {
        let payload = SharedBuf::from(&vec![id as u8; payload][..]);
        Outgoing { id: Some(id), head: vec![id as u8 | 0x80; 3], payload }
    }

    fn bytes(parts: &[SharedBuf]) -> Vec<u8> {
        parts.iter().flat_map(|part| part.iter().copied()).collect()
    }

    #[test]
    fn urgent_frames_go_first_and_heads_are_joined() {
        let mut queue = SendQueue::default();
        queue.push(9, frame(1, 0));
        queue.push(9, frame(2, 2));
        queue.push(0, frame(3, 0));
        queue.push(9, frame(4, 0));
        assert!(queue.remove(9, 4) && !queue.remove(9, 4) && !queue.remove(0, 2));
        queue.push(9, frame(5, 0));
        let parts = queue.batch();
        assert_eq!(parts.len(), 3);
        assert_eq!(bytes(&parts), [131, 131, 131, 129, 129, 129, 130, 130, 130, 2, 2, 133, 133, 133]);
        assert!(queue.is_empty() && queue.batch().is_empty());
    }

    #[test]
    fn a_batch_is_bounded_and_the_lowest_lane_has_its_turn() {
        let mut queue = SendQueue::default();
        queue.push(LANES - 1, frame(7, 0));
        for _ in 0..200 {
            queue.push(1, frame(1, 100_000));
        }
        let first = bytes(&queue.batch());
        assert!(first.len() < BATCH_BYTES + 200_000);
        assert!(!first.contains(&0x87));
        assert!(bytes(&queue.batch()).contains(&0x87), "within {FAIR_EVERY} frames");
    }
}
