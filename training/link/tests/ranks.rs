//! Messages between ranks: whole, once, and an end for all if one has died.

use ember_link::{Join, Link, LinkError, Listener, MESSAGES_MAX, Tag};
use ember_rt::Addr;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);
const KEY: [u8; 32] = [9; 32];

fn listener() -> Listener {
    Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap()
}

fn join(listener: Listener, rank: usize, addresses: &[Addr], limit: Duration) -> Result<Link, LinkError> {
    Link::join(listener, &Join { rank, addresses, job: 5, key: KEY, message_max: 40 << 20, limit })
}

/// Runs a thread for each rank.
fn ranks<T: Send>(ranks: usize, work: impl Fn(Link) -> T + Sync) -> Vec<T> {
    let listeners: Vec<Listener> = (0..ranks).map(|_| listener()).collect();
    let addresses: Vec<Addr> = listeners.iter().map(|listener| listener.address().clone()).collect();
    let (addresses, work) = (&addresses, &work);
    std::thread::scope(|scope| {
        let rank =
            |(rank, listener)| scope.spawn(move || work(join(listener, rank, addresses, LONG).unwrap()));
        let threads: Vec<_> = listeners.into_iter().enumerate().map(rank).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn receive(link: &Link, rank: usize, channel: u32, number: u32) -> Result<Vec<u8>, LinkError> {
    link.receive(rank, Tag { channel, number }, "sent a message", || Ok(()))
}

fn send(link: &Link, rank: usize, channel: u32, number: u32, bytes: Vec<u8>) {
    link.send(rank, Tag { channel, number }, bytes).unwrap();
}

#[test]
fn messages_arrive_whole_and_are_found_by_their_number() {
    ranks(3, |link| {
        let bytes = |from: usize, channel: u32, length: usize| -> Vec<u8> {
            (0..length).map(|i| (i * 7 + from * 3 + channel as usize) as u8).collect()
        };
        // Several parts, one, and nothing.
        let lengths = [(0, (33 << 20) + 5), (1, 100), (2, 0)];
        let others = (0..3).filter(|rank| *rank != link.rank());
        for to in others.clone() {
            lengths.iter().for_each(|&(channel, length)| {
                send(&link, to, channel, 8, bytes(link.rank(), channel, length))
            });
        }
        for from in others {
            for (channel, length) in lengths.into_iter().rev() {
                assert!(receive(&link, from, channel, 8).unwrap() == bytes(from, channel, length));
            }
        }
        let error = link.send(link.rank(), Tag { channel: 0, number: 0 }, Vec::new()).unwrap_err();
        assert!(error.to_string().contains("or it is this one"), "{error}");
    });
}

fn leave_or_fail(link: Link) {
    match link.rank() {
        0 => send(&link, 1, 0, 0, vec![1]),
        1 => {
            // What was sent before is still there.
            assert_eq!(receive(&link, 0, 0, 0).unwrap(), [1]);
            let error = receive(&link, 0, 0, 1).unwrap_err();
            assert!(matches!(error, LinkError::Gone { rank: 0, .. }), "{error}");
            link.check().unwrap();
            link.fail(42);
        }
        _ => {
            let error = receive(&link, 1, 0, 0).unwrap_err();
            assert_eq!(error, LinkError::Ended { rank: 1, culprit: 42 });
        }
    }
}

#[test]
fn ranks_that_leave_or_fail_are_named() {
    ranks(3, |link| {
        // All are there.
        let others = || (0..3).filter(|rank| *rank != link.rank());
        others().for_each(|rank| send(&link, rank, 5, 0, vec![]));
        others().for_each(|rank| drop(receive(&link, rank, 5, 0).unwrap()));
        leave_or_fail(link);
    });
    // What the wait is told to look at ends it.
    ranks(2, |link| {
        if link.rank() == 0 {
            let checked = link.receive(1, Tag { channel: 0, number: 0 }, "come", || {
                Err(LinkError::Damaged { rank: 7, why: "of the test".into() })
            });
            assert!(matches!(checked.unwrap_err(), LinkError::Damaged { rank: 7, .. }));
            send(&link, 1, 0, 0, vec![]);
        } else {
            receive(&link, 0, 0, 0).unwrap();
        }
    });
}

#[test]
fn what_breaks_a_rule_ends_the_rank_that_sent_it() {
    for many in [true, false] {
        ranks(2, |link| {
            if link.rank() == 0 {
                match many {
                    true => (0..=MESSAGES_MAX as u32).for_each(|number| send(&link, 1, 0, number, vec![])),
                    false => send(&link, 1, 0, 0, vec![0; (40 << 20) + 1]),
                }
                let error = receive(&link, 1, 0, 0).unwrap_err();
                assert!(error.rank_is(1), "{error}");
            } else {
                let error = receive(&link, 0, 1, 0).unwrap_err();
                assert!(matches!(error, LinkError::Damaged { rank: 0, .. }), "{error}");
                link.fail(0);
            }
        });
    }
}

trait Named {
    fn rank_is(&self, rank: usize) -> bool;
}

impl Named for LinkError {
    fn rank_is(&self, expected: usize) -> bool {
        matches!(self, Self::Ended { rank, .. } | Self::Gone { rank, .. } if *rank == expected)
    }
}

#[test]
fn missing_ranks_and_strangers_are_named() {
    let (here, there) = (listener(), listener());
    let addresses = [here.address().clone(), there.address().clone()];
    // Nobody answers behind the second address: it listens, and doesn't join.
    let error = join(here, 0, &addresses, Duration::from_millis(100)).err().unwrap();
    assert!(matches!(error, LinkError::Missing { rank: 1, .. }), "{error}");
    let here = Listener::bind(&addresses[0]).unwrap();
    assert!(Listener::bind(&addresses[0]).err().unwrap().to_string().contains("cannot listen on"));
    // One that doesn't know the key is told so by the first; the right one still joins.
    let stranger = listener();
    let wrong = [addresses[0].clone(), stranger.address().clone()];
    let other = Join { rank: 1, addresses: &wrong, job: 5, key: [8; 32], message_max: 1, limit: LONG };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| join(here, 0, &addresses, LONG));
        let error = Link::join(stranger, &other).err().unwrap();
        assert!(matches!(error, LinkError::Missing { rank: 0, .. }), "{error}");
        let second = join(there, 1, &addresses, LONG).unwrap();
        let first = first.join().unwrap().unwrap();
        send(&first, 1, 0, 0, vec![3]);
        assert_eq!(receive(&second, 0, 0, 0).unwrap(), [3]);
    });
    let lone = listener();
    let address = lone.address().clone();
    assert!(join(lone, 3, &[address], LONG).err().unwrap().to_string().contains("rank 3 is none of 1"));
}
