//! Opens a connection to a member with as few calls as that takes: what is to be sent first tells by itself whether it could be
//! opened, and goes out together with the acknowledgement that opens it.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::sockopt::set_tcp_quickack;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::socket::write;

/// A connection that is open.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) stream: TcpStream,
    /// How much of what is to be sent first was sent.
    pub(super) written: usize,
    /// Whether what is written to it is sent at once, however little it is.
    pub(super) prompt: bool,
}

/// Longest first message that goes out at once by itself, because it fits in any packet. Of a longer one the rest would wait until
/// the beginning is acknowledged.
const ONE_PACKET: usize = 536;

/// Connects to `address`, and sends of `first` what is taken at once.
pub(super) async fn dial(address: SocketAddr, first: &[u8], mut due: Pin<&mut Sleep>) -> io::Result<Dialled> {
    let stream = open(address, !first.is_empty())?;
    let written = poll_fn(|context| {
        if let Poll::Ready(written) = poll_open(&stream, first, context)? {
            return Poll::Ready(io::Result::Ok(written));
        }
        due.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    })
    .await?;
    let prompt = first.len() > ONE_PACKET;
    if prompt {
        let _ = stream.set_nodelay(true);
    }
    Ok(Dialled { stream, written, prompt })
}

fn open(address: SocketAddr, has_first: bool) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket: OwnedFd = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    if has_first {
        // One that cannot be set so costs a packet more.
        let _ = set_tcp_quickack(&socket, false);
    }
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => TcpStream::from_std(socket.into()),
        Err(error) => Err(error.into()),
    }
}

fn poll_open(stream: &TcpStream, first: &[u8], context: &mut Context<'_>) -> Poll<io::Result<usize>> {
    if !first.is_empty() {
        let written = match write(stream, context, first)? {
            Poll::Ready(written) => written,
            Poll::Pending => return Poll::Pending,
        };
        // As it is by default: a member that waits for acknowledgements between its packets (Nagle's algorithm) gets them.
        let _ = set_tcp_quickack(stream, true);
        return Poll::Ready(Ok(written));
    }
    ready!(stream.poll_write_ready(context))?;
    Poll::Ready(stream.take_error()?.map_or(Ok(0), Err))
}
