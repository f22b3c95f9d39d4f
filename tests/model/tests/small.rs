//! The smallest configuration, and that wrong rules are found in it.

use ember_model_tests::craq::Bounds;
use ember_model_tests::run::{SMALL, WRONG, explore};

#[test]
fn the_smallest_bounds_hold() {
    let outcome = explore(SMALL, 1, None);
    assert_eq!(outcome.violation, None);
    assert!(outcome.complete && outcome.missed.is_empty(), "{outcome:?}");
    assert!(outcome.states > 4_000, "{outcome:?}");
}

#[test]
fn r06_a_read_answered_with_the_pending_version_is_found() {
    let (what, steps) = explore(WRONG, 1, None).violation.expect("a violation");
    assert!(what.contains("a read answers"), "{what}");
    assert!(!steps.is_empty());
}

#[test]
fn r12_an_answer_before_the_successors_is_found() {
    let bounds = Bounds { mutant: Some("r12_answer_before_successor"), ..WRONG };
    assert!(explore(bounds, 1, None).violation.is_some());
}
