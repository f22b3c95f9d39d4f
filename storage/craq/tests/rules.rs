//! One replica and its store, step by step: what each rule of the protocol asks of it.

mod support;

use ember_craq::{
    Address, Answer, Change, Content, Failure, Forward, Input, Message, Output, Page, Payload, Replica,
    Summary, SyncItem,
};
use ember_types::checksum::crc32c;
use ember_types::{
    ChainId, ChainVersion, ChunkId, ChunkVersion, ClientId, DataId, Generation, LocalState, PublicState,
    Status, TargetId, WriterRecord,
};
use std::time::Duration;
use support::lone::{CHUNK, LATER, Lone, chain, tag, version};

use PublicState::{Offline, Serving, Syncing};

fn is_drop(output: &Output) -> bool {
    matches!(output, Output::Drop { .. })
}
fn is_done(output: &Output) -> bool {
    matches!(output, Output::Send { message: Message::Sync { item: SyncItem::Done, .. }, .. })
}
fn is_commit(output: &Output) -> bool {
    matches!(output, Output::Commit { .. })
}

#[test]
fn r04_pending_goes_to_the_new_successor_and_a_new_tail_commits_first() {
    let mut head = Lone::new(1, chain(1, &[(1, Serving), (2, Serving), (3, Serving)]));
    head.write(1, tag(1, 1), b"abc");
    assert_eq!(head.sent().1, TargetId(2));
    head.out.clear();
    head.feed(Input::Chain(chain(2, &[(1, Serving), (3, Serving), (2, Offline)])));
    let (_, to, message) = head.sent();
    assert_eq!(to, TargetId(3));
    assert!(matches!(message, Message::Forward { forward, .. } if forward.result.version == version(1, 1)));
    assert!(!head.wrote(is_drop));

    // Alone it is the tail: nothing is told before the pending version is committed.
    head.hold = true;
    head.out.clear();
    head.feed(Input::Chain(chain(3, &[(1, Serving), (3, Offline), (2, Offline)])));
    assert!(head.wrote(is_commit));
    assert_eq!(head.read(7), None);
    assert_eq!(head.reply(7), Some(Status::Busy));
    head.release();
    assert_eq!(head.reply(1), Some(Status::Ok));
    assert_eq!(head.read(8).map(|c| c.version), Some(version(1, 1)));
}

#[test]
fn r04_entering_syncing_discards_pending() {
    let mut head = Lone::new(1, chain(1, &[(1, Serving), (2, Serving)]));
    head.write(1, tag(1, 1), b"abc");
    head.feed(Input::Chain(chain(2, &[(2, Serving), (1, Syncing)])));
    assert!(head.wrote(is_drop));
    assert_eq!(head.reply(1), Some(Status::StaleRouting));
    assert!(head.store.now[&CHUNK].state.pending.is_none());
}

#[test]
fn r05_a_number_alone_proves_nothing() {
    let mut tail = Lone::new(2, chain(1, &[(1, Serving), (2, Serving)]));
    tail.forward(1, 0, ChunkVersion::NONE, version(1, 1), b"abc", Change::Write { offset: 0, length: 3 });
    assert_eq!(tail.reply(1), Some(Status::Ok));
    // The same number from another history, and a base from another history.
    tail.forward(2, 0, ChunkVersion::NONE, version(1, 9), b"xyz", Change::Write { offset: 0, length: 3 });
    assert_eq!(tail.reply(2), Some(Status::Corrupt));
    tail.forward(3, 0, version(1, 9), version(2, 1), b"xyz", Change::Write { offset: 0, length: 3 });
    assert_eq!(tail.reply(3), Some(Status::Corrupt));
    assert_eq!(tail.store.now[&CHUNK].bytes, b"abc");
    // A copy that was delayed behind a later message.
    tail.forward(4, 2, version(1, 1), version(2, 1), b"def", Change::Write { offset: 0, length: 3 });
    assert_eq!(tail.reply(4), Some(Status::Ok));
    tail.forward(5, 1, version(2, 1), version(3, 1), b"ghi", Change::Write { offset: 0, length: 3 });
    assert_eq!(tail.reply(5), Some(Status::Busy));
}

