"""The processes that train one model together: device, precision, and what they say to each other.

Accelerate finds the device and opens the process group (gloo on CPU, nccl on GPUs). Gradients are summed once a step, after all
ranks agreed that the step is sound: DDP would begin to reduce inside the last backward pass, and a rank that ran out of memory
there would leave the others waiting for ever. DDP still gives every rank the first weights of rank 0 and checks that they match.
"""

import atexit
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, nn

from lm.preset.training import TrainConfig
from lm.training.threads import fitting_threads

BUCKET_ELEMENTS = 2**23  # gradients that are summed in one message: 32 MiB of float32
CLEARLY = 1.3  # times as fast, from where on bfloat16 pays on a CPU: hardware for it brings more, and noise less, so that sessions choose alike
PRODUCT, TRIES = (256, 512, 512), 12  # rows, what comes in and what goes out: a layer's size, and done in milliseconds; how often each is timed


class Ranks:
    """This process among all that train."""

    def __init__(self, config: TrainConfig) -> None:
        on_gpu = torch.cuda.is_available()
        torch.set_float32_matmul_precision("high" if on_gpu else "highest")
        state = PartialState(cpu=not on_gpu, timeout=timedelta(minutes=30))
        self.device: torch.device = state.device
        self.rank: int = state.process_index
        self.size: int = state.num_processes
        if not on_gpu:
            torch.set_num_threads(fitting_threads())
        self.precision: str = self.first_does(lambda: chosen_precision(config.precision, on_gpu))
        AcceleratorState._reset_state()  # the last run of this process may have had another precision
        self.accelerator = Accelerator(
            cpu=not on_gpu,
            mixed_precision="bf16" if self.precision == "bfloat16" else "no",
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        if self.size > 1:
            # The group's threads would abort a process that leaves while they run.
            atexit.unregister(_leave)
            atexit.register(_leave)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wrapped(self, learner: nn.Module) -> nn.Module:
        """`learner` on this rank's device, with the weights of rank 0, under autocast where precision asks for it."""
        return self.accelerator.prepare_model(learner)

    def without_reduction(self, wrapped: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Backward passes in here keep their gradients to themselves."""
        return self.accelerator.no_sync(wrapped)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all ranks, in place. A parameter without one has zeros from then on, also with one rank, so that the
        optimizer does the same on any number."""
        parameters = list(parameters)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.sum_tensors([parameter.grad for parameter in parameters])

    def sum_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Add up each tensor over the ranks, in place."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        size = 0
        for tensor in tensors:
            bucket.append(tensor)
            size += tensor.numel()
            if size >= BUCKET_ELEMENTS:
                _sum_together(bucket)
                bucket, size = [], 0
        _sum_together(bucket)

    def summed(self, values: list[float]) -> list[float]:
        """Each number added up over the ranks, in float64."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def highest(self, values: list[float]) -> list[float]:
        """The highest of each number over the ranks: for flags, whether any rank raised it."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def _reduced(self, values: list[float], operation: Any) -> list[float]:
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, operation)
        return tensor.tolist()

    def from_first(self, value: Any) -> Any:
        """What rank 0 passes in, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def first_does(self, work: Callable[[], Any]) -> Any:
        """What `work` gives on rank 0, on every rank; what it raises there is raised on every rank."""
        if self.size == 1:
            return work()
        done, error = None, None
        if self.is_first:
            try:
                done = work()
            except Exception as raised:
                error = raised
        done, error = self.from_first((done, error))
        if error is not None:
            raise error
        return done

    def all_do(self, work: Callable[[], Any]) -> list[Any]:
        """What `work` gives on each rank, in their order, on every rank. When it raises on any, no rank goes on."""
        done, error, trouble = None, None, ""
        try:
            done = work()
        except Exception as raised:
            error, trouble = raised, f"{type(raised).__name__}: {raised}"
        box = self.gathered((done, trouble))
        if error is not None:
            raise error
        for rank, (_, trouble) in enumerate(box):
            if trouble:
                raise RuntimeError(f"process {rank} can't go on: {trouble}")
        return [done for done, _ in box]

    def gathered(self, value: Any) -> list[Any]:
        """What each rank passes in, in their order, on every rank."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value)
        return box


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _sum_together(gradients: list[Tensor]) -> None:
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    pieces = flat.split([gradient.numel() for gradient in gradients])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view_as(gradient))


NO_MEMORY = ("can't allocate memory", "out of memory", "_STATUS_ALLOC_FAILED")  # of the host, of a device, of its libraries


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch could not get memory: on the host it says so in words only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in NO_MEMORY)


def chosen_precision(asked: str, on_gpu: bool) -> str:
    """ "auto" means bfloat16 matrix products on a GPU that has them in hardware, and on CPUs that are clearly faster with them; float32 elsewhere."""
    if asked != "auto":
        return asked
    pays = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else bfloat16_gain() > CLEARLY
    return "bfloat16" if pays else "float32"


@cache
def bfloat16_gain() -> float:
    """How many times as fast this CPU is with a layer's product in bfloat16, conversions included, as with one in float32.

    On one thread, in turns, each at its best: what else runs here makes a product slower, and none faster, and threads that wait for each other most of all.
    """
    rows, width, out = PRODUCT
    draws = torch.Generator()  # of its own: a run's draws don't depend on what is measured
    x, weight = torch.rand(rows, width, generator=draws), torch.rand(out, width, generator=draws)
    threads, took = torch.get_num_threads(), {False: [], True: []}
    torch.set_num_threads(1)
    try:
        for in_bfloat16 in (False, True) * TRIES:
            took[in_bfloat16].append(_seconds(x, weight, in_bfloat16))
    finally:
        torch.set_num_threads(threads)
    return min(took[False]) / min(took[True])


def _seconds(x: Tensor, weight: Tensor, in_bfloat16: bool) -> float:
    with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
        began = time.perf_counter()
        nn.functional.linear(x, weight)
        return time.perf_counter() - began


def device_in_words(ranks: Ranks) -> str:
    """What all ranks compute on, and how, in one line: "2 x NVIDIA H200, bfloat16"."""
    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else f"CPU ({threads} thread{'s' * (threads != 1)})"
    return f"{f'{ranks.size} x ' if ranks.size > 1 else ''}{name}, {ranks.precision}"
