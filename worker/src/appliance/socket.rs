//! Calls on the sockets of connections, at once where that may succeed, with what the runtime knows of them taken into account.

use std::cell::RefCell;
use std::io;
use std::task::{Context, Poll};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Bytes that are read at a time: enough for bulk transfers, and little enough for the cache of a processor.
pub(super) const CHUNK: usize = 64 * 1024;

/// Bytes that are read of a client before it has its member: a request of usual size.
const FIRST: usize = 4 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into_boxed_slice());
}

/// Lends the buffer that all connections of a thread share.
pub(super) fn with_scratch<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| work(scratch))
}

/// What a client has sent already, if it has. An end is left for the relay to find.
pub(super) fn read_first(stream: &TcpStream) -> io::Result<Vec<u8>> {
    with_scratch(|scratch| {
        let scratch = &mut scratch[..FIRST];
        let mut asked = false;
        let mut come = try_now(stream, Interest::READABLE, FIRST, |stream| {
            asked = true;
            Ok(recv(stream, &mut *scratch, RecvFlags::empty())?.0)
        })?;
        if !asked {
            // The runtime has not looked at this socket yet.
            come = match recv(stream, &mut *scratch, RecvFlags::empty()) {
                Ok((bytes, _)) => Some(bytes),
                Err(Errno::AGAIN | Errno::INTR) => None,
                Err(error) => return Err(error.into()),
            };
        }
        Ok(come.map_or_else(Vec::new, |bytes| scratch[..bytes].to_vec()))
    })
}

/// Makes that the other side sees a reset once this one is dropped, and not a clean end. A socket that cannot be set so was
/// closed by its other side.
pub(super) fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

/// Waits until the connection is broken off by its other side, also when there is nothing more to be read from it.
pub(super) async fn broken_off(stream: &TcpStream) -> io::Error {
    let error =
        stream.async_io(Interest::ERROR, || stream.take_error()?.ok_or_else(|| io::ErrorKind::WouldBlock.into()));
    error.await.unwrap_or_else(|error| error)
}

/// Whether a stream has cleanly ended behind what was read, as of the last event. Only for one of which less was read than was asked
/// for, which is all that came before the end; the call that would only find the end is saved.
pub(super) fn has_ended(stream: &TcpStream) -> bool {
    let is = |interest| stream.try_io(interest, || Ok(())).is_ok();
    is(Interest::READABLE) && !is(Interest::ERROR)
}

/// Reads what there is. A buffer that is not filled was all there is: the call that would only find that out is saved.
pub(super) fn read(stream: &TcpStream, context: &mut Context<'_>, buffer: &mut [u8]) -> io::Result<Poll<usize>> {
    let length = buffer.len();
    attempt(stream, context, Interest::READABLE, length, |stream| Ok(recv(stream, &mut *buffer, RecvFlags::empty())?.0))
}

/// Writes what the other side takes. Less than all of it means that it takes no more now.
pub(super) fn write(stream: &TcpStream, context: &mut Context<'_>, bytes: &[u8]) -> io::Result<Poll<usize>> {
    write_with(stream, context, bytes, SendFlags::empty())
}

pub(super) fn write_with(
    stream: &TcpStream,
    context: &mut Context<'_>,
    bytes: &[u8],
    flags: SendFlags,
) -> io::Result<Poll<usize>> {
    if bytes.is_empty() {
        return Ok(Poll::Ready(0));
    }
    let flags = flags | SendFlags::NOSIGNAL;
    attempt(stream, context, Interest::WRITABLE, bytes.len(), |stream| Ok(send(stream, bytes, flags)?))
}

fn attempt(
    stream: &TcpStream,
    context: &mut Context<'_>,
    interest: Interest,
    length: usize,
    mut call: impl FnMut(&TcpStream) -> io::Result<usize>,
) -> io::Result<Poll<usize>> {
    loop {
        let is_ready = match interest {
            Interest::WRITABLE => stream.poll_write_ready(context),
            _ => stream.poll_read_ready(context),
        };
        match is_ready {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(result) => result?,
        }
        if let Some(bytes) = try_now(stream, interest, length, &mut call)? {
            return Ok(Poll::Ready(bytes));
        }
    }
}

/// Makes a call if the socket counts as ready; `None` when it does not, or the call finds that it is not.
fn try_now(
    stream: &TcpStream,
    interest: Interest,
    length: usize,
    call: impl FnOnce(&TcpStream) -> io::Result<usize>,
) -> io::Result<Option<usize>> {
    let mut partial = None;
    let result = stream.try_io(interest, || match call(stream)? {
        bytes if 0 < bytes && bytes < length => {
            partial = Some(bytes);
            // The socket counts as not ready until the kernel says otherwise.
            Err(io::ErrorKind::WouldBlock.into())
        }
        bytes => Ok(bytes),
    });
    match (partial, result) {
        (Some(bytes), _) | (None, Ok(bytes)) => Ok(Some(bytes)),
        (None, Err(error)) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(None)
        }
        (None, Err(error)) => Err(error),
    }
}
