//! Planted bugs: one decision of the protocol turned round each, and what finds it. They exist only in builds with
//! the feature `mutants`; everywhere else [`mutant!`](crate::mutant) is the constant `false`, and the binary
//! `ember` refuses to compile with them. `cargo xtask mutants` shows that each one is found.

/// Whether this build contains planted bugs.
pub const COMPILED: bool = cfg!(feature = "mutants");

/// The environment variable that switches a planted bug on for a whole process, as tests of crates need it.
pub const VARIABLE: &str = "EMBER_MUTANT";

/// A planted bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mutant {
    /// Its name, which starts with the rule of the protocol that it violates: `r05_…`.
    pub name: &'static str,
    /// What it breaks.
    pub what: &'static str,
    /// What finds it.
    pub found_by: Finder,
}

/// What finds a planted bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finder {
    /// Some seed of `ember-sim`.
    Simulator,
    /// A test of a crate.
    Test {
        /// Its binary, as nextest calls it: `package` for unit tests, else `package::file`.
        binary: &'static str,
        /// Its name, with its modules.
        test: &'static str,
    },
}

impl Mutant {
    /// The rule that it violates: `R5`.
    pub fn rule(&self) -> String {
        format!("R{}", self.name[1..3].trim_start_matches('0'))
    }
}

/// Rules that no planted bug violates, and why.
pub const WITHOUT: &[(&str, &str)] = &[("R16", "no code yet: there are no one-sided (RDMA) transfers")];

/// The planted bug of that name.
pub fn find(name: &str) -> Option<&'static Mutant> {
    ALL.iter().find(|m| m.name == name)
}

/// The names of those that the simulator finds.
pub fn simulated() -> impl Iterator<Item = &'static str> {
    ALL.iter().filter(|m| m.found_by == Finder::Simulator).map(|m| m.name)
}

macro_rules! finder {
    (simulator) => {
        Finder::Simulator
    };
    (($binary:literal $test:literal)) => {
        Finder::Test { binary: $binary, test: $test }
    };
}

macro_rules! planted {
    ($($name:ident $what:literal $by:tt)*) => {
        &[$(Mutant { name: stringify!($name), what: $what, found_by: finder!($by) }),*]
    };
}

