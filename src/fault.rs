//! Makes a thread panic where a test asks for it: a panic is a defect, and there is no other way to have one when it is wanted.
//! In builds without debug assertions, releases among them, there is nothing here.

use std::fmt::Display;

/// Where the variable `LINEWARDEN_FAULTS` names a folder, panics as soon as that has a file of this name.
#[inline]
pub fn point(name: impl Display) {
    #[cfg(debug_assertions)]
    wanted::point(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
mod wanted {
    use std::fmt::Display;
    use std::path::PathBuf;
    use std::sync::LazyLock;

    static FOLDER: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os("LINEWARDEN_FAULTS").map(PathBuf::from));

    pub(super) fn point(name: impl Display) {
        let is_wanted = FOLDER.as_ref().is_some_and(|folder| folder.join(name.to_string()).exists());
        assert!(!is_wanted, "a test asked for it");
    }
}
