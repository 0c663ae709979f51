"""What layouts of many GPUs would give, by formula: a table for docs/many_gpus.md.

    python benchmarks/projection.py [--step-ms 136.7] [--two-gpus-ms 161.4] [--net-gb 50]

Nothing is run. Full tuning of a model of Llama 3.2 1B's shape, a fixed number of tokens a GPU,
under FSDP2 as `automodel_distributed.fully_sharded` sets it up, over all GPUs or over a node's
(HSDP). Measured are the step on one GPU and the wire between two GPUs of a node; all else is
assumed and stands in `Machine`. The step on n GPUs is the step on one, and

    lead    the gathers of embedding/head and first layer, before which there is nothing to compute
    excess  max(0, other gathers - forward pass) + max(0, other traffic - backward pass)
    tail    the reductions of first layer and embedding/head, after which nothing is computed

A ring of n ranks that gathers or reduce-scatters B bytes takes n - 1 hops and (n - 1)/n B / bus; on
several nodes of g ranks it takes n - n/g hops within nodes, n/g between them, and the larger of
(n - 1)/n B / bus and (n - g)/n B / (g net), as its channels use the network adapters of all GPUs of
a node. An all-reduce is one of each (Thakur, Rabenseifner and Gropp, "Optimization of Collective
Communication Operations in MPICH", 2005). What is sent, and when: Rajbhandari et al., "ZeRO", 2020;
Zhao et al., "PyTorch FSDP", 2023.
"""

from __future__ import annotations

import argparse

import attrs

GPUS = (2, 8, 16, 64, 256)
COLUMNS = [
    "GPUs", "layout", "wire, ms", "exposed, ms", "step, ms", "tokens/s per GPU", "efficiency",
    "with the unexplained",
]  # fmt: skip
GATHERED, REDUCED = 2, 4  # bytes of a parameter in bfloat16, of a gradient in float32


@attrs.frozen
class Model:
    """Parameters by FSDP unit, those of Llama 3.2 1B.

    Attributes:
        layers: How many.
        layer: Parameters of one.
        ends: Parameters of embedding, final norm and head, one unit; embedding and head are tied.
    """

    layers: int = 16
    layer: int = 2048 * (2 * 2048 + 2 * 512 + 3 * 8192 + 2)
    ends: int = 2048 * (128256 + 1)

    @property
    def parameters(self) -> int:
        return self.layers * self.layer + self.ends


@attrs.frozen
class Machine:
    """Nodes of equal GPUs.

    Attributes:
        step: Seconds of a step on one GPU; measured (a hand-written loop, compiled, bfloat16:
            the faster end of docs/benchmarks/training.md).
        tokens: Of that step.
        bus: Bytes/s of a collective within a node, as nccl-tests counts them; measured between two
            H100s. Assumed for eight.
        node: GPUs of a node; assumed.
        net: Bytes/s between nodes for each GPU; assumed, 400 Gb/s.
        near, far: Seconds of a hop within a node and between two; assumed, what NCCL reckons with
            for rings (src/graph/tuning.cc, Simple).
        forward: The forward pass's part of a step; assumed, two of the six operations that a
            parameter does for a token. The update is counted as backward.
    """

    step: float = 0.1367
    tokens: int = 8192
    bus: float = 331e9
    node: int = 8
    net: float = 50e9
    near: float = 3.4e-6
    far: float = 14e-6
    forward: float = 1 / 3

    def ring(self, size: float, ranks: int) -> float:
        """Seconds in which `ranks`, whole nodes of them or a part of one, gather or
        reduce-scatter `size` bytes."""
        nodes = -(-ranks // self.node)
        if nodes == 1:
            return (ranks - 1) * self.near + (ranks - 1) / ranks * size / self.bus
        within = (ranks - 1) / ranks * size / self.bus
        between = (ranks - self.node) / ranks * size / (self.node * self.net)
        return (ranks - nodes) * self.near + nodes * self.far + max(within, between)

    def all_reduce(self, size: float, nodes: int) -> float:
        """Seconds in which one rank of each node adds up `size` bytes with the others."""
        return 2 * ((nodes - 1) * self.far + (nodes - 1) / nodes * size / self.net)


@attrs.frozen
class Projection:
    """A step on many GPUs.

    Attributes:
        wire: Seconds in which a GPU sends, all traffic one after the other.
        exposed: Seconds of them in which it doesn't compute.
        step: Seconds.
    """

    wire: float
    exposed: float
    step: float


def project(machine: Machine, model: Model, gpus: int, *, hybrid: bool) -> Projection:
    """A step of full tuning under FSDP2.

    Args:
        gpus: A part of a node, or whole nodes.
        hybrid: Shard within each node and all-reduce the shards' gradients across nodes (HSDP).
    """
    shards = min(gpus, machine.node) if hybrid else gpus
    copies = gpus // shards

    def gather(parameters: int) -> float:
        return machine.ring(GATHERED * parameters, shards)

    def reduce(parameters: int) -> tuple[float, float]:
        """Over the shards, and then over the copies, which are sent through another wire."""
        size = REDUCED * parameters
        across = machine.all_reduce(size / shards, copies) if copies > 1 else 0.0
        return machine.ring(size, shards), across

    lead = gather(model.ends) + gather(model.layer)
    others = (model.layers - 1) * gather(model.layer)
    layer, ends = reduce(model.layer), reduce(model.ends)
    tail = sum(layer) + sum(ends)
    # Layers are gathered again; embedding and head were kept.
    sharded = model.layers * gather(model.layer) + (model.layers - 1) * layer[0]
    copied = (model.layers - 1) * layer[1]
    forward = machine.forward * machine.step
    excess = max(0.0, others - forward)
    excess += max(0.0, max(sharded, copied) - (machine.step - forward))
    exposed = lead + excess + tail
    return Projection(lead + others + sharded + copied + tail, exposed, machine.step + exposed)


def table(machine: Machine, model: Model, two_gpus: float) -> str:
    """A row for each number of GPUs and layout.

    Args:
        two_gpus: Seconds of a step that were measured on two GPUs. What they are more than
            projected is added in the last column.
    """
    unexplained = two_gpus - project(machine, model, 2, hybrid=False).step
    rows = [COLUMNS, ["---"] * len(COLUMNS)]
    for gpus in GPUS:
        for hybrid in (False, True) if gpus > machine.node else (False,):
            found = project(machine, model, gpus, hybrid=hybrid)
            times = [found.wire, found.exposed, found.step]
            rows.append(
                [str(gpus), "HSDP" if hybrid else "FSDP2"]
                + [f"{1e3 * each:.1f}" for each in times]
                + [f"{machine.tokens / found.step:,.0f}"]
                + [f"{machine.step / each:.3f}" for each in (found.step, found.step + unexplained)]
            )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--step-ms", type=float, default=136.7, help="measured on one GPU")
    parser.add_argument("--two-gpus-ms", type=float, default=161.4, help="the same on two")
    parser.add_argument("--net-gb", type=float, default=50, help="GB/s between nodes for each GPU")
    options = parser.parse_args()
    machine = Machine(step=options.step_ms / 1e3, net=options.net_gb * 1e9)
    print(table(machine, Model(), options.two_gpus_ms / 1e3), end="")


if __name__ == "__main__":
    main()
