//! What a machine tells about itself: numbers that add up, events in order, and metrics that others can read.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::{PATIENCE, TestClient, assert_empty, door, fresh_base, machine, settled, skip, wait_for};
use usgx_machine::client::{self, Request, Response};
use usgx_machine::{EventRecord, Machine, StatsSnapshot};
use usgx_testkit::Image;

/// A socket that no other test uses.
fn socket() -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("usgx-sight-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
    std::env::temp_dir().join(name)
}

/// Builds an enclave of `pages` pages, reads them all `rounds` times, and looks at the machine before it ends.
fn work(machine: &Machine, pages: u64, rounds: u64) -> StatsSnapshot {
    let door = door(machine);
    let client = TestClient::connect(&door, [0; 2]);
    let mut thread = client.thread();
    let enclave = thread.build(&Image::data(fresh_base(), pages), true);
    let mut page = [0; 4096];
    for _ in 0..rounds {
        (1..=pages).for_each(|index| thread.read_page(&enclave, index, &mut page));
    }
    let stats = settled(machine);
    drop((thread, client, enclave));
    stats
}

#[test]
fn the_numbers_of_a_known_workload_add_up() {
    if skip() {
        return;
    }
    let machine = machine(160);
    let stats = work(&machine, 300, 3);
    assert_eq!(stats.pages_added, 301, "with the TCS");
    assert!(stats.loads > 300 && stats.evictions > stats.loads, "{stats:#?}");
    // Every page is somewhere.
    let [enclave] = &stats.enclave_list[..] else { panic!("one enclave: {stats:#?}") };
    assert_eq!((enclave.pages, enclave.initialized), (302, true), "with the SECS");
    assert_eq!(enclave.evicted_pages, stats.evictions - stats.loads, "{stats:#?}");
    assert_eq!(stats.usgx_swapped_bytes, enclave.evicted_pages * 4096, "{stats:#?}");
    let roots = stats.va_pages - enclave.va_resident_pages;
    assert_eq!(stats.epc_total_pages - stats.epc_free_pages, enclave.epc_pages + roots, "{stats:#?}");
    assert!(stats.mapped_pages <= enclave.resident_pages, "{stats:#?}");
    // The machine's, the user's, the client's and the enclave's counters are the same ones.
    assert_eq!((stats.users.len(), stats.users[0].counters), (1, stats.counters), "{stats:#?}");
    assert_eq!((stats.clients.len(), stats.clients[0].opened), (1, stats.counters), "{stats:#?}");
    assert_eq!(enclave.counters, stats.counters, "{stats:#?}");
    assert_eq!(enclave.pid, std::process::id());
    // Ways in and out.
    let counters = stats.counters;
    let ways = counters.evictions_at_once + counters.evictions_after_etrack + counters.evictions_after_kick;
    assert_eq!(counters.evictions, ways, "{stats:#?}");
    let ends = counters.remaps + counters.fault_loads + counters.retries + counters.fault_failures;
    assert_eq!(counters.epc_faults, ends + counters.fault_augments, "{stats:#?}");
    let found = stats.pages_young + stats.pages_refused + stats.pages_needed + stats.pages_kept;
    assert_eq!(stats.pages_scanned, found + stats.pages_reclaimed, "{stats:#?}");
    // What is timed is what is counted.
    assert_eq!(stats.latencies.reclaim.count(), stats.reclaim_scans, "{stats:#?}");
    assert!(
        stats.latencies.fault.count() > 0 && stats.latencies.fault.count() <= counters.epc_faults,
        "{stats:#?}"
    );
    assert_eq!(stats.latencies.kick.count(), counters.kicks, "{stats:#?}");
    let node = &stats.nodes[0];
    assert_eq!(
        (node.sgx_total_bytes, node.usgx_free_bytes),
        (160 * 4096, stats.epc_free_pages * 4096),
        "{stats:#?}"
    );
    // The enclave ends, and its counters stay with its user: the last thing that becomes of it.
    assert_empty(&machine);
    let after = wait_for(&machine, "it is one of the past", |stats| stats.users[0].past_enclaves == 1);
    assert_eq!(after.users[0].enclaves, 0, "{after:#?}");
    assert_eq!(after.users[0].counters, after.counters, "{after:#?}");
}

#[test]
fn a_machine_tells_its_numbers_over_its_socket() {
    let (machine, socket) = (machine(64), socket());
    machine.listen(&socket, 0o600).unwrap();
    let Response::Status { stats } = client::control(&socket, Request::Status).unwrap() else { panic!() };
    assert_eq!((stats.epc_total_pages, stats.machine_pid), (64, std::process::id()));
    // Numbers survive the way; a newer machine's are read as far as they are known.
    let json = serde_json::to_string(&stats).unwrap();
    assert_eq!(serde_json::from_str::<StatsSnapshot>(&json).unwrap(), *stats);
    assert!(json.contains("\"evictions\":0") && json.contains("\"sgx_total_bytes\":262144"), "{json}");
    let newer = json.replacen('{', "{\"news\":[{}],", 1);
    assert_eq!(serde_json::from_str::<StatsSnapshot>(&newer).unwrap(), *stats);
}

