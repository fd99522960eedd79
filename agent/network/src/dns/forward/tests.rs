use std::str::FromStr;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::net::TcpListener;

use super::*;
use crate::dns::message::{Parsed, parse};

fn question() -> (Request, Vec<u8>) {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_str("example.org.").unwrap(), RecordType::A));
    let packet = message.to_vec().unwrap();
    let Parsed::Request(request) = parse(&packet) else { panic!("not read") };
    (*request, packet)
}

fn read(packet: &[u8]) -> Request {
    let Parsed::Request(request) = parse(packet) else { panic!("not read") };
    *request
}

fn addresses(reply: &[u8]) -> Vec<Option<IpAddr>> {
    Message::from_vec(reply).unwrap().answers.iter().map(|r| r.data.ip_addr()).collect()
}

fn forwarder(port: u16) -> Forwarder {
    Forwarder::new(NodeServers::new("/nonexistent".into()), port)
}

const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const ANSWER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

#[tokio::test]
async fn forged_replies_are_passed_over_and_the_true_one_has_the_clients_id() {
    for at in [SERVER, IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        forged_replies_of(at).await;
    }
}

async fn forged_replies_of(at: IpAddr) {
    let server = UdpSocket::bind((at, 0)).await.unwrap();
    let forwarder = forwarder(server.local_addr().unwrap().port());
    let serve = async {
        let mut buffer = [0; 512];
        let (length, client) = server.recv_from(&mut buffer).await.unwrap();
        let good = read(&buffer[..length]).addresses(&[ANSWER], Transport::Udp);
        let mut wrong_id = good.clone();
        wrong_id[0] ^= 1;
        let mut wrong_name = good.clone();
        wrong_name[14] ^= 1;
        for reply in [&wrong_id[..], &wrong_name[..], b"x", &good[..]] {
            server.send_to(reply, client).await.unwrap();
        }
    };
    let (request, packet) = question();
    let servers = [at];
    let (reply, ()) = tokio::join!(forwarder.ask(&request, &packet, &servers, Transport::Udp), serve);
    assert_eq!(&reply[..2], &[0, 7]);
    assert_eq!(addresses(&reply), [Some(ANSWER)]);
}

#[tokio::test]
async fn a_cut_reply_is_fetched_by_tcp_and_cut_again_only_for_clients_that_cannot_take_it() {
    let tcp = TcpListener::bind((SERVER, 0)).await.unwrap();
    let port = tcp.local_addr().unwrap().port();
    let udp = UdpSocket::bind((SERVER, port)).await.unwrap();
    let all: Vec<IpAddr> = (0..100).map(|i| IpAddr::from([192, 0, 2, i])).collect();
    let serve = async {
        for _ in 0..2 {
            let mut buffer = [0; 512];
            let (length, client) = udp.recv_from(&mut buffer).await.unwrap();
            udp.send_to(&read(&buffer[..length]).truncated(), client).await.unwrap();
            let (mut stream, _) = tcp.accept().await.unwrap();
            let mut packet = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut packet).await.unwrap();
            stream.write_all(&frame(&read(&packet).addresses(&all, Transport::Tcp))).await.unwrap();
        }
    };
    let ask = async {
        let forwarder = forwarder(port);
        let (request, packet) = question();
        let whole = forwarder.ask(&request, &packet, &[SERVER], Transport::Tcp).await;
        assert_eq!(addresses(&whole).len(), 100);
        let cut = forwarder.ask(&request, &packet, &[SERVER], Transport::Udp).await;
        assert!(Message::from_vec(&cut).unwrap().metadata.truncation);
    };
    tokio::join!(ask, serve);
}

#[tokio::test]
async fn a_dead_or_failing_server_is_followed_by_the_next_and_none_at_all_is_a_failure() {
    let server = UdpSocket::bind((SERVER, 0)).await.unwrap();
    let port = server.local_addr().unwrap().port();
    let failing = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 3), port)).await.unwrap();
    let serve = async {
        let mut buffer = [0; 512];
        let (length, client) = failing.recv_from(&mut buffer).await.unwrap();
        failing.send_to(&read(&buffer[..length]).status(ResponseCode::ServFail), client).await.unwrap();
        let (length, client) = server.recv_from(&mut buffer).await.unwrap();
        server.send_to(&read(&buffer[..length]).addresses(&[ANSWER], Transport::Udp), client).await.unwrap();
    };
    let (request, packet) = question();
    let forwarder = forwarder(port);
    // Nothing listens at the first one: the kernel says so at once.
    let servers = [IpAddr::from([127, 0, 0, 2]), IpAddr::from([127, 0, 0, 3]), SERVER];
    let (reply, ()) = tokio::join!(forwarder.ask(&request, &packet, &servers, Transport::Udp), serve);
    assert_eq!(addresses(&reply), [Some(ANSWER)]);
    let none = forwarder.ask(&request, &packet, &servers[..1], Transport::Udp).await;
    assert_eq!(Message::from_vec(&none).unwrap().metadata.response_code, ResponseCode::ServFail);
}
