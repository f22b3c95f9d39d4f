//! Time, tasks and processes.

use ember_rt::Rt;
use ember_rt::select::{Either, select};
use ember_rt::sync::mpsc;
use ember_sim::{Crash, World};
use ember_types::Instant;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

#[test]
fn sleeps_end_in_order_of_their_times() {
    let world = World::new(1);
    let order: Rc<RefCell<Vec<u32>>> = Rc::default();
    let seen = order.clone();
    let process = world.add_process("sleeper", move |rt: Rt| {
        let seen = seen.clone();
        async move {
            for (id, ms) in [(1, 30), (2, 10), (3, 20)] {
                let (seen, inner) = (seen.clone(), rt.clone());
                rt.spawn("sleep", async move {
                    inner.sleep(Duration::from_millis(ms)).await;
                    seen.borrow_mut().push(id);
                });
            }
        }
    });
    world.start(process);
    world.run_until(1_000_000_000);
    assert_eq!(*order.borrow(), [2, 3, 1]);
    assert_eq!(world.now_ns(), 1_000_000_000);
}

#[test]
fn a_dropped_sleep_leaves_nothing_behind_and_timeouts_work() {
    let world = World::new(1);
    let rt = world.harness_rt();
    let result = world.block_on(u64::MAX / 4, async move {
        let first = select(rt.sleep(Duration::from_secs(3600)), rt.sleep(Duration::from_millis(1))).await;
        let late = rt.timeout(Duration::from_millis(5), rt.sleep(Duration::from_secs(1))).await;
        (first, late.is_err())
    });
    assert_eq!(result, Some((Either::Right(()), true)));
    assert_eq!(world.now_ns(), 6_000_000);
}

#[test]
fn clocks_of_processes_differ_within_the_bound() {
    let world = World::new(3);
    let spans: Rc<RefCell<Vec<u64>>> = Rc::default();
    for name in ["a", "b", "c", "d"] {
        let spans = spans.clone();
        let process = world.add_process(name, move |rt: Rt| {
            let spans = spans.clone();
            async move {
                let (begin, world_time) = (rt.now(), rt.unix_now());
                rt.sleep_until(begin + Duration::from_secs(100)).await;
                let passed = rt.unix_now();
                spans.borrow_mut().push(
                    (passed.seconds - world_time.seconds) as u64 * 1_000_000 + u64::from(passed.nanos / 1000),
                );
            }
        });
        world.start(process);
    }
    world.run_until(200_000_000_000);
    let spans = spans.borrow();
    assert_eq!(spans.len(), 4);
    assert!(spans.iter().all(|us| us.abs_diff(100_000_000) <= 201_000), "{spans:?}");
    assert!(spans.iter().any(|us| us.abs_diff(100_000_000) > 1_000), "{spans:?}");
}

#[test]
fn a_change_of_drift_never_turns_a_clock_back() {
    let world = World::new(3);
    let times: Rc<RefCell<Vec<Instant>>> = Rc::default();
    let seen = times.clone();
    let process = world.add_process("a", move |rt: Rt| {
        let seen = seen.clone();
        async move {
            for _ in 0..100 {
                rt.sleep(Duration::from_millis(10)).await;
                seen.borrow_mut().push(rt.now());
            }
        }
    });
    world.start(process);
    for step in 1..20 {
        world.run_until(step * 50_000_000);
        world.set_drift(process, if step % 2 == 0 { 2000 } else { -2000 });
    }
    world.run_until(3_000_000_000);
    let times = times.borrow();
    assert_eq!(times.len(), 100);
    for pair in times.windows(2) {
        assert!((9_900_000..11_000_000).contains(&(pair[1].0 - pair[0].0)), "{pair:?}");
    }
}

struct Dropped(Rc<Cell<u32>>);
impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

#[test]
fn kill_drops_every_task_and_start_runs_main_again() {
    let world = World::new(1);
    let (drops, starts) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let (seen, begun) = (drops.clone(), starts.clone());
    let process = world.add_process("p", move |rt: Rt| {
        begun.set(begun.get() + 1);
        let seen = seen.clone();
        async move {
            for _ in 0..3 {
                let (guard, inner) = (Dropped(seen.clone()), rt.clone());
                rt.spawn("waits", async move {
                    inner.sleep(Duration::from_secs(1000)).await;
                    drop(guard);
                });
            }
            // A task whose end wakes another one of the same process while both are dropped.
            let (sender, mut receiver) = mpsc::channel::<()>(1);
            rt.spawn("receives", async move { while receiver.recv().await.is_some() {} });
            rt.sleep(Duration::from_secs(2000)).await;
            drop(sender);
        }
    });
    world.start(process);
    world.run_until(1_000_000);
    assert_eq!(drops.get(), 0);
    world.kill(process, Crash::Kill);
    assert_eq!((drops.get(), world.is_alive(process)), (3, false));
    world.run_until(2_000_000);
    world.start(process);
    world.run_until(3_000_000);
    assert_eq!(starts.get(), 2);
    world.tear_down();
    assert_eq!(drops.get(), 6);
}

#[test]
fn a_paused_process_stands_still_while_its_clock_goes_on() {
    let world = World::new(1);
    let ticks: Rc<RefCell<Vec<u64>>> = Rc::default();
    let seen = ticks.clone();
    let process = world.add_process("p", move |rt: Rt| {
        let seen = seen.clone();
        async move {
            loop {
                rt.sleep(Duration::from_millis(100)).await;
                seen.borrow_mut().push(rt.now().0);
            }
        }
    });
    world.start(process);
    world.run_until(1_050_000_000);
    assert!((9..=10).contains(&ticks.borrow().len()));
    world.pause(process);
    world.run_until(5_000_000_000);
    assert!((9..=10).contains(&ticks.borrow().len()));
    world.resume(process);
    world.run_until(5_001_000_000);
    let ticks = ticks.borrow();
    assert!((10..=11).contains(&ticks.len()));
    assert!(ticks[ticks.len() - 1] - ticks[ticks.len() - 2] > 3_800_000_000);
}

#[test]
fn blocking_work_runs_after_a_while_and_answers() {
    let world = World::new(1);
    let rt = world.harness_rt();
    let answer = world.block_on(1_000_000_000, async move { rt.blocking("sum", || async { 1 + 2 }).await });
    assert_eq!(answer, Some(Ok(3)));
    assert!(world.now_ns() >= 5_000);
}

#[test]
fn a_loop_without_time_is_reported() {
    let world = World::new(1);
    let process = world.add_process("loops", |_: Rt| async {
        loop {
            std::future::poll_fn(|cx| {
                cx.waker().wake_by_ref();
                std::task::Poll::<()>::Pending
            })
            .await;
        }
    });
    world.start(process);
    world.run_until(1_000_000_000);
    assert!(world.failure().is_some_and(|f| f.contains("time stands still while main")));
}

#[test]
fn one_seed_draws_the_same_numbers_in_each_run_and_other_ones_in_each_start() {
    let run = |seed| {
        let world = World::new(seed);
        let drawn: Rc<RefCell<Vec<u64>>> = Rc::default();
        let seen = drawn.clone();
        let process = world.add_process("p", move |rt: Rt| {
            let seen = seen.clone();
            async move { seen.borrow_mut().push(rt.random_u64()) }
        });
        world.start(process);
        world.run_until(1);
        world.kill(process, Crash::Kill);
        world.start(process);
        world.run_until(2);
        let drawn = drawn.borrow().clone();
        (drawn, world.trace().hash())
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7).1, run(8).1);
    let drawn = run(7).0;
    assert_ne!(drawn[0], drawn[1]);
}
