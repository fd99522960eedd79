//! What containers have that share a task.

use super::DecodeError;
use super::error::At;
use super::field::{Field, choice, message, record, required};
use crate::model::pod::{Action, Header, HttpGet, PodContainer, PortRedirect, Probe, Pull, Role};
use crate::wire::objects as wire;
use crate::wire::objects::action::{Action as Kind, Exec, TcpSocket};

record!(PodContainer { role, startup, readiness, liveness, pre_stop, post_start, limits, pull });
choice!(Role { Main, Init, Sidecar });
choice!(Pull { Always, IfNotPresent, Never });
record!(Probe { action, initial_delay, period, timeout, successes, failures });
record!(HttpGet { host, port, path, tls, headers });
record!(Header { name, value });
record!(PortRedirect { protocol, port, target });

impl From<&Action> for wire::Action {
    fn from(value: &Action) -> Self {
        let action = match value {
            Action::Exec { command } => Kind::Exec(Exec { command: command.to_wire() }),
            Action::HttpGet(get) => Kind::HttpGet(get.into()),
            Action::TcpSocket { host, port } => Kind::TcpSocket(TcpSocket { host: host.clone(), port: port.to_wire() }),
            Action::Sleep { time } => Kind::Sleep(time.into()),
        };
        Self { action: Some(action) }
    }
}

impl TryFrom<wire::Action> for Action {
    type Error = DecodeError;
    fn try_from(message: wire::Action) -> Result<Self, DecodeError> {
        Ok(match required(message.action)? {
            Kind::Exec(exec) => Self::Exec { command: Vec::from_wire(exec.command).at("command")? },
            Kind::HttpGet(get) => Self::HttpGet(get.try_into().at("http_get")?),
            Kind::TcpSocket(socket) => Self::TcpSocket {
                host: String::from_wire(socket.host).at("host")?,
                port: u16::from_wire(socket.port).at("port")?,
            },
            Kind::Sleep(time) => Self::Sleep { time: time.try_into().at("sleep")? },
        })
    }
}

message!(Action);