fn is_end(event: &EventRecord) -> bool {
    event.event == "sgx:sgx_enclave_destroy"
}

/// Listens to a machine while `f` runs; all events and how many were lost.
fn heard(socket: &std::path::Path, f: impl FnOnce()) -> (u64, Vec<EventRecord>) {
    let mut batches = client::events(socket).unwrap();
    // The first one says that the machine listens to us.
    let (mut lost, mut events) = batches.next().unwrap().unwrap();
    f();
    loop {
        let (missed, more) = batches.next().unwrap().unwrap();
        // A sign of life: there is nothing more, if it comes after the end of what there was.
        let is_over = events.iter().any(is_end);
        if missed == 0 && more.is_empty() && is_over {
            return (lost, events);
        }
        lost += missed;
        events.extend(more);
    }
}

#[test]
fn events_come_in_order_and_agree_with_the_counters() {
    if skip() {
        return;
    }
    let (machine, socket) = (machine(160), socket());
    machine.listen(&socket, 0o600).unwrap();
    let mut stats = StatsSnapshot::default();
    let (lost, events) = heard(&socket, || {
        stats = work(&machine, 200, 1);
        assert_empty(&machine);
    });
    assert_eq!(lost, 0, "{} events fit into the ring", events.len());
    assert!(events.windows(2).all(|pair| pair[0].seq + 1 == pair[1].seq), "none is missing");
    assert!(events.windows(2).all(|pair| pair[0].time_us <= pair[1].time_us), "times ascend");
    let count = |name: &str| events.iter().filter(|event| event.event == name).count() as u64;
    let after = machine.stats();
    assert_eq!(count("sgx:sgx_epc_load"), after.loads, "{after:#?}");
    let evicted = ["", "_tracked", "_kicked"].map(|way| count(&format!("sgx:sgx_epc_evict{way}")));
    assert_eq!(evicted.iter().sum::<u64>(), after.evictions, "{after:#?}");
    assert_eq!(count("sgx:sgx_epc_add"), after.pages_added, "{after:#?}");
    assert_eq!(count("sgx:sgx_etrack"), after.etracks, "{after:#?}");
    assert_eq!(count("sgx:sgx_reclaim_begin"), after.reclaim_scans, "{after:#?}");
    assert_eq!(count("sgx:sgx_reclaim_end"), after.reclaim_scans, "{after:#?}");
    // An enclave's life.
    let place = |name: &str| events.iter().position(|event| event.event == name).unwrap();
    let life = ["open", "create", "init", "destroy"].map(|phase| place(&format!("sgx:sgx_enclave_{phase}")));
    assert!(life.is_sorted(), "{life:?}");
    assert_eq!(events[life[1]].pid, std::process::id());
    let end = &events[life[3]];
    assert_eq!(end.args["evictions"], after.evictions, "{after:#?}");
}

#[test]
fn a_listener_that_is_slow_learns_what_it_has_missed() {
    if skip() {
        return;
    }
    let (machine, socket) = (machine(160), socket());
    machine.listen(&socket, 0o600).unwrap();
    let mut batches = client::events(&socket).unwrap();
    let (_, first) = batches.next().unwrap().unwrap();
    // Nobody reads meanwhile: more happens than the ring and the socket hold.
    let stats = work(&machine, 400, 12);
    let (mut lost, mut seen, mut next, mut is_over) = (0, first.len() as u64, None, false);
    loop {
        let (missed, events) = batches.next().unwrap().unwrap();
        if missed == 0 && events.is_empty() && is_over {
            break;
        }
        is_over |= events.iter().any(is_end);
        for event in &events {
            // A gap in the numbers is just what is reported as lost.
            if let Some(next) = next {
                assert_eq!(event.seq, next + if event.seq == events[0].seq { missed } else { 0 });
            }
            next = Some(event.seq + 1);
        }
        lost += missed;
        seen += events.len() as u64;
    }
    assert!(lost > 0, "{seen} events were read of a machine with {stats:#?}");
    assert!(seen + lost >= stats.loads + stats.evictions + stats.epc_faults);
}

#[test]
fn an_operators_nonsense_is_refused() {
    let (machine, socket) = (machine(64), socket());
    machine.listen(&socket, 0o600).unwrap();
    let door = usgx_sys::socket::connect(&socket).unwrap();
    for nonsense in [&b"{"[..], b"{}", b"{\"request\":\"dance\"}", &[b'{'; 500]] {
        usgx_sys::socket::send(&door, nonsense, &[]).unwrap();
        let mut bytes = [0; 4096];
        let received = usgx_sys::socket::receive_waiting(&door, &mut bytes).unwrap();
        let answer: Response = serde_json::from_slice(&bytes[..received.length]).unwrap();
        assert!(matches!(answer, Response::Refused { .. }), "{answer:?}");
    }
    assert!(matches!(client::control(&socket, Request::Status), Ok(Response::Status { .. })));
}

