//! Status codes of the wire: stable numbers, apart from any crate's error type.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

macro_rules! status {
    ($($(#[$doc:meta])* $name:ident = $code:literal, errno $errno:literal;)*) => {
        /// How a request ended. Numbers never change meaning; an unknown one decodes as [`Status::Internal`].
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
        #[repr(u16)]
        pub enum Status {
            $($(#[$doc])* #[allow(missing_docs)] $name = $code,)*
        }
        impl Status {
            /// Every status, for tables and tests.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
            /// The number on the wire.
            pub const fn code(self) -> u16 { self as u16 }
            /// Reads a wire number; an unknown one is `Internal`.
            pub const fn from_code(code: u16) -> Self {
                match code { $($code => Self::$name,)* _ => Self::Internal }
            }
            /// The Linux errno a file-system call ends with (0 for `Ok`).
            pub const fn errno(self) -> i32 {
                match self { $(Self::$name => $errno,)* }
            }
        }
    };
}

status! {
    /// Success.
    #[default]
    Ok = 0, errno 0;
    /// A defect or an unknown status; the log of the answering node says more.
    Internal = 1, errno 5;
    /// The request is malformed or out of range.
    InvalidArgument = 2, errno 22;
    /// The service doesn't know the method or feature.
    NotSupported = 3, errno 95;
    /// The deadline passed.
    Timeout = 4, errno 110;
    /// Connection lost, peer unreachable, or node is shutting down: try again.
    Unavailable = 5, errno 11;
    /// Too much in flight: try again later.
    Busy = 6, errno 11;
    /// Cluster id, token or protocol range was refused at the handshake.
    HandshakeRefused = 7, errno 13;
    /// This mgmtd is not the primary.
    NotPrimary = 8, errno 11;
    /// The node has no valid lease.
    NoLease = 9, errno 11;
    /// Routing of the asker is older (or newer) than the replica's: refresh and try again.
    StaleRouting = 10, errno 11;
    /// Capability missing, expired, revoked or forged.
    BadCapability = 11, errno 13;
    /// The target isn't serving.
    NotServing = 12, errno 11;
    /// Stored bytes fail their checksum.
    Corrupt = 13, errno 5;
    /// The target's device has failed: its chain goes on without it.
    DeviceError = 14, errno 5;
    /// A sequence below the channel's last one (R12).
    StaleSequence = 15, errno 5;
    /// The update was aborted by the chain (R13): not done.
    Aborted = 16, errno 11;
    /// Payload fails its checksum on arrival: send again.
    ChecksumMismatch = 17, errno 5;
    /// The chunk or its data is recorded as lost (R10).
    DataLost = 18, errno 5;
    /// The asker's client session has ended.
    SessionEnded = 19, errno 116;
    /// The transaction conflicted too often: try again.
    Conflict = 20, errno 11;
    NotFound = 40, errno 2;
    Exists = 41, errno 17;
    NotDirectory = 42, errno 20;
    IsDirectory = 43, errno 21;
    NotEmpty = 44, errno 39;
    PermissionDenied = 45, errno 13;
    NotPermitted = 46, errno 1;
    NameTooLong = 47, errno 36;
    NoSpace = 48, errno 28;
    TooManyLinks = 49, errno 31;
    CrossDevice = 50, errno 18;
    FileTooLarge = 51, errno 27;
    ReadOnly = 52, errno 30;
    /// The inode is gone or was rolled back (R3).
    Stale = 53, errno 116;
    SymlinkLoop = 54, errno 40;
    NoSys = 55, errno 38;
    BadHandle = 56, errno 9;
    QuotaExceeded = 57, errno 122;
    NoSuchCluster = 58, errno 2;
}

impl Status {
    /// Whether the same request may succeed later, on this or another replica or after a refresh of routing.
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::Timeout
                | Self::Unavailable
                | Self::Busy
                | Self::NotPrimary
                | Self::NoLease
                | Self::StaleRouting
                | Self::NotServing
                | Self::DeviceError
                | Self::Aborted
                | Self::ChecksumMismatch
                | Self::Conflict
        )
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

impl<C> Encode<C> for Status {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.u16(self.code())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Status {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Ok(Self::from_code(d.u16()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_survives_its_wire_number() {
        for &status in Status::ALL {
            assert_eq!(Status::from_code(status.code()), status);
            assert_eq!(status.errno() == 0, status == Status::Ok);
        }
        assert_eq!(Status::from_code(65_000), Status::Internal);
    }
}
