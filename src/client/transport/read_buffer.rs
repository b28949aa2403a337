//! The connection's buffers that an answer was read into.
//!
//! hyper reads into a block of its own and hands out parts of it without a copy. While somebody
//! holds a part, it reads on into a new block and lets go of the old one; a pooled connection reads
//! on as soon as an answer is complete, to notice the server's closing. Whoever holds the last part
//! of a block can then overwrite all of it.

use bytes::Bytes;
use zeroize::Zeroize;

/// The most blocks that are held: an answer of many small pieces would pin a block for each.
const MOST_BLOCKS: usize = 16;

/// The most bytes between two parts of one block: the size line of a chunk (RFC 9112 section 7.1).
const LONGEST_GAP: usize = 32;

/// How many times other tasks run while a connection holds a block.
const TURNS: usize = 64;

/// The blocks that an answer was read into, each held by its first part.
#[derive(Default)]
pub(super) struct ReadBuffers {
    blocks: Vec<Bytes>,
    /// The address at which the last part ends.
    end: usize,
}

impl ReadBuffers {
    /// Takes a part of the answer whose content is no longer needed.
    pub(super) fn push(&mut self, part: Bytes) {
        let start = part.as_ptr().addr();
        let gap = start.checked_sub(self.end);
        self.end = start + part.len();
        // Wiping a block begins at the part that holds it, and that must be the only one.
        if gap.is_some_and(|gap| gap <= LONGEST_GAP) {
            return;
        }
        if self.blocks.len() == MOST_BLOCKS {
            self.wipe_released();
            self.blocks.clear();
        }
        self.blocks.push(part);
    }

    /// Wipes every block that the connection lets go of. It usually has by now; on another thread
    /// it may take a moment.
    pub(super) async fn wipe(mut self) {
        for _ in 0..TURNS {
            self.wipe_released();
            if self.blocks.is_empty() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Wipes every block that nobody else holds a part of, and forgets it.
    fn wipe_released(&mut self) {
        self.blocks = std::mem::take(&mut self.blocks)
            .into_iter()
            .filter_map(|part| {
                let mut block = match part.try_into_mut() {
                    Ok(block) => block,
                    Err(part) => return Some(part),
                };
                block.as_mut().zeroize();
                block.spare_capacity_mut().zeroize();
                None
            })
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::BytesMut;

    use super::*;

    /// A connection that has read so many bytes.
    fn read(bytes: usize) -> BytesMut {
        let mut buffer = BytesMut::with_capacity(8_192);
        buffer.resize(bytes, b'x');
        buffer
    }

    #[tokio::test(flavor = "current_thread")]
    async fn block_held_by_its_connection_is_awaited() {
        let mut connection = read(100);
        let mut buffers = ReadBuffers::default();
        buffers.push(connection.split_to(60).freeze());
        buffers.push(connection.split_to(40).freeze());
        assert_eq!(buffers.blocks.len(), 1);
        buffers.wipe_released();
        assert_eq!(buffers.blocks.len(), 1, "the connection holds it");
        let released = tokio::spawn(async move { drop(connection) });
        buffers.wipe().await;
        assert!(released.is_finished());
    }

    #[test]
    fn released_block_is_held_no_longer() {
        let mut buffers = ReadBuffers::default();
        buffers.push(read(100).freeze());
        buffers.wipe_released();
        assert!(buffers.blocks.is_empty());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn block_never_released_is_given_up() {
        let mut connection = read(100);
        let mut buffers = ReadBuffers::default();
        buffers.push(connection.split_to(60).freeze());
        tokio::time::timeout(Duration::from_secs(20), buffers.wipe()).await.unwrap();
        assert_eq!(connection, [b'x'; 40].as_slice(), "nothing of the connection's is touched");
    }

    #[test]
    fn many_small_parts_pin_few_blocks() {
        let mut buffers = ReadBuffers::default();
        let mut connections = Vec::new();
        for count in 1..=100 {
            let mut connection = read(1);
            buffers.push(connection.split_to(1).freeze());
            connections.push(connection);
            assert!(buffers.blocks.len() <= MOST_BLOCKS);
            // The connections hold them all, so none is forgotten before there are too many.
            assert!(buffers.blocks.len() == count || count > MOST_BLOCKS);
        }
    }
}
