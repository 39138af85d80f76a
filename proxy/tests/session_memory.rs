//! What a session costs while it is forwarded, in records and cancel keys: every byte the allocator gives out is counted.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};
use std::time::Duration;

use pgsplice::pg::cancel::CancelKeys;
use pgsplice::pool::Backend;
use pgsplice::session::registry::Registry;
use pgsplice::session::{Phase, SessionId, SessionRecord};

/// What a record may cost with all it points to and its place in the registry, and a cancel key in its table. Bytes.
const MOST: isize = 250;
const MOST_OF_A_KEY: isize = 60;

struct Counting;

static IN_USE: AtomicIsize = AtomicIsize::new(0);

/// As glibc takes it from memory: what can be used, and the word before it.
fn size(memory: *mut u8) -> isize {
    // SAFETY: the caller has it from the same allocator and has not freed it.
    (unsafe { libc::malloc_usable_size(memory.cast()) } + size_of::<usize>()) as isize
}

// SAFETY: the system's allocator does everything; the counter touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promised to us.
        let memory = unsafe { System.alloc(layout) };
        IN_USE.fetch_add(size(memory), Relaxed);
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(size(memory), Relaxed);
        // SAFETY: as the caller promised to us.
        unsafe { System.dealloc(memory, layout) };
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A record as a session leaves it behind when it is handed to its road.
fn forwarded(number: u64, backend: &Arc<Backend>) -> Arc<SessionRecord> {
    let client = "192.0.2.7:40001".parse().unwrap();
    let record = SessionRecord::new(SessionId::new(number as usize % 2, number), "rw", "main", client);
    record.update(|details| {
        details.times.startup = Some(Duration::from_micros(300));
        details.user = Some("app_user".into());
        details.database = Some("app_data".into());
        details.application_name = Some("app_name".into());
    });
    record.update(|details| {
        details.phase = Phase::Handshake;
        details.backend = Some(backend.clone());
        details.backend_local = Some("10.0.0.1:12345".parse().unwrap());
        details.times.connect = Some(Duration::from_micros(200));
    });
    record.update(|details| details.times.handshake = Some(Duration::from_micros(1_500)));
    record.update(|details| {
        details.phase = Phase::Forward;
        details.road = Some("xdp");
    });
    Arc::new(record)
}

/// One test, for others at the same time would be counted as well.
#[test]
fn a_forwarded_session_costs_little() {
    let backend = Arc::new(Backend::new("main", "pgb1", "10.0.0.1:6432".parse().unwrap()));
    // The names and whatever else is made once.
    drop(forwarded(0, &backend));
    // Just after the registry's tables have doubled is when they cost most a session.
    for sessions in [10_000, 2 * (16_384 / 8 * 7 + 1), 100_000] {
        let registry = Registry::new(2);
        let before = IN_USE.load(Relaxed);
        (0..sessions).for_each(|number| registry.insert(forwarded(number, &backend)));
        let each = (IN_USE.load(Relaxed) - before) / sessions as isize;
        println!("{sessions} sessions: {each} bytes each");
        assert!(each <= MOST, "{each} bytes a session with {sessions} of them");
        assert_eq!(registry.all().len() as u64, sessions);
        assert!(registry.all()[0].age() < Duration::from_secs(60));
        let details = registry.all()[0].details();
        assert_eq!(
            (details.user.as_deref(), details.database.as_deref(), details.application_name.as_deref()),
            (Some("app_user"), Some("app_data"), Some("app_name"))
        );
    }

    let (keys, mut remembered) = (Arc::new(CancelKeys::default()), Vec::with_capacity(100_000));
    let before = IN_USE.load(Relaxed);
    remembered.extend((0..100_000u64).map(|number| keys.remember(&number.to_be_bytes(), &backend)));
    let each = (IN_USE.load(Relaxed) - before) / 100_000;
    println!("cancel keys: {each} bytes each, and {} where they are held", size_of_val(&remembered[0]));
    assert!(each <= MOST_OF_A_KEY, "{each} bytes a key");
}
