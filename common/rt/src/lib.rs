//! ember-rt.
#![forbid(unsafe_code)]
