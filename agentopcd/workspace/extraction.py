"""What decides an extractor's replies besides the episodes: who it is, and what it is asked."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import Any, Self

from agentopcd import models
from agentopcd.core.config import GatherConfig, PlayConfig, PlayerConfig
from agentopcd.core.encoding import read_text
from agentopcd.core.errors import ConfigError
from agentopcd.core.files import is_file, path_of
from agentopcd.knowledge import EXTRACTION_VERSION
from agentopcd.knowledge.extract import check_template, places_of
from agentopcd.models import find
from agentopcd.rollouts.engine import check_engine

WITHOUT_EXTRACTION = 1
"""The version of the prompts that a run records which asks none of them: part of its identity since version 0.1."""


@dataclasses.dataclass(frozen=True)
class Extraction:
    """Who extracts, and with which prompt."""

    extractor: PlayerConfig | None = None
    """The settings of another model than the player; None: the player extracts."""
    template: str = ""
    """A person's own prompt; '': the built-in ones."""
    extracts: bool = False

    @classmethod
    def of(cls, config: PlayerConfig) -> Self:
        """What the settings of a verb ask for.

        Raises:
            ConfigError: the file of the prompt cannot be read, or is of no use as a prompt.
        """
        if not isinstance(config, GatherConfig) or (isinstance(config, PlayConfig) and not config.extract):
            return cls()
        template = _template(config) if config.extract_prompt else ""
        return cls(config.extracting if config.extractor else None, template, extracts=True)

    def check(self) -> str:
        """Refuse an extractor that cannot reply, as far as it shows without its weights.

        Returns:
            Why nothing could be looked at, if its files are not on this machine yet; else ''.

        Raises:
            AgentOpcdError: there is no such model, or nobody answers at its address.
        """
        if self.extractor is None:
            return ""
        check_engine(self.extractor)
        return "" if self.extractor.engine == "api" else models.check_files(self.extractor.model)

    def facts(self) -> dict[str, Any]:
        """What a run's row says about its extraction, besides the settings: ids and texts in place of mere names.

        Raises:
            ModelError: there is no such extractor.
        """
        if not self.extracts:
            return {"template": WITHOUT_EXTRACTION}
        facts: dict[str, Any] = {"template": EXTRACTION_VERSION}
        if self.extractor is not None:
            facts["extractor_id"] = self.extractor_id
        if self.template:
            digest = hashlib.sha256(self.template.encode()).hexdigest()
            facts |= {"extract_prompt_sha256": digest, "extract_prompt_text": self.template}
        return facts

    @functools.cached_property
    def extractor_id(self) -> str:
        """The id of the model that extracts in place of the player. Local weights are hashed, not loaded."""
        assert self.extractor is not None
        name = self.extractor.model
        return models.behind_api(name).id if self.extractor.engine == "api" else find.fingerprint(find.find_model(name))


def _template(config: GatherConfig) -> str:
    name = f"the extraction prompt {config.extract_prompt!r}"
    if not is_file(config.extract_prompt):
        raise ConfigError(f"no file {config.extract_prompt!r}; --extract-prompt wants a text file with your prompt")
    try:
        text = read_text(path_of(config.extract_prompt))
    except ConfigError as error:
        raise ConfigError(f"extraction prompt {error}") from error
    template = check_template(text, name)
    if config.show_earlier and "earlier" not in places_of(template):
        raise ConfigError(f"{name} has no {{earlier}}, where show_earlier puts the earlier items; write it there")
    return template
