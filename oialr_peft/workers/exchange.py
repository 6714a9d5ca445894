"""What the processes of a run tell each other at an update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from ..linalg import Rotation, working_dtype
from .plan import assign_owners, rounds, svd_cost


_FAILED = -1


class Piece(NamedTuple):
    """One matrix (rows, cols), or several (groups, rows, cols), whose rotation is wanted."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    compute: Callable[[], Rotation | None]


class Processes:
    """The processes that train one model together; a single one when torch.distributed is not in use."""

    def __init__(self) -> None:
        self.several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.rank = dist.get_rank() if self.several else 0
        self.size = dist.get_world_size() if self.several else 1

    def rotations(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Rotation | None]]:
        """Every piece with its rotation, the same bytes on all processes; None where its owner found none.

        Each is computed by one owner. In rounds, so that only few rotations are held at a time while the caller
        applies them: the ranks of a round go round first, in one sum, so that all know the sizes; then the two small
        matrices and the singular values of each piece, all under way at once.

        Raises:
            RuntimeError: on all processes, when computing failed on one of them.
        """
        costs = [svd_cost(piece.shape) for piece in pieces]
        owners = assign_owners(costs, self.size)
        for chosen in rounds(costs, self.size):
            yield from self._round([pieces[i] for i in chosen], [owners[i] for i in chosen])

    def _round(self, pieces: list[Piece], owners: list[int]) -> Iterator[tuple[Piece, Rotation | None]]:
        if not self.several:
            yield from ((piece, piece.compute()) for piece in pieces)
            return
        found: list[Rotation | None] = [None] * len(pieces)
        ranks, error = [0] * len(pieces), None
        for i, piece in enumerate(pieces):
            if owners[i] == self.rank:
                try:
                    found[i] = rotation = piece.compute()
                    ranks[i] = 0 if rotation is None else rotation.rank
                except Exception as failure:  # all processes must learn of it, or they wait for ever
                    ranks[i], error = _FAILED, failure
        ranks = self._sum(ranks, pieces[0].device)
        if _FAILED in ranks:
            i = ranks.index(_FAILED)
            raise RuntimeError(f"The SVD of '{pieces[i].name}' failed on process {owners[i]}.") from error
        yield from zip(pieces, self._send(pieces, owners, ranks, found), strict=True)

    def agree(self, facts: dict[str, Any], error: Exception | None) -> None:
        """Raise on all processes where one of them has an `error` or other `facts` than process 0.

        Raises:
            RuntimeError, or `error` itself on the process that has it.
        """
        mine = (None if error is None else f"{type(error).__name__}: {error}", facts)
        everyone: list[Any] = [mine] * self.size
        if self.several:
            dist.all_gather_object(everyone, mine)
        if error is not None:
            raise error
        for process, (message, other) in enumerate(everyone):
            if message is not None:
                raise RuntimeError(f"OIALR stops on all processes: process {process} reports {message}")
            for name, value in everyone[0][1].items():
                if other.get(name) != value:
                    raise RuntimeError(
                        f"OIALR stops: {name} must be the same on all processes, but process 0 has "
                        f"{_short(value)} and process {process} has {_short(other.get(name))}."
                    )

    def _sum(self, values: list[int], device: torch.device) -> list[int]:
        total = torch.tensor(values, dtype=torch.int64, device=device)
        dist.all_reduce(total)
        return total.tolist()

    def _send(
        self, pieces: Sequence[Piece], owners: list[int], ranks: list[int], found: list[Rotation | None]
    ) -> list[Rotation | None]:
        flights = []
        for piece, owner, rank, rotation in zip(pieces, owners, ranks, found, strict=True):
            if not rank:
                flights.append(None)
                continue
            parts = _parts(rotation) if rotation is not None else _empty_parts(piece, rank)
            flights.append((parts, [dist.broadcast(part, src=owner, async_op=True) for part in parts]))
        received: list[Rotation | None] = []
        for flight in flights:
            if flight is not None:
                for handle in flight[1]:
                    handle.wait()
            received.append(None if flight is None else Rotation(*flight[0]))
        return received


def _parts(rotation: Rotation) -> list[torch.Tensor]:
    return [part.contiguous() for part in (rotation.left, rotation.singular_values, rotation.right)]


def _empty_parts(piece: Piece, rank: int) -> list[torch.Tensor]:
    *groups, rows, cols = piece.shape
    dtype = working_dtype(piece.dtype)
    shapes = ((*groups, rows, rank), (*groups, rank), (*groups, cols, rank))
    return [torch.empty(shape, dtype=dtype, device=piece.device) for shape in shapes]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}..."
