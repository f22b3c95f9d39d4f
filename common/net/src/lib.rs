//! ember-net.
#![forbid(unsafe_code)]