#[test]
fn r06_the_tail_waits_for_its_syncing_successor_and_for_its_predecessor() {
    let mut tail = Lone::new(2, chain(2, &[(1, Serving), (2, Serving), (3, Syncing)]));
    let (id, to, message) = tail
        .out
        .iter()
        .find_map(|o| match o {
            Output::Send { id, to, message: m @ Message::Confirm { .. } } => {
                Some((*id, to.target, m.clone()))
            }
            _ => None,
        })
        .expect("a new tail asks for confirmation");
    assert_eq!((to, matches!(message, Message::Confirm { .. })), (TargetId(1), true));
    let address = tail.to();
    tail.feed(Input::Query { token: 1, to: address, chunk: CHUNK });
    assert_eq!(tail.reply(1), Some(Status::Busy));
    tail.answer(id, Status::Ok, ChunkVersion::NONE);
    tail.feed(Input::Query { token: 2, to: address, chunk: CHUNK });
    assert_eq!(tail.reply(2), Some(Status::Ok));

    tail.forward(3, 0, ChunkVersion::NONE, version(1, 2), b"abc", Change::Write { offset: 0, length: 3 });
    let (id, to, message) = tail.sent();
    assert_eq!(to, TargetId(3));
    assert!(
        matches!(message, Message::Forward { forward, .. } if forward.change == Change::Whole { length: 3 })
    );
    assert!(!tail.wrote(is_commit));
    tail.answer(id, Status::Ok, version(1, 2));
    assert!(tail.wrote(is_commit));
    assert_eq!(tail.reply(3), Some(Status::Ok));
    // Another chain version than the tail's.
    let old = Address { chain_version: ChainVersion(1), ..address };
    tail.feed(Input::Query { token: 4, to: old, chunk: CHUNK });
    assert_eq!(tail.reply(4), Some(Status::StaleRouting));
}

#[test]
fn r07_nothing_is_committed_before_the_version_is_noted_as_in_use() {
    let mut unused = chain(1, &[(1, Serving)]);
    unused.in_use = false;
    let mut tail = Lone::new(1, unused);
    tail.write(1, tag(1, 1), b"abc");
    assert!(tail.out.contains(&Output::NoteInUse(ChainVersion(1))));
    assert!(!tail.wrote(is_commit));
    tail.feed(Input::Chain(chain(1, &[(1, Serving)])));
    assert_eq!(tail.reply(1), Some(Status::Ok));
}

#[test]
fn r08_reads_need_a_lease_when_taken_and_when_answered() {
    let mut one = Lone::new(1, chain(1, &[(1, Serving)]));
    one.feed(Input::Lease { until: one.now });
    assert_eq!(one.read(1), None);
    assert_eq!(one.reply(1), Some(Status::NoLease));
    assert!(!one.replica.may_answer(one.now));
}

#[test]
fn r11_a_sync_waits_for_the_update_before_it_and_sends_what_is_then() {
    let mut tail = Lone::new(1, chain(1, &[(1, Serving), (2, Syncing)]));
    let page = tail.page();
    tail.write(1, tag(1, 1), b"abc");
    let (forward, ..) = tail.sent();
    // The listings were made before the write: both lack the chunk, and the target has an older one.
    let old = Content { version: version(7, 0), removed: false, length: 1, checksum: 1 };
    let remote = vec![Summary { chunk: CHUNK, content: old, pending: false, lost: false }];
    tail.feed(Input::Page {
        id: page.expect("a page is fetched"),
        page: Some(Page { remote, ..Page::default() }),
    });
    assert_eq!(tail.sent().0, forward, "the chunk is on its way already");
    tail.answer(forward, Status::Ok, version(1, 1));
    let (sync, _, message) = tail.sent();
    assert!(matches!(message, Message::Sync { item: SyncItem::Chunk { content, .. }, .. }
        if content.version == version(1, 1)));
    // The next write waits until the target has answered.
    tail.write(2, tag(2, 1), b"def");
    assert_eq!(tail.sent().0, sync);
    tail.answer(sync, Status::Ok, version(1, 1));
    let next = |o: &Output| {
        matches!(o, Output::Send { message: Message::Forward { forward, .. }, .. }
            if forward.result.version == version(2, 1))
    };
    assert!(tail.wrote(next));
}

fn row(chunk: ChunkId) -> Summary {
    let content = Content { version: version(7, 0), removed: false, length: 1, checksum: 1 };
    Summary { chunk, content, pending: false, lost: false }
}