/// The answer to a request, as text. While all places are taken, connections are closed at once.
fn fetch(address: std::net::SocketAddr, request: &str) -> String {
    let start = Instant::now();
    loop {
        let mut stream = TcpStream::connect(address).unwrap();
        let mut text = String::new();
        let sent = stream.write_all(request.as_bytes());
        let received = stream.read_to_string(&mut text);
        if sent.is_ok() && received.is_ok() && !text.is_empty() {
            return text;
        }
        assert!(start.elapsed() < PATIENCE, "no answer: {sent:?}, {received:?}, {text}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Reads Prometheus' text format by its own rules, which are those of its documentation: families with their types,
/// and samples by name and labels.
fn parse(text: &str) -> (BTreeMap<String, String>, BTreeMap<String, f64>) {
    let is_name = |name: &str| {
        let mut chars = name.chars();
        let first = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
        chars.next().is_some_and(first) && chars.all(|c| first(c) || c.is_ascii_digit())
    };
    let (mut types, mut samples) = (BTreeMap::new(), BTreeMap::new());
    let (mut helped, mut family) = (String::new(), String::new());
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(is_name(name) && !help.is_empty(), "{line}");
            helped = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, helped, "TYPE follows HELP");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} comes twice");
            family = name.to_owned();
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let kind = &types[&family];
            let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.iter().any(|suffix| name == format!("{family}{suffix}")), "{line} in {family}");
            if !labels.is_empty() {
                for pair in labels.strip_suffix('}').unwrap().split(',') {
                    let (label, value) = pair.split_once('=').unwrap();
                    assert!(is_name(label) && value.starts_with('"') && value.ends_with('"'), "{line}");
                }
            }
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(
                samples.insert(series.to_owned(), value.parse::<f64>().unwrap()).is_none(),
                "{line} twice"
            );
        }
    }
    (types, samples)
}

#[test]
fn metrics_are_what_prometheus_reads() {
    if skip() {
        return;
    }
    let machine = machine(160);
    let address = machine.serve_metrics("127.0.0.1:0".parse().unwrap(), false).unwrap();
    let door = door(&machine);
    let client = TestClient::connect(&door, [0; 2]);
    let mut thread = client.thread();
    let enclave = thread.build(&Image::data(fresh_base(), 300), true);
    let mut page = [0; 4096];
    (1..=300).for_each(|index| thread.read_page(&enclave, index, &mut page));
    let stats = settled(&machine);
    let answer = fetch(address, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
    let (types, samples) = parse(body);
    assert_eq!(types["usgx_fault_seconds"], "histogram");
    assert_eq!(samples["usgx_epc_evictions_total"], stats.evictions as f64, "{stats:#?}");
    assert_eq!(samples["usgx_epc_loads_total"], stats.loads as f64, "{stats:#?}");
    let states = ["free", "enclave", "va", "leaked", "other"];
    let pages = states.map(|state| samples[&format!("usgx_epc_pages{{state=\"{state}\"}}")]);
    assert_eq!(pages.iter().sum::<f64>(), 160.0);
    // Buckets ascend, and the last is the count.
    let bucket = |le: &str| samples[&format!("usgx_fault_seconds_bucket{{le=\"{le}\"}}")];
    assert!(bucket("0.000001") <= bucket("0.001024") && bucket("0.001024") <= bucket("+Inf"));
    assert_eq!(bucket("+Inf"), samples["usgx_fault_seconds_count"]);
    assert_eq!(bucket("+Inf"), stats.latencies.fault.count() as f64, "{stats:#?}");
    let uid = stats.users[0].uid;
    assert_eq!(
        samples[&format!("usgx_user_epc_faults_total{{uid=\"{uid}\"}}")],
        stats.epc_faults as f64,
        "{stats:#?}"
    );
}

#[test]
fn the_metrics_endpoint_survives_its_clients() {
    let machine = machine(64);
    let refused = machine.serve_metrics("0.0.0.0:0".parse().unwrap(), false);
    assert!(refused.is_err_and(|error| error.to_string().contains("other computers")));
    let address = machine.serve_metrics("127.0.0.1:0".parse().unwrap(), false).unwrap();
    // Connections that say nothing, as many as there may be and more.
    let silent: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
    for request in ["GET / HTTP/1.0\r\n\r\n", "\r\n\r\n", "BREW / HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut stream = TcpStream::connect(address).unwrap();
        // With all places taken, a connection is closed at once.
        let _ = stream.write_all(request.as_bytes());
        let _ = stream.read_to_end(&mut Vec::new());
    }
    drop(silent);
    let served = fetch(address, "GET /metrics HTTP/1.0\r\n\r\n");
    assert!(served.starts_with("HTTP/1.1 200"), "{served}");
    let mut long = TcpStream::connect(address).unwrap();
    let _ = long.write_all(&vec![b'a'; 1 << 20]);
    drop(long);
    let misled = fetch(address, "GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    assert!(misled.starts_with("HTTP/1.1 421"), "{misled}");
    drop(machine);
    assert!(TcpStream::connect(address).is_err(), "it ends with its machine");
}
