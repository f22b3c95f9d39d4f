//! Collection, renewal, settlement.

use super::*;
use crate::sweep::Sweep;

const HOLD: Duration = Duration::from_secs(30 + 2 + 5);

impl Bench {
    async fn collect(&self) {
        while self.service.collect_page().await.unwrap() {}
    }

    async fn renew(&self, opens: Vec<(InodeId, SessionId)>, writers: Vec<SessionId>) -> Vec<Status> {
        let response = self.ask(Operation::Renew { opens, writers }).await;
        let Answer::Renewed { opens, .. } = response.result else { panic!("{response:?}") };
        assert!(opens.iter().all(|o| o.capability.is_some() == (o.status == Status::Ok)));
        opens.iter().map(|o| o.status).collect()
    }
}

#[test]
fn r18_removed_data_go_after_the_last_capability() {
    run(async |rt| {
        let bench = Bench::new(rt.clone()).await;
        let f = bench.file("f", 3000).await;
        let reader = OpenFlags { read: true, ..Default::default() };
        bench.entry(open(f.inode, 7, reader)).await;
        bench.entry(unlink("f")).await;
        for _ in 0..6 {
            rt.sleep(Duration::from_secs(15)).await;
            assert_eq!(bench.renew(vec![(f.inode, session(7))], vec![]).await, [Status::Ok]);
            bench.collect().await;
            assert!(bench.storage.cuts.borrow().is_empty());
        }
        rt.sleep(HOLD - Duration::from_secs(1)).await;
        bench.collect().await;
        assert!(bench.storage.cuts.borrow().is_empty());
        rt.sleep(Duration::from_secs(3)).await;
        bench.collect().await;
        bench.collect().await;
        assert_eq!(*bench.storage.cuts.borrow(), [Cut { data: f.data, from: 0, extent: 3000 }]);
        assert_eq!(bench.renew(vec![(f.inode, session(7))], vec![]).await, [Status::Stale]);
        assert_eq!(bench.ask(Operation::GetAttributes { inode: f.inode }).await.status, Status::Stale);
    });
}

#[test]
fn r18_a_renewal_of_an_unlinked_file_is_durable() {
    run(async |rt| {
        let bench = Bench::new(rt.clone()).await;
        let f = bench.file("f", 3000).await;
        bench.entry(unlink("f")).await;
        rt.sleep(Duration::from_secs(20)).await;
        bench.renew(vec![(f.inode, session(7))], vec![]).await;
        bench.kv.power_loss(|durable, _| durable);
        rt.sleep(Duration::from_secs(20)).await;
        bench.collect().await;
        assert!(bench.storage.cuts.borrow().is_empty());
    });
}

#[test]
fn r03_storage_hears_nothing_of_a_removal_that_was_forgotten() {
    run(async |rt| {
        let bench = Bench::new(rt.clone()).await;
        let f = bench.file("f", 3000).await;
        bench.entry(Operation::Sync { inode: ROOT, written: None }).await;
        bench.entry(unlink("f")).await;
        bench.kv.power_loss(|durable, _| durable);
        rt.sleep(HOLD * 2).await;
        bench.collect().await;
        assert!(bench.storage.cuts.borrow().is_empty());
        assert_eq!(bench.entry(lookup("f")).await.inode, f.inode);
    });
}

#[test]
fn collection_goes_on_after_storage_failed() {
    run(async |rt| {
        let bench = Bench::new(rt.clone()).await;
        for i in 0..50 {
            bench.file(&format!("f{i}"), 10).await;
            bench.entry(unlink(&format!("f{i}"))).await;
        }
        rt.sleep(HOLD * 2).await;
        bench.storage.failing.set(true);
        assert!(bench.service.collect_page().await.is_err());
        bench.storage.failing.set(false);
        bench.collect().await;
        assert_eq!(bench.storage.cuts.borrow().len(), 50);
        assert_eq!(bench.service.stats.collected.get(), 50);
        let Answer::Totals(totals) = bench.ask(Operation::StatFs).await.result else { panic!() };
        assert_eq!(totals.inodes, 1);
    });
}

