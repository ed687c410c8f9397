"""What agents learn: items, the contexts made of them, their scores, and the store they live in.

Neither torch nor an environment is imported here; models and players come in as callables.
"""

if __name__ != "agentopcd.knowledge":
    raise ImportError(f"import agentopcd.knowledge, not {__name__}: the folder at the root is only a link")

from agentopcd.knowledge.assemble import assemble, render
from agentopcd.knowledge.extract import TEMPLATE_VERSION, extraction_messages
from agentopcd.knowledge.ingest import Ingested, ingest
from agentopcd.knowledge.items import Item, flags, identify, item_ids, parse, sanitise
from agentopcd.knowledge.queries import Arm, Leak, Pair, Place
from agentopcd.knowledge.score import (
    Confirmation,
    ItemValue,
    Ranking,
    add_to_pool,
    check_leaks,
    confirm,
    play_missing,
    pool_ref,
    score,
    subsets,
)
from agentopcd.knowledge.store import Found, Store, canonical, setup_id

__all__ = [
    "TEMPLATE_VERSION",
    "Arm",
    "Confirmation",
    "Found",
    "Ingested",
    "Item",
    "ItemValue",
    "Leak",
    "Pair",
    "Place",
    "Ranking",
    "Store",
    "add_to_pool",
    "assemble",
    "canonical",
    "check_leaks",
    "confirm",
    "extraction_messages",
    "flags",
    "identify",
    "ingest",
    "item_ids",
    "parse",
    "play_missing",
    "pool_ref",
    "render",
    "sanitise",
    "score",
    "setup_id",
    "subsets",
]
