//! What the admin interface says and takes of the guard, as JSON; `GET`, `POST` and `DELETE` of `/v1/deny`.

use serde::{Deserialize, Serialize};

use super::{Guard, GuardCounters, GuardError, Origin};
use crate::bpf::Attachment;
use crate::config::{IpNet, IpNetError};

/// `POST` and `DELETE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenyRequest {
    /// `192.0.2.0/24`, `2001:db8::/32`, or one address.
    pub net: String,
}

/// The answer to `POST` and `DELETE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenyChange {
    pub net: String,
    /// False where it was so already.
    pub changed: bool,
}

/// The answer to `GET`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenyList {
    pub entries: Vec<DenyEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenyEntry {
    pub net: String,
    pub origin: Origin,
    /// Packets, since the entry was made.
    pub dropped: u64,
}

/// One listener's share, for `/v1/status` and the metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardStatus {
    pub attachments: Vec<Attachment>,
    pub listeners: Vec<ListenerStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    pub listener: String,
    pub packets: u64,
    pub bytes: u64,
    pub syns: u64,
    pub denied: u64,
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum DenyError {
    /// 400
    #[error(transparent)]
    Syntax(#[from] IpNetError),
    /// 409
    #[error("the guard is off: guard.interfaces is empty in the configuration")]
    Off,
    /// 404
    #[error("{0}")]
    Absent(GuardError),
    /// 409
    #[error("{0}")]
    Conflict(GuardError),
    /// 500
    #[error("{0}")]
    Failed(GuardError),
}

impl DenyError {
    /// The HTTP status that fits.
    pub fn status(&self) -> u16 {
        match self {
            Self::Syntax(_) => 400,
            Self::Absent(_) => 404,
            Self::Off | Self::Conflict(_) => 409,
            Self::Failed(_) => 500,
        }
    }
}

impl From<GuardError> for DenyError {
    fn from(error: GuardError) -> Self {
        match error {
            GuardError::NotDenied(_) => Self::Absent(error),
            GuardError::DeniedByConfig(_) | GuardError::DenyFull => Self::Conflict(error),
            _ => Self::Failed(error),
        }
    }
}

/// `GET /v1/deny`
pub fn list(guard: Option<&Guard>) -> Result<DenyList, DenyError> {
    let listed = guard.ok_or(DenyError::Off)?.deny_list()?;
    let entries =
        listed.into_iter().map(|one| DenyEntry { net: one.net.to_string(), origin: one.origin, dropped: one.dropped });
    Ok(DenyList { entries: entries.collect() })
}

/// `POST /v1/deny`
pub fn add(guard: Option<&Guard>, request: &DenyRequest) -> Result<DenyChange, DenyError> {
    let net: IpNet = request.net.parse()?;
    let changed = guard.ok_or(DenyError::Off)?.deny_add(net)?;
    tracing::info!(%net, "deny add");
    Ok(DenyChange { net: net.to_string(), changed })
}

/// `DELETE /v1/deny`
pub fn del(guard: Option<&Guard>, request: &DenyRequest) -> Result<DenyChange, DenyError> {
    let net: IpNet = request.net.parse()?;
    guard.ok_or(DenyError::Off)?.deny_del(net)?;
    tracing::info!(%net, "deny del");
    Ok(DenyChange { net: net.to_string(), changed: true })
}

impl From<(String, GuardCounters)> for ListenerStatus {
    fn from((listener, counters): (String, GuardCounters)) -> Self {
        let GuardCounters { packets, bytes, syns, denied } = counters;
        Self { listener, packets, bytes, syns, denied }
    }
}

/// For `/v1/status`.
pub fn status(guard: &Guard) -> Result<GuardStatus, GuardError> {
    let listeners = guard.counters()?.into_iter().map(ListenerStatus::from).collect();
    Ok(GuardStatus { attachments: guard.attachments(), listeners })
}