#[test]
fn r11_an_update_does_not_wait_for_the_pace_of_a_resync() {
    let mut tail = Lone::new(1, chain(1, &[(1, Serving), (2, Syncing)]));
    tail.hold_turns = true;
    let page = Page { remote: vec![row(CHUNK)], ..Page::default() };
    tail.feed(Input::Page { id: tail.page().expect("a page is fetched"), page: Some(page) });
    assert!(tail.wrote(|o| matches!(o, Output::SyncTurn { chunk } if *chunk == CHUNK)));
    let is_sync = |o: &Output| matches!(o, Output::Send { message: Message::Sync { .. }, .. });
    assert!(!tail.wrote(is_sync));
    tail.write(1, tag(1, 1), b"abc");
    let (forward, ..) = tail.sent();
    tail.answer(forward, Status::Ok, version(1, 1));
    assert_eq!(tail.reply(1), Some(Status::Ok), "it has passed the chunk that waits for its turn");
    tail.feed(Input::Tick);
    assert!(!tail.wrote(is_sync), "nothing is done while a chunk waits for its turn");
    tail.feed(Input::SyncTurn { chunk: CHUNK });
    let (sync, _, message) = tail.sent();
    assert!(matches!(message, Message::Sync { item: SyncItem::Chunk { content, .. }, .. }
        if content.version == version(1, 1)));
    tail.feed(Input::SyncTurn { chunk: CHUNK });
    assert_eq!(tail.sent().0, sync, "a turn counts once");
    tail.answer(sync, Status::Ok, version(1, 1));
    assert!(matches!(tail.sent().2, Message::Sync { item: SyncItem::Done, .. }));
}

#[test]
fn r11_the_next_page_comes_while_chunks_are_under_way_and_the_end_after_them() {
    let chunk = |index| ChunkId::new(DataId(1), index);
    let mut tail = Lone::new(1, chain(1, &[(1, Serving), (2, Syncing)]));
    let first = tail.page().expect("a page is fetched");
    let page = Page { remote: vec![row(chunk(0))], remote_more: true, ..Page::default() };
    tail.feed(Input::Page { id: first, page: Some(page) });
    let (sync, ..) = tail.sent();
    let second = tail.page().expect("a page is fetched");
    assert_ne!(first, second);
    tail.feed(Input::Page {
        id: second,
        page: Some(Page { remote: vec![row(chunk(1))], ..Page::default() }),
    });
    let (other, ..) = tail.sent();
    assert_ne!(sync, other);
    tail.answer(other, Status::Ok, version(1, 1));
    tail.feed(Input::Tick);
    assert!(!tail.wrote(is_done));
    tail.answer(sync, Status::Ok, version(1, 1));
    assert!(tail.wrote(is_done));
}

#[test]
fn r11_what_a_new_source_is_still_installing_is_synced_too() {
    let mut source = Lone::new(2, chain(1, &[(1, Serving), (2, Syncing)]));
    source.hold = true;
    let change = Change::Whole { length: 3 };
    source.forward(1, 0, ChunkVersion::NONE, version(1, 1), b"abc", change);
    let to = source.to();
    source.feed(Input::Sync { token: 2, to, from: TargetId(1), epoch: 0, item: SyncItem::Done });
    source.feed(Input::Chain(chain(2, &[(1, Serving), (2, Serving), (3, Syncing)])));
    // Neither listing has the chunk.
    source.feed(Input::Page { id: source.page().expect("a page is fetched"), page: Some(Page::default()) });
    source.feed(Input::Tick);
    assert!(!source.wrote(is_done));
    source.release();
    let (sync, to, message) = source.sent();
    assert_eq!(to, TargetId(3));
    assert!(matches!(message, Message::Sync { item: SyncItem::Chunk { content, .. }, .. }
        if content.version == version(1, 1)));
    source.answer(sync, Status::Ok, version(1, 1));
    assert!(source.wrote(is_done));
}

#[test]
fn r13_a_syncing_successor_without_room_refuses_nothing() {
    let mut tail = Lone::new(1, chain(1, &[(1, Serving), (2, Syncing)]));
    tail.write(1, tag(1, 1), b"abc");
    let (forward, ..) = tail.sent();
    tail.answer(forward, Status::NoSpace, ChunkVersion::NONE);
    assert_eq!(tail.reply(1), None);
    assert!(!tail.wrote(is_drop));
    tail.now = tail.now + Duration::from_secs(1);
    tail.feed(Input::Tick);
    let (again, _, message) = tail.sent();
    assert!(again != forward && matches!(message, Message::Forward { .. }), "it is asked again: {message:?}");
    // mgmtd takes it out: the update goes on without it.
    tail.feed(Input::Chain(chain(2, &[(1, Serving), (2, PublicState::Waiting)])));
    assert_eq!(tail.reply(1), Some(Status::Ok));
}

