//! ember-meta.
#![forbid(unsafe_code)]
