//! The commands the README names, and the lab that the tests and the bench stand on.
//!
//! It builds without the proxy, protoc or a BPF toolchain, because `cargo xtask setup` is what brings those.

pub mod bench;
pub mod build;
pub mod demo;
pub mod ebpf;
pub mod failover;
pub mod lab;
pub mod lint;
pub mod setup;
pub mod test;
