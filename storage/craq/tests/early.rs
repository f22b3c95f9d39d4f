//! Updates that are forwarded while the own store is at them, what becomes of those that can't go on, and what a sync
//! makes of those that are under way.

mod support;

use ember_craq::{Answer, Change, Input, Message, Output, Page, Summary, SyncItem};
use ember_types::PublicState::{Serving, Syncing};
use ember_types::checksum::crc32c;
use ember_types::{ChunkId, ChunkVersion, DataId, Status, TargetId};
use std::time::Duration;
use support::lone::{CHUNK, LATER, Lone, chain, tag, version};

const WRITE: Change = Change::Write { offset: 0, length: 3 };

fn trio(me: u64) -> Lone {
    Lone::new(me, chain(1, &[(1, Serving), (2, Serving), (3, Serving)]))
}

fn is_commit(output: &Output) -> bool {
    matches!(output, Output::Commit { .. })
}

fn messages(lone: &Lone) -> Vec<Message> {
    let message =
        |o: &Output| if let Output::Send { message, .. } = o { Some(message.clone()) } else { None };
    lone.out.iter().filter_map(message).collect()
}

fn built(lone: &mut Lone, chunk: ChunkId) {
    let (length, checksum) = (3, crc32c(b"abc"));
    lone.feed(Input::Built { chunk, version: version(1, 1), length, checksum });
}

fn durable(lone: &mut Lone, token: u64, epoch: u32) {
    let to = lone.to();
    lone.feed(Input::Durable { token, to, epoch, chunk: CHUNK, version: version(1, 1) });
}

fn abort(lone: &mut Lone, token: u64, epoch: u32) {
    let to = lone.to();
    lone.feed(Input::Abort { token, to, epoch, chunk: CHUNK, version: version(1, 1) });
}

/// A replica that has an early forward, and whose store is at it.
fn with_early_forward(me: u64) -> Lone {
    let mut lone = trio(me);
    (lone.early, lone.hold) = (true, true);
    lone.forward(1, 0, ChunkVersion::NONE, version(1, 1), b"abc", WRITE);
    lone
}

#[test]
fn an_update_is_forwarded_while_it_is_stored_and_answered_when_all_is_durable() {
    let mut head = trio(1);
    head.hold = true;
    head.write(1, tag(1, 1), b"abc");
    assert!(messages(&head).is_empty(), "what it makes is not known yet");
    built(&mut head, CHUNK);
    let (forward, to, message) = head.sent();
    assert!(
        matches!(message, Message::Forward { forward, .. } if forward.early && forward.result.length == 3)
    );
    assert_eq!(to, TargetId(2));
    head.release();
    let (notice, to, message) = head.sent();
    assert!(matches!(message, Message::Durable { version: v, .. } if v == version(1, 1)));
    assert_eq!((to, messages(&head).len()), (TargetId(2), 2), "the bytes go once");
    head.answer(notice, Status::Ok, ChunkVersion::NONE);
    assert!(head.reply(1).is_none() && !head.wrote(is_commit));
    head.answer(forward, Status::Ok, version(1, 1));
    assert_eq!(head.reply(1), Some(Status::Ok));
}

#[test]
fn r06_the_tail_commits_only_what_every_replica_before_it_holds() {
    let mut tail = with_early_forward(3);
    tail.release();
    assert!(!tail.wrote(is_commit) && tail.reply(1).is_none());
    assert_eq!(tail.read(2).map(|content| content.version), Some(ChunkVersion::NONE));
    durable(&mut tail, 3, 0);
    assert_eq!((tail.reply(3), tail.reply(1)), (Some(Status::Ok), Some(Status::Ok)));
    assert!(tail.wrote(is_commit));
    // The word may overtake the forward.
    let mut tail = trio(3);
    durable(&mut tail, 1, 0);
    assert_eq!(tail.reply(1), Some(Status::Ok));
    tail.early = true;
    tail.forward(2, 0, ChunkVersion::NONE, version(1, 1), b"abc", WRITE);
    assert_eq!(tail.reply(2), Some(Status::Ok));
}

