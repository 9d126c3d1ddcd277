//! `linewarden interfaces`: what can be captured here.

use super::Failure;

pub(super) fn run() -> Result<(), Failure> {
    Ok(())
}
