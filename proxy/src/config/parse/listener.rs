//! `[listener.NAME]`, and the `[….tcp]` section that listeners and pools share.

use crate::config::model::{Listener, SpliceRoad, Tcp};
use crate::config::read::Section;
use crate::config::values;

pub(super) fn listener(mut section: Section<'_, '_>) -> Listener {
    const ROADS: &[(&str, SpliceRoad)] = &[
        ("auto", SpliceRoad::Auto),
        ("xdp", SpliceRoad::Xdp),
        ("tc", SpliceRoad::Tc),
        ("sockmap", SpliceRoad::Sockmap),
        ("relay", SpliceRoad::Relay),
    ];
    let mut listener = Listener::default();
    if section.has("bind") {
        let before = section.reader.report.errors.len();
        let lists = section.list("bind", values::bind()).unwrap_or_default();
        listener.bind = lists.into_iter().flatten().collect();
        if listener.bind.is_empty() && section.reader.report.errors.len() == before {
            section.error("bind", "the list is empty", values::bind().expected);
        }
    } else {
        section.require("bind", values::bind());
    }
    if let Some(pool) = section.require("pool", values::text("the NAME of a [pool.NAME] section")) {
        listener.pool = pool;
    }
    section.set("max_sessions", values::count(0..=u32::MAX), &mut listener.max_sessions);
    section.set("startup_timeout", values::duration(), &mut listener.startup_timeout);
    section.set("max_startup_size", values::size_within(64..=1 << 20), &mut listener.max_startup_size);
    section.set("backlog", values::count(1..=1 << 20), &mut listener.backlog);
    section.set("defer_accept", values::flag(), &mut listener.defer_accept);
    section.set("splice", values::one_of(ROADS), &mut listener.splice);
    section.set("splice_after", values::splice_after(), &mut listener.splice_after);
    tcp(section.section("tcp"), &mut listener.tcp);
    section.end();
    listener
}

pub(super) fn tcp(mut section: Section<'_, '_>, tcp: &mut Tcp) {
    section.set("keepalive_idle", values::keepalive(Some("no keepalive")), &mut tcp.keepalive_idle);
    section.set("keepalive_interval", values::keepalive(None), &mut tcp.keepalive_interval);
    // MAX_TCP_KEEPCNT, include/net/tcp.h.
    section.set("keepalive_count", values::count(1..=127), &mut tcp.keepalive_count);
    section.set("user_timeout", values::user_timeout(), &mut tcp.user_timeout);
    section.end();
}
