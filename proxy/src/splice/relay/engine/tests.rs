//! Turns in every order in which completions can come: the engine is driven by hand, batch by batch.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::*;
use crate::config;
use crate::pg::frame::Framer;
use crate::pool::Backend;
use crate::proxy::Listener;
use crate::ring::Engine as _;
use crate::session::SessionRecord;
use crate::splice::relay::Turn;

const READY: &[u8] = b"Z\0\0\0\x05I";
const QUERY: &[u8] = b"Q\0\0\0\x0dSELECT 1\0";

#[test]
fn a_tag_survives_its_packing() {
    let tags = [Tag::Tick, Tag::Cancel, Tag::Pause(0), Tag::Pause(1 << 40)];
    let operations = [Tag::Receive(0, Side::Client), Tag::Receive(7, Side::Backend)];
    let sends = [Tag::Send(0, Side::Backend), Tag::Send(1 << 40, Side::Client)];
    for tag in tags.into_iter().chain(operations).chain(sends) {
        assert_eq!(Tag::unpack(tag.pack()), tag);
    }
}

/// An engine without its thread.
struct Hand {
    engine: Engine,
    /// Completions taken from the ring and not shown to the engine yet.
    gathered: Vec<cqueue::Entry>,
    next_id: u64,
}

/// A session in the engine, with the far ends of its sockets.
struct Played {
    index: usize,
    client: TcpStream,
    backend: TcpStream,
    record: Arc<SessionRecord>,
    outcome: oneshot::Receiver<Outcome>,
    /// The engine's ends.
    ours: [TcpStream; 2],
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let near = listener.accept().unwrap().0;
    far.set_nodelay(true).unwrap();
    far.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (near, far)
}

pub(in crate::splice::relay) fn job(id: u64, ours: &[TcpStream; 2], held: &[u8]) -> Job {
    let address = "127.0.0.1:1".parse().unwrap();
    let at_listener = Listener {
        name: "l".into(),
        config: ArcSwap::from_pointee(config::Listener::default()),
        bound: Vec::new(),
        sockets: parking_lot::Mutex::default(),
        inherited: config::Tcp::default(),
        counters: Arc::default(),
        live: Arc::default(),
    };
    Job {
        client: ours[0].as_raw_fd(),
        backend: ours[1].as_raw_fd(),
        record: Arc::new(SessionRecord::new(SessionId::new(0, id), "l", "p", address)),
        at_backend: Arc::new(Backend::new("p", "b", address)),
        at_listener: Arc::new(at_listener),
        idle: Duration::ZERO,
        half_closed: Duration::ZERO,
        held: held.into(),
    }
}

fn at_a_reply() -> Option<Turn> {
    let (framer, not_before) = (Framer::default(), Instant::now());
    Some(Turn::Reply { framer, turns: 0, not_before, held_max: 1000 })
}

fn when_quiet() -> Option<Turn> {
    Some(Turn::Quiet { not_before: Instant::now() })
}

impl Hand {
    fn new() -> Self {
        Self { engine: Engine::new(Ring::alone()), gathered: Vec::new(), next_id: 0 }
    }

    fn begin(&mut self, held: &[u8], turn: Option<Turn>) -> Played {
        let ((near_client, client), (near_backend, backend)) = (pair(), pair());
        let ours = [near_client, near_backend];
        self.next_id += 1;
        let job = job(self.next_id, &ours, held);
        let (record, id) = (job.record.clone(), job.record.id);
        let (sender, outcome) = oneshot::channel();
        self.engine.begin(Box::new(job), turn, sender);
        Played { index: self.engine.by_id[&id], client, backend, record, outcome, ours }
    }

    /// Takes completions from the ring, and waits a moment for one.
    fn step(&mut self) {
        let batch = self.engine.ring.gather(Instant::now() + Duration::from_millis(2));
        for entry in batch {
            match Tag::unpack(entry.user_data()) {
                // Time passes as the test says.
                Tag::Tick => self.engine.start_tick(),
                _ => self.gathered.push(entry),
            }
        }
    }

