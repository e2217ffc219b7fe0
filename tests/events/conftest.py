"""Property tests on a noisy machine: no time limit for one example."""

from hypothesis import settings

settings.register_profile("tasktrail", deadline=None)
settings.load_profile("tasktrail")
