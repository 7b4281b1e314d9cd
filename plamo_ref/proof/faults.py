"""Bugs planted on purpose, one switch each: what a serving engine can get wrong, and who notices.

Invariant: on some small scenario, `law.run_scenario` ends with the error of the check in
`caught_by` while a fault is planted, and without an error when it is not. Behind the engine there
are tokens no more, but text: for TEXT_FAULTS the same holds of `faults_text.check_text`.
PREFIX_FAULTS need scenarios whose prompts begin alike, ARENA_FAULTS those of them that have an
arena (sharing.py), HURRY_FAULTS those with a bound on a step's time (hurry.py),
DRAFT_FAULTS those with drafts (drafting.py).
"""

from plamo_ref.proof.faults_arena import ARENA_FAULTS
from plamo_ref.proof.faults_batch import BATCH_FAULTS
from plamo_ref.proof.faults_compute import COMPUTE_FAULTS
from plamo_ref.proof.faults_drafts import DRAFT_FAULTS
from plamo_ref.proof.faults_memory import MEMORY_FAULTS
from plamo_ref.proof.faults_prefix import PREFIX_FAULTS
from plamo_ref.proof.faults_recovery import RECOVERY_FAULTS
from plamo_ref.proof.faults_schedule import HURRY_FAULTS, SCHEDULE_FAULTS
from plamo_ref.proof.faults_text import TEXT_FAULTS
from plamo_ref.proof.planting import Fault

FAULTS: tuple[Fault, ...] = (
    *MEMORY_FAULTS,
    *SCHEDULE_FAULTS,
    *BATCH_FAULTS,
    *COMPUTE_FAULTS,
    *RECOVERY_FAULTS,
)


def fault(name: str) -> Fault:
    """A fault by its name.

    Raises:
        KeyError: there is no such fault.
    """
    special = (*PREFIX_FAULTS, *ARENA_FAULTS, *HURRY_FAULTS, *DRAFT_FAULTS, *TEXT_FAULTS)
    return {each.name: each for each in (*FAULTS, *special)}[name]
