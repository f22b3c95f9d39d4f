//! Both parts of the simulation: they pass, twice the same, and find planted bugs.

use ember_sim::runner::{Settings, run_seed};
use ember_sim::{chain, cluster};

#[test]
fn a_cluster_passes_and_two_runs_of_a_seed_are_one() {
    let first = run_seed(cluster::simulate, 3, Settings::default());
    assert_eq!(first.failure, None);
    assert_eq!(run_seed(cluster::simulate, 3, Settings::default()), first);
}

#[test]
fn planted_bugs_of_the_replica_protocol_are_found_by_the_chain_alone() {
    let rules = ["r04_drop_pending_on_change", "r06_tail_ignores_syncing", "r07_any_member_is_lastsrv"];
    for mutant in rules.into_iter().chain(["r12_forget_writers", "r12_answer_before_successor"]) {
        let settings = Settings { mutant: Some(mutant), ..Settings::default() };
        let found = (1..=60).find(|&seed| run_seed(chain::simulate, seed, settings).failure.is_some());
        let seed = found.unwrap_or_else(|| panic!("{mutant} survives"));
        assert_eq!(run_seed(chain::simulate, seed, Settings::default()).failure, None, "{mutant}");
    }
}
