//! A PgBouncer that is held, and an agent that ends, begins, or cannot bring it away.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use pgsplice::cluster::BouncerState;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error};

use super::World;
use super::switchover::ask;

impl World {
    /// The key moves, and the old primary goes on taking writes: only its Patroni died.
    async fn depose(&mut self) {
        self.store.put("/service/lab/leader", "pg2", None).await.unwrap();
    }

    fn note(&self, of: &str) -> PathBuf {
        format!("{}.{of}", self.bouncer.databases_file().display()).into()
    }

    /// The member's Patroni is dead: its key is gone. What stood there.
    async fn lose(&mut self, member: &str) -> Vec<u8> {
        let key = format!("/service/lab/members/{member}");
        let value = self.store.get(&*key, None).await.unwrap().kvs()[0].value().to_vec();
        self.store.delete(key, None).await.unwrap();
        value
    }

    async fn until_paused(&self) {
        let begun = Instant::now();
        while self.bouncer.paused().await != ["app"] {
            assert!(begun.elapsed() < Duration::from_secs(5), "app was never paused");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Asks and is to wait.
    async fn waiting(&self, client: Client) -> JoinHandle<Result<String, Error>> {
        let waiting = tokio::spawn(async move { ask(&client).await });
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!waiting.is_finished(), "it waits");
        waiting
    }
}

/// Neither paused, for nobody would resume it, nor open to writes that are lost.
#[tokio::test]
async fn a_pgbouncer_that_cannot_be_brought_away_refuses_clients_from_the_end_of_its_agent_until_one_has_brought_it_away()
 {
    let mut world = World::new().await;
    let agent = world.agent();
    world.until_ready_on("pg1").await;
    let client = world.bouncer.client().await;
    world.bouncer.break_config();
    world.depose().await;
    world.until_state(BouncerState::Paused).await;
    let waiting = world.waiting(client).await;
    agent.stop().await;
    assert_eq!((world.bouncer.paused().await, world.bouncer.disabled().await), (vec![], vec!["app".to_owned()]));
    waiting.await.unwrap().unwrap_err();
    let refused = world.bouncer.try_client().await.err().unwrap();
    let refused = refused.as_db_error().unwrap().message();
    assert!(refused.contains("disabled"), "{refused}");

    world.members[1].is_primary(2);
    let agent = world.agent();
    world.until("refused", |b| b.is_some_and(|b| b.reason.contains("after RELOAD"))).await;
    world.bouncer.try_client().await.err().unwrap();
    world.bouncer.mend_config();
    world.until_ready_on("pg2").await;
    assert!(world.bouncer.disabled().await.is_empty());
    assert_eq!(ask(&world.bouncer.client().await).await.unwrap(), "pg2");
    agent.stop().await;
}

#[tokio::test]
async fn an_agent_that_ends_tries_once_more_to_bring_pgbouncer_away() {
    let mut world = World::new().await;
    let agent = world.agent_with("timeout = \"500ms\"");
    world.until_ready_on("pg1").await;
    let client = world.bouncer.client().await;
    world.bouncer.break_config();
    world.depose().await;
    world.until_state(BouncerState::Paused).await;
    // The first try fails because it hangs. Until the second one nothing was loaded of the next place.
    world.bouncer.freeze();
    world.bouncer.mend_config();
    let thaw = async {
        tokio::time::sleep(Duration::from_millis(800)).await;
        world.bouncer.thaw();
    };
    tokio::join!(agent.stop(), thaw);
    assert!(world.bouncer.paused().await.is_empty());
    assert_eq!(ask(&client).await.unwrap(), "pg2");
}

/// It was held for so long that it would be resumed, but the agent that finds it does not know yet where it belongs.
#[tokio::test]
async fn an_old_hold_is_not_ended_before_the_store_has_said_who_leads_and_not_kept_for_ever() {
    let mut world = World::new().await;
    let hold = "switchover_hold = \"4s\"";
    let agent = world.agent_that("", hold);
    world.until_ready_on("pg1").await;
    let (first, second) = (world.bouncer.client().await, world.bouncer.client().await);
    assert_eq!(ask(&first).await.unwrap(), "pg1");
    agent.stop().await;
    world.members[1].is_primary(2);
    world.depose().await;
    let note = format!("{}.paused", world.bouncer.databases_file().display());
    let leave_paused = async || {
        world.bouncer.console("PAUSE app").await;
        std::fs::write(&note, "app\n").unwrap();
        let file = std::fs::File::options().write(true).open(&note).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
    };

    leave_paused().await;
    world.etcd.kill(0);
    let begun = Instant::now();
    let agent = world.agent_that("", hold);
    let waiting = world.waiting(first).await;
    assert_eq!(waiting.await.unwrap().unwrap(), "pg1", "where the file points, for want of anything better");
    let held = begun.elapsed();
    assert!(held > Duration::from_secs(3) && held < Duration::from_secs(8), "{held:?}");
    agent.kill().await;

    leave_paused().await;
    let agent = world.agent_that("", hold);
    let waiting = world.waiting(second).await;
    world.etcd.restart(0);
    world.store = world.etcd.client().await;
    assert_eq!(waiting.await.unwrap().unwrap(), "pg2");
    world.until_ready_on("pg2").await;
    agent.stop().await;
}

/// Nobody was there to pause it when the key moved.
#[tokio::test]
async fn clients_wait_rather_than_stay_at_a_deposed_primary_if_the_new_agents_file_is_refused() {
    let mut world = World::new().await;
    let agent = world.agent();
    world.until_ready_on("pg1").await;
    let client = world.bouncer.client().await;
    assert_eq!(ask(&client).await.unwrap(), "pg1");
    agent.stop().await;
    world.bouncer.break_config();
    world.members[1].is_primary(2);
    world.depose().await;
    let agent = world.agent();
    world.until_paused().await;
    let waiting = world.waiting(client).await;
    world.until("refused", |b| b.is_some_and(|b| b.reason.contains("after RELOAD"))).await;
    world.bouncer.mend_config();
    assert_eq!(waiting.await.unwrap().unwrap(), "pg2");
    world.until_ready_on("pg2").await;
    agent.stop().await;
}

/// The console hangs from before the key moves until the next primary is open; the old one's member key is gone by then.
#[tokio::test]
async fn clients_wait_rather_than_stay_at_a_deposed_primary_if_the_move_was_missed_and_the_file_is_refused() {
    let mut world = World::new().await;
    let agent = world.agent_with("timeout = \"10s\"");
    world.until_ready_on("pg1").await;
    let client = world.bouncer.client().await;
    assert_eq!(ask(&client).await.unwrap(), "pg1");
    world.bouncer.break_config();
    world.bouncer.freeze();
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.store.delete("/service/lab/members/pg1", None).await.unwrap();
    world.members[1].is_primary(2);
    world.depose().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.bouncer.thaw();
    world.until_paused().await;
    let waiting = world.waiting(client).await;
    world.bouncer.mend_config();
    assert_eq!(waiting.await.unwrap().unwrap(), "pg2");
    world.until_ready_on("pg2").await;
    agent.stop().await;
}

/// The one that paused it knew that the primary was deposed; those after it cannot know from anything but its note.
#[tokio::test]
async fn what_was_paused_for_a_deposed_primary_is_never_resumed_there_by_the_agents_after() {
    let mut world = World::new().await;
    let agent = world.agent();
    world.until_ready_on("pg1").await;
    let client = world.bouncer.client().await;
    assert_eq!(ask(&client).await.unwrap(), "pg1");
    world.bouncer.break_config();
    world.depose().await;
    world.until_state(BouncerState::Paused).await;
    agent.kill().await;
    world.lose("pg1").await;
    world.members[1].is_primary(2);
    let agent = world.agent();
    let waiting = world.waiting(client).await;
    world.until("refused", |b| b.is_some_and(|b| b.reason.contains("after RELOAD"))).await;
    agent.kill().await;

    // One that ends before the store has said a word, and whose commands are not all obeyed.
    let no_name = "A".repeat(200);
    std::fs::write(world.note("paused"), format!("{no_name}\napp\n\ndeposed\n")).unwrap();
    world.etcd.kill(0);
    let agent = world.agent();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!waiting.is_finished(), "it waits");
    agent.stop().await;
    assert_eq!((world.bouncer.paused().await, world.bouncer.disabled().await), (vec![], vec!["app".to_owned()]));
    waiting.await.unwrap().unwrap_err();

