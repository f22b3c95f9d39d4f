//! Connections, their loss, and partitions.

use ember_rt::net::{Addr, Stream};
use ember_rt::{Buf, Rt, SharedBuf};
use ember_sim::{Crash, NetConfig, ProcessId, World};
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

const S: u64 = 1_000_000_000;

fn addr() -> Addr {
    "10.0.0.1:7000".parse().unwrap()
}

async fn read_some(stream: &mut Stream) -> io::Result<Vec<u8>> {
    let buf = Buf::scratch(4096);
    let (result, buf) = stream.reader.read(buf, 0..4096).await;
    result.map(|count| buf.whole()[..count].to_vec())
}

async fn write(stream: &mut Stream, bytes: &[u8]) -> io::Result<()> {
    stream.writer.write_all(vec![SharedBuf::from(bytes)]).await
}

type Log = Rc<RefCell<Vec<u8>>>;

/// A process that accepts, keeps what arrives in a log and sends each piece back.
fn echo(world: &World) -> (ProcessId, Log) {
    let log: Log = Rc::default();
    let seen = log.clone();
    let process = world.add_process("echo", move |rt: Rt| {
        let seen = seen.clone();
        async move {
            let mut listener = rt.net().listen(&addr()).unwrap();
            loop {
                let Ok(mut stream) = listener.accept().await else { return };
                let seen = seen.clone();
                rt.spawn("serve", async move {
                    while let Ok(bytes) = read_some(&mut stream).await {
                        seen.borrow_mut().extend(&bytes);
                        if bytes.is_empty() || write(&mut stream, &bytes).await.is_err() {
                            return;
                        }
                    }
                });
            }
        }
    });
    world.start(process);
    (process, log)
}

/// A process that sends the numbers 0..count, one each 10 ms, and gathers what comes back.
fn sender(world: &World, count: u8) -> (ProcessId, Rc<RefCell<Vec<String>>>) {
    let events: Rc<RefCell<Vec<String>>> = Rc::default();
    let seen = events.clone();
    let process = world.add_process("sender", move |rt: Rt| {
        let seen = seen.clone();
        async move {
            let mut stream = match rt.net().connect(&addr()).await {
                Ok(stream) => stream,
                Err(e) => return seen.borrow_mut().push(format!("connect {:?}", e.kind())),
            };
            let mut writer = stream.writer;
            let inner = rt.clone();
            rt.spawn("sends", async move {
                for number in 0..count {
                    if writer.write_all(vec![SharedBuf::from(&[number][..])]).await.is_err() {
                        return;
                    }
                    inner.sleep(Duration::from_millis(10)).await;
                }
                inner.sleep(Duration::from_secs(1000)).await;
            });
            loop {
                let (result, buf) = stream.reader.read(Buf::scratch(64), 0..64).await;
                match result {
                    Ok(0) => return seen.borrow_mut().push("end".to_owned()),
                    Ok(count) => {
                        seen.borrow_mut().extend(buf.whole()[..count].iter().map(u8::to_string));
                    }
                    Err(e) => return seen.borrow_mut().push(format!("{:?}", e.kind())),
                }
            }
        }
    });
    world.start(process);
    (process, events)
}

fn numbers(count: u8) -> Vec<String> {
    (0..count).map(|n| n.to_string()).collect()
}

#[test]
fn bytes_arrive_in_order_whatever_the_delays() {
    let world = World::new(5);
    world.set_net(NetConfig { late_ppm: 300_000, late_max_ns: 200_000_000, ..NetConfig::default() });
    let (_, log) = echo(&world);
    let (_, events) = sender(&world, 100);
    world.run_until(10 * S);
    assert_eq!(*log.borrow(), (0..100).collect::<Vec<u8>>());
    assert_eq!(*events.borrow(), numbers(100));
    assert!(world.trace().counters()["late messages"] > 10);
    world.tear_down();
}

#[test]
fn nobody_listens_is_refused_and_a_machine_without_power_does_not_answer() {
    let world = World::new(5);
    let (_, events) = sender(&world, 1);
    world.run_until(S);
    assert_eq!(*events.borrow(), ["connect ConnectionRefused"]);
    let (server, _) = echo(&world);
    world.run_until(2 * S);
    world.kill(server, Crash::PowerLoss);
    let (_, events) = sender(&world, 1);
    world.run_until(7 * S);
    assert!(events.borrow().is_empty());
    world.run_until(20 * S);
    assert_eq!(*events.borrow(), ["connect TimedOut"]);
    world.tear_down();
}

#[test]
fn kill_closes_connections_and_power_loss_leaves_them_half_open() {
    let world = World::new(5);
    let (server, _) = echo(&world);
    let (_, events) = sender(&world, 3);
    world.run_until(S);
    world.kill(server, Crash::Kill);
    world.run_until(2 * S);
    assert_eq!(*events.borrow(), ["0", "1", "2", "end"]);

    world.start(server);
    world.run_until(3 * S);
    let (_, quiet) = sender(&world, 3);
    world.run_until(4 * S);
    world.kill(server, Crash::PowerLoss);
    world.run_until(100 * S);
    assert_eq!(*quiet.borrow(), numbers(3));

    // Who goes on sending learns of it when the machine is back.
    world.start(server);
    world.run_until(101 * S);
    let (_, busy) = sender(&world, 255);
    world.run_until(101 * S + S / 2);
    world.kill(server, Crash::PowerLoss);
    world.run_until(102 * S);
    assert!(!busy.borrow().iter().any(|e| e.contains("Reset")));
    world.start(server);
    world.run_until(103 * S + S / 2);
    assert!(busy.borrow().iter().any(|e| e.contains("Reset")));
    world.tear_down();
}

