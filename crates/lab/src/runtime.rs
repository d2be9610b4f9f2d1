//! A tokio runtime whose tasks live in a namespace: for clients of what runs in the lab.

use std::future::Future;

use crate::error::{Error, Result};
use crate::namespace::Namespace;

/// A runtime whose worker threads were started in a namespace, and so open their sockets there.
#[derive(Debug)]
pub struct NamespaceRuntime {
    runtime: tokio::runtime::Runtime,
}

impl NamespaceRuntime {
    /// Starts it.
    ///
    /// # Errors
    /// When the namespace is gone or no threads can be made.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let runtime = namespace
            .run(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build())?
            .map_err(Error::io("start threads in a namespace"))?;
        Ok(Self { runtime })
    }

    /// Runs a task in the namespace and waits for it. A panic in it is one here.
    pub fn call<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> T {
        match self.runtime.block_on(self.runtime.spawn(task)) {
            Ok(value) => value,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}
