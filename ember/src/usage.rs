//! Exit codes, and errors that carry one.

use crate::paths::DataDir;

/// All is well.
pub(crate) const OK: u8 = 0;
/// Something wants attention, or the command failed.
pub(crate) const WARN: u8 = 1;
/// Data can't be served, or the command was refused.
pub(crate) const ERR: u8 = 2;
/// There is no cluster there.
pub(crate) const NO_CLUSTER: u8 = 3;
/// Wrong usage (EX_USAGE of sysexits.h).
pub(crate) const USAGE: u8 = 64;

/// An error with an exit code of its own.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    text: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// The command was refused; nothing has changed.
    pub(crate) fn refused(text: impl Into<String>) -> anyhow::Error {
        Self { code: ERR, text: text.into() }.into()
    }
    /// Wrong usage.
    pub(crate) fn usage(text: impl Into<String>) -> anyhow::Error {
        Self { code: USAGE, text: text.into() }.into()
    }
    /// There is no cluster there.
    pub(crate) fn no_cluster(dir: &DataDir) -> anyhow::Error {
        let text = format!("no cluster in {}: `ember up --data {0}` makes one", dir.root().display());
        Self { code: NO_CLUSTER, text }.into()
    }
}

/// The exit code of an error.
pub(crate) fn code_of(error: &anyhow::Error) -> u8 {
    error.downcast_ref::<Failure>().map_or(WARN, |failure| failure.code)
}
