"""What all tests of the clients share."""

from hypothesis import settings

# A deadline for each example measures how busy the machine is; pytest-timeout bounds the test as a whole.
settings.register_profile("clients", deadline=None)
settings.load_profile("clients")
