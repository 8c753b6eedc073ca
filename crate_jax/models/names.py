"""How positions can be resampled: names alone, so that --help starts at once."""

from typing import Literal, get_args

Rule = Literal["size", "dino", "antialias", "notebook"]
RULES: tuple[str, ...] = get_args(Rule)
