//! Sections and the free lists of their NUMA nodes.
//!
//! A freed page goes to the tail of its node's list and the head is handed out next, so that a page rests as
//! long as possible before it is used again. The lists never grow past the number of their node's pages, for
//! which they have room from the start: freeing never allocates.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use usgx_isa::EpcPage;

use crate::counters::NodeStats;
use crate::epc::SectionConfig;
use crate::order::{OrderedGuard, OrderedMutex, Rank};
use crate::platform::Platform;
use crate::poison::Poison;
use crate::state::{PageState, StateCell};

/// A node that has EPC.
struct Node<P: Platform> {
    id: usize,
    total: usize,
    free: OrderedMutex<P, VecDeque<EpcPage>>,
    hits: AtomicU64,
    misses: AtomicU64,
    foreign: AtomicU64,
    freed: AtomicU64,
}

impl<P: Platform> Node<P> {
    fn new(id: usize, total: usize) -> Self {
        Self {
            id,
            total,
            free: OrderedMutex::new(Rank::FREE, VecDeque::with_capacity(total)),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            foreign: AtomicU64::new(0),
            freed: AtomicU64::new(0),
        }
    }

    fn take(&self, states: &[StateCell]) -> Option<EpcPage> {
        let mut free = self.free.lock();
        let page = free.pop_front()?;
        states[page.index()].change(PageState::Free, PageState::Owned);
        Some(page)
    }
}

/// All nodes with EPC, ascending by number, and the map from page to node.
pub(crate) struct Nodes<P: Platform> {
    sections: Box<[SectionConfig]>,
    nodes: Box<[Node<P>]>,
}

impl<P: Platform> Nodes<P> {
    pub(crate) fn new(sections: &[SectionConfig]) -> Self {
        let mut ids: Vec<usize> = sections.iter().map(|section| section.node).collect();
        ids.sort_unstable();
        ids.dedup();
        let pages = |id| sections.iter().filter(|s| s.node == id).map(|s| s.pages as usize).sum();
        let nodes = ids.iter().map(|&id| Node::new(id, pages(id))).collect();
        Self { sections: sections.into(), nodes }
    }

    pub(crate) fn sections(&self) -> &[SectionConfig] {
        &self.sections
    }

    /// Takes a free page, from the node `near` if it has one, else from the next that has.
    pub(crate) fn take(&self, near: usize, states: &[StateCell]) -> Option<EpcPage> {
        let start = self.nodes.iter().position(|node| node.id >= near).unwrap_or(0);
        let (before, from) = self.nodes.split_at(start);
        let home = self.nodes.get(start)?;
        from.iter().chain(before).find_map(|node| {
            let page = node.take(states)?;
            if node.id == home.id {
                node.hits.fetch_add(1, Relaxed);
            } else {
                node.misses.fetch_add(1, Relaxed);
                home.foreign.fetch_add(1, Relaxed);
            }
            Some(page)
        })
    }

    /// Puts pages, whose state is `from`, on the free lists of their nodes, but for those that are broken, which are
    /// retired; returns how many were.
    pub(crate) fn put(
        &self,
        pages: impl Iterator<Item = EpcPage>,
        from: PageState,
        states: &[StateCell],
        poison: &Poison,
    ) -> usize {
        let (mut pages, mut retired) = (pages.peekable(), 0);
        while let Some(first) = pages.peek() {
            let node = self.node_of(*first);
            let mut free = node.free.lock();
            while let Some(page) = pages.next_if(|page| core::ptr::eq(self.node_of(*page), node)) {
                node.freed.fetch_add(1, Relaxed);
                if poison.has(page) {
                    states[page.index()].change(from, PageState::Poisoned);
                    retired += 1;
                } else {
                    states[page.index()].change(from, PageState::Free);
                    free.push_back(page);
                }
            }
        }
        retired
    }

    /// The node of `page`, which is in a section.
    fn node_of(&self, page: EpcPage) -> &Node<P> {
        let section = self.sections.iter().find(|section| section.contains(page));
        let id = section.expect("only pages of a section are ever handed out").node;
        self.nodes.iter().find(|node| node.id == id).expect("each section's node is listed")
    }

    /// Locks the free list of the node of `page`, which is in a section.
    pub(crate) fn free_list_of(&self, page: EpcPage) -> OrderedGuard<'_, P, VecDeque<EpcPage>> {
        self.node_of(page).free.lock()
    }

    /// Reads the counters of each node.
    pub(crate) fn stats(&self) -> Vec<NodeStats> {
        let read = |node: &Node<P>| NodeStats {
            node: node.id,
            total: node.total,
            free: node.free.lock().len(),
            hits: node.hits.load(Relaxed),
            misses: node.misses.load(Relaxed),
            foreign: node.foreign.load(Relaxed),
            freed: node.freed.load(Relaxed),
        };
        self.nodes.iter().map(read).collect()
    }

    /// The lengths of all free lists together.
    pub(crate) fn count_free(&self) -> usize {
        self.nodes.iter().map(|node| node.free.lock().len()).sum()
    }
}
