"""Fixtures that several unit tests ask for by `usefixtures`."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Sums are taken in one order, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
