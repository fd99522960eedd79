//! What is said on the control socket: frames of a length (4 bytes, big-endian), a format byte and a value in postcard.
//!
//! New kinds of requests are added at the end of the enum: an older process then refuses them and keeps serving.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::names::{DnsPorts, SandboxDns};
use crate::netd::told::{Told, Update};
use crate::spec::SandboxId;
use crate::tunnel::{Tunnel, TunnelStatus};

/// Format of the frames.
const FORMAT: u8 = 1;
/// Longest frame: zones of a hundred thousand names fit.
const MAX_FRAME: u32 = 64 << 20;

/// How a refusal begins of what an older version does not know.
pub const NOT_UNDERSTOOD: &str = "not understood";

/// What is asked of the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Who are you? The connection then stays open; its end tells that the process has gone.
    Watch,
    /// Serve a sandbox, or serve it otherwise.
    PutSandbox(SandboxDns),
    /// Serve it no more.
    RemoveSandbox(SandboxId),
    /// All zones from now on.
    PutZones(Told),
    /// What is served?
    Sandboxes,
    /// Give everything to me, your successor.
    Handover,
    /// I serve now: go.
    Finish,
    /// Go.
    Stop,
    /// Bring the WireGuard link to that state, and keep it there.
    PutTunnel(Tunnel),
    /// Remove it.
    RemoveTunnel,
    /// How is it?
    Tunnel,
    /// Give everything to me, your successor, the WireGuard link included.
    HandoverAll,
    /// Some names are others from now on.
    PatchZones(Update),
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Its process id.
    Process(u32),
    /// Ports of the sandbox.
    Ports(DnsPorts),
    /// Done.
    Done,
    /// All sandboxes.
    Sandboxes(Vec<Served>),
    /// All there is; the descriptors of `open` follow, two for each sandbox.
    Handover {
        /// All zones.
        zones: Told,
        /// All sandboxes.
        sandboxes: Vec<Served>,
        /// Those of them with open sockets, in the order of the descriptors.
        open: Vec<SandboxId>,
    },
    /// Not done.
    Refused {
        /// The same may be done in a moment, perhaps by a successor.
        retry: bool,
        /// Why not.
        reason: String,
    },
    /// The WireGuard link, if there is one.
    Tunnel(Option<TunnelStatus>),
    /// All there is; the descriptors of `open` follow, two for each sandbox, then those of the link.
    HandoverAll {
        /// All zones.
        zones: Told,
        /// All sandboxes.
        sandboxes: Vec<Served>,
        /// Those of them with open sockets, in the order of the descriptors.
        open: Vec<SandboxId>,
        /// The WireGuard link.
        tunnel: Option<GivenTunnel>,
    },
    /// The zones are not those that the change rests on: put all of them.
    OtherZones,
}

/// A WireGuard link that changes hands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenTunnel {
    /// What is wanted.
    pub wanted: Tunnel,
    /// Descriptors of the device and its state, where it is in the process.
    pub device: Option<(u32, DeviceState)>,
}

/// State of a device. It holds a private key: it is passed between processes of root, and never shown or written.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState(pub Vec<u8>);

impl std::fmt::Debug for DeviceState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeviceState(hidden)")
    }
}

/// A sandbox and its ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// What was asked for.
    pub dns: SandboxDns,
    /// Its ports.
    pub ports: DnsPorts,
}

/// What is sent in frames. Zones in it have something behind the value.
pub trait Framed: Serialize + DeserializeOwned {
    /// The zones in it.
    fn zones(&mut self) -> Option<&mut Told>;

    /// What goes behind the value.
    ///
    /// # Errors
    /// When it cannot be encoded.
    fn behind(&self) -> postcard::Result<Vec<u8>>;
}

impl Framed for Request {
    fn zones(&mut self) -> Option<&mut Told> {
        if let Self::PutZones(zones) = self { Some(zones) } else { None }
    }

    fn behind(&self) -> postcard::Result<Vec<u8>> {
        if let Self::PutZones(zones) = self { zones.behind() } else { Ok(Vec::new()) }
    }
}

impl Framed for Reply {
    fn zones(&mut self) -> Option<&mut Told> {
        match self {
            Self::Handover { zones, .. } | Self::HandoverAll { zones, .. } => Some(zones),
            _ => None,
        }
    }

