//! Model checking of the replica protocol: every order of messages, losses, crashes and chain changes within
//! bounds, explored with stateright.
//!
//! What runs is the product's pure code, `ember_craq::Replica` and `ember_chain::transition`; around it this crate
//! has a model of the network, the stores, the leases and the clients, each reduced to what may differ. It is not
//! a statement about real time, sizes or bytes: the simulator (`tests/sim`) is for those. Invariants that it
//! checks in every state are in [`craq`].
#![forbid(unsafe_code)]

pub mod craq;
pub mod run;
