"""What the stream holds in memory: no text that its lane has read."""

from pathlib import Path

import pytest

from data_sources import open_stream, sources
from data_sources.blocks import DOCUMENT_BYTES, Block, BlockCache
from data_sources.documents import Documents
from tests.data_sources.streams import byte_tokenizer, three_sources


class SeenCache(BlockCache):
    """The cache of the stream that was opened last, to be looked into."""

    last: BlockCache

    def __init__(self) -> None:
        super().__init__()
        SeenCache.last = self


def test_a_block_is_loaded_once_though_nothing_is_in_it() -> None:
    cache, loaded = BlockCache(), []

    def load() -> Block:
        loaded.append(Block(Documents([], [], []), False, 0))
        return loaded[-1]

    assert cache.get((0, 0, 0, 0), load) is cache.get((0, 0, 0, 0), load) is loaded[0] and len(loaded) == 1
    assert cache.get((0, 0, 0, 1), lambda: None) is None


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_text_leaves_memory_once_its_lane_has_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffle: bool) -> None:
    monkeypatch.setattr(sources, "BlockCache", SeenCache)
    forgotten = 0
    with open_stream(three_sources(tmp_path, shuffle=shuffle), byte_tokenizer(), 37, 48) as stream:
        for (_, cursor), _ in zip(stream, range(70), strict=False):
            for (source, *_), block in SeenCache.last._blocks.items():
                for index in range(len(block)):
                    lane = block.lane(index)
                    standing = cursor["lanes"][str(lane)][2 + 9 * source :]
                    passed = (*(block.at or ()), (index - (lane - block.offset) % 48) // 48) < tuple(standing[1:5])
                    if block.at and passed and block.chosen[index]:
                        forgotten += 1
                        with pytest.raises(LookupError):
                            block.text(index)
                    else:
                        assert block.text(index)
                held = sum(len(text) for text in block._texts if text is not None)
                assert block.bytes == held + DOCUMENT_BYTES * (len(block) + 1)
            assert SeenCache.last._bytes == sum(block.bytes for block in SeenCache.last._blocks.values())
    assert forgotten > 100
