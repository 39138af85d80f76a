//! What is true about a Patroni cluster.
//!
//! A [`store`] reads keys from the DCS, [`patroni`] turns them into roles, [`truth`] weighs them against what the
//! members prove, and the result is one immutable [`ClusterView`] at a time.

pub mod view;

pub use view::*;
