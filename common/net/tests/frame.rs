//! The framing against every kind of bytes.
#![allow(missing_docs)]

use ember_net::frame::{Decoder, Frame, Head, Limits, encode};
use ember_wire::header::{BODY_MAX, HEADER_SIZE, Header, PAYLOAD_MAX};
use proptest::prelude::*;
use zerocopy::IntoBytes;

fn frame(id: u64, body: &[u8], payload: &[u8]) -> Vec<u8> {
    let head = Head { method: 3, request_id: id, ..Head::default() };
    let mut bytes = encode(head, payload.len(), |out| out.extend_from_slice(body)).unwrap();
    bytes.extend_from_slice(payload);
    bytes
}

/// Feeds `bytes` in pieces of the given sizes, lending buffers as a connection does.
fn drive(decoder: &mut Decoder, bytes: &[u8], pieces: &[usize]) -> Result<Vec<Frame>, String> {
    let mut frames = Vec::new();
    let mut rest = bytes;
    let mut sizes = pieces.iter().copied().cycle();
    while !rest.is_empty() {
        let size = sizes.next().unwrap().clamp(1, rest.len());
        if let Some((mut buf, range)) = decoder.lend() {
            let taken = size.min(range.len());
            buf.whole_mut()[range][..taken].copy_from_slice(&rest[..taken]);
            rest = &rest[taken..];
            frames.extend(decoder.give_back(buf, taken).map_err(|err| err.to_string())?);
            continue;
        }
        let (mut piece, later) = rest.split_at(size);
        rest = later;
        while !piece.is_empty() {
            let (taken, frame) = decoder.feed(piece).map_err(|err| err.to_string())?;
            assert!(taken > 0, "progress");
            piece = &piece[taken..];
            frames.extend(frame);
        }
    }
    Ok(frames)
}

fn sealed(change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = Header::empty();
    change(&mut header);
    header.seal().as_bytes().to_vec()
}

fn error_of(limits: Limits, bytes: &[u8]) -> String {
    let mut decoder = Decoder::new(limits);
    let err = decoder.feed(bytes).unwrap_err().to_string();
    assert!(decoder.feed(bytes).is_err(), "a failed stream stays failed");
    err
}

#[test]
fn absurd_lengths_are_refused_before_anything_is_allocated() {
    let most = sealed(|h| h.payload_len = u32::MAX.into());
    assert!(error_of(Limits::OPEN, &most).contains("payload of 4294967295 bytes"));
    let body = sealed(|h| h.body_len = (BODY_MAX as u32 + 1).into());
    assert!(error_of(Limits::OPEN, &body).contains("at most"));
    let early = sealed(|h| h.payload_len = 1.into());
    assert!(error_of(Limits::HANDSHAKE, &early).contains("payload of 1 bytes, at most 0"));
    let early = sealed(|h| h.body_len = (65 << 10).into());
    assert!(error_of(Limits::HANDSHAKE, &early).contains("body of 66560 bytes"));
}

#[test]
fn foreign_and_damaged_bytes_are_named() {
    assert!(error_of(Limits::OPEN, &[b'G'; HEADER_SIZE]).contains("not an EmberFS peer"));
    let flags = sealed(|h| h.flags = 0x8000.into());
    assert!(error_of(Limits::OPEN, &flags).contains("unknown flags"));
    let mut bytes = frame(1, b"body", b"");
    bytes[HEADER_SIZE] ^= 1;
    assert!(error_of(Limits::OPEN, &bytes).contains("body checksum"));
    let mut payload = sealed(|h| {
        h.payload_len = 4.into();
        h.payload_checksum = 1.into();
    });
    payload.extend_from_slice(b"data");
    assert!(error_of(Limits::OPEN, &payload).contains("payload checksum"));
}

#[test]
fn what_cannot_be_received_is_not_encoded() {
    assert!(encode(Head::default(), PAYLOAD_MAX + 1, |_| {}).is_err());
    assert!(encode(Head::default(), 0, |out| out.resize(out.len() + BODY_MAX + 1, 0)).is_err());
    assert!(encode(Head::default(), PAYLOAD_MAX, |out| out.resize(out.len() + BODY_MAX, 0)).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn frames_survive_any_fragmentation(
        lengths in prop::collection::vec(
            (0_usize..20_000, prop_oneof![Just(0_usize), 1_usize..40_000]),
            1..6,
        ),
        pieces in prop::collection::vec(1_usize..30_000, 1..8),
    ) {
        let contents: Vec<(Vec<u8>, Vec<u8>)> = lengths
            .iter()
            .map(|&(body, payload)| {
                let bytes = |len: usize, by: usize| (0..len).map(|i| (i * by + len) as u8).collect();
                (bytes(body, 7), bytes(payload, 13))
            })
            .collect();
        let numbered = contents.iter().enumerate();
        let stream: Vec<u8> =
            numbered.flat_map(|(i, (body, payload))| frame(i as u64, body, payload)).collect();
        let mut decoder = Decoder::new(Limits::OPEN);
        let frames = drive(&mut decoder, &stream, &pieces).unwrap();
        prop_assert!(decoder.at_boundary());
        prop_assert_eq!(frames.len(), contents.len());
        for (i, (frame, (body, payload))) in frames.iter().zip(&contents).enumerate() {
            prop_assert_eq!(frame.header.request_id.get(), i as u64);
            prop_assert!(frame.body[..] == body[..] && frame.payload[..] == payload[..]);
        }
    }

    #[test]
    fn random_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..500),
        valid in any::<bool>(),
        flip in 0_usize..800,
        pieces in prop::collection::vec(1_usize..100, 1..4),
    ) {
        let mut stream = if valid { frame(9, &bytes, &bytes) } else { bytes };
        let at = flip / 8;
        if valid && at < stream.len() {
            stream[at] ^= 1 << (flip % 8);
        }
        let mut decoder = Decoder::new(Limits::OPEN);
        let result = drive(&mut decoder, &stream, &pieces);
        // Damage of header or body is noticed; the payload has its own checksums in storage's bodies.
        if valid && at < HEADER_SIZE {
            prop_assert!(result.is_err());
        }
    }
}
