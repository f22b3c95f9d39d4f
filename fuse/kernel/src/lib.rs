//! ember-fuse-kernel.
