//! Replies to programs that spoke to `::1`, brought back to the loopback link as they arrive.
//!
//! A published port is a changed destination, on `::1` too. The reply has its destination changed back on arrival, and the
//! kernel takes nothing for `::1` from another link (RFC 4291 section 2.5.3; for IPv4 there is `route_localnet`). So what
//! comes for the stand-in of `::1` is handed to the loopback link before anything looks at it: by a filter of traffic
//! control, which belongs to the link and goes with it.

use std::net::Ipv6Addr;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use super::requests::Requests;
use crate::nlattr::Attrs;

/// What is there already, by its handle or by its place.
const THERE: &[i32] = &[libc::EEXIST, libc::ENOSPC];
/// Index of the loopback link of every namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;
/// Where filters of arriving packets hang (include/uapi/linux/pkt_sched.h, `TC_H_CLSACT` and `TC_H_MIN_INGRESS`).
const CLSACT: TcHandle = TcHandle { major: 0xffff, minor: 0xfff1 };
const CLSACT_HANDLE: TcHandle = TcHandle { major: 0xffff, minor: 0 };
const ARRIVING: TcHandle = TcHandle { major: 0xffff, minor: 0xfff2 };
/// The first entry of the first table of `u32`: given, so that it is made once.
const FIRST: TcHandle = TcHandle { major: 0x8000, minor: 0x0800 };
/// Place among other filters, above the EtherType of IPv6.
const PRIORITY: u32 = 0x534b;
/// `TCA_OPTIONS`.
const OPTIONS: u16 = 2 | 0x8000;
/// Of `u32`: selector and actions (include/uapi/linux/pkt_cls.h).
const SELECTOR: u16 = 5;
const ACTIONS: u16 = 7;
/// The entry decides (`TC_U32_TERMINAL`).
const TERMINAL: u8 = 1;
/// The packet goes no further here (`TC_ACT_STOLEN`), but arrives by another link (`TCA_INGRESS_REDIR`).
const STOLEN: u32 = 4;
const ARRIVES_BY: u32 = 3;
/// Where source and destination are in the header (RFC 8200 section 3).
const SOURCE: u32 = 8;
const DESTINATION: u32 = 24;

impl Requests {
    /// Has packets for `to` that arrive by the link, from `from` if given, arrive by the loopback link instead.
    pub fn lead_to_loopback(&mut self, index: u32, from: Option<Ipv6Addr>, to: Ipv6Addr) -> &mut Self {
        let mut qdisc = message(index, CLSACT, CLSACT_HANDLE, "clsact");
        qdisc.header.info = 0;
        self.push(RouteNetlinkMessage::NewQueueDiscipline(qdisc), NLM_F_CREATE | NLM_F_EXCL, THERE);
        let mut filter = message(index, ARRIVING, FIRST, "u32");
        filter.header.info = PRIORITY << 16 | u32::from(0x86dd_u16.to_be());
        filter.attributes.push(TcAttribute::Other(DefaultNla::new(OPTIONS, options(from, to).as_slice().to_vec())));
        self.push(RouteNetlinkMessage::NewTrafficFilter(filter), NLM_F_CREATE | NLM_F_EXCL, THERE)
    }
}

fn message(index: u32, parent: TcHandle, handle: TcHandle, kind: &str) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(index).unwrap_or(i32::MAX);
    message.header.parent = parent;
    message.header.handle = handle;
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    message
}

fn options(from: Option<Ipv6Addr>, to: Ipv6Addr) -> Attrs {
    let keys: Vec<u8> = from.into_iter().flat_map(|from| keys(SOURCE, from)).chain(keys(DESTINATION, to)).collect();
    let count = u8::try_from(keys.len() / 16).expect("eight words at most");
    // struct tc_u32_sel: flags, shift, number of keys; no offsets, no hashing.
    let mut selector = vec![TERMINAL, 0, count, 0];
    selector.resize(16, 0);
    selector.extend(keys);
    let mut mirred = Vec::new();
    // struct tc_mirred: index, capabilities, action, two counters, what is done, by which link.
    for word in [0, 0, STOLEN, 0, 0, ARRIVES_BY, LOOPBACK] {
        mirred.extend_from_slice(&u32::to_ne_bytes(word));
    }
    let mut options = Attrs::new();
    options.bytes(SELECTOR, &selector).nest(ACTIONS, |actions| {
        actions.nest(1, |action| {
            action.text(1, "mirred").nest(2, |parameters| {
                parameters.bytes(2, &mirred);
            });
        });
    });
    options
}

/// struct tc_u32_key: mask, value, offset, mask of an offset; one for each word of the address.
fn keys(offset: u32, address: Ipv6Addr) -> Vec<u8> {
    let words = address.octets();
    let words = words.chunks_exact(4).zip((offset..).step_by(4));
    words.flat_map(|(word, at)| [&[0xff; 4], word, &at.to_ne_bytes(), &[0; 4]].concat()).collect()
}
