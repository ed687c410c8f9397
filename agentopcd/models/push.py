"""A student on the model hub: the files of its folder, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path

from agentopcd.core.errors import ConfigError, ModelError
from agentopcd.core.files import is_dir, is_file, path_of, resolved
from agentopcd.core.runs import writing
from agentopcd.core.text import first_line
from agentopcd.models import find

ALLOWED = (
    "README.md", "agentopcd.json", "config.json", "generation_config.json", "adapter_config.json",
    "adapter_model.safetensors", "model*.safetensors", "model.safetensors.index.json", "chat_template.jinja",
    f"{find.TEMPLATES}/*.jinja", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "*.model",
)  # fmt: skip
"""The files of a student, and of the base that an adapter carries. What else lies in the folder stays there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parcel:
    """What is pushed."""

    folder: Path
    files: dict[str, int]
    """Name in the repository to size in bytes."""
    left_out: list[str]
    """Other files of the folder."""
    local_base: bool
    """Whether it is an adapter whose base is neither on a hub nor in the folder."""


def parcel(name: str) -> Parcel:
    """What of a student's folder would be pushed.

    Raises:
        ModelError: it is no folder with the weights of a model or an adapter, as a student's is.
    """
    folder = resolved(path_of(name))
    weights = [file for pattern in ("model*.safetensors", "adapter_model.safetensors") for file in folder.glob(pattern)]
    if not weights or not any((folder / file).is_file() for file in ("config.json", find.ADAPTER)):
        raise ModelError(f"{name!r} is no student: wanted a folder with weights and their config, RUN/student")
    found = {file for part in ("", f"{find.CARRIED}/") for pattern in ALLOWED for file in folder.glob(part + pattern)}
    files = {file.relative_to(folder).as_posix(): file.stat().st_size for file in found if file.is_file()}
    others = [file for file in folder.rglob("*") if file.is_file() and file not in found]
    carried = (folder / find.CARRIED).is_dir()
    return Parcel(
        folder=folder, files=dict(sorted(files.items())),
        left_out=sorted(file.relative_to(folder).as_posix() for file in others),
        local_base=(folder / find.ADAPTER).is_file() and not carried and not public_base(folder),
    )  # fmt: skip


def public_base(folder: Path) -> str | None:
    """The hub id that an adapter names as its base; None for a folder of this machine."""
    base = find.read_json(folder / find.ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or base.count("/") != 1 or base.startswith((".", "/", "~")):
        return None
    return None if is_dir(base) or is_file(base) or find.beside(base, folder) else base


def check_name(repo: str) -> None:
    """Refuse what the hub takes for no name of a repository, without asking it.

    Raises:
        ConfigError: ``repo`` is no name.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"{repo!r} is no name of a repository ({first_line(error)}); wanted OWNER/NAME") from error


def push(sent: Parcel, repo: str, *, private: bool) -> str:
    """Make the repository if it is not there, upload the files in one commit, and return their address.

    Raises:
        ConfigError: ``repo`` is no name, no token is set, or the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    check_name(repo)
    if not get_token():
        raise ConfigError("no token for the model hub; run `hf auth login`, or set HF_TOKEN, with a token that writes")
    api = HfApi()
    with tempfile.TemporaryDirectory() as scratch:
        staged = _staged(sent, Path(scratch))
        try:
            made = api.create_repo(repo, private=private, exist_ok=True)
            if private and api.repo_info(made.repo_id).private is False:
                raise ConfigError(f"{repo} is there and public; --private makes a new repository: give another name")
            api.upload_folder(repo_id=made.repo_id, folder_path=staged, commit_message="Upload a student of agentopcd")
        except ConfigError:
            raise
        except Exception as error:  # of the hub's library, and of the one it sends with
            why = first_line(error, type(error).__name__)
            raise ConfigError(f"the model hub did not take {repo} ({why}); check name, token, HF_ENDPOINT") from error
    return str(made)


def _staged(sent: Parcel, scratch: Path) -> Path:
    """A folder of links to the files, with the two that may name a place on this machine written anew."""
    for name in sent.files:
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with writing(target):
            os.symlink(sent.folder / name, target)
    if (settings := scratch / find.ADAPTER).exists():
        _rewritten(settings, {"base_model_name_or_path": public_base(sent.folder)})
    if (facts := scratch / "agentopcd.json").exists():
        base = find.sidecar(sent.folder).get("base", "")
        _rewritten(facts, {"base": base if base in find.BUILT_IN else ""})
    return scratch


def _rewritten(link: Path, changes: dict[str, str | None]) -> None:
    content = find.read_json(link) | changes
    link.unlink()
    link.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
