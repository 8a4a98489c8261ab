# SPDX-License-Identifier: Apache-2.0
"""The house rules as checks over source trees; tests/unit/test_architecture.py runs them.

Each check takes the root of a tree and yields one sentence per violation, so the same code runs on this
repository and on the small wrong trees that prove that it can fail. `python -m tests.architecture` prints the
files that are longer than FILE_LINES_MAX.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

FILE_LINES_MAX = 400
"""Past it a reviewer asks whether a file holds two ideas. It is a report, not a failure."""

FUNCTION_LINES_MAX = 60
"""Without the docstring: a long explanation is no reason to cut a function in two."""

PACKAGES = {
    "rowhouse": "proto/rowhouse", "ps_server": "ps_server", "ps_client": "ps_client",
    "feature_cross": "feature_cross",
}  # fmt: skip
FREE = ("examples", "benchmarks", "tests", "tools")
GENERATED = re.compile(r"_pb2(_grpc)?\.py$")

FORBIDDEN_IMPORTS = {
    "rowhouse": {"ps_server", "ps_client", "feature_cross", *FREE},
    "ps_server": {"ps_client", "feature_cross", *FREE},
    "ps_client": {"ps_server", "feature_cross", *FREE},
    "feature_cross": {"rowhouse", "ps_server", "ps_client", *FREE},
}
"""DESIGN.md section 3: the contract imports neither side, the sides never each other, crosses none."""

ALLOWED = {
    "feature_cross/": (
        "rowhouse.distribution", "rowhouse.document", "rowhouse.edit", "rowhouse.error", "rowhouse.problem",
        "rowhouse.program", "rowhouse.validation",
    ),
    "ps_server/command/": ("ps_client",),
}  # fmt: skip
"""What a place may import although its package may not. Crosses use leaves of the contract, which import
nothing of ours. The commands beside the server ask running shards as any client does, over its transport, so
that channels and errors are made in one place; nothing that runs in a shard may."""

PRIVATE_LIBRARIES = {"rocksdict": "ps_server/disk/store.py", "torch": "ps_client/torch/"}
"""A library and the one place of the packages that may import it."""

FLOORS: dict[str, tuple[str, ...]] = {
    "rowhouse": (
        "codec control document edit frame validation", "dtype kernel message placement",
        "cache distribution error file limit malloc mix problem program v1",
    ),
    "ps_server": (
        "cli psctl", "command", "plan", "serve", "bulk", "shard", "life", "config", "table", "disk",
        "kernel",
    ),
    "feature_cross": ("author", "engine", "data", "config", "kernel", "error id_format limit"),
    "ps_client": (
        "torch", "client connection pace", "row", "exchange step", "cluster long_call split report",
        "lane retry validation", "kernel notice table transport", "interrupt",
    ),
}  # fmt: skip
"""The folders and modules of a package, a floor at a time from the roof down; names of one floor stand side
by side. A module imports from its own floor and from lower ones."""

BANNED_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
SPDX = "# SPDX-License-Identifier: Apache-2.0"

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Source:
    """One parsed file; `path` is relative to the root, `package` the package or free folder it is in."""

    path: str
    package: str
    text: str
    tree: ast.Module


_parsed = lru_cache(maxsize=None)(ast.parse)
"""Nobody changes a tree, and every check looks at the same files."""


def sources(root: Path) -> Iterator[Source]:
    """Every Python file of the packages and the free folders, generated stubs left out."""
    folders = {**PACKAGES, **{name: name for name in FREE}}
    for package, folder in folders.items():
        for path in sorted((root / folder).rglob("*.py")):
            if not GENERATED.search(path.name):
                text = path.read_text(encoding="utf-8")
                yield Source(path.relative_to(root).as_posix(), package, text, _parsed(text))


def imported_modules(tree: ast.Module, path: str) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of each import, also relative ones and `import_module("…")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = path.removeprefix("proto/").split("/")[: -node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def check_imports(root: Path) -> Iterator[str]:
    """Arrows against DESIGN.md section 3, and private libraries outside their place."""
    for source in sources(root):
        for line, module in imported_modules(source.tree, source.path):
            top = module.split(".")[0]
            allowed = [m for place, names in ALLOWED.items() if source.path.startswith(place) for m in names]
            if top in FORBIDDEN_IMPORTS.get(source.package, ()) and not any(
                f"{module}.".startswith(f"{name}.") for name in allowed
            ):
                yield f"{source.path}:{line}: {source.package} imports {module}"
            place = PRIVATE_LIBRARIES.get(top)
            if place and source.package in PACKAGES and not source.path.startswith(place):
                yield f"{source.path}:{line}: {top} is imported outside {place}"


def floor_of(package: str, dotted: str) -> int | None:
    """Number of the floor of a module of the package, 0 for the roof; None for the package itself."""
    parts = dotted.split(".")
    if len(parts) < 2 or parts[0] != package:
        return None
    found = [number for number, names in enumerate(FLOORS[package]) if parts[1] in names.split()]
    return found[0] if found else None


def module_name(source: Source) -> str:
    """The dotted name that a file of a package is imported by."""
    inner = source.path.removeprefix(PACKAGES[source.package]).strip("/").removesuffix(".py")
    return ".".join([source.package, *(part for part in inner.split("/") if part != "__init__")])


def check_floors(root: Path) -> Iterator[str]:
    """Arrows that run upwards between the floors of a package, and modules that stand on no floor."""
    for source in sources(root):
        if source.package not in FLOORS or (own := module_name(source)) == source.package:
            continue
        floor = floor_of(source.package, own)
        if floor is None:
            yield f"{source.path}: stands on no floor of {source.package} (FLOORS in tests/architecture.py)"
            continue
        for line, module in imported_modules(source.tree, source.path):
            other = floor_of(source.package, module)
            if other is not None and other < floor:
                yield f"{source.path}:{line}: imports {module}, which stands {floor - other} floors above it"


def check_circles(root: Path) -> Iterator[str]:
    """Modules that import each other in a circle, through however many others."""
    known = {module_name(s): s for s in sources(root) if s.package in PACKAGES}
    arrows = {  # an import of the package that a module is in is how Python spells one of its neighbours
        name: {
            m
            for _, m in imported_modules(s.tree, s.path)
            if m in known and not f"{name}.".startswith(f"{m}.")
        }
        for name, s in known.items()
    }
    reached = {name: _reached_from(name, arrows) for name in arrows}
    told: set[str] = set()
    for name in sorted(arrows):
        others = [m for m in sorted(reached[name]) if m > name and name in reached[m]]
        if others and name not in told:
            told.update(others)
            yield f"{name} and {', '.join(others)} import each other in a circle"


def _reached_from(name: str, arrows: dict[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    ahead = [*arrows[name]]
    while ahead:
        module = ahead.pop()
        if module not in reached:
            reached.add(module)
            ahead += arrows[module]
    return reached


def long_files(root: Path) -> Iterator[str]:
    """Files past FILE_LINES_MAX: a report for the reviewer, who asks whether the file holds two ideas."""
    for source in sources(root):
        lines = len(source.text.splitlines())
        if lines > FILE_LINES_MAX:
            yield f"{source.path}: {lines} lines"


def check_functions(root: Path) -> Iterator[str]:
    """Functions that have outgrown their room."""
    for source in sources(root):
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size, place = _function_lines(node), f"{source.path}:{node.lineno}"
                if size > FUNCTION_LINES_MAX:
                    yield f"{place}: {node.name} has {size} lines; at most {FUNCTION_LINES_MAX}"


def _function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    size = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node) is not None:
        first = node.body[0]
        size -= (first.end_lineno or first.lineno) - first.lineno + 1
    return size


def check_names(root: Path) -> Iterator[str]:
    """Module and folder names that say nothing."""
    for source in sources(root):
        banned = BANNED_NAMES.intersection(source.path.removesuffix(".py").split("/"))
        yield from (f"{source.path}: no module is called {name!r}" for name in sorted(banned))


def check_license(root: Path) -> Iterator[str]:
    """Files without the SPDX line on top (after a #! line, if there is one)."""
    for source in sources(root):
        lines = source.text.splitlines()
        if SPDX not in lines[: 2 if lines and lines[0].startswith("#!") else 1]:
            yield f"{source.path}: the first line must be {SPDX!r}"


def public_definitions(tree: ast.Module) -> Iterator[tuple[str, Definition]]:
    """(dotted name, node) of public functions, classes and their public methods; overloads left out."""
    stack: list[tuple[str, ast.Module | ast.ClassDef]] = [("", tree)]
    while stack:
        prefix, parent = stack.pop()
        for node in parent.body:
            if not isinstance(node, Definition) or node.name.startswith("_") or _is_variant(node):
                continue
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                stack.append((f"{prefix}{node.name}.", node))


def _is_variant(node: Definition) -> bool:
    """An @overload, or the setter or deleter of a property: the first definition has the docstring."""
    names = {d.attr if isinstance(d, ast.Attribute) else getattr(d, "id", "") for d in node.decorator_list}
    return bool(names & {"overload", "setter", "deleter"})


def check_docstrings(root: Path) -> Iterator[str]:
    """Public functions, classes and methods of the packages without a docstring."""
    for source in sources(root):
        if source.package in PACKAGES:
            for name, node in public_definitions(source.tree):
                if not ast.get_docstring(node):
                    yield f"{source.path}:{node.lineno}: {name} has no docstring"


def documented_parameters(docstring: str) -> list[str] | None:
    """Names under the NumPy-style heading "Parameters"; None when there is no such section."""
    lines = docstring.splitlines()
    starts = [
        i for i in range(1, len(lines)) if lines[i - 1] == "Parameters" and re.fullmatch("-{3,}", lines[i])
    ]
    if not starts:
        return None
    names: list[str] = []
    for i in range(starts[0] + 1, len(lines)):
        if i + 1 < len(lines) and re.fullmatch("-{3,}", lines[i + 1]):
            break  # the next section's heading
        if lines[i] and not lines[i].startswith(" "):
            names += [n.strip().lstrip("*") for n in lines[i].split(":")[0].split(",")]
    return names


def real_parameters(node: Definition) -> list[str]:
    """Names of a function's arguments without self and cls; of a class: of __init__ or of its fields."""
    if isinstance(node, ast.ClassDef):
        inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        if inits:
            return real_parameters(inits[0])
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
        return [n.target.id for n in fields if isinstance(n.target, ast.Name)]
    a = node.args
    extra = [v for v in (a.vararg, a.kwarg) if v is not None]
    names = [x.arg for x in [*a.posonlyargs, *a.args, *extra, *a.kwonlyargs]]
    return [n for n in names if n not in ("self", "cls")]


def check_parameters(root: Path) -> Iterator[str]:
    """Documented arguments that the signature has not, and the reverse."""
    for source in sources(root):
        for name, node in public_definitions(source.tree):
            documented = documented_parameters(ast.get_docstring(node) or "")
            if documented is None:
                continue
            real = real_parameters(node)
            for wrong in [n for n in documented if n not in real]:
                yield f"{source.path}:{node.lineno}: {name} documents {wrong!r}, which it does not take"
            for absent in [n for n in real if n not in documented]:
                yield f"{source.path}:{node.lineno}: {name} takes {absent!r}, which it does not document"


if __name__ == "__main__":
    for report in long_files(Path(__file__).resolve().parents[1]):
        print(f"long, is it two rooms? {report}")
