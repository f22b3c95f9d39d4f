//! Commands of people.

pub(crate) mod bench;
pub(crate) mod config;
pub(crate) mod down;
pub(crate) mod meta;
pub(crate) mod mount;
pub(crate) mod scrub;
pub(crate) mod status;
pub(crate) mod target;
pub(crate) mod up;
pub(crate) mod wait;
