//! The stories of the protocol's rules, told to the state machine.

use ember_chain::{Observation, Report, accept_generation, invariants, new_chain, note_in_use, transition};
use ember_types::{Chain, ChainId, ChainVersion, Generation, LocalState, PublicState, TargetId};
use std::collections::BTreeMap;

use PublicState::{LastSrv, Offline, Serving, Syncing, Waiting};

const GENERATION: Generation = Generation(1);

fn chain(members: u64) -> Chain {
    let members: Vec<_> = (1..=members).map(|t| (TargetId(t), GENERATION)).collect();
    new_chain(ChainId(1), &members)
}

/// A live target that reports under the chain's version.
fn up(chain: &Chain, local: LocalState) -> Observation {
    let report = Report { generation: GENERATION, local, applied: chain.version, served: ChainVersion(0) };
    Observation { alive: true, may_serve: true, report: Some(report), ..Observation::absent(GENERATION) }
}

fn seen(list: &[(u64, Observation)]) -> BTreeMap<TargetId, Observation> {
    list.iter().map(|(t, o)| (TargetId(*t), *o)).collect()
}

fn dead() -> Observation {
    Observation::absent(GENERATION)
}

fn states(chain: &Chain) -> Vec<(u64, PublicState)> {
    chain.targets.iter().map(|m| (m.target.0, m.state)).collect()
}

fn step(chain: &Chain, list: &[(u64, Observation)]) -> Chain {
    let next = transition(chain, &seen(list)).expect("a change");
    invariants::check_step(chain, &next).expect("invariants");
    next
}

fn used(chain: &Chain) -> Chain {
    let tail = chain.tail().expect("a tail").target;
    note_in_use(chain, chain.version, tail).expect("the tail asks").expect("not noted yet")
}

#[test]
fn r01_a_serving_target_stays_until_it_cannot_serve() {
    let v1 = used(&chain(3));
    let up = up(&v1, LocalState::UpToDate);
    let silent = Observation { alive: false, ..up };
    assert_eq!(transition(&v1, &seen(&[(1, up), (2, up), (3, silent)])), None);
    let wished_out = Observation { shunned: true, ..up };
    assert_eq!(transition(&v1, &seen(&[(1, up), (2, up), (3, wished_out)])), None);
    assert_eq!(transition(&v1, &seen(&[(1, up), (2, up)])), None, "nothing is known of 3");
    let v2 = step(&v1, &[(1, up), (2, up), (3, Observation { may_serve: false, ..wished_out })]);
    assert_eq!(states(&v2), [(1, Serving), (2, Serving), (3, Waiting)]);
}

#[test]
fn r02_versions_lost_by_the_store_are_passed() {
    let lost = chain(3);
    let at = |served: u64| {
        let mut o = up(&lost, LocalState::UpToDate);
        o.report = o.report.map(|r| Report { served: ChainVersion(served), ..r });
        Observation { may_serve: false, ..o }
    };
    let waiting = Observation { may_serve: true, ..at(5) };
    assert_eq!(transition(&lost, &seen(&[(1, at(7)), (2, at(7)), (3, waiting)])), None);
    let v8 = step(&lost, &[(1, at(4)), (2, at(7)), (3, at(7))]);
    assert_eq!(v8.version, ChainVersion(8));
    assert_eq!(states(&v8), [(2, LastSrv), (3, LastSrv), (1, Offline)]);
    let v9 = step(&v8, &[(1, at(4)), (2, at(7)), (3, at(7))]);
    assert_eq!(states(&v9), [(2, Serving), (3, Syncing), (1, Waiting)]);
}

#[test]
fn r06_one_syncs_at_a_time_and_joins_behind_the_tail() {
    let v1 = used(&chain(3));
    let alive = |c: &Chain, local| Observation { may_serve: false, ..up(c, local) };
    let v2 = step(&v1, &[(1, dead()), (2, up(&v1, LocalState::UpToDate)), (3, dead())]);
    assert_eq!(states(&v2), [(2, Serving), (1, Offline), (3, Offline)]);
    let back = |c: &Chain| {
        let source = up(c, LocalState::UpToDate);
        [(1, alive(c, LocalState::Online)), (2, source), (3, alive(c, LocalState::Online))]
    };
    let v3 = step(&v2, &back(&v2));
    assert_eq!(states(&v3), [(2, Serving), (1, Syncing), (3, Waiting)]);
    let mut done = back(&v3);
    done[0].1 = alive(&v3, LocalState::UpToDate);
    let v4 = step(&v3, &done);
    assert_eq!(states(&v4), [(2, Serving), (1, Serving), (3, Syncing)]);
}

#[test]
fn r06_sync_done_is_void_after_a_chain_change() {
    let v1 = used(&chain(3));
    let v2 =
        step(&v1, &[(1, up(&v1, LocalState::UpToDate)), (2, up(&v1, LocalState::UpToDate)), (3, dead())]);
    let v3 = step(
        &v2,
        &[
            (1, up(&v2, LocalState::UpToDate)),
            (2, up(&v2, LocalState::UpToDate)),
            (3, up(&v2, LocalState::Online)),
        ],
    );
    let v4 = step(&v3, &[(1, dead()), (2, up(&v3, LocalState::UpToDate)), (3, up(&v3, LocalState::Online))]);
    assert_eq!(states(&v4), [(2, Serving), (3, Syncing), (1, Offline)]);
    let said_under_v3 = [(1, dead()), (2, up(&v4, LocalState::UpToDate)), (3, up(&v3, LocalState::UpToDate))];
    assert_eq!(transition(&v4, &seen(&said_under_v3)), None);
    let v5 =
        step(&v4, &[(1, dead()), (2, up(&v4, LocalState::UpToDate)), (3, up(&v4, LocalState::UpToDate))]);
    assert_eq!(states(&v5), [(2, Serving), (3, Serving), (1, Offline)]);
}

