//! Makes a thread panic where a test asks for it: a panic is a defect, and there is no other way to have one when it is wanted.
//! In builds without debug assertions, releases among them, there is nothing here.

/// Where the variable `LINEWARDEN_FAULTS` names a folder, panics as soon as that has a file of this name.
#[inline]
pub fn point(_name: impl std::fmt::Display) {
    #[cfg(debug_assertions)]
    wanted::point(&_name.to_string());
}

#[cfg(debug_assertions)]
mod wanted {
    use std::path::PathBuf;
    use std::sync::LazyLock;

    static FOLDER: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os("LINEWARDEN_FAULTS").map(PathBuf::from));

    #[expect(clippy::panic, reason = "this is what it is for")]
    pub(super) fn point(name: &str) {
        if FOLDER.as_ref().is_some_and(|folder| folder.join(name).exists()) {
            panic!("a test asked for it");
        }
    }
}
