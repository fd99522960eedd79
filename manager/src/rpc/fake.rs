//! A network in memory, for tests.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use skep_identity::{Dialer, Stream};
use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;

use super::Listener;

type Accepted = (DuplexStream, SocketAddr);

/// Listeners by address.
#[derive(Clone, Default)]
pub(crate) struct MemoryNet(Arc<Mutex<HashMap<SocketAddr, mpsc::Sender<Accepted>>>>);

/// Dials as one host.
pub(crate) struct MemoryDialer {
    net: MemoryNet,
    from: SocketAddr,
}

pub(crate) struct MemoryListener(mpsc::Receiver<Accepted>);

impl MemoryNet {
    pub(crate) fn listen(&self, address: SocketAddr) -> MemoryListener {
        let (sender, receiver) = mpsc::channel(16);
        self.0.lock().unwrap().insert(address, sender);
        MemoryListener(receiver)
    }

    pub(crate) fn dialer(&self, from: &str) -> Arc<MemoryDialer> {
        Arc::new(MemoryDialer { net: self.clone(), from: SocketAddr::new(from.parse().unwrap(), 40_000) })
    }
}

#[async_trait]
impl Dialer for MemoryDialer {
    async fn dial(&self, to: SocketAddr) -> io::Result<Box<dyn Stream>> {
        let listener = self.net.0.lock().unwrap().get(&to).cloned();
        let (near, far) = duplex(64 << 10);
        let listener = listener.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        listener.send((far, self.from)).await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok(Box::new(near))
    }
}

#[async_trait]
impl Listener for MemoryListener {
    async fn accept(&mut self) -> io::Result<(Box<dyn Stream>, SocketAddr)> {
        match self.0.recv().await {
            Some((stream, from)) => Ok((Box::new(stream), from)),
            None => std::future::pending().await,
        }
    }
}
