"""For all tests."""

import gc


def pytest_collection_finish(session):
    """Seldom look for garbage, and not among what was imported: the models that tests keep make each look expensive."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
