//! Messages with file descriptors between two processes, over a Unix socket.
//!
//! A frame is its length, the number of its descriptors, a header in JSON and bytes. Descriptors travel with the first byte of their
//! frame, and the kernel keeps both in order.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Most descriptors of a frame.
const MOST_DESCRIPTORS: usize = 2;
/// Longest frame: what a connection may have kept both ways, and a header.
const MOST_FRAME: usize = 2 * super::socket::CHUNK + 4096;
/// Bytes before the header: length of the frame, of the header, and number of descriptors.
const PREFIX: usize = 9;

/// One end.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    received: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

/// What came.
#[derive(Debug)]
pub(super) struct Frame<T> {
    pub(super) header: T,
    pub(super) bytes: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Channel {
    pub(super) const fn new(stream: UnixStream) -> Self {
        Self { stream, received: Vec::new(), descriptors: VecDeque::new() }
    }

    /// Sends a frame, within a time.
    pub(super) async fn send(
        &self,
        header: &impl Serialize,
        bytes: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> io::Result<()> {
        let frame = encode(header, bytes, descriptors.len())?;
        within(limit, async {
            let mut sent = 0;
            while sent < frame.len() {
                let with = if sent == 0 { descriptors } else { &[] };
                let rest = &frame[sent..];
                sent += self.stream.async_io(Interest::WRITABLE, || send_some(&self.stream, rest, with)).await?;
            }
            Ok(())
        })
        .await
    }

    /// The next frame, within a time; `None` when the other side has closed. What is no frame is an error, after which nothing
    /// can be received any more.
    pub(super) async fn receive<T: DeserializeOwned>(&mut self, limit: Duration) -> io::Result<Option<Frame<T>>> {
        within(limit, async {
            loop {
                if let Some(frame) = self.take_frame()? {
                    return Ok(Some(frame));
                }
                let Self { stream, received, descriptors } = self;
                let read = stream.async_io(Interest::READABLE, || receive_some(stream, received, descriptors)).await?;
                if read == 0 {
                    return if received.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
                }
            }
        })
        .await
    }

    /// The frame that has come, if it is complete.
    fn take_frame<T: DeserializeOwned>(&mut self) -> io::Result<Option<Frame<T>>> {
        let Some(encoded) = EncodedFrame::first(&self.received)? else { return Ok(None) };
        if self.descriptors.len() < encoded.descriptors {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let (header, bytes, length) = (encoded.header()?, encoded.bytes.to_vec(), encoded.length());
        let descriptors = self.descriptors.drain(..encoded.descriptors).collect();
        self.received.drain(..length);
        Ok(Some(Frame { header, bytes, descriptors }))
    }
}

/// A frame that came as a whole, apart from its descriptors.
#[derive(Debug)]
pub(super) struct EncodedFrame<'a> {
    header: &'a [u8],
    pub(super) bytes: &'a [u8],
    /// How many descriptors belong to it.
    pub(super) descriptors: usize,
}

impl<'a> EncodedFrame<'a> {
    /// The first of what came; `None` while it is incomplete.
    pub(super) fn first(received: &'a [u8]) -> io::Result<Option<Self>> {
        let no_frame = || io::Error::from(io::ErrorKind::InvalidData);
        let Some(&[a, b, c, d, e, f, g, h, count]) = received.first_chunk::<PREFIX>() else { return Ok(None) };
        let length = |bytes: [u8; 4]| usize::try_from(u32::from_be_bytes(bytes)).map_err(|_| no_frame());
        let (body, header) = (length([a, b, c, d])?, length([e, f, g, h])?);
        let descriptors = usize::from(count);
        if body > MOST_FRAME || header > body || descriptors > MOST_DESCRIPTORS {
            return Err(no_frame());
        }
        let Some(frame) = received.get(PREFIX..PREFIX + body) else { return Ok(None) };
        let (header, bytes) = frame.split_at(header);
        Ok(Some(Self { header, bytes, descriptors }))
    }

    pub(super) fn header<T: DeserializeOwned>(&self) -> io::Result<T> {
        serde_json::from_slice(self.header).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Bytes that it takes of what came.
    pub(super) const fn length(&self) -> usize {
        PREFIX + self.header.len() + self.bytes.len()
    }
}

/// A frame as it is sent, beside so many descriptors.
pub(super) fn encode(header: &impl Serialize, bytes: &[&[u8]], descriptors: usize) -> io::Result<Vec<u8>> {
    let header = serde_json::to_vec(header)?;
    let body = header.len() + bytes.iter().map(|part| part.len()).sum::<usize>();
    if body > MOST_FRAME || descriptors > MOST_DESCRIPTORS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let length = |length: usize| u32::try_from(length).map_err(io::Error::other).map(u32::to_be_bytes);
    let mut frame = Vec::with_capacity(PREFIX + body);
    frame.extend_from_slice(&length(body)?);
    frame.extend_from_slice(&length(header.len())?);
    frame.push(u8::try_from(descriptors).map_err(io::Error::other)?);
    frame.extend_from_slice(&header);
    bytes.iter().for_each(|part| frame.extend_from_slice(part));
    Ok(frame)
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn send_some(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

fn receive_some(stream: &UnixStream, received: &mut Vec<u8>, descriptors: &mut VecDeque<OwnedFd>) -> io::Result<usize> {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let message = recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)?;
    received.extend_from_slice(&bytes[..message.bytes]);
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(found) = message {
            descriptors.extend(found);
        }
    }
    Ok(message.bytes)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};
    use std::os::fd::AsFd as _;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn frames_come_as_they_were_sent_with_their_descriptors() {
        let (a, b) = UnixStream::pair().expect("a pair");
        let (sender, mut receiver) = (Channel::new(a), Channel::new(b));
        let mut files: Vec<_> = (0..4).map(|_| tempfile::tempfile().expect("a file")).collect();
        for (n, file) in files.iter_mut().enumerate() {
            write!(file, "{n}").expect("written");
        }
        let sending = tokio::spawn(async move {
            let long = vec![7; MOST_FRAME - 100];
            let (a, b) = ([files[0].as_fd(), files[1].as_fd()], [files[2].as_fd()]);
            sender.send(&"two", &[b"x", b"y"], &a, DEADLINE).await.expect("sent");
            sender.send(&"none", &[], &[], DEADLINE).await.expect("sent");
            sender.send(&"long", &[&long], &b, DEADLINE).await.expect("sent");
            sender.send(&"too long", &[&long, &long], &b, DEADLINE).await.expect_err("too long");
        });
        let mut seen = Vec::new();
        while let Some(frame) = receiver.receive::<String>(DEADLINE).await.expect("frames") {
            let texts = frame.descriptors.into_iter().map(|descriptor| {
                let (mut file, mut text) = (std::fs::File::from(descriptor), String::new());
                file.rewind().and_then(|()| file.read_to_string(&mut text)).expect("readable");
                text
            });
            seen.push((frame.header, frame.bytes.len(), texts.collect::<Vec<_>>()));
        }
        sending.await.expect("no panic");
        let frame = |header: &str, bytes, texts: &[&str]| {
            (header.to_owned(), bytes, texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(
            seen,
            [frame("two", 2, &["0", "1"]), frame("none", 0, &[]), frame("long", MOST_FRAME - 100, &["2"])]
        );
    }

    #[tokio::test]
    async fn what_is_no_frame_is_an_error() {
        for bytes in
            [&[0xff; 40][..], &[0, 0, 0, 2, 0, 0, 0, 2, 1, b'1', b'2'], &[0, 0, 0, 2, 0, 0, 0, 2, 0, b'{', b'x']]
        {
            let (a, b) = UnixStream::pair().expect("a pair");
            a.try_write(bytes).expect("room");
            drop(a);
            Channel::new(b).receive::<u32>(DEADLINE).await.expect_err("no frame");
        }
    }
}
