//! Whether a migration converges, by what was measured, and what to do about one that does not.
