//! Frames out of bytes and into bytes. Pure: no I/O; byte boxes are in `docs/design/wire.md`.
//!
//! A reader feeds what it has received into [`Decoder::feed`]. While a long body or payload is missing,
//! [`Decoder::lend`] gives out its buffer, so that the bytes are received straight into their destination.

use ember_rt::Buf;
use ember_types::checksum::crc32c;
use ember_wire::header::{BODY_MAX, FLAG_CANCEL, FLAG_RESPONSE, HEADER_SIZE, Header, PAYLOAD_MAX};
use std::ops::Range;
use zerocopy::IntoBytes;

/// A missing rest shorter than this is received together with what follows it.
const LEND_MIN: usize = 8 << 10;
const FLAGS_KNOWN: u16 = FLAG_RESPONSE | FLAG_CANCEL;

/// Bytes that are no frame; the connection is closed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("bad frame: {0}")]
pub struct FrameError(pub String);

/// Most bytes that a frame's parts may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Of the body.
    pub body: usize,
    /// Of the payload.
    pub payload: usize,
}

impl Limits {
    /// Until the handshake is over.
    pub const HANDSHAKE: Self = Self { body: 64 << 10, payload: 0 };
    /// Afterwards.
    pub const OPEN: Self = Self { body: BODY_MAX, payload: PAYLOAD_MAX };
}

/// A frame that was received whole and whose header and body have the right checksums.
#[derive(Debug)]
pub struct Frame {
    /// The header.
    pub header: Header,
    /// The body.
    pub body: Buf,
    /// The payload, from the start of a page-aligned buffer.
    pub payload: Buf,
}

impl Frame {
    /// Whether it answers a request.
    pub fn is_response(&self) -> bool {
        self.header.flags.get() & FLAG_RESPONSE != 0
    }
    /// Whether it says that an asker has gone.
    pub fn is_cancel(&self) -> bool {
        self.header.flags.get() & FLAG_CANCEL != 0
    }
}

#[derive(Debug)]
enum State {
    Header { bytes: [u8; HEADER_SIZE], filled: usize },
    Body { header: Header, body: Buf, filled: usize },
    Payload { header: Header, body: Buf, payload: Buf, filled: usize },
    Failed,
}

const START: State = State::Header { bytes: [0; HEADER_SIZE], filled: 0 };

/// Takes bytes in, gives frames out.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    state: State,
}

/// Copies as much of `bytes` as fits behind what `buf` has already; returns the number of bytes.
fn fill(buf: &mut [u8], filled: &mut usize, bytes: &[u8]) -> usize {
    let taken = bytes.len().min(buf.len() - *filled);
    buf[*filled..*filled + taken].copy_from_slice(&bytes[..taken]);
    *filled += taken;
    taken
}

fn buffer(len: u32) -> Buf {
    if len == 0 { Buf::default() } else { Buf::scratch(len as usize) }
}

impl Decoder {
    /// A decoder at the start of a stream.
    pub fn new(limits: Limits) -> Self {
        Self { limits, state: START }
    }

    /// Changes the limits for frames that have not begun.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Whether the stream may end here without cutting a frame.
    pub fn at_boundary(&self) -> bool {
        matches!(self.state, State::Header { filled: 0, .. })
    }

