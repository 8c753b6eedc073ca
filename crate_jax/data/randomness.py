"""Random numbers addressed by what they are for, not by when they are drawn."""

import numpy as np

# One number per purpose, so that two uses of one seed never share a stream.
SCENES_TRAIN, SCENES_VAL, SCENES_ORDER, AUGMENT, FOLDER_SPLIT = range(1, 6)
TEXTURES_TRAIN, TEXTURES_VAL = range(6, 8)


def generator(seed: int, stream: int, epoch: int, index: int) -> np.random.Generator:
    """A generator that depends on its four arguments alone.

    Philox is a counter-based generator (Salmon et al., 2011): its output is a function of a key and
    a counter, so any example's randomness can be had without drawing that of the examples before
    it, in any process. The key is (seed, stream) and the two high words of the counter are (epoch,
    index); the two low words count the draws, 2^128 of them before two streams could meet.

    Args:
        seed: 0 <= seed < 2^63.
        stream: the purpose, one of this module's constants.
        epoch: 0 <= epoch < 2^63.
        index: 0 <= index < 2^63.
    """
    counter = np.array([0, 0, epoch, index], np.uint64)
    key = np.array([seed, stream], np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))


def check_seed(seed: int) -> int:
    """Returns `seed` as an int; raises ValueError unless 0 <= seed < 2^63."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
        raise ValueError(f"seed: expected an integer from 0 to 2^63 - 1, got {seed!r}")
    return int(seed)
