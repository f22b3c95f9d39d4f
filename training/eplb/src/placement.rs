//! Where the replicas are.

use crate::{Result, demand};

/// For each layer, which expert each physical slot holds. Slots are numbered over all GPUs: each has
/// `slots / gpus` that follow each other. All tables are row-major, a row a layer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    pub(crate) layers: usize,
    pub(crate) experts: usize,
    pub(crate) slots: usize,
    pub(crate) phy2log: Vec<i64>,
    pub(crate) log2phy: Vec<i64>,
    pub(crate) logcnt: Vec<i64>,
}

impl Placement {
    /// Of layers whose slots are given by expert and number of the replica.
    pub(crate) fn new(experts: usize, layers: &[Vec<(usize, usize)>]) -> Self {
        let slots = layers.first().map_or(0, Vec::len);
        let mut logcnt = vec![0i64; layers.len() * experts];
        for (layer, row) in layers.iter().enumerate() {
            row.iter().for_each(|(expert, _)| logcnt[layer * experts + expert] += 1);
        }
        let most = logcnt.iter().copied().max().unwrap_or(0) as usize;
        let mut log2phy = vec![-1; layers.len() * experts * most];
        for (layer, row) in layers.iter().enumerate() {
            for (slot, (expert, replica)) in row.iter().enumerate() {
                log2phy[(layer * experts + expert) * most + replica] = slot as i64;
            }
        }
        let phy2log = layers.iter().flatten().map(|&(expert, _)| expert as i64).collect();
        Self { layers: layers.len(), experts, slots, phy2log, log2phy, logcnt }
    }

    /// Of slots whose experts are known: `layers` gives the expert in each slot of each layer. The replicas of an
    /// expert are numbered in the order of their slots.
    ///
    /// # Errors
    /// If layers have different numbers of slots, or an expert has none or doesn't exist.
    pub fn from_slots(experts: usize, layers: &[Vec<usize>]) -> Result<Self> {
        let slots = layers.first().map_or(0, Vec::len);
        let mut numbered = Vec::with_capacity(layers.len());
        for (layer, row) in layers.iter().enumerate() {
            demand(row.len() == slots, "layers", || {
                format!("layer {layer} has {} slots, the first one {slots}", row.len())
            })?;
            let mut replicas = vec![0; experts];
            let mut places = Vec::with_capacity(slots);
            for &expert in row {
                let replica = replicas.get_mut(expert);
                demand(replica.is_some(), "layers", || {
                    format!("expert {expert} in layer {layer} is none of {experts}")
                })?;
                replica.into_iter().for_each(|next| {
                    places.push((expert, *next));
                    *next += 1;
                });
            }
            let without = replicas.iter().position(|count| *count == 0);
            demand(without.is_none(), "layers", || {
                format!("expert {} has no slot in layer {layer}", without.unwrap_or(0))
            })?;
            numbered.push(places);
        }
        Ok(Self::new(experts, &numbered))
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers
    }
    /// Number of logical experts of a layer.
    pub fn experts(&self) -> usize {
        self.experts
    }
    /// Number of physical slots of a layer.
    pub fn slots(&self) -> usize {
        self.slots
    }
    /// Most replicas that an expert of any layer has: the last dimension of [`Self::log2phy`].
    pub fn replicas_max(&self) -> usize {
        self.log2phy.len().checked_div(self.layers * self.experts).unwrap_or(0)
    }
    /// `[layers, slots]`: the expert in each slot.
    pub fn phy2log(&self) -> &[i64] {
        &self.phy2log
    }
    /// `[layers, experts, replicas_max]`: the slots of each expert, -1 behind the last.
    pub fn log2phy(&self) -> &[i64] {
        &self.log2phy
    }
    /// `[layers, experts]`: the number of replicas.
    pub fn logcnt(&self) -> &[i64] {
        &self.logcnt
    }
    /// The slots of a layer.
    pub fn layer(&self, layer: usize) -> &[i64] {
        &self.phy2log[layer * self.slots..][..self.slots]
    }

    /// `[layers, gpus]`: load of each GPU if the load of an expert (`weight[layers, experts]`) is divided evenly among
    /// its replicas.
    ///
    /// # Errors
    /// If `weight` has another shape, or the slots can't be divided among `gpus`.
    pub fn gpu_loads(&self, weight: &[f32], gpus: usize) -> Result<Vec<f64>> {
        demand(weight.len() == self.layers * self.experts, "weight", || {
            format!("has {} values for {} layers of {} experts", weight.len(), self.layers, self.experts)
        })?;
        demand(gpus > 0 && self.slots.is_multiple_of(gpus), "gpus", || {
            format!("{} slots can't be divided among {gpus} GPUs", self.slots)
        })?;
        let each = self.slots / gpus;
        let load = |layer: usize, expert: i64| {
            let at = layer * self.experts + expert as usize;
            f64::from(weight[at]) / self.logcnt[at] as f64
        };
        let gpu = |layer: usize, slots: &[i64]| slots.iter().map(|&expert| load(layer, expert)).sum::<f64>();
        Ok((0..self.layers)
            .flat_map(|layer| self.layer(layer).chunks(each).map(move |slots| (layer, slots)))
            .map(|(layer, slots)| gpu(layer, slots))
            .collect())
    }
}