#[test]
fn r04_a_new_tail_waits_for_what_its_predecessor_has_yet_to_store() {
    let mut tail = with_early_forward(3);
    tail.release();
    tail.feed(Input::Chain(chain(2, &[(1, Serving), (3, Serving)])));
    let (id, _, message) = tail.sent();
    assert!(matches!(message, Message::Confirm { .. }));
    tail.answer(id, Status::Ok, ChunkVersion::NONE);
    assert!(!tail.wrote(is_commit), "target 1 may not have it yet, and answers reads without it");
    assert!(tail.read(2).is_none());
    tail.early = false;
    tail.forward(3, 0, ChunkVersion::NONE, version(1, 1), b"abc", WRITE);
    assert_eq!(tail.reply(3), Some(Status::Ok));
    // Alone it need not wait for anybody.
    let mut tail = with_early_forward(3);
    tail.release();
    tail.feed(Input::Chain(chain(2, &[(3, Serving)])));
    assert!(tail.wrote(is_commit));
}

#[test]
fn the_middle_passes_on_at_once_and_tells_when_both_are_durable() {
    let mut middle = with_early_forward(2);
    let (forward, to, message) = middle.sent();
    assert!(matches!(message, Message::Forward { forward, .. } if forward.early));
    assert_eq!(to, TargetId(3));
    // Its own disk alone is not enough, nor is the predecessor's word alone.
    middle.release();
    assert_eq!(messages(&middle).len(), 1);
    durable(&mut middle, 2, 0);
    assert!(matches!(middle.sent().2, Message::Durable { .. }));
    middle.answer(forward, Status::Ok, version(1, 1));
    assert_eq!(middle.reply(1), Some(Status::Ok));
    let mut middle = with_early_forward(2);
    durable(&mut middle, 2, 0);
    assert_eq!(messages(&middle).len(), 1);
    middle.release();
    assert!(matches!(middle.sent().2, Message::Durable { .. }));
}

#[test]
fn a_word_that_is_lost_is_said_with_the_next_forward_and_silence_counts_from_it() {
    let mut head = trio(1);
    head.hold = true;
    head.write(1, tag(1, 1), b"abc");
    built(&mut head, CHUNK);
    head.now = head.now + Duration::from_secs(30);
    head.feed(Input::Tick);
    let accused = |o: &Output| matches!(o, Output::Accuse { .. });
    assert!(!head.wrote(accused), "nobody can answer before this store is done");
    head.release();
    let (notice, ..) = head.sent();
    head.answer(notice, Status::Busy, ChunkVersion::NONE);
    head.now = head.now + Duration::from_secs(5);
    head.feed(Input::Tick);
    let (_, _, message) = head.sent();
    assert!(matches!(message, Message::Forward { epoch: 1, forward, .. } if !forward.early));
    assert!(head.wrote(accused));
}

#[test]
fn r13_what_the_own_store_refuses_is_withdrawn_behind() {
    let mut head = trio(1);
    head.hold = true;
    head.write(1, tag(1, 1), b"abc");
    built(&mut head, CHUNK);
    head.store.full = true;
    head.release();
    let (id, _, message) = head.sent();
    // The forward is not answered: if it comes late, it is refused.
    assert!(matches!(message, Message::Abort { epoch: 1, version: v, .. } if v == version(1, 1)));
    assert_eq!(head.reply(1), None);
    // Under another chain it is still to be withdrawn.
    head.feed(Input::Chain(chain(2, &[(1, Serving), (3, Serving)])));
    let (again, to, message) = head.sent();
    assert!(again > id && matches!(message, Message::Abort { epoch: 0, .. }));
    assert_eq!(to, TargetId(3));
    head.answer(again, Status::Ok, ChunkVersion::NONE);
    assert_eq!(head.reply(1), Some(Status::NoSpace));
    assert!(head.replica.is_idle(CHUNK));
}

