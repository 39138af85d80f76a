//! What is judged before anything is held.

use super::*;
use crate::cluster::{Bouncer, Member, Primary, Switchover};
use crate::config::{Cluster, RestConfig, StoreConfig};

fn order(to: Option<&str>) -> Order {
    let (cluster_name, pause_timeout) = ("main".to_owned(), Duration::from_secs(5));
    Order { cluster_name, cluster: Cluster::default(), to: to.map(Into::into), pause_timeout }
}

fn view() -> ClusterView {
    let member =
        |name: &str| (name.to_owned(), Member { name: name.into(), state: "running".into(), ..Member::default() });
    ClusterView {
        primary: Some(Primary { member: "pg1".into(), timeline: 1, since: std::time::SystemTime::UNIX_EPOCH }),
        members: ["pg1", "pg2", "pg3"].map(member).into(),
        ..ClusterView::default()
    }
}

#[test]
fn what_cannot_work_is_refused_before_anybody_waits() {
    let refused = |order: Order, change: fn(&mut ClusterView)| {
        let mut view = view();
        change(&mut view);
        from(&order, &view).unwrap_err()
    };
    assert_eq!(from(&order(Some("pg2")), &view()).unwrap(), "pg1");
    assert_eq!(from(&order(None), &view()).unwrap(), "pg1");
    assert_eq!(refused(order(Some("pg9")), |_| ()), "no member \"pg9\"; there are: pg1, pg2, pg3");
    assert_eq!(refused(order(Some("pg1")), |_| ()), "pg1 is the primary already");
    let stopped = |view: &mut ClusterView| view.members.get_mut("pg2").unwrap().state = "stopped".into();
    assert_eq!(refused(order(Some("pg2")), stopped), "pg2 does not run: its state is \"stopped\"");
    let closed = |view: &mut ClusterView| (view.primary, view.closed_because) = (None, "nobody leads".into());
    assert_eq!(refused(order(None), closed), "no primary: nobody leads");
    let announced = |view: &mut ClusterView| {
        view.switchover = Some(Switchover { from: "pg1".into(), to: None, by: Announcer::Patroni });
    };
    assert_eq!(refused(order(None), announced), "a switchover from pg1 is announced already");
    let patient = Order { pause_timeout: Cluster::default().switchover_hold, ..order(None) };
    assert!(
        from(&patient, &view()).unwrap_err().starts_with("a pause timeout of 15s is not below switchover_hold, 15s")
    );
    let mut by_rest = order(None);
    by_rest.cluster.store = StoreConfig::Rest(RestConfig::default());
    assert!(from(&by_rest, &view()).unwrap_err().contains("switch over with Patroni"));
}

#[test]
fn only_bouncers_in_service_are_waited_for() {
    let mut view = view();
    for (name, state, leader) in [
        ("b1", BouncerState::Ready, "pg1"),
        ("b2", BouncerState::Draining, "pg1"),
        ("b3", BouncerState::Failed, "pg1"),
        ("b4", BouncerState::Ready, "pg2"),
    ] {
        let bouncer = Bouncer {
            name: name.into(),
            address: "10.0.0.1:6432".parse().unwrap(),
            peer_id: None,
            state,
            leader: Some(leader.into()),
            timeline: Some(1),
            reason: String::new(),
            tags: [].into(),
            waited_ms: None,
        };
        view.bouncers.insert(name.into(), bouncer);
    }
    let fleet = fleet(&view, "pg1");
    assert_eq!(fleet.iter().map(String::as_str).collect::<Vec<_>>(), ["b1", "b2"]);
    view.bouncers.get_mut("b1").unwrap().state = BouncerState::Paused;
    assert_eq!(unpaused(&view, &fleet), ["b2: its agent does not pause it"]);
    view.bouncers.remove("b2");
    assert!(unpaused(&view, &fleet).is_empty(), "one that is gone has no clients");
}