#[test]
fn servers_share_the_collection() {
    run(async |rt| {
        let bench = Bench::new(rt.clone()).await;
        let kv = bench.kv.clone();
        let other = Bench::over(rt.clone(), kv.clone(), Arc::new(kv), MetaConfig::default(), BOOT + 1).await;
        let mut view = routing();
        let mut second = view.nodes[&NodeId(3)].clone();
        (second.id, second.boot) = (NodeId(4), BootId(BOOT + 1));
        view.nodes.insert(second.id, second);
        for b in [&bench, &other] {
            *b.cluster.view.borrow_mut() = Rc::new(view.clone());
        }
        for i in 0..40 {
            bench.file(&format!("f{i}"), 10).await;
            bench.entry(unlink(&format!("f{i}"))).await;
        }
        rt.sleep(HOLD + Duration::from_secs(5)).await;
        bench.collect().await;
        let own = bench.storage.cuts.borrow().len();
        assert!(own > 0 && own < 40, "{own}");
        other.collect().await;
        assert_eq!(own + other.storage.cuts.borrow().len(), 40);
    });
}

#[test]
fn r19_a_dead_writers_file_gets_its_length() {
    run(async |rt| {
        let bench = Bench::new(rt.clone()).await;
        let f = bench.entry(create("f", 1)).await;
        bench.storage.lengths.borrow_mut().insert(f.data, 4096);
        let mut sweep = Sweep::default();
        for _ in 0..8 {
            rt.sleep(Duration::from_secs(15)).await;
            bench.renew(vec![(f.inode, session(1))], vec![session(1)]).await;
            bench.service.sweep_once(&mut sweep).await.unwrap();
        }
        assert_eq!(bench.stat(f.inode).await.length, 0, "its writer lives");
        rt.sleep(Duration::from_secs(40)).await;
        bench.service.sweep_once(&mut sweep).await.unwrap();
        assert_eq!(bench.stat(f.inode).await.length, 4096);
        assert_eq!(bench.service.stats.settled.get(), 1);
    });
}

#[test]
fn r19_after_an_outage_writers_get_time_to_renew() {
    run(async |rt| {
        let bench = Bench::new(rt.clone()).await;
        let f = bench.entry(create("f", 1)).await;
        bench.storage.lengths.borrow_mut().insert(f.data, 4096);
        let mut sweep = Sweep::default();
        bench.service.sweep_once(&mut sweep).await.unwrap();
        rt.sleep(Duration::from_secs(300)).await;
        bench.cluster.lease.set(false);
        bench.service.sweep_once(&mut sweep).await.unwrap();
        bench.cluster.lease.set(true);
        bench.service.sweep_once(&mut sweep).await.unwrap();
        assert_eq!(bench.service.stats.settled.get(), 0);
        bench.renew(vec![(f.inode, session(1))], vec![session(1)]).await;
        rt.sleep(Duration::from_secs(31)).await;
        bench.service.sweep_once(&mut sweep).await.unwrap();
        assert_eq!(bench.service.stats.settled.get(), 0);
    });
}

#[test]
fn r19_another_server_completes_a_truncation() {
    run(async |rt| {
        let bench = Bench::new(rt.clone()).await;
        let kv = bench.kv.clone();
        let other = Bench::over(rt.clone(), kv.clone(), Arc::new(kv), MetaConfig::default(), BOOT + 1).await;
        let f = bench.file("f", 5000).await;
        bench.storage.takes.set(Duration::from_secs(3600));
        let set = ember_wire::meta::SetAttributes { length: Some(9), ..Default::default() };
        let cut = bench.request(999, Operation::SetAttributes { inode: f.inode, set });
        let service = bench.service.clone();
        // Its server hangs half-way.
        rt.spawn("hanging", async move {
            service.answer(cut).await;
        });
        rt.sleep(Duration::from_secs(1)).await;
        let mut sweep = Sweep::default();
        other.service.sweep_once(&mut sweep).await.unwrap();
        assert!(other.storage.cuts.borrow().is_empty(), "the first one may still cut");
        rt.sleep(Duration::from_secs(30)).await;
        other.service.sweep_once(&mut sweep).await.unwrap();
        assert_eq!(*other.storage.cuts.borrow(), [Cut { data: f.data, from: 9, extent: 5000 }]);
        assert_eq!(other.stat(f.inode).await.truncating_to, None);
    });
}

#[test]
fn old_answers_are_forgotten() {
    run(async |rt| {
        let bench = Bench::new(rt.clone()).await;
        let request = bench.request(5, mkdir("d"));
        bench.service.answer(request.clone()).await;
        let mut sweep = Sweep::default();
        bench.service.sweep_once(&mut sweep).await.unwrap();
        rt.sleep(Duration::from_secs(1000)).await;
        bench.service.sweep_once(&mut sweep).await.unwrap();
        assert_eq!(bench.service.answer(request.clone()).await.status, Status::Ok);
        rt.sleep(Duration::from_secs(1000)).await;
        bench.service.sweep_once(&mut sweep).await.unwrap();
        assert_eq!(bench.service.answer(request).await.status, Status::Exists);
    });
}