    /// Takes bytes up to the end of the current frame: how many, and the frame if it is whole now. After an
    /// error every further call fails.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(usize, Option<Frame>), FrameError> {
        let mut taken = 0;
        loop {
            let rest = &bytes[taken..];
            taken += match &mut self.state {
                State::Header { bytes, filled } => fill(bytes, filled, rest),
                State::Body { body, filled, .. } => fill(body.bytes_mut(), filled, rest),
                State::Payload { payload, filled, .. } => fill(payload.bytes_mut(), filled, rest),
                State::Failed => return Err(FrameError("the stream has failed before".to_owned())),
            };
            match self.step()? {
                Step::Frame(frame) => return Ok((taken, Some(frame))),
                Step::More => return Ok((taken, None)),
                Step::Next => {}
            }
        }
    }

    /// Gives out the buffer of a body or payload of which many bytes are missing, and the range to receive
    /// them into. It comes back by [`Decoder::give_back`].
    pub fn lend(&mut self) -> Option<(Buf, Range<usize>)> {
        let (buf, filled) = match &mut self.state {
            State::Body { body, filled, .. } => (body, *filled),
            State::Payload { payload, filled, .. } => (payload, *filled),
            State::Header { .. } | State::Failed => return None,
        };
        let len = buf.len();
        (len - filled >= LEND_MIN).then(|| (std::mem::take(buf), filled..len))
    }

    /// Takes the buffer back with `received` more bytes in it; returns the frame if it is whole now.
    pub fn give_back(&mut self, buf: Buf, received: usize) -> Result<Option<Frame>, FrameError> {
        match &mut self.state {
            State::Body { body: own, filled, .. } | State::Payload { payload: own, filled, .. } => {
                *own = buf;
                *filled = own.len().min(*filled + received);
            }
            State::Header { .. } | State::Failed => {
                return Err(FrameError("a buffer came back that was not lent".to_owned()));
            }
        }
        loop {
            match self.step()? {
                Step::Frame(frame) => return Ok(Some(frame)),
                Step::More => return Ok(None),
                Step::Next => {}
            }
        }
    }

    /// Goes to the next part if the current one is whole.
    fn step(&mut self) -> Result<Step, FrameError> {
        let whole = match &self.state {
            State::Header { filled, .. } => *filled == HEADER_SIZE,
            State::Body { body, filled, .. } => *filled == body.len(),
            State::Payload { payload, filled, .. } => *filled == payload.len(),
            State::Failed => false,
        };
        if !whole {
            return Ok(Step::More);
        }
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Header { bytes, .. } => {
                let header = Header::check(&bytes).map_err(FrameError)?;
                self.check(&header)?;
                let body = buffer(header.body_len.get());
                self.state = State::Body { header, body, filled: 0 };
                Ok(Step::Next)
            }
            State::Body { header, body, .. } => {
                let computed = crc32c(&body);
                if computed != header.body_checksum.get() {
                    let said = header.body_checksum;
                    return Err(FrameError(format!("body checksum {said:08x}, computed {computed:08x}")));
                }
                let payload = buffer(header.payload_len.get());
                self.state = State::Payload { header, body, payload, filled: 0 };
                Ok(Step::Next)
            }
            State::Payload { header, body, payload, .. } => {
                let said = header.payload_checksum.get();
                if said != 0 && crc32c(&payload) != said {
                    return Err(FrameError(format!("payload checksum is not {said:08x}")));
                }
                self.state = START;
                Ok(Step::Frame(Frame { header, body, payload }))
            }
            State::Failed => Ok(Step::More),
        }
    }

    fn check(&self, header: &Header) -> Result<(), FrameError> {
        let (body, payload) = (header.body_len.get() as usize, header.payload_len.get() as usize);
        if body > self.limits.body {
            return Err(FrameError(format!(
                "body of {body} bytes, at most {} allowed here",
                self.limits.body
            )));
        }
        if payload > self.limits.payload {
            let most = self.limits.payload;
            return Err(FrameError(format!("payload of {payload} bytes, at most {most} allowed here")));
        }
        let flags = header.flags.get();
        if flags & !FLAGS_KNOWN != 0 {
            return Err(FrameError(format!("unknown flags {flags:#06x}")));
        }
        Ok(())
    }
}

enum Step {
    Next,
    More,
    Frame(Frame),
}

/// What stands in a header apart from lengths and checksums.
#[derive(Clone, Copy, Default, Debug)]
pub struct Head {
    /// `FLAG_*` bits.
    pub flags: u16,
    /// Number of the method.
    pub method: u16,
    /// Status code of a response.
    pub status: u16,
    /// Time left, in milliseconds.
    pub deadline_ms: u32,
    /// Matches responses to requests.
    pub request_id: u64,
}

/// Header and body of a frame, ready to be sent before `payload_len` bytes of payload. `write` appends the
/// body.
pub fn encode(
    head: Head,
    payload_len: usize,
    write: impl FnOnce(&mut Vec<u8>),
) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; HEADER_SIZE];
    write(&mut bytes);
    let body_len = bytes.len() - HEADER_SIZE;
    if body_len > BODY_MAX || payload_len > PAYLOAD_MAX {
        return Err(FrameError(format!(
            "message of {body_len} and {payload_len} bytes, at most {BODY_MAX} and {PAYLOAD_MAX} allowed"
        )));
    }
    let mut header = Header::empty();
    header.flags = head.flags.into();
    header.method = head.method.into();
    header.status = head.status.into();
    header.deadline_ms = head.deadline_ms.into();
    header.request_id = head.request_id.into();
    header.body_len = (body_len as u32).into();
    header.payload_len = (payload_len as u32).into();
    header.body_checksum = crc32c(&bytes[HEADER_SIZE..]).into();
    bytes[..HEADER_SIZE].copy_from_slice(header.seal().as_bytes());
    Ok(bytes)
}
