//! Who is measured. Their configurations are the templates in `contenders/`.

use serde::{Deserialize, Serialize};

use super::testbed::Links;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// No proxy: routed through the proxy host
    Direct,
    /// The same once more: what two measurements of one thing differ by
    DirectAgain,
    /// pgsplice in user space
    Relay,
    /// pgsplice with the XDP splice
    Xdp,
    /// pgsplice with the TC splice
    Tc,
    /// pgsplice with the road it takes by itself
    Auto,
    /// pgsplice with joined sockets, its backends on its own host
    Sockmap,
    Haproxy,
    /// HAProxy with `option splice-auto`
    HaproxySplice,
    Envoy,
    Nginx,
}

/// A contender on one kind of links: what is measured and compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Entry {
    pub contender: Contender,
    pub links: Links,
}

/// A road of pgsplice, as in its configuration and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Road {
    /// `listener.splice`.
    pub wanted: &'static str,
    /// `splice.mode`, where interfaces are used at all.
    pub mode: Option<&'static str>,
    /// The label of sessions that took it.
    pub taken: &'static str,
}

impl Contender {
    pub const ALL: [Self; 11] = [
        Self::Direct,
        Self::DirectAgain,
        Self::Relay,
        Self::Xdp,
        Self::Tc,
        Self::Auto,
        Self::Sockmap,
        Self::Haproxy,
        Self::HaproxySplice,
        Self::Envoy,
        Self::Nginx,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::DirectAgain => "direct-again",
            Self::Relay => "relay",
            Self::Xdp => "xdp",
            Self::Tc => "tc",
            Self::Auto => "auto",
            Self::Sockmap => "sockmap",
            Self::Haproxy => "haproxy",
            Self::HaproxySplice => "haproxy-splice",
            Self::Envoy => "envoy",
            Self::Nginx => "nginx",
        }
    }

    /// The road its sessions must take; `None` for what is not pgsplice.
    pub fn road(self) -> Option<Road> {
        match self {
            Self::Relay => Some(Road { wanted: "relay", mode: None, taken: "relay" }),
            Self::Xdp => Some(Road { wanted: "xdp", mode: Some("xdp"), taken: "xdp" }),
            Self::Tc => Some(Road { wanted: "tc", mode: Some("tc"), taken: "tc" }),
            // All links of the bench are veth, where TC is the rule.
            Self::Auto => Some(Road { wanted: "auto", mode: Some("auto"), taken: "tc" }),
            Self::Sockmap => Some(Road { wanted: "sockmap", mode: None, taken: "sockmap" }),
            _ => None,
        }
    }

    /// Whether its sessions leave user space.
    pub fn is_spliced(self) -> bool {
        self.road().is_some_and(|road| road.taken != "relay")
    }

    /// Where it is measured; what it is compared with is measured there as well.
    pub fn home(self) -> Links {
        match self {
            Self::Xdp => Links::Wire,
            Self::Sockmap => Links::Beside,
            _ => Links::Veth,
        }
    }
}

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.links {
            Links::Veth => f.write_str(self.contender.name()),
            links => write!(f, "{} ({})", self.contender.name(), links.name()),
        }
    }
}