    /// Waits until there is a completion for each of these.
    fn gather(&mut self, wanted: &[Tag]) {
        let late = Instant::now() + Duration::from_secs(10);
        let missing = |gathered: &[cqueue::Entry]| {
            wanted.iter().any(|tag| !gathered.iter().any(|entry| Tag::unpack(entry.user_data()) == *tag))
        };
        while missing(&self.gathered) {
            assert!(Instant::now() < late, "it does not come: {wanted:?}");
            self.step();
        }
    }

    /// Shows the engine the completion of this.
    fn show(&mut self, tag: Tag) {
        self.gather(&[tag]);
        let at = self.gathered.iter().position(|entry| Tag::unpack(entry.user_data()) == tag).unwrap();
        let entry = self.gathered.remove(at);
        self.engine.completed(&entry);
    }

    /// Runs the engine as its thread would, until `done`.
    fn run_until(&mut self, mut done: impl FnMut(&mut Engine) -> bool) {
        let late = Instant::now() + Duration::from_secs(10);
        while !done(&mut self.engine) {
            assert!(Instant::now() < late, "it does not come");
            for entry in std::mem::take(&mut self.gathered) {
                self.engine.completed(&entry);
            }
            self.step();
        }
    }

    /// Forwards until nothing is under way in this session.
    fn comes_to_rest(&mut self, index: usize) {
        let rests = |session: &Session| session.halves.iter().all(|half| half.state == State::Receiving);
        self.run_until(|engine| engine.sessions[index].pausing.is_none() && rests(&engine.sessions[index]));
    }

