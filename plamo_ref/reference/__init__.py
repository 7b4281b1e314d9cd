"""The slow truth in plain torch: everything fast is proved against it."""

from plamo_ref.reference.model import Plamo2Reference, ReferenceOutput, SequenceState

__all__ = ["Plamo2Reference", "ReferenceOutput", "SequenceState"]