#[test]
fn r13_a_withdrawal_goes_to_the_end_whether_or_not_it_is_known_here() {
    // The middle's store refuses it, and the tail has it.
    let mut middle = with_early_forward(2);
    middle.store.full = true;
    middle.release();
    assert_eq!(middle.reply(1), Some(Status::NoSpace));
    abort(&mut middle, 2, 0);
    let (id, to, message) = middle.sent();
    assert!(matches!(message, Message::Abort { epoch: 1, .. }));
    assert_eq!((to, middle.reply(2)), (TargetId(3), None));
    middle.answer(id, Status::Ok, ChunkVersion::NONE);
    assert_eq!(middle.reply(2), Some(Status::Ok));
    assert!(middle.replica.is_idle(CHUNK));
    // The middle holds it, and the head's store refuses it.
    let mut middle = with_early_forward(2);
    middle.release();
    abort(&mut middle, 2, 1);
    let (id, _, message) = middle.sent();
    assert!(matches!(message, Message::Abort { epoch: 1, .. }));
    middle.answer(id, Status::Ok, ChunkVersion::NONE);
    assert_eq!(middle.reply(2), Some(Status::Ok));
    assert!(middle.wrote(|o| matches!(o, Output::Drop { .. })));
    assert!(middle.store.now[&CHUNK].state.pending.is_none());
    // What all hold is not dropped.
    let mut middle = with_early_forward(2);
    durable(&mut middle, 3, 0);
    middle.release();
    abort(&mut middle, 2, 0);
    assert_eq!(middle.reply(2), Some(Status::Busy));
    // The middle knows nothing of it.
    let mut middle = trio(2);
    abort(&mut middle, 2, 0);
    let (id, ..) = middle.sent();
    middle.answer(id, Status::Ok, ChunkVersion::NONE);
    assert_eq!(middle.reply(2), Some(Status::Ok));
    assert!(middle.replica.is_idle(CHUNK));
}

#[test]
fn r13_a_new_head_withdraws_what_its_store_refused() {
    let mut middle = with_early_forward(2);
    middle.store.full = true;
    middle.release();
    middle.feed(Input::Chain(chain(2, &[(2, Serving), (3, Serving)])));
    let (id, to, message) = middle.sent();
    assert!(matches!(message, Message::Abort { version: v, .. } if v == version(1, 1)));
    assert_eq!(to, TargetId(3));
    middle.answer(id, Status::Ok, ChunkVersion::NONE);
    assert!(middle.replica.is_idle(CHUNK));
}

#[test]
fn a_syncing_successor_gets_only_what_all_before_it_hold() {
    let mut tail = Lone::new(2, chain(1, &[(1, Serving), (2, Serving), (3, Syncing)]));
    tail.early = true;
    tail.forward(1, 0, ChunkVersion::NONE, version(1, 1), b"abc", WRITE);
    assert!(messages(&tail).iter().all(|message| !matches!(message, Message::Forward { .. })));
    durable(&mut tail, 2, 0);
    let (_, to, message) = tail.sent();
    assert!(matches!(message, Message::Forward { forward, .. } if !forward.early));
    assert_eq!(to, TargetId(3));
}

