//! Client sessions (R12).

use crate::record::Client;
use ember_types::{ClientId, ClusterTime, Instant, mutant};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long the end of a session is announced: longer than any request can live.
const ANNOUNCED: Duration = Duration::from_secs(900);
/// Ends that are announced at once; older ones are forgotten before their time.
const ANNOUNCED_MAX: usize = 2_048;

/// A session that lives.
struct Session {
    description: String,
    /// When it was last extended; a new primary takes the time of its takeover (R8).
    extended: Instant,
}

/// All sessions: live ones, and ones that ended lately.
pub(crate) struct Clients {
    live: BTreeMap<ClientId, Session>,
    ended: BTreeMap<ClientId, ClusterTime>,
}

/// How a request to extend a session ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Extension {
    /// The session lives on.
    Extended,
    /// It has to be written down first.
    New,
    /// It has ended for good.
    Ended,
}

impl Clients {
    pub(crate) fn new(stored: Vec<(ClientId, Client)>, now: Instant) -> Self {
        let mut clients = Self { live: BTreeMap::new(), ended: BTreeMap::new() };
        for (id, client) in stored {
            clients.install(id, Some(client), now);
        }
        clients
    }

    pub(crate) fn install(&mut self, id: ClientId, client: Option<Client>, now: Instant) {
        self.live.remove(&id);
        self.ended.remove(&id);
        match client {
            Some(Client { ended_ms: Some(at), .. }) => {
                self.ended.insert(id, ClusterTime(at));
            }
            Some(Client { description, .. }) => {
                self.live.insert(id, Session { description, extended: now });
            }
            None => {}
        }
    }

    pub(crate) fn extend(&mut self, id: ClientId, now: Instant) -> Extension {
        if self.ended.contains_key(&id) && !mutant!(r12_ended_session_revives) {
            return Extension::Ended;
        }
        match self.live.get_mut(&id) {
            Some(session) => {
                session.extended = now;
                Extension::Extended
            }
            None => Extension::New,
        }
    }

    /// The record of a session that ends now; `None` if it doesn't live.
    pub(crate) fn end(&self, id: ClientId, time: ClusterTime) -> Option<(ClientId, Option<Client>)> {
        let session = self.live.get(&id)?;
        let client = Client { description: session.description.clone(), ended_ms: Some(time.0) };
        Some((id, Some(client)))
    }

    /// What time changes: sessions that were not extended for `life` end, and ends that were announced long
    /// enough are forgotten. At most `limit` changes.
    pub(crate) fn due(
        &self,
        now: Instant,
        time: ClusterTime,
        life: Duration,
        limit: usize,
    ) -> Vec<(ClientId, Option<Client>)> {
        let lapsed = self.live.iter().filter(|(_, s)| now.since(s.extended) > life).map(|(id, _)| *id);
        let mut changes: Vec<_> = lapsed.filter_map(|id| self.end(id, time)).take(limit).collect();
        let surplus = self.ended.len().saturating_sub(ANNOUNCED_MAX);
        let mut by_age: Vec<(ClusterTime, ClientId)> = self.ended.iter().map(|(id, at)| (*at, *id)).collect();
        by_age.sort_unstable();
        for (place, (at, id)) in by_age.into_iter().enumerate() {
            let over = at + ANNOUNCED < time || place < surplus;
            if over && changes.len() < limit {
                changes.push((id, None));
            }
        }
        changes
    }

    /// Sessions that ended lately.
    pub(crate) fn ended(&self) -> Vec<ClientId> {
        self.ended.keys().copied().collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.live.len()
    }

    /// Live sessions: id, what the client said of itself, time since its last extension.
    pub(crate) fn live(&self, now: Instant) -> impl Iterator<Item = (ClientId, &str, Duration)> {
        self.live.iter().map(move |(id, s)| (*id, s.description.as_str(), now.since(s.extended)))
    }
}
