//! The two greedy steps.

/// Items in packs of equal size.
pub(crate) struct Packed {
    /// Pack of each item.
    pub(crate) pack: Vec<usize>,
    /// Place of each item in its pack.
    pub(crate) rank: Vec<usize>,
}

/// Packs `weight.len()` items into `packs` packs of equally many: heaviest first, each into the lightest pack that
/// has room. Packs of one item take them in order.
pub(crate) fn pack_evenly(weight: &[f32], packs: usize) -> Packed {
    let room = weight.len() / packs;
    let mut packed = Packed { pack: (0..weight.len()).collect(), rank: vec![0; weight.len()] };
    if room == 1 {
        return packed;
    }
    let mut order: Vec<usize> = (0..weight.len()).collect();
    order.sort_by(|&a, &b| weight[b].total_cmp(&weight[a]));
    let mut packs = vec![(0.0f32, 0usize); packs];
    for item in order {
        let open = packs.iter_mut().enumerate().filter(|(_, (_, items))| *items < room);
        let lightest = open.min_by(|(_, (a, _)), (_, (b, _))| a.total_cmp(b));
        let Some((pack, (load, items))) = lightest else { break };
        (packed.pack[item], packed.rank[item]) = (pack, *items);
        *load += weight[item];
        *items += 1;
    }
    packed
}

/// Experts with enough replicas to fill all slots.
pub(crate) struct Replicated {
    /// Expert of each slot.
    pub(crate) expert: Vec<usize>,
    /// Number of each slot among the replicas of its expert.
    pub(crate) rank: Vec<usize>,
    /// Replicas of each expert.
    pub(crate) count: Vec<usize>,
}

/// One slot for each expert, and each further one for the expert with the greatest load per replica.
pub(crate) fn replicate(weight: &[f32], slots: usize) -> Replicated {
    let experts = weight.len();
    let mut made =
        Replicated { expert: (0..experts).collect(), rank: vec![0; experts], count: vec![1; experts] };
    for _ in experts..slots {
        let mut heaviest = 0;
        for expert in 1..experts {
            let load = |e: usize| weight[e] / made.count[e] as f32;
            if load(expert) > load(heaviest) {
                heaviest = expert;
            }
        }
        made.expert.push(heaviest);
        made.rank.push(made.count[heaviest]);
        made.count[heaviest] += 1;
    }
    made
}
