//! Where an item has data and where it has holes (lseek(2), SEEK_DATA and SEEK_HOLE).

use super::super::TableError;
use super::super::format::{BLOCK, group_end};
use super::Item;

/// What is sought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    Data,
    Hole,
}

impl Item {
    /// The first offset at or behind `offset` where there is what is sought; the end of the item counts as a hole. The
    /// item has been verified before.
    ///
    /// # Errors
    /// ENXIO at or beyond the end, and where no data follows.
    pub fn seek(&self, what: Seek, offset: u64) -> Result<u64, TableError> {
        let inner = self.shared()?;
        let blocks = self.blocks(&inner)?;
        let state = &blocks.open.state;
        if offset >= state.size {
            return Err(rustix::io::Errno::NXIO.into());
        }
        let mut index = offset / BLOCK;
        while index < state.extent {
            let end = group_end(index).min(state.extent);
            if let Some(found) = blocks.find(index, end, what == Seek::Hole)? {
                return Ok(offset.max(found * BLOCK));
            }
            index = end;
        }
        match what {
            // All behind the extent is hole, and so is the end.
            Seek::Hole => Ok(offset.max(index * BLOCK).min(state.size)),
            Seek::Data => Err(rustix::io::Errno::NXIO.into()),
        }
    }
}
