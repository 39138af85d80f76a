//! The TC programs on real interfaces, for what BPF_PROG_TEST_RUN cannot make: checksums that are left to the hardware,
//! super-packets, VLAN tags beside the packet, packets of this host's own.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use aya::programs::TcAttachType;
use pgsplice::splice::model::Program;
use pgsplice_ebpf::flow::{self, FLOW_TIMESTAMPS, Watch, control, counter};

use crate::packet::{ACK, FIN, PSH, Packet, RST, SYN, add, fold, timestamps};
use crate::rig::interface;
use crate::scene::{AT, CLIENT, SEQ_DELTA, Scene, with_program};

/// struct virtio_net_hdr, linux/virtio_net.h
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Offload {
    needs_checksum: bool,
    /// Payload of a segment of the super-packet, 0 for a plain packet.
    segment: u16,
    checksum_start: u16,
}

const VIRTIO_NET_HDR: usize = 10;
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const TCP_CHECKSUM: u16 = 16;

/// A packet(7) socket on one interface.
struct Tap(OwnedFd);

struct Captured {
    frame: Vec<u8>,
    offload: Offload,
    tci: Option<u16>,
}

impl Tap {
    fn open(name: &str) -> Self {
        let everything = i32::from((libc::ETH_P_ALL as u16).to_be());
        // SAFETY: socket(2) takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, everything) };
        assert!(fd >= 0, "packet socket: {}", io::Error::last_os_error());
        // SAFETY: just opened and nobody else's.
        let tap = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        // SAFETY: all zeroes is a valid address; what is needed is filled in.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = interface(name).index as i32;
        let len = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: the address lives through the call and the length is its own.
        let done = unsafe { libc::bind(fd, (&raw const address).cast(), len) };
        assert_eq!(done, 0, "bind: {}", io::Error::last_os_error());
        tap.set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1i32);
        tap.set(libc::SOL_PACKET, libc::PACKET_AUXDATA, 1i32);
        tap.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, libc::timeval { tv_sec: 0, tv_usec: 300_000 });
        tap
    }

    fn set<T>(&self, level: i32, option: i32, value: T) {
        // SAFETY: the value lives through the call and the length is its own.
        let done = unsafe {
            libc::setsockopt(self.0.as_raw_fd(), level, option, (&raw const value).cast(), size_of::<T>() as u32)
        };
        assert_eq!(done, 0, "setsockopt {option}: {}", io::Error::last_os_error());
    }

    fn send(&self, frame: &[u8], offload: Offload) {
        let mut bytes = vec![0; VIRTIO_NET_HDR];
        if offload.needs_checksum {
            bytes[0] = NEEDS_CSUM;
            bytes[6..8].copy_from_slice(&offload.checksum_start.to_ne_bytes());
            bytes[8..10].copy_from_slice(&TCP_CHECKSUM.to_ne_bytes());
        }
        if offload.segment != 0 {
            bytes[1] = GSO_TCPV4;
            bytes[2..4].copy_from_slice(&(offload.checksum_start + 32).to_ne_bytes());
            bytes[4..6].copy_from_slice(&offload.segment.to_ne_bytes());
        }
        bytes.extend(frame);
        // SAFETY: the buffer lives through the call and the length is its own.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        // What the egress program drops is told so.
        let dropped = sent < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS);
        assert!(dropped || sent == bytes.len() as isize, "send: {}", io::Error::last_os_error());
    }

    /// The next TCP packet that came in by this interface, if there is one within a moment.
    fn receive(&self) -> Option<Captured> {
        loop {
            let mut bytes = vec![0u8; 70_000];
            let mut cmsg = [0u64; 16];
            let mut from = std::mem::MaybeUninit::<libc::sockaddr_ll>::uninit();
            let mut room = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            // SAFETY: all zeroes is a valid msghdr; what is needed is filled in.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_name = from.as_mut_ptr().cast();
            message.msg_namelen = size_of::<libc::sockaddr_ll>() as u32;
            message.msg_iov = &raw mut room;
            message.msg_iovlen = 1;
            message.msg_control = cmsg.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&cmsg);
            // SAFETY: every buffer lives through the call and has the length that is given.
            let len = unsafe { libc::recvmsg(self.0.as_raw_fd(), &mut message, 0) };
            if len < 0 {
                return None;
            }
            // SAFETY: the kernel fills the address of every packet.
            let outgoing = unsafe { from.assume_init() }.sll_pkttype == libc::PACKET_OUTGOING;
            bytes.truncate(len as usize);
            let frame = bytes.split_off(VIRTIO_NET_HDR);
            if outgoing || frame.len() < 54 || frame[12..14] != [0x08, 0x00] || frame[23] != 6 {
                continue;
            }
            let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
            let offload = Offload {
                needs_checksum: bytes[0] & NEEDS_CSUM != 0,
                segment: if bytes[1] == 0 { 0 } else { word(4) },
                checksum_start: word(6),
            };
            return Some(Captured { frame, offload, tci: tag(&message) });
        }
    }
}

