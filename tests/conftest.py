"""How thorough property tests are: HYPOTHESIS_PROFILE=ci (the default) or nightly.

Invariant tested: a test without settings of its own follows the profile.
"""

import os

from hypothesis import HealthCheck, settings

# What a shared machine does to a test's time says nothing about the test.
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("ci", max_examples=100, derandomize=True, **_PATIENT)
settings.register_profile("nightly", max_examples=10_000, print_blob=True, **_PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
