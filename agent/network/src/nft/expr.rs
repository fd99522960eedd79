//! Expressions of nf_tables rules and how they are written on the wire (include/uapi/linux/netfilter/nf_tables.h).

use super::table::Ip;
use crate::nlattr::Attrs;

/// A 32-bit register, 0 to 15. Wider values take the following registers too.
pub type Reg = u32;

/// Number of the first 32-bit register on the wire (`NFT_REG32_00`).
const REG32_00: u32 = 8;
/// The verdict's register (`NFT_REG_VERDICT`).
const REG_VERDICT: u32 = 0;

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Leaves the base chain; other tables still see the packet.
    Accept,
    /// Is gone.
    Drop,
    /// Goes on in another chain, without return.
    Goto(String),
}

impl Verdict {
    pub(super) fn encode(&self, out: &mut Attrs, kind: u16) {
        let (code, chain) = match self {
            Self::Drop => (0i32, None),
            Self::Accept => (1, None),
            Self::Goto(chain) => (-4, Some(chain)),
        };
        out.nest(kind, |data| {
            data.nest(2, |verdict| {
                verdict.bytes(1, &code.to_be_bytes());
                if let Some(chain) = chain {
                    verdict.text(2, chain);
                }
            });
        });
    }
}

/// Header that a payload offset counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Ethernet header.
    Link = 0,
    /// IP or ARP header.
    Network = 1,
    /// TCP or UDP header.
    Transport = 2,
}

/// Properties of the packet as the kernel handles it (`enum nft_meta_keys`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    /// Packet mark.
    Mark = 3,
    /// Index of the incoming link.
    Iif = 4,
    /// Name of the incoming link.
    IifName = 6,
    /// Name of the outgoing link.
    OifName = 7,
    /// Layer 4 protocol number.
    L4Proto = 16,
    /// Group of the incoming link.
    IifGroup = 21,
    /// Group of the outgoing link.
    OifGroup = 22,
}

/// Properties of the packet's connection (`enum nft_ct_keys`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ct {
    /// Bits: established, related, new.
    State = 0,
    /// 0 for the direction of the first packet, 1 for replies.
    Direction = 1,
    /// Bits of `enum ip_conntrack_status`.
    Status = 2,
    /// Connection mark.
    Mark = 3,
    /// Zone, which keeps equal tuples apart.
    Zone = 17,
}

/// One step of a rule. Fields are the kernel's: registers, lengths and offsets in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Loads bytes of the packet.
    Payload { base: Base, offset: u32, len: u32, dreg: Reg },
    /// Writes bytes of the packet; for the Ethernet header, which has no checksum to correct.
    PayloadWrite { base: Base, offset: u32, len: u32, sreg: Reg },
    /// Loads a property of the packet.
    Meta { key: Meta, dreg: Reg },
    /// Sets a property of the packet.
    MetaSet { key: Meta, sreg: Reg },
    /// Loads a property of the connection.
    Ct { key: Ct, dreg: Reg },
    /// Sets a property of the connection; `original` limits it to that direction.
    CtSet { key: Ct, sreg: Reg, original: bool },
    /// Goes on only if the register is (or is not) `data`.
    Cmp { sreg: Reg, equal: bool, data: Vec<u8> },
    /// `(reg & mask) ^ xor`.
    Bitwise { reg: Reg, mask: Vec<u8>, xor: Vec<u8> },
    /// Goes on only if the register is (or is not) in a set.
    InSet { set: String, sreg: Reg, invert: bool },
    /// Replaces by the value of a map, or ends the rule when there is none.
    Map { set: String, sreg: Reg, dreg: Reg },
    /// Takes the verdict that a map holds, or ends the rule when there is none.
    VerdictMap { set: String, sreg: Reg },
    /// Draws a number below `below`, which is not 0, all alike; in host order.
    Draw { below: u32, dreg: Reg },
    /// Loads a constant.
    Immediate { dreg: Reg, data: Vec<u8> },
    /// Ends the rule with a verdict.
    Verdict(Verdict),
    /// Changes the destination to the address and, if given, the port in registers.
    Dnat { ip: Ip, addr: Reg, port: Option<Reg> },
    /// Changes the source to the address in a register.
    Snat { ip: Ip, addr: Reg },
    /// Changes the source to an address of the outgoing link.
    Masquerade,
    /// What kind of address it is for this host (`RTN_LOCAL` is 2), of the source or else the destination.
    AddressType { of_source: bool, dreg: Reg },
    /// Index of the link that the source would be reached by, if it is the incoming one; else 0.
    ReversePath { dreg: Reg },
    /// Answers that nobody listens: RST or ICMP port unreachable.
    Reject { ip: Ip, tcp_reset: bool },
    /// Loads the largest TCP segment that both directions' routes carry.
    RouteMss { dreg: Reg },
    /// Turns a 16-bit number of host order into network order.
    Hton16 { reg: Reg },
    /// Lowers the TCP option "maximum segment size" to the register's value.
    ClampMss { sreg: Reg },
}

fn data(out: &mut Attrs, kind: u16, bytes: &[u8]) {
    out.nest(kind, |d| {
        d.bytes(1, bytes);
    });
}

fn reg(out: &mut Attrs, kind: u16, reg: Reg) {
    out.u32(kind, REG32_00 + reg);
}