/// The tag beside the packet.
fn tag(message: &libc::msghdr) -> Option<u16> {
    // SAFETY: the kernel has filled the control buffer of this message.
    let header = unsafe { libc::CMSG_FIRSTHDR(message).as_ref() }?;
    if (header.cmsg_level, header.cmsg_type) != (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
        return None;
    }
    // SAFETY: of this type the data is a tpacket_auxdata.
    let aux = unsafe { libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned() };
    (aux.tp_status & libc::TP_STATUS_VLAN_VALID != 0).then_some(aux.tp_vlan_tci)
}

impl Captured {
    /// IP, with the checksum that the hardware would have put in.
    fn ip(&self) -> Vec<u8> {
        let mut ip = self.frame[14..].to_vec();
        if self.offload.needs_checksum {
            let start = usize::from(self.offload.checksum_start) - 14;
            // The field holds the sum of the pseudo header.
            let sum = !fold(add(&ip[start..]));
            ip[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
        }
        ip
    }
}

fn is_sound(ip: &[u8]) -> bool {
    let tcp = add(&ip[12..20]) + 6 + (ip.len() - 20) as u64 + add(&ip[20..]);
    fold(add(&ip[..20])) == 0xffff && fold(tcp) == 0xffff
}

/// A frame whose checksum is left to the hardware.
fn partial(packet: &Packet) -> (Vec<u8>, Offload) {
    let mut frame = packet.bytes();
    let seed = fold(add(&frame[26..34]) + 6 + (frame.len() - 34) as u64);
    frame[50..52].copy_from_slice(&seed.to_be_bytes());
    (frame, Offload { needs_checksum: true, segment: 0, checksum_start: 34 })
}

struct Wire<'a, 'b> {
    scene: &'a mut Scene<'b>,
    /// The other ends of `in0` and `out0`.
    near: Tap,
    far: Tap,
}

fn on_the_wire(play: impl FnOnce(&mut Wire<'_, '_>) + Send + 'static) {
    with_program(Program::Tc, |scene| {
        scene.rig.attach(flow::PROGRAM_TC, "in0", TcAttachType::Ingress);
        for name in ["in0", "out0"] {
            scene.rig.attach(flow::PROGRAM_TC_EGRESS, name, TcAttachType::Egress);
        }
        let (near, far) = (Tap::open("in1"), Tap::open("out1"));
        play(&mut Wire { scene, near, far });
    });
}

#[test]
fn a_checksum_that_is_left_to_the_hardware_stays_right() {
    on_the_wire(|wire| {
        let mut packet = wire.scene.packet(CLIENT, 0, 0, ACK | PSH);
        packet.options = timestamps(1, 2);
        packet.payload = vec![3; 333];
        let (frame, offload) = partial(&packet);
        for (frame, offload) in [(frame, offload), (packet.bytes(), Offload::default())] {
            wire.near.send(&frame, offload);
            let got = wire.far.receive().unwrap();
            assert_eq!(got.offload.needs_checksum, offload.needs_checksum);
            assert_eq!(got.frame[..6], [2, 0, 0, 0, 9, 2]);
            let ip = got.ip();
            assert!(is_sound(&ip), "{offload:?}");
            assert_eq!(ip[24..28], (AT[0] + SEQ_DELTA).to_be_bytes());
        }
    });
}

#[test]
fn a_super_packet_stays_one() {
    on_the_wire(|wire| {
        let mut packet = wire.scene.packet(CLIENT, 0, 0, ACK | PSH);
        packet.options = timestamps(1, 2);
        packet.payload = vec![3; 14_000];
        let (frame, offload) = partial(&packet);
        wire.near.send(&frame, Offload { segment: 1400, ..offload });
        let got = wire.far.receive().unwrap();
        assert_eq!((got.offload.segment, got.frame.len()), (1400, frame.len()));
        assert!(is_sound(&got.ip()));
        // Whose segments are too long for the way out is not.
        wire.near.send(&frame, Offload { segment: 1460, ..offload });
        assert!(wire.far.receive().is_none());
        assert_eq!(wire.scene.rig.counters()[counter::FRAG_NEEDED as usize], 1);
    });
}

#[test]
fn a_cut_session_answers_whatever_was_left_to_the_hardware() {
    on_the_wire(|wire| {
        wire.scene.set_control(control::CUT);
        let mut packet = wire.scene.packet(CLIENT, 0, 0, ACK | PSH);
        packet.options = timestamps(1, 2);
        packet.payload = vec![3; 2800];
        let (frame, offload) = partial(&packet);
        packet.payload = vec![3; 77];
        for (frame, offload) in [(frame, Offload { segment: 1400, ..offload }), (packet.bytes(), Offload::default())] {
            wire.near.send(&frame, offload);
            let got = wire.near.receive().unwrap();
            let ip = got.ip();
            assert_eq!((ip.len(), ip[33]), (40, RST));
            assert!(is_sound(&ip), "{offload:?}");
            assert_eq!(ip[24..28], packet.ack.to_be_bytes());
            assert_eq!(got.frame[..6], frame[6..12]);
        }
    });
}

#[test]
fn a_vlan_tag_is_read_beside_the_packet_and_put_there() {
    on_the_wire(|wire| {
        // Watched by its tag.
        let mut strange = wire.scene.packet(CLIENT, 0, 0, ACK);
        strange.key.src_port = [1, 2];
        strange.tag = Some(0x2005);
        wire.scene.rig.watches.insert(strange.key, Watch::default(), 0).unwrap();
        wire.near.send(&strange.bytes(), Offload::default());
        let mut packet = wire.scene.packet(CLIENT, 0, 0, ACK);
        for (tag, vlan) in [(Some(5), 7), (Some(5), 0), (None, 7)] {
            wire.scene.change_flow(CLIENT, |flow| flow.out_vlan = vlan);
            packet.tag = tag;
            wire.near.send(&packet.bytes(), Offload::default());
            let got = wire.far.receive().unwrap();
            assert_eq!(got.tci, (vlan != 0).then_some(vlan));
            assert!(is_sound(&got.ip()));
            assert_eq!(got.frame[..6], [2, 0, 0, 0, 9, 2]);
        }
        let watch = wire.scene.rig.watches.get(&strange.key, 0).unwrap();
        assert_eq!((watch.vlan, watch.ifindex), (5, wire.scene.rig.in0.index));
    });
}

#[test]
fn this_kernel_does_not_end_what_it_has_handed_off() {
    on_the_wire(|wire| {
        wire.scene.change_flow(CLIENT, |flow| flow.flags &= !FLOW_TIMESTAMPS);
        let own = |wire: &Wire<'_, '_>, flags, payload: usize| {
            let mut packet = wire.scene.packet(CLIENT, 0, 0, flags);
            packet.key = packet.key.reversed();
            packet.payload = vec![9; payload];
            packet.bytes()
        };
        // By an interface of this host's, towards the client.
        let out = Tap::open("out0");
        let passes = |wire: &Wire<'_, '_>, frame: &[u8]| {
            out.send(frame, Offload::default());
            wire.far.receive().map(|got| got.ip())
        };
        for (word, rst, fin) in [
            (control::LIVE, false, false),
            (control::HOLD, false, true),
            (control::CUT, true, true),
            (control::FREE, true, true),
        ] {
            wire.scene.set_control(word);
            assert_eq!(passes(wire, &own(wire, RST, 0)).is_some(), rst, "RST in {word}");
            assert_eq!(passes(wire, &own(wire, RST | ACK, 0)).is_some(), rst, "RST in {word}");
            assert_eq!(passes(wire, &own(wire, FIN | ACK, 0)).is_some(), fin, "FIN in {word}");
            assert!(passes(wire, &own(wire, SYN, 0)).is_some());
        }
        wire.scene.set_control(control::LIVE);
        assert!(passes(wire, &own(wire, ACK, 0)).is_some());
        let ip = passes(wire, &own(wire, FIN | ACK | PSH, 20)).unwrap();
        assert_eq!(ip[33], ACK | PSH, "the data is still to come, its end is not");
        assert!(is_sound(&ip));
        assert_eq!(wire.scene.rig.counters()[counter::OWN_END as usize], 5);

        // Those that are forwarded are not its own, even from the other side of a session.
        wire.near.send(&wire.scene.packet(CLIENT, 0, 0, FIN | ACK).bytes(), Offload::default());
        assert_eq!(wire.far.receive().unwrap().ip()[33], FIN | ACK);
        wire.near.send(&wire.scene.packet(CLIENT, 0, 0, RST).bytes(), Offload::default());
        assert_eq!(wire.far.receive().unwrap().ip()[33], RST);
    });
}
