//! A small world for replicas: model stores, a network that loses and delays, a tiny mgmtd, clients, and a
//! checker for linearizability. One seed, one run.
#![allow(dead_code, unreachable_pub)]

pub mod client;
pub mod linear;
pub mod lone;
pub mod mgmtd;
pub mod store;
pub mod world;
