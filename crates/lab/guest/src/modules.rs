//! Loads the kernel's modules: `/modules/list` names the files beside it, each after those that it needs.

use std::fs::{self, File};
use std::path::Path;

use crate::{console, json_string, sys};

const FOLDER: &str = "/modules";

/// Loads them all. One that fails is named on the console; the kernel may have it built in.
pub(crate) fn load_all() {
    let list = fs::read_to_string(Path::new(FOLDER).join("list")).unwrap_or_default();
    for name in list.lines().filter(|name| !name.is_empty()) {
        let loaded = File::open(Path::new(FOLDER).join(name)).and_then(|module| sys::load_module(&module));
        if let Err(error) = loaded {
            let (name, error) = (json_string(name), json_string(&error.to_string()));
            console("module-failed", &format!("\"module\":{name},\"error\":{error}"));
        }
    }
}
