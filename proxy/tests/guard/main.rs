//! The guard on a real kernel: packets in and verdicts out, interfaces in namespaces of their own, processes that die.
//!
//! Needs root (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN for the namespaces); without it each test fails and says so.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod host;
mod life;
mod packets;
mod wire;
