"""Connections between layers of a transformer: readers of norms, parts of heads, and the residual stream.

These are candidates, found by shared memory and order of execution; `lpvit.bases.proof` keeps the correct ones.
D = width of the residual stream; H = heads; d = features of a head.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lpvit.models.analysis.layers import Body, LayerSpec, traced_layers
from lpvit.models.analysis.trace import IMAGES, Span, Trace, hooks, quiet, random_images, trace

_READING = {"qkv", "fc1", "head", "reduction"}  # roles of what reads the stream through a norm


@dataclass(frozen=True)
class Rows:
    """Outputs of a layer: ``start`` to ``start + count``."""

    layer: str
    start: int
    count: int

    @property
    def slice(self) -> slice:
        return slice(self.start, self.start + self.count)


@dataclass(frozen=True)
class Norm:
    """A norm over the last dimension and the layers that multiply what it gives.

    Attributes:
        reads_stream: Its input is the residual stream, in the tokens' own order or, of patch merging, several side by
            side; false of a norm within attention or MLP, and of one that no layer is known to read.
    """

    name: str
    width: int
    readers: tuple[str, ...]
    reads_stream: bool


@dataclass(frozen=True)
class Scale:
    """A parameter (O,) that multiplies the output of a layer: LayerScale."""

    parameter: str
    layer: str


@dataclass(frozen=True)
class Heads:
    """Queries, keys and values of an attention, (H * d) rows each, and the layer that reads the mixed values.

    Attributes:
        cosine: Whether only the directions of queries and keys count.
        between_values: Operation between the mixed values and the output layer; empty if none is known.
        between_queries: Operation between queries or keys and their product; likewise.
    """

    name: str
    heads: int
    queries: Rows
    keys: Rows
    values: Rows
    output: str
    cosine: bool
    between_values: str
    between_queries: str


@dataclass(frozen=True)
class Hidden:
    """Hidden units of an MLP: rows of one layer, or with a gate of two or of its halves; columns of their reader."""

    rows: tuple[Rows, ...]
    reader: str
    norm: str | None


@dataclass(frozen=True)
class Stream:
    """The residual stream of the transformer blocks of one width D.

    Attributes:
        name: Of its first transformer block.
        writers: Layers whose outputs are added to it.
        parameters: What else is: positions and tokens, (..., D).
        norms: Through which it is read.
        others: Norms of its width that no layer is known to read: they stand in the stream itself.
    """

    name: str
    width: int
    writers: tuple[str, ...]
    parameters: tuple[str, ...]
    norms: tuple[Norm, ...]
    others: tuple[str, ...]


@dataclass(frozen=True)
class Wiring:
    """The result of `wiring_of`."""

    norms: tuple[Norm, ...]
    scales: tuple[Scale, ...]
    heads: tuple[Heads, ...]
    hidden: tuple[Hidden, ...]
    streams: tuple[Stream, ...]

    def without(self, unread: Collection[str]) -> "Wiring":
        """Some norms turned out to feed other layers than was thought, or none: then they stand in the stream."""

        def checked(norm: Norm) -> Norm:
            return replace(norm, readers=(), reads_stream=False) if norm.name in unread else norm

        streams = [
            replace(
                stream,
                norms=tuple(norm for norm in stream.norms if norm.name not in unread),
                others=(*stream.others, *(norm.name for norm in stream.norms if norm.name in unread)),
            )
            for stream in self.streams
        ]
        return replace(self, norms=tuple(map(checked, self.norms)), streams=tuple(streams))


def wiring_of(model: nn.Module) -> Wiring:
    """Looks at two passes of a model; timm's names are used where only they tell queries, keys and values apart."""
    look = _Look.at(model)
    norms = look.norms()
    heads = look.heads(norms)
    streams = look.streams(norms)
    return Wiring(norms, look.scales(), heads, look.hidden(norms), streams)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm over features, such as LayerNorm and RMSNorm."""
    return hasattr(module, "normalized_shape")


def subtracts_mean(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm)


@dataclass(frozen=True)
class _Look:
    """A model and its trace.

    Attributes:
        memory: Norm or layer -> where its input and its output lie.
    """

    model: nn.Module
    spans: dict[str, Span]
    body: Body
    layers: dict[str, LayerSpec]
    memory: dict[str, tuple[int, int]]

    @classmethod
    def at(cls, model: nn.Module) -> "_Look":
        traced: Trace = trace(model)
        layers = {layer.name: layer for layer in traced_layers(model, traced) if not layer.obstacle}
        return cls(model, traced.spans, Body.of(model, traced), layers, _memory(model, layers))

    @property
    def _last_block_end(self) -> int:
        return max(span.end for span in self.body.spans.values())

    def _is_inside(self, name: str) -> bool:
        """Whether something is a part of the body: of a transformer block or a stage."""
        return any(name.startswith(f"{part}.") for part in self.body.spans)

    def norms(self) -> tuple[Norm, ...]:
        """Every norm that ran once, in order of execution.

        A layer reads the norm whose output's memory it is given; where it was copied on the way (windows, means), one
        that by its role reads the stream is taken to read the last norm before it, if nothing else does.
        """
        names = [name for name, module in self.model.named_modules() if is_norm(module) and name in self.spans]
        names = sorted((name for name in names if self.spans[name].calls == 1), key=lambda name: self.spans[name].start)
        readers: dict[str, list[str]] = {
            norm: [layer for layer in self.layers if self.memory[layer][0] == self.memory[norm][1]] for norm in names
        }
        free = {norm for norm in names if not readers[norm]}
        known = {layer for layers in readers.values() for layer in layers}
        for name, layer in self.layers.items():
            before = [norm for norm in names if self.spans[norm].end < self.spans[name].start]
            reads = name not in known and layer.role in _READING
            if reads and before and before[-1] in free and self.spans[before[-1]].width == layer.in_features:
                readers[before[-1]].append(name)
        return tuple(
            Norm(norm, self.spans[norm].width, tuple(readers[norm]), self._reads_stream(norm, readers[norm]))
            for norm in names
        )

    def _reads_stream(self, norm: str, readers: Sequence[str]) -> bool:
        """Behind the last transformer block only the first norm: the others are of a head with layers of its own."""
        if self.spans[norm].start > self._last_block_end:
            between = (self._last_block_end, self.spans[norm].start)
            return bool(readers) and not any(between[0] < self.spans[layer].start < between[1] for layer in self.layers)
        return any(self.layers[layer].role in _READING for layer in readers)

    def scales(self) -> tuple[Scale, ...]:
        """The layer before LayerScale: by memory, or by order among those that write to the stream of its block."""
        scales = []
        for name, parameter in self.model.named_parameters():
            place, _, last = name.rpartition(".")
            if parameter.dim() != 1 or not last.startswith("gamma") or not self._is_inside(name):
                continue
            layers = self._writers(len(parameter))
            if place in self.body.blocks:
                number = _number_among(self.model.get_submodule(place), last)
                layers = [layer for layer in layers if layer.startswith(f"{place}.")][number : number + 1]
            else:
                layers = [layer for layer in layers if self.spans[layer].end < self.spans[place].start][-1:]
            scales += [Scale(name, layer) for layer in layers]
        return tuple(scales)

    def _writers(self, width: int) -> list[str]:
        """Layers in transformer blocks that write to a stream of this width, in order of execution."""
        return [
            name
            for name, layer in self.layers.items()
            if layer.role in ("proj", "fc2") and layer.out_features == width and self._is_inside(name)
        ]

    def heads(self, norms: Sequence[Norm]) -> tuple[Heads, ...]:
        found = (self._heads(name, module, norms) for name, module in self.model.named_modules())
        return tuple(heads for heads in found if heads is not None)

    def _heads(self, name: str, module: nn.Module, norms: Sequence[Norm]) -> Heads | None:
        heads = getattr(module, "num_heads", None) or getattr(module, "heads", None)
        output = self.layers.get(f"{name}.proj")
        if not isinstance(heads, int) or output is None or not self._is_inside(name):
            return None
        rows = self._query_key_value(name, output.in_features)
        if rows is None or output.in_features % heads:
            return None
        norm = next((norm.name for norm in norms if output.name in norm.readers and not norm.reads_stream), None)
        gated = getattr(module, "gate", None) is not None
        values = (
            f"'{norm}' stands before '{output.name}'" if norm else "a gate weighs the mixed values" if gated else ""
        )
        cosine = hasattr(module, "logit_scale")
        return Heads(name, heads, *rows, output.name, cosine, values, _between_queries(self.model, module))

    def _query_key_value(self, name: str, width: int) -> tuple[Rows, Rows, Rows] | None:
        """Rows of queries, keys and values; None where they are not ``width`` each, or not by these names."""
        for names in (("qkv",), ("qk", "v"), ("q", "kv"), ("q_proj", "k_proj", "v_proj"), ("q", "k", "v")):
            layers = [self.layers.get(f"{name}.{part}") for part in names]
            rows = [
                Rows(layer.name, start, width)
                for layer in layers
                if layer is not None
                for start in range(0, layer.out_features, width)
            ]
            if len(rows) == 3 and all(layer is not None for layer in layers):
                return rows[0], rows[1], rows[2]
        return None

    def hidden(self, norms: Sequence[Norm]) -> tuple[Hidden, ...]:
        found = []
        for name, layer in self.layers.items():
            place = name.rpartition(".")[0]
            if layer.role != "fc2" or not self._is_inside(name):
                continue
            feeders = [
                other
                for other in self.layers.values()
                if other.role == "fc1" and other.name.rpartition(".")[0] == place
            ]
            rows = [
                Rows(feeder.name, start, layer.in_features)
                for feeder in feeders
                for start in range(0, feeder.out_features, layer.in_features)
            ]
            norm = next((norm.name for norm in norms if name in norm.readers and not norm.reads_stream), None)
            if rows and all(feeder.out_features % layer.in_features == 0 for feeder in feeders):
                found.append(Hidden(tuple(rows), name, norm))
        return tuple(found)

    def streams(self, norms: Sequence[Norm]) -> tuple[Stream, ...]:
        """One for every width of transformer blocks, the first with what was there before them."""
        blocks = sorted(self.body.blocks, key=lambda block: self.spans[block].start)
        widths = {self.spans[block].width: block for block in reversed(blocks)}
        first = self.spans[blocks[0]].width
        return tuple(self._stream(width, widths[width], width == first, norms) for width in reversed(widths))

    def _stream(self, width: int, block: str, first: bool, norms: Sequence[Norm]) -> Stream:
        entries = [
            layer.name for layer in self.layers.values() if layer.role == ("patch_embed" if first else "reduction")
        ]
        entries = [name for name in entries if self.layers[name].out_features == width][-1:]
        reading = [norm for norm in norms if norm.reads_stream and self._is_of(norm, width)]
        others = [norm.name for norm in norms if norm.width == width and not norm.readers]
        parameters = tuple(self._parameters(width)) if first else ()
        return Stream(block, width, (*entries, *self._writers(width)), parameters, tuple(reading), tuple(others))

    def _is_of(self, norm: Norm, width: int) -> bool:
        """Of that width, or a patch merging's of four times that, before a reduction."""
        merges = any(self.layers[layer].role == "reduction" for layer in norm.readers)
        return norm.width == width * 4 if merges else norm.width == width

    def _parameters(self, width: int) -> Iterator[str]:
        """Those of no layer or norm, outside of transformer blocks and of what runs behind them."""
        for name, parameter in self.model.named_parameters():
            place = name.rpartition(".")[0]
            span = self.spans.get(place)
            behind = span is not None and span.start > self._last_block_end
            own = isinstance(self.model.get_submodule(place), nn.Linear | nn.Conv2d) or is_norm(
                self.model.get_submodule(place)
            )
            if parameter.dim() > 1 and parameter.shape[-1] == width and not (behind or own or self._is_inside(name)):
                yield name


