//! Changing requests, one queue per directory (or file): what has gathered while a transaction ran goes into the
//! next one together.

use crate::error::MetaError;
use crate::execute::{Call, Outcome};
use crate::service::Service;
use ember_meta_store::Error as StoreError;
use ember_rt::sync::oneshot;
use ember_types::InodeId;
use ember_types::Status;
use ember_types::collections::FixedHashMap;
use ember_wire::meta::Operation;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

type Answer = Result<Outcome, MetaError>;

struct Waiting {
    call: Call,
    answer: oneshot::Sender<Answer>,
}

/// Queues of calls; an entry exists while its transaction runs.
#[derive(Default)]
pub(crate) struct Queues(RefCell<FixedHashMap<InodeId, VecDeque<Waiting>>>);

impl Service {
    /// Runs a call in a transaction, with others of its directory that wait.
    pub(crate) async fn submit(self: &Rc<Self>, call: Call) -> Answer {
        let home = call.request.operation.home();
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { call, answer };
        let running = {
            let mut queues = self.queues.0.borrow_mut();
            let running = queues.contains_key(&home);
            queues.entry(home).or_default().push_back(waiting);
            running
        };
        if !running {
            self.rt.spawn("meta batch", self.clone().drain(home));
        }
        match answered.await {
            Ok(answer) => answer,
            Err(_) => Err(MetaError::not_now(Status::Unavailable, "the service is ending")),
        }
    }

    async fn drain(self: Rc<Self>, home: InodeId) {
        loop {
            let batch: Vec<Waiting> = {
                let mut queues = self.queues.0.borrow_mut();
                let Some(queue) = queues.get_mut(&home) else { return };
                let count = queue.len().min(self.config.batch_max.max(1));
                if count == 0 {
                    queues.remove(&home);
                    return;
                }
                queue.drain(..count).collect()
            };
            self.run_batch(batch).await;
        }
    }

    async fn run_batch(&self, batch: Vec<Waiting>) {
        let (calls, answers): (Vec<_>, Vec<_>) = batch.into_iter().map(|w| (w.call, w.answer)).unzip();
        let outcomes = match self.transact(calls.clone()).await {
            Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
            // One damaged record must fail the operation that met it alone.
            Err(MetaError::Store(StoreError::Damaged { .. })) if calls.len() > 1 => {
                let mut outcomes = Vec::with_capacity(calls.len());
                for call in calls {
                    let one = self.transact(vec![call]).await;
                    outcomes.push(one.map(|mut outcomes| outcomes.remove(0)));
                }
                outcomes
            }
            Err(error) => vec![Err(error); answers.len()],
        };
        for (answer, outcome) in answers.into_iter().zip(outcomes) {
            // Its caller may have gone.
            let _ = answer.send(outcome);
        }
    }

    async fn transact(&self, calls: Vec<Call>) -> Result<Vec<Outcome>, MetaError> {
        self.stats.transactions.inc();
        let sync = calls.iter().any(|c| matches!(c.request.operation, Operation::Sync { .. }));
        self.database
            .write(
                || self.times(),
                sync,
                async move |space, times| {
                    let mut outcomes = Vec::with_capacity(calls.len());
                    for call in &calls {
                        outcomes.push(call.execute(space, times).await?);
                    }
                    Ok(outcomes)
                },
            )
            .await
    }
}
