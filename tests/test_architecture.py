"""The floors of the house: every import goes downwards, and the forbidden packages are never imported."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "megatron_jmed"

# A room may import the rooms below it. `errors` and its `exit_codes` are the cellar, `config` stands on it, and so on upwards.
MAY_IMPORT = {
    "exit_codes": set(),
    "errors": {"exit_codes"},
    "config": {"errors", "recipes"},  # a recipe's name is looked up at run time; recipes import config
    "recipes": {"config"},
    "native": set(),
    "corpus": {"errors", "native"},
    "run_folder": {"errors", "config"},
    "cpu": set(),
    "kernels": set(),
    "parallel": {"errors", "config", "cpu"},
    "model": {"errors", "config", "parallel", "cpu", "kernels"},
    "data": {"errors", "config", "corpus", "parallel", "run_folder"},
    "train": {"errors", "exit_codes", "config", "corpus", "run_folder", "parallel", "cpu", "model", "data"},
    "convert": {"errors", "config", "corpus", "run_folder"},
    "evaluate": {"errors", "corpus"},
}
FORBIDDEN = {
    "native": ("torch", "megatron"),
    "corpus": ("torch", "megatron"),
    "config": ("torch", "megatron"),
    "recipes": ("torch", "megatron"),
    "run_folder": ("torch", "megatron"),
    "kernels": ("megatron",),
    "convert": ("megatron",),
    "evaluate": ("megatron",),
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files():
    return [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py"]


def test_every_room_has_a_floor():
    assert {room_of(path) for path in files()} == set(MAY_IMPORT)


def test_imports_go_downwards():
    wrong = []
    for path in files():
        room = room_of(path)
        for module in imported_modules(path):
            if module.startswith("megatron_jmed."):
                other = module.split(".")[1]
                if other != room and other not in MAY_IMPORT[room]:
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert not wrong


def test_rooms_without_torch_or_megatron_stay_without():
    wrong = [f"{path.relative_to(PACKAGE)} imports {module}"
             for path in files() for module in imported_modules(path)
             if module.split(".")[0] in FORBIDDEN.get(room_of(path), ())]
    assert not wrong


def test_megatron_training_and_legacy_are_never_imported():
    for path in files():
        for module in imported_modules(path):
            assert not module.startswith(("megatron.training", "megatron.legacy")), f"{path}: {module}"


def test_each_danger_has_one_door():
    for path in files():
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(PACKAGE))
        assert name == "parallel.py" or "init_process_group(" not in text, name
        assert name == "parallel.py" or "parallel_state" not in text or "`parallel_state`" in text, name
        assert name == "model/build.py" or "GPTModel(" not in text, name
        assert "get_args()" not in text, name  # Megatron-LM's global; typing.get_args takes an argument


def test_tools_are_not_named_like_the_standard_library():
    import sys

    for path in (PACKAGE.parent / "tools").glob("*.py"):
        assert path.stem not in sys.stdlib_module_names