#[test]
fn a_chunk_that_waits_holds_up_no_other() {
    let mut head = trio(1);
    head.hold = true;
    head.bytes = b"abc".to_vec();
    let chunk = |index| ChunkId::new(DataId(1), index);
    for index in 0..100 {
        let (to, token) = (head.to(), u64::from(index));
        let (change, tag) = (WRITE, tag(u128::from(index) + 1, 1));
        head.feed(Input::Update {
            token,
            to,
            chunk: chunk(index),
            change,
            chunk_size: 64,
            tag,
            expires: LATER,
        });
        built(&mut head, chunk(index));
    }
    assert_eq!(head.held.len(), 100, "the store has all of them at once");
    let forwards: Vec<_> = messages(&head);
    assert_eq!(forwards.len(), 100, "so has the successor");
    // The first is not answered; the others go on.
    head.release();
    let sent = |wanted: u32| {
        move |o: &Output| match o {
            Output::Send { id, message: Message::Forward { forward, .. }, .. }
                if forward.chunk == ChunkId::new(DataId(1), wanted) =>
            {
                Some(*id)
            }
            _ => None,
        }
    };
    for index in 1..100 {
        let id = head.out.iter().find_map(sent(index)).expect("a forward");
        head.answer(id, Status::Ok, version(1, 1));
        assert_eq!(head.reply(u64::from(index)), Some(Status::Ok));
    }
    assert_eq!(head.reply(0), None);
}

#[test]
fn r14_what_the_head_cannot_read_is_withdrawn_and_its_base_repaired() {
    let mut head = Lone::new(1, chain(1, &[(1, Serving), (2, Serving)]));
    head.write(1, tag(1, 1), b"abc");
    let (id, ..) = head.sent();
    head.answer(id, Status::Ok, version(1, 1));
    head.write(2, tag(1, 2), b"x");
    let (id, ..) = head.sent();
    head.answer(id, Status::Corrupt, ChunkVersion::NONE);
    let (id, _, message) = head.sent();
    assert!(
        matches!(message, Message::Forward { forward, .. } if forward.change == Change::Whole { length: 3 })
    );
    head.feed(Input::Answered { id, answer: Answer::Unreadable });
    let (id, _, message) = head.sent();
    assert!(matches!(message, Message::Abort { version: v, .. } if v == version(2, 1)));
    head.answer(id, Status::Ok, ChunkVersion::NONE);
    assert!(head.wrote(|o| matches!(o, Output::Drop { .. })));
    assert_eq!(head.reply(2), Some(Status::Aborted));
    assert!(head.out.contains(&Output::Repair { chunk: CHUNK, version: version(1, 1) }));
    // The writer's next try is a new attempt.
    head.feed(Input::Repaired { chunk: CHUNK });
    head.write(3, tag(1, 2), b"x");
    let (_, _, message) = head.sent();
    assert!(matches!(message, Message::Forward { forward, .. } if forward.result.version.attempt == 1));
}

#[test]
fn r11_what_a_new_source_is_still_committing_is_synced_too() {
    let mut tail = Lone::new(2, chain(1, &[(1, Serving), (2, Serving)]));
    tail.forward(1, 0, ChunkVersion::NONE, version(1, 1), b"abc", WRITE);
    let before = tail.read(2).expect("the committed content");
    tail.hold = true;
    tail.forward(3, 0, version(1, 1), version(2, 1), b"xyz", WRITE);
    let prepare = tail.held.remove(0);
    tail.run(&prepare);
    assert!(matches!(tail.held[..], [Output::Commit { .. }]));
    tail.feed(Input::Chain(chain(2, &[(1, Serving), (2, Serving), (3, Syncing)])));
    let (id, _, message) = tail.sent();
    assert!(matches!(message, Message::Confirm { .. }));
    tail.answer(id, Status::Ok, ChunkVersion::NONE);
    // Both sides list what is committed so far.
    let row = Summary { chunk: CHUNK, content: before, pending: false, lost: false };
    let page = Page { local: vec![row], remote: vec![row], total: 1, ..Page::default() };
    let id = tail.page().expect("a page is asked for");
    tail.feed(Input::Page { id, page: Some(page) });
    tail.release();
    let (_, to, message) = tail.sent();
    let Message::Sync { item: SyncItem::Chunk { content, .. }, .. } = message else { panic!("{message:?}") };
    assert_eq!((to, content.version), (TargetId(3), version(2, 1)));
}
