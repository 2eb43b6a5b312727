//! The driver's counters as they leave the machine: a JSON object with a member for each.

use std::fmt;
use std::ops::Deref;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use usgx_driver::Counts;

/// What the driver has counted, for one enclave, for an owner's, or for all. Reads as [`Counts`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counters(pub Counts);

impl Counters {
    /// Name, meaning and value of each counter.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let mut counts = self.0;
        let values: Vec<u64> = counts.fields().map(|(_, value)| *value).collect();
        Counts::NAMES.iter().zip(values).map(|((name, help), value)| (*name, help.trim(), value))
    }

    /// Adds another's to each.
    pub fn add(&mut self, other: &Counts) {
        let mut other = *other;
        for ((_, mine), (_, theirs)) in self.0.fields().zip(other.fields()) {
            *mine += *theirs;
        }
    }
}

impl Deref for Counters {
    type Target = Counts;

    fn deref(&self) -> &Counts {
        &self.0
    }
}

impl Serialize for Counters {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(Counts::NAMES.len()))?;
        for (name, _, value) in self.each() {
            map.serialize_entry(name, &value)?;
        }
        map.end()
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Counters;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of counters")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Counters, A::Error> {
        let mut counts = Counts::default();
        while let Some(key) = map.next_key::<String>()? {
            // Counters of another version are none of ours.
            match counts.fields().find(|(name, _)| *name == key) {
                Some((_, field)) => *field = map.next_value()?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Counters(counts))
    }
}

impl<'de> Deserialize<'de> for Counters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_survive_json_and_ignore_what_they_do_not_know() {
        let mut counters = Counters::default();
        for (value, (_, field)) in (1..).zip(counters.0.fields()) {
            *field = value;
        }
        let text = serde_json::to_string(&counters).expect("numbers");
        assert!(text.starts_with("{\"pages_added\":1,"), "{text}");
        assert_eq!(serde_json::from_str::<Counters>(&text).expect("the same"), counters);
        let other = serde_json::from_str::<Counters>(r#"{"loads":3,"flux":{"a":[1]}}"#).expect("in part");
        assert_eq!((other.loads, other.kicks), (3, 0));
    }

    #[test]
    fn every_counter_says_what_it_counts() {
        assert!(Counts::NAMES.iter().all(|(name, help)| !name.is_empty() && help.trim().ends_with('.')));
    }
}