    /// Forwards until this side's far end has read as much as `expected`, which it must be.
    fn arrives(&mut self, at: &TcpStream, expected: &[u8]) {
        at.set_nonblocking(true).unwrap();
        let mut read = Vec::new();
        let mut at = at;
        self.run_until(|_| {
            let mut buffer = [0; 4096];
            match at.read(&mut buffer) {
                Ok(length) => read.extend_from_slice(&buffer[..length]),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            read.len() >= expected.len()
        });
        assert_eq!(read, expected);
    }

    /// Every buffer of the ring is with the kernel again: as many sessions as there are buffers get one each.
    fn assert_no_buffer_is_lost(&mut self) {
        assert_eq!((self.engine.sessions.len(), self.engine.by_id.len()), (0, 0));
        let sessions: Vec<Played> = (0..128).map(|_| self.begin(b"", None)).collect();
        for session in &sessions {
            (&session.client).write_all(b"x").unwrap();
            self.gather(&[Tag::Receive(session.index, Side::Client)]);
        }
        let receives = self.gathered.iter().filter(|entry| Tag::unpack(entry.user_data()) != Tag::Cancel);
        let in_buffers = receives.filter(|entry| entry.result() == 1 && cqueue::buffer_select(entry.flags()).is_some());
        assert_eq!(in_buffers.count(), 128);
        for session in sessions {
            self.engine.end(session.index, Termination::Killed);
        }
        self.run_until(|engine| engine.sessions.is_empty());
    }
}

impl Played {
    fn given_back(mut self) -> (Vec<u8>, Option<Framer>) {
        match self.outcome.try_recv() {
            Ok(Outcome::Turn { held, framer }) => {
                // What comes from now on is not the engine's to take.
                (&self.client).write_all(b"client").unwrap();
                (&self.backend).write_all(b"backend").unwrap();
                for (near, expected) in self.ours.iter_mut().zip([&b"client"[..], b"backend"]) {
                    let mut read = vec![0; expected.len()];
                    near.read_exact(&mut read).unwrap();
                    assert_eq!(read, expected);
                }
                assert_eq!(self.client.set_nonblocking(true).and_then(|()| self.client.read(&mut [0])).ok(), None);
                (held, framer)
            }
            other => panic!("not given back: {other:?}"),
        }
    }
}

fn permutations<T: Copy>(of: &[T]) -> Vec<Vec<T>> {
    if of.is_empty() {
        return vec![Vec::new()];
    }
    let with_first = |at: usize| {
        let rest = [&of[..at], &of[at + 1..]].concat();
        permutations(&rest).into_iter().map(move |tail| [&of[at..=at], &tail].concat())
    };
    (0..of.len()).flat_map(with_first).collect()
}

#[test]
fn what_is_held_is_sent_before_anything_else_and_not_counted_again() {
    let mut hand = Hand::new();
    let mut session = hand.begin(b"first ", None);
    session.backend.write_all(b"then").unwrap();
    hand.arrives(&session.client, b"first then");
    hand.engine.end(session.index, Termination::Killed);
    hand.run_until(|engine| engine.sessions.is_empty());
    assert!(matches!(session.outcome.try_recv(), Ok(Outcome::Ended(Termination::Killed))));
    assert_eq!(session.record.bytes(), (0, 4));
    hand.assert_no_buffer_is_lost();
}

#[test]
fn a_silent_client_gives_the_session_back_with_its_reply() {
    let mut hand = Hand::new();
    for _ in 0..100 {
        let mut session = hand.begin(READY, at_a_reply());
        hand.arrives(&session.client, READY);
        session.client.write_all(QUERY).unwrap();
        hand.arrives(&session.backend, QUERY);
        let index = session.index;
        hand.comes_to_rest(index);
        session.backend.write_all(READY).unwrap();
        hand.show(Tag::Receive(index, Side::Backend));
        hand.gather(&[Tag::Receive(index, Side::Client), Tag::Pause(index)]);
        for order in permutations(&[Tag::Receive(index, Side::Client), Tag::Pause(index)]).pop().unwrap() {
            assert!(hand.engine.sessions.contains(index));
            hand.show(order);
        }
        assert_eq!(session.record.bytes(), (QUERY.len() as u64, READY.len() as u64));
        let (held, framer) = session.given_back();
        assert_eq!(held, READY);
        assert!(framer.unwrap().is_ready());
    }
    hand.assert_no_buffer_is_lost();
}

#[test]
fn a_client_that_speaks_while_its_receive_is_cancelled_loses_nothing() {
    let mut hand = Hand::new();
    for order in permutations(&[0, 1]).into_iter().cycle().take(150) {
        let mut session = hand.begin(b"", at_a_reply());
        let index = session.index;
        let (receive, cancel) = (Tag::Receive(index, Side::Client), Tag::Pause(index));
        // Both have arrived; the engine sees the reply first.
        session.client.write_all(QUERY).unwrap();
        session.backend.write_all(READY).unwrap();
        hand.gather(&[receive, Tag::Receive(index, Side::Backend)]);
        hand.show(Tag::Receive(index, Side::Backend));
        assert!(hand.engine.sessions[index].pausing.is_some());
        hand.gather(&[receive, cancel]);
        for which in order {
            hand.show([receive, cancel][which]);
        }
        assert!(hand.engine.sessions[index].pausing.is_none());
        hand.arrives(&session.backend, QUERY);
        hand.arrives(&session.client, READY);
        // And the next turn is one.
        hand.comes_to_rest(index);
        session.backend.write_all(READY).unwrap();
        hand.run_until(|engine| !engine.sessions.contains(index));
        assert_eq!(session.given_back().0, READY);
    }
    hand.assert_no_buffer_is_lost();
}

#[test]
fn a_client_that_ends_while_its_receive_is_cancelled_ends_as_ever() {
    let mut hand = Hand::new();
    for order in permutations(&[0, 1]) {
        let mut session = hand.begin(b"", at_a_reply());
        let index = session.index;
        let (receive, cancel) = (Tag::Receive(index, Side::Client), Tag::Pause(index));
        session.client.shutdown(std::net::Shutdown::Write).unwrap();
        session.backend.write_all(READY).unwrap();
        hand.gather(&[receive, Tag::Receive(index, Side::Backend)]);
        hand.show(Tag::Receive(index, Side::Backend));
        hand.gather(&[receive, cancel]);
        for which in order {
            hand.show([receive, cancel][which]);
        }
        hand.arrives(&session.client, READY);
        assert_eq!(session.backend.read(&mut [0]).unwrap(), 0);
        // No turn any more: half of the session is over.
        session.backend.write_all(READY).unwrap();
        hand.arrives(&session.client, READY);
        session.backend.shutdown(std::net::Shutdown::Write).unwrap();
        hand.run_until(|engine| engine.sessions.is_empty());
        assert!(matches!(session.outcome.try_recv(), Ok(Outcome::Ended(Termination::ClientClosed))));
    }
    hand.assert_no_buffer_is_lost();
}

#[test]
fn a_cut_in_the_middle_of_a_turn_is_a_cut() {
    let mut hand = Hand::new();
    // Before, between and after the two completions; the client silent, or not.
    for (speaks, when, swapped) in (0..200).map(|round| (round % 2 == 0, round / 2 % 3, round / 6 % 2)) {
        let mut session = hand.begin(b"", at_a_reply());
        let index = session.index;
        let mut order = [Tag::Receive(index, Side::Client), Tag::Pause(index)];
        order.rotate_left(swapped);
        session.backend.write_all(READY).unwrap();
        if speaks {
            session.client.write_all(QUERY).unwrap();
            hand.gather(&[Tag::Receive(index, Side::Client)]);
        }
        hand.show(Tag::Receive(index, Side::Backend));
        hand.gather(&order);
        for (at, tag) in order.into_iter().enumerate() {
            if at == when {
                hand.engine.end(index, Termination::Demoted);
            }
            hand.show(tag);
        }
        if when == 2 && speaks {
            hand.engine.end(index, Termination::Demoted);
        }
        hand.run_until(|engine| engine.sessions.is_empty());
        match session.outcome.try_recv() {
            Ok(Outcome::Turn { held, .. }) => assert!(when == 2 && !speaks && held == READY),
            Ok(Outcome::Ended(reason)) => assert_eq!(reason, Termination::Demoted),
            Err(error) => panic!("{error}"),
        }
    }
    hand.assert_no_buffer_is_lost();
}

/// Who says something while both receives are being cancelled.
#[test]
fn a_quiet_session_is_given_back_only_if_both_sides_were_quiet() {
    let mut hand = Hand::new();
    let turns = [[false, false], [true, false], [false, true], [true, true]];
    for speaks in turns {
        for order in permutations(&[0, 1, 2, 3]) {
            let mut session = hand.begin(b"", when_quiet());
            let index = session.index;
            let receives = Side::BOTH.map(|side| Tag::Receive(index, side));
            let far = [&session.client, &session.backend];
            for ((mut far, receive), speaks) in far.into_iter().zip(receives).zip(speaks) {
                if speaks {
                    far.write_all(b"word").unwrap();
                    hand.gather(&[receive]);
                }
            }
            hand.engine.pause(index);
            while hand.gathered.len() < 4 {
                hand.step();
            }
            for which in order {
                hand.show([receives[0], receives[1], Tag::Pause(index), Tag::Pause(index)][which]);
            }
            if speaks == [false, false] {
                let (held, framer) = session.given_back();
                assert!(held.is_empty() && framer.is_none());
                continue;
            }
            for (far, speaks) in [&session.backend, &session.client].into_iter().zip(speaks) {
                if speaks {
                    hand.arrives(far, b"word");
                }
            }
            session.backend.write_all(b"more").unwrap();
            hand.arrives(&session.client, b"more");
            hand.engine.end(index, Termination::Killed);
            hand.run_until(|engine| engine.sessions.is_empty());
        }
    }
    hand.assert_no_buffer_is_lost();
}

#[test]
fn a_session_is_quiet_after_a_whole_tick_without_a_byte() {
    let mut hand = Hand::new();
    let session = hand.begin(b"", when_quiet());
    for now in 1..=2 {
        hand.engine.now = now;
        hand.engine.look_around();
        assert_eq!(hand.engine.sessions[session.index].pausing.is_some(), now == 2);
    }
    // A second look starts nothing more.
    hand.engine.look_around();
    assert_eq!(hand.engine.sessions[session.index].in_flight, 4);
    hand.run_until(|engine| engine.sessions.is_empty());
    session.given_back();
}

#[test]
fn bytes_that_find_no_buffer_while_a_receive_is_cancelled_are_not_lost() {
    let mut hand = Hand::new();
    let crowd: Vec<Played> = (0..128).map(|_| hand.begin(b"", None)).collect();
    let mut session = hand.begin(b"", when_quiet());
    let (index, receive) = (session.index, Tag::Receive(session.index, Side::Client));
    // Each of the crowd has a buffer that the engine has not seen.
    for one in &crowd {
        (&one.client).write_all(b"x").unwrap();
        hand.gather(&[Tag::Receive(one.index, Side::Client)]);
    }
    session.client.write_all(b"word").unwrap();
    hand.gather(&[receive]);
    assert_eq!(hand.gathered.last().unwrap().result(), -libc::ENOBUFS);
    hand.engine.pause(index);
    for tag in [receive, Tag::Receive(index, Side::Backend), Tag::Pause(index), Tag::Pause(index)] {
        hand.show(tag);
    }
    hand.arrives(&session.backend, b"word");
}

/// A client that asks at any time, in any pieces, and a backend that answers, through the engine of a ring. Each
/// time the session is given back it is submitted again.
#[test]
fn a_session_that_is_given_back_at_every_turn_loses_and_reorders_nothing() {
    const QUERIES: u32 = 2_000;
    let ((near_client, client), (near_backend, backend)) = (pair(), pair());
    let ours = [near_client, near_backend];
    let query = |number: u32| [b"Q\0\0\0\x08", &number.to_be_bytes()[..]].concat();
    let reply = |number: u32| [b"D\0\0\0\x08", &number.to_be_bytes()[..], READY].concat();

    let read = Arc::new(AtomicU32::new(0));
    let seen = read.clone();
    let mut asking = client.try_clone().unwrap();
    let asks = std::thread::spawn(move || {
        // Numbers that look random and are the same in each run.
        let mut random = 1u32;
        let mut next = move |below: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 16) % below
        };
        let mut bytes = Vec::new();
        for number in 0..QUERIES {
            bytes.extend(query(number));
            if next(3) == 0 {
                let cut = if next(2) == 0 { 0 } else { next(9) };
                let rest = bytes.split_off(bytes.len() - cut as usize);
                asking.write_all(&bytes).unwrap();
                bytes = rest;
                let pause = Instant::now() + Duration::from_micros(u64::from(next(60)));
                // Often the next words come about when the session is being given back.
                let all_answered = next(2) == 0;
                let waits = || all_answered && seen.load(Relaxed) < number - 2 || Instant::now() < pause;
                while number > 2 && waits() {
                    std::thread::sleep(Duration::from_micros(20));
                }
            }
        }
        asking.write_all(&bytes).unwrap();
    });
    let mut answering = backend.try_clone().unwrap();
    let answers = std::thread::spawn(move || {
        let mut asked = [0; 9];
        for number in 0..QUERIES {
            answering.read_exact(&mut asked).unwrap();
            assert_eq!(asked[..], query(number));
            answering.write_all(&reply(number)).unwrap();
        }
        assert_eq!(answering.read(&mut asked).unwrap(), 0);
        answering.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut reading = client.try_clone().unwrap();
    let reads = std::thread::spawn(move || {
        let mut answer = [0; 15];
        for number in 0..QUERIES {
            reading.read_exact(&mut answer).unwrap();
            assert_eq!(answer[..], reply(number));
            read.store(number, Relaxed);
        }
        reading.shutdown(std::net::Shutdown::Write).unwrap();
    });

    let (end, turns) = ring::block_on(async move {
        let relay = crate::splice::relay::Relay::start();
        let (mut held, mut framer, mut turns) = (Vec::new(), Framer::default(), 0);
        loop {
            let turn = Turn::Reply { framer, turns: 0, not_before: Instant::now(), held_max: 1000 };
            match relay.forward(job(1, &ours, &held), Some(turn)).ended().await {
                Outcome::Ended(reason) => return (reason, turns),
                Outcome::Turn { held: last, framer: after } => {
                    assert!(last.ends_with(READY));
                    (held, framer, turns) = (last, after.unwrap(), turns + 1);
                }
            }
        }
    })
    .unwrap();
    for thread in [asks, answers, reads] {
        thread.join().unwrap();
    }
    assert_eq!(end, Termination::ClientClosed);
    assert!(turns > 100, "{turns}");
}
