//! `ember config show`.

use crate::paths::DataDir;
use crate::report::line;
use crate::settings::{Settings, show_all_defaults};
use crate::usage;
use anyhow::Result;

/// Prints the settings of all daemons as TOML.
pub(crate) fn show(dir: &DataDir, defaults: bool) -> Result<u8> {
    if defaults {
        line(&show_all_defaults());
        return Ok(usage::OK);
    }
    let settings = Settings::load(dir)?;
    line(&format!("# {} over the defaults", dir.config_file().display()));
    line(&toml::to_string(&settings)?);
    Ok(usage::OK)
}