    world.etcd.restart(0);
    world.store = world.etcd.client().await;
    world.bouncer.mend_config();
    let agent = world.agent();
    world.until_ready_on("pg2").await;
    assert_eq!(ask(&world.bouncer.client().await).await.unwrap(), "pg2");
    agent.stop().await;
}

/// That the key names somebody without an address does not make the place right where PgBouncer is.
#[tokio::test]
async fn an_old_hold_is_not_ended_while_whoever_the_key_names_has_no_key_of_its_own() {
    let mut world = World::new().await;
    let hold = "switchover_hold = \"1s\"";
    let agent = world.agent_that("", hold);
    world.until_ready_on("pg1").await;
    let client = world.bouncer.client().await;
    assert_eq!(ask(&client).await.unwrap(), "pg1");
    agent.stop().await;
    world.bouncer.console("PAUSE app").await;
    std::fs::write(world.note("paused"), "app\n").unwrap();
    world.depose().await;
    let member = world.lose("pg2").await;
    world.lose("pg1").await;
    let agent = world.agent_that("", hold);
    let waiting = world.waiting(client).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!waiting.is_finished(), "it waits");
    world.members[1].is_primary(2);
    world.store.put("/service/lab/members/pg2", member, None).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), "pg2");
    agent.stop().await;
}

