"""The gallery of bugs: patients of the registry, told apart by what the instruments show.

Invariant tested: a learner can name each patient, and no instrument gives a name away.
"""

from functools import cache

import pytest

from plamo_ref.errors import PlamoRefError
from plamo_ref.proof.faults import FAULTS, fault
from plamo_ref.proof.lab import Pair, lab_config, random_pair
from plamo_ref.teaching import CheckFailed, gallery
from plamo_ref.teaching.gallery import diagnosed, microscope, patient, prompt, suspects, symptoms

LABELS = [f"{ward}{number}" for ward in "ABC" for number in (1, 2, 3)]


@cache
def pair() -> Pair:
    return random_pair(lab_config())


def seen(length: int, ill) -> str:
    """What the microscope says after a prompt of this length."""
    try:
        return str(microscope(prompt(length, 1), pair(), ill))
    except PlamoRefError as error:
        return str(error)


@cache
def signature(name: str) -> tuple[str, ...]:
    """All that the instruments say of a fault."""
    ill = fault(name)
    said = [str(each) for each in symptoms(pair(), ill).values()]
    return (*said, *(seen(n, ill) for n in (7, 8, 14)))


@cache
def name_of(label: str) -> str:
    """The one suspect whose signature is the patient's."""
    ill = patient(label)
    mine = [str(each) for each in symptoms(pair(), ill).values()]
    mine += [seen(n, ill) for n in (7, 8, 14)]
    alike = [name for name in suspects(label[0]) if signature(name) == tuple(mine)]
    assert len(alike) == 1, alike
    return alike[0]


def test_an_engine_that_waits_for_ever_is_no_specimen():
    with pytest.raises(PlamoRefError, match="7 steps gave no token"):
        microscope(prompt(7, 1), pair(), fault("whole prompt cached"))


def test_the_instruments_are_silent_about_a_whole_engine():
    assert set(symptoms(pair()).values()) == {None}
    for budget in (64, 5):
        assert microscope(prompt(14, 1), pair(), budget=budget) is None


@pytest.mark.parametrize("ward", gallery.WARDS)
def test_the_instruments_tell_each_patient_from_all_other_suspects(ward):
    answer = {label: name_of(label) for label in LABELS if label.startswith(ward)}
    assert diagnosed(ward, answer, pair()) == 3


def test_patients_come_from_the_registry_and_keep_their_names_to_themselves():
    names = {name_of(label) for label in LABELS}
    assert len(names) == len(LABELS) >= 9
    assert names <= {each.name for each in FAULTS}
    for label in LABELS:
        assert name_of(label) not in repr(patient(label))
    with pytest.raises(KeyError):
        patient("D1")


def test_a_wrong_diagnosis_is_answered_with_an_experiment_and_not_with_the_name():
    answer = {label: name_of(label) for label in ("A1", "A2", "A3")}
    for label, right in answer.items():
        for wrong in list(suspects("A"))[::7]:
            if wrong != right:
                with pytest.raises(CheckFailed, match=f"{label} is not") as failed:
                    diagnosed("A", answer | {label: wrong}, pair())
                assert repr(right) not in str(failed.value)
                assert "experiment" in str(failed.value)
    with pytest.raises(CheckFailed, match="none of the suspects of ward A"):
        diagnosed("A", answer | {"A1": "slot mapping off by one"}, pair())
    with pytest.raises(CheckFailed, match="none of the suspects"):
        diagnosed("A", answer | {"A1": {"whole prompt cached"}}, pair())
    with pytest.raises(CheckFailed, match="name them in a dict"):
        diagnosed("A", list(answer.values()), pair())
    with pytest.raises(NotImplementedError):
        diagnosed("A", answer | {"A1": ...}, pair())
