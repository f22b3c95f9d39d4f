//! Reactors, streams and the blocking pool on the real kernel.
#![allow(missing_docs)]

use ember_rt::net::{Listener, Stream};
use ember_rt::select::{Either, select};
use ember_rt::{Addr, Buf, Rt, SharedBuf};
use ember_rt_uring::{Options, probe, run_reactor, spawn_reactor};
use std::time::Duration;

fn reactor<T, F: Future<Output = T>>(main: impl FnOnce(Rt) -> F) -> T {
    run_reactor(&Options::default(), main).unwrap()
}

fn socket_path(name: &str) -> Addr {
    Addr::Unix(std::env::temp_dir().join(format!("ember-rt-{}-{name}.sock", std::process::id())))
}

async fn read_exact(stream: &mut Stream, len: usize) -> Buf {
    let mut buf = Buf::scratch(len);
    let mut at = 0;
    while at < len {
        let (read, back) = stream.reader.read(buf, at..len).await;
        buf = back;
        let read = read.unwrap();
        assert_ne!(read, 0, "closed after {at} of {len} bytes");
        at += read;
    }
    buf
}

async fn echo(mut stream: Stream) {
    let mut buf = Buf::scratch(300_000);
    loop {
        let (read, back) = stream.reader.read(buf, 0..300_000).await;
        buf = back;
        match read {
            Ok(0) | Err(_) => return,
            Ok(read) => stream.writer.write_all(vec![(&buf.whole()[..read]).into()]).await.unwrap(),
        }
    }
}

async fn echo_large_and_small(rt: &Rt, addr: Addr) {
    let mut listener: Box<dyn Listener> = rt.net().listen(&addr).unwrap();
    let addr = listener.local_addr();
    rt.spawn("echo", async move { echo(listener.accept().await.unwrap()).await });
    let Stream { reader, mut writer, peer } = rt.net().connect(&addr).await.unwrap();
    let mut receive = Stream { reader, writer: Box::new(NoWriter), peer };
    let big = Buf::copy_from(&(0..5_000_000_u32).map(|i| (i ^ (i >> 9)) as u8).collect::<Vec<_>>());
    let big = SharedBuf::from(big);
    let parts: Vec<SharedBuf> =
        (0..100).map(|i| big.slice(i * 50_000..(i + 1) * 50_000)).chain([SharedBuf::default()]).collect();
    let sent = big.clone();
    rt.spawn("send", async move {
        writer.write_all(parts).await.unwrap();
        writer.write_all(vec![b"end"[..].into()]).await.unwrap();
        // Kept until everything was read.
        let () = std::future::pending().await;
        drop(writer);
    });
    assert!(*read_exact(&mut receive, sent.len()).await == *sent);
    assert_eq!(&read_exact(&mut receive, 3).await[..], b"end");
}

struct NoWriter;

impl ember_rt::net::StreamWriter for NoWriter {
    fn write_all(&mut self, _: Vec<SharedBuf>) -> ember_rt::LocalBoxFuture<'_, std::io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
    fn shutdown(&mut self) {}
}

#[test]
fn this_kernel_has_io_uring() {
    probe().unwrap();
}

#[test]
fn tcp_carries_bytes_in_order() {
    reactor(async |rt| echo_large_and_small(&rt, "127.0.0.1:0".parse().unwrap()).await);
    reactor(async |rt| echo_large_and_small(&rt, "[::1]:0".parse().unwrap()).await);
}

#[test]
fn unix_sockets_carry_bytes_in_order() {
    reactor(async |rt| echo_large_and_small(&rt, socket_path("echo")).await);
}

#[test]
fn shutdown_ends_a_pending_read() {
    for addr in ["127.0.0.1:0".parse().unwrap(), socket_path("shutdown")] {
        reactor(async |rt: Rt| {
            let mut listener = rt.net().listen(&addr).unwrap();
            let addr = listener.local_addr();
            let Stream { mut reader, mut writer, .. } = rt.net().connect(&addr).await.unwrap();
            let _other = listener.accept().await.unwrap();
            let clock = rt.clone();
            rt.spawn("shutdown", async move {
                clock.sleep(Duration::from_millis(20)).await;
                writer.shutdown();
                clock.sleep(Duration::from_secs(5)).await;
            });
            let read = reader.read(Buf::scratch(100), 0..100);
            let (read, buf) = rt.timeout(Duration::from_secs(2), read).await.expect("the read ends");
            assert!(matches!(read, Ok(0) | Err(_)));
            assert_eq!(buf.capacity(), 4096);
        });
    }
}

