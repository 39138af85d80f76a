//! The splice's programs on a real kernel, packet by packet: bytes in, verdict, bytes and maps out, by BPF_PROG_TEST_RUN.
//!
//! [`differential`] holds them against the model of the library, over a million generated packets; [`fixtures`] holds both
//! against what a person wrote down; [`at_once`] has two packets in their hands. Needs root (CAP_BPF, CAP_NET_ADMIN,
//! CAP_SYS_ADMIN for the namespaces).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod at_once;
mod differential;
mod fixtures;
mod generate;
mod packet;
mod rig;
mod scene;
mod wire;
