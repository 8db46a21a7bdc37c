//! What lies behind the last record that replay accepts: nothing, a torn tail, or damage.
//!
//! Bytes that are not a record are a torn tail unless a valid record of the same epoch and a later
//! sequence lies behind them: that one was begun only when the one before was durable.
//!
//! Every write unit may begin such a record and claim a body of many megabytes. The bytes are read once
//! for all of them: a running checksum is noted where a header begins, and at the end that the header claims
//! the checksum of what lies between follows from the two (a CRC is linear). So the time is linear in the
//! bytes, whatever they claim.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{Replay, Window};
use crate::error::Result;
use crate::format::record::{self, BODY_LEN_MAX, RECORD_HEADER_LEN, RecordHeader};
use crate::types::BLOCK_SIZE;

/// A header whose body's end was not reached yet. Positions are bytes from the region's start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    /// Behind the body. First, since claims are taken in the order of their ends.
    end: u64,
    start: u64,
    /// The running checksum up to where the record's own begins.
    before: u32,
    header: RecordHeader,
}

impl Claim {
    /// True where the record is whole; `running` is the running checksum up to its end.
    fn holds(&self, running: u32, uuid: uuid::Uuid) -> bool {
        let covered = (self.end - self.start) as usize - record::CRC_START;
        let own = crc32c::crc32c_combine(self.before, 0, covered) ^ running;
        record::is_verified_by(own, &self.header, uuid)
    }
}

impl Replay<'_> {
    /// Tells a torn tail from damage: looks for a valid later record of this epoch.
    pub(super) fn look_behind(&mut self, window: &mut Window<'_>) -> Result<()> {
        let unit = self.unit();
        let farthest = self.position + BODY_LEN_MAX as u64 + BLOCK_SIZE;
        let mut claims = BinaryHeap::new();
        let mut running = 0;
        let mut at = self.position;
        while at <= farthest || !claims.is_empty() {
            let Some(bytes) = window.at(at, unit as usize)? else {
                break;
            };
            let header = record::peek(bytes).filter(|header| header.epoch == self.header.epoch);
            if at == self.position {
                self.torn = header.is_some();
            }
            if let Some(header) = header
                && header.seq > self.seq
                && at <= farthest
            {
                claims.push(Reverse(Claim {
                    end: at + (RECORD_HEADER_LEN + header.body_len) as u64,
                    start: at,
                    before: crc32c::crc32c_append(running, &bytes[..record::CRC_START]),
                    header,
                }));
            }
            while let Some(&Reverse(claim)) = claims.peek()
                && claim.end <= at + unit
            {
                claims.pop();
                let part = &bytes[..(claim.end - at) as usize];
                if claim.holds(crc32c::crc32c_append(running, part), self.superblock.uuid) {
                    self.later = Some(claim.start);
                    return Ok(());
                }
            }
            // Without a claim nobody needs it, wherever it began.
            if !claims.is_empty() {
                running = crc32c::crc32c_append(running, bytes);
            }
            at += unit;
        }
        Ok(())
    }
}
