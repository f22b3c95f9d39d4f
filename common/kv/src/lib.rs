//! ember-kv.
#![forbid(unsafe_code)]
