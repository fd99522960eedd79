use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::Name;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;
use crate::dns::message::{Parsed, Request, parse};
use crate::dns::resolve::{Decision, decide};
use crate::dns::zone::Zone;

fn packet(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn order() -> [ZoneKey; 2] {
    [ZoneKey::Bridge("front".into()), ZoneKey::Bridge("back".into())]
}

/// Names with none to more addresses than a reply may have.
fn zones() -> Zones {
    let (mut front, mut back) = (Zone::new("front"), Zone::new("my_back"));
    front.declare("web");
    for (name, count) in [("web", 1), ("tasks.web", 10), ("many", 100), ("more", 101), ("a", 40)] {
        for last in 0..count {
            back.add(name, Ipv4Addr::from(0x0a00_0100 + last));
            back.add(name, Ipv6Addr::from(0xfd00_u128 << 112 | u128::from(last)));
        }
    }
    front.declare("nothing");
    let [first, second] = order();
    Zones::from([(first, front), (second, back)])
}

/// The reply by the way of all questions; `None` when a server outside has to say.
fn general(packet: &[u8], transport: Transport, seed: u64) -> Option<Vec<u8>> {
    let request: Box<Request> = match parse(packet) {
        Parsed::Request(request) => request,
        other => panic!("what is usual is a question: {other:?}"),
    };
    Some(match decide(&request, &order(), &zones(), &mut SmallRng::seed_from_u64(seed)) {
        Decision::Addresses(addresses) => request.addresses(&addresses, transport),
        Decision::Pointer(name) => request.pointer(&name, transport),
        Decision::Nothing => request.status(ResponseCode::NoError),
        Decision::NoSuchName => request.status(ResponseCode::NXDomain),
        Decision::Forward => return None,
    })
}

/// What became of a packet here: `None` when it is not usual.
fn usual(packet: &[u8], transport: Transport, seed: u64) -> Option<Option<Vec<u8>>> {
    let question = Question::read(packet)?;
    let mut reply = b"before".to_vec();
    let mut rng = SmallRng::seed_from_u64(seed);
    let is_answered = question.answer((&order(), &zones()), transport, &mut rng, &mut vec![], &mut reply);
    let answer = reply.strip_prefix(b"before").unwrap();
    assert_eq!(is_answered, !answer.is_empty());
    Some(is_answered.then(|| answer.to_vec()))
}

fn agree(packet: &[u8], transport: Transport, seed: u64) -> bool {
    let found = usual(packet, transport, seed);
    // What it does not answer goes that way by itself.
    if let Some(Some(answer)) = &found {
        assert!(general(packet, transport, seed).as_ref() == Some(answer), "{packet:?}");
    }
    found.is_some()
}

#[test]
fn usual_questions_are_answered_as_all_are() {
    for name in [
        "web.",
        "WeB.",
        "tasks.web.",
        "tasks.web.MY_back.",
        "many.",
        "a.",
        "nothing.",
        "nobody.",
        "x.my_back.",
        "example.org.",
    ] {
        for kind in [RecordType::A, RecordType::AAAA] {
            for payload in [None, Some(0), Some(512), Some(1232), Some(4096), Some(u16::MAX)] {
                for transport in [Transport::Udp, Transport::Tcp] {
                    assert!(agree(&packet(name, kind, payload), transport, 3), "{name} {kind} {payload:?} is usual");
                }
            }
        }
    }
}

#[test]
fn what_a_server_outside_has_to_say_and_long_replies_are_not_answered() {
    for name in ["example.org.", "more."] {
        assert_eq!(usual(&packet(name, RecordType::A, None), Transport::Tcp, 1), Some(None), "{name}");
    }
    for name in ["many.", "nothing.", "nobody.", "tasks.web.my_back."] {
        assert!(usual(&packet(name, RecordType::A, None), Transport::Udp, 1).unwrap().is_some(), "{name}");
    }
}

#[test]
fn what_is_unusual_is_left_alone() {
    let mut notify = packet("web.", RecordType::A, None);
    notify[2] = 4 << 3;
    let mut reply = packet("web.", RecordType::A, None);
    reply[2] |= 0x80;
    let mut with_option = packet("web.", RecordType::A, Some(1232));
    with_option.extend([0, 10, 0, 0]);
    let at = with_option.len() - 5;
    with_option[at] = 4;
    let longer = [packet("web.", RecordType::A, None), vec![0]].concat();
    for packet in
        [packet("web.", RecordType::ANY, None), packet(".", RecordType::A, None), notify, reply, with_option, longer]
    {
        assert!(Question::read(&packet).is_none(), "{packet:?}");
    }
}

fn label() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("web".to_owned()),
        Just("tasks".to_owned()),
        Just("My_Back".to_owned()),
        "[a-zA-Z0-9_-]{1,63}",
        ".{1,20}"
    ]
}

proptest! {
    /// Names of all lengths and letters, types and sizes.
    #[test]
    fn both_ways_lead_to_the_same_reply(
        labels in proptest::collection::vec(label(), 0..6),
        kind in prop_oneof![Just(1u16), Just(28), Just(12), Just(255), any::<u16>()],
        class in prop_oneof![9 => Just(1u16), 1 => any::<u16>()],
        flags in prop_oneof![Just([1u8, 0]), any::<[u8; 2]>()],
        edns in proptest::option::of((any::<u16>(), prop_oneof![Just([0u8; 4]), Just([0, 0, 0x80, 0]), any::<[u8; 4]>()])),
        is_stream: bool,
        seed: u64,
    ) {
        let mut bytes = vec![9, 9, flags[0] & 0x7f, flags[1], 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())];
        for label in &labels {
            let label = &label.as_bytes()[..label.len().min(63)];
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend(label);
        }
        bytes.push(0);
        bytes.extend(kind.to_be_bytes());
        bytes.extend(class.to_be_bytes());
        if let Some((payload, flags)) = edns {
            bytes.extend([0, 0, 41]);
            bytes.extend(payload.to_be_bytes());
            bytes.extend(flags);
            bytes.extend([0, 0]);
        }
        agree(&bytes, if is_stream { Transport::Tcp } else { Transport::Udp }, seed);
    }

    /// What is damaged is either not usual, or a question of its own.
    #[test]
    fn damage_is_either_left_alone_or_another_question(
        at in 0usize..60, value: u8, cut in 0usize..60, payload in proptest::option::of(any::<u16>()), seed: u64,
    ) {
        let mut bytes = packet("tasks.web.my_back.", RecordType::AAAA, payload);
        let length = bytes.len();
        bytes[at % length] = value;
        bytes.truncate(cut);
        agree(&bytes, Transport::Udp, seed);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        agree(&bytes, Transport::Udp, 1);
    }
}
