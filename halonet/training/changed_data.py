"""Whether a resumed run would train on other data than before, and what has changed."""

import json
import zlib
from typing import Any

import torch
from torch import Tensor

from halonet.data.listing import Entry, Listing
from halonet.data.splits import list_some

SHOWN = 2  # names of each kind of change


def pack_listing(listing: Listing) -> Tensor:
    """A listing as bytes, for a state."""
    fields = [listing.class_names, listing.unit, listing.entries]
    return torch.frombuffer(
        bytearray(zlib.compress(json.dumps(fields).encode())), dtype=torch.uint8
    )


def unpack_listing(packed: Tensor) -> Listing:
    """The listing that `pack_listing` packed."""
    names, unit, entries = json.loads(zlib.decompress(packed.numpy().tobytes()))
    return Listing(tuple(names), unit, tuple(Entry(*entry) for entry in entries))


def describe_change(before: Listing, now: Listing) -> str:
    """What differs between two listings, with counts and examples; empty where nothing does."""
    if before == now:
        return ""
    known, found = (
        {(entry.part, entry.name): entry.detail for entry in one.entries} for one in (before, now)
    )
    gone = {name for part, name in known if (part, name) not in found}
    new = {name for part, name in found if (part, name) not in known}
    changes: dict[str, Any] = {
        "classes removed": set(before.class_names) - set(now.class_names),
        "classes added": set(now.class_names) - set(before.class_names),
        f"{before.unit} removed": gone - new,
        f"{now.unit} added": new - gone,
        f"{now.unit} now in the other part": gone & new,
        f"{now.unit} changed": {
            key[1] for key in known if key in found and known[key] != found[key]
        },
    }
    described = [
        f"{what}: {len(names)} ({list_some(sorted(names), SHOWN)})"
        for what, names in changes.items()
        if names
    ]
    return ", ".join(described) or "classes or images are in another order"
