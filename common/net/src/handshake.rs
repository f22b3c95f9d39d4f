//! Who is at the other end: challenge, hello, welcome. See `docs/design/wire.md`.

use crate::error::NetError;
use crate::frame::{Frame, Head, Limits, encode};
use crate::link::FrameReader;
use ember_rt::net::StreamWriter;
use ember_rt::{Rt, SharedBuf};
use ember_types::capability::handshake_proof;
use ember_types::{ClusterId, NodeId, Status};
use ember_wire::codec::Body;
use ember_wire::decode;
use ember_wire::handshake::{Caller, Challenge, FEATURES, Hello, PROTOCOL_MAX, PROTOCOL_MIN, Welcome};
use ember_wire::header::FLAG_RESPONSE;
use ember_wire::method::Method;
use std::rc::Rc;

/// Most bytes of a user's name.
const USER_MAX: usize = 255;

/// Who this process is when it calls others.
#[derive(Clone)]
pub struct Identity {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Node or client.
    pub caller: Caller,
    /// The user whose token `key` is; empty for a node.
    pub user: String,
    /// What it proves to know: a node the key of nodes, a client its user's token.
    pub key: [u8; 32],
    /// Lane that it wants to reach (0 if unknown).
    pub lane: u32,
}

/// What a listener knows about those who may call.
pub trait Keys {
    /// The key that this caller must prove to know; `None` if there is no such node or user.
    fn key(&self, caller: &Caller, user: &str) -> Option<[u8; 32]>;
}

/// Who this process is when others call it.
#[derive(Clone)]
pub struct ServerIdentity {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Its node id (0 if it has none).
    pub node: NodeId,
    /// Who may call.
    pub keys: Rc<dyn Keys>,
}

/// The other end of a connection, after the handshake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Number of the connection within its server.
    pub connection: u64,
    /// Who it is, proven.
    pub caller: Caller,
    /// Its user; empty for a node.
    pub user: String,
    /// Where it is, for people.
    pub address: String,
    /// The protocol that both speak.
    pub protocol: u16,
    /// Feature bits that both understand.
    pub features: u64,
    /// The lane that it wants.
    pub lane: u32,
}

/// What a caller learns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Agreed {
    pub(crate) node: NodeId,
    pub(crate) features: u64,
}

async fn send<B: Body>(
    writer: &mut dyn StreamWriter,
    method: Method,
    flags: u16,
    body: &B,
) -> Result<(), NetError> {
    let head = Head { flags, method: method.number(), ..Head::default() };
    let bytes = encode(head, 0, |out| body.write(out)).map_err(|err| NetError::Protocol(err.to_string()))?;
    let sent = writer.write_all(vec![SharedBuf::from(&bytes[..])]).await;
    sent.map_err(|err| NetError::Unavailable(format!("handshake: {err}")))
}

async fn receive(reader: &mut FrameReader) -> Result<Frame, NetError> {
    let closed = || NetError::Unavailable("handshake: the peer closed the connection".to_owned());
    reader.next().await?.ok_or_else(closed)
}

fn body<B: Body>(frame: &Frame) -> Result<B, NetError> {
    decode(&frame.body).map_err(|err| NetError::Protocol(format!("handshake: {err}")))
}

/// The newest protocol of two ranges.
fn common(own: (u16, u16), other: (u16, u16)) -> Option<u16> {
    let newest = own.1.min(other.1);
    (newest >= own.0.max(other.0)).then_some(newest)
}

/// The caller's part.
pub(crate) async fn greet(
    reader: &mut FrameReader,
    writer: &mut dyn StreamWriter,
    identity: &Identity,
) -> Result<Agreed, NetError> {
    let first = receive(reader).await?;
    if first.header.method.get() == Method::Admit.number() {
        return admitted(&first);
    }
    if first.header.method.get() != Method::Greet.number() || first.is_response() {
        return Err(NetError::Protocol("handshake: the listener did not greet".to_owned()));
    }
    let challenge: Challenge = body(&first)?;
    if challenge.cluster != identity.cluster {
        let text = format!(
            "the listener belongs to cluster {}, this is {}: check the address or the data directory",
            challenge.cluster, identity.cluster
        );
        return Err(NetError::refused(Status::HandshakeRefused, text));
    }
    let hello = Hello {
        cluster: identity.cluster,
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        features: FEATURES,
        caller: identity.caller,
        user: identity.user.clone(),
        proof: handshake_proof(&identity.key, &challenge.nonce, identity.caller.role()),
        lane: identity.lane,
    };
    send(writer, Method::Greet, FLAG_RESPONSE, &hello).await?;
    let last = receive(reader).await?;
    if last.header.method.get() != Method::Admit.number() || last.is_response() {
        return Err(NetError::Protocol("handshake: the listener did not answer".to_owned()));
    }
    let agreed = admitted(&last)?;
    reader.set_limits(Limits::OPEN);
    Ok(agreed)
}

