"""An ONNX graph under construction: what is known is computed, what is there already is reused."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

OPSETS = {18: 8, 23: 11}  # the oldest IR version that each goes with
OPSET = 23  # the first with the operator Attention
LARGEST_RESULT = 2**16  # bytes that a constant takes though it is larger than what it is made of


class Graph:
    """Nodes and constants of an ONNX graph, in order.

    A value is known by its name. Equal constants, and nodes of one kind with the same inputs, are
    written once; a node of which all inputs are constants becomes a constant itself, unless that
    takes much more room: runtimes compute it when they load the file. So a writer may ask for the
    geometry of a map wherever it needs it, and a graph for one image size holds the geometry as
    numbers, or as what makes them.

    Args:
        dtype: of weights and activations, float32 or float16.
        opset: version of ONNX's operators, of `OPSETS`.
        loops: whether what takes much room may be done a part at a time, in a `Loop`.

    Attributes:
        dtype, opset, loops: as given.
        nodes, inputs, outputs: of `onnx`, as they will stand in the file.
        constants: arrays by name.
    """

    def __init__(
        self,
        dtype: type[np.floating] = np.float32,
        opset: int = OPSET,
        *,
        loops: bool = True,
    ) -> None:
        self.dtype, self.opset, self.loops = dtype, opset, loops
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self._constant_names: dict[tuple, str] = {}
        self._names: dict[tuple, str] = {}  # of nodes' outputs
        self._written = 0  # of nodes written, those of loops included

    def add_input(self, name: str, dtype: type[np.generic], shape: list[int | str]) -> str:
        """Declare an input; a dimension with a name is free."""
        self.inputs.append(_declare(name, dtype, shape))
        return name

    def add_output(
        self, value: str, name: str, dtype: type[np.generic], shape: list[int | str]
    ) -> None:
        """Declare a value as an output, cast to the type given; it takes the output's name."""
        if dtype is not self.dtype:
            value = self.cast(value, dtype)
        for node in _list_all(self.nodes):
            for names in (node.input, node.output):
                for place, one in enumerate(names):
                    if one == value:
                        names[place] = name
        self.outputs.append(_declare(name, dtype, shape))

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """The name of a constant: numbers, or an array, as a type."""
        array = np.ascontiguousarray(value, dtype).reshape(np.shape(value))
        content = hashlib.blake2b(array.data).digest()
        key = (str(array.dtype), array.shape, content)
        if key not in self._constant_names:
            self._constant_names[key] = f"constant_{len(self.constants)}"
            self.constants[self._constant_names[key]] = array
        return self._constant_names[key]

    def weight(self, value: Any) -> str:
        """The name of a constant in the graph's own type."""
        return self.constant(value, self.dtype)

    def add(self, operator: str, *inputs: str | int | list[int], **attributes: Any) -> str:
        """Add a node of one output and return the output's name.

        Args:
            operator: of ONNX, as "MatMul".
            inputs: names of values; whole numbers and lists of them stand for constants; "" for an
                input that is left out.
            attributes: of the operator.
        """
        return self.add_node(operator, *inputs, **attributes)[0]

    def add_node(
        self, operator: str, *inputs: str | int | list[int], outputs: int = 1, **attributes: Any
    ) -> list[str]:
        """Add a node and return its outputs' names."""
        from onnx import helper

        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        key = (operator, *names, repr(sorted(attributes.items())))
        kept = [self._names.get((*key, place)) for place in range(outputs)]
        if None not in kept:
            return [name for name in kept if name is not None]
        # Numbered by the nodes: constants that come and go don't change the names.
        made = [f"{operator}_{self._written}_{place}" for place in range(outputs)]
        node = helper.make_node(operator, names, made, name=made[0], **attributes)
        arrays = self._compute(node)
        if arrays is None:
            self.nodes.append(node)
            self._written += 1
        else:
            made = [self.constant(array, array.dtype) for array in arrays]
        for place, name in enumerate(made):
            self._names[(*key, place)] = name
        return made

    def add_loop(self, count: str, write: Callable[[str], str]) -> str:
        """Add a loop and return the name of its results, [count, ...].

        Args:
            count: name of a scalar, how often.
            write: writes what is done each time and returns the result, whose shape is always the
                same. It is given the name of a scalar, which counts from 0.
        """
        from onnx import helper

        if self.constants.get(count) == 1:
            return self.add("Unsqueeze", write(self.constant(0)), [0])
        name = f"Loop_{self._written}"
        self._written += 1
        number, always, again, made = (
            f"{name}_{what}" for what in ("number", "always", "again", "0")
        )
        # What is written outside can be used inside, but not the other way round.
        nodes, names = self.nodes, self._names
        self.nodes, self._names = [], dict(names)
        result = write(number)
        body = [*self.nodes, helper.make_node("Identity", [always], [again], name=again)]
        self.nodes, self._names = nodes, names
        graph = helper.make_graph(
            body,
            name,
            [_declare(number, np.int64, []), _declare(always, np.bool_, [])],
            [_declare(again, np.bool_, []), _declare(result, self.dtype, None)],
        )
        self.nodes.append(helper.make_node("Loop", [count, ""], [made], name=name, body=graph))
        return made

    def shape(self, *sizes: str | int) -> str:
        """A one-dimensional constant or value of sizes, which are numbers or names of scalars."""
        parts = [self.add("Reshape", self._scalar(size), [1]) for size in sizes]
        return self.add("Concat", *parts, axis=0)

    def reshape(self, value: str, *sizes: str | int) -> str:
        """Reshape a value; one of the sizes may be -1."""
        return self.add("Reshape", value, self.shape(*sizes))

    def cast(self, value: str, dtype: Any) -> str:
        """A value as another type."""
        from onnx import helper

        return self.add("Cast", value, to=helper.np_dtype_to_tensor_dtype(_of(dtype)))

    def finish(self, metadata: Mapping[str, str]) -> Any:
        """The whole as `onnx.ModelProto`, without what no output needs."""
        from onnx import helper, numpy_helper

        used, nodes = {output.name for output in self.outputs}, []
        for node in reversed(self.nodes):
            if used.intersection(node.output):
                used.update(*(one.input for one in _list_all([node])))
                nodes.insert(0, node)
        weights = [
            numpy_helper.from_array(array, name)
            for name, array in self.constants.items()
            if name in used
        ]
        graph = helper.make_graph(nodes, "halonet", self.inputs, self.outputs, weights)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=OPSETS[self.opset],
            producer_name="halonet",
        )
        helper.set_model_props(model, dict(metadata))
        return model

    def _scalar(self, size: str | int) -> str:
        return size if isinstance(size, str) else self.constant(size)

    def _compute(self, node: Any) -> list[np.ndarray] | None:
        """The results of a node; None where they aren't known, or larger than what they're of."""
        from onnx.reference import ReferenceEvaluator

        if any(name and name not in self.constants for name in node.input):
            return None
        known = {name: self.constants[name] for name in node.input if name}
        evaluator: Any = ReferenceEvaluator(node)
        results = [np.asarray(one) for one in evaluator.run(None, known)]
        room = max(LARGEST_RESULT, sum(array.nbytes for array in known.values()))
        return results if sum(array.nbytes for array in results) <= room else None


def _list_all(nodes: list[Any]) -> Iterator[Any]:
    """Nodes, and those in loops."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _list_all(attribute.g.node)


def _of(dtype: Any) -> np.dtype:
    return np.dtype(dtype)


def _declare(name: str, dtype: Any, shape: list[int | str] | None) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(_of(dtype)), shape)
