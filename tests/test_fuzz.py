"""Random values of all config keys: each is taken, or refused in one line, within seconds."""

import math
import random
import time

import pytest

from crate_jax import config, keys
from crate_jax.models import variants
from crate_jax.training import loop

CASES = 400
ODD = (
    *(None, True, False, "", "x", "none", "../..", "\0", "1e9", (), (1,), (1, 2, 3), [], {}, "é"),
    *(-1, 0, 1, 2, 3, 7, 100, 1000, 100_000, 10**9, 2**31, 2**63, 10**30),
    *(0.0, -0.5, 0.3, 0.999, 1.0, 1.5, 1e-300, 1e300, math.inf, -math.inf, math.nan),
    *((0, 0), (1, 0), (1.5, 2), (0.2, 0.4), ((0.1, 0.2), (0.3, 0.4)), (math.nan, 1), ("a", "b")),
    *("5 epochs", "1e3 steps", "0 examples", "9" * 400, "999999999999 epochs", "never"),
)


class Enough(Exception):
    """Everything that a config decides was checked; the rest is building and training."""


def cases():
    """(family, {key: value}): one or two keys replaced, half of the values made for the key."""
    draw = random.Random(20261126)
    for number in range(CASES):
        family = draw.choice(list(variants.FAMILIES))
        everything = [*keys.KEYS, *keys.of_model(family)]
        # every key in turn, so that none is left out, and at times another one besides
        chosen = [everything[number % len(everything)]]
        chosen += draw.sample(everything, 1) if draw.random() < 0.3 else []
        yield family, {key.name: value(key, draw) for key in chosen}


def value(key, draw):
    if key.check.choices and draw.random() < 0.5:
        return draw.choice(key.check.choices)
    if isinstance(key.default, int | float) and draw.random() < 0.5:
        return key.default * draw.choice((-1, 0.5, 2, 3, 1000)) + draw.choice((0, 1))
    return draw.choice(ODD)


def run(family, changes, directory):
    """Everything up to building; the network of the rest of the keys is tiny."""
    c = config.default()
    name = next(name for name, network in variants.VARIANTS.items() if network.family == family)
    c.model = config.model(name, image_size=32, patch_size=8, dim=24, heads=3, depth=1)
    c.steps, c.batch_size, c.evaluation.batch_size = 2, 8, 8
    with c.unlocked():
        for key, new in changes.items():
            *sections, last = key.split(".")
            section = c
            for part in sections:
                section = section[part]
            section[last] = new
    loop.train(c, directory)


@pytest.mark.slow
def test_every_value_is_taken_or_refused_in_one_line(tmp_path, monkeypatch):
    def enough(*args):
        raise Enough

    monkeypatch.setattr(loop.base, "split", enough)
    counts = {Enough: 0, ValueError: 0, FileNotFoundError: 0}
    for family, changes in cases():
        started = time.monotonic()
        print(family, changes)
        with pytest.raises(tuple(counts)) as error:
            run(family, changes, tmp_path / "run")
        took = time.monotonic() - started
        assert took < 20, (changes, took)
        said = str(error.value)
        assert "\n" not in said or "Expected one folder for each class" in said, changes
        assert len(said) < 3000, changes  # all keys of another family, with the known ones
        counts[error.type] += 1
    assert counts[Enough] > CASES / 10
    assert counts[ValueError] > CASES / 3
    assert not (tmp_path / "run").exists()