#[test]
fn r10_a_content_whose_bytes_are_missing_on_one_side_is_synced() {
    for (local, remote, count) in [(true, true, 0), (true, false, 1), (false, true, 1), (false, false, 0)] {
        let mut tail = Lone::new(1, chain(1, &[(1, Serving), (2, Syncing)]));
        let content = Content { version: version(7, 0), removed: false, length: 1, checksum: 1 };
        let row = |lost| vec![Summary { chunk: CHUNK, content, pending: false, lost }];
        let page = Page { local: row(local), remote: row(remote), ..Page::default() };
        tail.feed(Input::Page { id: tail.page().expect("a page is fetched"), page: Some(page) });
        let is_chunk = |o: &&Output| {
            matches!(o, Output::Send { message: Message::Sync { item: SyncItem::Chunk { .. }, .. }, .. })
        };
        assert_eq!(tail.out.iter().filter(is_chunk).count(), count, "lost here {local}, there {remote}");
    }
}

#[test]
fn r11_sync_done_is_void_after_a_chain_change() {
    let mut target = Lone::new(2, chain(1, &[(1, Serving), (2, Syncing)]));
    let to = target.to();
    target.feed(Input::Sync { token: 1, to, from: TargetId(1), epoch: 0, item: SyncItem::Done });
    assert_eq!(target.replica.local_state(), LocalState::UpToDate);
    target.feed(Input::Chain(chain(2, &[(1, Serving), (2, Syncing), (3, Offline)])));
    assert_eq!(target.replica.local_state(), LocalState::Online);
    target.feed(Input::Sync { token: 2, to, from: TargetId(1), epoch: 0, item: SyncItem::Done });
    assert_eq!(target.reply(2), Some(Status::StaleRouting));
}

#[test]
fn r11_a_sync_is_not_done_before_the_target_holds_the_pending_versions_of_before() {
    let mut source = Lone::new(1, chain(1, &[(1, Serving), (2, Serving)]));
    source.write(1, tag(1, 1), b"abc");
    source.feed(Input::Chain(chain(2, &[(1, Serving), (2, Syncing)])));
    let (forward, ..) = source.sent();
    let page = source.page();
    source.feed(Input::Page { id: page.expect("a page is fetched"), page: Some(Page::default()) });
    source.answer(forward, Status::NoSpace, ChunkVersion::NONE);
    source.feed(Input::Tick);
    assert!(!source.wrote(is_done));
    source.now = source.now + Duration::from_millis(600);
    source.feed(Input::Tick);
    let (forward, ..) = source.sent();
    source.answer(forward, Status::Ok, version(1, 1));
    source.feed(Input::Tick);
    assert!(source.wrote(is_done));
}

#[test]
fn r12_a_repeat_is_answered_and_never_done_again() {
    let mut one = Lone::new(1, chain(1, &[(1, Serving)]));
    one.write(1, tag(1, 1), b"abc");
    one.write(2, tag(2, 1), b"def");
    one.write(3, tag(1, 1), b"abc");
    assert_eq!(
        (one.reply(1), one.reply(2), one.reply(3)),
        (Some(Status::Ok), Some(Status::Ok), Some(Status::Ok))
    );
    assert_eq!(one.store.now[&CHUNK].bytes, b"def");
    one.write(4, tag(2, 2), b"ghi");
    one.write(5, tag(2, 1), b"def");
    assert_eq!(one.reply(5), Some(Status::StaleSequence));
    // The records come back from the disk.
    let records: Vec<_> = one.store.now[&CHUNK].state.writers.iter().map(|r| (CHUNK, *r)).collect();
    let identity = one.replica.identity();
    one.replica = Replica::new(identity, ChainVersion(1), &one.store, [], records);
    one.feed(Input::Chain(chain(3, &[(1, Serving)])));
    one.feed(Input::Lease { until: LATER });
    one.write(6, tag(1, 1), b"abc");
    assert_eq!(one.reply(6), Some(Status::Ok));
    assert_eq!(one.store.now[&CHUNK].bytes, b"ghi");
    one.feed(Input::EndedClients(vec![ClientId::from_u128(1)]));
    one.write(7, tag(1, 2), b"zzz");
    assert_eq!(one.reply(7), Some(Status::SessionEnded));
}

