//! The sockmap road on a real kernel: two sockets joined on loopback, and all that goes wrong with the plain way to do it.
//!
//! Needs root (CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, and CAP_SYS_ADMIN for the namespaces); without it each test fails and
//! says so.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod backlog;
mod ends;
mod start;
mod world;
