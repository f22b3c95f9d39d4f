//! Ranks on several machines: what goes between them. A token goes once to each node that has experts for it, to the
//! rank there with the same place in its node, which passes it on; on the way back, that rank gathers what has become
//! of it. Byte boxes: `docs/design/ranks.md`.

use crate::dispatch::Load;
use crate::group::{Group, Turn};
use crate::layout::Shape;
use crate::places::BLOCK;
use crate::returned::{Came, Order, Walk, by_last};
use crate::tokens::Tokens;
use crate::ways::{Handle, Way, picked};
use crate::{EpError, Result, demand};
use ember_link::{Link, LinkError, Listener, Tag};
use ember_rt::Addr;
use half::bf16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use zerocopy::IntoBytes;

/// The nodes of a group: each has as many ranks, which share memory.
pub struct Across<'a> {
    /// Where this rank listens.
    pub listener: Listener,
    /// How many nodes there are; the ranks of the first come first.
    pub nodes: usize,
    /// Where each rank of the group listens.
    pub addresses: &'a [Addr],
    /// A number that all ranks of the job have, and no other job.
    pub job: u128,
    /// What only ranks of the job know.
    pub key: [u8; 32],
}

/// The numbers of a group, to be compared.
const WORDS: u32 = 0;
const DISPATCH: u32 = 1;
const COMBINE: u32 = 2;
/// Numbers go as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"));
/// Numbers at the beginning of a message.
const HEAD: usize = 4;

/// Tokens of another node that have arrived here, to be passed on.
pub(crate) struct Arrived {
    message: Vec<u8>,
    values: usize,
    width: usize,
    scales: Vec<f32>,
    experts: bool,
    weights: Option<Vec<f32>>,
}

impl Arrived {
    pub(crate) fn load(&self) -> Load<'_> {
        Load {
            values: &self.message[self.values..],
            width: self.width,
            scales: &self.scales,
            experts: self.experts,
            weights: self.weights.as_deref(),
            at: None,
        }
    }
}

/// What a node has made of tokens of this rank.
#[derive(Default)]
struct Gathered {
    rows: Vec<bf16>,
    /// `[tokens, topk]`, if they were sent.
    weights: Vec<f32>,
}

/// What a wait between nodes ends with.
enum Trouble {
    Link(LinkError),
    Other(EpError),
}

impl From<LinkError> for Trouble {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

/// Takes numbers off the front of a message.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<T, const N: usize>(&mut self, count: usize, read: impl Fn([u8; N]) -> T) -> Option<Vec<T>> {
        let (bytes, rest) = self.0.split_at_checked(count.checked_mul(N)?)?;
        self.0 = rest;
        Some(bytes.as_chunks().0.iter().map(|bytes| read(*bytes)).collect())
    }
    fn head(&mut self) -> Option<[u32; HEAD]> {
        self.take(HEAD, u32::from_le_bytes)?.try_into().ok()
    }
}

/// Bytes of a message at most.
fn message_max(shape: &Shape, rows_back: usize) -> usize {
    let Shape { hidden, topk, tokens, .. } = *shape;
    let there = 4 + 8 * topk + 4 * hidden.div_ceil(BLOCK) + 2 * hidden;
    let back = 4 * topk + 2 * hidden * rows_back;
    (4 * HEAD + tokens * there.max(back)).max(1 << 12)
}

