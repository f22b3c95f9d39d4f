use super::*;
use crate::request::WINDOW;

const CLIENT: ClientId = ClientId([3; 16]);

fn remember(w: &mut World, sequence: u64) {
    w.run(async |s, env, _| {
        s.remember(CLIENT, sequence, env.cluster, sequence.to_le_bytes().to_vec());
        Ok(())
    })
    .unwrap();
}

fn repeated(w: &mut World, sequence: u64) -> Result<Option<Vec<u8>>> {
    w.run(async |s, _, _| s.repeated(CLIENT, sequence).await)
}

#[test]
fn a_repeat_gets_the_stored_answer_and_an_overtaken_one_none() {
    let mut w = World::new();
    refused(repeated(&mut w, 0), Status::InvalidArgument);
    assert_eq!(repeated(&mut w, 1).unwrap(), None);
    remember(&mut w, 1);
    assert_eq!(repeated(&mut w, 1).unwrap(), Some(1u64.to_le_bytes().to_vec()));
    assert_eq!(repeated(&mut w, 1 + WINDOW).unwrap(), None);
    remember(&mut w, 1 + WINDOW);
    refused(repeated(&mut w, 1), Status::StaleSequence);
    let other = w.run(async |s, _, _| s.repeated(ClientId([4; 16]), 1).await).unwrap();
    assert_eq!(other, None);
}

#[test]
fn records_go_by_age_and_with_their_client() {
    let mut w = World::new();
    for sequence in 1..=10 {
        remember(&mut w, sequence);
    }
    let before = ClusterTime((w.seconds as u64 - 4) * 1000);
    let (mut gone, mut after) = (0, Vec::new());
    loop {
        let page = after.clone();
        let (n, next) = w.run(async |s, _, _| s.forget_requests(&page, 3, before).await).unwrap();
        gone += n;
        match next {
            Some(key) => after = key,
            None => break,
        }
    }
    assert_eq!(gone, 5);
    assert_eq!(repeated(&mut w, 5).unwrap(), None);
    assert!(repeated(&mut w, 6).unwrap().is_some());
    w.run(async |s, _, _| {
        s.forget_client(CLIENT);
        Ok(())
    })
    .unwrap();
    assert_eq!(repeated(&mut w, 10).unwrap(), None);
}
