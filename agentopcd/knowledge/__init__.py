"""What agents learn: items, the contexts made of them, their scores, and the store that holds them.

This package imports neither torch nor an environment; models and players are passed in as callables.
"""

if __name__ != "agentopcd.knowledge":
    raise ImportError(f"import agentopcd.knowledge, not {__name__}: the folder at the root is only a link")

from agentopcd.knowledge.assemble import assemble, assemble_by_value, render
from agentopcd.knowledge.bench import Bench, Play, check_leaks, places_of
from agentopcd.knowledge.confirm import USEFUL, Confirmation, Verdict, confirm, own_best
from agentopcd.knowledge.episodes import Arena, Arm, Place
from agentopcd.knowledge.extract import EXTRACTION_VERSION, extraction_messages
from agentopcd.knowledge.ingest import Ingested, Origin, ingest
from agentopcd.knowledge.items import Item, identify, item_ids, parse, sanitise, without
from agentopcd.knowledge.looks import ALPHA, left_after, level_of
from agentopcd.knowledge.placebo import placebo
from agentopcd.knowledge.poison import flags
from agentopcd.knowledge.queries import Leak
from agentopcd.knowledge.refs import PoolStep, best_ref, home, pool_prefix, valued_ref
from agentopcd.knowledge.score import PER_CONTEXT, Ranking, add_to_pool, halving, score
from agentopcd.knowledge.store import PLACEBO, Found, Store, canonical, setup_id
from agentopcd.knowledge.values import ItemValue, subsets

__all__ = [
    "ALPHA",
    "EXTRACTION_VERSION",
    "PER_CONTEXT",
    "PLACEBO",
    "USEFUL",
    "Arena",
    "Arm",
    "Bench",
    "Confirmation",
    "Found",
    "Ingested",
    "Item",
    "ItemValue",
    "Leak",
    "Origin",
    "Place",
    "Play",
    "PoolStep",
    "Ranking",
    "Store",
    "Verdict",
    "add_to_pool",
    "assemble",
    "assemble_by_value",
    "best_ref",
    "canonical",
    "check_leaks",
    "confirm",
    "extraction_messages",
    "flags",
    "halving",
    "home",
    "identify",
    "ingest",
    "item_ids",
    "left_after",
    "level_of",
    "own_best",
    "parse",
    "placebo",
    "places_of",
    "pool_prefix",
    "render",
    "sanitise",
    "score",
    "setup_id",
    "subsets",
    "valued_ref",
    "without",
]