/// Connects with the ranks in the same place on the other nodes, and compares numbers.
pub(crate) fn connect(
    across: Across<'_>,
    shape: &Shape,
    rank: usize,
    rows_back: usize,
    words: &[(&'static str, u64)],
    limit: std::time::Duration,
) -> Result<Link> {
    let here = shape.ranks / across.nodes;
    let (node, index) = (rank / here, rank % here);
    let addresses: Vec<Addr> = across.addresses.iter().skip(index).step_by(here).cloned().collect();
    let named = |error| EpError::from(error).moved(here, index);
    let link = Link::join(
        across.listener,
        &ember_link::Join {
            rank: node,
            addresses: &addresses,
            job: across.job.wrapping_add(index as u128),
            key: across.key,
            message_max: message_max(shape, rows_back),
            limit,
        },
    )
    .map_err(named)?;
    let others = || (0..across.nodes).filter(|other| *other != node);
    let tag = Tag { channel: WORDS, number: 0 };
    let ours: Vec<u8> = words.iter().flat_map(|(_, word)| word.to_le_bytes()).collect();
    let compared = others().try_for_each(|other| link.send(other, tag, ours.clone()).map_err(named));
    let compared = compared.and_then(|()| {
        others().try_for_each(|other| {
            let theirs = link.receive(other, tag, "said its numbers", || Ok(())).map_err(named)?;
            let rank = other * here + index;
            let Some(theirs) = Reader(&theirs).take(words.len(), u64::from_le_bytes) else {
                return Err(EpError::Damaged { rank, why: "it says other numbers".into() });
            };
            match words.iter().zip(theirs).find(|((_, ours), theirs)| ours != theirs) {
                Some((&(what, ours), theirs)) => Err(EpError::Disagree { rank, what, theirs, ours }),
                None => Ok(()),
            }
        })
    });
    match compared {
        Ok(()) => Ok(link),
        Err(error) => {
            link.fail(error.culprit().unwrap_or(rank));
            Err(error)
        }
    }
}

impl Across<'_> {
    pub(crate) fn check(&self, shape: &Shape) -> Result<()> {
        let (nodes, ranks) = (self.nodes, shape.ranks);
        demand(nodes > 0 && ranks.is_multiple_of(nodes), "nodes", || {
            format!("{ranks} ranks can't be divided among {nodes} nodes")
        })?;
        demand(self.addresses.len() == ranks, "addresses", || {
            format!("there are {}, not one for each of {ranks} ranks", self.addresses.len())
        })
    }
}

impl Group {
    fn other_nodes(&self) -> impl Iterator<Item = usize> + use<> {
        let own = self.node();
        (0..self.nodes()).filter(move |node| *node != own)
    }
    /// This rank's counterpart on a node.
    fn counterpart(&self, node: usize) -> usize {
        node * self.here() + self.index()
    }
    fn across(&self, error: LinkError) -> EpError {
        EpError::from(error).moved(self.here(), self.index())
    }

    fn send_across(&self, node: usize, channel: u32, turn: Turn, message: Vec<u8>) -> Result<()> {
        let Some(link) = &self.link else { return Ok(()) };
        let tag = Tag { channel, number: turn.epoch };
        link.send(node, tag, message).map_err(|error| self.across(error))
    }
    fn receive_across(&self, node: usize, channel: u32, turn: Turn, what: &'static str) -> Result<Vec<u8>> {
        let Some(link) = &self.link else { return Ok(Vec::new()) };
        let check = || self.check_here().map_err(Trouble::Other);
        link.receive(node, Tag { channel, number: turn.epoch }, what, check).map_err(
            |trouble| match trouble {
                Trouble::Link(error) => self.across(error),
                Trouble::Other(error) => error,
            },
        )
    }

    /// Sends the tokens of other nodes' experts on their way.
    pub(crate) fn send_tokens_across(
        &self,
        turn: Turn,
        kind: u32,
        tokens: Tokens<'_>,
        weights: Option<&[f32]>,
        handle: &Handle,
    ) -> Result<()> {
        let Shape { hidden, topk, .. } = self.shape;
        for node in self.other_nodes() {
            let its = &handle.to_node[node];
            let mut message = Vec::new();
            message.extend_from_slice([kind, handle.id, its.len() as u32, 0].as_bytes());
            if crate::dispatch::with_experts(kind) {
                message.extend_from_slice(its.as_bytes());
                message.extend_from_slice(picked(&handle.chosen, topk, its).as_bytes());
            }
            if let Some(weights) = weights {
                message.extend_from_slice(picked(weights, topk, its).as_bytes());
            }
            if tokens.width() == 1 {
                message.extend_from_slice(picked(tokens.scales(), hidden.div_ceil(BLOCK), its).as_bytes());
            }
            let row = hidden * tokens.width();
            message.reserve(its.len() * row);
            for token in its {
                message.extend_from_slice(&tokens.bytes()[*token as usize * row..][..row]);
            }
            self.send_across(node, DISPATCH, turn, message)?;
        }
        Ok(())
    }

    /// Waits for tokens of the other nodes, and notes their ways; by node.
    pub(crate) fn tokens_from_across(
        &self,
        turn: Turn,
        kind: u32,
        with_weights: bool,
        handle: &mut Handle,
    ) -> Result<Vec<Option<Arrived>>> {
        let mut all: Vec<Option<Arrived>> = (0..self.nodes()).map(|_| None).collect();
        for node in self.other_nodes() {
            let message = self.receive_across(node, DISPATCH, turn, "sent its tokens")?;
            let rank = self.counterpart(node);
            let mut reader = Reader(&message);
            let head = reader.head().unwrap_or_default();
            let names = ["kind of dispatch", "dispatch to go after"];
            self.agree(rank, names, &head, [kind, handle.id])?;
            let damaged = |why: &str| EpError::Damaged { rank, why: why.into() };
            let count = head[2] as usize;
            if count > self.shape.tokens {
                return Err(damaged("more tokens than a rank may have"));
            }
            let experts = crate::dispatch::with_experts(kind);
            if experts {
                let way = self.read_way(&mut reader, count).ok_or_else(|| damaged("its experts"))?;
                handle.ways[node] = way;
            } else if count != handle.ways[node].tokens.len() {
                return Err(damaged("another number of tokens than before"));
            }
            let short = || damaged("it is too short or too long");
            let topk = self.shape.topk;
            let weights =
                with_weights.then(|| reader.take(count * topk, f32::from_le_bytes).ok_or_else(short));
            let weights = weights.transpose()?;
            let width = crate::dispatch::width(kind);
            let blocks = if width == 1 { self.shape.hidden.div_ceil(BLOCK) } else { 0 };
            let scales = reader.take(count * blocks, f32::from_le_bytes).ok_or_else(short)?;
            let values = message.len() - reader.0.len();
            if reader.0.len() != count * width * self.shape.hidden {
                return Err(short());
            }
            all[node] = Some(Arrived { message, values, width, scales, experts, weights });
        }
        Ok(all)
    }

    /// Tokens and their experts, as far as they make sense.
    fn read_way(&self, reader: &mut Reader<'_>, count: usize) -> Option<Way> {
        let Shape { experts, topk, tokens: most, .. } = self.shape;
        let tokens = reader.take(count, u32::from_le_bytes)?;
        let chosen = reader.take(count * topk, i32::from_le_bytes)?;
        let ascending = tokens.windows(2).all(|pair| pair[0] < pair[1]);
        let exist = |id: &i32| *id == -1 || usize::try_from(*id).is_ok_and(|id| id < experts);
        let twice = |of: &[i32]| (1..of.len()).any(|k| of[k] != -1 && of[..k].contains(&of[k]));
        let holds = ascending
            && tokens.last().is_none_or(|last| (*last as usize) < most)
            && chosen.iter().all(exist)
            && !chosen.chunks(topk).any(twice);
        holds.then(|| self.way(tokens, chosen))
    }

    /// What has come back here for tokens of a node: sums, rounded to BF16, or the rows as they are.
    fn gathered(
        &self,
        turn: Turn,
        node: usize,
        order: Order,
        with_weights: bool,
        handle: &Handle,
    ) -> Gathered {
        let Shape { hidden, topk, .. } = self.shape;
        let mut walk = Walk::new(self, &handle.ways, node, turn, order, with_weights);
        let (mut out, mut came) = (Gathered::default(), Came::default());
        let mut sums = vec![0.0; hidden];
        for t in 0..handle.ways[node].tokens.len() {
            came.clear();
            walk.token(t, &mut came);
            if order == Order::Choices {
                came.rows.iter().for_each(|(row, _)| out.rows.extend_from_slice(row));
            } else {
                sums.fill(0.0);
                came.add_to(&mut sums, None);
                let from = out.rows.len();
                out.rows.resize(from + hidden, bf16::ZERO);
                crate::numbers::round(&sums, &mut out.rows[from..]);
            }
            if with_weights {
                let from = out.weights.len();
                out.weights.resize(from + topk, 0.0);
                came.add_weights_to(&mut out.weights[from..]);
            }
        }
        out
    }

    /// Sends what this node has made of other nodes' tokens to them, and waits for what they have made of this rank's.
    pub(crate) fn gather(
        &self,
        turn: Turn,
        order: Order,
        with_weights: bool,
        handle: &Handle,
        free: impl FnOnce(),
    ) -> Result<Back> {
        for node in self.other_nodes() {
            let Gathered { rows, weights } = self.gathered(turn, node, order, with_weights, handle);
            let count = rows.len() / self.shape.hidden;
            let mut message = Vec::with_capacity(4 * HEAD + 4 * weights.len() + 2 * rows.len());
            let head = [handle.id, order as u32, with_weights.into(), count as u32];
            message.extend_from_slice(head.as_bytes());
            message.extend_from_slice(weights.as_bytes());
            message.extend_from_slice(rows.reinterpret_cast().as_bytes());
            self.send_across(node, COMBINE, turn, message)?;
        }
        let own = self.gathered(turn, self.node(), order, with_weights, handle);
        free();
        let mut nodes: Vec<Gathered> = (0..self.nodes()).map(|_| Gathered::default()).collect();
        nodes[self.node()] = own;
        for node in self.other_nodes() {
            nodes[node] = self.read_gathered(turn, node, order, with_weights, handle)?;
        }
        Ok(Back { nodes, order, experts: self.here() * self.shape.local_experts() })
    }

    fn read_gathered(
        &self,
        turn: Turn,
        node: usize,
        order: Order,
        with_weights: bool,
        handle: &Handle,
    ) -> Result<Gathered> {
        let Shape { hidden, topk, .. } = self.shape;
        let experts = self.here() * self.shape.local_experts();
        let message = self.receive_across(node, COMBINE, turn, "sent what it has computed")?;
        let of_node = |id: &&i32| usize::try_from(**id).is_ok_and(|id| id / experts == node);
        let rows = match order {
            Order::Choices => handle.chosen.iter().filter(of_node).count(),
            _ => handle.to_node[node].len(),
        };
        let rank = self.counterpart(node);
        let mut reader = Reader(&message);
        let head = reader.head().unwrap_or_default();
        let names = ["dispatch to combine", "way to reduce", "weights", "rows to send back"];
        let ours = [handle.id, order as u32, with_weights.into(), rows as u32];
        self.agree(rank, names, &head, ours)?;
        let weights = if with_weights { handle.to_node[node].len() * topk } else { 0 };
        let weights = reader.take(weights, f32::from_le_bytes);
        let halves = reader.take(rows * hidden, u16::from_le_bytes).filter(|_| reader.0.is_empty());
        let (Some(weights), Some(halves)) = (weights, halves) else {
            return Err(EpError::Damaged { rank, why: "it is too short or too long".into() });
        };
        Ok(Gathered { rows: halves.reinterpret_cast::<bf16>().to_vec(), weights })
    }
}

/// What all nodes have made of this rank's tokens; taken token by token.
pub(crate) struct Back {
    nodes: Vec<Gathered>,
    order: Order,
    /// Experts of a node.
    experts: usize,
}

impl Back {
    /// Adds what has come back of the next token, which chose `chosen`.
    pub(crate) fn token<'s>(
        &'s self,
        next: &mut [[usize; 2]],
        hidden: usize,
        chosen: &[i32],
        came: &mut Came<'s>,
    ) {
        let node = |id: &i32| usize::try_from(*id).ok().map(|id| id / self.experts);
        let mut nodes = by_last(chosen.iter().filter_map(node));
        let mut row = |node: usize| {
            let at = next[node][0];
            next[node][0] += 1;
            &self.nodes[node].rows[at * hidden..][..hidden]
        };
        if self.order == Order::Choices {
            let rows = chosen.iter().enumerate().filter_map(|(k, id)| Some((row(node(id)?), k)));
            came.rows.extend(rows);
        } else {
            if self.order == Order::Ranks {
                nodes.sort_unstable();
            }
            came.rows.extend(nodes.iter().map(|node| (row(*node), 0)));
        }
        nodes.sort_unstable();
        for node in nodes {
            let at = next[node][1];
            next[node][1] += 1;
            came.weights.extend(self.nodes[node].weights.chunks(chosen.len()).nth(at));
        }
    }
    /// For each node, its next row and its next token's weights.
    pub(crate) fn next(&self) -> Vec<[usize; 2]> {
        vec![[0; 2]; self.nodes.len()]
    }
}
