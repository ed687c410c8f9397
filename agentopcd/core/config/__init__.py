"""Settings: one frozen dataclass per verb, read from TOML and written as JSON."""

from agentopcd.core.config.base import VERBS, Config, about, choices, default_of, field_docs, hints, pick, read_toml
from agentopcd.core.config.engine import EngineConfig
from agentopcd.core.config.flags import (
    DICT_FLAGS,
    USUAL,
    flag_of,
    flags_for,
    flags_of,
    has_flag,
    panels,
    player_flags,
    without_flag,
)
from agentopcd.core.config.player import RECORDED, PlayerConfig
from agentopcd.core.config.serve import SERVE_KEY, ServeConfig
from agentopcd.core.config.training import ByTeacher, OnPolicy, Replay, TrainConfig
from agentopcd.core.config.verbs import (
    ConfirmConfig,
    ConsolidateConfig,
    EvaluateConfig,
    ForecastConfig,
    GatherConfig,
    LearnConfig,
    PlayConfig,
    ScoreConfig,
    ScoringConfig,
    since_of,
)

__all__ = [
    "DICT_FLAGS",
    "RECORDED",
    "SERVE_KEY",
    "USUAL",
    "VERBS",
    "ByTeacher",
    "Config",
    "ConfirmConfig",
    "ConsolidateConfig",
    "EngineConfig",
    "EvaluateConfig",
    "ForecastConfig",
    "GatherConfig",
    "LearnConfig",
    "OnPolicy",
    "PlayConfig",
    "PlayerConfig",
    "Replay",
    "ScoreConfig",
    "ScoringConfig",
    "ServeConfig",
    "TrainConfig",
    "about",
    "choices",
    "default_of",
    "field_docs",
    "flag_of",
    "flags_for",
    "flags_of",
    "has_flag",
    "hints",
    "panels",
    "pick",
    "player_flags",
    "read_toml",
    "since_of",
    "without_flag",
]
