//! Real QEMUs under TCG: launched, adopted, moved, killed. Needs root, for namespaces and for QEMU's user.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod adopt;
mod host;
mod launch;
mod migrate;
