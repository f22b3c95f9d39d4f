//! What each rank does, in order.

use crate::{Result, demand};
use std::collections::VecDeque;

/// How stages are spread over ranks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// As many stages as ranks, each twice: rank `r` of `n` holds stage `r` and stage `n - 1 - r`, and half of the
    /// micro-batches go either way.
    DualPipe,
    /// Twice as many stages as ranks: rank `r` of `n` holds stage `r` and stage `2n - 1 - r`.
    DualPipeV,
}

/// One of the two modules of a rank (0 or 1), and a micro-batch counted among those that the module gets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Part {
    /// 0: the stage that is the rank's number, passed upwards; 1: the other one, passed downwards.
    pub module: usize,
    /// Which micro-batch.
    pub chunk: usize,
}

/// Work of one rank.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compute {
    /// Forward pass.
    Forward(Part),
    /// Backward pass, weight gradients included.
    Backward(Part),
    /// Backward pass for the input; the weight gradients are put off.
    BackwardInput(Part),
    /// The weight gradients that were put off longest.
    Weight(Part),
    /// A forward pass beside the backward pass of another micro-batch.
    Overlapped {
        /// Goes forward.
        forward: Part,
        /// Goes backward, weight gradients included.
        backward: Part,
    },
}

impl Compute {
    /// What goes forward in it.
    pub fn forward(self) -> Option<Part> {
        match self {
            Self::Forward(part) | Self::Overlapped { forward: part, .. } => Some(part),
            _ => None,
        }
    }
    /// What goes backward in it.
    pub fn backward(self) -> Option<Part> {
        match self {
            Self::Backward(part) | Self::BackwardInput(part) | Self::Overlapped { backward: part, .. } => {
                Some(part)
            }
            _ => None,
        }
    }
}

/// What is sent between ranks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Payload {
    /// Output of a stage, on its way to the next one.
    Activation,
    /// Gradient of a stage's input, on its way to the one before.
    Gradient,
}

/// One message, seen from the rank that sends or receives it. `part` is in that rank's own numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// Whether the rank sends it.
    pub sends: bool,
    /// What it is.
    pub payload: Payload,
    /// Whose output or input gradient is sent; whose input or output gradient is received.
    pub part: Part,
    /// The other rank.
    pub peer: usize,
}

/// A step of a rank's program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Messages that are posted together; the next step begins when all have been received or taken over.
    Exchange(Vec<Transfer>),
    /// Work.
    Compute(Compute),
}

/// A pipeline: kind, ranks, micro-batches, and whether there is a backward pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pipeline {
    kind: Kind,
    ranks: usize,
    chunks: usize,
    forward_only: bool,
}

impl Pipeline {
    /// A pipeline of `ranks` ranks for `chunks` micro-batches.
    ///
    /// # Errors
    /// If there is no rank, fewer micro-batches than twice the ranks, or with [`Kind::DualPipe`] an odd number of
    /// either.
    pub fn new(kind: Kind, ranks: usize, chunks: usize, forward_only: bool) -> Result<Self> {
        demand(ranks > 0, "ranks", || "must be at least 1".into())?;
        if kind == Kind::DualPipe {
            demand(ranks.is_multiple_of(2), "ranks", || {
                format!("{ranks} is odd: DualPipe takes pairs of ranks")
            })?;
            demand(chunks.is_multiple_of(2), "chunks", || {
                format!("{chunks} is odd: DualPipe feeds as many micro-batches from either end")
            })?;
        }
        demand(chunks >= 2 * ranks, "chunks", || {
            format!("{chunks} micro-batches are fewer than twice the {ranks} ranks")
        })?;
        Ok(Self { kind, ranks, chunks, forward_only })
    }