#[test]
fn r12_a_late_copy_of_a_request_without_effect_stays_without_effect() {
    let mut one = Lone::new(1, chain(1, &[(1, Serving)]));
    let cut = |one: &mut Lone, token| {
        let to = one.to();
        let change = Change::Cut { length: 1 };
        one.feed(Input::Update {
            token,
            to,
            chunk: CHUNK,
            change,
            chunk_size: 64,
            tag: tag(1, 1),
            expires: LATER,
        });
    };
    cut(&mut one, 1);
    assert_eq!(one.reply(1), Some(Status::Ok));
    one.write(2, tag(2, 1), b"abc");
    cut(&mut one, 3);
    assert_eq!(one.reply(3), Some(Status::Ok));
    assert_eq!(one.store.now[&CHUNK].bytes, b"abc");
}

#[test]
fn r07_what_was_taken_over_while_syncing_is_told_only_under_a_version_in_use() {
    let mut target = Lone::new(2, chain(1, &[(1, Serving), (2, Syncing)]));
    target.forward(1, 0, ChunkVersion::NONE, version(1, 1), b"abc", Change::Whole { length: 3 });
    let mut unused = chain(2, &[(1, Serving), (2, Serving)]);
    unused.in_use = false;
    target.feed(Input::Chain(unused));
    target.forward(2, 0, ChunkVersion::NONE, version(1, 1), b"abc", Change::Whole { length: 3 });
    assert_eq!(target.reply(2), Some(Status::Busy));
    assert!(target.out.contains(&Output::NoteInUse(ChainVersion(2))));
    assert_eq!(target.read(3), None);
    target.feed(Input::Chain(chain(2, &[(1, Serving), (2, Serving)])));
    target.forward(4, 0, ChunkVersion::NONE, version(1, 1), b"abc", Change::Whole { length: 3 });
    assert_eq!(target.reply(4), Some(Status::Ok));
    assert!(target.read(5).is_some());
}

#[test]
fn r12_a_repeat_joins_the_update_under_way() {
    let mut head = Lone::new(1, chain(1, &[(1, Serving), (2, Serving)]));
    head.write(1, tag(1, 1), b"abc");
    let (id, ..) = head.sent();
    head.write(2, tag(1, 1), b"abc");
    assert_eq!(head.reply(1), None, "not before the successor's answer");
    head.answer(id, Status::Ok, version(1, 1));
    assert_eq!((head.reply(1), head.reply(2)), (Some(Status::Ok), Some(Status::Ok)));
}

#[test]
fn r12_a_record_that_a_sync_overwrites_is_forgotten() {
    let mut target = Lone::new(2, chain(1, &[(1, Serving), (2, Syncing)]));
    let (tag_of, status) = (tag(9, 1), Status::Ok);
    let record = WriterRecord { tag: tag_of, version: version(1, 1), length: 3, status };
    let forward = Forward {
        chunk: CHUNK,
        change: Change::Whole { length: 3 },
        chunk_size: 64,
        base: ChunkVersion::NONE,
        result: Content { version: version(1, 1), removed: false, length: 3, checksum: crc32c(b"abc") },
        tag: tag_of,
        writers: vec![record],
        early: false,
    };
    let to = target.to();
    target.bytes = b"abc".to_vec();
    target.feed(Input::Forward { token: 1, to, from: TargetId(1), epoch: 0, forward });
    assert_eq!(target.store.now[&CHUNK].state.writers, [record]);
    // The other never committed it; another history goes on, in which the writer comes again.
    target.feed(Input::Chain(chain(2, &[(3, Serving), (2, Syncing)])));
    let to = target.to();
    let item = SyncItem::Chunk { chunk: CHUNK, content: Content::default(), writers: vec![] };
    target.feed(Input::Sync { token: 2, to, from: TargetId(3), epoch: 0, item });
    target.feed(Input::Chain(chain(3, &[(2, Serving)])));
    target.write(3, tag_of, b"abc");
    assert_eq!(target.reply(3), Some(Status::Ok));
    assert_eq!(target.store.now[&CHUNK].bytes, b"abc");
}

