//! ember-mgmtd.
#![forbid(unsafe_code)]
