//! The live table: a line a second, and notes between them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::Demo;

/// When the table began: its lines count from there.
static BEGUN: OnceLock<Instant> = OnceLock::new();

/// Runs `work` while a line a second is printed.
pub fn beside<T>(demo: &Demo, work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let begun = *BEGUN.get_or_init(Instant::now);
            for second in 1.. {
                while begun.elapsed() < Duration::from_secs(second) {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    thread::sleep(Duration::from_millis(20));
                }
                if second % 20 == 1 {
                    head();
                }
                line(demo, begun);
            }
        });
        // Also when `work` panics, or the table would never end.
        let _end = SetOnDrop(&done);
        work()
    })
}

fn head() {
    println!("\n{:>6} {:>7} {:>9} {:>7} {:>21}", "", "", "", "pgbench", "no write through");
    println!(
        "{:>6} {:>7} {:>9} {:>7} {:>10} {:>10}  {:<8} sessions at each PgBouncer",
        "s", "tps", "latency", "errors", "the fleet", "the own", "primary"
    );
}

/// A line of its own among the others.
pub fn note(said: &str) {
    let begun = BEGUN.get_or_init(Instant::now);
    println!("{:>6.1} ── {said}", begun.elapsed().as_secs_f64());
}

fn line(demo: &Demo, begun: Instant) {
    let now = demo.load.now();
    let latency = now.latency.map_or("–".to_owned(), |latency| format!("{latency:.2} ms"));
    let silence = |prober: &super::Prober| match prober.silence() {
        Some(silence) if silence < Duration::from_millis(500) => "·".to_owned(),
        Some(silence) => format!("{:.1} s", silence.as_secs_f64()),
        None => "–".to_owned(),
    };
    let primary = demo.fleet.primary().unwrap_or_default();
    let primary = demo.lab.postgres().into_iter().find(|host| host.v4().to_string() == primary);
    println!(
        "{:>6.0} {:>7.0} {:>9} {:>7} {:>10} {:>10}  {:<8} {}",
        begun.elapsed().as_secs_f64(),
        now.tps,
        latency,
        demo.load.errors(),
        silence(&demo.fleet),
        silence(&demo.local),
        primary.map_or("–", |host| host.name()),
        sessions(demo)
    );
}

/// `bouncer1 3, bouncer2 3, bouncer3 2`, as pgsplice counts them in the pool of the fleet.
fn sessions(demo: &Demo) -> String {
    let Ok(text) = demo.lab.pgsplice(&["backends", "--pool", "rw", "--json"]) else { return "?".to_owned() };
    let Ok(answer) = serde_json::from_str::<serde_json::Value>(&text) else { return "?".to_owned() };
    let backends = answer["backends"].as_array().map(Vec::as_slice).unwrap_or_default();
    let each = backends.iter().map(|backend| {
        format!("{} {}", backend["name"].as_str().unwrap_or("?"), backend["sessions"].as_u64().unwrap_or_default())
    });
    each.collect::<Vec<_>>().join(", ")
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
