//! ember-meta-store.
#![forbid(unsafe_code)]