#[test]
fn r13_a_refusal_is_carried_out_behind_before_it_is_told() {
    let mut head = Lone::new(1, chain(1, &[(1, Serving), (2, Serving)]));
    head.write(1, tag(1, 1), b"abc");
    let (id, ..) = head.sent();
    head.answer(id, Status::NoSpace, ChunkVersion::NONE);
    let (id, _, message) = head.sent();
    assert!(matches!(message, Message::Abort { version: v, .. } if v == version(1, 1)));
    assert!(!head.wrote(is_drop));
    assert_eq!(head.reply(1), None);
    head.answer(id, Status::Ok, ChunkVersion::NONE);
    assert!(head.wrote(is_drop));
    assert_eq!(head.reply(1), Some(Status::NoSpace));
    // A late copy of the refused request is not done after all; the next update has another attempt.
    head.write(2, tag(1, 1), b"abc");
    assert_eq!(head.reply(2), Some(Status::NoSpace));
    head.write(3, tag(1, 2), b"abc");
    let (_, _, message) = head.sent();
    assert!(matches!(message, Message::Forward { forward, .. } if forward.result.version.attempt == 1));
}

#[test]
fn r13_silence_is_reported_and_never_aborts() {
    let mut head = Lone::new(1, chain(1, &[(1, Serving), (2, Serving)]));
    head.write(1, tag(1, 1), b"abc");
    let (id, ..) = head.sent();
    head.feed(Input::Answered { id, answer: Answer::Lost });
    head.now = head.now + Duration::from_secs(3);
    head.feed(Input::Tick);
    let (again, _, message) = head.sent();
    assert!(again > id && matches!(message, Message::Forward { epoch: 1, .. }));
    assert!(head.out.contains(&Output::Accuse { target: TargetId(2), device: false }));
    assert!(!head.wrote(is_drop) && head.reply(1).is_none());
    // Refused after a chain change: it may have been committed behind, so it stays.
    head.feed(Input::Chain(chain(2, &[(1, Serving), (2, Serving), (3, Offline)])));
    let (id, ..) = head.sent();
    head.answer(id, Status::NoSpace, ChunkVersion::NONE);
    assert!(!head.out.iter().any(|o| matches!(o, Output::Send { message: Message::Abort { .. }, .. })));
}

#[test]
fn r13_what_can_be_refused_is_refused_before_it_has_a_number() {
    let mut head = Lone::new(1, chain(1, &[(1, Serving), (2, Serving)]));
    head.feed(Input::Space { writable: true, creatable: false });
    head.write(1, tag(1, 1), b"abc");
    assert_eq!(head.reply(1), Some(Status::NoSpace));
    head.feed(Input::Space { writable: true, creatable: true });
    head.write(2, tag(1, 2), &[0; 65]);
    assert_eq!(head.reply(2), Some(Status::InvalidArgument));
    head.store.full = true;
    head.write(3, tag(1, 3), b"abc");
    assert_eq!(head.reply(3), Some(Status::NoSpace));
    assert!(!head.out.iter().any(|o| matches!(o, Output::Send { .. })));
}

#[test]
fn r14_another_result_is_not_committed_and_the_whole_content_heals() {
    let mut tail = Lone::new(2, chain(1, &[(1, Serving), (2, Serving)]));
    tail.forward(1, 0, ChunkVersion::NONE, version(1, 1), b"abc", Change::Write { offset: 0, length: 3 });
    tail.store.now.get_mut(&CHUNK).expect("the chunk").bytes = b"abX".to_vec();
    // The predecessor's result of the same write differs from the one that comes out here.
    let forward = |whole| Forward {
        chunk: CHUNK,
        change: if whole { Change::Whole { length: 3 } } else { Change::Write { offset: 0, length: 1 } },
        chunk_size: 64,
        base: version(1, 1),
        result: Content { version: version(2, 1), removed: false, length: 3, checksum: crc32c(b"zbc") },
        tag: tag(9, 2),
        writers: vec![],
        early: false,
    };
    let to = tail.to();
    tail.bytes = b"z".to_vec();
    tail.out.clear();
    tail.feed(Input::Forward { token: 2, to, from: TargetId(1), epoch: 0, forward: forward(false) });
    assert_eq!(tail.reply(2), Some(Status::Corrupt));
    assert!(tail.wrote(is_drop) && !tail.wrote(is_commit));
    tail.bytes = b"zbc".to_vec();
    tail.feed(Input::Forward { token: 3, to, from: TargetId(1), epoch: 0, forward: forward(true) });
    assert_eq!(tail.reply(3), Some(Status::Ok));
    assert_eq!(tail.store.now[&CHUNK].bytes, b"zbc");
}