#[test]
fn a_dropped_accept_loses_no_connection() {
    reactor(async |rt: Rt| {
        let mut listener = rt.net().listen(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = listener.local_addr();
        assert!(rt.timeout(Duration::from_millis(10), listener.accept()).await.is_err());
        let _client = rt.net().connect(&addr).await.unwrap();
        assert!(rt.timeout(Duration::from_secs(2), listener.accept()).await.is_ok());
    });
}

#[test]
fn a_taken_address_is_refused_with_a_remedy_and_a_stale_socket_replaced() {
    reactor(async |rt: Rt| {
        let listener = rt.net().listen(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = listener.local_addr();
        let refused = rt.net().listen(&addr).err().unwrap().to_string();
        assert!(refused.contains(&addr.to_string()) && refused.contains("choose another port"), "{refused}");

        let addr = socket_path("stale");
        let Addr::Unix(path) = &addr else { panic!("a Unix address") };
        drop(std::os::unix::net::UnixListener::bind(path).unwrap());
        assert!(path.exists(), "std leaves the file behind");
        let listener = rt.net().listen(&addr).unwrap();
        let refused = rt.net().listen(&addr).err().unwrap();
        assert_eq!(refused.kind(), std::io::ErrorKind::AddrInUse);
        drop(listener);
        assert!(!path.exists(), "a listener takes its file away");

        std::fs::write(path, b"precious").unwrap();
        let refused = rt.net().listen(&addr).err().unwrap().to_string();
        assert!(refused.contains("not a socket"), "{refused}");
        assert_eq!(std::fs::read(path).unwrap(), b"precious");
        std::fs::remove_file(path).unwrap();

        let nobody = rt.net().connect(&addr).await.err().unwrap();
        assert_eq!(nobody.kind(), std::io::ErrorKind::NotFound);
        let long = Addr::Unix(format!("/{}", "x".repeat(200)).into());
        assert!(rt.net().listen(&long).err().unwrap().to_string().contains("shorter"));
    });
}

#[test]
fn clocks_go_on() {
    reactor(async |rt: Rt| {
        let before = rt.now();
        rt.sleep(Duration::from_millis(30)).await;
        let passed = rt.now().since(before);
        assert!(passed >= Duration::from_millis(30) && passed < Duration::from_secs(2), "{passed:?}");
        assert!(rt.unix_now().seconds > 1_600_000_000);
        assert_ne!(rt.random_u128(), rt.random_u128());
    });
}

#[test]
fn blocking_work_runs_beside_the_reactor() {
    reactor(async |rt: Rt| {
        let started = rt.now();
        let sleepers = (0..4).map(|i| {
            rt.blocking("sleep", move || async move {
                std::thread::park_timeout(Duration::from_millis(100));
                i
            })
        });
        let all = ember_rt::select::join_all(sleepers);
        let ticks = async {
            loop {
                rt.sleep(Duration::from_millis(5)).await;
            }
        };
        match select(all, ticks).await {
            Either::Left(results) => assert_eq!(results, [Ok(0), Ok(1), Ok(2), Ok(3)]),
            Either::Right(()) => unreachable!("an endless loop"),
        }
        assert!(rt.now().since(started) < Duration::from_millis(390), "side by side");
        let panicked: Result<(), _> = rt.blocking("panic", || async { panic!("planned") }).await;
        assert!(panicked.is_err());
        assert_eq!(rt.blocking("after", || async { 7 }).await, Ok(7));
    });
}

#[test]
fn a_reactor_on_its_own_thread_returns_its_result() {
    let cpu = rustix::thread::sched_getcpu();
    let options = Options { cpu: Some(cpu), ..Options::default() };
    let lane = spawn_reactor("lane", options, |rt: Rt| async move {
        rt.sleep(Duration::from_millis(1)).await;
        rustix::thread::sched_getcpu()
    });
    assert_eq!(lane.unwrap().join().unwrap(), cpu);
    let nowhere = Options { cpu: Some(1_000_000), ..Options::default() };
    let lane = spawn_reactor("nowhere", nowhere, |_| async {}).unwrap();
    assert!(lane.join().unwrap_err().to_string().contains("1000000"));
}

#[test]
fn a_panic_in_a_task_ends_its_reactor() {
    let lane = spawn_reactor("doomed", Options::default(), |rt: Rt| async move {
        rt.spawn("panics", async { panic!("planned") });
        std::future::pending::<()>().await;
    });
    let why = lane.unwrap().join().unwrap_err().to_string();
    assert!(why.contains("doomed") && why.contains("planned"), "{why}");
}
