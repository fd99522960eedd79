//! The WireGuard link of a node by itself, without a cluster: `deploy/kernel-wireguard` runs it on both sides of a check.
//!
//! ```text
//! tunnel DIR key                                     makes a key in DIR/keys, prints it in hex
//! tunnel DIR put ADDRESS LISTEN KEY PEER…            the link `wg0` with that address in 10.77.0.0/24;
//!                                                    PEER is KEY[,NEXT]@ENDPOINT@ADDRESS
//! tunnel DIR status | replace | remove               prints the link; changes the process for a new one; removes the link
//! tunnel net --dir DIR                               the process that owns the link; the others start it
//! ```

use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use skep_network::netd::{Client, ClientConfig, NetdConfig, run};
use skep_network::tunnel::{Tunnel, TunnelPeer, TunnelStatus, Tunnels};
use skep_wireguard::{PrivateKey, PublicKey};

type Key = [u8; 32];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (dir, command) = match arguments[..] {
        ["net", "--dir", dir] => return Ok(runtime.block_on(run(NetdConfig::new(dir)))?),
        [dir, "key"] => return key(&Path::new(dir).join("keys")),
        [dir, ref command @ ..] if !command.is_empty() => (dir, command),
        _ => return Err("usage: see the head of the source".into()),
    };
    runtime.block_on(async {
        let client = Client::start(ClientConfig::new(Path::new(dir).join("netd"), std::env::current_exe()?)).await?;
        match command {
            ["put", address, listen, key, peers @ ..] => {
                let peers = peers.iter().map(|peer| parse_peer(peer)).collect::<Result<_, _>>()?;
                let tunnel = Tunnel {
                    link: "wg0".into(),
                    listen: listen.parse()?,
                    mtu: 1420,
                    address: address.parse()?,
                    range: "10.77.0.0/24".parse()?,
                    keys: PathBuf::from(dir).join("keys"),
                    key: parse_key(key)?,
                    peers,
                };
                print(&client.put_tunnel(tunnel).await?);
            }
            ["status"] => print(&client.tunnel().await?.ok_or("there is no link")?),
            ["replace"] => print_line(&client.replace().await?.to_string()),
            ["remove"] => client.remove_tunnel().await?,
            _ => return Err(format!("{command:?}: no such command").into()),
        }
        Ok(())
    })
}

fn key(dir: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(dir)?;
    let private = PrivateKey::generate();
    let public = hex(PublicKey::from(&private).to_bytes());
    fs::write(dir.join(format!("{public}.key")), private.to_base64().as_bytes())?;
    print_line(&public);
    Ok(())
}

/// `KEY[,NEXT]@ENDPOINT@ADDRESS`.
fn parse_peer(text: &str) -> Result<TunnelPeer, Box<dyn Error>> {
    let [keys, endpoint, address] = text.split('@').collect::<Vec<_>>()[..] else {
        return Err(format!("{text}: no KEY[,NEXT]@ENDPOINT@ADDRESS").into());
    };
    let (key, next) = keys.split_once(',').map_or((keys, None), |(key, next)| (key, Some(next)));
    Ok(TunnelPeer {
        key: parse_key(key)?,
        next: next.map(parse_key).transpose()?,
        endpoint: endpoint.parse()?,
        address: address.parse()?,
    })
}

fn parse_key(text: &str) -> Result<Key, io::Error> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, format!("{text}: no key of 64 hexadecimal digits"));
    let mut key = Key::default();
    if text.len() != 64 || !text.is_ascii() {
        return Err(wrong());
    }
    for (i, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
    }
    Ok(key)
}

fn hex(key: Key) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One line for the link, one for each peer.
fn print(status: &TunnelStatus) {
    print_line(&format!("{} {}", status.path.as_str(), hex(status.key)));
    for peer in &status.peers {
        let endpoint = peer.endpoint.map_or_else(|| "-".into(), |endpoint| endpoint.to_string());
        let handshake = peer.handshake_ms.unwrap_or_default();
        print_line(&format!("{} {endpoint} {handshake} {} {}", hex(peer.key), peer.received, peer.sent));
    }
}

#[allow(clippy::print_stdout, reason = "what a script reads")]
fn print_line(line: &str) {
    println!("{line}");
}
