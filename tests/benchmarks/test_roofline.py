"""What the roofline counts of operations whose work is known."""

from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def work(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import roofline

    with roofline.Work() as counted:
        yield counted


def test_products_and_bytes(work):
    a, b = torch.rand(3, 5), torch.rand(5, 7)
    assert (a @ b).shape == (3, 7)
    assert work.operations['aten::mm'] == [(2 * 3 * 5 * 7, 4 * (15 + 35 + 21))]


def test_views_cost_nothing_and_expanded_rows_are_read_once(work):
    a = torch.rand(6, 4)
    work.operations.clear()
    b = a.view(4, 6).T[1:3].unsqueeze(0)
    assert not work.operations
    assert (b[0, :1].expand(100, -1) + 1.0).shape == (100, 4)
    [(flops, moved)] = work.operations['aten::add']
    assert (flops, moved) == (0, 4 * (4 + 400))


def test_rows_taken_by_index(work):
    a, rows = torch.rand(1000, 8), torch.tensor([3, 3, 5])
    work.operations.clear()
    assert a.index_select(0, rows).shape == (3, 8)
    assert work.operations['aten::index_select'] == [(0, 2 * 3 * 8 * 4 + 3 * 8)]