#[test]
fn r14_the_head_sends_the_whole_when_the_successor_cannot_merge() {
    let mut head = Lone::new(1, chain(1, &[(1, Serving), (2, Serving)]));
    head.write(1, tag(1, 1), b"abc");
    let (id, ..) = head.sent();
    head.answer(id, Status::Corrupt, ChunkVersion::NONE);
    let (_, _, message) = head.sent();
    assert!(matches!(message, Message::Forward { forward, payload: Payload::Stored(_), .. }
        if forward.change == Change::Whole { length: 3 }));
}

#[test]
fn r14_a_repair_waits_for_its_turn_and_is_void_for_another_version() {
    let mut head = Lone::new(1, chain(1, &[(1, Serving), (2, Serving)]));
    head.write(1, tag(1, 1), b"abc");
    let (id, ..) = head.sent();
    head.answer(id, Status::Ok, version(1, 1));
    head.write(2, tag(1, 2), b"def");
    let (id, ..) = head.sent();
    head.feed(Input::RepairWanted { chunk: CHUNK, version: version(1, 1) });
    let repairs = |lone: &Lone| lone.out.iter().filter(|o| matches!(o, Output::Repair { .. })).count();
    assert_eq!(repairs(&head), 0);
    head.answer(id, Status::Ok, version(2, 1));
    assert_eq!(repairs(&head), 0, "the version is another one now");
    head.feed(Input::RepairWanted { chunk: CHUNK, version: version(2, 1) });
    assert_eq!(repairs(&head), 1);
    head.write(3, tag(1, 3), b"ghi");
    assert_eq!(head.reply(3), None, "updates wait for the repair");
    head.feed(Input::Repaired { chunk: CHUNK });
    assert!(matches!(head.sent().2, Message::Forward { .. }));
}

#[test]
fn r18_only_the_right_serving_target_says_absent() {
    let mut one = Lone::new(1, chain(2, &[(1, Serving), (2, Serving)]));
    assert!(one.read(1).is_some_and(|content| content.is_absent()));
    let right = one.to();
    let wrong = [
        Address { generation: Generation(2), ..right },
        Address { target: TargetId(2), ..right },
        Address { chain: ChainId(2), ..right },
        Address { chain_version: ChainVersion(1), ..right },
    ];
    for (i, to) in wrong.into_iter().enumerate() {
        let token = 10 + i as u64;
        one.feed(Input::Read { token, to, chunk: CHUNK, relaxed: false });
        assert_eq!(one.reply(token), Some(Status::StaleRouting));
    }
    one.feed(Input::Chain(chain(3, &[(2, Serving), (1, Syncing)])));
    let to = one.to();
    one.feed(Input::Read { token: 20, to, chunk: CHUNK, relaxed: false });
    assert_eq!(one.reply(20), Some(Status::NotServing));
}

#[test]
fn r18_expiry_is_checked_when_the_update_is_numbered() {
    let mut head = Lone::new(1, chain(1, &[(1, Serving)]));
    head.hold = true;
    head.write(1, tag(1, 1), b"abc");
    let (to, expires) = (head.to(), head.now + Duration::from_millis(10));
    let change = Change::Remove;
    head.feed(Input::Update { token: 2, to, chunk: CHUNK, change, chunk_size: 64, tag: tag(2, 1), expires });
    head.now = head.now + Duration::from_millis(20);
    head.release();
    assert_eq!((head.reply(1), head.reply(2)), (Some(Status::Ok), Some(Status::BadCapability)));
}

#[test]
fn a_lost_store_refuses_everything() {
    let mut one = Lone::new(1, chain(1, &[(1, Serving)]));
    one.hold = true;
    one.write(1, tag(1, 1), b"abc");
    one.feed(Input::Failed { chunk: CHUNK, failure: Failure::Device });
    assert_eq!(one.reply(1), Some(Status::DeviceError));
    one.write(2, tag(1, 2), b"abc");
    assert_eq!(one.reply(2), Some(Status::DeviceError));
    assert_eq!(one.replica.local_state(), LocalState::Offline);
}
