//! ember-storage.
#![forbid(unsafe_code)]