fn width(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("register data is at most 64 bytes")
}

/// Writes one kernel expression: its name and attributes, as an element of the rule's list.
fn expr(out: &mut Attrs, name: &str, fill: impl FnOnce(&mut Attrs)) {
    out.nest(1, |e| {
        e.text(1, name).nest(2, fill);
    });
}

impl Expr {
    /// Writes the expression.
    #[expect(clippy::too_many_lines, reason = "one table: each expression and its attributes")]
    pub(super) fn encode(&self, out: &mut Attrs) {
        match self {
            Self::Payload { base, offset, len, dreg } => expr(out, "payload", |a| {
                reg(a, 1, *dreg);
                a.u32(2, *base as u32).u32(3, *offset).u32(4, *len);
            }),
            Self::PayloadWrite { base, offset, len, sreg } => expr(out, "payload", |a| {
                a.u32(2, *base as u32).u32(3, *offset).u32(4, *len);
                reg(a, 5, *sreg);
                a.u32(6, 0).u32(7, 0).u32(8, 0);
            }),
            Self::Meta { key, dreg } => expr(out, "meta", |a| {
                reg(a, 1, *dreg);
                a.u32(2, *key as u32);
            }),
            Self::MetaSet { key, sreg } => expr(out, "meta", |a| {
                a.u32(2, *key as u32);
                reg(a, 3, *sreg);
            }),
            Self::Ct { key, dreg } => expr(out, "ct", |a| {
                reg(a, 1, *dreg);
                a.u32(2, *key as u32);
            }),
            Self::CtSet { key, sreg, original } => expr(out, "ct", |a| {
                a.u32(2, *key as u32);
                if *original {
                    a.u8(3, 0);
                }
                reg(a, 4, *sreg);
            }),
            Self::Cmp { sreg, equal, data: value } => expr(out, "cmp", |a| {
                reg(a, 1, *sreg);
                a.u32(2, u32::from(!equal));
                data(a, 3, value);
            }),
            Self::Bitwise { reg: r, mask, xor } => expr(out, "bitwise", |a| {
                reg(a, 1, *r);
                reg(a, 2, *r);
                a.u32(3, width(mask));
                data(a, 4, mask);
                data(a, 5, xor);
            }),
            Self::InSet { set, sreg, invert } => expr(out, "lookup", |a| {
                a.text(1, set);
                reg(a, 2, *sreg);
                a.u32(5, u32::from(*invert));
            }),
            Self::Map { set, sreg, dreg } => expr(out, "lookup", |a| {
                a.text(1, set);
                reg(a, 2, *sreg);
                reg(a, 3, *dreg);
            }),
            Self::VerdictMap { set, sreg } => expr(out, "lookup", |a| {
                a.text(1, set);
                reg(a, 2, *sreg);
                a.u32(3, REG_VERDICT);
            }),
            Self::Draw { below, dreg } => expr(out, "numgen", |a| {
                // By chance (`NFT_NG_RANDOM`): each connection is led by itself, whatever the ones before it were.
                reg(a, 1, *dreg);
                a.u32(2, *below).u32(3, 1).u32(4, 0);
            }),
            Self::Immediate { dreg, data: value } => expr(out, "immediate", |a| {
                reg(a, 1, *dreg);
                data(a, 2, value);
            }),
            Self::Verdict(verdict) => expr(out, "immediate", |a| {
                a.u32(1, REG_VERDICT);
                verdict.encode(a, 2);
            }),
            Self::Dnat { ip, addr, port } => expr(out, "nat", |a| {
                a.u32(1, 1).u32(2, ip.family() as u32);
                reg(a, 3, *addr);
                if let Some(port) = port {
                    reg(a, 5, *port);
                }
            }),
            Self::Snat { ip, addr } => expr(out, "nat", |a| {
                a.u32(1, 0).u32(2, ip.family() as u32);
                reg(a, 3, *addr);
            }),
            Self::Masquerade => expr(out, "masq", |_| ()),
            Self::AddressType { of_source, dreg } => expr(out, "fib", |a| {
                reg(a, 1, *dreg);
                a.u32(2, 3).u32(3, if *of_source { 1 } else { 2 });
            }),
            Self::ReversePath { dreg } => expr(out, "fib", |a| {
                reg(a, 1, *dreg);
                a.u32(2, 1).u32(3, 1 | 8);
            }),
            Self::Reject { ip, tcp_reset } => expr(out, "reject", |a| {
                a.u32(1, u32::from(*tcp_reset)).u8(2, if *tcp_reset { 0 } else { ip.port_unreachable() });
            }),
            Self::RouteMss { dreg } => expr(out, "rt", |a| {
                reg(a, 1, *dreg);
                a.u32(2, 3);
            }),
            Self::Hton16 { reg: r } => expr(out, "byteorder", |a| {
                reg(a, 1, *r);
                reg(a, 2, *r);
                a.u32(3, 1).u32(4, 2).u32(5, 2);
            }),
            Self::ClampMss { sreg } => expr(out, "exthdr", |a| {
                // TCP option 2, "maximum segment size" (RFC 9293 section 3.2): two bytes at offset 2.
                a.u8(2, 2).u32(3, 2).u32(4, 2).u32(6, 1);
                reg(a, 7, *sreg);
            }),
        }
    }
}
