//! ember-fuse.
#![forbid(unsafe_code)]
