//! Published ports of a container in a room, for clients that the host's kernel cannot pass on by itself: those on the host, above all
//! on its loopback addresses. What they say is passed on byte by byte, from the gateway's address.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use bulkhead_net::egress::Protocol;
use bulkhead_net::protocol::Published;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::copy_bidirectional;
use tokio::task::{JoinHandle, JoinSet, spawn_local};

use crate::network::kernel::Seat;

/// Most connections, and most clients that send datagrams, of one port.
const MAX_CLIENTS: usize = 1024;
/// How long a connection to the container may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// A client that sends datagrams is kept so long after the last one.
const IDLE: Duration = Duration::from_secs(180);
/// After an accept that failed for want of something.
const BREATH: Duration = Duration::from_millis(100);
/// Longest datagram.
const DATAGRAM: usize = 65_536;

/// The relays of a container. They end when this is dropped, and so do the connections over them.
#[derive(Default)]
pub(super) struct Relays(Vec<JoinHandle<()>>);

impl Drop for Relays {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

impl Relays {
    /// Ends them, and lets go of their ports.
    pub(super) async fn end(&mut self) {
        for relay in std::mem::take(&mut self.0) {
            relay.abort();
            let _ = relay.await;
        }
    }

    /// Begins to serve ports.
    pub(super) fn start(ports: &[(Published, OwnedFd)], seat: &Rc<Seat>) -> io::Result<Self> {
        let mut relays = Self::default();
        for (published, socket) in ports {
            let (seat, port, socket) = (Rc::downgrade(seat), published.port, socket.try_clone()?);
            relays.0.push(match published.protocol {
                Protocol::Udp => {
                    let socket = tokio::net::UdpSocket::from_std(UdpSocket::from(socket))?;
                    spawn_local(datagrams(Rc::new(socket), seat, port))
                }
                _ => {
                    let listener = tokio::net::TcpListener::from_std(TcpListener::from(socket))?;
                    spawn_local(connections(listener, seat, port))
                }
            });
        }
        Ok(relays)
    }
}

/// The container's end of a port, and a socket in its room; the same family as the client's, if it has that.
fn way_in(
    seat: &Weak<Seat>,
    client: SocketAddr,
    port: u16,
    stream: bool,
) -> io::Result<(SocketAddr, OwnedFd)> {
    let seat = seat.upgrade().ok_or(io::ErrorKind::NotConnected)?;
    let to = seat.end(port, client.is_ipv6());
    Ok((to, seat.socket(to.is_ipv6(), stream)?))
}

async fn connections(listener: tokio::net::TcpListener, seat: Weak<Seat>, port: u16) {
    let mut clients = JoinSet::new();
    loop {
        if clients.len() >= MAX_CLIENTS {
            // The others wait in the port's queue.
            clients.join_next().await;
            continue;
        }
        let (client, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(_) => {
                    tokio::time::sleep(BREATH).await;
                    continue;
                }
            },
            Some(_) = clients.join_next() => continue,
        };
        let seat = seat.clone();
        clients.spawn_local(async move { connection(client, address, &seat, port).await });
    }
}

async fn connection(mut client: tokio::net::TcpStream, address: SocketAddr, seat: &Weak<Seat>, port: u16) {
    let passed = async {
        let (to, socket) = way_in(seat, address, port, true)?;
        let socket = tokio::net::TcpSocket::from_std_stream(TcpStream::from(socket));
        let mut container = tokio::time::timeout(PATIENCE, socket.connect(to)).await??;
        for stream in [&client, &container] {
            stream.set_nodelay(true)?;
            setsockopt(stream, sockopt::KeepAlive, &true)?;
        }
        copy_bidirectional(&mut client, &mut container).await
    };
    if passed.await.is_err() {
        // Cut off there, cut off here.
        let _ = setsockopt(&client, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
    }
}

type Flows = Rc<RefCell<HashMap<SocketAddr, Rc<Flow>>>>;

/// One client that sends datagrams.
struct Flow {
    room: tokio::net::UdpSocket,
    last: Cell<Instant>,
}

async fn datagrams(host: Rc<tokio::net::UdpSocket>, seat: Weak<Seat>, port: u16) {
    let (flows, mut tasks) = (Flows::default(), JoinSet::new());
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let heard = tokio::select! {
            heard = host.recv_from(&mut buffer) => heard,
            Some(_) = tasks.join_next() => continue,
        };
        let Ok((length, client)) = heard else {
            // An error that a client caused by going away; should it be another, it is not asked for at once.
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        let known = flows.borrow().get(&client).cloned();
        let flow = match known {
            Some(flow) => flow,
            None if flows.borrow().len() >= MAX_CLIENTS => continue,
            None => match begin(&seat, client, port) {
                Ok(flow) => {
                    let flow = Rc::new(flow);
                    flows.borrow_mut().insert(client, Rc::clone(&flow));
                    tasks.spawn_local(answers(
                        Rc::downgrade(&host),
                        Rc::clone(&flow),
                        client,
                        Rc::clone(&flows),
                    ));
                    flow
                }
                Err(_) => continue,
            },
        };
        flow.last.set(Instant::now());
        // What finds no room is lost, as on any network.
        let _ = flow.room.try_send(buffer.get(..length).unwrap_or_default());
    }
}

fn begin(seat: &Weak<Seat>, client: SocketAddr, port: u16) -> io::Result<Flow> {
    let (to, socket) = way_in(seat, client, port, false)?;
    let socket = UdpSocket::from(socket);
    // Of datagrams, a connection is only an address: this does not wait.
    socket.connect(to)?;
    Ok(Flow { room: tokio::net::UdpSocket::from_std(socket)?, last: Cell::new(Instant::now()) })
}

/// Passes on what the container says to a client, until neither has said anything for a while.
async fn answers(host: Weak<tokio::net::UdpSocket>, flow: Rc<Flow>, client: SocketAddr, flows: Flows) {
    let mut buffer = vec![0; DATAGRAM];
    while flow.last.get().elapsed() < IDLE {
        match tokio::time::timeout(IDLE, flow.room.recv(&mut buffer)).await {
            Ok(Ok(length)) => {
                flow.last.set(Instant::now());
                let Some(host) = host.upgrade() else { return };
                let _ = host.try_send_to(buffer.get(..length).unwrap_or_default(), client);
            }
            // Nobody listens there yet, or any more: the client may try again.
            Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(_) => {}
        }
    }
    flows.borrow_mut().remove(&client);
}
