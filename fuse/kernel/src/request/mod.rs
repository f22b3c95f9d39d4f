//! Requests: from the bytes of a received message to a typed, checked [`Request`].
//!
//! Parsing never panics and never reads outside the message: every length is checked, every name is non-empty
//! and free of NUL and slash. An opcode that this crate does not know is [`Op::Unknown`], which the server
//! answers with ENOSYS (the kernel then stops sending it); a message that contradicts the ABI is
//! [`Malformed`].

mod op;
mod reader;

pub use op::{ForgetIter, Op};

use crate::abi::{InHeader, UNIQUE_RESEND, flag};
use reader::Reader;

/// One request of the kernel, borrowed from the buffer it was received into.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Who asks, about which node, and under which `unique` the answer must go back.
    pub header: InHeader,
    /// What is asked.
    pub op: Op<'a>,
    extensions: &'a [u8],
}

/// A message that contradicts the ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed FUSE request (opcode {}): {reason}", header.map_or(0, |h| h.opcode))]
pub struct Malformed {
    /// The header, if at least that was whole: then EIO can be answered, unless
    /// [`Malformed::wants_reply`] says no.
    pub header: Option<InHeader>,
    /// What is wrong.
    pub reason: &'static str,
}

impl Malformed {
    /// The `unique` to answer with an error, if the kernel waits for an answer.
    pub fn wants_reply(&self) -> Option<u64> {
        self.header.filter(|h| op::wants_reply(h.opcode)).map(|h| h.unique)
    }
}

impl<'a> Request<'a> {
    /// Parses one message as read from `/dev/fuse`: header, arguments, extensions in one piece.
    pub fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
        let fail = |header, reason| Malformed { header, reason };
        let mut reader = Reader::new(message);
        let header: InHeader = reader.fixed().map_err(|reason| fail(None, reason))?;
        if header.len as usize != message.len() {
            return Err(fail(Some(header), "the length in the header is not that of the message"));
        }
        Self::finish(header, reader)
    }

    /// Parses a message whose fixed arguments and payload lie apart, as FUSE-over-io_uring delivers them:
    /// `fixed` holds the request's own struct (longer is allowed), `payload` the names and data.
    pub fn from_parts(header: InHeader, fixed: &'a [u8], payload: &'a [u8]) -> Result<Self, Malformed> {
        Self::finish(header, Reader::split(fixed, payload))
    }

    fn finish(header: InHeader, mut reader: Reader<'a>) -> Result<Self, Malformed> {
        let parsed = reader
            .take_end(usize::from(header.total_extlen) * 8)
            .and_then(|extensions| Ok((extensions, op::parse(header.opcode, reader)?)));
        match parsed {
            Ok((extensions, op)) => Ok(Self { header, op, extensions }),
            Err(reason) => Err(Malformed { header: Some(header), reason }),
        }
    }

    /// Whether the kernel waits for an answer. An answer to any other request is an error.
    pub fn wants_reply(&self) -> bool {
        op::wants_reply(self.header.opcode)
    }

    /// Whether the kernel had sent this request before, to a server that is gone.
    pub fn is_resend(&self) -> bool {
        self.header.unique & UNIQUE_RESEND != 0
    }

    /// The supplementary groups that came with a request that makes an inode (if CREATE_SUPP_GROUP was
    /// agreed): at most the one that equals the directory's group.
    pub fn supplementary_groups(&self) -> impl Iterator<Item = u32> + 'a {
        let mut reader = Reader::new(self.extensions);
        let mut found: &'a [u8] = &[];
        while let Ok(header) = reader.fixed::<crate::abi::ExtHeader>() {
            let Some(len) = (header.size as usize).checked_sub(size_of_val(&header)) else { break };
            let Ok(body) = reader.bytes(len) else { break };
            if header.r#type == flag::EXT_GROUPS && body.len() >= 4 {
                let count = u32::from_ne_bytes([body[0], body[1], body[2], body[3]]) as usize;
                let groups = &body[4..];
                found = &groups[..groups.len().min(count.saturating_mul(4))];
            }
        }
        found.chunks_exact(4).map(|g| u32::from_ne_bytes([g[0], g[1], g[2], g[3]]))
    }
}
