"""The slow truth in plain torch: everything fast is proved against it."""

from plamo_ref.reference.generation import Piece, generate_ids, generate_text
from plamo_ref.reference.model import Plamo2Reference, ReferenceOutput, SequenceState

__all__ = [
    "Piece",
    "Plamo2Reference",
    "ReferenceOutput",
    "SequenceState",
    "generate_ids",
    "generate_text",
]
