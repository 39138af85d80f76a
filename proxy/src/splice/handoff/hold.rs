//! HOLD: the flows are there and forward nothing yet; what still comes shows in the numbers.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use pgsplice_ebpf::flow::{FlowKey, NO_LISTENER, SIDE_RST, control};

use super::flows::{flows, state};
use super::qualify::Plan;
use super::{Attempt, Legs, Live, Stay, failed};
use crate::session::{SessionRecord, Termination};
use crate::splice::sockets::{self, Numbers, TcpInfo};
use crate::splice::table::Slot;
use crate::splice::{Road, Splice, Why};

/// In HOLD. Dropping it takes everything back.
pub(super) struct Holding<'a> {
    splice: &'a Arc<Splice>,
    legs: Legs<'a>,
    keys: [FlowKey; 2],
    numbers: [Numbers; 2],
    road: Road,
    /// See [`Live`].
    tsval: Option<u32>,
    slot: Option<Slot>,
}

impl Splice {
    pub(super) fn hold<'a>(
        self: &'a Arc<Self>,
        legs: Legs<'a>,
        plan: Plan,
        held: usize,
        listener: Option<u32>,
        record: &SessionRecord,
    ) -> Result<Holding<'a>, Stay> {
        let slot = self.table.reserve().ok_or(Why::Full)?;
        // Before it is LIVE: from then on it must survive us.
        self.describe(slot.index(), record);
        sockets::flush_acks(legs.client)?;
        sockets::flush_acks(legs.backend)?;
        let numbers = [sockets::numbers(legs.client)?, sockets::numbers(legs.backend)?];
        let clocks = match plan.timestamps {
            true => [sockets::clock(legs.client)?, sockets::clock(legs.backend)?],
            false => [0; 2],
        };
        // Held bytes count as written.
        let mut written = numbers;
        written[0].write = written[0].write.wrapping_add(held as u32);
        let flows = flows(&plan, &written, clocks, slot.index(), listener.unwrap_or(NO_LISTENER));
        let maps = self.maps();
        maps.set_state(slot.index(), &state(&plan, &written, held as u32));
        maps.set_control(slot.index(), control::HOLD);
        let holding = Holding {
            splice: self,
            legs,
            keys: plan.keys,
            numbers: written,
            road: plan.road,
            tsval: plan.timestamps.then(|| plan.watches[1].tsval.wrapping_add(flows[1].tsval_delta)),
            slot: Some(slot),
        };
        // A failure from here on drops `holding`, which takes back what was done.
        for (key, flow) in plan.keys.iter().zip(&flows) {
            maps.insert_flow(key, flow).map_err(|error| match error.raw_os_error() {
                Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM) => Stay::Why(Why::Full),
                _ => Stay::Error(error),
            })?;
        }
        sockets::deafen(legs.client, self.kernel.drop_all())?;
        sockets::deafen(legs.backend, self.kernel.drop_all())?;
        Ok(holding)
    }
}

impl Holding<'_> {
    pub(super) fn go_live(mut self, held: &[u8]) -> Attempt {
        let index = self.slot.as_ref().expect("until it goes live").index();
        let maps = self.splice.maps();
        match self.is_undisturbed() {
            Ok(None) => {}
            Ok(Some(Attempt::Stay(why))) => return Attempt::Stay(why),
            Ok(Some(end)) => return end,
            Err(error) => return failed("the check of HOLD", &error),
        }
        let client = self.legs.client;
        // It must leave after the flows forward, for what answers it would be dropped; it must be the kernel's before,
        // for a session that is LIVE survives this process.
        if let Err(error) = sockets::cork(client) {
            return failed("the cork", &error);
        }
        if let Err(error) = send_all(client, held) {
            tracing::debug!("the held reply could not be sent: {error}");
            return Attempt::Dead(Termination::ClientReset);
        }
        maps.set_control(index, control::LIVE);
        if let Err(error) = sockets::uncork(client) {
            tracing::warn!("the held reply leaves late: {error}");
        }
        let slot = self.slot.take().expect("until it goes live");
        Attempt::Live(Live {
            splice: self.splice.clone(),
            slot: Some(slot),
            index,
            road: self.road,
            keys: self.keys,
            numbers: self.numbers,
            tsval: self.tsval,
        })
    }

    /// Nothing was received since the numbers were read? Nor a FIN just before: it would count as a byte of theirs that
    /// has been passed on.
    fn is_undisturbed(&self) -> io::Result<Option<Attempt>> {
        let index = self.slot.as_ref().expect("until it goes live").index();
        let state = self.splice.maps().state(index);
        let sides = [(self.legs.client, Termination::ClientReset), (self.legs.backend, Termination::BackendReset)];
        for (number, (socket, reset)) in sides.into_iter().enumerate() {
            if state.side[number].flags & SIDE_RST != 0 || sockets::pending_error(socket)?.is_some() {
                return Ok(Some(Attempt::Dead(reset)));
            }
            let same = sockets::next_expected(socket)? == self.numbers[number].receive;
            if !same || sockets::unread(socket)? > 0 || !TcpInfo::of(socket)?.established {
                return Ok(Some(Attempt::Stay(Why::Late)));
            }
        }
        Ok(None)
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        self.splice.remove_flows(slot.index(), &self.keys);
        self.splice.maps().set_control(slot.index(), control::FREE);
        for socket in [self.legs.client, self.legs.backend] {
            // ENOENT: it was not deaf yet.
            if let Err(error) = sockets::undeafen(socket)
                && error.raw_os_error() != Some(libc::ENOENT)
            {
                tracing::error!("a socket stays deaf: {error}");
            }
        }
    }
}

/// The queues are empty and `bytes` less than a segment, so all of it is taken at once.
fn send_all(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the bytes live through the call and the length is their own.
    let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    match usize::try_from(sent) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        Ok(_) => Err(io::Error::other("an empty send queue took only a part of one segment")),
        Err(_) => Err(io::Error::last_os_error()),
    }
}
