//! The command as its users call it.

use std::process::{Command, Output};

fn schedule(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ember-train")).arg("schedule").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn eight_ranks_and_twenty_micro_batches_are_drawn() {
    let file = std::env::temp_dir().join(format!("ember-train-{}.svg", std::process::id()));
    let output = schedule(&["--svg", file.to_str().unwrap()]);
    let printed = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(printed.contains("8 stages on 8 ranks, 20 micro-batches: 66 from begin to end"), "{printed}");
    assert!(printed.contains("a rank waits for 6 to 6 of it"), "{printed}");
    assert!(printed.contains("activations of up to 9 micro-batches"), "{printed}");
    let svg = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(svg.starts_with("<svg "));
    let numbers: serde_json::Value = serde_json::from_slice(&schedule(&["--json"]).stdout).unwrap();
    assert_eq!(numbers["makespan"], 66.0);
    assert_eq!(numbers["bubble_formula"], 6.0);
}

#[test]
fn wrong_numbers_are_refused_with_their_rule() {
    for (args, expected) in [
        (&["--ranks", "3"][..], "ranks: 3 is odd"),
        (&["--chunks", "14"], "chunks: 14 micro-batches are fewer than twice the 8 ranks"),
        (&["--ranks", "1000", "--chunks", "2000"], "chunks: 1000 ranks with 2000 micro-batches are more"),
        (&["--weight", "9"], "weight: 9 is more than the whole backward pass of 2"),
    ] {
        let output = schedule(args);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
    }
    let output = schedule(&["--svg", "/no/such/folder/x.svg"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/no/such/folder/x.svg"));
}
