//! Where the EPC is: its sections, the NUMA node of each, and which node a thread is near.
//!
//! Section `i` is all of node `i`'s EPC, as on servers, where each package has a section of its own. Where the host has as
//! many nodes, they are the host's: a thread is near the one whose processor it runs on. Where it has fewer, its
//! processors are dealt out to ours in turn, so that what nodes do can be seen on any computer. Only who takes which page
//! follows from this; where the host keeps a page's bytes is up to the host.

use std::fs;
use std::path::Path;

use usgx_driver::SectionConfig;
use usgx_isa::{EpcPage, PAGE_SIZE};
use usgx_sys::process;

use crate::error::MachineError;

/// The smallest section, and the smallest EPC in which anything works: Linux keeps 32 pages free.
const MIN_PAGES: u64 = 64;
/// The largest EPC: 4 TiB.
const MAX_PAGES: u64 = 1 << 30;
/// Sections that Linux takes note of (`SGX_MAX_EPC_SECTIONS`).
const MAX_SECTIONS: usize = 8;

/// The EPC's sections, of these sizes in bytes, one after the other.
///
/// # Errors
/// There are none or too many, or sizes are not possible.
pub(crate) fn sections(bytes: &[u64]) -> Result<Vec<SectionConfig>, MachineError> {
    if bytes.is_empty() || bytes.len() > MAX_SECTIONS {
        return Err(MachineError::EpcSections { most: MAX_SECTIONS, asked: bytes.len() });
    }
    let mut first = 0_u64;
    let mut sections = Vec::with_capacity(bytes.len());
    for (node, bytes) in bytes.iter().copied().enumerate() {
        let pages = bytes / PAGE_SIZE as u64;
        if !bytes.is_multiple_of(PAGE_SIZE as u64) || pages < MIN_PAGES || pages > MAX_PAGES - first {
            return Err(MachineError::EpcSize(bytes));
        }
        // Both are at most `MAX_PAGES`.
        sections.push(SectionConfig { node, first: EpcPage(first as u32), pages: pages as u32 });
        first += pages;
    }
    Ok(sections)
}

/// Which node each processor of the host is near.
#[derive(Debug)]
pub(crate) struct Topology {
    nr_nodes: usize,
    /// By the processor's number; empty if the host has too few nodes.
    nodes: Vec<usize>,
}

impl Topology {
    /// That of a machine with so many nodes, on this host.
    pub(crate) fn new(nr_nodes: usize) -> Self {
        let host = if nr_nodes > 1 { host_nodes(Path::new("/sys/devices/system/node")) } else { Vec::new() };
        Self::on(nr_nodes, &host)
    }

    /// That of a machine with so many nodes, on a host with nodes of these processors.
    fn on(nr_nodes: usize, host: &[Vec<usize>]) -> Self {
        let mut nodes = Vec::new();
        if host.len() >= nr_nodes {
            for (node, processors) in host.iter().enumerate() {
                for processor in processors {
                    nodes.resize(nodes.len().max(processor + 1), 0);
                    nodes[*processor] = node;
                }
            }
        }
        Self { nr_nodes, nodes }
    }

    /// The node that the calling thread is near.
    pub(crate) fn current_node(&self) -> usize {
        if self.nr_nodes < 2 { 0 } else { self.node_of(process::processor()) }
    }

    fn node_of(&self, processor: usize) -> usize {
        self.nodes.get(processor).unwrap_or(&processor) % self.nr_nodes
    }
}

/// The processors of each of the host's nodes that has some, in the nodes' order.
fn host_nodes(directory: &Path) -> Vec<Vec<usize>> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let number = |name: &std::ffi::OsStr| name.to_str()?.strip_prefix("node")?.parse::<usize>().ok();
    let mut numbers: Vec<_> = entries.filter_map(|entry| number(&entry.file_name())).collect();
    numbers.sort_unstable();
    let read = |node| fs::read_to_string(directory.join(format!("node{node}/cpulist"))).ok();
    numbers
        .into_iter()
        .filter_map(read)
        .map(|list| processors(&list))
        .filter(|list| !list.is_empty())
        .collect()
}

/// The numbers in a list as the kernel writes it: `0-3,8`.
fn processors(list: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_follow_each_other() {
        let [one, two] = &sections(&[1 << 20, 2 << 20]).expect("possible")[..] else { panic!("two") };
        assert_eq!((one.node, one.first, one.pages), (0, EpcPage(0), 256));
        assert_eq!((two.node, two.first, two.pages), (1, EpcPage(256), 512));
        for impossible in [&[][..], &[1 << 20; 9], &[1 << 20, 4096], &[(1 << 20) + 1], &[4 << 40, 1 << 20]] {
            assert!(sections(impossible).is_err(), "{impossible:?}");
        }
        assert!(sections(&[4 << 40]).is_ok() && sections(&[256 << 10; 8]).is_ok());
    }

    #[test]
    fn processors_are_near_the_hosts_nodes_or_dealt_out() {
        assert_eq!(processors("0-2,7\n"), [0, 1, 2, 7]);
        assert!(processors("\n").is_empty());
        let host = [vec![0, 1, 4], vec![2, 3, 5]];
        let same = Topology::on(2, &host);
        assert_eq!([0, 1, 2, 3, 4, 5].map(|processor| same.node_of(processor)), [0, 0, 1, 1, 0, 1]);
        let more = Topology::on(3, &host);
        assert_eq!([0, 1, 2, 3].map(|processor| more.node_of(processor)), [0, 1, 2, 0]);
        assert_eq!(Topology::on(1, &host).current_node(), 0);
        assert!(Topology::new(4).current_node() < 4);
    }

    #[test]
    fn a_hosts_nodes_are_read_in_order() {
        let directory = std::env::temp_dir().join(format!("usgx-nodes-{}", std::process::id()));
        for (node, list) in [("node10", "4-5\n"), ("node2", "0-3\n"), ("node3", "\n"), ("power", "9\n")] {
            fs::create_dir_all(directory.join(node)).expect("a directory");
            fs::write(directory.join(node).join("cpulist"), list).expect("a file");
        }
        let nodes = host_nodes(&directory);
        fs::remove_dir_all(&directory).expect("it is ours");
        assert_eq!(nodes, [vec![0, 1, 2, 3], vec![4, 5]]);
        assert!(host_nodes(&directory).is_empty());
    }
}
