//! Messages: every body of every method, and the frame header.

use ember_wire::codec::Body;
use ember_wire::header::{HEADER_SIZE, Header};
use ember_wire::method::{self, Method, Rpc};
use std::fmt::Debug;
use zerocopy::IntoBytes;

/// A body that decodes must survive being encoded.
fn body<T: Body + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(value) = ember_wire::decode::<T>(bytes) else { return };
    let mut again = Vec::new();
    value.write(&mut again);
    assert_eq!(ember_wire::decode::<T>(&again).as_ref(), Ok(&value), "encoded as {again:02x?}");
}

fn both<R: Rpc>(response: bool, bytes: &[u8])
where
    R::Request: PartialEq + Debug,
    R::Response: PartialEq + Debug,
{
    if response { body::<R::Response>(bytes) } else { body::<R::Request>(bytes) }
}

/// Reads `bytes` as a body of a method; every method must be listed here.
fn message(method: Method, response: bool, bytes: &[u8]) {
    match method {
        Method::Greet => both::<method::Greet>(response, bytes),
        Method::Admit => both::<method::Admit>(response, bytes),
        Method::Ping => both::<method::Ping>(response, bytes),
        Method::RegisterNode => both::<method::RegisterNode>(response, bytes),
        Method::Heartbeat => both::<method::Heartbeat>(response, bytes),
        Method::GetRouting => both::<method::GetRouting>(response, bytes),
        Method::NoteInUse => both::<method::NoteInUse>(response, bytes),
        Method::ReportUnresponsive => both::<method::ReportUnresponsive>(response, bytes),
        Method::ExtendClient => both::<method::ExtendClient>(response, bytes),
        Method::EndClient => both::<method::EndClient>(response, bytes),
        Method::CreateChains => both::<method::CreateChains>(response, bytes),
        Method::ReplaceTarget => both::<method::ReplaceTarget>(response, bytes),
        Method::ClusterStatus => both::<method::ClusterStatus>(response, bytes),
        Method::ClusterClock => both::<method::ClusterClock>(response, bytes),
        Method::ListClients => both::<method::ListClients>(response, bytes),
        Method::MetaOp => both::<method::MetaOp>(response, bytes),
        Method::ReadChunk => both::<method::ReadChunk>(response, bytes),
        Method::UpdateChunk => both::<method::UpdateChunk>(response, bytes),
        Method::ForwardChunk => both::<method::ForwardChunk>(response, bytes),
        Method::DurableChunk => both::<method::DurableChunk>(response, bytes),
        Method::AbortChunk => both::<method::AbortChunk>(response, bytes),
        Method::QueryVersion => both::<method::QueryVersion>(response, bytes),
        Method::ConfirmChain => both::<method::ConfirmChain>(response, bytes),
        Method::ListChunks => both::<method::ListChunks>(response, bytes),
        Method::SyncChunk => both::<method::SyncChunk>(response, bytes),
        Method::QueryLast => both::<method::QueryLast>(response, bytes),
        Method::RemoveData => both::<method::RemoveData>(response, bytes),
        Method::StorageSpace => both::<method::StorageSpace>(response, bytes),
        Method::ReadReplica => both::<method::ReadReplica>(response, bytes),
        Method::ScrubTarget => both::<method::ScrubTarget>(response, bytes),
        Method::SendPart => both::<method::SendPart>(response, bytes),
    }
}

/// Input: number of the method u16, 0 request or 1 response u8, body. Another number counts through the
/// methods of `hundred`, so that every input reads something.
fn service(hundred: u16, input: &[u8]) {
    let [low, high, response, bytes @ ..] = input else { return };
    let number = u16::from_le_bytes([*low, *high]);
    let own: Vec<Method> =
        Method::ALL.iter().copied().filter(|method| method.number() / 100 == hundred).collect();
    let named = own.iter().copied().find(|method| method.number() == number);
    let method = named.unwrap_or(own[usize::from(number) % own.len()]);
    message(method, response % 2 == 1, bytes);
}

/// Input of a service's target that holds this body.
pub(crate) fn input<R: Rpc>(response: bool, body: &[u8]) -> Vec<u8> {
    let mut input = R::METHOD.number().to_le_bytes().to_vec();
    input.push(u8::from(response));
    input.extend_from_slice(body);
    input
}

/// The handshake's messages.
pub(crate) fn handshake(input: &[u8]) {
    service(0, input);
}

/// mgmtd's messages.
pub(crate) fn mgmtd(input: &[u8]) {
    service(1, input);
}

/// meta's messages.
pub(crate) fn meta(input: &[u8]) {
    service(2, input);
}

/// Storage's messages, the hot ones among them.
pub(crate) fn storage(input: &[u8]) {
    service(3, input);
}

/// Messages between the ranks of a training job.
pub(crate) fn ranks(input: &[u8]) {
    service(4, input);
}

/// A frame header, as it is and with its constants and checksum made right.
pub(crate) fn header(input: &[u8]) {
    let Some(bytes) = input.first_chunk::<HEADER_SIZE>() else { return };
    let mut sealed = *bytes;
    seal(&mut sealed);
    for bytes in [bytes, &sealed] {
        let Ok(header) = Header::check(bytes) else { continue };
        assert_eq!(header.as_bytes(), bytes);
        let mut again = [0; HEADER_SIZE];
        again.copy_from_slice(header.seal().as_bytes());
        let read = Header::check(&again).expect("a sealed header is right");
        assert_eq!((read.body_len, read.payload_len), (header.body_len, header.payload_len));
        assert_eq!((read.method, read.request_id), (header.method, header.request_id));
    }
}

/// Makes magic, version and checksum of a header right.
pub(crate) fn seal(bytes: &mut [u8; HEADER_SIZE]) {
    bytes[..4].copy_from_slice(&ember_wire::header::MAGIC);
    bytes[4..6].copy_from_slice(&ember_wire::header::HEADER_VERSION.to_le_bytes());
    let sum = crc32c::crc32c(&bytes[..HEADER_SIZE - 4]);
    bytes[HEADER_SIZE - 4..].copy_from_slice(&sum.to_le_bytes());
}
