//! Timers: the thread waits in its ring no longer than until the next of them.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::driver::{self, Driver};

/// Who waits for when. The number tells apart those that wait for the same instant.
#[derive(Debug, Default)]
pub(super) struct Timers {
    waiting: BTreeMap<(Instant, u64), Waker>,
    number: u64,
}

/// Ready at an instant. Costs nothing until it is polled before that.
#[derive(Debug)]
pub struct Sleep {
    until: Instant,
    waiting: Option<(Rc<Driver>, u64)>,
}

pub fn sleep_until(until: Instant) -> Sleep {
    Sleep { until, waiting: None }
}

pub fn sleep(time: Duration) -> Sleep {
    sleep_until(Instant::now() + time)
}

/// `None` when the time was over first; `future` is dropped then.
pub async fn timeout<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut sleep = sleep(limit);
    std::future::poll_fn(move |context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        Pin::new(&mut sleep).poll(context).map(|()| None)
    })
    .await
}

impl Timers {
    pub fn next(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((until, _), _)| *until)
    }

    pub fn take_due(&mut self, now: Instant) -> Vec<Waker> {
        let mut due = Vec::new();
        while self.next().is_some_and(|until| until <= now) {
            due.extend(self.waiting.pop_first().map(|(_, waker)| waker));
        }
        due
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.until {
            return Poll::Ready(());
        }
        let until = self.until;
        let (driver, number) = self.waiting.get_or_insert_with(|| {
            let driver = driver::current();
            let number = {
                let mut timers = driver.timers.borrow_mut();
                timers.number += 1;
                timers.number
            };
            (driver, number)
        });
        let mut timers = driver.timers.borrow_mut();
        let waker = timers.waiting.entry((until, *number)).or_insert_with(|| context.waker().clone());
        waker.clone_from(context.waker());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((driver, number)) = &self.waiting {
            driver.timers.borrow_mut().waiting.remove(&(self.until, *number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{block_on, spawn};
    use super::*;

    #[test]
    fn timers_end_in_the_order_of_their_instants() {
        let order = block_on(async {
            let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
            for millis in [30, 10, 20] {
                let sender = sender.clone();
                spawn(async move {
                    sleep(Duration::from_millis(millis)).await;
                    sender.send(millis).unwrap();
                });
            }
            drop(sender);
            let mut order = Vec::new();
            while let Some(millis) = receiver.recv().await {
                order.push(millis);
            }
            order
        });
        assert_eq!(order.unwrap(), [10, 20, 30]);
    }

    #[test]
    fn a_timer_that_is_dropped_leaves_nothing_behind() {
        block_on(async {
            let late = timeout(Duration::from_millis(5), sleep(Duration::from_secs(60))).await;
            assert!(late.is_none());
            assert_eq!(driver::current().timers.borrow().next(), None);
        })
        .unwrap();
    }
}