def _memory(model: nn.Module, layers: dict[str, LayerSpec]) -> dict[str, tuple[int, int]]:
    """Addresses of inputs and outputs while all of them are alive, so that equal ones are the same memory."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            seen[name] = (inputs[0], output)

    watched = [(name, module) for name, module in model.named_modules() if name in layers or is_norm(module)]
    handles = [
        module.register_forward_hook(lambda _, inputs, output, name=name: note(name, inputs, output))
        for name, module in watched
    ]
    with torch.no_grad(), quiet(model), hooks(handles):
        model(random_images(model, IMAGES))
    return {name: (_address(given), _address(made)) for name, (given, made) in seen.items()}


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _number_among(block: nn.Module, parameter: str) -> int:
    """Place of a block's own LayerScale in order of names, which is that of execution in timm but for XCiT."""
    names = sorted(name for name, _ in block.named_parameters(recurse=False) if name.startswith("gamma"))
    return names.index(parameter)


def _gate(attention: nn.Module) -> str:
    return "a gate weighs the mixed values" if getattr(attention, "gate", None) is not None else ""


def _between_queries(model: nn.Module, attention: nn.Module) -> str:
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    if any(norm is not None and is_norm(norm) for norm in norms):
        return "queries and keys are normalised"
    if any(name.rpartition(".")[2] == "rope" for name, _ in model.named_modules()):
        return "rotary positions: only a complex number for each pair of frequencies would be free"
    if getattr(attention, "q_stride", 1) > 1:
        return "queries are max-pooled"
    return ""
