//! ember-wire.
#![forbid(unsafe_code)]
