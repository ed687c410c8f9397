"""The wheel holds the package and nothing else, and works where only the wheel is installed."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from agentopcd.models.find import SHIPPED


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, root, cwd=out)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the wheel. Its dependencies are those of this environment, reached by a path
    entry; this environment's own (editable) agentopcd is not, because a ``.pth`` file is read only in the
    folder it lies in."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    install = ("-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    run(sys.executable, *install, cwd=folder)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    dependencies = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (Path(site) / "dependencies.pth").write_text("".join(f"{path}\n" for path in dependencies))
    return python


def test_names_in_the_wheel(wheel: Path, root: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.partition("/")[0].split("-")[0] for name in names} == {"agentopcd"}
    shipped = {name for name in names if name.startswith("agentopcd/")}
    sources = {path.relative_to(root).as_posix() for path in (root / "agentopcd").rglob("*.py")}
    assert {name for name in shipped if name.endswith(".py")} == sources
    assert {"agentopcd/py.typed", "agentopcd/cli/templates/rows.jsonl"} <= shipped
    assert not [name for name in names if name.endswith((".pyc", ".db"))]
    weights = {name for name in names if name.endswith(".safetensors")}
    assert weights == {f"agentopcd/models/weights/{name}/model.safetensors" for name in SHIPPED}
    assert {f"agentopcd/models/weights/{name}/tokenizer.json" for name in SHIPPED} <= names
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assert [name for name in names if name.endswith("licenses/NOTICE")]


def test_plays_where_only_the_wheel_is_installed(python: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    where = run(python, "-c", "import agentopcd; print(agentopcd.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(python.parent.parent), f"imported from {where}, not from the wheel"
    run(python.parent / "agentopcd", "--version", cwd=tmp_path)
    play = ("play", "--env", "math", "--model", tiny_model_dir, "--episodes", "2", "--no-extract")
    out = run(python.parent / "agentopcd", *play, cwd=tmp_path)
    assert out.strip()
    assert (tmp_path / "agentopcd-work" / "store.db").is_file()
