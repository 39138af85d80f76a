//! No store and no Patroni: the members stand in the configuration. What they are, they say themselves.

use serde_json::json;
use tokio::sync::mpsc;

use super::contents::{Contents, Folder};
use super::life::abandoned;
use super::{Places, Registration, Store, StoreEvent};
use crate::config::StaticConfig;

#[derive(Debug)]
pub struct StaticStore(StaticConfig);

// === impl StaticStore ===

impl StaticStore {
    pub fn new(config: StaticConfig) -> Self {
        Self(config)
    }

    fn snapshot(&self) -> StoreEvent {
        let mut folder = Folder::default();
        for member in &self.0.members {
            let url = format!("postgres://{}/", member.address);
            let key = json!({ "conn_url": url, "api_url": url, "tags": member.tags });
            folder.put(&format!("members/{}", member.name), key.to_string().as_bytes());
        }
        if let Some(primary) = &self.0.primary {
            folder.put("leader", primary.as_bytes());
        }
        Contents::of(folder, Folder::default()).snapshot(1)
    }
}

impl Store for StaticStore {
    async fn follow(self, _places: Places, events: mpsc::Sender<StoreEvent>) {
        if events.send(self.snapshot()).await.is_ok() {
            events.closed().await;
        }
    }

    /// There is nowhere to register: waits until the entry is given up.
    async fn register(self, mut entry: Registration) {
        abandoned(&mut entry).await;
    }
}
