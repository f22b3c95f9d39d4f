//! `ember.toml` in the data directory: settings of every daemon, one section each.

use crate::paths::DataDir;
use anyhow::Result;
use ember_client::ClientConfig;
use ember_daemon::{LogConfig, load_config, show_defaults};
use ember_fuse::FuseConfig;
use ember_meta::MetaConfig;
use ember_storage::StorageConfig;
use serde::{Deserialize, Serialize};

ember_types::config! {
    /// What all daemons of this machine have in common.
    pub struct DaemonConfig {
        /// Where the admin pages (`/metrics`, `/healthz`) listen, one a daemon. Port 0 takes a free port, which
        /// stands in `run/NAME.admin` of the data directory.
        pub admin: String = "127.0.0.1:0".into(),
        /// Threads of a daemon that may block on the metadata store, at most.
        pub blocking_threads_max: usize = 16,
    }
}

/// All settings. Addresses and directories that are left empty follow from the data directory.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    pub(crate) daemon: DaemonConfig,
    pub(crate) logs: LogConfig,
    pub(crate) mgmtd: ember_mgmtd::Config,
    pub(crate) meta: MetaConfig,
    pub(crate) storage: StorageConfig,
    pub(crate) client: ClientConfig,
    pub(crate) fuse: FuseConfig,
}

impl Settings {
    /// Reads the settings of a data directory; without a file they are the defaults.
    pub(crate) fn load(dir: &DataDir) -> Result<Self> {
        Ok(load_config(&dir.config_file(), true)?)
    }
}

/// Every setting with its default and its documentation, as TOML.
pub(crate) fn show_all_defaults() -> String {
    [
        show_defaults::<DaemonConfig>("daemon"),
        show_defaults::<LogConfig>("logs"),
        show_defaults::<ember_mgmtd::Config>("mgmtd"),
        show_defaults::<MetaConfig>("meta"),
        show_defaults::<StorageConfig>("storage"),
        show_defaults::<ClientConfig>("client"),
        show_defaults::<FuseConfig>("fuse"),
    ]
    .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shown_defaults_are_the_defaults() {
        let shown: Settings = toml::from_str(&show_all_defaults()).unwrap();
        assert_eq!(shown, Settings::default());
    }

    #[test]
    fn every_setting_is_documented() {
        let undocumented: Vec<String> = show_all_defaults()
            .lines()
            .collect::<Vec<_>>()
            .windows(2)
            .filter(|pair| pair[1].contains(" = ") && !pair[1].starts_with('#') && !pair[0].starts_with('#'))
            .map(|pair| pair[1].to_owned())
            .collect();
        assert!(undocumented.is_empty(), "{undocumented:?}");
    }
}
