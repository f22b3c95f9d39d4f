//! Settings of mgmtd.

use ember_types::Millis;
use ember_wire::mgmtd::Timing;
use std::time::Duration;

ember_types::config! {
    /// The cluster manager.
    pub struct Config {
        /// Addresses to listen on: `IP:PORT`, IPv6 as `[IP]:PORT`, or `unix:/absolute/path`.
        pub listen: Vec<String> = Vec::new(),
        /// How long a node may serve after it sent the heartbeat that was granted, in milliseconds.
        pub node_lease_ms: u64 = 5_000,
        /// How often a node sends heartbeats, in milliseconds.
        pub heartbeat_ms: u64 = 500,
        /// Bound on how far two machines' clocks drift apart during a lease, in milliseconds.
        pub drift_ms: u64 = 250,
        /// Lease of the primary mgmtd, in milliseconds; with the drift bound twice it must be shorter than
        /// the nodes' lease, so that a change of primary stops no I/O.
        pub primary_lease_ms: u64 = 2_000,
        /// How often the primary renews its lease and others look at it, in milliseconds.
        pub primary_poll_ms: u64 = 250,
        /// How often leases are looked at for ones that ran out, in milliseconds.
        pub evaluate_ms: u64 = 100,
        /// How long a client's session lasts after its last extension, in milliseconds.
        pub client_session_ms: u64 = 60_000,
        /// How long a capability lasts, in milliseconds.
        pub capability_ms: u64 = 60_000,
        /// Time without progress after which a syncing target yields its place, in milliseconds.
        pub sync_stall_ms: u64 = 60_000,
        /// Client sessions at once.
        pub clients_max: usize = 100_000,
    }
}

impl Config {
    /// What is wrong with it, and what helps.
    pub fn validate(&self) -> Result<(), String> {
        if self.node_lease_ms == 0
            || self.heartbeat_ms == 0
            || self.primary_poll_ms == 0
            || self.evaluate_ms == 0
        {
            return Err("no time of mgmtd may be 0".into());
        }
        let least = self.heartbeat_ms.saturating_mul(3);
        if least > self.node_lease_ms {
            return Err(format!("node_lease_ms must be at least three heartbeats ({least})"));
        }
        let twice = self.drift_ms.saturating_add(self.primary_poll_ms).saturating_mul(2);
        let takeover = self.primary_lease_ms.saturating_add(twice);
        if takeover >= self.node_lease_ms {
            return Err(format!(
                "a change of primary takes up to {takeover} ms, longer than node_lease_ms ({}): nodes would \
                 stop serving; lower primary_lease_ms or raise node_lease_ms",
                self.node_lease_ms
            ));
        }
        if self.primary_poll_ms.saturating_mul(3) > self.primary_lease_ms {
            return Err("primary_lease_ms must be at least three times primary_poll_ms".into());
        }
        Ok(())
    }
    /// The cluster's times as they go to nodes and clients.
    pub fn timing(&self) -> Timing {
        Timing {
            node_lease_ms: Millis(self.node_lease_ms),
            heartbeat_ms: Millis(self.heartbeat_ms),
            drift_ms: Millis(self.drift_ms),
            client_session_ms: Millis(self.client_session_ms),
            capability_ms: Millis(self.capability_ms),
        }
    }
    pub(crate) fn node_lease(&self) -> Duration {
        Duration::from_millis(self.node_lease_ms)
    }
    pub(crate) fn drift(&self) -> Duration {
        Duration::from_millis(self.drift_ms)
    }
    pub(crate) fn primary_lease(&self) -> Duration {
        Duration::from_millis(self.primary_lease_ms)
    }
    pub(crate) fn client_session(&self) -> Duration {
        Duration::from_millis(self.client_session_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_let_the_primary_change_within_a_node_lease() {
        Config::default().validate().expect("defaults");
        let slow = Config { primary_lease_ms: 4_500, ..Config::default() };
        assert!(slow.validate().expect_err("too slow").contains("primary_lease_ms"));
        let hasty = Config { heartbeat_ms: 2_000, ..Config::default() };
        assert!(hasty.validate().is_err());
    }

    #[test]
    fn absurd_times_are_refused() {
        let change: [fn(&mut Config); 4] = [
            |c| c.heartbeat_ms = u64::MAX,
            |c| c.primary_lease_ms = u64::MAX,
            |c| c.drift_ms = u64::MAX,
            |c| c.primary_poll_ms = u64::MAX,
        ];
        for (i, change) in change.iter().enumerate() {
            let mut config = Config::default();
            change(&mut config);
            assert!(config.validate().is_err(), "{i}");
        }
    }
}
