//! ember-daemon.
#![forbid(unsafe_code)]
