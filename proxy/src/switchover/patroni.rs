//! `POST /switchover` of a member's REST API (`patroni/api.py`, `do_POST_failover`).

use serde_json::json;

use crate::cluster::announce::Notice;
use crate::cluster::http;
use crate::cluster::names::Names;
use crate::config::Cluster;

/// An answer is one sentence.
const MAX_BODY: usize = 16 * 1024;

/// Asks the leader. Patroni answers when the leadership has moved, or says why it does not. `Err` is a sentence.
pub(super) async fn switch_over(cluster: &Cluster, api_url: &str, notice: &Notice) -> Result<(), String> {
    let proof = &cluster.proof;
    let client = http::client(&proof.tls, proof.timeout, &Names::default()).map_err(|error| format!("proof{error}"))?;
    let mut url = reqwest::Url::parse(api_url).map_err(|error| format!("api_url {api_url:?}: {error}"))?;
    url.set_path("/switchover");
    url.set_query(None);
    let mut body = json!({ "leader": notice.leader });
    if let Some(candidate) = &notice.candidate {
        body["candidate"] = json!(candidate);
    }
    let mut request = client.post(url).header("content-type", "application/json").body(body.to_string());
    if let Some(user) = &proof.user {
        request = request.basic_auth(user, proof.password.as_deref());
    }
    let failed = |why: String| format!("Patroni on {} could not be asked: {why}", notice.leader);
    let response = request.send().await.map_err(|error| failed(http::cause(&error)))?;
    let status = response.status();
    let text = http::body(response, MAX_BODY).await.map_err(failed)?;
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    match status.as_u16() {
        200 | 202 => Ok(()),
        401 => Err("Patroni refused: it wants a login, user and password in [cluster.NAME.proof]".into()),
        status => Err(format!("Patroni refused ({status}): {text}")),
    }
}
