//! A wire on loopback that can be cut, held and slowed down.

use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// The most bytes that are carried at once.
const CHUNK: usize = 16 << 10;
/// How often an ended connection is looked for while bytes are held back.
const TARGET_PATIENCE: Duration = Duration::from_secs(2);

/// How a wire behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As if it weren't there.
    Open,
    /// Connections end, and new ones end at once.
    Cut,
    /// Connections stay, and nothing gets through until it opens again.
    Stalled,
    /// Each piece takes this much longer.
    Slow(Duration),
}

/// One wire: what comes to its port goes to the target, and back.
#[derive(Debug)]
pub struct Wire {
    name: String,
    port: u16,
    mode: watch::Sender<Mode>,
    listening: JoinHandle<()>,
}

impl Wire {
    /// Open, from a free port.
    pub async fn new(name: impl Into<String>, target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mode, seen) = watch::channel(Mode::Open);
        let listening = tokio::spawn(listen(listener, target, seen));
        let name = name.into();
        Self {
            name,
            port,
            mode,
            listening,
        }
    }

    /// What it joins.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it's entered.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on it behaves like this.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.listening.abort();
        self.mode.send_replace(Mode::Cut);
    }
}

async fn listen(listener: TcpListener, target: SocketAddr, mode: watch::Receiver<Mode>) {
    while let Ok((near, _)) = listener.accept().await {
        if *mode.borrow() != Mode::Cut {
            tokio::spawn(carry(near, target, mode.clone()));
        }
    }
}

/// One connection, until either end or a cut ends it.
async fn carry(near: TcpStream, target: SocketAddr, mode: watch::Receiver<Mode>) {
    let connected = tokio::time::timeout(TARGET_PATIENCE, TcpStream::connect(target)).await;
    let Ok(Ok(far)) = connected else { return };
    // A delay of the kernel's own would be one more that nobody asked for.
    drop((near.set_nodelay(true), far.set_nodelay(true)));
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    let mut cut = mode.clone();
    tokio::select! {
        () = pump(near_in, far_out, mode.clone()) => {}
        () = pump(far_in, near_out, mode) => {}
        _ = cut.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut mode: watch::Receiver<Mode>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        if mode.wait_for(|mode| *mode != Mode::Stalled).await.is_err() {
            return;
        }
        let now = *mode.borrow();
        if let Mode::Slow(delay) = now {
            sleep(delay).await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(10);
    const A_WHILE: Duration = Duration::from_millis(50);

    /// A server that says everything again.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.into_split();
                    drop(tokio::io::copy(&mut from, &mut to).await);
                });
            }
        });
        address
    }

    async fn said_again(stream: &mut TcpStream) -> bool {
        let mut answer = [0];
        let said = async {
            stream.write_all(b"x").await?;
            stream.read_exact(&mut answer).await
        };
        matches!(timeout(SOON, said).await, Ok(Ok(1)))
    }

    #[tokio::test]
    async fn a_cut_wire_ends_its_connections_and_a_stalled_one_keeps_them() {
        let wire = Wire::new("test", echo().await).await;
        let connect = || TcpStream::connect(("127.0.0.1", wire.port()));
        let mut stream = connect().await.unwrap();
        assert!(said_again(&mut stream).await);

        wire.set(Mode::Stalled);
        stream.write_all(b"held").await.unwrap();
        let mut answer = [0; 4];
        let early = timeout(A_WHILE, stream.read(&mut answer)).await;
        assert!(early.is_err(), "nothing gets through: {early:?}");
        wire.set(Mode::Slow(Duration::from_millis(1)));
        let late = timeout(SOON, stream.read_exact(&mut answer)).await;
        assert_eq!(late.unwrap().unwrap(), 4);
        assert_eq!(&answer, b"held");

        wire.set(Mode::Cut);
        let end = timeout(SOON, stream.read(&mut answer)).await.unwrap();
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        let mut refused = connect().await.unwrap();
        assert!(!said_again(&mut refused).await, "a new one ends at once");

        wire.set(Mode::Open);
        assert!(said_again(&mut connect().await.unwrap()).await);
    }
}
