//! ember-craq.
#![forbid(unsafe_code)]
