//! ember-engine.
#![forbid(unsafe_code)]