/// Every planted bug. One that no code uses survives, and so is a defect.
pub const ALL: &[Mutant] = planted! {
    r01_taken_out_under_lease "a silent node's targets are taken out before its lease has run out"
        simulator
    r01_unknown_counts_as_stopped "a target of which nothing is known is taken out as if it had stopped"
        ("ember-chain::rules" "r01_a_serving_target_stays_until_it_cannot_serve")
    r01_lease_while_demoted "a node gets a lease while its target is being taken out"
        ("ember-mgmtd" "state::tests::r01_no_lease_while_a_demotion_is_being_written")
    r01_reopened_target_has_the_old_lease "a target opened again serves before mgmtd has heard of it"
        ("ember-storage" "known::tests::r01_no_lease_counts_before_a_heartbeat_that_reports_the_target_was_answered")
    r01_earlier_heartbeat_counts "the answer to a heartbeat from before a target was opened counts for it"
        ("ember-storage" "known::tests::r01_no_lease_counts_before_a_heartbeat_that_reports_the_target_was_answered")
    r02_version_from_kv_only "mgmtd ignores a chain version above its own that a target reports"
        simulator
    r02_stale_member_revived "after lost chain versions, members that missed the newest may serve"
        ("ember-chain::rules" "r02_versions_lost_by_the_store_are_passed")
    r02_chain_version_not_durable "a target serves under a chain version before it is durable"
        ("ember-engine::rules" "r02_the_chain_version_is_durable_and_never_falls")
    r03_id_range_not_durable "ids are handed out from a range that a power loss forgets"
        ("ember-meta-store" "tests::removal::r03_ids_are_never_handed_out_twice")
    r03_removal_before_durable "storage removes data of an unlink that may be forgotten"
        ("ember-meta-store" "tests::removal::r03_a_durable_claim_makes_the_unlink_durable")
    r04_drop_pending_on_change "a serving replica drops its pending versions at a chain change"
        simulator
    r04_new_tail_tells_before_commit "a new tail answers before it has committed its pending versions"
        ("ember-craq::rules" "r04_pending_goes_to_the_new_successor_and_a_new_tail_commits_first")
    r04_sums_of_unflushed_frees_forgotten "a slot's checksums go before the record that frees it is durable"
        ("ember-engine" "index::tests::r04_a_slots_checksums_stay_until_the_record_that_frees_it_is_durable")
    r04_named_sum_page_overwritten "a checkpoint writes a checksum page over the one that the last one names"
        ("ember-engine::pages" "the_page_that_a_checkpoint_names_is_never_written_over")
    r04_compaction_drops_pending "a compaction drops the pending version"
        ("ember-engine::compact" "r04_a_pending_version_puts_compaction_off")
    r04_flush_overlooks_batch_on_its_way "a flush doesn't wait for records that are on their way to the log"
        ("ember-engine::rules" "r04_a_flush_waits_for_a_commit_that_is_on_its_way")
    r05_number_alone_identifies "equal version numbers count as equal content"
        simulator
    r05_tombstone_forgotten "a removal leaves no tombstone"
        ("ember-engine::rules" "r05_a_late_create_does_not_resurrect_a_removed_chunk")
    r05_tombstone_kept_short "tombstones go while a late forward may still come"
        ("ember-engine::rules" "r05_a_late_create_does_not_resurrect_a_removed_chunk")
    r06_tail_ignores_syncing "the tail commits before its syncing successor holds the version"
        simulator
    r06_commit_before_all_hold_it "the tail commits what a replica before it has not stored yet"
        simulator
    r06_read_answers_pending "a replica answers a read with its pending version instead of asking the tail"
        simulator
    r06_new_tail_unconfirmed "a new tail answers before its predecessor has confirmed the chain version"
        ("ember-craq::rules" "r06_the_tail_waits_for_its_syncing_successor_and_for_its_predecessor")
    r06_old_sync_done_counts "a sync that was done under an older chain version makes a target serving"
        ("ember-chain::rules" "r06_sync_done_is_void_after_a_chain_change")
    r07_any_member_is_lastsrv "any member of the chain may become lastsrv, whatever it missed"
        simulator
    r07_commit_before_note "the tail commits before its chain version is noted as in use"
        ("ember-craq::rules" "r07_nothing_is_committed_before_the_version_is_noted_as_in_use")
    r07_syncing_still_holds "a target that dropped its pending versions to sync may be lastsrv"
        ("ember-chain::rules" "r07_a_target_that_began_to_sync_is_no_lastsrv")
    r07_unused_version_counts "a chain version that was never used disqualifies the members before it"
        ("ember-chain::rules" "r07_versions_never_used_disqualify_nobody")
    r07_new_boot_stays_in_service "a restarted process keeps its targets in service"
        ("ember-mgmtd" "state::tests::r07_a_new_boot_is_offline_first_and_resyncs")
    r08_lease_counts_from_answer "a node counts its lease from the receipt of the answer"
        simulator
    r08_read_without_lease "a read is taken without a lease"
        ("ember-craq::rules" "r08_reads_need_a_lease_when_taken_and_when_answered")
    r08_answer_without_lease "a read is answered without a look at the lease"
        ("ember-craq::rules" "r08_reads_need_a_lease_when_taken_and_when_answered")
    r08_new_primary_knows_no_leases "a new primary takes nodes for dead that hold leases of the old one"
        ("ember-mgmtd" "state::tests::r08_a_new_primary_declares_nobody_dead_for_a_lease_and_drift")
    r09_delta_over_another_term "mgmtd sends a delta over another primary's view"
        ("ember-mgmtd" "state::tests::r09_deltas_have_a_base_in_this_term")
    r09_delta_without_its_base "a delta is applied to a view that is not its base"
        ("ember-types" "routing::tests::r09_a_delta_needs_its_base")
    r09_chain_goes_back "a delta replaces a chain by an older version"
        ("ember-types" "routing::tests::r09_a_chain_is_replaced_by_higher_versions_only")
    r10_silence_not_reported "a replica never reports that its successor does not answer"
        ("ember-craq::rules" "r13_silence_is_reported_and_never_aborts")
    r10_stalled_sync_stays "a sync without progress keeps its place"
        ("ember-chain::rules" "r10_a_sync_without_progress_yields_its_place")
    r10_full_target_is_admitted "a target without room is taken in to be brought up to date, over and over"
        ("ember-mgmtd" "state::tests::r10_a_target_without_room_waits_and_changes_no_chain_version")
    r10_accuser_is_never_blamed "whom several accuse stays because it accuses another"
        ("ember-chain" "blame::tests::r10_who_is_accused_by_several_or_fails_goes")
    r10_lost_reads_as_zeros "a chunk whose bytes are lost reads as zeros"
        ("ember-engine::rules" "r10_a_lost_content_stays_known_and_is_replaced_whole")
    r11_resync_acts_on_listing "resync removes and copies from the listing, outside the chunk's order"
        simulator
    r11_sync_done_outlives_change "a sync that is done stays done after a chain change"
        ("ember-craq::rules" "r11_sync_done_is_void_after_a_chain_change")
    r11_sync_done_before_pending "a sync is done before the target holds the pending versions of before"
        ("ember-craq::rules" "r11_a_sync_is_not_done_before_the_target_holds_the_pending_versions_of_before")
    r11_pace_ignores_slow_requests "a resync goes no slower however slow the clients' requests become"
        ("ember-storage" "pace::tests::it_grows_while_latency_stays_and_falls_to_the_floor_when_it_does_not")
    r11_resync_begins_at_full_speed "a resync that begins beside clients has no limit"
        ("ember-storage" "pace::tests::it_settles_where_the_foreground_begins_to_suffer")
    r11_yardstick_grows_old "a resync never pauses to measure the clients alone"
        ("ember-storage" "pace::tests::a_pause_measures_a_foreground_that_came_with_the_resync")
    r12_forget_writers "a repeated write runs again after another write replaced the record"
        simulator
    r12_answer_before_successor "the head answers before its successor's acknowledgement"
        simulator
    r12_void_records_stay "records of writers that a sync overwrote still count"
        ("ember-craq::rules" "r12_a_record_that_a_sync_overwrites_is_forgotten")
    r12_repeat_runs_beside "a repeat does not join the update under way"
        ("ember-craq::rules" "r12_a_repeat_joins_the_update_under_way")
    r12_dropped_update_keeps_its_writer "the writer's record of an update that a start dropped still counts"
        ("ember-engine::rules" "r12_a_dropped_update_says_nothing_of_its_writer")
    r12_older_record_replaces_newer "an older sequence replaces a writer's record"
        ("ember-engine::rules" "r12_writers_are_remembered_with_their_pending_version")
    r12_ended_session_revives "a client session that has ended is extended"
        ("ember-mgmtd" "state::tests::r12_a_session_ends_after_its_time_and_stays_ended")
    r13_abort_forgets_locally "the head drops a refused update without telling its successors"
        simulator
    r13_failed_store_forgets_its_forward "an update that the own store refuses is forgotten, though successors have it"
        ("ember-craq::early" "r13_what_the_own_store_refuses_is_withdrawn_behind")
    r13_silence_aborts "the head aborts an update for want of its successor's answer"
        ("ember-craq::rules" "r13_silence_is_reported_and_never_aborts")
    r13_syncing_target_refuses "a target that is being brought up to date and has no room refuses an update for all"
        ("ember-craq::rules" "r13_a_syncing_successor_without_room_refuses_nothing")
    r13_refused_after_number "an update without space gets a number first"
        ("ember-craq::rules" "r13_what_can_be_refused_is_refused_before_it_has_a_number")
    r13_aborted_version_forgotten "late copies of an aborted version are accepted"
        ("ember-engine::rules" "r13_late_copies_of_an_aborted_version_are_refused")
    r14_old_sum_page_believed "a checksum page is believed though a newer one was written"
        ("ember-engine::pages" "an_old_page_and_another_one_are_noticed")
    r14_base_not_verified "bytes from the disk are merged and sent without a look at their checksum"
        ("ember-engine::rules" "r14_rot_is_not_laundered")
    r14_head_result_ignored "an update with another result than the head's is stored"
        ("ember-engine::rules" "r14_another_result_than_the_heads_is_not_stored")
    r14_other_result_commits "a replica commits another result than its predecessor's"
        ("ember-craq::rules" "r14_another_result_is_not_committed_and_the_whole_content_heals")
    r14_repair_of_other_version "a repair runs although the chunk has another version by now"
        ("ember-craq::rules" "r14_a_repair_waits_for_its_turn_and_is_void_for_another_version")
    r15_forwards_share_a_lane "forwards of all positions in a chain share their credits"
        ("ember-net" "credits::tests::r15_each_class_and_position_has_its_own_lane")
    r15_credits_not_counted "a listener takes more requests of a class than there are credits"
        ("ember-net" "credits::tests::the_ledger_refuses_what_exceeds_a_class_and_no_other")
    r17_slot_reused_before_flush "a slot is free before the record that frees it is flushed"
        ("ember-engine::rules" "r17_a_slot_is_reused_only_after_the_flush_that_frees_it")
    r17_slot_free_under_reader "a slot is free while a reader holds it"
        ("ember-engine" "slots::tests::r17_a_slot_is_not_free_while_a_reader_holds_it")
    r17_append_over_written "an append goes over bytes that were written before"
        ("ember-engine::rules" "r17_nothing_is_appended_over_bytes_once_written")
    r17_append_behind_failed_write "an append goes where a write has failed"
        ("ember-engine::rules" "r17_nothing_is_appended_behind_a_failed_write")
    r17_failed_write_stays_in_the_log "a record stays in its frame though its data could not be written"
        ("ember-engine::rules" "r17_an_update_whose_data_failed_is_in_no_frame")
    r17_unwritten_space_is_settled "space that was never written counts as written and flushed before"
        ("ember-engine::flushes" "a_slot_is_settled_by_its_first_write_and_unsettled_when_it_is_given_back")
    r17_space_given_back_stays_settled "space that was given back counts as written and flushed before"
        ("ember-engine" "settled::tests::space_that_is_given_back_is_not_settled_by_a_flush_that_goes_on")
    r18_absent_is_hole_anywhere "any replica may answer that a chunk is absent"
        simulator
    r18_expiry_ignored_at_number "the head numbers an update whose capability has ended"
        ("ember-craq::rules" "r18_expiry_is_checked_when_the_update_is_numbered")
    r18_open_holds_nothing "an open of an unlinked file does not put its collection off"
        ("ember-meta-store" "tests::removal::r18_an_open_of_an_unlinked_file_puts_collection_off")
    r18_collected_before_hold "an unlinked file is collected while an open of it is renewed"
        ("ember-meta-store" "tests::removal::r18_data_stay_while_an_open_is_renewed")
    r19_settle_without_truncate_version "settlement of a file's length ignores truncations"
        simulator
    r19_extended_unasked "a file is extended without asking storage what lies behind its end"
        ("ember-meta-store" "tests::lengths::r19_remains_beyond_the_end_never_come_back")
    r19_cut_taken_over_early "a server takes a truncation over while another may still cut"
        ("ember-meta-store" "tests::lengths::r19_another_server_resumes_only_after_the_first_ones_rights")
    r19_live_writer_settled "the length of a live writer is settled"
        ("ember-meta-store" "tests::lengths::r19_a_dead_writers_length_is_settled")
    r20_time_counts_from_receipt "cluster time is counted from the receipt of an answer"
        ("ember-client" "mgmtd::clock::tests::r20_the_true_time_lies_within_the_bounds")
    r20_renewed_at_the_end "a capability is renewed when its life is over"
        ("ember-client" "open::tests::r20_a_capability_is_renewed_at_half_its_life")
};

