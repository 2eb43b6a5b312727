//! Tests of the whole processor.