    /// How stages are spread.
    pub fn kind(&self) -> Kind {
        self.kind
    }
    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.ranks
    }
    /// Number of micro-batches of a step, of both directions together.
    pub fn chunks(&self) -> usize {
        self.chunks
    }
    /// Whether there is no backward pass.
    pub fn is_forward_only(&self) -> bool {
        self.forward_only
    }
    /// Number of pipeline stages.
    pub fn stages(&self) -> usize {
        match self.kind {
            Kind::DualPipe => self.ranks,
            Kind::DualPipeV => 2 * self.ranks,
        }
    }
    /// The stage that a module of a rank is.
    pub fn stage(&self, rank: usize, module: usize) -> usize {
        if module == 0 { rank } else { self.stages() - 1 - rank }
    }
    /// Micro-batches that a module gets.
    pub fn chunks_of_module(&self) -> usize {
        match self.kind {
            Kind::DualPipe => self.chunks / 2,
            Kind::DualPipeV => self.chunks,
        }
    }
    /// Whether a module of a rank gets its input from outside.
    pub fn is_first(&self, rank: usize, module: usize) -> bool {
        match self.kind {
            Kind::DualPipe => rank == [0, self.ranks - 1][module],
            Kind::DualPipeV => rank == 0 && module == 0,
        }
    }
    /// Whether a module of a rank computes losses.
    pub fn is_last(&self, rank: usize, module: usize) -> bool {
        match self.kind {
            Kind::DualPipe => rank == [self.ranks - 1, 0][module],
            Kind::DualPipeV => rank == 0 && module == 1,
        }
    }
    /// The rank that holds the same two stages, whose gradients are to be added; none with [`Kind::DualPipeV`].
    pub fn twin(&self, rank: usize) -> Option<usize> {
        (self.kind == Kind::DualPipe).then(|| self.ranks - 1 - rank)
    }
    /// Whether module 0 of a rank hands its output to module 1 of the same rank.
    pub fn turns(&self, rank: usize) -> bool {
        self.kind == Kind::DualPipeV && rank == self.ranks - 1
    }
    /// The rank that a module's output goes to; none if it stays or is the last.
    pub fn next(&self, rank: usize, module: usize) -> Option<usize> {
        match module {
            0 => Some(rank + 1).filter(|&next| next < self.ranks),
            _ => rank.checked_sub(1),
        }
    }
    /// The rank that a module's input comes from; none if it stays or is the first.
    pub fn previous(&self, rank: usize, module: usize) -> Option<usize> {
        self.next(rank, 1 - module)
    }

    /// What a rank does in a step, in order.
    ///
    /// # Errors
    /// If there is no such rank.
    pub fn program(&self, rank: usize) -> Result<Vec<Step>> {
        demand(rank < self.ranks, "rank", || format!("{rank} is none of {} ranks", self.ranks))?;
        Ok(Writer::new(self, rank).write())
    }
}

/// Numbers of the next micro-batch by payload and module.
type Counters = [[usize; 2]; 2];

/// Writes the program of a rank. `phase` 0 is the module whose micro-batches the rank gets first: module 1 for the
/// second half of the ranks of [`Kind::DualPipe`].
struct Writer<'a> {
    pipeline: &'a Pipeline,
    rank: usize,
    flip: usize,
    steps: Vec<Step>,
    batch: Vec<Transfer>,
    forward: [usize; 2],
    backward: [usize; 2],
    sent: Counters,
    received: Counters,
    put_off: VecDeque<Part>,
}

impl<'a> Writer<'a> {
    fn new(pipeline: &'a Pipeline, rank: usize) -> Self {
        let second_half = pipeline.kind == Kind::DualPipe && rank >= pipeline.ranks / 2;
        Self {
            pipeline,
            rank,
            flip: usize::from(second_half),
            steps: Vec::new(),
            batch: Vec::new(),
            forward: [0; 2],
            backward: [0; 2],
            sent: Counters::default(),
            received: Counters::default(),
            put_off: VecDeque::new(),
        }
    }

    /// The eight parts of the schedule.
    fn write(mut self) -> Vec<Step> {
        let &Pipeline { kind, ranks, chunks, .. } = self.pipeline;
        let (near, half, turn, rounds) = match kind {
            Kind::DualPipe => {
                let near = self.rank.min(ranks - 1 - self.rank);
                (near, ranks / 2, near + 1 == ranks / 2, chunks / 2 - ranks + near + 1)
            }
            Kind::DualPipeV => (self.rank, ranks, self.rank + 1 == ranks, chunks - 2 * ranks + self.rank + 1),
        };
        let (far, near) = (half - near - 1, near + 1);
        (0..2 * far).for_each(|_| self.forward(0, true, true));
        self.alternate(near, turn);
        for _ in 0..far {
            self.backward(1, true, true);
            self.receive(Payload::Activation, 1);
            self.weight();
            self.forward(1, false, true);
        }
        for round in 0..rounds {
            match round == 0 {
                true if turn => self.turn(),
                first => self.overlapped(0, 1, !first),
            }
            self.overlapped(1, 0, true);
        }
        for _ in 0..far {
            self.backward(1, false, true);
            self.overlapped(1, 0, true);
        }
        self.drain(near);
        for _ in 0..far {
            self.weight();
            self.backward(0, true, true);
        }
        (0..near).for_each(|_| self.weight());
        self.exchange();
        self.steps
    }