    fn behind(&self) -> postcard::Result<Vec<u8>> {
        match self {
            Self::Handover { zones, .. } | Self::HandoverAll { zones, .. } => zones.behind(),
            _ => Ok(Vec::new()),
        }
    }
}

fn parse<T: Framed>(bytes: &[u8]) -> postcard::Result<T> {
    let (mut value, rest) = postcard::take_from_bytes::<T>(bytes)?;
    if let Some(zones) = value.zones() {
        zones.complete(rest)?;
    }
    Ok(value)
}

/// Writes one value.
pub async fn write<T: Framed>(stream: &mut (impl AsyncWrite + Unpin), value: &T) -> io::Result<()> {
    let mut frame = vec![0, 0, 0, 0, FORMAT];
    frame = postcard::to_extend(value, frame).map_err(invalid)?;
    frame.extend(value.behind().map_err(invalid)?);
    let length = u32::try_from(frame.len() - 4).ok().filter(|length| *length <= MAX_FRAME);
    let length = length.ok_or_else(|| invalid("the value is too large for a frame"))?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    stream.write_all(&frame).await
}

/// Reads one value. Reads no byte more than its frame, for descriptors may come with the next.
///
/// # Errors
/// `InvalidData` for what is no such value; those of the stream.
pub async fn read<T: Framed>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let length = stream.read_u32().await?;
    if length > MAX_FRAME {
        return Err(invalid(format!("a frame of {length} bytes")));
    }
    // Grows with what arrives: a length alone reserves nothing.
    let mut frame = Vec::new();
    stream.take(u64::from(length)).read_to_end(&mut frame).await?;
    if u64::try_from(frame.len()).ok() != Some(u64::from(length)) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match frame.split_first() {
        Some((&FORMAT, value)) => parse(value).map_err(invalid),
        Some((other, _)) => Err(invalid(format!("format {other}"))),
        None => Err(invalid("an empty frame")),
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dns::zone::{Zone, ZoneKey, Zones};
    use crate::netd::told::Edition;

    #[tokio::test]
    async fn a_value_is_read_back_and_nothing_behind_it() {
        let mut stream = Vec::new();
        write(&mut stream, &Request::Handover).await.unwrap();
        stream.extend(b"rest");
        let mut input = stream.as_slice();
        assert_eq!(read::<Request>(&mut input).await.unwrap(), Request::Handover);
        assert_eq!(input, b"rest");
    }

    #[tokio::test]
    async fn zones_arrive_with_what_is_behind_them_and_without_it_where_none_was_sent() {
        let mut zone = Zone::new("back");
        zone.add("web", std::net::Ipv4Addr::new(10, 0, 1, 5));
        let before = zone.clone();
        zone.add("web", std::net::Ipv6Addr::LOCALHOST);
        let zones = |zone| Zones::from([(ZoneKey::Bridge("back".into()), zone)]);
        let told = Told { zones: zones(zone), edition: Some(Edition { by: 1, number: 2 }) };
        let mut stream = Vec::new();
        write(&mut stream, &Request::PutZones(told.clone())).await.unwrap();
        assert_eq!(read::<Request>(&mut stream.as_slice()).await.unwrap(), Request::PutZones(told.clone()));
        let reply = Reply::Handover { zones: told, sandboxes: Vec::new(), open: Vec::new() };
        let mut stream = Vec::new();
        write(&mut stream, &reply).await.unwrap();
        assert_eq!(read::<Reply>(&mut stream.as_slice()).await.unwrap(), reply);
        // As an older process reads it.
        let (old, rest): (Reply, _) = postcard::take_from_bytes(&stream[5..]).unwrap();
        let without = Told { zones: zones(before), edition: None };
        assert_eq!(old, Reply::Handover { zones: without, sandboxes: Vec::new(), open: Vec::new() });
        assert!(!rest.is_empty());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), framed in any::<bool>()) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let mut input = bytes.clone();
            if framed {
                input = u32::try_from(bytes.len() + 1).unwrap().to_be_bytes().to_vec();
                input.push(FORMAT);
                input.extend(bytes);
            }
            let _ = runtime.block_on(read::<Request>(&mut input.as_slice()));
        }
    }
}
