"""How fast a run goes between two lines of its log: cells, tokens, targets and FLOPs a second, and how much of the machine it uses."""

import time

import torch

_CPU_SIZES, _CUDA_SIZES = (512, 1024, 2048), (2048, 4096, 8192)
_SECONDS, _TURNS = 0.1, 12  # for each size: a run is not to wait for its yardstick


class Rates:
    """Counts and seconds since the last log line, and what they come to.

    ==================  ==========================================================================================
    ``cells_per_s``     cells of the global batches / seconds
    ``tokens_per_s``    genes shown of those cells / seconds: each once, no padding, however many masks are asked
    ``targets_per_s``   masked genes predicted / seconds
    ``flops_per_s``     operations of the matrix products that the model's formula needs (:func:`pretrain.throughput.cost`:
                        forward + backward, backward = 2 x forward) / seconds. Padding, recomputation, norms, softmax, look-ups and
                        the optimiser are no part of it: they take time and count as nothing done.
    ``mfu``             ``flops_per_s / (processes * ceiling)``, the model's FLOP utilisation
    ``wait_share``      seconds spent waiting for data / seconds, of this process
    ==================  ==========================================================================================

    Seconds are training time: validation and checkpoints are left out, reading and preparing data are not.

    Parameters
    ----------
    ceiling
        FLOP/s of one process's device as :func:`matmul_ceiling` measured it; None: unknown, and ``mfu`` is None.

    Relations
    ---------
    Counts are those of the *global* batch, which every process knows from the step's lengths: nothing is gathered.
    """

    def __init__(self, ceiling: float | None = None) -> None:
        self.ceiling = ceiling
        self._clear()

    def _clear(self) -> None:
        self.cells = self.tokens = self.targets = 0
        self.flops = self.seconds = self.waiting = 0.0

    def add(self, *, cells: int, tokens: int, targets: int, flops: float, seconds: float) -> None:
        """One step of all processes: what it showed, asked and cost, and how long it took with its wait for data."""
        self.cells += cells
        self.tokens += tokens
        self.targets += targets
        self.flops += flops
        self.seconds += seconds

    def waited(self, seconds: float) -> None:
        """Of a step's seconds, those before its data were there."""
        self.waiting += seconds

    def rates(self, world: int = 1) -> dict[str, float | None]:
        """Rates of `world` processes together since the last call, which are then forgotten."""
        seconds = max(self.seconds, 1e-9)
        found: dict[str, float | None] = {
            "cells_per_s": self.cells / seconds,
            "tokens_per_s": self.tokens / seconds,
            "targets_per_s": self.targets / seconds,
            "flops_per_s": self.flops / seconds,
            "mfu": mfu(self.flops / seconds, world=world, ceiling=self.ceiling),
            "wait_share": self.waiting / seconds,
        }
        self._clear()
        return found


def mfu(flops_per_s: float, *, world: int, ceiling: float | None) -> float | None:
    """Model FLOP utilisation: ``flops_per_s / (world * ceiling)``; None where the ceiling is not known."""
    return None if ceiling is None else flops_per_s / (world * ceiling)


def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of a few square matrix products on this device, as many threads as torch has: what MFU is a share of.

    Measured, not read off a data sheet: a sheet knows neither the cores that a process was given nor their clock under load.
    2 n^3 operations each, n up to 2,048 (CUDA: 8,192) where the device is fast enough for it; about 0.3 s in all. Ask in the
    precision that the run multiplies in (bf16 under autocast). Where processes share a machine's cores let all ask at the same
    time: each then finds its own share, and the ceiling of all is their number times it.
    """
    best = 0.0
    # A generator of its own: the run's randomness is not to depend on whether it was measured. Random numbers, not a constant: a
    # GPU's clock depends on how many bits flip. A short pattern, since drawing millions would take longer than multiplying them.
    pattern = torch.randn(2**16, generator=torch.Generator(device).manual_seed(0), device=device).to(dtype)
    for size in _CUDA_SIZES if device.type == "cuda" else _CPU_SIZES:
        operations = 2.0 * size**3
        if best and 2 * operations / best > 4 * _SECONDS:
            break
        a, b = (pattern.roll(shift).repeat(size * size // pattern.numel()).view(size, size) for shift in (0, 1))
        product, spent, turn = torch.empty_like(a), 0.0, 0
        while turn < 2 or (
            turn < _TURNS and spent < _SECONDS
        ):  # many, since other processes may have the cores meanwhile
            began = time.perf_counter()
            torch.mm(a, b, out=product)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - began
            if turn:  # the first pays for the library's set-up
                best = max(best, operations / seconds)
            spent, turn = spent + seconds, turn + 1
    return best