#[tokio::test]
async fn what_could_not_be_noted_is_paused_as_soon_as_it_can_and_so_is_a_pgbouncer_that_was_started_anew() {
    let mut world = World::new().await;
    let agent = world.agent();
    world.until_ready_on("pg1").await;
    // As good as a full disk.
    std::fs::create_dir(world.note("paused.new")).unwrap();
    world.depose().await;
    world.until("failed", |b| b.is_some_and(|b| b.reason.contains("cannot write"))).await;
    assert!(world.bouncer.paused().await.is_empty());
    std::fs::remove_dir(world.note("paused.new")).unwrap();
    world.until_paused().await;
    world.until_state(BouncerState::Paused).await;
    world.bouncer.restart();
    world.until_paused().await;
    world.until_state(BouncerState::Paused).await;
    world.members[1].is_primary(2);
    world.until_ready_on("pg2").await;
    assert!(world.bouncer.paused().await.is_empty());
    agent.stop().await;
}

#[tokio::test]
async fn databases_are_disabled_rather_than_left_paused_although_the_disk_is_full() {
    let mut world = World::new().await;
    // The note can be renamed; nor even that.
    for may_rename in [true, false] {
        let agent = world.agent();
        world.until_ready_on("pg1").await;
        world.bouncer.break_config();
        world.depose().await;
        world.until_state(BouncerState::Paused).await;
        std::fs::create_dir(world.note("disabled.new")).unwrap();
        if !may_rename {
            std::fs::create_dir(world.note("disabled")).unwrap();
        }
        agent.stop().await;
        assert_eq!((world.bouncer.paused().await, world.bouncer.disabled().await), (vec![], vec!["app".to_owned()]));
        std::fs::remove_dir(world.note("disabled.new")).unwrap();
        world.bouncer.mend_config();
        world.store.put("/service/lab/leader", "pg1", None).await.unwrap();
        if may_rename {
            assert!(world.note("disabled").exists() && !world.note("paused").exists());
            let agent = world.agent();
            world.until_ready_on("pg1").await;
            assert!(world.bouncer.disabled().await.is_empty());
            agent.stop().await;
        }
    }
}
