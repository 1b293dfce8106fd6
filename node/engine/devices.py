"""Where a text model runs: the devices, and how the model is spread over them. Free of torch: the peer reads it too.

`pipeline` puts layers on one device after another, in one process (accelerate's device map). `tensor` cuts every layer,
in one process a device (transformers' tensor parallelism): the devices work at once, and the processes meet twice a
layer. Both belong to the general path; one device alone runs the batched path, where that knows the model.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from nsllm.node.errors import ConfigError

Parallel = Literal["none", "pipeline", "tensor"]
Wish = Literal["auto", "fast", "batched", "general"]
"""Which path is to run a text model."""
Way = Literal["fast", "batched", "general"]
"""Which path runs it."""

CPU: Final = "cpu"
_CUDA: Final = re.compile(r"cuda:(\d{1,3})")
CUT_ALONG: Final = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
"""What tensor parallelism divides between the ranks."""


@dataclass(frozen=True, slots=True)
class Devices:
    """Devices of one text model.

    Raises:
        ConfigError: devices that do not fit each other or the way of spreading.
    """

    parallel: Parallel = "none"
    names: tuple[str, ...] = ()
    """`cpu` or `cuda:N`; empty: nothing is said, and the model runs where it suits (`choice.choose`)."""

    def __post_init__(self) -> None:
        shown = ", ".join(self.names) or "empty"
        for name in self.names:
            if name != CPU and not _CUDA.fullmatch(name):
                raise ConfigError(f"engine.devices names {name!r}", hint='devices are "cuda:0", "cuda:1", … or "cpu"')
        if CPU in self.names and set(self.names) != {CPU}:
            raise ConfigError(f"engine.devices mixes GPUs and the CPU ({shown})", hint="name GPUs only")
        if self.cuda and len(set(self.names)) < len(self.names):
            raise ConfigError(f"engine.devices names a GPU twice ({shown})")
        least, most = {"none": (0, 1), "pipeline": (1, 64 if self.cuda else 1), "tensor": (2, 64)}[self.parallel]
        if not least <= len(self.names) <= most:
            wanted = {"none": "at most one", "pipeline": "GPUs, or the CPU once", "tensor": "two or more"}
            raise ConfigError(
                f"engine.parallel is {self.parallel}, engine.devices is {shown}: expected {wanted[self.parallel]}",
                hint='several devices are used with engine.parallel = "pipeline" or "tensor"',
            )

    @property
    def cuda(self) -> bool:
        """All of them are GPUs; false if nothing is said."""
        return bool(self.names) and all(name != CPU for name in self.names)

    @property
    def ranks(self) -> int:
        """Processes that run the model."""
        return len(self.names) if self.parallel == "tensor" else 1

    def local(self, rank: int) -> str:
        """The device of a process as torch calls it there, where `environment` lets it see only ours."""
        return f"cuda:{rank}" if self.cuda else CPU

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """What lets a process see these GPUs and no others, in this order.

        Args:
            inherited: environment of this process; where it hides GPUs already, numbers count among those left.

        Raises:
            ConfigError: a number beyond those left.
        """
        if not self.names:
            return {}
        numbers = [name.removeprefix("cuda:") for name in self.names if name != CPU]
        visible = inherited.get("CUDA_VISIBLE_DEVICES")
        if visible is not None and numbers:
            left = [name.strip() for name in visible.split(",") if name.strip()]
            if max(map(int, numbers)) >= len(left):
                raise ConfigError(f"engine.devices is {', '.join(self.names)}; CUDA_VISIBLE_DEVICES is {visible!r}")
            numbers = [left[int(number)] for number in numbers]
        return {"CUDA_VISIBLE_DEVICES": ",".join(numbers)}

    def check_path(self, wish: Wish) -> None:
        """The fast path cannot be placed, the batched one not spread.

        Raises:
            ConfigError: that is asked for.
        """
        if wish == "batched" and self.parallel != "none":
            raise ConfigError(
                f"engine.backend is batched, engine.parallel is {self.parallel}: the batched path uses one device",
                hint='leave engine.parallel out, or set engine.backend to "auto"',
            )
        if wish == "fast" and self.names:
            raise ConfigError(
                "engine.backend is fast, and engine.devices is set: the fast path runs on this machine's processor",
                hint='leave engine.devices out, or set engine.backend to "auto"',
            )

    def check_model(self, config: Mapping[str, Any]) -> None:
        """Look at a model's config.json before anything is loaded.

        Raises:
            ConfigError: the model cannot be spread like that, or accelerate is not installed.
        """
        if self.parallel == "none":
            return
        if importlib.util.find_spec("accelerate") is None:
            raise ConfigError(
                f"engine.parallel is {self.parallel}, which needs accelerate", hint="pip install 'nsllm[gpus]'"
            )
        if self.parallel == "tensor":
            sizes = {name: config.get(name) for name in CUT_ALONG}
            odd = [f"{name} = {size}" for name, size in sizes.items() if isinstance(size, int) and size % self.ranks]
            if odd:
                raise ConfigError(
                    f"the model cannot be cut into {self.ranks} equal parts: {', '.join(odd)}",
                    hint='choose another number of devices, or engine.parallel = "pipeline"',
                )


HERE: Final = Devices()
"""Nothing is said, and nothing is spread."""
