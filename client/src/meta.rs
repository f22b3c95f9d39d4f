//! Metadata requests: to the server that the directory hashes to, again to the next one when it fails, under
//! one number until the answer comes.

use crate::error::{ClientError, Result};
use crate::rpc::Backoff;
use crate::{Client, Inner};
use ember_rt::SharedBuf;
use ember_types::file::{Attributes, Credentials};
use ember_types::{InodeId, Instant, NodeInfo, Status};
use ember_wire::meta::{Answer, Operation, Request, Response};
use ember_wire::method::MetaOp;
use std::time::Duration;

/// On whose behalf and until when.
#[derive(Clone, Debug)]
pub struct MetaOptions {
    /// Who asks.
    pub credentials: Credentials,
    /// When to give up; the client's default if `None`.
    pub deadline: Option<Instant>,
}

impl MetaOptions {
    /// As root, with the default deadline.
    pub fn root() -> Self {
        Self { credentials: Credentials::default(), deadline: None }
    }
}

impl From<Credentials> for MetaOptions {
    fn from(credentials: Credentials) -> Self {
        Self { credentials, deadline: None }
    }
}

impl Client {
    /// Runs a metadata operation. A failure of a server is waited out until the deadline.
    pub async fn meta(&self, operation: Operation, options: &MetaOptions) -> Result<Answer> {
        let inner = &*self.0;
        let deadline = options.deadline.unwrap_or_else(|| inner.deadline());
        let number = operation.changes().then(|| inner.shared.begin_request());
        let home = operation.home();
        let mut request = Request {
            client: inner.shared.id(),
            credentials: options.credentials.clone(),
            sequence: number.as_ref().map_or(0, |n| n.number),
            answered: 0,
            repeat: false,
            operation,
        };
        let mut backoff = Backoff::new();
        let mut turn = 0;
        loop {
            request.answered = inner.shared.answered();
            let failure = match inner.meta_node(home, turn) {
                None => ClientError::new(Status::Unavailable, "no meta server is registered"),
                Some(node) => match inner.ask_meta(&node, &request, deadline).await {
                    Ok(response) if response.status == Status::Ok => return Ok(response.result),
                    Ok(response) => ClientError::new(response.status, response.text),
                    Err(failure) => failure,
                },
            };
            if !failure.status.is_retryable() {
                return Err(failure);
            }
            turn += 1;
            request.repeat = true;
            backoff.wait(inner, deadline, failure).await?;
        }
    }

    /// Runs an operation that answers with an inode.
    pub async fn meta_entry(&self, operation: Operation, options: &MetaOptions) -> Result<Attributes> {
        match self.meta(operation, options).await? {
            Answer::Entry(attributes) => Ok(attributes),
            other => Err(unexpected(&other)),
        }
    }
}

/// A server answered with another kind of result than the operation has.
pub(crate) fn unexpected(answer: &Answer) -> ClientError {
    ClientError::new(Status::Internal, format!("unexpected answer of the metadata service: {answer:?}"))
}

impl Inner {
    /// When an operation that begins now is given up.
    pub(crate) fn deadline(&self) -> Instant {
        self.rt.now() + Duration::from_millis(self.config.operation_timeout_ms)
    }

    fn meta_node(&self, home: InodeId, turn: usize) -> Option<NodeInfo> {
        let view = self.routing.view();
        let nodes = view.meta_nodes_for(home);
        nodes.get(turn % nodes.len().max(1)).map(|&node| node.clone())
    }

    async fn ask_meta(&self, node: &NodeInfo, request: &Request, deadline: Instant) -> Result<Response> {
        let until = deadline.min(self.rt.now() + Duration::from_millis(self.config.attempt_ms));
        let (response, _) = self.call::<MetaOp>(node, request, SharedBuf::default(), 0, until).await?;
        Ok(response)
    }
}
