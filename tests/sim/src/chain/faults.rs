//! Faults of the chain profile.

use super::{FAULTY_MS, MS, Party, Sim};
use ember_types::TargetId;
use std::rc::Rc;

const LAST: u64 = super::REPLICAS;

impl Sim {
    pub(super) fn start_faults(self: &Rc<Self>) {
        self.after(self.draw(300, 1500) * MS, |own| own.strike());
    }

    fn strike(self: &Rc<Self>) {
        if self.healed.get() || self.now() > FAULTY_MS * MS {
            return;
        }
        self.after(self.draw(100, 2_000) * MS, |own| own.strike());
        let target = TargetId(self.draw(1, LAST));
        let name = match self.draw(0, 99) {
            0..18 => self.crash(target, false),
            18..34 => self.crash(target, true),
            34..42 => self.all_lose_power(),
            42..52 => self.stop(target),
            52..66 => self.cut(target),
            66..74 => self.weather(),
            74..82 => self.replace(target),
            82..92 => self.fill_up(target),
            _ => self.slow_down(target),
        };
        if let Some(name) = name {
            self.world.trace().count(name, 1);
        }
    }

    fn later(self: &Rc<Self>, low_ms: u64, high_ms: u64, undo: impl FnOnce(&Rc<Self>) + 'static) {
        self.after(self.draw(low_ms, high_ms) * MS, move |own| {
            if !own.healed.get() {
                undo(own);
            }
        });
    }

    fn crash(self: &Rc<Self>, target: TargetId, power: bool) -> Option<&'static str> {
        self.stop_node(target, power);
        self.later(20, 4_000, move |own| own.start_node(target));
        Some(if power { "machine lost power" } else { "process killed and restarted" })
    }

    fn all_lose_power(self: &Rc<Self>) -> Option<&'static str> {
        let spread = if self.chance(50) { 0 } else { 300 };
        for target in (1..=LAST).map(TargetId) {
            let off = self.draw(0, spread);
            self.later(off, off, move |own| own.stop_node(target, true));
            let on = off + self.draw(50, 4_000);
            self.later(on, on, move |own| own.start_node(target));
        }
        Some("whole chain lost power")
    }

    fn stop(self: &Rc<Self>, target: TargetId) -> Option<&'static str> {
        self.node(target)?.borrow_mut().paused = true;
        self.later(50, 3_000, move |own| own.resume_node(target));
        Some("process paused")
    }

    fn cut(self: &Rc<Self>, target: TargetId) -> Option<&'static str> {
        let others = [Party::Manager, Party::Clients]
            .into_iter()
            .chain((1..=LAST).map(|t| Party::Target(TargetId(t))));
        let others: Vec<Party> = others.filter(|&p| p != Party::Target(target)).collect();
        let own = Party::Target(target);
        let one_way = self.chance(50);
        let all = self.chance(25);
        let chosen = others[self.draw(0, others.len() as u64 - 1) as usize];
        let mut pairs = Vec::new();
        for &other in others.iter().filter(|&&other| all || other == chosen) {
            pairs.push((own, other));
            if !one_way {
                pairs.push((other, own));
            }
        }
        if one_way && self.chance(50) {
            pairs.iter_mut().for_each(|pair| *pair = (pair.1, pair.0));
        }
        self.blocked.borrow_mut().extend(&pairs);
        self.later(100, 4_000, move |own| own.blocked.borrow_mut().retain(|pair| !pairs.contains(pair)));
        Some(if one_way { "partition, one way" } else { "partition, both ways" })
    }

    fn weather(self: &Rc<Self>) -> Option<&'static str> {
        let (loss, late) = (self.draw(0, 10), self.draw(0, 25));
        self.loss_percent.set(loss);
        self.late_percent.set(late);
        self.later(300, 4_000, |own| {
            own.loss_percent.set(0);
            own.late_percent.set(1);
        });
        Some("network slow")
    }

    /// An empty disk in the place of one, while the two others hold everything.
    fn replace(self: &Rc<Self>, target: TargetId) -> Option<&'static str> {
        let control = self.control.borrow();
        let whole = |t: TargetId| {
            let held = control.chain().member(t).map(|m| m.generation);
            self.node(t).is_some_and(|n| n.borrow().alive && Some(n.borrow().generation) == held)
        };
        if !control.all_serve() || !(1..=LAST).map(TargetId).all(whole) {
            return None;
        }
        drop(control);
        self.stop_node(target, true);
        {
            let mut node = self.node(target)?.borrow_mut();
            node.store = super::store::Store::default();
            node.generation.0 += 1;
        }
        self.later(20, 2_000, move |own| own.start_node(target));
        Some("disk replaced by an empty one")
    }

    fn fill_up(self: &Rc<Self>, target: TargetId) -> Option<&'static str> {
        self.node(target)?.borrow_mut().full = true;
        self.later(100, 2_500, move |own| {
            if let Some(node) = own.node(target) {
                node.borrow_mut().full = false;
            }
        });
        Some("disk full")
    }

    fn slow_down(self: &Rc<Self>, target: TargetId) -> Option<&'static str> {
        self.node(target)?.borrow_mut().slow = true;
        self.later(200, 3_000, move |own| {
            if let Some(node) = own.node(target) {
                node.borrow_mut().slow = false;
            }
        });
        Some("disk slow")
    }

    /// Ends every fault.
    pub(super) fn heal(self: &Rc<Self>) {
        self.healed.set(true);
        self.blocked.borrow_mut().clear();
        self.loss_percent.set(0);
        self.late_percent.set(0);
        for target in (1..=LAST).map(TargetId) {
            if let Some(node) = self.node(target) {
                (node.borrow_mut().full, node.borrow_mut().slow) = (false, false);
            }
            self.resume_node(target);
            self.start_node(target);
        }
    }
}
