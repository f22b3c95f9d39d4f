//! ember-client.
#![forbid(unsafe_code)]