fn admitted(frame: &Frame) -> Result<Agreed, NetError> {
    let welcome: Welcome = body(frame)?;
    match welcome.status {
        Status::Ok => Ok(Agreed { node: welcome.node, features: welcome.features & FEATURES }),
        status => Err(NetError::Refused { status, text: welcome.text }),
    }
}

/// Tells a caller why it isn't served.
pub(crate) async fn turn_away(writer: &mut dyn StreamWriter, status: Status, text: &str) {
    let welcome = Welcome { status, text: text.to_owned(), protocol: 0, features: 0, node: NodeId(0) };
    // One that has gone need not be told.
    let _ = send(writer, Method::Admit, 0, &welcome).await;
}

/// The listener's part. A caller that isn't admitted has been told why.
pub(crate) async fn admit(
    rt: &Rt,
    reader: &mut FrameReader,
    writer: &mut dyn StreamWriter,
    identity: &ServerIdentity,
) -> Result<Peer, NetError> {
    let mut nonce = [0; 32];
    for part in nonce.chunks_exact_mut(8) {
        part.copy_from_slice(&rt.random_u64().to_le_bytes());
    }
    let challenge = Challenge {
        nonce,
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        cluster: identity.cluster,
    };
    send(writer, Method::Greet, 0, &challenge).await?;
    let frame = receive(reader).await?;
    if frame.header.method.get() != Method::Greet.number() || !frame.is_response() {
        return Err(NetError::Protocol("handshake: the caller did not say hello".to_owned()));
    }
    let hello: Hello = body(&frame)?;
    let protocol = match judge(&hello, &nonce, identity) {
        Ok(protocol) => protocol,
        Err(text) => {
            turn_away(writer, Status::HandshakeRefused, &text).await;
            return Err(NetError::refused(Status::HandshakeRefused, text));
        }
    };
    let features = hello.features & FEATURES;
    let welcome =
        Welcome { status: Status::Ok, text: String::new(), protocol, features, node: identity.node };
    send(writer, Method::Admit, 0, &welcome).await?;
    reader.set_limits(Limits::OPEN);
    Ok(Peer {
        connection: 0,
        caller: hello.caller,
        user: hello.user,
        address: String::new(),
        protocol,
        features,
        lane: hello.lane,
    })
}

/// The protocol to speak with a caller, or what to tell it.
fn judge(hello: &Hello, nonce: &[u8; 32], identity: &ServerIdentity) -> Result<u16, String> {
    let theirs = (hello.protocol_min, hello.protocol_max);
    let Some(protocol) = common((PROTOCOL_MIN, PROTOCOL_MAX), theirs) else {
        return Err(format!(
            "protocols {} to {} are spoken here, the caller speaks {} to {}: bring both to \
             neighbouring releases",
            PROTOCOL_MIN, PROTOCOL_MAX, theirs.0, theirs.1
        ));
    };
    if hello.cluster != identity.cluster {
        return Err(format!(
            "this is cluster {}, the caller belongs to {}: check the address or the data directory",
            identity.cluster, hello.cluster
        ));
    }
    // One text for an unknown name and a wrong token, so that names can't be tried out.
    let refused = || match hello.caller {
        Caller::Node(node) => format!("node {node} does not know this cluster's secret"),
        Caller::Client(_) => "wrong user or token: check the token file".to_owned(),
    };
    if hello.user.len() > USER_MAX {
        return Err(refused());
    }
    let key = identity.keys.key(&hello.caller, &hello.user).ok_or_else(refused)?;
    let expected = handshake_proof(&key, nonce, hello.caller.role());
    // Looks at every byte, so that the time taken tells nothing.
    let differ = expected.iter().zip(&hello.proof).fold(0, |all, (a, b)| all | (a ^ b));
    if differ == 0 { Ok(protocol) } else { Err(refused()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_protocol_is_spoken() {
        assert_eq!(common((1, 3), (2, 5)), Some(3));
        assert_eq!(common((2, 5), (1, 3)), Some(3));
        assert_eq!(common((1, 1), (1, 1)), Some(1));
        assert_eq!(common((3, 4), (1, 2)), None);
        assert_eq!(common((1, 2), (3, 4)), None);
        assert_eq!(common((1, 2), (2, 1)), None);
    }
}
