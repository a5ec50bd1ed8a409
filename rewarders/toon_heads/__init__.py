"""AnimeReward: six dimensions, six separate models. Importing this package loads no weights."""

from rewarders.checkpoints import HEADS, load_heads, save_heads
from rewarders.toon_heads.head import AnimeHead

__all__ = ["HEADS", "AnimeHead", "load_heads", "save_heads"]
