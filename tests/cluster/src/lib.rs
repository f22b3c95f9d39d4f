//! ember-cluster-tests.
#![forbid(unsafe_code)]
