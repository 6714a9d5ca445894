"""Several processes: who computes which SVD, what they tell and send each other, how their wrapper is kept right."""

from .check import digest
from .exchange import Exchange, Solution
from .group import Workers
from .parallel import Parallel
from .plan import SvdTask, assign_owners, rounds, svd_cost, windows
from .saving import gathered, one_writer
from .sharding import fsdp_modules, full_tensor, is_sharded, set_block


__all__ = [
    "Exchange",
    "Parallel",
    "Solution",
    "SvdTask",
    "Workers",
    "assign_owners",
    "digest",
    "fsdp_modules",
    "full_tensor",
    "gathered",
    "is_sharded",
    "one_writer",
    "rounds",
    "set_block",
    "svd_cost",
    "windows",
]
