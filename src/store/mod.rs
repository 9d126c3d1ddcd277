//! Turns what the sinks wrote into answers.
//!
//! | file | answers |
//! |---|---|
//! | `verify` | whether a log is whole, and where it is not |

pub mod verify;
