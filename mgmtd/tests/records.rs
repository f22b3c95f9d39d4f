//! Records that were written once must load for ever.

use ember_mgmtd::Error;
use ember_mgmtd::record::{self, Beat, Client, Node, Primary, Routing, decode, encode};
use ember_types::{
    BootId, Chain, ChainId, ChainTable, ChainTableId, ChainTableVersion, ClientId, Generation, NodeId,
    NodeKind, TargetId, TargetInfo,
};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Reads the fixture and compares. A record without one gets it by `EMBER_WRITE_FIXTURES=1`.
fn check<T>(name: &str, key: &[u8], record: &T)
where
    T: minicbor::Encode<()> + for<'b> minicbor::Decode<'b, ()> + PartialEq + Debug,
{
    let path = fixture(name);
    if std::env::var_os("EMBER_WRITE_FIXTURES").is_some() && !path.exists() {
        let line = format!("{}\n{}\n", hex(key), hex(&encode(record)));
        std::fs::write(&path, line).expect("write the fixture");
    }
    let text = std::fs::read_to_string(&path).expect("fixture");
    let lines: Vec<Vec<u8>> = text.lines().map(unhex).collect();
    assert_eq!(lines[0], key, "{name}: key");
    assert_eq!(&decode::<T>(key, &lines[1]).expect("it loads"), record, "{name}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
    (0..text.len()).step_by(2).map(digit).collect()
}

fn chain() -> Chain {
    let members: Vec<_> = (1..=3).map(|t| (TargetId(t << 32 | 1), Generation(1))).collect();
    let chain = ember_chain::new_chain(ChainId(7), &members);
    ember_chain::note_in_use(&chain, chain.version, TargetId(3 << 32 | 1)).expect("tail").expect("new")
}

#[test]
fn every_record_loads() {
    let primary = Primary {
        term: 3,
        node: NodeId(1),
        boot: BootId(99),
        addresses: vec!["10.0.0.1:7000".into(), "unix:/run/ember".into()],
        lease_ms: 2_000,
        released: false,
    };
    check("primary", &record::single(record::table::PRIMARY), &primary);
    let beat = Beat { term: 3, count: 17, time_bound_ms: 1_700_000_000_123 };
    check("beat", &record::single(record::table::BEAT), &beat);
    let routing = Routing { counter: 41, revocation_epoch: 2 };
    check("routing", &record::single(record::table::ROUTING), &routing);
    let node = Node {
        id: NodeId(5),
        kind: NodeKind::Storage,
        boot: BootId(1234),
        addresses: vec!["[::1]:7001".into()],
        tags: BTreeMap::from([("rack".to_owned(), "r1".to_owned())]),
        disks: 2,
        pid: 4321,
        data_dir: "/data/5".into(),
        release: "0.1.0".into(),
    };
    check("node", &record::node_key(node.id), &node);
    let target = TargetInfo {
        id: TargetId((5 << 32) | (1 << 16) | 3),
        node: NodeId(5),
        disk: 1,
        generation: Generation(2),
        chain: ChainId(7),
        created: true,
        lane: 0,
    };
    check("target", &record::target_key(target.id), &target);
    check("chain", &record::chain_key(ChainId(7)), &chain());
    let table = ChainTable {
        id: ChainTableId(1),
        version: ChainTableVersion(2),
        chains: vec![ChainId(7), ChainId(9)],
    };
    check("table", &record::table_key(&table), &table);
    let id = ClientId::from_u128(0x0123_4567_89ab_cdef);
    let live = Client { description: "mount on host".into(), ended_ms: None };
    check("client-live", &record::client_key(id), &live);
    check("client-ended", &record::client_key(id), &Client { ended_ms: Some(1_700_000_000_000), ..live });
    assert_eq!(record::client_of_key(&record::client_key(id)), Some(id));
}

#[test]
fn damaged_records_are_errors_that_name_their_key() {
    let key = record::chain_key(ChainId(7));
    let good = encode(&chain());
    let newer = [&[2], &good[1..]].concat();
    let mut cases = vec![Vec::new(), newer, [good.as_slice(), &[0]].concat()];
    cases.extend((0..good.len()).map(|end| good[..end].to_vec()));
    for bytes in cases {
        match decode::<Chain>(&key, &bytes) {
            Err(Error::Damaged { key, .. }) => assert!(key.starts_with("cC"), "{key}"),
            other => panic!("{bytes:?}: {other:?}"),
        }
    }
}
