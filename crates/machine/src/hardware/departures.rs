//! Pages on their way out of a view, while the threads that take them out do not hold the view's lock.
//!
//! A *departure* is a run of neighbours. It begins and ends under the lock; whoever wants one of its pages in between
//! waits for its end. Lock order: the view's lock protects the list.

#[derive(Debug)]
struct Departure {
    first: u32,
    last: u32,
    number: u64,
}

/// The departures of a view: as many as threads are at work, so a few.
#[derive(Debug, Default)]
pub(crate) struct Departures {
    list: Vec<Departure>,
    begun: u64,
}

impl Departures {
    /// Begins one, of the pages from `first` to `last`; returns its number.
    pub(crate) fn begin(&mut self, first: u32, last: u32) -> u64 {
        let number = self.begun;
        self.begun += 1;
        self.list.push(Departure { first, last, number });
        number
    }

    /// Ends the one with this number.
    pub(crate) fn end(&mut self, number: u64) {
        self.list.retain(|departure| departure.number != number);
    }

    /// How many have begun so far.
    pub(crate) fn nr_begun(&self) -> u64 {
        self.begun
    }

    /// Whether a page is on its way out.
    pub(crate) fn has(&self, page: u32) -> bool {
        self.has_older(page, page, self.begun)
    }

    /// Whether any page from `first` to `last` is on its way out, with one of the first `begun` departures.
    pub(crate) fn has_older(&self, first: u32, last: u32, begun: u64) -> bool {
        self.list
            .iter()
            .any(|departure| departure.number < begun && departure.first <= last && first <= departure.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_away_from_begin_to_end() {
        let mut departures = Departures::default();
        let (one, two) = (departures.begin(10, 19), departures.begin(30, 30));
        assert_eq!([9, 10, 19, 20, 30].map(|page| departures.has(page)), [false, true, true, false, true]);
        departures.end(one);
        assert!(!departures.has(10) && departures.has(30));
        let begun = departures.nr_begun();
        departures.begin(40, 49);
        assert!(departures.has_older(0, 30, begun) && !departures.has_older(31, 100, begun));
        departures.end(two);
        assert!(!departures.has_older(0, 100, begun) && departures.has(40));
    }
}