    /// Forward passes of either phase in turn. Inputs of phase 0 are asked for one pass ahead.
    fn alternate(&mut self, times: usize, turn: bool) {
        let at_once = turn && self.pipeline.kind == Kind::DualPipe;
        self.receive(Payload::Activation, 0);
        for i in 0..times {
            self.forward(0, false, at_once);
            self.receive(Payload::Activation, 0);
            self.forward(1, true, !turn || i + 1 < times);
            if !at_once {
                self.send(Payload::Activation, 0);
            }
        }
    }

    /// Where the two phases meet first: one after the other, which leaves the smaller bubble.
    fn turn(&mut self) {
        self.forward(0, false, false);
        self.send(Payload::Activation, 1);
        self.backward(1, false, false);
        self.send(Payload::Activation, 0);
        self.send(Payload::Gradient, 1);
    }

    /// Backward passes of either phase in turn; from the middle on weight gradients are put off.
    fn drain(&mut self, times: usize) {
        let mut puts_off = false;
        for i in 0..times {
            let middle = i == times / 2;
            puts_off |= middle && times.is_multiple_of(2);
            self.backward(1, puts_off, true);
            puts_off |= middle;
            self.backward(0, puts_off, true);
        }
    }

    fn module(&self, phase: usize) -> usize {
        phase ^ self.flip
    }

    fn queue(&mut self, sends: bool, payload: Payload, phase: usize) {
        let module = self.module(phase);
        let pipeline = self.pipeline;
        let onward = sends == (payload == Payload::Activation);
        let peer =
            if onward { pipeline.next(self.rank, module) } else { pipeline.previous(self.rank, module) };
        let Some(peer) = peer else { return };
        if pipeline.forward_only && payload == Payload::Gradient {
            return;
        }
        let counters = if sends { &mut self.sent } else { &mut self.received };
        let chunk = &mut counters[payload as usize][module];
        self.batch.push(Transfer { sends, payload, part: Part { module, chunk: *chunk }, peer });
        *chunk += 1;
    }
    fn send(&mut self, payload: Payload, phase: usize) {
        self.queue(true, payload, phase);
    }
    fn receive(&mut self, payload: Payload, phase: usize) {
        self.queue(false, payload, phase);
    }

    fn exchange(&mut self) {
        if !self.batch.is_empty() {
            self.steps.push(Step::Exchange(std::mem::take(&mut self.batch)));
        }
    }
    fn compute(&mut self, compute: Compute) {
        self.steps.push(Step::Compute(compute));
    }
    fn next_forward(&mut self, phase: usize) -> Part {
        let module = self.module(phase);
        self.forward[module] += 1;
        Part { module, chunk: self.forward[module] - 1 }
    }
    fn next_backward(&mut self, phase: usize) -> Part {
        let module = self.module(phase);
        self.backward[module] += 1;
        Part { module, chunk: self.backward[module] - 1 }
    }

    fn forward(&mut self, phase: usize, receive: bool, send: bool) {
        if receive {
            self.receive(Payload::Activation, phase);
        }
        self.exchange();
        let part = self.next_forward(phase);
        self.compute(Compute::Forward(part));
        if send {
            self.send(Payload::Activation, phase);
        }
    }
    fn backward(&mut self, phase: usize, puts_off: bool, send: bool) {
        self.receive(Payload::Gradient, phase);
        self.exchange();
        if !self.pipeline.forward_only {
            let part = self.next_backward(phase);
            if puts_off {
                self.put_off.push_back(part);
                self.compute(Compute::BackwardInput(part));
            } else {
                self.compute(Compute::Backward(part));
            }
        }
        if send {
            self.send(Payload::Gradient, phase);
        }
    }
    fn overlapped(&mut self, forward: usize, backward: usize, receive: bool) {
        if receive {
            self.receive(Payload::Activation, forward);
        }
        self.receive(Payload::Gradient, backward);
        self.exchange();
        let part = self.next_forward(forward);
        let both = match self.pipeline.forward_only {
            true => Compute::Forward(part),
            false => Compute::Overlapped { forward: part, backward: self.next_backward(backward) },
        };
        self.compute(both);
        self.send(Payload::Activation, forward);
        self.send(Payload::Gradient, backward);
    }
    fn weight(&mut self) {
        if let Some(part) = self.put_off.pop_front() {
            self.exchange();
            self.compute(Compute::Weight(part));
        }
    }
}
