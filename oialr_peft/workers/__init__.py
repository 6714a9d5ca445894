"""Several processes: who computes which SVD, sending the results, keeping DDP's reducer true."""

from .check import digest
from .exchange import Piece, Processes
from .plan import assign_owners, rounds, svd_cost
from .sharding import full_tensor, is_sharded, set_block
from .support import refuse_unsupported


__all__ = [
    "Piece",
    "Processes",
    "assign_owners",
    "digest",
    "full_tensor",
    "is_sharded",
    "refuse_unsupported",
    "rounds",
    "set_block",
    "svd_cost",
]
