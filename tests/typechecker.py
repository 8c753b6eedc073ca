"""Run-time checks of the tests: what signatures of models and segmentation promise holds."""

from beartype import BeartypeConf, beartype

# As for static checkers, a whole number is a number: `sd=10` where a float is asked for.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
