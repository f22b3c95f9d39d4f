//! Tests of the product from outside: real processes, a real mount.
#![allow(clippy::disallowed_methods, reason = "drives real processes, outside the seam")]

mod common;
mod copy;
mod crash;
mod damage;
mod disk;
mod life;
mod native;
mod native_life;
mod posix_data;
mod posix_names;
mod power;
mod programs;
mod refuse;
mod training;
