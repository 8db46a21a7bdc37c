//! What failures leave.

use crate::tests::{DENSE, mem, open};
use crate::*;

/// The second close said that all was well.
#[test]
fn a_close_that_failed_fails_again() {
    let (mem, fs) = mem();
    let engine = open(&fs).unwrap();
    let log = engine.create("a", DENSE).unwrap();
    log.append(1, b"one", false).unwrap();
    mem.fail_syncs();
    let first = engine.close().unwrap_err().to_string();
    mem.mend_syncs();
    assert_eq!(engine.close().unwrap_err().to_string(), first);
    assert!(matches!(log.append(2, b"two", true), Err(Error::Closed)));
    // It went on to create and trim.
    assert!(matches!(engine.create("b", DENSE), Err(Error::Closed)));
    assert!(matches!(log.trim_before(1), Err(Error::Closed)));
}
