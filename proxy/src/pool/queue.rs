//! The waiting queue: sessions that found no backend, in the order they came.
//!
//! A woken session tries to pick again and keeps its ticket until it leaves, so one that loses a race does not lose
//! its place. Newcomers must not pick while others wait; `session::pick` sees to it by asking [`Queue::is_empty`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::sync::Notify;

#[derive(Debug, Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    /// Length of `waiting`, readable without the lock.
    length: AtomicUsize,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    by_ticket: BTreeMap<u64, Arc<Notify>>,
}

impl Queue {
    /// `None` when `size` sessions wait already.
    pub fn enter(self: &Queue, size: usize) -> Option<Ticket<'_>> {
        let mut waiting = self.waiting.lock();
        if waiting.by_ticket.len() >= size {
            return None;
        }
        let number = waiting.next;
        waiting.next += 1;
        let woken = Arc::new(Notify::new());
        waiting.by_ticket.insert(number, woken.clone());
        self.length.store(waiting.by_ticket.len(), Relaxed);
        Some(Ticket { queue: self, number, woken })
    }

    pub fn len(&self) -> usize {
        self.length.load(Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One place was freed.
    pub fn wake_one(&self) {
        if self.is_empty() {
            return;
        }
        if let Some(woken) = self.waiting.lock().by_ticket.values().next() {
            woken.notify_one();
        }
    }

    /// Who is eligible changed: any number of places may be free.
    pub fn wake_all(&self) {
        self.waiting.lock().by_ticket.values().for_each(|woken| woken.notify_one());
    }
}

/// A place in the queue, left when dropped.
#[derive(Debug)]
pub struct Ticket<'a> {
    queue: &'a Queue,
    number: u64,
    woken: Arc<Notify>,
}

impl Ticket<'_> {
    pub async fn woken(&self) {
        self.woken.notified().await;
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut waiting = self.queue.waiting.lock();
        let was_first = waiting.by_ticket.keys().next() == Some(&self.number);
        waiting.by_ticket.remove(&self.number);
        self.queue.length.store(waiting.by_ticket.len(), Relaxed);
        // The wake-up meant for the head may have come while it left, and more than one place may be free.
        if was_first && let Some(next) = waiting.by_ticket.values().next() {
            next.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_bounded_and_a_left_place_is_free_again() {
        let queue = Queue::default();
        let first = queue.enter(2).expect("room");
        let _second = queue.enter(2).expect("room");
        assert!(queue.enter(2).is_none());
        drop(first);
        assert!(queue.enter(2).is_some());
        assert!(Queue::default().enter(0).is_none());
    }

    #[tokio::test]
    async fn a_freed_place_wakes_the_one_who_waited_longest_then_the_next() {
        let queue = Queue::default();
        let (first, second) = (queue.enter(9).expect("room"), queue.enter(9).expect("room"));
        queue.wake_one();
        first.woken().await;
        let early = tokio::time::timeout(std::time::Duration::from_millis(20), second.woken()).await;
        assert!(early.is_err(), "the second was woken out of turn");
        drop(first);
        second.woken().await;
    }
}