#[cfg(feature = "mutants")]
mod switch {
    use std::cell::Cell;
    use std::sync::OnceLock;

    thread_local!(static ACTIVE: Cell<Option<&'static str>> = const { Cell::new(None) });

    fn find(wanted: &str) -> Option<&'static str> {
        super::find(wanted).map(|m| m.name)
    }

    /// Switches one planted bug on for this thread, or all off. `false` if no bug has that name.
    pub fn activate(name: Option<&str>) -> bool {
        let found = name.map(find);
        ACTIVE.set(found.flatten());
        found.is_none_or(|f| f.is_some())
    }

    /// The bug that the environment names, for the whole process.
    fn of_process() -> Option<&'static str> {
        static NAME: OnceLock<Option<&'static str>> = OnceLock::new();
        *NAME.get_or_init(|| {
            let wanted = std::env::var_os(super::VARIABLE)?;
            let found = wanted.to_str().and_then(find);
            assert!(found.is_some(), "{} names no planted bug: {wanted:?}", super::VARIABLE);
            found
        })
    }

    /// Whether the bug of that name is switched on, for this thread or for the process.
    pub fn active(name: &'static str) -> bool {
        ACTIVE.get().or_else(of_process) == Some(name)
    }
}
#[cfg(feature = "mutants")]
pub use switch::{activate, active};

/// `mutant!(name)` is whether that planted bug is switched on: constantly `false` without the feature `mutants`.
#[cfg(feature = "mutants")]
#[macro_export]
macro_rules! mutant {
    ($name:ident) => {
        $crate::mutants::active(stringify!($name))
    };
}

/// `mutant!(name)` is whether that planted bug is switched on: constantly `false` without the feature `mutants`.
#[cfg(not(feature = "mutants"))]
#[macro_export]
macro_rules! mutant {
    ($name:ident) => {
        false
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_rule_has_a_planted_bug_or_a_reason() {
        let names: BTreeSet<&str> = ALL.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), ALL.len(), "names are distinct");
        let violated: BTreeSet<String> = ALL.iter().map(Mutant::rule).collect();
        let without: BTreeSet<String> = WITHOUT.iter().map(|(rule, _)| (*rule).to_owned()).collect();
        assert!(violated.is_disjoint(&without));
        let rules: BTreeSet<String> = (1..=20).map(|n| format!("R{n}")).collect();
        assert_eq!(&violated | &without, rules);
    }
}
