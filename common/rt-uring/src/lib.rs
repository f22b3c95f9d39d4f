//! ember-rt-uring.
