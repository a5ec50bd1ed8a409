"""AnimeReward: six dimensions, six separate models. Importing this package loads no weights."""

from rewarders.anime.head import AnimeHead
from rewarders.anime.store import HEADS, load_heads, save_heads

__all__ = ["HEADS", "AnimeHead", "load_heads", "save_heads"]
