"""Settings of all tests."""

from hypothesis import HealthCheck, settings

# A time limit per example measures the machine, not the code: two cores are often shared.
settings.register_profile("invert3d", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("invert3d")
