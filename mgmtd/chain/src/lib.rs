//! ember-chain.
#![forbid(unsafe_code)]