#[test]
fn a_lost_message_breaks_the_connection_and_nothing_after_it_arrives() {
    let world = World::new(9);
    let (_, log) = echo(&world);
    let (process, events) = sender(&world, 200);
    world.run_until(S);
    assert!(world.break_connection(process, 0));
    let before = log.borrow().len();
    world.run_until(10 * S);
    assert_eq!(log.borrow().len(), before);
    assert_eq!(events.borrow().last().map(String::as_str), Some("ConnectionReset"));
    assert_eq!(world.trace().counters()["connections lost"], 1);

    world.set_net(NetConfig { loss_ppm: 50_000, ..NetConfig::default() });
    let (_, events) = sender(&world, 200);
    world.run_until(20 * S);
    assert_eq!(events.borrow().last().map(String::as_str), Some("ConnectionReset"));
    assert!(world.trace().counters()["messages lost"] > 0);
    world.tear_down();
}

/// Runs a partition of one direction for `held` nanoseconds; what the sender saw before and after it healed.
fn partition(seed: u64, to_server: bool, held: u64) -> (usize, usize, bool) {
    let world = World::new(seed);
    let (server, log) = echo(&world);
    let (client, events) = sender(&world, 200);
    world.run_until(S);
    let (from, to) = if to_server { (client, server) } else { (server, client) };
    world.set_blocked(from, to, true);
    world.run_until(S + S / 4);
    let (seen, arrived) = (events.borrow().len(), log.borrow().len());
    world.run_until(S + held);
    assert!(events.borrow().len() - seen <= 1, "nothing comes back through a partition");
    assert_eq!(log.borrow().len() == arrived, to_server, "the other direction goes on");
    world.set_blocked(from, to, false);
    world.run_until(30 * S);
    let broken = events.borrow().iter().any(|e| e == "ConnectionReset");
    let result = (seen, events.borrow().len(), broken);
    world.tear_down();
    result
}

#[test]
fn partitions_hold_messages_back_in_one_direction_and_heal_by_late_arrival_or_a_break() {
    let (mut late, mut broken) = (0, 0);
    for seed in 0..20 {
        for to_server in [true, false] {
            let (before, after, reset) = partition(seed, to_server, 2 * S);
            match reset {
                true => broken += 1,
                false => {
                    assert_eq!(after, 200);
                    late += 1;
                }
            }
            assert!(before < 130);
        }
    }
    assert!(late > 5 && broken > 5, "late {late}, broken {broken}");
    let (_, _, reset) = partition(1, true, 20 * S);
    assert!(reset, "a long partition breaks the connection");
}

#[test]
fn a_listener_frees_its_address_and_ports_are_chosen() {
    let world = World::new(1);
    let rt = world.harness_rt();
    let first = rt.net().listen(&addr()).unwrap();
    assert_eq!(rt.net().listen(&addr()).err().map(|e| e.kind()), Some(io::ErrorKind::AddrInUse));
    drop(first);
    let again = rt.net().listen(&addr()).unwrap();
    let any: Addr = "10.0.0.1:0".parse().unwrap();
    let (one, two) = (rt.net().listen(&any).unwrap(), rt.net().listen(&any).unwrap());
    assert_ne!(one.local_addr(), two.local_addr());
    assert_ne!(one.local_addr(), any);
    drop(again);
}

#[test]
fn a_full_window_makes_the_writer_wait() {
    let world = World::new(1);
    let rt = world.harness_rt();
    let sent = world.block_on(5 * S, async move {
        let mut listener = rt.net().listen(&addr()).unwrap();
        let mut near = rt.net().connect(&addr()).await.unwrap();
        let mut far = listener.accept().await.unwrap();
        let piece = SharedBuf::from(&vec![7_u8; 1 << 20][..]);
        let mut sent = 0;
        while rt.timeout(Duration::from_millis(100), near.writer.write_all(vec![piece.clone()])).await.is_ok()
        {
            sent += 1;
        }
        let mut received = 0;
        while received < sent << 20 {
            received += read_some(&mut far).await.unwrap().len();
        }
        near.writer.write_all(vec![piece]).await.unwrap();
        sent
    });
    assert_eq!(sent, Some(5));
}

#[test]
fn two_runs_of_a_seed_have_one_hash() {
    let run = |seed| {
        let world = World::new(seed);
        world.set_net(NetConfig { loss_ppm: 1000, ..NetConfig::default() });
        let (server, _) = echo(&world);
        sender(&world, 100);
        sender(&world, 100);
        world.run_until(S / 2);
        world.kill(server, Crash::PowerLoss);
        world.run_until(S);
        world.start(server);
        world.run_until(5 * S);
        let result = (world.trace().hash(), world.trace().entries());
        world.tear_down();
        result
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3).0, run(4).0);
}
