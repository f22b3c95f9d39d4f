//! How much a caller may have open at a peer, by class (R15). The numbers are part of protocol 1: the caller
//! waits for a credit before it sends, the listener closes a connection that exceeds them.
//!
//! Forwards have credits of their own for each position in the chain: a forward to the third replica never
//! waits for one to the second, so forwards of chains that cross each other can't wait in a circle.

use ember_types::mutant;
use ember_wire::Class;

/// Positions in a chain that have their own credits; later ones share the last.
pub const POSITIONS: usize = 8;
/// Number of [`lane`]s.
pub const LANES: usize = 4 + POSITIONS;
/// Payload bytes open per lane.
pub const BYTES_MAX: usize = 128 << 20;
/// Bytes that one permit of a lane's byte credit stands for.
pub const BYTES_PER_PERMIT: usize = 1024;

/// The lane of a class: 0 is the most urgent. `position` counts for forwards alone; later positions are more
/// urgent.
pub fn lane(class: Class, position: u8) -> usize {
    match class {
        Class::Control => 0,
        Class::Forward if mutant!(r15_forwards_share_a_lane) => POSITIONS,
        Class::Forward => POSITIONS - usize::from(position).min(POSITIONS - 1),
        Class::Write => POSITIONS + 1,
        Class::Read => POSITIONS + 2,
        Class::Background => POSITIONS + 3,
    }
}

/// Requests that one lane of a class may have open.
pub fn requests_max(class: Class) -> usize {
    match class {
        Class::Control => 256,
        Class::Forward | Class::Write | Class::Background => 64,
        Class::Read => 128,
    }
}

/// Lanes of a class.
fn lanes(class: Class) -> usize {
    if class == Class::Forward { POSITIONS } else { 1 }
}

/// The class of a lane.
pub fn class_of(lane: usize) -> Class {
    match lane {
        0 => Class::Control,
        _ if lane <= POSITIONS => Class::Forward,
        _ if lane == POSITIONS + 1 => Class::Write,
        _ if lane == POSITIONS + 2 => Class::Read,
        _ => Class::Background,
    }
}

/// Permits that `bytes` of payload take.
pub fn permits(bytes: usize) -> u32 {
    bytes.div_ceil(BYTES_PER_PERMIT).min(BYTES_MAX / BYTES_PER_PERMIT) as u32
}

/// What a listener counts per connection.
#[derive(Default, Debug)]
pub struct Ledger {
    requests: [usize; Class::ALL.len()],
    permits: [usize; Class::ALL.len()],
}

impl Ledger {
    /// Counts a request in; an error says which limit it exceeds.
    pub fn open(&mut self, class: Class, payload: usize) -> Result<(), String> {
        let (requests, bytes) = (lanes(class) * requests_max(class), lanes(class) * BYTES_MAX);
        let at = class as usize;
        let permits = self.permits[at] + permits(payload) as usize;
        if self.requests[at] >= requests && !mutant!(r15_credits_not_counted) {
            return Err(format!("more than {requests} open requests of class {class:?}"));
        }
        if permits > bytes / BYTES_PER_PERMIT {
            return Err(format!("more than {bytes} open payload bytes of class {class:?}"));
        }
        self.requests[at] += 1;
        self.permits[at] = permits;
        Ok(())
    }

    /// Counts a request out.
    pub fn close(&mut self, class: Class, payload: usize) {
        self.requests[class as usize] -= 1;
        self.permits[class as usize] -= permits(payload) as usize;
    }

    /// Open requests of a class.
    pub fn requests(&self, class: Class) -> usize {
        self.requests[class as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r15_each_class_and_position_has_its_own_lane() {
        let mut all: Vec<usize> = (0..POSITIONS as u8).map(|p| lane(Class::Forward, p)).collect();
        assert!(all.windows(2).all(|w| w[0] > w[1]), "later positions first: {all:?}");
        all.extend([Class::Control, Class::Write, Class::Read, Class::Background].map(|c| lane(c, 0)));
        all.sort_unstable();
        assert_eq!(all, (0..LANES).collect::<Vec<_>>());
        for class in Class::ALL {
            assert_eq!(class_of(lane(class, 3)), class);
        }
        assert_eq!(lane(Class::Forward, 200), lane(Class::Forward, 7));
    }

    #[test]
    fn the_ledger_refuses_what_exceeds_a_class_and_no_other() {
        let mut ledger = Ledger::default();
        for _ in 0..64 {
            ledger.open(Class::Write, 1 << 20).unwrap();
        }
        assert!(ledger.open(Class::Write, 0).unwrap_err().contains("64 open requests"));
        ledger.close(Class::Write, 1 << 20);
        ledger.open(Class::Write, 0).unwrap();
        ledger.open(Class::Background, BYTES_MAX).unwrap();
        assert!(ledger.open(Class::Background, 1).unwrap_err().contains("payload bytes"));
        ledger.open(Class::Control, 0).unwrap();
        assert_eq!(ledger.requests(Class::Write), 64);
    }
}
