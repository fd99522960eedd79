use std::str::FromStr;

use hickory_proto::rr::DNSClass;
use proptest::prelude::*;

use super::*;

fn packet(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn request(packet: &[u8]) -> Request {
    match parse(packet) {
        Parsed::Request(request) => *request,
        other => panic!("{other:?}"),
    }
}

fn many(count: u32) -> Vec<IpAddr> {
    (0..count).map(|i| IpAddr::V4(std::net::Ipv4Addr::from(0x0a00_0000 + i))).collect()
}

#[test]
fn a_question_is_read_in_lower_case_and_answered_in_its_own_letters() {
    let request = request(&packet("WeB.Back.", RecordType::A, None));
    assert_eq!((request.name.as_str(), request.labels), ("web.back", 2));
    let reply = Message::from_vec(&request.addresses(&many(2), Transport::Udp)).unwrap();
    assert_eq!(reply.metadata.id, 7);
    assert!(reply.metadata.recursion_available && reply.metadata.recursion_desired && !reply.metadata.truncation);
    assert!(reply.queries[0].name.eq_case(&Name::from_str("WeB.Back.").unwrap()));
    let answers: Vec<_> = reply.answers.iter().map(|r| (r.ttl, r.data.clone())).collect();
    assert_eq!(answers, [(600, RData::A(A::new(10, 0, 0, 0))), (600, RData::A(A::new(10, 0, 0, 1)))]);
    assert!(reply.edns.is_none());
}

#[test]
fn a_reply_fits_the_size_that_the_client_takes_and_says_when_it_is_cut() {
    // A pointer to the name, 10 bytes fixed, the address.
    let record = 16;
    for (payload, limit) in [(None, 512), (Some(100), 512), (Some(1232), 1232), (Some(65_000), 4096)] {
        let request = request(&packet("web", RecordType::A, payload));
        let bytes = request.addresses(&many(1000), Transport::Udp);
        let reply = Message::from_vec(&bytes).unwrap();
        assert!(bytes.len() <= limit && bytes.len() > limit - record, "{} of {limit}", bytes.len());
        assert!(reply.metadata.truncation);
        assert_eq!(reply.edns.is_some(), payload.is_some());
        let whole = Message::from_vec(&request.addresses(&many(1000), Transport::Tcp)).unwrap();
        assert!(whole.answers.len() == 1000 && !whole.metadata.truncation);
    }
}

#[test]
fn a_cut_reply_has_as_many_addresses_of_ipv6_as_fit() {
    let record = 28;
    let all: Vec<IpAddr> = (0..1000_u128).map(|i| IpAddr::V6((0xfd00 << 112 | i).into())).collect();
    for limit in 512..640 {
        let bytes = request(&packet("w", RecordType::AAAA, Some(limit))).addresses(&all, Transport::Udp);
        let limit = usize::from(limit);
        assert!(bytes.len() <= limit && bytes.len() > limit - record, "{} of {limit}", bytes.len());
    }
}

#[test]
fn what_is_no_proper_question_is_dropped_or_told_so() {
    let good = packet("web", RecordType::A, None);
    let mut reply = good.clone();
    reply[2] |= 0x80;
    assert!(matches!(parse(&reply), Parsed::Ignore));
    assert!(matches!(parse(&good[..11]), Parsed::Ignore));
    let code = |packet: &[u8]| match parse(packet) {
        Parsed::Reply(bytes) => Message::from_vec(&bytes).unwrap().metadata.response_code,
        other => panic!("{other:?}"),
    };
    assert_eq!(code(&good[..good.len() - 1]), ResponseCode::FormErr);
    let mut none = good.clone();
    none[5] = 0;
    none.truncate(HEADER);
    assert_eq!(code(&none), ResponseCode::FormErr);
    let mut notify = good.clone();
    notify[2] = 4 << 3;
    assert_eq!(code(&notify), ResponseCode::NotImp);
    assert_eq!(code(&packet("web", RecordType::AXFR, None)), ResponseCode::Refused);
}

#[test]
fn a_dot_within_a_label_is_not_a_dot_between_labels() {
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    let name = Name::from_labels([b"web.back".as_slice()]).unwrap();
    message.add_query(Query::query(name, RecordType::A));
    assert_eq!(request(&message.to_vec().unwrap()).name, "web?back");
}

#[test]
fn a_servers_reply_is_believed_only_for_the_id_and_question_asked() {
    let request = request(&packet("example.org.", RecordType::A, None));
    let good = request.addresses(&many(1), Transport::Udp);
    let whole = ReplyHeader { truncated: false, try_next: false };
    assert_eq!(check_reply(&good, 7, &request.query), Some(whole));
    assert_eq!(check_reply(&good, 8, &request.query), None);
    for other in [
        Query::query(Name::from_str("example.net.").unwrap(), RecordType::A),
        Query::query(Name::from_str("example.org.").unwrap(), RecordType::AAAA),
        request.query.clone().set_query_class(DNSClass::CH).clone(),
    ] {
        assert_eq!(check_reply(&good, 7, &other), None);
    }
    assert_eq!(check_reply(&packet("example.org.", RecordType::A, None), 7, &request.query), None);
    assert_eq!(
        check_reply(&request.truncated(), 7, &request.query),
        Some(ReplyHeader { truncated: true, try_next: false })
    );
    assert_eq!(
        check_reply(&request.status(ResponseCode::ServFail), 7, &request.query),
        Some(ReplyHeader { truncated: false, try_next: true })
    );
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_and_every_reply_is_a_reply(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        if let Parsed::Reply(reply) = parse(&bytes) {
            prop_assert!(Message::from_vec(&reply).unwrap().metadata.message_type == MessageType::Response);
        }
        let query = Query::query(Name::from_str("example.org.").unwrap(), RecordType::A);
        check_reply(&bytes, 1, &query);
    }

    #[test]
    fn damage_to_a_good_question_is_answered_within_the_limit(
        at in 0usize..40, value in any::<u8>(), cut in 12usize..60, count in 0u32..100,
    ) {
        let mut bytes = packet("web.back.example.org.", RecordType::A, Some(1232));
        let len = bytes.len();
        bytes[at % len] = value;
        bytes.truncate(cut);
        if let Parsed::Request(request) = parse(&bytes) {
            let reply = request.addresses(&many(count), Transport::Udp);
            prop_assert!(reply.len() <= request.limit(Transport::Udp));
            prop_assert!(Message::from_vec(&reply).is_ok());
        }
    }
}