#[test]
fn r06_a_waiting_member_does_not_disturb_a_sync() {
    let v1 = used(&chain(3));
    let source = |c: &Chain| up(c, LocalState::UpToDate);
    let v2 = step(&v1, &[(1, source(&v1)), (2, dead()), (3, dead())]);
    let v3 = step(&v2, &[(1, source(&v2)), (2, up(&v2, LocalState::Online)), (3, dead())]);
    assert_eq!(states(&v3), [(1, Serving), (2, Syncing), (3, Offline)]);
    let returned = [(1, source(&v3)), (2, up(&v3, LocalState::Online)), (3, up(&v3, LocalState::Online))];
    assert_eq!(transition(&v3, &seen(&returned)), None);
}

#[test]
fn r07_versions_never_used_disqualify_nobody() {
    let v1 = used(&chain(3));
    let lease = Observation { alive: false, ..up(&v1, LocalState::UpToDate) };
    let v2 = step(&v1, &[(1, lease), (2, lease), (3, dead())]);
    let v3 = step(&v2, &[(1, lease), (2, dead()), (3, dead())]);
    let v4 = step(&v3, &[(1, dead()), (2, dead()), (3, dead())]);
    assert_eq!(states(&v4), [(1, LastSrv), (2, LastSrv), (3, LastSrv)]);
    let b = Observation { may_serve: false, ..up(&v4, LocalState::UpToDate) };
    let v5 = step(&v4, &[(1, dead()), (2, b), (3, dead())]);
    assert_eq!(states(&v5), [(2, Serving), (1, Offline), (3, Offline)]);
}

#[test]
fn r07_only_members_of_the_last_version_in_use_are_lastsrv() {
    let v1 = used(&chain(3));
    let source = up(&v1, LocalState::UpToDate);
    let v2 = used(&step(&v1, &[(1, source), (2, source), (3, dead())]));
    let v3 = step(&v2, &[(1, dead()), (2, dead()), (3, dead())]);
    assert_eq!(states(&v3), [(1, LastSrv), (2, LastSrv), (3, Offline)]);
    let stale = Observation { may_serve: false, ..up(&v3, LocalState::UpToDate) };
    let v4 = step(&v3, &[(1, dead()), (2, dead()), (3, stale)]);
    assert_eq!(states(&v4), [(1, LastSrv), (2, LastSrv), (3, Waiting)], "3 lacks what 1 and 2 acknowledged");
    assert_eq!(transition(&v4, &seen(&[(1, dead()), (2, dead()), (3, stale)])), None);
}

#[test]
fn r07_a_target_that_began_to_sync_is_no_lastsrv() {
    let v1 = used(&chain(2));
    let v2 = step(&v1, &[(1, up(&v1, LocalState::UpToDate)), (2, dead())]);
    let v3 = step(&v2, &[(1, up(&v2, LocalState::UpToDate)), (2, up(&v2, LocalState::UpToDate))]);
    assert_eq!(states(&v3), [(1, Serving), (2, Syncing)]);
    let v4 = step(&v3, &[(1, dead()), (2, up(&v3, LocalState::Online))]);
    assert_eq!(states(&v4), [(1, LastSrv), (2, Waiting)]);
}

#[test]
fn r07_a_new_generation_comes_back_through_a_full_sync() {
    let v1 = used(&chain(2));
    assert!(accept_generation(&v1, TargetId(2), Generation(2)).is_err(), "it is serving");
    let v2 = step(&v1, &[(1, up(&v1, LocalState::UpToDate)), (2, dead())]);
    let v3 = accept_generation(&v2, TargetId(2), Generation(2)).expect("another member serves");
    invariants::check_step(&v2, &v3).expect("invariants");
    let mut old_content = up(&v3, LocalState::UpToDate);
    old_content.generation = Generation(2);
    let source = up(&v3, LocalState::UpToDate);
    assert_eq!(transition(&v3, &seen(&[(1, source), (2, old_content)])), None, "the disk holds generation 1");
    let v4 = step(&v3, &[(1, dead()), (2, dead())]);
    assert_eq!(states(&v4), [(1, LastSrv), (2, Offline)]);
    let mut emptied = old_content;
    emptied.report = emptied.report.map(|r| Report { generation: Generation(2), applied: v4.version, ..r });
    let v5 = step(&v4, &[(1, dead()), (2, emptied)]);
    assert_eq!(states(&v5), [(1, LastSrv), (2, Waiting)]);
}

#[test]
fn r07_an_incomplete_recovery_does_not_serve() {
    let v1 = used(&chain(2));
    let v2 = step(&v1, &[(1, dead()), (2, dead())]);
    let partial = Observation { may_serve: false, ..up(&v2, LocalState::Online) };
    assert_eq!(transition(&v2, &seen(&[(1, partial), (2, dead())])), None);
}

#[test]
fn r10_a_sync_without_progress_yields_its_place() {
    let v1 = used(&chain(3));
    let source = |c: &Chain| up(c, LocalState::UpToDate);
    let online = |c: &Chain| up(c, LocalState::Online);
    let v2 = step(&v1, &[(1, source(&v1)), (2, dead()), (3, dead())]);
    let v3 = step(&v2, &[(1, source(&v2)), (2, online(&v2)), (3, online(&v2))]);
    let stalled = Observation { stalled: true, ..online(&v3) };
    let v4 = step(&v3, &[(1, source(&v3)), (2, stalled), (3, online(&v3))]);
    assert_eq!(states(&v4), [(1, Serving), (3, Syncing), (2, Waiting)]);
}
