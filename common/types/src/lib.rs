//! ember-types.
#![forbid(unsafe_code)]
