//! The command line: what it prints, and how it ends.

use std::process::{Command, Output};

fn sim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ember-sim")).args(args).output().unwrap()
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn planted_bugs_cover_the_rules_and_have_names_that_are_listed_alone() {
    let output = sim(&["--list-mutants"]);
    assert_eq!(output.status.code(), Some(0));
    let names = lines(&output);
    assert!(names.len() >= 12);
    for rule in ["r01", "r02", "r04", "r05", "r06", "r07", "r08", "r11", "r12", "r13", "r18", "r19"] {
        assert!(names.iter().any(|name| name.starts_with(&format!("{rule}_"))), "{rule}");
    }
    assert!(names.iter().all(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')));
}

#[test]
fn wrong_usage_ends_with_2() {
    for args in [&[][..], &["--seeds", "0"], &["--seeds", "x"], &["--frobnicate"], &["--seed"]] {
        assert_eq!(sim(args).status.code(), Some(2), "{args:?}");
    }
    let unknown = sim(&["--mutate", "r99_nothing", "--seeds", "1"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("--list-mutants"));
}

#[test]
fn a_seed_prints_its_hash_last_and_the_same_one_each_time() {
    let hash = |seed| {
        let output = sim(&["--seed", seed, "--only", "chain"]);
        assert_eq!(output.status.code(), Some(0));
        lines(&output).last().cloned().unwrap()
    };
    let (seven, eight) = (hash("7"), hash("8"));
    assert_eq!(seven.len(), 16);
    assert_eq!(seven, hash("7"));
    assert_ne!(seven, eight);
}

#[test]
fn a_planted_bug_is_found_with_its_property_its_seed_and_how_to_replay_it() {
    let output = sim(&["--mutate", "r12_answer_before_successor", "--seeds", "50", "--only", "chain"]);
    assert_eq!(output.status.code(), Some(1));
    let text = lines(&output).join("\n");
    assert!(text.contains("violated: per-chunk linearizability"), "{text}");
    assert!(text.contains("the seed passes without it"), "{text}");
    let replay = text.lines().last().unwrap();
    assert!(
        replay.starts_with("seed ") && replay.contains("--mutate r12_answer_before_successor"),
        "{replay}"
    );
}

#[test]
fn the_storage_profile_prints_the_fault_matrix_and_is_an_argument_of_its_own() {
    let output = sim(&["--profile", "storage", "--seeds", "2", "--threads", "1"]);
    assert_eq!(output.status.code(), Some(0), "{:?}", lines(&output));
    let table = lines(&output);
    let row = table.iter().find(|row| row.starts_with("unsynced writes lost")).unwrap();
    let counts: Vec<u64> =
        row.split_whitespace().flat_map(|word| word.split('|')).flat_map(str::parse).collect();
    assert_eq!(counts.len(), 7, "{row}");
    assert!(
        counts[1] > 0 && counts[2] > 0,
        "seeds 1 and 2 strike the middle and the tail of a whole chain: {row}"
    );
    assert_eq!(sim(&["--profile", "stroage", "--seeds", "1"]).status.code(), Some(2));
    assert_eq!(sim(&["--profile", "storage", "--only", "chain", "--seeds", "1"]).status.code(), Some(2));
}

#[test]
fn many_seeds_end_with_a_table() {
    let output = sim(&["--seeds", "4", "--only", "chain", "--threads", "1"]);
    assert_eq!(output.status.code(), Some(0));
    let table = lines(&output);
    assert!(table[1].starts_with("seeds"), "{table:?}");
    assert!(table.iter().any(|row| row.starts_with("client operations")));
}
