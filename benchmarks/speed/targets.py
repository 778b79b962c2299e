"""Chips that are not there: how to describe them to the compiler, and what they can do.

The compiler of a TPU is libtpu, of a GPU the plugin of JAX with `ptxas`. Neither needs a device or
a driver. `use_compilers` comes before anything else that JAX does.
"""

import importlib.metadata
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

import reptile_jax as rj


class Chip(NamedTuple):
    """A kind of chip, and facts about it that its maker publishes."""

    name: str
    platform: str  # "tpu" or "cuda"
    flops: float  # a second, of float32 products at JAX's default precision: bfloat16 or TF32
    memory: int  # bytes
    costs_per_second: float  # the compiler counts a TPU's cycles, a GPU's microseconds
    topologies: Mapping[int, str]  # by the number of chips, as the compiler names them
    how: Mapping[str, Any]  # what else `get_topology_desc` takes

    @property
    def unit(self) -> str:
        """What the compiler counts in."""
        return "cycles" if self.platform == "tpu" else "µs"

    def mesh(self, chips: int) -> jax.sharding.Mesh:
        """A mesh of so many chips, for programs to be compiled for."""
        if chips not in self.topologies:
            known = ", ".join(map(str, self.topologies))
            sys.exit(f"{chips} chips of {self.name} are not described; there are {known}.")
        topology, how = self.topologies[chips], dict(self.how)
        if self.platform == "cuda":
            described = topologies.get_topology_desc(self.name, "cuda", topology=topology, **how)
        else:
            if chips == 1:  # hosts have four, unless the description says otherwise
                how |= {"chips_per_host_bounds": (1, 1, 1), "num_slices": 1}
            described = topologies.get_topology_desc(topology, "tpu", **how)
        return rj.task_mesh(described.devices)


def _gpu(name: str, *, bandwidth: float, memory: int) -> str:
    """A GPU of compute capability 9.0 as XLA reads it (its specs are in xla/backends/gpu)."""
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f} l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: {memory} cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
runtime_version {{ major: 13 }} platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""


_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 64: "8x8", 256: "16x16"}
_CUBE = {1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 64: "4x4x4", 256: "4x8x8"}
_HOST = {number: f"1x1x{number}" for number in (1, 2, 4, 8)}


def _tpu(name: str, *, flops: float, memory: int, clock: float, shapes=_FLAT, **how: str) -> Chip:
    by_number = {number: f"{name}:{shape}" for number, shape in shapes.items()}
    return Chip(name, "tpu", flops, memory, clock, by_number, how)


def _hopper(name: str, full: str, *, bandwidth: float, memory: int) -> Chip:
    how = {"target_config": _gpu(full, bandwidth=bandwidth, memory=memory)}
    return Chip(name, "cuda", 494.7e12, memory, 1e6, _HOST, how)


_GIB = 2**30
CHIPS = {
    chip.name: chip
    for chip in (
        # A chip of v4 is two cores that run as one. Clocks: peak / operations in a cycle, which is
        # what the compiler's own cycles for a large product come to.
        _tpu(
            "v4",
            flops=275e12,
            memory=32 * _GIB,
            clock=275e12 / 2**18,
            shapes=_CUBE,
            chip_config_name="megacore",
        ),
        _tpu("v5e", flops=197e12, memory=16 * _GIB, clock=197e12 / 2**17),
        _tpu("v6e", flops=918e12, memory=32 * _GIB, clock=918e12 / 2**19),
        _hopper("h100", "NVIDIA H100 80GB HBM3", bandwidth=3.35232e12, memory=84942979072),
        _hopper("h200", "NVIDIA H200 141GB HBM3e", bandwidth=4.8e12, memory=151397597184),
    )
}


def use_compilers() -> None:
    """Makes the compilers usable in this process: on the CPU, and with their costs in the HLO."""
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no question to a cloud that is not there
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no device that it would have to lock
    flags = "--xla_gpu_autotune_level=0 --xla_gpu_collect_cost_model_stats=true"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    for folder in Path(sys.prefix).glob("lib/python*/site-packages/nvidia/cu*/bin"):  # ptxas
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


INSTALL = {"tpu": '".[tpu]"', "cuda": '"jax[cuda13-local]" nvidia-cuda-nvcc'}
_PACKAGES = {"tpu": ("libtpu",), "cuda": ("jax-cuda13-plugin", "nvidia-cuda-nvcc")}


def compilers(platform: str) -> dict[str, str]:
    """The versions of a platform's compiler, or nothing where one of its parts is not installed."""
    try:
        return {name: importlib.metadata.version(name) for name in _PACKAGES[platform]}
    except importlib.metadata.PackageNotFoundError:
        return {}
